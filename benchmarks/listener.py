"""Times the listener of a speech model, forward and backward, ours and the same in PyTorch, in turn; and the front end.

    waveform ► log-mel ("features") ► pyramid or convolutions ► bidirectional layers, with gradients of all weights

Both sides have the same weights and the same features, without dropout and without padding. Every side runs in
processes of its own, one after the other and several times, because machines drift; the table has the minimum of each.

    python benchmarks/listener.py                              # 8 recordings of 16 s, a pyramid of 3 layers of 256
    python benchmarks/listener.py --subsample=conv             # two convolutions below 3 layers
    python benchmarks/listener.py --sides=ours,features        # without PyTorch
    python benchmarks/listener.py --rows=64 --features=1024 --layers=4 --reduction=8 --dtype=bfloat16     # on a GPU
    python benchmarks/listener.py --check                      # both compute the same
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import rounds

from seq2seq_jax.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from seq2seq_jax.models.ctc import CTC

SIDES = ("ours", "torch", "features", "torch features")
CHECK = {"rows": 2, "frames": 21, "features": 16, "channels": 4}
TOLERANCE = 1e-4
DEVICE = "device"  # a process that is no side: what the device can do


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = rounds.Parser(__doc__)
    add, whole = parser.add_argument, rounds.read_whole
    add("--rows", type=whole, default=8, help="B, recordings")
    add("--frames", type=whole, default=1600, help="T, frames of 10 ms in each")
    add("--features", type=whole, default=256, help="D, width of a layer, both directions together")
    add("--layers", type=whole, default=3, help="L, those of a pyramid included")
    add("--subsample", choices=("pyramid", "conv", "vgg"), default="pyramid", help="how frames get fewer")
    add("--reduction", type=whole, default=4, help="how many frames become one")
    add("--channels", type=whole, default=32, help="of the convolutions")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the products")
    add("--sides", default=",".join(SIDES), help="by commas")
    add("--steps", type=whole, default=5, help="measurements in each process")
    add("--warm_up", type=rounds.read_count, default=1, help="calls after the first that are not measured")
    add("--rounds", type=whole, default=2, help="processes of each side")
    add("--cores", type=rounds.read_cores, default=0, help="keep each process to so many cores; 0 is all")
    add("--json", type=rounds.read_output_file, help="also write the figures to this file")
    add("--check", action="store_true", help="compare values and gradients of a small one, not time")
    add("--side", help=argparse.SUPPRESS)  # what a process of a round is told
    args = parser.parse_args(arguments)
    args.sides = [side.strip() for side in args.sides.split(",")]
    unknown = [side for side in args.sides if side not in SIDES]
    if unknown:
        parser.error(f"--sides must be of {', '.join(SIDES)}, but has {unknown[0]!r}")
    if args.check:
        vars(args).update(CHECK)
    try:
        make_model(args)
    except ValueError as error:
        parser.error(str(error))
    return args


def make_model(args: argparse.Namespace) -> CTC:
    """The model whose listener is measured."""
    from seq2seq_jax.models.ctc import CTC, CTCConfig

    return CTC(
        CTCConfig(
            target_vocab=4,
            subsample=args.subsample,
            reduction=args.reduction,
            listener_layers=args.layers,
            listener_features=args.features,
            channels=args.channels,
            dropout=0.0,
            dtype=args.dtype,
        )
    )


def draw_weights(args: argparse.Namespace) -> dict[str, Any]:
    """The listener's parameters as numpy arrays, the same in every process."""
    import jax
    import jax.numpy as jnp
    from flax import linen as nn

    model = make_model(args)
    hop = model.config.frontend.hop
    inputs = jnp.zeros((1, args.reduction, hop)), jnp.ones((1, args.reduction), bool)
    boxed = jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs))
    rng = np.random.default_rng(0)

    def draw(leaf: Any) -> np.ndarray:
        inputs = int(np.prod(leaf.shape[:-1])) or 1
        return rng.normal(0.0, max(inputs, 4) ** -0.5, leaf.shape).astype(np.float32)

    return jax.tree.map(draw, nn.meta.unbox(boxed)["params"]["listener"])


def draw_arrays(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A waveform `[B, T, H]`, features `[B, T, M]`, and the cotangent of the outputs `[B, T', D]`."""
    frontend, rng = make_model(args).config.frontend, np.random.default_rng(1)
    rows, frames, left = args.rows, args.frames, -(-args.frames // args.reduction)
    waveform = rng.normal(0.0, 0.1, (rows, frames, frontend.hop))
    features = rng.normal(size=(rows, frames, frontend.mels))
    cotangent = rng.normal(size=(rows, left, args.features))
    return tuple(x.astype(np.float32) for x in (waveform, features, cotangent))  # type: ignore[return-value]


# --- a process of one side ------------------------------------------------------------------------


def make_step(args: argparse.Namespace) -> Callable[..., Any]:
    """`step(weights, features, cotangent)` to the outputs and the gradients of the weights."""
    import jax
    import jax.numpy as jnp

    model = make_model(args)

    def step(weights: Any, features: Any, cotangent: Any) -> Any:
        mask = jnp.ones(features.shape[:2], bool)

        def run(weights: Any) -> Any:
            variables = {"params": {"listener": weights}}
            return model.apply(variables, features, mask, train=False, method="encode_features").hidden

        hidden, back = jax.vjp(run, weights)
        return hidden, back(cotangent.astype(hidden.dtype))[0]

    return step


def measure_ours(args: argparse.Namespace, *, features_alone: bool) -> dict[str, Any]:
    """Times our listener, or our front end."""
    import jax
    import jax.numpy as jnp

    waveform, features, cotangent = (jnp.asarray(x) for x in draw_arrays(args))
    if features_alone:
        model, mask = make_model(args), jnp.ones(waveform.shape[:2], bool)
        function: Callable[..., Any] = lambda x: model.apply({"params": {}}, x, mask, method="compute_features")  # noqa: E731
        given: tuple[Any, ...] = (waveform,)
    else:
        function, given = make_step(args), (jax.device_put(draw_weights(args)), features, cotangent)
    with rounds.Stopwatch() as compiling:
        compiled = jax.jit(function).lower(*given).compile()
    device = jax.devices()[0]
    times = rounds.time_calls(
        lambda: compiled(*given),
        jax.block_until_ready,
        steps=args.steps,
        warm_up=1 + args.warm_up,
        block=1 if device.platform == "cpu" else rounds.BLOCK,
    )
    about = {"device": device.device_kind, "version": f"jax {jax.__version__}", "first_seconds": compiling.seconds}
    return {**times, **about, **rounds.describe_program(compiled)}


def measure_side(args: argparse.Namespace) -> dict[str, Any]:
    """What a process of a round is asked for."""
    rounds.keep_to_cores(args.cores)
    if args.side == DEVICE:
        return rounds.measure_device(args.dtype)
    if args.side in ("ours", "features"):
        return measure_ours(args, features_alone=args.side == "features")
    import listener_torch

    waveform, features, cotangent = draw_arrays(args)
    how = {"dtype": args.dtype, "steps": args.steps, "warm_up": args.warm_up}
    if args.side == "torch features":
        return listener_torch.measure_features(make_model(args).config.frontend, waveform, **how)
    return listener_torch.measure(draw_weights(args), args.subsample, features, cotangent, **how)


# --- the process that starts the others -----------------------------------------------------------


def count_flops(args: argparse.Namespace) -> float:
    """Operations of the products of a forward and backward pass of the listener; features have no gradient."""
    width, length, total, mels = args.features, args.frames, 0.0, 80
    halvings = args.reduction.bit_length() - 1

    def layer(inputs: int, length: int, *, lowest: bool = False) -> float:
        recurrent = 2 * length * (width // 2) * 2 * width * 2
        return 3 * recurrent + (2 if lowest else 3) * 2 * length * inputs * 2 * width * 2

    above = args.layers
    if args.subsample == "pyramid":
        total += layer(mels, length, lowest=True)
        for _ in range(halvings):
            length = -(-length // 2)
            total += layer(2 * width, length)
        above -= 1 + halvings
    else:
        inputs, bins = 1, mels
        for block in range(halvings):
            outputs = args.channels * (2 if args.subsample == "vgg" and block else 1)
            sizes = [(inputs, outputs)] + ([(outputs, outputs)] if args.subsample == "vgg" else [])
            places = length * bins if args.subsample == "vgg" else -(-length // 2) * -(-bins // 2)
            total += sum((3 if a > 1 else 2) * 2.0 * places * 9 * a * b for a, b in sizes)
            length, bins, inputs = -(-length // 2), -(-bins // 2), outputs
        total += 3 * 2.0 * length * bins * inputs * width
    return args.rows * (total + above * layer(width, length))


def print_table(args: argparse.Namespace, device: dict[str, Any], results: dict[str, dict[str, Any]]) -> None:
    """Prints a line a side, below the sizes and the device."""
    versions = sorted({figures["version"] for figures in results.values()})
    print(
        f"\n{args.rows} recordings of {args.frames} frames, {args.subsample} to 1/{args.reduction}, {args.layers} "
        f"layers of {args.features}, {args.dtype}, forward and backward; {', '.join(versions)}\n"
        f"{rounds.describe_peak(device)}"
    )
    print(f"{'':<16}{'ms':>9}{'/ torch':>9}{'median':>9}{'CPU ms':>9}{'FLOP/s':>11}{'temp MiB':>10}{'first s':>9}")
    for side, r in results.items():
        peer = results.get("torch features" if side.endswith("features") else "torch")
        ratio = None if peer is None else r["ms"] / peer["ms"]
        rate = "-" if side.endswith("features") else rounds.format_rate(count_flops(args) / r["ms"] * 1e3)
        print(
            f"{side:<16}{r['ms']:>9.1f}{rounds.format_cell(ratio, 2):>9}{r['median_ms']:>9.1f}{r['cpu_ms']:>9.1f}"
            f"{rate:>11}{rounds.format_cell(r.get('temp_mib'), 1):>10}{r['first_seconds']:>9.1f}"
        )
    if {"ours", "features"} <= set(results):
        share = results["features"]["ms"] / results["ours"]["ms"]
        print(f"features take {share:.1%} of the time of the listener")


def run_check(args: argparse.Namespace) -> bool:
    """Compares outputs and gradients of our listener, and our features, with those of PyTorch."""
    import jax
    import listener_torch

    weights, (waveform, features, cotangent) = draw_weights(args), draw_arrays(args)
    with jax.default_matmul_precision("highest"):
        hidden, gradients = jax.jit(make_step(args))(weights, features, cotangent)
        made = make_model(args).apply(
            {"params": {}}, waveform, np.ones(waveform.shape[:2], bool), method="compute_features"
        )
    wanted, wanted_gradients = listener_torch.run(weights, args.subsample, features, cotangent)
    pairs = {"outputs": (hidden, wanted)}
    named = dict(jax.tree_util.tree_leaves_with_path(gradients))
    pairs |= {jax.tree_util.keystr(path): (named[path], leaf) for path, leaf in
              jax.tree_util.tree_leaves_with_path(wanted_gradients)}  # fmt: skip
    pairs["features"] = (made, listener_torch.make_features(make_model(args).config.frontend, waveform))
    errors = {
        name: float(np.linalg.norm(a - b)) / max(float(np.linalg.norm(b)), 1e-30) for name, (a, b) in pairs.items()
    }
    for name, error in errors.items():
        print(f"{name:<60}{error:>10.1e}")
    return max(errors.values()) < TOLERANCE


def main() -> int:
    """Runs what the command line asks for; returns the exit code."""
    args = parse_arguments()
    if args.side:
        rounds.print_figures(measure_side(args))
        return 0
    try:
        if args.check or any(side.startswith("torch") for side in args.sides):
            rounds.require_torch("listener.py", "leave it out: --sides=ours,features")
        if args.check:
            return 0 if run_check(args) else 1
        rounds.warn_if_busy()
        runs = rounds.run_rounds([DEVICE, *args.sides], rounds=args.rounds, cores=args.cores)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    device = rounds.join_devices(runs.pop(DEVICE))
    results = {side: rounds.join_times(found) for side, found in runs.items()}
    print_table(args, device, results)
    rounds.write_figures(args, {"device": device, "results": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
