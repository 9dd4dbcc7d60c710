"""Times the joint search of attention and CTC: many utterances at once, against one at a time, in one run.

Random parameters and noise for speech; every output has exactly the length that is asked for, so that nothing ends
early. The model is a Listen, Attend and Spell with a softmax over frames, and both scores come from one encoding.

    at once      utterances a second where `--rows` of them are one batch, padded to the longest
    by length    the same where those of one length are a batch, so that nothing is padded
    one by one   the same utterances, each a batch of its own, padded to its own length (as ESPnet's search goes)
    attention    the same as all of them, without CTC

    python benchmarks/joint_search.py                                   # 64 utterances, beam 10, on two cores
    python benchmarks/joint_search.py --features 512 --vocab 1000 --rows 256    # on a GPU
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rounds

HOP, SECOND = 160, 100  # samples of a frame at 16 kHz, frames of a second
BOS, EOS, PAD = 2, 3, 0


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = rounds.Parser(__doc__)
    add, whole = parser.add_argument, rounds.read_whole
    add("--rows", type=whole, default=64, help="utterances")
    add("--beam", type=whole, default=10, help="hypotheses of an utterance")
    add("--tokens", type=whole, default=24, help="of every output")
    add("--seconds", type=rounds.read_wholes, default="2,3,4,5", help="of the utterances, in turn")
    add("--vocab", type=whole, default=200, help="tokens, the blank among them")
    add("--features", type=whole, default=256, help="width of the listener, embeddings and speller")
    add("--layers", type=whole, default=3, help="of the listener")
    add("--weight", type=float, default=0.3, help="of CTC")
    add("--rounds", type=whole, default=3, help="times that all is searched")
    add("--cores", type=rounds.read_cores, default=0, help="keep to so many cores; 0 is all")
    add("--json", type=rounds.read_output_file, help="also write the figures to this file")
    args = parser.parse_args(arguments)
    if not 0 < args.weight <= 1:
        parser.error(f"--weight must be above 0 and at most 1, but is {args.weight}")
    if args.vocab <= EOS + 1:
        parser.error(f"--vocab must be above {EOS + 1}, four of them are special, but is {args.vocab}")
    return args


def make_utterances(args: argparse.Namespace) -> list[np.ndarray]:
    """Noise, `[S, HOP]` each."""
    generator = np.random.default_rng(0)
    frames = [args.seconds[row % len(args.seconds)] * SECOND for row in range(args.rows)]
    return [generator.normal(scale=0.1, size=(count, HOP)).astype(np.float32) for count in frames]


def pad(utterances: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """One batch `[B, S, HOP]` and its mask."""
    longest = max(map(len, utterances))
    source = np.stack([np.pad(each, ((0, longest - len(each)), (0, 0))) for each in utterances])
    return source, np.arange(longest) < np.array([len(each) for each in utterances])[:, None]


def build_search(args: argparse.Namespace) -> tuple[Callable[..., Any], Any]:
    """`search(params, source, mask, weight) -> Hypotheses`, jitted with a static weight; and the parameters."""
    import jax
    import jax.numpy as jnp
    from flax import linen as nn

    from seq2seq_jax.decode.beam import beam_search
    from seq2seq_jax.decode.ctc_prefix import Labels, join_ctc
    from seq2seq_jax.decode.ranking import Ranking
    from seq2seq_jax.decode.steps import Inputs, seq2seq_decoder
    from seq2seq_jax.models.las import LAS, LASConfig

    model = LAS(
        LASConfig(
            target_vocab=args.vocab,
            listener_layers=args.layers,
            listener_features=args.features,
            features=args.features,
            ctc_head=True,
        )
    )

    @functools.partial(jax.jit, static_argnums=3)
    def search(params: Any, source: Any, mask: Any, weight: float) -> Any:
        decoder = join_ctc(seq2seq_decoder(model), model, weight, Labels(bos_id=BOS, eos_id=EOS))
        held = decoder.encode(params, Inputs(source, mask))
        lengths = jnp.full(len(source), args.tokens, jnp.int32)
        return beam_search(
            decoder.make_step(params, held),
            decoder.init_cache(params, held, args.tokens),
            beam_size=args.beam,
            max_lengths=lengths,
            min_lengths=lengths,
            max_len=args.tokens,
            bos_id=BOS,
            eos_id=EOS,
            pad_id=PAD,
            ranking=Ranking(unfinished="end"),
        )

    source, mask = (jnp.asarray(x) for x in pad(make_utterances(args)[:1]))
    tokens = jnp.zeros((1, 2), jnp.int32)
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), source, mask, tokens)
    return search, nn.unbox(variables["params"])


def group(utterances: list[np.ndarray]) -> list[list[np.ndarray]]:
    """The utterances of every length."""
    lengths = sorted({len(each) for each in utterances})
    return [[each for each in utterances if len(each) == length] for length in lengths]


def measure(args: argparse.Namespace) -> dict[str, dict[str, tuple[float, float]]]:
    """Seconds of time and of processors for all utterances, least of the rounds, by way and what is searched with."""
    import jax

    search, params = build_search(args)
    utterances = make_utterances(args)
    ways = {
        "at once": [pad(utterances)],
        "by length": [pad(each) for each in group(utterances)],
        "one by one": [pad([each]) for each in utterances],
    }
    figures: dict[str, dict[str, tuple[float, float]]] = {}
    times: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for name, weight in (("joint", args.weight), ("attention", 0.0)):
        for way, batches in ways.items():
            shapes = {source.shape: (source, mask) for source, mask in batches}
            for source, mask in shapes.values():  # compiled once, not counted
                jax.block_until_ready(search(params, source, mask, weight))
            times[name, way] = []
    for _ in range(args.rounds):
        for name, weight in (("joint", args.weight), ("attention", 0.0)):
            for way, batches in ways.items():
                start, worked = time.perf_counter(), time.process_time()
                for source, mask in batches:
                    found = jax.device_get(search(params, source, mask, weight))
                    if found.lengths.min() != args.tokens:
                        raise RuntimeError(f"Every output must have {args.tokens} tokens.")
                times[name, way].append((time.perf_counter() - start, time.process_time() - worked))
    for (name, way), spent in times.items():
        elapsed, worked = (min(each) for each in zip(*spent, strict=True))
        figures.setdefault(name, {})[way] = elapsed, worked
    return figures


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints."""
    args = parse_arguments(arguments)
    rounds.warn_if_busy()
    rounds.keep_to_cores(args.cores)
    import jax

    figures = measure(args)
    speech = sum(len(each) for each in make_utterances(args)) / SECOND
    device = jax.devices()[0].device_kind
    print(f"{args.rows} utterances, {speech:.0f} s of audio, beam {args.beam}, {args.tokens} tokens each, on {device}")
    for name, ways in figures.items():
        alone, alone_worked = ways["one by one"]
        for way, (seconds, worked) in ways.items():
            rate, factor = args.rows / seconds, seconds / speech
            print(
                f"{name:>10} {way:<11} {rate:8.1f} utterances/s   real-time factor {factor:.4f}   "
                f"{alone / seconds:.2f} times as fast as one by one, {alone_worked / worked:.2f} by processor time"
            )
    if args.json:
        result = {"seconds_and_processor_seconds": figures, "audio": speech, "device": device}
        Path(args.json).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
