"""Times recurrent layers, forward and backward: plain scans, flax, ours in all its ways, and PyTorch's, in turn.

A stack of L layers over `[T, B, H]`, with gradients of all weights and of the input. Every variant runs in processes of
its own, one after the other and several times, because machines drift; the table has the minimum of each.

    python benchmarks/recurrent.py                             # sizes for a CPU, a few minutes
    python benchmarks/recurrent.py --preset=translation        # 8 layers of 1024, 50 steps, 128 and 512 rows, bfloat16
    python benchmarks/recurrent.py --preset=speech             # 1 layer of 256, 1600 steps, 32 rows, bfloat16
    python benchmarks/recurrent.py --variants="scan;ours"      # these two, and the peer that they are compared with
    python benchmarks/recurrent.py --check                     # all variants compute the same as PyTorch
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

    from recurrent_variants import Run, Sizes

PRESETS: dict[str, dict[str, Any]] = {
    "cpu": {"layers": 2, "features": 256, "length": 50, "rows": [32], "dtype": "float32", "rounds": 1},
    "translation": {"layers": 8, "features": 1024, "length": 50, "rows": [128, 512], "dtype": "bfloat16"},
    "speech": {"layers": 1, "features": 256, "length": 1600, "rows": [32], "dtype": "bfloat16"},
    "check": {"layers": 2, "features": 16, "length": 5, "rows": [3], "dtype": "float32"},
}
DEFAULTS = {"rounds": 3, "steps": 10}
CHECK_TOLERANCE = 1e-4
DEVICE, FIT = "device", "fit"  # processes that are no side: what the device can do, and which variants it can run
LAYER_NORM_EPSILON = 1e-6


class Parser(rounds.Parser):
    """The command line; its help ends with the presets and the variants."""

    def format_help(self) -> str:
        """The help; jax is imported for it, which reading a command line does without."""
        from recurrent_variants import VARIANTS

        lines = ["presets, for what is not given:"]
        for name, preset in PRESETS.items():
            sizes = (f"{key} {','.join(map(str, v)) if key == 'rows' else v}" for key, v in (DEFAULTS | preset).items())
            lines.append(f"  {f'({name})' if name == 'check' else name:<13}{', '.join(sizes)}")
        lines += ["  (check) is for --check without --preset", "", "variants:", *(f"  {name}" for name in VARIANTS)]
        self.epilog = "\n".join(lines)
        return super().format_help()


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line; what it leaves open is that of the preset."""
    parser = Parser(__doc__)
    add, whole = parser.add_argument, rounds.read_whole
    add("--preset", choices=[name for name in PRESETS if name != "check"], default="cpu", help="sizes, if not given")
    add("--layers", type=whole, help="L (default: the preset's)")
    add("--features", type=whole, help="H, width of the input and of every layer (default: the preset's)")
    add("--length", type=whole, help="T, time steps (default: the preset's)")
    add("--rows", type=rounds.read_wholes, help="B, rows; several by commas give a table each (default: the preset's)")
    add("--projection", type=int, default=0, help="P, width of projected outputs; 0 is half of --features")
    add("--chunk", type=whole, default=1, help="time steps in a chunk of the wavefront")
    dtypes = ("float32", "bfloat16")
    add("--dtype", choices=dtypes, help="of the products; states are float32 (ours) (default: the preset's)")
    add("--peer_dtype", choices=(*dtypes, "float16"), help="of the peer (default: that of --dtype)")
    add("--variants", help="names of those below, by semicolons (default: all that this device can run)")
    add("--alone", action="store_true", help="leave PyTorch out: ratios are then to the first variant")
    add("--steps", type=whole, help="measurements in each process (default: the preset's)")
    add("--warm_up", type=rounds.read_count, default=2, help="calls after the first that are not measured")
    add("--rounds", type=whole, help="processes of each variant (default: the preset's)")
    add("--cores", type=rounds.read_cores, default=0, help="keep each process to so many cores; 0 is all")
    add("--json", type=rounds.read_output_file, help="also write the figures of time to this file")
    add("--check", action="store_true", help="compare values and gradients, not time; small unless sizes are given")
    add("--side", help=argparse.SUPPRESS)  # what a process of a round is told
    args = parser.parse_args(arguments)
    preset = DEFAULTS | PRESETS["check" if args.check and args.preset == "cpu" else args.preset]
    for name, value in preset.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.features < 2:
        parser.error(f"--features must be at least 2, so that outputs can be projected, but is {args.features}")
    if not 0 <= args.projection < args.features:
        rule = f"between 1 and {args.features - 1} (--features - 1), or 0 for half of --features"
        parser.error(f"--projection must be {rule}, but is {args.projection}")
    args.projection = args.projection or args.features // 2
    return args


def read_sizes(args: argparse.Namespace, rows: int) -> Sizes:
    """The sizes of the tables of so many rows."""
    from recurrent_variants import Sizes

    return Sizes(args.layers, args.length, rows, args.features, args.projection, args.chunk)


def make_arrays(sizes: Sizes, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    """The input, and the cotangent of the outputs."""
    generator = np.random.default_rng(1)
    shape = (sizes.length, sizes.rows)
    x, cotangent = generator.normal(size=(*shape, sizes.features)), generator.normal(size=(*shape, outputs))
    return x.astype(np.float32), cotangent.astype(np.float32)


def count_outputs(weights: Any) -> int:
    """Width of the last layer's outputs, all directions."""
    return sum(arrays["recurrent_kernel"].shape[0] for arrays in weights[-1].values())


# --- a process of one side ------------------------------------------------------------------------


def make_step(run: Run) -> Callable[..., Any]:
    """`step(weights, x, cotangent)` to the outputs and the gradients of weights and x."""
    import jax

    def step(weights: Any, x: Any, cotangent: Any) -> Any:
        y, back = jax.vjp(run, weights, x)
        return y, back(cotangent)

    return step


def measure_variant(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """Times one of JAX's ways, or says why not here."""
    import jax
    import jax.numpy as jnp
    from recurrent_variants import VARIANTS, draw_weights, prepare

    variant, sizes = VARIANTS[name], read_sizes(args, args.rows[0])
    own = draw_weights(variant.kind, sizes)
    x, cotangent = (jnp.asarray(array, args.dtype) for array in make_arrays(sizes, count_outputs(own)))
    weights = jax.device_put(own)
    try:
        run = prepare(variant, sizes, weights, x)
    except UserError as error:
        return {"skipped": str(error)}

    with rounds.Stopwatch() as compiling:
        compiled = jax.jit(make_step(run)).lower(weights, x, cotangent).compile()
    device = jax.devices()[0]
    times = rounds.time_calls(
        lambda: compiled(weights, x, cotangent),
        jax.block_until_ready,
        steps=args.steps,
        warm_up=1 + args.warm_up,
        block=1 if device.platform == "cpu" else rounds.BLOCK,
    )
    about = {"device": device.device_kind, "version": f"jax {jax.__version__}", "first_seconds": compiling.seconds}
    return {**times, **about, **rounds.describe_program(compiled)}


def measure_peer(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """Times one of PyTorch's modules."""
    import recurrent_torch
    from recurrent_variants import PEERS, draw_weights

    sizes = read_sizes(args, args.rows[0])
    weights = draw_weights(PEERS[name], sizes)
    x, cotangent = make_arrays(sizes, count_outputs(weights))
    return recurrent_torch.measure(
        name, weights, x, cotangent, dtype=args.peer_dtype or args.dtype, steps=args.steps, warm_up=args.warm_up
    )


def find_misfits(args: argparse.Namespace) -> dict[str, str]:
    """The chosen variants that this device or these sizes are not for, and why."""
    from recurrent_variants import VARIANTS

    misfits = {}
    for name in choose_variants(args):
        try:
            VARIANTS[name].build(read_sizes(args, args.rows[0]))
        except UserError as error:
            misfits[name] = str(error)
    return misfits


def measure_side(args: argparse.Namespace) -> dict[str, Any]:
    """What a process of a round is asked for."""
    rounds.keep_to_cores(args.cores)
    if args.side == DEVICE:
        return rounds.measure_device(args.dtype)
    if args.side == FIT:
        return {"misfits": find_misfits(args)}
    return measure_peer(args, args.side) if args.side.startswith("torch") else measure_variant(args, args.side)


# --- the process that starts the others -----------------------------------------------------------


def choose_variants(args: argparse.Namespace) -> list[str]:
    """The variants that are asked for.

    Raises:
        UserError: there is no such variant.
    """
    from recurrent_variants import VARIANTS

    if args.variants is None:
        return list(VARIANTS)
    names = [name.strip() for name in args.variants.split(";")]
    for name in names:
        if name not in VARIANTS:
            raise UserError(f"--variants must be of {'; '.join(VARIANTS)}, but has {name!r}")
    return names


def require_fit(args: argparse.Namespace) -> None:
    """Raises UserError where none of the variants that are named can run here."""
    if args.variants is not None:  # a process of its own, because this one never holds a device
        misfits = rounds.run_side(FIT, cores=args.cores)["misfits"]
        if set(misfits) == set(choose_variants(args)):
            why = "; ".join(f"{name!r}: {reason}" for name, reason in misfits.items())
            raise UserError(f"--variants must have one that this device and these sizes are for, but {why}")


def measure_rows(args: argparse.Namespace, names: list[str], rows: int) -> dict[str, Any]:
    """The figures of all variants and of their peers for so many rows, and those of the device."""
    from recurrent_variants import PEERS, VARIANTS, count_flops

    peers = [] if args.alone else [peer for peer in PEERS if any(VARIANTS[name].peer == peer for name in names)]
    sides = [DEVICE, *peers, *names]
    runs = rounds.run_rounds(sides, rounds=args.rounds, cores=args.cores, arguments=[f"--rows={rows}"])
    device = rounds.join_devices(runs.pop(DEVICE))
    if device["platform"] == "tpu":  # the peer was measured on the host
        runs = {side: found for side, found in runs.items() if side not in peers}
    results, skipped, sizes = {}, {}, read_sizes(args, rows)
    for side, found in runs.items():
        if "skipped" in found[-1]:
            skipped[side] = found[-1]["skipped"]
            continue
        figures = rounds.join_times(found)
        kind = PEERS[side] if side in PEERS else VARIANTS[side].kind
        rate = count_flops(kind, sizes) / figures["ms"] * 1e3
        results[side] = figures | {"flop_per_second": rate, "peak_share": rate / device["peak"]}
    for side, figures in results.items():
        peer = VARIANTS[side].peer if side in VARIANTS else side
        reference = results.get(peer, next(iter(results.values())) if args.alone else None)
        figures["ratio"] = None if reference is None else figures["ms"] / reference["ms"]
    return {"rows": rows, "device": device, "results": results, "skipped": skipped}


def print_table(args: argparse.Namespace, measured: dict[str, Any]) -> None:
    """Prints a line a variant, below the sizes and the device."""
    versions = sorted({figures["version"] for figures in measured["results"].values()})
    print(
        f"\n{args.layers} layers of {args.features}, {args.length} steps, {measured['rows']} rows, {args.dtype}"
        f"{f' (torch: {args.peer_dtype})' if args.peer_dtype else ''}, "
        f"forward and backward; {', '.join(versions)}\n{rounds.describe_peak(measured['device'])}"
    )
    print(f"{'':<28}{'ms':>9}{'/ peer':>8}{'median':>9}{'CPU ms':>9}{'FLOP/s':>11}{'of peak':>9}{'temp MiB':>10}"
          f"{'first s':>9}")  # fmt: skip
    for side, r in measured["results"].items():
        print(
            f"{side:<28}{r['ms']:>9.2f}{rounds.format_cell(r['ratio'], 2):>8}{r['median_ms']:>9.2f}{r['cpu_ms']:>9.2f}"
            f"{rounds.format_rate(r['flop_per_second']):>11}{r['peak_share']:>9.1%}"
            f"{rounds.format_cell(r.get('temp_mib'), 1):>10}{r['first_seconds']:>9.1f}"
        )
    for side, why in measured["skipped"].items():
        print(f"{side:<28} left out: {why}")


# --- the check ------------------------------------------------------------------------------------


def find_error(ours: Any, theirs: Any) -> float:
    """The largest relative difference of two trees of arrays, array by array."""
    import jax

    worst = 0.0
    for path, wanted in jax.tree_util.tree_leaves_with_path(theirs):
        found = ours
        for key in path:
            found = found[key.key if hasattr(key, "key") else key.idx]
        worst = max(worst, float(np.linalg.norm(np.asarray(found) - wanted) / max(np.linalg.norm(wanted), 1e-30)))
    return worst


def run_check(args: argparse.Namespace) -> bool:
    """Compares outputs and all gradients of every variant with float64 in PyTorch: its modules, else the equations."""
    import jax
    import recurrent_torch
    import torch
    from recurrent_variants import PEERS, VARIANTS, draw_weights, prepare

    torch.set_num_threads(1)  # it is small, and on a busy machine threads that wait for each other take for ever
    sizes = read_sizes(args, args.rows[0])
    fine = True
    print(f"{'relative differences':<28}{'outputs':>10}{'input':>10}{'weights':>10}  compared with")
    for name in choose_variants(args):
        variant = VARIANTS[name]
        weights = draw_weights(variant.kind, sizes)
        x, cotangent = make_arrays(sizes, count_outputs(weights))
        try:
            run = prepare(variant, sizes, weights, x)
        except UserError as error:
            print(f"{name:<28} left out: {error}")
            continue
        if PEERS[variant.peer] == variant.kind:
            wanted, against = recurrent_torch.run_peer(variant.peer, weights, x, cotangent), f"{variant.peer}'s module"
        else:
            cell = "gru" if variant.kind == "gru" else "lstm"
            wanted = recurrent_torch.run_equations(cell, weights, x, cotangent, epsilon=LAYER_NORM_EPSILON)
            against = "the equations in PyTorch"
        with jax.default_matmul_precision("highest"):
            y, (d_weights, d_x) = jax.jit(make_step(run))(weights, x, cotangent)
        errors = [find_error([a], [b]) for a, b in ((y, wanted[0]), (d_x, wanted[1]))]
        errors.append(find_error(d_weights, wanted[2]))  # noise has no gradient
        fine = fine and max(errors) < CHECK_TOLERANCE
        print(f"{name:<28}" + "".join(f"{error:>10.1e}" for error in errors) + f"  {against}", flush=True)
    return fine


def main() -> int:
    """Runs what the command line asks for; returns the exit code."""
    args = parse_arguments()
    if args.side:
        rounds.print_figures(measure_side(args))
        return 0
    try:
        names = choose_variants(args)
        if not args.alone:
            rounds.require_torch("recurrent.py", "run ours alone with --alone")
        require_fit(args)
        if args.check:
            return 0 if run_check(args) else 1
        rounds.warn_if_busy()
        tables = []
        for rows in args.rows:
            tables.append(measure_rows(args, names, rows))
            print_table(args, tables[-1])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    rounds.write_figures(args, {"tables": tables})
    return 0


if __name__ == "__main__":
    sys.exit(main())
