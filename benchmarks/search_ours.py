"""Drives our side of `search.py`: the engine that a translator calls, and the same search in fixed batches."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from seq2seq_jax.data.vocab import BOS_ID, EOS_ID, PAD_ID
from seq2seq_jax.decode.beam import Beam
from seq2seq_jax.decode.loop import run_loop
from seq2seq_jax.decode.method import Rows
from seq2seq_jax.decode.ranking import Ranking
from seq2seq_jax.decode.steps import Inputs
from seq2seq_jax.interfaces import Array, Hypotheses, PyTree
from seq2seq_jax.models.gnmt import GNMT, GNMTConfig
from seq2seq_jax.parallel.layout import ONE_PROGRAM, make_layout
from seq2seq_jax.parallel.roofline import Hardware, calibrate, find_hardware
from seq2seq_jax.tasks.engine import Engine
from seq2seq_jax.tasks.search import Search, model_program, start_search

IMPOSSIBLE = -1e4
"""What is added to the logit of a token that is never to be chosen."""


def make_model_engine(
    model: nn.Module, *, beam: int, ranking: Ranking, rows: int, max_source_len: int, max_len: int
) -> Engine:
    """The engine of a model on one device, as a translator has it.

    Args:
        model: keeps the `Seq2Seq` protocol.
        beam: hypotheses of a sentence.
        ranking: of the hypotheses.
        rows: sentences at a time.
        max_source_len: tokens of a source, at most.
        max_len: tokens of an output, at most.
    """
    layout = make_layout(data=1, fsdp=1, stage=1, tensor=1, rows_multiple=1, devices=jax.devices()[:1])
    boxed = jax.eval_shape(functools.partial(_init, model), jax.random.key(0))
    method = Beam(size=beam, ranking=ranking, bos_id=BOS_ID, eos_id=EOS_ID, pad_id=PAD_ID)
    search = Search(method=method, length_factor=0.0, length_extra=max_len)
    program = model_program(model, layout, boxed)
    return Engine(program, search, rows=rows, max_source_len=max_source_len, attention="none")


def _init(model: nn.Module, key: Array) -> PyTree:
    tokens = jax.numpy.ones((1, 2), jax.numpy.int32)
    return model.init(key, tokens, tokens > 0, tokens)["params"]


def init_params(model: nn.Module) -> PyTree:
    """Parameters at random."""
    return jax.jit(lambda key: nn.meta.unbox(_init(model, key)))(jax.random.key(0))


def build_engine(
    args: argparse.Namespace, *, max_source_len: int, max_len: int, coverage: float = 0.2
) -> tuple[Engine, PyTree]:
    """What searches, and its parameters: at random, eos impossible."""
    sizes = {"features": args.features, "attention_features": args.features, "dtype": args.dtype}
    layers = {"encoder_layers": args.layers, "decoder_layers": args.layers, "attention_from": "current_step"}
    model = GNMT(GNMTConfig(args.vocab, args.vocab, **sizes, **layers))
    params = init_params(model)
    params["softmax"]["bias"] = params["softmax"]["bias"].at[EOS_ID].set(IMPOSSIBLE)
    ranking = Ranking(length="gnmt", length_penalty=0.6, coverage_penalty=coverage)
    rows = {"rows": args.rows, "max_source_len": max_source_len, "max_len": max_len}
    return make_model_engine(model, beam=args.beam, ranking=ranking, **rows), params


def round_up(length: int) -> int:
    """The next power of two, as the lengths are that programs are compiled for."""
    return 1 << (length - 1).bit_length()


def estimate_floors(args: argparse.Namespace) -> dict[str, float]:
    """Seconds that the decoder's steps take at least, by what the device can do (measured where nothing is published).

    Flops are those of the products; bytes are the weights, what the attention reads, and the logits, written and read.
    """
    d, width = args.features, 2 if args.dtype == "bfloat16" else 4
    weights = 8 * d * d + (args.layers - 1) * 12 * d * d + d * d + d * args.vocab
    source, rate = (args.shortest + args.longest) / 2, measure_rates(args)
    floors = {}
    for part, rows in (("batch", args.rows), ("one", 1)):
        beams = rows * args.beam
        flops = 2 * beams * (weights + 2 * source * d)
        moved = width * (weights + 2 * rows * source * d) + 4 * 2 * beams * args.vocab
        floors[part] = args.steps * max(flops / rate.peak_flops, moved / rate.bandwidth)
    return floors


def measure_rates(args: argparse.Namespace) -> Hardware:
    """What the device can do in `args.dtype`: published, or measured with the products of the softmax."""
    device = jax.devices()[0]
    hardware = find_hardware(device)
    if hardware is not None:
        share = hardware.float32_share if args.dtype == "float32" else 1.0
        return dataclasses.replace(hardware, peak_flops=share * hardware.peak_flops)
    hardware, table = calibrate(device), args.vocab * args.features
    wide = time_product(args.vocab, args.features, args.rows * args.beam)
    few = time_product(args.vocab, args.features, args.beam)  # reads its table, where a copy also writes
    return dataclasses.replace(
        hardware,
        peak_flops=max(hardware.peak_flops, 2 * args.rows * args.beam * table / wide),
        bandwidth=max(hardware.bandwidth, 4 * table / few),
    )


def time_product(vocab: int, features: int, rows: int) -> float:
    """The least seconds of a product of some rows with a table `[vocab, features]`, float32."""
    table, hidden = jax.numpy.ones((vocab, features)), jax.numpy.ones((rows, features))
    product = jax.jit(lambda table, hidden: jax.numpy.einsum("bd,vd->bv", hidden, table))
    product(table, hidden).block_until_ready()
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        product(table, hidden).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return best


def run_rolling(
    engine: Engine, params: PyTree, sources: Sequence[np.ndarray], lengths: Sequence[int]
) -> dict[int, list[int]]:
    """The best output of each, from batches that roll."""
    found = engine.run(params, sources, least=lengths)
    return {place: each.tokens[0, : each.lengths[0]].tolist() for place, each in found}


@functools.cache
def make_fixed(engine: Engine, room: int) -> Any:
    """The jitted search of one batch, from its start to the end of its last row."""
    decoder, method = engine.program(constrained=False).build(ONE_PROGRAM), engine.search.method

    @jax.jit
    def search(params: PyTree, inputs: Any, rows: Any) -> Hypotheses:
        held, state = start_search(method, decoder, params, inputs, rows, max_len=room, room=room)
        step = decoder.make_step(params, held)
        return method.collect(run_loop(functools.partial(method.advance, step), state, room))

    return search


def run_fixed(
    engine: Engine,
    params: PyTree,
    sources: Sequence[np.ndarray],
    lengths: Sequence[int],
    *,
    size: int,
    width: int,
    room: int,
) -> dict[int, list[int]]:
    """The best output of each, by the same search in batches that stay together: file order, padded to the longest."""
    search, params, outputs = make_fixed(engine, room), engine.prepare(params), {}
    for first in range(0, len(sources), size):
        tokens, wanted = np.zeros((size, width), np.int32), np.zeros(size, np.int32)
        for row, source in enumerate(sources[first : first + size]):
            tokens[row, : len(source)], wanted[row] = source, lengths[first + row]
        mask, numbers = tokens > 0, np.arange(size, dtype=np.int32)
        rows = Rows(mask, wanted > 0, wanted, np.zeros_like(wanted), numbers)
        found = search(params, Inputs(tokens, mask, max_lengths=wanted), rows)
        best, ends = np.asarray(found.tokens[:, 0]), np.asarray(found.lengths[:, 0])
        for row in range(min(size, len(sources) - first)):
            outputs[first + row] = best[row, : ends[row]].tolist()
    return outputs
