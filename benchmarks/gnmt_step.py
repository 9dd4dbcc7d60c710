"""Times the whole training step of GNMT: ours, the same with plain scans, and PyTorch's, in turn on one machine.

A step is the forward and backward pass with dropout 0.2 and label smoothing 0.1, clipping by the
global norm 5, and Adam. Each side runs in processes of its own, one after the other and several
times, because machines drift; the table has the minimum of each.

    python benchmarks/gnmt_step.py                                  # 2 + 2 layers of 256
    python benchmarks/gnmt_step.py --features 1024 --layers 8 --vocab 32000 --dtype bfloat16    # the paper's
    python benchmarks/gnmt_step.py --attention_from previous_step   # the paper's loop: ours alone
    python benchmarks/gnmt_step.py --profile                        # what parts our step's time goes to
    python benchmarks/gnmt_step.py --check                          # ours and PyTorch's are the same computation
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import rounds

from seq2seq_jax.errors import UserError

if TYPE_CHECKING:
    from seq2seq_jax.interfaces import Array, Batch, PyTree, Sums
    from seq2seq_jax.models.gnmt import GNMT

DROPOUT, LABEL_SMOOTHING, CLIP_NORM, LEARNING_RATE = 0.2, 0.1, 5.0, 1e-3
SIDES = ("ours", "plain", "torch")
CHECK_TOLERANCE = 1e-4
DEVICE, PROFILE = "device", "profile"  # processes that are no side: what the device can do, and a profile
SHARED = "current_step"  # the attention that all sides have


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = rounds.Parser(__doc__)
    add, whole = parser.add_argument, rounds.read_whole
    add("--features", type=whole, default=256, help="width of embeddings, layers and attention")
    add("--layers", type=whole, default=2, help="layers of the encoder, and of the decoder")
    add("--vocab", type=whole, default=8000, help="tokens on each side")
    add("--rows", type=whole, default=64, help="sentences in a batch")
    add("--source", type=whole, default=24, help="tokens of a source sentence")
    add("--target", type=whole, default=24, help="tokens of a target sentence")
    add("--attention_from", choices=(SHARED, "previous_step"), default=SHARED, help="the decoder's step that attends")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the products")
    add("--steps", type=whole, default=10, help="measurements in each process")
    add("--warm_up", type=rounds.read_count, default=2, help="steps after the first that are not measured")
    add("--rounds", type=whole, default=3, help="processes of each side")
    add("--cores", type=rounds.read_cores, default=0, help="keep each process to so many cores; 0 is all")
    add("--json", type=rounds.read_output_file, help="also write the figures of time to this file")
    add("--sides", help="by commas; ours, plain (recurrent layers are lax.scan, differentiated by JAX), torch "
        "(default: all, but ours alone with --profile or --attention_from=previous_step)")  # fmt: skip
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--check", action="store_true", help="compare loss and gradients instead of time")
    either.add_argument("--profile", action="store_true", help="share the time of our step (or --sides=plain) by parts")
    add("--profile_folder", help="with --profile: also keep the trace here (for TensorBoard or xprof)")
    add("--heaviest", type=rounds.read_count, default=0, help="with --profile: list so many instructions, too")
    add("--side", help=argparse.SUPPRESS)  # what a process of a round is told
    args = parser.parse_args(arguments)
    alone = args.profile or args.attention_from != SHARED
    args.sides = (SIDES[0] if alone else ",".join(SIDES)) if args.sides is None else args.sides
    args.sides = [side.strip() for side in args.sides.split(",")]
    for side in args.sides:
        if side not in SIDES:
            parser.error(f"--sides must be of {','.join(SIDES)}, but has {side!r}")
    if args.attention_from != SHARED and (args.check or args.sides != ["ours"]):
        parser.error("--attention_from=previous_step goes with --sides=ours, not with --check: no other side has it")
    if args.profile and args.sides not in (["ours"], ["plain"]):
        parser.error(f"--profile goes with --sides=ours or --sides=plain, but they are {','.join(args.sides)}")
    if not args.profile and (args.heaviest or args.profile_folder):
        parser.error("--heaviest and --profile_folder go with --profile: add it")
    if args.vocab < 5:
        parser.error(f"--vocab must be at least 5, because four tokens are special, but is {args.vocab}")
    if args.attention_from == SHARED and args.layers < 2:
        parser.error(f"--layers must be at least 2 with --attention_from={SHARED}, but is {args.layers}")
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


def sum_losses(model: GNMT, params: PyTree, batch: Batch, key: Array, step: Array) -> tuple[Array, Sums]:
    """What a task's loss does: the sum of the cross-entropy over a batch, and its weight."""
    import jax
    import jax.numpy as jnp

    from seq2seq_jax.parallel.softmax import choose_chunk, cross_entropy

    chunk = choose_chunk(model.config.target_vocab, model.config.features, platform=jax.default_backend())

    def run(model: GNMT) -> tuple[Array, Array, Array]:
        memory = model.encode(batch.source, batch.source_mask, train=True)
        output = model.decode(batch.target_in, memory, train=True)
        return output.hidden, *model.softmax_weights()

    hidden, kernel, bias = model.apply({"params": params}, rngs={"dropout": key}, method=run)
    weights = batch.target_mask.astype(jnp.float32).reshape(-1)
    with jax.named_scope("softmax"):  # a profile knows it by this
        out = cross_entropy(
            hidden.reshape(-1, hidden.shape[-1]),
            kernel,
            bias,
            batch.target_out.reshape(-1),
            weights,
            label_smoothing=LABEL_SMOOTHING,
            chunk=chunk,
        )
    return out.loss, {"loss": out.loss, "nll": out.nll, "weight": weights.sum()}


def build_step(args: argparse.Namespace) -> tuple[Any, PyTree, Batch, float]:
    """Our compiled step, the first state (donated to the first step), the batch, and the seconds of compiling."""
    import functools

    import jax
    import optax

    from seq2seq_jax.train.optimizers import make_optimizer
    from seq2seq_jax.train.step import init_state, make_train_step

    model, batch = build_ours(args, dropout=DROPOUT)
    optimizer = make_optimizer("adam", optax.constant_schedule(LEARNING_RATE), clip_norm=CLIP_NORM)
    state = jax.jit(lambda: init_state(init_ours(model, batch), optimizer))()
    gradient = jax.value_and_grad(functools.partial(sum_losses, model), has_aux=True)
    step = jax.jit(make_train_step(gradient, optimizer, seed=0), donate_argnums=0)
    with rounds.Stopwatch() as compiling:
        compiled = step.lower(state, batch).compile()
    return compiled, state, batch, compiling.seconds


class Training:
    """A state and a way to take a step of it: what is waited for is the whole state."""

    def __init__(self, step: Any, state: PyTree, batch: Batch):
        self.step, self.state, self.batch = step, state, batch

    def advance(self) -> tuple[PyTree, Sums]:
        """Takes one step."""
        self.state, sums = self.step(self.state, self.batch)
        return self.state, sums


def measure_ours(args: argparse.Namespace) -> dict[str, Any]:
    """Times our training step. Blocks of ten steps on an accelerator, so that waiting is not what is measured."""
    import jax

    compiled, state, batch, compile_seconds = build_step(args)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    device, training = jax.devices()[0], Training(compiled, state, batch)
    block = 1 if device.platform == "cpu" else rounds.BLOCK
    times = rounds.time_calls(
        training.advance, jax.block_until_ready, steps=args.steps, warm_up=1 + args.warm_up, block=block
    )
    _, sums = training.advance()
    return {
        **times,
        **rounds.describe_program(compiled),
        "first_seconds": compile_seconds,
        "parameters": parameters,
        "loss": float(sums["loss"] / sums["weight"]),
        "device": device.device_kind,
        "version": f"jax {jax.__version__}",
    }


def profile_ours(args: argparse.Namespace) -> dict[str, Any]:
    """Where the time of our step goes, and what feeding it takes."""
    import dataclasses

    import jax
    import step_profile

    compiled, state, batch, _ = build_step(args)
    training = Training(compiled, state, batch)
    training.advance()
    found = step_profile.profile_step(training.advance, compiled, folder=args.profile_folder)
    feeding = step_profile.measure_feeding(jax.device_get(batch))
    return dataclasses.asdict(found) | {"feeding_ms": feeding, "device": jax.devices()[0].device_kind}


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
        objective, sums = sum_losses(model, params, batch, jax.random.key(0), jax.numpy.int32(0))
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


def summarise(args: argparse.Namespace, runs: list[dict[str, Any]], peak: float) -> dict[str, Any]:
    """The times of a step over all processes of a side, and rates at the minimum."""
    figures = rounds.join_times(runs)
    seconds = figures["ms"] / 1e3
    rate = count_flops(args) / seconds
    tokens = args.rows * (args.source + args.target)
    return figures | {"tokens_per_second": tokens / seconds, "flop_per_second": rate, "peak_share": rate / peak}


def print_table(device: dict[str, Any], results: dict[str, dict[str, Any]]) -> None:
    """Prints a line a side, and the ratios."""
    print(rounds.describe_peak(device))
    titles = ("", "ms/step", "median", "CPU ms", "tokens/s", "FLOP/s", "of peak", "temp MiB", "first s", "host MiB")
    print("{:<8}{:>10}{:>10}{:>10}{:>12}{:>11}{:>9}{:>10}{:>9}{:>10}".format(*titles))
    for side, r in results.items():
        print(
            f"{side:<8}{r['ms']:>10.2f}{r['median_ms']:>10.2f}{r['cpu_ms']:>10.2f}{r['tokens_per_second']:>12,.0f}"
            f"{rounds.format_rate(r['flop_per_second']):>11}{r['peak_share']:>9.1%}"
            f"{rounds.format_cell(r.get('temp_mib'), 1):>10}{r['first_seconds']:>9.1f}{r['peak_mib']:>10.0f}"
            f"  {r['version']}, {r['device']}, {r['parameters']:,} parameters"
        )
    ours = results.get("ours")
    for side, other in results.items():
        if ours is None or side == "ours":
            continue
        line = f"ours / {side}: {ours['ms'] / other['ms']:.2f} of the time, "
        line += f"{ours['cpu_ms'] / other['cpu_ms']:.2f} of the processor time"
        if "temp_mib" in ours and other.get("temp_mib"):
            line += f", {ours['temp_mib'] / other['temp_mib']:.2f} of the temporary memory"
        print(f"{line} (minima)")


def run_rounds(args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """All processes, in turn: the figures of the device, and those of every side."""
    rounds.warn_if_busy()
    runs = rounds.run_rounds([DEVICE, *args.sides], rounds=args.rounds, cores=args.cores)
    device = rounds.join_devices(runs.pop(DEVICE))
    if device["platform"] == "tpu" and runs.pop("torch", None):
        print("torch was measured on the host's processors and is left out: it does not use this device")
    return device, {side: summarise(args, found, device["peak"]) for side, found in runs.items()}


def run_profile(args: argparse.Namespace) -> dict[str, Any]:
    """A profile of our step in a process of its own; prints it."""
    import step_profile

    figures = rounds.run_side(PROFILE, cores=args.cores, xla_flags=step_profile.COMMAND_BUFFERS_OFF)
    profile = step_profile.Profile(figures["milliseconds"], figures["heaviest"])
    print(f"{args.sides[0]} on {figures['device']}, mean of a few steps that were traced, which slows them a little")
    step_profile.print_profile(profile, feeding_ms=figures["feeding_ms"], heaviest=args.heaviest)
    return {name: figures[name] for name in ("milliseconds", "feeding_ms", "device")}


def measure_side(args: argparse.Namespace) -> dict[str, Any]:
    """What a process of a round is asked for."""
    rounds.keep_to_cores(args.cores)
    if args.side == DEVICE:
        return rounds.measure_device(args.dtype)
    if args.side == "torch":
        return measure_torch(args)
    if args.side == "plain" or (args.side == PROFILE and args.sides == ["plain"]):
        import plain_scan

        plain_scan.replace_loops()
    return profile_ours(args) if args.side == PROFILE else measure_ours(args)


def main() -> int:
    """Runs what the command line asks for; returns the exit code."""
    args = parse_arguments()
    if args.side:
        rounds.print_figures(measure_side(args))
        return 0
    found: dict[str, Any]
    try:
        if args.check or (not args.profile and "torch" in args.sides):
            rounds.require_torch("gnmt_step.py", "run without it: --sides=ours,plain")
        if args.check:
            return 0 if run_check(args) else 1
        if args.profile:
            found = {"profile": run_profile(args)}
        else:
            device, results = run_rounds(args)
            print_table(device, results)
            found = {"device": device, "results": results}
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    rounds.write_figures(args, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
