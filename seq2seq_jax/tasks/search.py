"""Searching and sampling with a model on a mesh: from a batch of sources to hypotheses."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec

from seq2seq_jax.data.vocab import BOS_ID, EOS_ID, PAD_ID
from seq2seq_jax.decode.beam import beam_search
from seq2seq_jax.decode.greedy import greedy_search
from seq2seq_jax.decode.sample import sample
from seq2seq_jax.decode.steps import seq2seq_step
from seq2seq_jax.interfaces import Array, Hypotheses, PyTree
from seq2seq_jax.parallel.layout import Execution, Layout
from seq2seq_jax.parallel.shard import plan_leaves
from seq2seq_jax.parallel.softmax import VocabularySplit
from seq2seq_jax.parallel.spread import specs_at_rest, take_parts
from seq2seq_jax.parallel.varying import varying_axes


@dataclasses.dataclass(frozen=True)
class Search:
    """How to search; see `decode.beam.beam_search`.

    Attributes:
        beam_size: hypotheses kept; 1 is greedy.
        length_penalty: GNMT's alpha.
        coverage_penalty: GNMT's beta; used where the model attends.
        length_factor, length_extra: longest output, factor x source tokens + extra.
    """

    beam_size: int
    length_penalty: float
    coverage_penalty: float
    length_factor: float
    length_extra: int

    def longest(self, source_len: int) -> int:
        """The longest output for a source of so many tokens, eos included."""
        return int(self.length_factor * source_len) + self.length_extra


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How to sample; see `decode.sample.sample`.

    Attributes:
        samples: outputs drawn for each source.
        temperature: 1 is the model's own distribution.
        top_k: draw from so many most probable tokens alone; 0 is all.
    """

    samples: int
    temperature: float = 1.0
    top_k: int = 0


Decode = Callable[..., Hypotheses]
"""`decode(params, source [B, S], source_mask [B, S], row_mask [B], *, max_len) -> Hypotheses`, jitted."""

Draw = Callable[..., Hypotheses]
"""`draw(params, source, source_mask, row_mask, rows [B], key, *, max_len) -> Hypotheses`: samples, keyed by `rows`."""


def make_decode(model: nn.Module, search: Search, layout: Layout, boxed: PyTree) -> Decode:
    """Builds the jitted search of a model on a mesh: rows over the devices that share batches, the vocabulary split.

    Args:
        model: a linen module that keeps the `Seq2Seq` protocol.
        search: how to search.
        layout: where the parameters live.
        boxed: the abstract parameters with the names of their axes.
    """
    spread = _spread(functools.partial(_decode, search), model, layout, boxed)

    def decode(params: PyTree, source: Array, source_mask: Array, row_mask: Array, *, max_len: int) -> Hypotheses:
        return spread(params, (source, source_mask, row_mask), (), max_len)

    return _jit(decode, layout)


def make_draw(model: nn.Module, search: Search, sampling: Sampling, layout: Layout, boxed: PyTree) -> Draw:
    """Builds the jitted sampling of a model on a mesh; of `search` only the bounds on lengths matter."""
    spread = _spread(functools.partial(_sample, search, sampling), model, layout, boxed)

    def draw(
        params: PyTree, source: Array, source_mask: Array, row_mask: Array, rows: Array, key: Array, *, max_len: int
    ) -> Hypotheses:
        return spread(params, (source, source_mask, row_mask, rows), (key,), max_len)

    return _jit(draw, layout)


def _jit(function: Any, layout: Layout) -> Any:
    replicated = NamedSharding(layout.mesh, PartitionSpec())
    return jax.jit(function, static_argnames=("max_len",), out_shardings=replicated)


def _spread(
    run: Callable[..., Hypotheses], model: nn.Module, layout: Layout, boxed: PyTree
) -> Callable[[PyTree, tuple[Array, ...], tuple[Array, ...], int], Hypotheses]:
    """`f(params, arrays by rows, whole arrays, max_len)`: `run(model, params, *arrays, max_len=)` on a mesh."""
    if layout.step == "jit":
        return lambda params, rows, whole, max_len: run(model, params, *rows, *whole, max_len=max_len)
    split = VocabularySplit(layout.execution.vocabulary.axes)
    here = model.clone(execution=Execution(vocabulary=split))
    leaves = plan_leaves(boxed, layout, layers_here=True)
    specs = specs_at_rest(leaves)
    sizes = layout.mesh.shape

    def spread(params: PyTree, rows: tuple[Array, ...], whole: tuple[Array, ...], max_len: int) -> Hypotheses:
        shared = tuple(axis for axis in ("data", "fsdp") if sizes[axis] > 1)
        if rows[0].shape[0] % math.prod(sizes[axis] for axis in shared):
            shared = ()  # a few rows: every device does all of them

        def on_device(params: PyTree, rows: tuple[Array, ...], whole: tuple[Array, ...]) -> Hypotheses:
            found = run(here, take_parts(leaves, params, ()), *rows, *whole, max_len=max_len)
            return jax.tree.map(lambda x: _agree(x, shared), found)

        by_rows, given = PartitionSpec(shared), (params, rows, whole)
        in_specs = (specs, by_rows, PartitionSpec())
        return jax.shard_map(on_device, mesh=layout.mesh, in_specs=in_specs, out_specs=by_rows)(*given)

    return spread


def _agree(x: Array, rows: tuple[str, ...]) -> Array:
    """What all devices of a group have found alike, marked as such (the largest of equal values)."""
    axes = tuple(sorted(varying_axes(x) - set(rows)))
    if not axes:
        return x
    return jax.lax.pmax(x.astype(jnp.int32) if x.dtype == bool else x, axes).astype(x.dtype)


def _begin(
    model: nn.Module, search: Search, params: PyTree, source: Array, source_mask: Array, max_len: int
) -> tuple[Any, Any, dict[str, Any]]:
    """Encodes; the step function, the cache before its first step, and what every search is told."""
    variables, vocab_axes = {"params": params}, model.execution.vocabulary.axes
    memory = model.apply(variables, source, source_mask, train=False, method="encode")
    cache = model.apply(variables, memory, max_len, method="init_cache")
    step = seq2seq_step(model, params, memory, vocab_axes=vocab_axes, vocab_size=model.config.target_vocab)
    table = jnp.array([search.longest(length) for length in range(source.shape[1] + 1)], jnp.int32)
    lengths = table[source_mask.sum(axis=-1)]  # by the table: the same rounding as `longest`
    ids = {"bos_id": BOS_ID, "eos_id": EOS_ID, "pad_id": PAD_ID}
    return step, cache, {"max_lengths": lengths, "max_len": max_len, "vocab_axes": vocab_axes, **ids}


def _decode(
    search: Search,
    model: nn.Module,
    params: PyTree,
    source: Array,
    source_mask: Array,
    row_mask: Array,
    *,
    max_len: int,
) -> Hypotheses:
    """One batch on one program: encodes, then searches."""
    step, cache, common = _begin(model, search, params, source, source_mask, max_len)
    tokens = jnp.zeros_like(source, shape=source.shape[:1])
    attends = jax.eval_shape(step, tokens, tokens, cache).attention is not None
    common |= {"row_mask": row_mask, "return_attention": attends}
    if search.beam_size == 1:
        return greedy_search(step, cache, **common)
    return beam_search(
        step,
        cache,
        beam_size=search.beam_size,
        length_penalty=search.length_penalty,
        coverage_penalty=search.coverage_penalty if attends else 0.0,
        source_mask=source_mask,
        **common,
    )


def _sample(
    search: Search,
    sampling: Sampling,
    model: nn.Module,
    params: PyTree,
    source: Array,
    source_mask: Array,
    row_mask: Array,
    rows: Array,
    key: Array,
    *,
    max_len: int,
) -> Hypotheses:
    """One batch on one program: encodes, then samples."""
    step, cache, common = _begin(model, search, params, source, source_mask, max_len)
    return sample(
        step,
        cache,
        samples=sampling.samples,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        key=key,
        rows=rows,
        row_mask=row_mask,
        **common,
    )
