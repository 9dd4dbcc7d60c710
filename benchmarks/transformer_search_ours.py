"""Drives our side of `transformer_search.py`, and makes the weights that all sides search with."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import search_ours
import transformer_weights
from search_ours import IMPOSSIBLE

from seq2seq_jax.data.vocab import BOS_ID, EOS_ID, PAD_ID
from seq2seq_jax.decode.ranking import Ranking
from seq2seq_jax.interfaces import Array, PyTree
from seq2seq_jax.models.transformer import Transformer

if TYPE_CHECKING:
    from transformer_search import Search

RANKING = Ranking(length="average", length_penalty=1.0, stop="first", unfinished="compete")
"""That of `generate` with `early_stopping=True`, and of CTranslate2."""

FITTED = 96
"""Sentences from which it is found where outputs end."""


def describe() -> dict[str, str]:
    """The device and the version."""
    return {"device": jax.devices()[0].device_kind, "version": f"jax {jax.__version__}"}


def make_search(
    args: argparse.Namespace,
    part: str,
    *,
    beam: int,
    max_source_len: int,
    max_len: int,
    lengths: Sequence[int] | None = None,
) -> Search:
    """What a translator calls: from tokens on the host to hypotheses on the host; for lengths see `bind`."""
    params = jax.device_put(transformer_weights.read(args, part))
    return bind(args, params, beam=beam, max_source_len=max_source_len, max_len=max_len, lengths=lengths)


def bind(
    args: argparse.Namespace,
    params: PyTree,
    *,
    beam: int,
    max_source_len: int,
    max_len: int,
    lengths: Sequence[int] | None = None,
) -> Search:
    """The search with these parameters; lengths are those of each output, of `max_len` all if they are not given."""
    engine = search_ours.make_model_engine(
        Transformer(transformer_weights.make_config(args)),
        beam=beam,
        ranking=RANKING,
        rows=args.rows,
        max_source_len=search_ours.round_up(max_source_len),
        max_len=max_len if lengths is None else 1,
    )

    def search(sources: Sequence[np.ndarray]) -> list[list[int]]:
        found = dict(engine.run(params, sources, least=lengths))
        return [found[place].tokens[0, : found[place].lengths[0]].tolist() for place in range(len(sources))]

    return search


# --- the weights ----------------------------------------------------------------------------------


def write_weights(args: argparse.Namespace) -> dict[str, Any]:
    """Writes random weights with which no output ends, and those with which they end at real lengths.

    Returns:
        The floors; see `estimate_floors`.
    """
    params = jax.tree.map(np.array, search_ours.init_params(Transformer(transformer_weights.make_config(args))))
    params["softmax"]["bias"][[PAD_ID, BOS_ID, EOS_ID]] = IMPOSSIBLE
    transformer_weights.write(params, Path(args.weights), "even")
    if "real" in args.parts and not args.references:
        row, bias = fit_end(args, params)
        params["target_embedding"]["table"][EOS_ID] = row
        params["softmax"]["bias"][EOS_ID] = bias
        transformer_weights.write(params, Path(args.weights), "real")
    return {"floors": estimate_floors(args)}


def fit_end(args: argparse.Namespace, params: PyTree) -> tuple[np.ndarray, float]:
    """Row and bias of eos with which outputs end about where they should.

    The logit of eos is to rise by one a token, and to pass the largest of the others where the output is as long as its
    source (times --target / --source): least squares over the hidden states of greedy outputs that do not end. No
    source has an eos, so that nothing else changes.
    """
    from transformer_search import find_longest, make_lengths, make_sources

    model, (longest, steps) = Transformer(transformer_weights.make_config(args)), find_longest(args, "real")
    lengths = make_lengths(args, FITTED, 5)
    sources = make_sources(args, lengths, 6)
    outputs = np.array(bind(args, params, beam=1, max_source_len=longest, max_len=steps)(sources))
    padded = np.zeros((FITTED, longest), np.int32)
    for row, source in enumerate(sources):
        padded[row, : len(source)] = source

    @jax.jit
    def run(source: Array, target_in: Array) -> tuple[Array, Array]:
        def hidden(model: Transformer) -> tuple[Array, Array]:
            memory = model.encode(source, source > 0, train=False)
            made = model.decode(target_in, memory, train=False).hidden
            return made.astype(jnp.float32), jnp.max(model.project(made), axis=-1)

        return model.apply({"params": params}, method=hidden)

    target_in = np.concatenate([np.full((FITTED, 1), BOS_ID, np.int32), outputs[:, :-1]], axis=1)
    hidden, top = (np.asarray(each, np.float64) for each in run(padded, target_in))
    wanted_lengths = np.array(lengths)[:, None] * args.target / args.source
    wanted = top + np.arange(1, steps + 1) - wanted_lengths + 0.5
    equations = np.concatenate([hidden.reshape(-1, hidden.shape[-1]), np.ones((wanted.size, 1))], axis=1)
    keep_small = 1e-2 * np.eye(equations.shape[1])
    normal = equations.T @ equations / wanted.size + keep_small
    found = np.linalg.solve(normal, equations.T @ wanted.reshape(-1) / wanted.size)
    return found[:-1].astype(np.float32), float(found[-1])


def estimate_floors(args: argparse.Namespace) -> Mapping[str, float]:
    """Seconds that the parts with outputs of one length take at least, by what the device can do; by "part method".

    Every step takes as long as its products, or as reading the weights, the cache and what was made of the source,
    where that is more. Softmax, norms and choosing are not in it.
    """
    rate, d, layers = search_ours.measure_rates(args), args.features, args.decoder_layers
    width = 2 if args.dtype == "bfloat16" else 4
    inner = 2 * d * args.feed_forward
    encoder, decoder = args.layers * (4 * d * d + inner) + layers * 2 * d * d, layers * (6 * d * d + inner)
    decoder += args.vocab * d
    source, steps, floors = args.source, np.arange(1, args.target + 1), {}

    def seconds(flops: Any, words: Any) -> Any:
        return np.maximum(flops / rate.peak_flops, width * words / rate.bandwidth)

    for part, rows in (("batch", args.rows), ("one", 1)):
        encoding = 2 * rows * source * (encoder + 2 * args.layers * d * source)
        for method, beam in (("greedy", 1), ("beam", args.beam)):
            flops = 2 * rows * beam * (decoder + 2 * layers * d * (steps + source))
            words = decoder + 2 * layers * d * rows * (beam * steps + source)
            floors[f"{part} {method}"] = float(seconds(encoding, encoder) + seconds(flops, words).sum())
    return floors
