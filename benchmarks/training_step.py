"""The training step of a model, ours and a peer's: what `gnmt_step.py` and `transformer_step.py` share.

Such a script knows its model: how ours is built, what the peer is, how many operations a step has. Here is the rest:
the command line, a batch, our step as training compiles it, its time and its profile, the comparison of gradients, and
the table. Nothing here imports jax before it is needed.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import rounds

from seq2seq_jax.errors import UserError

if TYPE_CHECKING:
    from flax import linen as nn

    from seq2seq_jax.interfaces import Array, Batch, PyTree, Sums

CHECK_TOLERANCE = 1e-4
DEVICE, PROFILE = "device", "profile"  # processes that are no side: what the device can do, and a profile


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a step trains; the same on both sides.

    Attributes:
        dropout: rate.
        label_smoothing: share of the target's probability that goes to all tokens.
        clip_norm: of the whole gradient; 0 does not clip.
        learning_rate, b2, eps: of Adam.
    """

    dropout: float
    label_smoothing: float
    clip_norm: float
    learning_rate: float
    b2: float = 0.999
    eps: float = 1e-8


# --- the command line -----------------------------------------------------------------------------


def add_arguments(parser: rounds.Parser, *, features: int, layers: int, profiles: str) -> None:
    """The flags that the scripts have in common.

    Args:
        parser: of the script.
        features, layers: the defaults.
        profiles: what --profile does, for its help.
    """
    add, whole = parser.add_argument, rounds.read_whole
    add("--features", type=whole, default=features, help="width of embeddings and layers")
    add("--layers", type=whole, default=layers, help="layers of the encoder, and of the decoder")
    add("--vocab", type=whole, default=8000, help="tokens on each side")
    add("--rows", type=whole, default=64, help="sentences in a batch")
    add("--source", type=whole, default=24, help="tokens of a source sentence")
    add("--target", type=whole, default=24, help="tokens of a target sentence")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the products")
    add("--steps", type=whole, default=10, help="measurements in each process")
    add("--warm_up", type=rounds.read_count, default=2, help="steps after the first that are not measured")
    add("--rounds", type=whole, default=3, help="processes of each side")
    add("--cores", type=rounds.read_cores, default=0, help="keep each process to so many cores; 0 is all")
    add("--json", type=rounds.read_output_file, help="also write the figures of time to this file")
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--check", action="store_true", help="compare loss and gradients instead of time")
    either.add_argument("--profile", action="store_true", help=profiles)
    add("--profile_folder", help="with --profile: also keep the trace here (for TensorBoard or xprof)")
    add("--heaviest", type=rounds.read_count, default=0, help="with --profile: list so many instructions, too")
    add("--side", help=argparse.SUPPRESS)  # what a process of a round is told


def read_sides(
    parser: rounds.Parser, args: argparse.Namespace, known: Sequence[str], default: Sequence[str]
) -> list[str]:
    """The sides of --sides; ends the process where one is not known, or flags contradict each other."""
    sides = list(default) if args.sides is None else [side.strip() for side in args.sides.split(",")]
    for side in sides:
        if side not in known:
            parser.error(f"--sides must be of {','.join(known)}, but has {side!r}")
    if not args.profile and (args.heaviest or args.profile_folder):
        parser.error("--heaviest and --profile_folder go with --profile: add it")
    if args.vocab < 5:
        parser.error(f"--vocab must be at least 5, because four tokens are special, but is {args.vocab}")
    return sides


# --- our step -------------------------------------------------------------------------------------


def make_tokens(args: argparse.Namespace) -> dict[str, np.ndarray]:
    """A batch of random sentences that fill their rows, int32."""
    generator = np.random.default_rng(0)
    source = generator.integers(4, args.vocab, (args.rows, args.source), dtype=np.int32)
    target = generator.integers(4, args.vocab, (args.rows, args.target + 1), dtype=np.int32)
    return {"source": source, "target_in": target[:, :-1], "target_out": target[:, 1:]}


def make_batch(args: argparse.Namespace) -> Batch:
    """The same as our batch, all masks True."""
    import jax.numpy as jnp

    from seq2seq_jax.interfaces import Batch

    return Batch(
        **{name: jnp.asarray(array) for name, array in make_tokens(args).items()},
        source_mask=jnp.ones((args.rows, args.source), bool),
        target_mask=jnp.ones((args.rows, args.target), bool),
        example_ids=jnp.arange(args.rows, dtype=jnp.int32),
        row_mask=jnp.ones((args.rows,), bool),
    )


def init_params(model: nn.Module, batch: Batch) -> PyTree:
    """Our parameters, at random."""
    import jax
    from flax import linen as nn

    @jax.jit
    def init(key: Array) -> PyTree:
        return nn.meta.unbox(model.init(key, batch.source, batch.source_mask, batch.target_in)["params"])

    return init(jax.random.key(0))


def draw_params(model: nn.Module, batch: Batch) -> PyTree:
    """Parameters that hide nothing: ours start with zero biases, with which a bias in the wrong place looks right."""
    import jax

    generator, shapes = np.random.default_rng(1), jax.eval_shape(lambda: init_params(model, batch))
    return jax.tree.map(lambda x: generator.uniform(-0.2, 0.2, x.shape).astype(np.float32), shapes)


def sum_losses(
    model: nn.Module, label_smoothing: float, params: PyTree, batch: Batch, key: Array, step: Array
) -> tuple[Array, Sums]:
    """What a task's loss does: the sum of the cross-entropy over a batch, and its weight."""
    import jax
    import jax.numpy as jnp

    from seq2seq_jax.parallel.softmax import choose_chunk, cross_entropy

    chunk = choose_chunk(model.config.target_vocab, model.config.features, platform=jax.default_backend())

    def run(model: Any) -> tuple[Array, Array, Array]:
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
            label_smoothing=label_smoothing,
            chunk=chunk,
        )
    return out.loss, {"loss": out.loss, "nll": out.nll, "weight": weights.sum()}


def build_step(model: nn.Module, batch: Batch, recipe: Recipe) -> tuple[Any, PyTree, float]:
    """Our compiled step, the first state (donated to the first step), and the seconds of compiling."""
    import functools

    import jax
    import optax

    from seq2seq_jax.train.optimizers import make_optimizer
    from seq2seq_jax.train.step import init_state, make_train_step

    schedule = optax.constant_schedule(recipe.learning_rate)
    optimizer = make_optimizer("adam", schedule, b2=recipe.b2, eps=recipe.eps, clip_norm=recipe.clip_norm)
    state = jax.jit(lambda: init_state(init_params(model, batch), optimizer))()
    gradient = jax.value_and_grad(functools.partial(sum_losses, model, recipe.label_smoothing), has_aux=True)
    step = jax.jit(make_train_step(gradient, optimizer, seed=0), donate_argnums=0)
    with rounds.Stopwatch() as compiling:
        compiled = step.lower(state, batch).compile()
    return compiled, state, compiling.seconds


class Training:
    """A state and a way to take a step of it: what is waited for is the whole state."""

    def __init__(self, step: Any, state: PyTree, batch: Batch):
        self.step, self.state, self.batch = step, state, batch

    def advance(self) -> tuple[PyTree, Sums]:
        """Takes one step."""
        self.state, sums = self.step(self.state, self.batch)
        return self.state, sums


def measure_ours(args: argparse.Namespace, model: nn.Module, recipe: Recipe) -> dict[str, Any]:
    """Times our training step. Blocks of ten steps on an accelerator, so that waiting is not what is measured."""
    import jax

    batch = make_batch(args)
    compiled, state, compile_seconds = build_step(model, batch, recipe)
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


def profile_ours(
    args: argparse.Namespace, model: nn.Module, recipe: Recipe, *, parts: Sequence[str], classify: Callable[[Any], str]
) -> dict[str, Any]:
    """Where the time of our step goes, and what feeding it takes; for the last two see `step_profile`."""
    import jax
    import step_profile

    batch = make_batch(args)
    compiled, state, _ = build_step(model, batch, recipe)
    training = Training(compiled, state, batch)
    training.advance()
    found = step_profile.profile_step(
        training.advance, compiled, folder=args.profile_folder, parts=parts, classify=classify
    )
    return dataclasses.asdict(found) | {
        "feeding_ms": step_profile.measure_feeding(jax.device_get(batch)),
        "device": jax.devices()[0].device_kind,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(training.state.params)),
    }


# --- the same computation? ------------------------------------------------------------------------


def compute_gradients(
    model: nn.Module, params: PyTree, batch: Batch, *, label_smoothing: float
) -> tuple[float, PyTree]:
    """Our mean loss and its gradients."""
    import jax

    def mean(params: PyTree) -> Array:
        objective, sums = sum_losses(model, label_smoothing, params, batch, jax.random.key(0), jax.numpy.int32(0))
        return objective / sums["weight"]

    loss, grads = jax.jit(jax.value_and_grad(mean))(params)
    return float(loss), grads


def compare_gradients(
    ours: tuple[float, PyTree], theirs: tuple[float, PyTree], counts: tuple[int, int], remark: str = ""
) -> bool:
    """Prints how far loss and gradients of both sides differ; whether that is nothing.

    Args:
        ours, theirs: the loss and the gradients, in the same tree of arrays.
        counts: parameters of both.
        remark: on the peer's count.
    """
    import jax

    loss, grads = ours
    peer_loss, peer_grads = theirs
    worst, where = 0.0, ""
    norm = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(grads)))
    named = jax.tree_util.tree_leaves_with_path(grads)
    for (path, own), other in zip(named, jax.tree.leaves(peer_grads), strict=True):
        # Relative to the tensor, but no tensor is held to more than float32 has of the whole gradient: the
        # attention's key bias shifts all scores of a row alike, and so do others nearly.
        error = np.linalg.norm(own - other) / max(np.linalg.norm(other), 1e-3 * norm)
        if error >= worst:
            worst, where = float(error), jax.tree_util.keystr(path)
    loss_error = abs(loss - peer_loss) / peer_loss
    print(f"parameters: ours {counts[0]:,}, torch {counts[1]:,}{remark}")
    print(f"loss: ours {loss:.7f}, torch {peer_loss:.7f}, relative difference {loss_error:.1e}")
    print(f"gradients: largest relative difference {worst:.1e}, of {where}")
    return counts[0] == counts[1] and loss_error < CHECK_TOLERANCE and worst < CHECK_TOLERANCE


# --- processes and tables -------------------------------------------------------------------------


def summarise(args: argparse.Namespace, runs: list[dict[str, Any]], *, flops: float, peak: float) -> dict[str, Any]:
    """The times of a step over all processes of a side, and rates at the minimum."""
    figures = rounds.join_times(runs)
    seconds = figures["ms"] / 1e3
    tokens, rate = args.rows * (args.source + args.target), flops / seconds
    return figures | {"tokens_per_second": tokens / seconds, "flop_per_second": rate, "peak_share": rate / peak}


def print_table(device: dict[str, Any], results: Mapping[str, dict[str, Any]]) -> None:
    """Prints a line a side, and the ratios."""
    print(rounds.describe_peak(device))
    titles = ("", "ms/step", "median", "CPU ms", "tokens/s", "FLOP/s", "of peak", "temp MiB", "first s", "host MiB")
    print("{:<10}{:>10}{:>10}{:>10}{:>12}{:>11}{:>9}{:>10}{:>9}{:>10}".format(*titles))
    for side, r in results.items():
        print(
            f"{side:<10}{r['ms']:>10.2f}{r['median_ms']:>10.2f}{r['cpu_ms']:>10.2f}{r['tokens_per_second']:>12,.0f}"
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


def run_rounds(
    args: argparse.Namespace, *, flops: float, peers: Sequence[str]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """All processes, in turn: the figures of the device, and those of every side.

    Args:
        args: of the script.
        flops: of a step.
        peers: the sides that run on PyTorch's device.
    """
    rounds.warn_if_busy()
    runs = rounds.run_rounds([DEVICE, *args.sides], rounds=args.rounds, cores=args.cores)
    device = rounds.join_devices(runs.pop(DEVICE))
    if device["platform"] == "tpu" and [runs.pop(peer) for peer in peers if peer in runs]:
        print("torch was measured on the host's processors and is left out: it does not use this device")
    skipped = {side: found[0]["skipped"] for side, found in runs.items() if "skipped" in found[0]}
    for side, reason in skipped.items():
        print(f"{side} is left out: {reason}")
    measured = {side: found for side, found in runs.items() if side not in skipped}
    return device, {side: summarise(args, found, flops=flops, peak=device["peak"]) for side, found in measured.items()}


def run_profile(args: argparse.Namespace) -> dict[str, Any]:
    """A profile of our step in a process of its own; prints it."""
    import step_profile

    figures = rounds.run_side(PROFILE, cores=args.cores, xla_flags=step_profile.COMMAND_BUFFERS_OFF)
    profile = step_profile.Profile(figures["milliseconds"], figures["heaviest"])
    print(f"{args.sides[0]} on {figures['device']}, mean of a few steps that were traced, which slows them a little")
    step_profile.print_profile(
        profile, feeding_ms=figures["feeding_ms"], heaviest=args.heaviest, floors=figures.get("floors")
    )
    return {name: value for name, value in figures.items() if name not in ("heaviest", "peak_mib", "parameters")}


def run_script(
    args: argparse.Namespace,
    *,
    script: str,
    peers: Sequence[str],
    measure: Callable[[argparse.Namespace], dict[str, Any]],
    check: Callable[[argparse.Namespace], bool],
    measure_all: Callable[[argparse.Namespace], dict[str, Any]],
) -> int:
    """Runs what the command line asks for; returns the exit code.

    Args:
        args: of the script.
        script: its name.
        peers: the sides that need PyTorch.
        measure: what a process of a round does; its figures.
        check: whether all sides compute the same.
        measure_all: measures and prints, in the process that starts the others; what is written to --json.
    """
    if args.side:
        rounds.print_figures(measure(args))
        return 0
    try:
        if args.check or (not args.profile and set(peers) & set(args.sides)):
            rounds.require_torch(script, f"run without it: --sides={args.alone}")
        if args.check:
            return 0 if check(args) else 1
        found = measure_all(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    rounds.write_figures(args, found)
    return 0
