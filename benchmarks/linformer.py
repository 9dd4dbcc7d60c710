"""How the time and the memory of an encoder grow with the length: Linformer's attention against full attention.

Forward and backward pass of a stack of encoder layers over one long text, with the gradients of all
weights and of the input. Every side and length runs in a process of its own, in turn, so that each
has its own peak of memory. A length whose program would need more than --limit_gib is compiled, so
that its memory is known, but not run. The same command serves CPUs, GPUs and TPUs.

    python benchmarks/linformer.py                                    # 2 layers of 256, 512 to 16,384 places
    python benchmarks/linformer.py --cores 1 --rounds 1               # where other programs run beside it
    python benchmarks/linformer.py --dtype bfloat16 --lengths 4096,16384,65536 --limit_gib 100      # a GPU
    python benchmarks/linformer.py --share layers --ranks 64,128,256,512
    python benchmarks/linformer.py --plot growth.png                  # both figures on logarithmic axes
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import rounds

from seq2seq_jax.errors import UserError

FULL = "full attention"
SHARES = ("none", "heads", "kv", "layers")
TITLES = {"cpu_ms": "processor time of a step, ms", "ms": "time of a step, ms", "temp_mib": "temporary memory, MiB"}
Results = dict[str, dict[int, dict[str, Any]]]
"""Side, then length, then its figures."""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = rounds.Parser(__doc__)
    add, whole = parser.add_argument, rounds.read_whole
    add("--features", type=whole, default=256, help="width of the layers")
    add("--layers", type=whole, default=2, help="layers of the encoder")
    add("--heads", type=whole, default=4, help="of every attention")
    add("--feed_forward", type=rounds.read_count, default=0, help="width inside the feed-forward layers; 0 is 4 times "
        "--features")  # fmt: skip
    add("--rows", type=whole, default=1, help="texts in a batch")
    add("--lengths", type=rounds.read_wholes, default="512,1024,2048,4096,8192,16384", help="places of a text")
    add("--ranks", type=rounds.read_wholes, default="128,256", help="what Linformer mixes keys and values down to")
    add("--share", choices=SHARES, default="none", help="what shares Linformer's mixtures")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the products")
    add("--remat", choices=("none", "dots", "full"), default="none", help="what the backward pass computes again")
    add("--limit_gib", type=rounds.read_seconds, default=6.0, help="temporary memory above which nothing is run")
    add("--seconds", type=rounds.read_seconds, default=2.0, help="of measuring in each process; at least one step")
    add("--steps", type=whole, default=20, help="measurements in each process, at most")
    add("--rounds", type=whole, default=2, help="processes of each side and length")
    add("--cores", type=rounds.read_cores, default=0, help="keep each process to so many cores; 0 is all")
    add("--json", type=rounds.read_output_file, help="also write the figures to this file")
    add("--plot", type=rounds.read_output_file, help="also draw them into this file (PNG; needs matplotlib)")
    add("--side", help=argparse.SUPPRESS)  # what a process of a round is told
    args = parser.parse_args(arguments)
    args.feed_forward = args.feed_forward or 4 * args.features
    if args.features % args.heads:
        parser.error(f"--features must be a multiple of the {args.heads} --heads, but is {args.features}")
    if max(args.ranks) > min(args.lengths):
        parser.error(
            f"--ranks must be at most the shortest of --lengths, {min(args.lengths)}, but has {max(args.ranks)}"
        )
    return args


# --- a process of one side ------------------------------------------------------------------------


def build(args: argparse.Namespace, rank: int, length: int) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The jitted gradients of an encoder, and what to call them with.

    Args:
        args: of the script.
        rank: of Linformer; 0 is full attention.
        length: places of a text.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import linen as nn

    from seq2seq_jax.layers.dropout import make_places
    from seq2seq_jax.layers.transformer import TransformerStack
    from seq2seq_jax.layers.transformer_layer import TransformerLayer
    from seq2seq_jax.parallel.layout import Execution

    dtype = jnp.dtype(args.dtype)
    kind = TransformerLayer(
        args.features,
        args.heads,
        args.feed_forward,
        Execution(remat=args.remat),
        dtype=dtype,
        linformer=rank,
        linformer_share=args.share,
        longest=length,
    )
    stack = TransformerStack(kind, args.layers)
    draw, shape = np.random.default_rng(0), (args.rows, length, args.features)
    x, wish = (jnp.asarray(draw.normal(size=shape), dtype) for _ in range(2))
    mask = jnp.ones((args.rows, length), bool)
    places = make_places(jnp.arange(args.rows), length).swapaxes(0, 1)
    few = min(length, 8)  # parameters do not depend on it
    short = {"mask": mask[:, :few], "places": places[:, :few], "train": False}
    params = nn.meta.unbox(jax.jit(lambda key: stack.init(key, x[:, :few], **short))(jax.random.key(0)))

    def loss(params: Any, x: Any, mask: Any) -> Any:
        y, _ = stack.apply(params, x, mask, places=places, train=False)
        return jnp.sum(y.astype(jnp.float32) * wish.astype(jnp.float32))

    return jax.jit(jax.grad(loss, (0, 1))), (params, x, mask)


def measure_side(args: argparse.Namespace) -> dict[str, Any]:
    """What a process of a round is asked for: `--side=RANK:LENGTH`."""
    import jax

    rounds.keep_to_cores(args.cores)
    rank, length = map(int, args.side.split(":"))
    step, given = build(args, rank, length)
    with rounds.Stopwatch() as compiling:
        compiled = step.lower(*given).compile()
    device = jax.devices()[0]
    figures = {"first_seconds": compiling.seconds, "device": device.device_kind, "version": f"jax {jax.__version__}"}
    figures |= rounds.describe_program(compiled)
    if figures.get("temp_mib", 0.0) > 1024 * args.limit_gib:
        return figures | {"skipped": "memory"}
    block = 1 if device.platform == "cpu" else rounds.BLOCK
    with rounds.Stopwatch() as first:  # it finds the memory, too: it does not count
        jax.block_until_ready(compiled(*given))
    steps = max(1, min(args.steps, int(args.seconds / (block * first.seconds))))
    times = rounds.time_calls(lambda: compiled(*given), jax.block_until_ready, steps=steps, warm_up=0, block=block)
    return figures | times


# --- all of them ----------------------------------------------------------------------------------


def name_sides(args: argparse.Namespace) -> dict[str, int]:
    """The sides by name, and the rank of each; 0 is full attention."""
    return {FULL: 0} | {f"Linformer {rank}": rank for rank in args.ranks}


def measure_all(args: argparse.Namespace) -> Results:
    """All sides at all lengths, in turn."""
    sides = name_sides(args)
    keys = {f"{rank}:{length}": (name, length) for length in args.lengths for name, rank in sides.items()}
    results: Results = {name: {} for name in sides}
    for key, runs in rounds.run_rounds(list(keys), rounds=args.rounds, cores=args.cores).items():
        name, length = keys[key]
        done = [run for run in runs if "skipped" not in run]
        results[name][length] = rounds.join_times(done) if done else runs[0]
    return results


def fit_slope(lengths: Sequence[float], values: Sequence[float]) -> float:
    """The power of the length that the values grow with: the slope of a straight line through their logarithms."""
    import numpy as np

    return float(np.polyfit(np.log(lengths), np.log(values), 1)[0]) if len(lengths) > 1 else float("nan")


def find_slopes(figures: Mapping[int, Mapping[str, Any]], name: str) -> tuple[float, float]:
    """The slope over all lengths that have a figure, and over the last two of them."""
    known = [(length, each[name]) for length, each in sorted(figures.items()) if each.get(name)]
    lengths, values = [length for length, _ in known], [value for _, value in known]
    return fit_slope(lengths, values), fit_slope(lengths[-2:], values[-2:])


def print_table(args: argparse.Namespace, results: Results) -> None:
    """A line for each length and side, and the slopes."""
    known = next(iter(next(iter(results.values())).values()))
    print(
        f"{args.layers} layers of {args.features}, {args.heads} heads, feed-forward {args.feed_forward}, "
        f"{args.rows} x length, {args.dtype}, shares: {args.share}; {known['device']}, {known['version']}"
    )
    titles = ("length", "", "ms", "CPU ms", "/ full", "temp MiB", "/ full", "host MiB", "first s")
    print("{:>7}  {:<16}{:>10}{:>10}{:>8}{:>10}{:>8}{:>10}{:>9}".format(*titles))
    for length in args.lengths:
        full = results[FULL][length]
        for name, figures in results.items():
            own, cell = figures[length], rounds.format_cell
            shares = [
                own[key] / full[key] if own.get(key) and full.get(key) else None for key in ("cpu_ms", "temp_mib")
            ]
            time, memory = (cell(share, 2) for share in shares)
            print(
                f"{length:>7,}  {name:<16}{cell(own.get('ms'), 1):>10}{cell(own.get('cpu_ms'), 1):>10}{time:>8}"
                f"{cell(own.get('temp_mib'), 1):>10}{memory:>8}"
                f"{cell(None if 'skipped' in own else own['peak_mib']):>10}{own['first_seconds']:>9.1f}"
            )
    print(
        "growth with the length, as its power: over all lengths that have a figure (over the last two of them); "
        f"what needs more than {args.limit_gib:g} GiB is not run"
    )
    for name, figures in results.items():
        slopes = {key: find_slopes(figures, key) for key in TITLES}
        print(
            f"  {name:<16}" + ", ".join(f"{TITLES[k].split(',')[0]} {a:.2f} ({b:.2f})" for k, (a, b) in slopes.items())
        )


def draw(results: Results, path: str) -> None:
    """Processor time and memory against the length, on logarithmic axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    for axis, name in zip(figure.subplots(1, 2), ("cpu_ms", "temp_mib"), strict=True):
        for side, figures in results.items():
            known = [(length, each[name]) for length, each in sorted(figures.items()) if each.get(name)]
            if known:
                x, y = zip(*known, strict=True)
                axis.plot(x, y, "o-", label=f"{side}: power {find_slopes(figures, name)[1]:.2f} at the end")
        axis.set(xscale="log", yscale="log", xlabel="places of a text", ylabel=TITLES[name])
        ticks = sorted({length for figures in results.values() for length in figures})
        axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, format="png")


def main() -> int:
    """Runs what the command line asks for; returns the exit code."""
    args = parse_arguments()
    if args.side:
        rounds.print_figures(measure_side(args))
        return 0
    rounds.warn_if_busy()
    try:
        results = measure_all(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print_table(args, results)
    slopes = {side: {name: find_slopes(figures, name) for name in TITLES} for side, figures in results.items()}
    rounds.write_figures(args, {"results": results, "slopes": slopes})
    if args.plot:
        draw(results, args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
