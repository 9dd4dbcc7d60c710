"""Times the search of GNMT, ours and the generator of NVIDIA's GNMT for PyTorch, in turn on one machine.

Random weights, and eos made impossible for both: every output has exactly the length that is asked for.

    batch      sentences a second where many are searched together, beam 5
    one        seconds for one sentence at a time, as a person waits for it
    real       real sentences with outputs as long as their references: rows that are done make room for others
               (what translating does), against fixed batches in the order of the file; ours alone

Each side runs in processes of its own, one after the other and several times, because machines drift.

    python benchmarks/search.py --peer=DIR                                    # 4 + 4 layers of 512, on two cores
    python benchmarks/search.py --peer=DIR --layers 8 --features 1024 --dtype bfloat16     # the paper's, on a GPU
    python benchmarks/search.py --sources=newstest2013.de --references=newstest2013.en     # real sentences alone

DIR holds the peer's `seq2seq`, see `search_torch.py`. CTranslate2 has no GNMT, so there is nothing to compare with it.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seq2seq_jax.errors import UserError

if TYPE_CHECKING:
    from seq2seq_jax.interfaces import Hypotheses

SIDES = ("ours", "torch")
WAYS = ("rolling", "fixed")
POSITIVE = ("features", "layers", "vocab", "rows", "beam", "steps", "sentences", "rounds", "lines")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="folder that holds the peer's `seq2seq`; without it ours runs alone")
    parser.add_argument("--features", type=int, default=512, help="width of embeddings, layers and attention")
    parser.add_argument("--layers", type=int, default=4, help="layers of the encoder, and of the decoder")
    parser.add_argument("--vocab", type=int, default=32320, help="tokens on each side")
    parser.add_argument("--rows", type=int, default=128, help="sentences in a batch")
    parser.add_argument("--beam", type=int, default=5, help="hypotheses of a sentence")
    parser.add_argument("--steps", type=int, default=50, help="tokens of every output, but of real sentences")
    parser.add_argument("--shortest", type=int, default=30, help="source tokens of the shortest sentence")
    parser.add_argument("--longest", type=int, default=50, help="and of the longest")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the products")
    parser.add_argument("--sentences", type=int, default=20, help="searched one at a time by each process")
    parser.add_argument("--rounds", type=int, default=2, help="processes of each side")
    parser.add_argument("--sources", help="file of real sentences")
    parser.add_argument("--references", help="file of their translations, whose lengths the outputs get")
    parser.add_argument("--lines", type=int, default=3000, help="real sentences, from the file's beginning")
    parser.add_argument("--part", choices=("batch", "one"), help="measure only this of the two")
    parser.add_argument("--check", action="store_true", help="whether both find the same, with our weights")
    parser.add_argument("--json", help="also write the figures to this file")
    parser.add_argument("--side", choices=(*SIDES, *WAYS), help=argparse.SUPPRESS)  # what a process is told
    args = parser.parse_args(arguments)
    for name in POSITIVE:
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, but is {getattr(args, name)}")
    if args.layers < 2:
        parser.error(f"--layers must be at least 2, but is {args.layers}")
    if not 1 < args.shortest <= args.longest:
        parser.error("--shortest must be at least 2 and --longest no less, but they are "
                     f"{args.shortest} and {args.longest}")  # fmt: skip
    if args.check and not args.peer:
        parser.error("--check needs --peer")
    if bool(args.sources) != bool(args.references):
        parser.error("--sources and --references go together")
    return args


def make_sources(args: argparse.Namespace, count: int, seed: int) -> list[np.ndarray]:
    """Random sentences with eos, the longest first (the peer wants them so), int32."""
    generator = np.random.default_rng(seed)
    lengths = np.sort(generator.integers(args.shortest, args.longest + 1, count))[::-1]
    return [np.append(generator.integers(4, args.vocab, length - 1), 3).astype(np.int32) for length in lengths]


def read_pairs(args: argparse.Namespace) -> tuple[list[np.ndarray], list[int]]:
    """The real sentences as tokens with eos, and the lengths of their references with eos.

    Raises:
        UserError: a file cannot be read, or they are not of one length.
    """
    from seq2seq_jax.data.vocab_training import train_vocab

    try:
        texts = [Path(path).read_text(encoding="utf-8") for path in (args.sources, args.references)]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"sentences cannot be read ({error}): give text files, one sentence a line") from error
    sources, references = (text.splitlines()[: args.lines] for text in texts)
    if len(sources) != len(references):
        raise UserError(
            f"{args.sources} and {args.references} must have the same number of lines, but have "
            f"{len(sources)} and {len(references)}"
        )
    vocab = train_vocab(sources + references, size=min(args.vocab, 8000))
    tokens = [np.append(ids, 3).astype(np.int32) for ids in vocab.encode_many(sources)]
    return tokens, [len(ids) + 1 for ids in vocab.encode_many(references)]


# --- ours -----------------------------------------------------------------------------------------


def measure_ours(args: argparse.Namespace) -> dict[str, Any]:
    """Times our search: what a translator calls, from tokens on the host to hypotheses on the host."""
    import jax
    import search_ours

    engine, params = search_ours.build_engine(
        args, max_source_len=search_ours.round_up(args.longest), max_len=args.steps
    )

    def search(sources: Sequence[np.ndarray]) -> list[tuple[int, Hypotheses]]:
        found = list(engine.run(params, sources))
        if {length for _, each in found for length in each.lengths.tolist()} != {args.steps}:
            raise RuntimeError(f"Every output must have {args.steps} tokens.")
        return found

    device = jax.devices()[0]
    figures = time_parts(args, search) | {"device": device.device_kind, "version": f"jax {jax.__version__}"}
    return figures | {"floors": search_ours.estimate_floors(args)}


def measure_torch(args: argparse.Namespace) -> dict[str, Any]:
    """Times the peer's."""
    import search_torch
    import torch

    sizes = {"vocab": args.vocab, "features": args.features, "layers": args.layers}
    generator = search_torch.Generator(args.peer, sizes, beam=args.beam, steps=args.steps, dtype=args.dtype)
    device = torch.cuda.get_device_name() if generator.device.type == "cuda" else "cpu"
    return time_parts(args, generator.search) | {"device": device, "version": f"torch {torch.__version__}"}


def run_check(args: argparse.Namespace) -> bool:
    """Whether both searches find the same best outputs for the same weights, float32, on the CPU."""
    os.environ["JAX_PLATFORMS"], os.environ["CUDA_VISIBLE_DEVICES"] = "cpu", ""
    import jax
    import search_ours
    import search_torch

    args.dtype = "float32"
    engine, params = search_ours.build_engine(
        args, max_source_len=search_ours.round_up(args.longest), max_len=args.steps, coverage=0.0
    )
    generator = np.random.default_rng(2)
    params = jax.tree.map(lambda x: generator.uniform(-0.3, 0.3, x.shape).astype(np.float32), params)
    params["softmax"]["bias"][:4] = search_ours.IMPOSSIBLE  # ours never says pad and bos, either
    sizes = {"vocab": args.vocab, "features": args.features, "layers": args.layers}
    peer = search_torch.Generator(args.peer, sizes, beam=args.beam, steps=args.steps, dtype=args.dtype)
    peer.load_weights(params)
    sources = make_sources(args, args.rows, 0)
    theirs = peer.search(sources)[:, 1:]
    ours = {place: found.tokens[0] for place, found in engine.run(params, sources)}
    same = sum(ours[row].tolist() == theirs[row].tolist() for row in range(args.rows))
    print(
        f"best outputs of {args.steps} tokens, beam {args.beam}: {same} of {args.rows} sentences are the same in both"
    )
    return same == args.rows


def time_parts(args: argparse.Namespace, search: Any) -> dict[str, list[float]]:
    """Seconds of a batch, and of every sentence by itself; each kind once before, which is not counted."""
    one = make_sources(args, args.sentences, 1)
    calls = {"batch": [make_sources(args, args.rows, 0)] * 2, "one": [[source] for source in (one[0], one[-1], *one)]}
    seconds: dict[str, list[float]] = {}
    for part in [args.part] if args.part else list(calls):
        seconds[part] = []
        for sources in calls[part]:
            start = time.perf_counter()
            search(sources)
            seconds[part].append(time.perf_counter() - start)
        del seconds[part][: {"batch": 1, "one": 2}[part]]
    return seconds


# --- real sentences -------------------------------------------------------------------------------


def measure_way(args: argparse.Namespace) -> dict[str, Any]:
    """Times one way through the real sentences, when all is compiled."""
    import search_ours

    sources, lengths = read_pairs(args)
    longest = max(map(len, sources))
    engine, params = search_ours.build_engine(
        args, max_source_len=search_ours.round_up(longest), max_len=1
    )  # a row's own length is the rest
    if args.side == "rolling":
        run: Any = functools.partial(search_ours.run_rolling, engine, params)
        run(sources, lengths)  # meets all shapes
    else:
        run = functools.partial(search_ours.run_fixed, engine, params, size=args.rows, width=longest, room=max(lengths))
        run(sources[: args.rows], lengths)
    before = dict(vars(engine.tally))
    start = time.perf_counter()
    outputs = run(sources, lengths)
    seconds = time.perf_counter() - start
    wrong = [place for place, tokens in outputs.items() if len(tokens) != lengths[place]]
    if wrong or len(outputs) != len(sources):
        raise RuntimeError(f"Outputs must be as long as their references; {len(wrong)} are not.")
    cost = {name: value - before[name] for name, value in vars(engine.tally).items()}
    compiled = {"programs": engine.programs, "most_programs": engine.most_programs} if args.side == "rolling" else {}
    figures = {"seconds": seconds, "sentences": len(sources), "lengths": sum(lengths)}
    return {**figures, "tokens": {str(place): output for place, output in outputs.items()}, **cost, **compiled}


# --- processes and tables -------------------------------------------------------------------------


def run_side(side: str) -> dict[str, Any]:
    """One process of one side with this process's arguments; its figures."""
    command = [sys.executable, *sys.argv, "--side", side]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise UserError(f"the process of {side} ended with code {done.returncode}; its message stands above")
    return json.loads(done.stdout.splitlines()[-1])


def summarise(args: argparse.Namespace, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of all processes of a side."""
    summary: dict[str, Any] = {"device": runs[0]["device"], "version": runs[0]["version"]}
    if "batch" in runs[0]:
        best = min(second for run in runs for second in run["batch"])
        summary |= {"batch_seconds": best, "sentences_per_second": args.rows / best}
    if "one" in runs[0]:
        p50, p95 = np.percentile([second for run in runs for second in run["one"]], (50, 95))
        summary |= {"p50_seconds": float(p50), "p95_seconds": float(p95)}
    if "floors" in runs[0]:
        named = {"batch": "batch_seconds", "one": "p50_seconds"}
        floors = {part: min(run["floors"][part] for run in runs) for part in named}
        summary["floor_shares"] = {part: floors[part] / summary[key] for part, key in named.items() if key in summary}
    return summary


def print_sides(args: argparse.Namespace, results: dict[str, dict[str, Any]]) -> None:
    """Prints a line a figure: ours, the peer's, the ratio, and the share of what the device can do."""
    ours, peer = results["ours"], results.get("torch", {})
    for side, result in results.items():
        print(f"{side}: {result['version']}, {result['device']}")
    print("{:<52}{:>10}{:>10}{:>8}{:>10}".format("", "ours", "torch", "ratio", "of floor"))
    together, alone = f"{args.rows} sentences, beam {args.beam}, {args.steps} steps", "one sentence"
    for title, key, part in (
        (f"{together}: seconds", "batch_seconds", "batch"),
        (f"{together}: sentences/s", "sentences_per_second", ""),
        (f"{alone}: p50 seconds", "p50_seconds", "one"),
        (f"{alone}: p95 seconds", "p95_seconds", ""),
    ):
        if key in ours:
            share = f"{ours['floor_shares'][part]:10.0%}" if part else ""
            ratio = (peer.get(key, np.nan) / ours[key]) ** (-1 if key == "sentences_per_second" else 1)
            print(f"{title:<52}{ours[key]:>10.3f}{peer.get(key, np.nan):>10.3f}{ratio:>8.2f}{share}")


def print_ways(results: dict[str, dict[str, Any]]) -> None:
    """Prints a line a way through the real sentences, and the ratio."""
    rolling, fixed = results["rolling"], results["fixed"]
    print(f"{'real sentences':<24}{'seconds':>10}{'sentences/s':>13}{'tokens/s':>10}")
    for way in WAYS:
        seconds, sentences, tokens = (results[way][name] for name in ("seconds", "sentences", "lengths"))
        print(f"{way:<24}{seconds:>10.2f}{sentences / seconds:>13.1f}{tokens / seconds:>10.0f}")
    same = np.mean([rolling["tokens"][place] == tokens for place, tokens in fixed["tokens"].items()])
    live = rolling["live_row_steps"] / rolling["row_steps"]
    print(f"rolling / fixed: {fixed['seconds'] / rolling['seconds']:.2f} of the speed, {same:.1%} of outputs equal")
    print(
        f"rolling: {live:.0%} of the rows' steps were for rows that were not done; "
        f"{rolling['programs']} programs compiled, {rolling['most_programs']} declared"
    )


def run_parent(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """All processes, in turn, and the tables; the figures by side.

    Raises:
        UserError: a process failed.
    """
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    if load > 0.5 * cores:
        print(f"the machine is busy (load {load:.1f} on {cores} cores): the figures say little", file=sys.stderr)
    ways: dict[str, dict[str, Any]] = {}
    if args.sources:
        ways = {way: run_side(way) for way in WAYS}
        print_ways(ways)
    if args.sources and not args.peer:
        return ways
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in (SIDES if args.peer else SIDES[:1])}
    for _ in range(args.rounds):
        for side, found in runs.items():
            found.append(run_side(side))
    sides = {side: summarise(args, found) for side, found in runs.items()}
    print_sides(args, sides)
    return ways | sides


def main() -> int:
    """Runs what the command line asks for; returns the exit code."""
    args = parse_arguments()
    try:
        if args.peer and importlib.util.find_spec("torch") is None:
            raise UserError("--peer needs PyTorch, which is not installed: `pip install torch`, or leave it out")
        if args.side:
            measure = {"ours": measure_ours, "torch": measure_torch}.get(args.side, measure_way)
            print(json.dumps(measure(args)))
            return 0
        if args.check:
            return 0 if run_check(args) else 1
        results = run_parent(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"arguments": vars(args), "results": results}, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
