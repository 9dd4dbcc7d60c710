"""Times the search of the Transformer: ours, Hugging Face's `generate` and CTranslate2, in turn on one machine.

All search with the same random weights: ours are copied into MarianMTModel, and that is converted for
CTranslate2. In float32 their outputs have to be the same, token by token, and are compared.

    batch      sentences of one length searched together, outputs of one length (eos is impossible)
    one        the same, one sentence at a time, as a person waits for it
    real       sentences and outputs of all lengths: eos ends an output about where its source is as long.
               Ours rolls (rows that are done make room for others), CTranslate2 drops rows that are done,
               generate gets batches that are sorted by length. With --sources and --references these are
               real sentences, and outputs as long as their references (CTranslate2 cannot be told that)

Each side runs in processes of its own, one after the other and several times, because machines drift.

    python benchmarks/transformer_search.py                              # the paper's base; Hugging Face alone
    python benchmarks/transformer_search.py --peer=DIR                   # and CTranslate2, if pip did not install it
    python benchmarks/transformer_search.py --layers 2 --features 128 --heads 4 --feed_forward 512 --vocab 4000
    python benchmarks/transformer_search.py --dtype bfloat16 --rows 64 --sides ours,torch,ct2     # on a GPU
    python benchmarks/transformer_search.py --parts one --methods greedy --rounds 5
    python benchmarks/transformer_search.py --sources=newstest2013.de --references=newstest2013.en     # real alone

DIR is a folder that holds the package `ctranslate2` (pip install --target=DIR ctranslate2).
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rounds

from seq2seq_jax.errors import UserError

WEIGHTS, CONVERT = "weights", "convert"  # processes that are no side: what makes the weights, and what converts them
SIDES = ("ours", "torch", "ct2", "ct2_int8")
PARTS = ("batch", "one", "real")
METHODS = ("greedy", "beam")
EQUAL = 0.98
"""The share of outputs that must be the same in float32: random weights have near ties, which rounding decides."""

Search = Callable[[Sequence[np.ndarray]], list[list[int]]]
"""Sources to the best output of each, with eos where it ended by itself."""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = rounds.Parser(__doc__)
    add, whole = parser.add_argument, rounds.read_whole
    add("--features", type=whole, default=512, help="width of embeddings and layers")
    add("--layers", type=whole, default=6, help="layers of the encoder, and of the decoder")
    add("--decoder_layers", type=rounds.read_count, default=0, help="layers of the decoder; 0 is as many")
    add("--heads", type=whole, default=8, help="of every attention")
    add("--feed_forward", type=rounds.read_count, default=0, help="width inside the feed-forward layers; 0 is 4 times "
        "--features")  # fmt: skip
    add("--vocab", type=whole, default=32000, help="tokens, of both sides")
    add("--rows", type=whole, default=64, help="sentences in a batch")
    add("--source", type=whole, default=30, help="tokens of a source; with real lengths their mean")
    add("--target", type=whole, default=30, help="tokens of an output; with real lengths their mean, about")
    add("--beam", type=whole, default=4, help="hypotheses of a sentence of the method beam")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the products")
    add("--sentences", type=whole, default=10, help="searched one at a time by each process")
    add("--lines", type=whole, default=256, help="sentences of real lengths, or of --sources")
    add("--sources", help="file of real sentences")
    add("--references", help="file of their translations, whose lengths the outputs get")
    add("--repeats", type=whole, default=2, help="measurements of a batch, and of the real lengths, in each process")
    add("--rounds", type=whole, default=2, help="processes of each side")
    add("--cores", type=rounds.read_cores, default=0, help="keep each process to so many cores; 0 is all")
    add("--parts", default=",".join(PARTS), help="what is measured, by commas")
    add("--methods", default=",".join(METHODS), help="by which search, by commas")
    add("--sides", help="by commas; ours, torch (Hugging Face), ct2 (CTranslate2), ct2_int8 (default: all)")
    add("--peer", help="folder that holds `ctranslate2`, where it is not installed")
    add("--json", type=rounds.read_output_file, help="also write the figures to this file")
    add("--side", help=argparse.SUPPRESS)  # what a process of a round is told
    add("--weights", help=argparse.SUPPRESS)  # the folder of the weights
    args = parser.parse_args(arguments)
    args.every_side, args.sides = args.sides is None, args.sides or ",".join(SIDES)
    for name, known in (("sides", SIDES), ("parts", PARTS), ("methods", METHODS)):
        chosen = [each.strip() for each in getattr(args, name).split(",")]
        for each in chosen:
            if each not in known:
                parser.error(f"--{name} must be of {','.join(known)}, but has {each!r}")
        setattr(args, name, chosen)
    if bool(args.sources) != bool(args.references):
        parser.error("--sources and --references go together")
    if args.sources:
        args.parts = ["real"]
    args.feed_forward = args.feed_forward or 4 * args.features
    args.decoder_layers = args.decoder_layers or args.layers
    if args.features % args.heads or args.features % 2:
        parser.error(f"--features must be even and a multiple of the {args.heads} --heads, but is {args.features}")
    if args.source < 4:
        parser.error(f"--source must be at least 4, but is {args.source}")
    if args.vocab < 8:
        parser.error(f"--vocab must be at least 8, because four tokens are special, but is {args.vocab}")
    return args


# --- what is searched -----------------------------------------------------------------------------


def make_sources(args: argparse.Namespace, lengths: Sequence[int], seed: int) -> list[np.ndarray]:
    """Random sentences without eos, int32."""
    generator = np.random.default_rng(seed)
    return [generator.integers(4, args.vocab, length).astype(np.int32) for length in lengths]


def make_lengths(args: argparse.Namespace, count: int, seed: int) -> list[int]:
    """Tokens of sources of real lengths: from a quarter of --source to nearly twice as many, evenly."""
    generator, shortest = np.random.default_rng(seed), args.source // 4
    return generator.integers(shortest, 2 * args.source - shortest + 1, count).tolist()


def find_longest(args: argparse.Namespace, part: str) -> tuple[int, int]:
    """Tokens of the longest source and of the longest output of a part."""
    return (2 * args.source, 2 * args.target) if part == "real" else (args.source, args.target)


def make_many(args: argparse.Namespace, part: str) -> tuple[list[np.ndarray], list[int] | None]:
    """The sentences of a part but "one", and how long their outputs are to be, where that is given."""
    if args.references:
        from search import read_pairs

        return read_pairs(args)
    count = args.rows if part == "batch" else args.lines
    return make_sources(args, [args.source] * count if part == "batch" else make_lengths(args, count, 2), 3), None


def make_search(args: argparse.Namespace, part: str, method: str) -> Search:
    """How this process's side searches."""
    beam, (source, target), lengths = args.beam if method == "beam" else 1, find_longest(args, part), None
    if args.references:
        sources, lengths = make_many(args, part)
        source, target = max(map(len, sources)), max(lengths or [1])
    if args.side == "ours":
        import transformer_search_ours as own

        return own.make_search(args, part, beam=beam, max_source_len=source, max_len=target, lengths=lengths)
    import transformer_search_peers

    if args.side == "torch":
        return transformer_search_peers.make_generate(args, part, beam=beam, max_len=target, lengths=lengths)
    return transformer_search_peers.make_translate(args, part, beam=beam, max_len=target)


# --- a process of one side ------------------------------------------------------------------------


def measure_side(args: argparse.Namespace) -> dict[str, Any]:
    """Times all parts by all methods; seconds and outputs, by "part method"."""
    rounds.keep_to_cores(args.cores)
    if args.side in ("ours", WEIGHTS):
        import transformer_search_ours as own

        if args.side == WEIGHTS:
            return own.write_weights(args)
        figures = own.describe()
    else:
        import transformer_search_peers as peers

        if args.side == CONVERT:
            return peers.convert(args)
        figures = peers.describe(args)
    found = {}
    for method in args.methods:
        for part in args.parts:
            search = make_search(args, part, method)
            found[f"{part} {method}"] = time_ones(args, search) if part == "one" else time_many(args, part, search)
    return figures | {"found": found}


def time_many(args: argparse.Namespace, part: str, search: Search) -> dict[str, Any]:
    """Seconds of a batch or of many sentences, when all is compiled; and the outputs."""
    sources, _ = make_many(args, part)
    with rounds.Stopwatch() as first:
        outputs = search(sources)
    times = rounds.time_calls(lambda: search(sources), lambda found: found, steps=args.repeats, warm_up=0, block=1)
    return {**times, "first_seconds": first.seconds, "outputs": outputs}


def time_ones(args: argparse.Namespace, search: Search) -> dict[str, Any]:
    """Seconds of every sentence by itself, after two that do not count; and the outputs."""
    sources = make_sources(args, [args.source] * (2 + args.sentences), 4)
    seconds, cpu_seconds, outputs = [], [], []
    for source in sources:
        start, cpu_start = time.perf_counter(), time.process_time()
        outputs += search([source])
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    return {"seconds": seconds[2:], "cpu_seconds": cpu_seconds[2:], "first_seconds": seconds[0], "outputs": outputs}


# --- processes and tables -------------------------------------------------------------------------


def summarise(args: argparse.Namespace, runs: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The figures of all processes of a side, by "part method"."""
    summary = {}
    for name in runs[0]["found"]:
        each = [run["found"][name] for run in runs]
        seconds = [second for run in each for second in run["seconds"]]
        outputs, part = each[0]["outputs"], name.split()[0]
        tokens, best = sum(map(len, outputs)), min(seconds)
        figures = {"seconds": best, "cpu_seconds": min(second for run in each for second in run["cpu_seconds"])}
        if part == "one":
            p50, p95 = np.percentile(seconds, (50, 95))
            figures |= {"seconds": float(p50), "p95_seconds": float(p95), "tokens_per_second": args.target / p50}
        else:
            figures |= {"tokens_per_second": tokens / best, "sentences_per_second": len(outputs) / best}
        figures["first_seconds"] = min(run["first_seconds"] for run in each)
        summary[name] = figures | {"outputs": outputs, "mean_length": tokens / len(outputs)}
    return summary


def print_tables(args: argparse.Namespace, results: dict[str, dict[str, Any]], floors: dict[str, float]) -> None:
    """Prints a line for every part, method and side."""
    titles = ("", "side", "seconds", "/ ours", "CPU s", "/ ours", "tokens/s", "of floor", "first s", "tokens", "equal")
    line = "{:<14}{:<10}{:>9}{:>8}{:>9}{:>8}{:>10}{:>10}{:>9}{:>8}{:>12}"
    print(line.format(*titles))
    for name in next(iter(results.values())):
        for side, result in results.items():
            figures, ours = result[name], results.get("ours", {}).get(name)
            share = f"{floors[name] / figures['seconds']:.0%}" if side == "ours" and name in floors else ""
            print(
                line.format(
                    name,
                    side,
                    f"{figures['seconds']:.3f}",
                    f"{figures['seconds'] / ours['seconds']:.2f}" if ours else "",
                    f"{figures['cpu_seconds']:.3f}",
                    f"{figures['cpu_seconds'] / ours['cpu_seconds']:.2f}" if ours else "",
                    f"{figures['tokens_per_second']:,.0f}",
                    share,
                    f"{figures['first_seconds']:.1f}",
                    f"{figures['mean_length']:.1f}",
                    describe_equal(figures, ours) if ours and side != "ours" else "",
                )
            )


def describe_equal(figures: dict[str, Any], ours: dict[str, Any]) -> str:
    """How many outputs are those of ours."""
    return f"{count_equal(figures, ours)}/{len(ours['outputs'])}"


def count_equal(figures: dict[str, Any], ours: dict[str, Any]) -> int:
    """The outputs that are the same, token by token."""
    return sum(a == b for a, b in zip(figures["outputs"], ours["outputs"], strict=True))


def find_differing(args: argparse.Namespace, results: dict[str, dict[str, Any]]) -> list[str]:
    """Where a side in float32 finds other outputs than ours; "side part method" each."""
    ours = results.get("ours", {})
    return [
        f"{side} {name}"
        for side, result in results.items()
        for name, figures in result.items()
        if name in ours and side in ("torch", "ct2") and args.dtype == "float32"
        if count_equal(figures, ours[name]) < EQUAL * len(ours[name]["outputs"])
    ]


def find_missing(side: str, args: argparse.Namespace) -> str | None:
    """What a side needs that is not here, and where it comes from; None where nothing is missing."""
    peer = args.peer
    if side.startswith("ct2") and args.references:
        return "it cannot end every output at a length of its own: leave --sources and --references out"
    wanted = [] if side == "ours" else ["torch", "transformers"]
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    if missing:
        return f"it needs {' and '.join(missing)}: `pip install {' '.join(missing)}`"
    if side.startswith("ct2"):
        if peer and not (Path(peer) / "ctranslate2").is_dir():
            return f"--peer={peer} has no package ctranslate2: `pip install --target={peer} --no-deps ctranslate2`"
        if not peer and importlib.util.find_spec("ctranslate2") is None:
            return "it needs ctranslate2: `pip install ctranslate2`, or give --peer=DIR"
    return None


def leave_out_missing(args: argparse.Namespace) -> list[str]:
    """The sides that can run here; says which of the default ones cannot.

    Raises:
        UserError: one that was asked for cannot.
    """
    sides = []
    for side in args.sides:
        reason = find_missing(side, args)
        if reason is None:
            sides.append(side)
        elif args.every_side and (not args.peer or args.references):
            print(f"{side} is left out: {reason}")
        else:
            raise UserError(f"--sides={side}: {reason}")
    return sides


def run_parent(args: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """All processes, in turn, and the tables; the figures, and whether all found the same."""
    rounds.warn_if_busy()
    sides = leave_out_missing(args)
    with tempfile.TemporaryDirectory() as folder:
        given = [f"--weights={folder}"]
        made = rounds.run_side(WEIGHTS, cores=args.cores, arguments=given)
        if any(side.startswith("ct2") for side in sides):
            rounds.run_side(CONVERT, cores=args.cores, arguments=given)
        runs = rounds.run_rounds(sides, rounds=args.rounds, cores=args.cores, arguments=given)
    results = {side: summarise(args, found) for side, found in runs.items()}
    for side, found in runs.items():
        print(f"{side}: {found[0]['version']}, {found[0]['device']}")
    print_tables(args, results, made["floors"])
    differing = find_differing(args, results)
    for each in differing:
        print(f"not the same outputs as ours: {each}")
    for result in results.values():
        for figures in result.values():
            del figures["outputs"]
    return {"floors": made["floors"], "results": results}, not differing


def main() -> int:
    """Runs what the command line asks for; returns the exit code."""
    args = parse_arguments()
    if args.side:
        rounds.print_figures(measure_side(args))
        return 0
    try:
        found, same = run_parent(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    rounds.write_figures(args, found)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
