"""Times the whole training step of GNMT, ours and PyTorch's, in turn on one machine.

A step is the forward and backward pass with dropout 0.2 and label smoothing 0.1, clipping by the
global norm 5, and Adam. Each side runs in processes of its own, one after the other and several
times, because machines drift; the table has the minimum of each.

    python benchmarks/gnmt_step.py                                  # 2 + 2 layers of 256
    python benchmarks/gnmt_step.py --features 1024 --layers 8 --vocab 32000 --dtype bfloat16    # the paper's
    python benchmarks/gnmt_step.py --attention_from previous_step   # the paper's loop: ours alone
    python benchmarks/gnmt_step.py --check                          # both are the same computation
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from seq2seq_jax.errors import UserError

if TYPE_CHECKING:
    from seq2seq_jax.interfaces import Array, Batch, PyTree, Sums
    from seq2seq_jax.models.gnmt import GNMT

DROPOUT, LABEL_SMOOTHING, CLIP_NORM, LEARNING_RATE = 0.2, 0.1, 5.0, 1e-3
SIDES = ("ours", "torch")
CHECK_TOLERANCE = 1e-4


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=256, help="width of embeddings, layers and attention")
    parser.add_argument("--layers", type=int, default=2, help="layers of the encoder, and of the decoder")
    parser.add_argument("--vocab", type=int, default=8000, help="tokens on each side")
    parser.add_argument("--rows", type=int, default=64, help="sentences in a batch")
    parser.add_argument("--source", type=int, default=24, help="tokens of a source sentence")
    parser.add_argument("--target", type=int, default=24, help="tokens of a target sentence")
    parser.add_argument("--attention_from", choices=("current_step", "previous_step"), default="current_step")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the products")
    parser.add_argument("--steps", type=int, default=10, help="measurements in each process")
    parser.add_argument("--warm_up", type=int, default=2, help="steps after the first that are not measured")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each side")
    parser.add_argument("--cores", type=int, default=0, help="keep each process to so many cores; 0 is all")
    parser.add_argument("--json", help="also write the figures to this file")
    parser.add_argument("--check", action="store_true", help="compare loss and gradients instead of time")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)  # what a process of a round is told
    args = parser.parse_args(arguments)
    for name in ("features", "layers", "vocab", "rows", "source", "target", "steps", "rounds"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, but is {getattr(args, name)}")
    if args.attention_from == "current_step" and args.layers < 2:
        parser.error(f"--layers must be at least 2 with --attention_from current_step, but is {args.layers}")
    if args.check and args.attention_from == "previous_step":
        parser.error("--check needs --attention_from current_step: the peer has no other")
    return args


def make_tokens(args: argparse.Namespace) -> dict[str, np.ndarray]:
    """A batch of random sentences that fill their rows, int32."""
    generator = np.random.default_rng(0)
    source = generator.integers(4, args.vocab, (args.rows, args.source), dtype=np.int32)
    target = generator.integers(4, args.vocab, (args.rows, args.target + 1), dtype=np.int32)
    return {"source": source, "target_in": target[:, :-1], "target_out": target[:, 1:]}


def count_flops(args: argparse.Namespace) -> float:
    """Operations of the products of a step: forward, and twice that backward. Recomputation does not count."""
    d, vocab, layers = args.features, args.vocab, args.layers
    memory = d * (2 if layers == 1 else 1)

    def lstm(width: int) -> int:
        return 2 * 4 * d * (width + d)

    encoder = 2 * lstm(d) + sum(lstm(2 * d if n == 0 else d) for n in range(layers - 1)) + 2 * memory * d
    bottom = lstm(d + (memory if args.attention_from == "previous_step" else 0))
    decoder = bottom + (layers - 1) * lstm(d + memory) + 2 * d * d + 2 * d * vocab
    pairs = 2 * d + 2 * memory  # score and context
    return 3.0 * args.rows * (args.source * encoder + args.target * decoder + args.source * args.target * pairs)


def build_ours(args: argparse.Namespace, *, dropout: float) -> tuple[GNMT, Batch]:
    """Our model and the batch."""
    import jax.numpy as jnp

    from seq2seq_jax.interfaces import Batch
    from seq2seq_jax.models.gnmt import GNMT, GNMTConfig

    model = GNMT(
        GNMTConfig(
            source_vocab=args.vocab,
            target_vocab=args.vocab,
            features=args.features,
            encoder_layers=args.layers,
            decoder_layers=args.layers,
            attention_features=args.features,
            attention_from=args.attention_from,
            dropout=dropout,
            dtype=args.dtype,
        )
    )
    tokens = {name: jnp.asarray(array) for name, array in make_tokens(args).items()}
    batch = Batch(
        **tokens,
        source_mask=jnp.ones((args.rows, args.source), bool),
        target_mask=jnp.ones((args.rows, args.target), bool),
        example_ids=jnp.arange(args.rows, dtype=jnp.int32),
        row_mask=jnp.ones((args.rows,), bool),
    )
    return model, batch


def init_ours(model: GNMT, batch: Batch) -> PyTree:
    """Our parameters, at random."""
    import jax
    from flax import linen as nn

    @jax.jit
    def init(key: Array) -> PyTree:
        return nn.meta.unbox(model.init(key, batch.source, batch.source_mask, batch.target_in)["params"])

    return init(jax.random.key(0))


def sum_losses(model: GNMT, params: PyTree, batch: Batch, key: Array) -> tuple[Array, Sums]:
    """What a task's loss does: the sum of the cross-entropy over a batch, and its weight."""
    import jax.numpy as jnp

    from seq2seq_jax.parallel.softmax import cross_entropy

    def run(model: GNMT) -> tuple[Array, Array, Array]:
        memory = model.encode(batch.source, batch.source_mask, train=True)
        output = model.decode(batch.target_in, memory, train=True)
        return output.hidden, *model.softmax_weights()

    hidden, kernel, bias = model.apply({"params": params}, rngs={"dropout": key}, method=run)
    weights = batch.target_mask.astype(jnp.float32).reshape(-1)
    out = cross_entropy(
        hidden.reshape(-1, hidden.shape[-1]),
        kernel,
        bias,
        batch.target_out.reshape(-1),
        weights,
        label_smoothing=LABEL_SMOOTHING,
    )
    return out.loss, {"loss": out.loss, "nll": out.nll, "weight": weights.sum()}


def measure_ours(args: argparse.Namespace) -> dict[str, Any]:
    """Times our training step. Blocks of ten steps on an accelerator, so that waiting is not what is measured."""
    import functools

    import jax
    import optax

    from seq2seq_jax.train.optimizers import make_optimizer
    from seq2seq_jax.train.step import init_state, make_train_step

    model, batch = build_ours(args, dropout=DROPOUT)
    optimizer = make_optimizer("adam", optax.constant_schedule(LEARNING_RATE), clip_norm=CLIP_NORM)
    state = jax.jit(lambda: init_state(init_ours(model, batch), optimizer))()
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    gradient = jax.value_and_grad(functools.partial(sum_losses, model), has_aux=True)
    step = jax.jit(make_train_step(gradient, optimizer, seed=0), donate_argnums=0)
    start = time.perf_counter()
    step = step.lower(state, batch).compile()
    compile_seconds = time.perf_counter() - start
    for _ in range(1 + args.warm_up):
        state, sums = step(state, batch)
    jax.block_until_ready(state)
    device = jax.devices()[0]
    seconds, cpu_seconds, block = [], [], 1 if device.platform == "cpu" else 10
    for _ in range(args.steps):
        start, cpu_start = time.perf_counter(), time.process_time()
        for _ in range(block):
            state, sums = step(state, batch)
        jax.block_until_ready((state, sums))
        seconds.append((time.perf_counter() - start) / block)
        cpu_seconds.append((time.process_time() - cpu_start) / block)
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "compile_seconds": compile_seconds,
        "parameters": parameters,
        "loss": float(sums["loss"] / sums["weight"]),
        "device": device.device_kind,
        "version": f"jax {jax.__version__}",
    }


def measure_torch(args: argparse.Namespace) -> dict[str, Any]:
    """Times the peer's training step."""
    import gnmt_torch

    return gnmt_torch.measure(
        {"vocab": args.vocab, "features": args.features, "layers": args.layers},
        make_tokens(args),
        steps=args.steps,
        warm_up=args.warm_up,
        dtype=args.dtype,
        dropout=DROPOUT,
        label_smoothing=LABEL_SMOOTHING,
        clip_norm=CLIP_NORM,
        learning_rate=LEARNING_RATE,
    )


def run_check(args: argparse.Namespace) -> bool:
    """Compares loss and every gradient of both sides: the same weights, float32, no dropout, on the CPU."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    import gnmt_torch
    import jax
    import torch

    torch.set_num_threads(1)  # it is small, and on a busy machine threads that wait for each other take for ever
    args.dtype = "float32"
    model, batch = build_ours(args, dropout=0.0)
    shapes = init_ours(model, batch)
    generator = np.random.default_rng(1)  # ours start with zero biases, which would hide a bias in the wrong place
    params = jax.tree.map(lambda x: generator.uniform(-0.2, 0.2, x.shape).astype(np.float32), shapes)

    def mean(params: PyTree) -> Array:
        objective, sums = sum_losses(model, params, batch, jax.random.key(0))
        return objective / sums["weight"]

    loss, grads = jax.jit(jax.value_and_grad(mean))(params)
    peer = gnmt_torch.TorchGNMT(vocab=args.vocab, features=args.features, layers=args.layers, dropout=0.0)
    gnmt_torch.load_weights(peer, params)
    peer_loss = gnmt_torch.mean_loss(peer, make_tokens(args), LABEL_SMOOTHING)
    peer_loss.backward()
    worst, where = 0.0, ""
    norm = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(grads)))
    named = jax.tree_util.tree_leaves_with_path(grads)
    for (path, ours), theirs in zip(named, jax.tree.leaves(gnmt_torch.read_gradients(peer)), strict=True):
        # Relative to the tensor, but no tensor is held to more than float32 has of the whole gradient: the
        # attention's key bias shifts all scores of a row alike, and so do others nearly.
        error = np.linalg.norm(ours - theirs) / max(np.linalg.norm(theirs), 1e-3 * norm)
        if error >= worst:
            worst, where = float(error), jax.tree_util.keystr(path)
    loss_error = abs(float(loss) - peer_loss.item()) / peer_loss.item()
    counts = sum(leaf.size for leaf in jax.tree.leaves(params)), gnmt_torch.count_parameters(peer)
    print(f"parameters: ours {counts[0]:,}, torch {counts[1]:,} (one of its two biases a layer counted)")
    print(f"loss: ours {float(loss):.7f}, torch {peer_loss.item():.7f}, relative difference {loss_error:.1e}")
    print(f"gradients: largest relative difference {worst:.1e}, of {where}")
    return counts[0] == counts[1] and loss_error < CHECK_TOLERANCE and worst < CHECK_TOLERANCE


def run_side(side: str, *, cores: int) -> dict[str, Any]:
    """One process of one side with this process's arguments; its figures."""
    command = [sys.executable, *sys.argv, "--side", side]
    environment = dict(os.environ)
    if cores:
        environment |= {"OMP_NUM_THREADS": str(cores), "PJRT_NPROC": str(cores)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
    if done.returncode:
        raise UserError(f"the process of {side} ended with code {done.returncode}; its message stands above")
    return json.loads(done.stdout.splitlines()[-1])


def summarise(args: argparse.Namespace, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The seconds a step over all processes of a side, and rates at the minimum."""
    seconds = [second for run in runs for second in run["seconds"]]
    best = min(seconds)
    return {
        "ms": 1e3 * best,
        "median_ms": 1e3 * float(np.median(seconds)),
        "cpu_ms": 1e3 * min(second for run in runs for second in run["cpu_seconds"]),
        "tokens_per_second": args.rows * (args.source + args.target) / best,
        "gflop_per_second": count_flops(args) / best / 1e9,
        "first_seconds": min(run.get("compile_seconds", run.get("first_step_seconds")) for run in runs),
        "peak_mib": max(run["peak_mib"] for run in runs),
        "parameters": runs[0]["parameters"],
        "device": runs[0]["device"],
        "version": runs[0]["version"],
    }


def print_table(results: dict[str, dict[str, Any]]) -> None:
    """Prints a line a side, and the ratio."""
    titles = ("", "ms/step", "median", "CPU ms", "tokens/s", "GFLOP/s", "first s", "host MiB", "parameters")
    print("{:<8}{:>10}{:>10}{:>10}{:>12}{:>10}{:>9}{:>10}{:>13}".format(*titles))
    for side, r in results.items():
        print(
            f"{side:<8}{r['ms']:>10.2f}{r['median_ms']:>10.2f}{r['cpu_ms']:>10.2f}{r['tokens_per_second']:>12,.0f}"
            f"{r['gflop_per_second']:>10.1f}{r['first_seconds']:>9.1f}{r['peak_mib']:>10.0f}{r['parameters']:>13,}"
            f"  {r['version']}, {r['device']}"
        )
    if len(results) == 2:
        ratios = {key: results["ours"][key] / results["torch"][key] for key in ("ms", "cpu_ms")}
        print(f"ours / torch: {ratios['ms']:.2f} of the time, {ratios['cpu_ms']:.2f} of the processor time (minima)")


def run_rounds(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """All processes, in turn."""
    sides = SIDES if args.attention_from == "current_step" else SIDES[:1]
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    if load > 0.5 * cores:
        print(
            f"the machine is busy (load {load:.1f} on {cores} cores): threads that wait for each other suffer most, "
            "PyTorch's above all; run on an idle machine, or compare the processor time of --cores 1",
            file=sys.stderr,
        )
    if args.attention_from == "previous_step":
        print("previous_step: the peer has no such model, ours runs alone")
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(args.rounds):
        for side in sides:
            runs[side].append(run_side(side, cores=args.cores))
    return {side: summarise(args, found) for side, found in runs.items()}


def require_torch() -> None:
    """Raises UserError where PyTorch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise UserError(
            "gnmt_step.py measures against PyTorch, which is not installed: `pip install torch`, "
            "or run ours alone with --attention_from previous_step"
        )


def main() -> int:
    """Runs what the command line asks for; returns the exit code."""
    args = parse_arguments()
    if args.side:
        if args.cores:
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
        figures = measure_ours(args) if args.side == "ours" else measure_torch(args)
        print(json.dumps(figures | {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
        return 0
    try:
        if args.attention_from == "current_step":
            require_torch()
        if args.check:
            return 0 if run_check(args) else 1
        results = run_rounds(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print_table(results)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"arguments": vars(args), "results": results}, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
