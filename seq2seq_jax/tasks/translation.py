"""Translation: the loss of a batch, and sentences in, n-best lists out."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec

from seq2seq_jax.data.pipeline import length_batches
from seq2seq_jax.data.vocab import BOS_ID, EOS_ID, PAD_ID, Vocabs
from seq2seq_jax.decode.beam import beam_search
from seq2seq_jax.decode.greedy import greedy_search
from seq2seq_jax.decode.steps import seq2seq_step
from seq2seq_jax.interfaces import Array, Batch, Hypotheses, PyTree, Sums
from seq2seq_jax.parallel.layout import Execution, Layout
from seq2seq_jax.parallel.shard import plan_leaves
from seq2seq_jax.parallel.softmax import VocabularySplit, cross_entropy
from seq2seq_jax.parallel.spread import specs_at_rest, take_parts
from seq2seq_jax.parallel.varying import varying_axes


def make_loss(
    model: nn.Module, *, label_smoothing: float, chunk: int, train: bool = True
) -> Callable[[PyTree, Batch, Array | None], tuple[Array, Sums]]:
    """Builds `loss(params, batch, key) -> (objective, sums)`; see `Seq2Seq` for what `model` must offer.

    Args:
        model: a linen module that keeps the `Seq2Seq` protocol.
        label_smoothing: see `cross_entropy`.
        chunk: tokens whose logits exist at a time.
        train: False is the loss without dropout; `key` may then be None.
    """

    def loss(params: PyTree, batch: Batch, key: Array | None) -> tuple[Array, Sums]:
        # Two keys: each call of apply counts its draws from zero, and the two halves must not share masks.
        keys = jax.random.split(key) if train and key is not None else (None, None)
        variables = {"params": params}

        def run(method: str, rng: Array | None, *args: Any) -> Any:
            rngs = {} if rng is None else {"dropout": rng}
            return model.apply(variables, *args, train=train, method=method, rngs=rngs)

        memory = run("encode", keys[0], batch.source, batch.source_mask)
        hidden = run("decode", keys[1], batch.target_in, memory).hidden
        kernel, bias = model.apply(variables, method="softmax_weights")
        weights = batch.target_mask.astype(jnp.float32)
        sums = cross_entropy(
            hidden,
            kernel,
            bias,
            batch.target_out,
            weights,
            label_smoothing=label_smoothing,
            chunk=chunk,
            split=model.execution.vocabulary,
            vocab_size=model.config.target_vocab,
        )
        tokens = jnp.sum(weights)
        return sums.loss, {
            "loss": sums.loss,
            "nll": sums.nll,
            "correct": sums.correct,
            "weight": tokens,
            "target_tokens": tokens,
            "source_tokens": jnp.sum(batch.source_mask.astype(jnp.float32)),
            "rows": jnp.sum(batch.row_mask.astype(jnp.float32)),
        }

    return loss


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


Decode = Callable[..., Hypotheses]
"""`decode(params, source [B, S], source_mask [B, S], row_mask [B], *, max_len) -> Hypotheses`, jitted."""


def make_decode(model: nn.Module, search: Search, layout: Layout, boxed: PyTree) -> Decode:
    """Builds the search of a model on a mesh: rows over the devices that share batches, the vocabulary split.

    Args:
        model: a linen module that keeps the `Seq2Seq` protocol.
        search: how to search.
        layout: where the parameters live.
        boxed: the abstract parameters with the names of their axes.
    """
    replicated = NamedSharding(layout.mesh, PartitionSpec())
    jit = functools.partial(jax.jit, static_argnames=("max_len",), out_shardings=replicated)
    if layout.step == "jit":
        return jit(functools.partial(_decode, model, search))
    split = VocabularySplit(layout.execution.vocabulary.axes)
    local = functools.partial(_decode, model.clone(execution=Execution(vocabulary=split)), search)
    leaves = plan_leaves(boxed, layout, layers_here=True)
    specs = specs_at_rest(leaves)
    sizes = layout.mesh.shape

    def decode(params: PyTree, source: Array, source_mask: Array, row_mask: Array, *, max_len: int) -> Hypotheses:
        shared = tuple(axis for axis in ("data", "fsdp") if sizes[axis] > 1)
        if source.shape[0] % math.prod(sizes[axis] for axis in shared):
            shared = ()  # a few rows: every device does all of them

        def on_device(params: PyTree, *batch: Array) -> Hypotheses:
            found = local(take_parts(leaves, params, ()), *batch, max_len=max_len)
            return jax.tree.map(lambda x: _agree(x, shared), found)

        rows = PartitionSpec(shared)
        return jax.shard_map(on_device, mesh=layout.mesh, in_specs=(specs, rows, rows, rows), out_specs=rows)(
            params, source, source_mask, row_mask
        )

    return jit(decode)


def _agree(x: Array, rows: tuple[str, ...]) -> Array:
    """What all devices of a group have found alike, marked as such (the largest of equal values)."""
    axes = tuple(sorted(varying_axes(x) - set(rows)))
    if not axes:
        return x
    return jax.lax.pmax(x.astype(jnp.int32) if x.dtype == bool else x, axes).astype(x.dtype)


def _decode(
    model: nn.Module,
    search: Search,
    params: PyTree,
    source: Array,
    source_mask: Array,
    row_mask: Array,
    *,
    max_len: int,
) -> Hypotheses:
    """One batch on one program: encodes, then searches."""
    variables, vocab_axes = {"params": params}, model.execution.vocabulary.axes
    memory = model.apply(variables, source, source_mask, train=False, method="encode")
    cache = model.apply(variables, memory, max_len, method="init_cache")
    step = seq2seq_step(model, params, memory, vocab_axes=vocab_axes, vocab_size=model.config.target_vocab)
    tokens = jnp.zeros_like(source, shape=source.shape[:1])
    attends = jax.eval_shape(step, tokens, tokens, cache).attention is not None
    table = jnp.array([search.longest(length) for length in range(source.shape[1] + 1)], jnp.int32)
    lengths = table[source_mask.sum(axis=-1)]  # by the table: the same rounding as `max_len`
    ids = {"bos_id": BOS_ID, "eos_id": EOS_ID, "pad_id": PAD_ID}
    common: dict[str, Any] = {"max_lengths": lengths, "max_len": max_len, "row_mask": row_mask, **ids}
    common |= {"return_attention": attends, "vocab_axes": vocab_axes}
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


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One entry of an n-best list."""

    text: str
    tokens: list[int]
    score: float
    log_prob: float
    finished: bool


@dataclasses.dataclass(frozen=True)
class Translation:
    """What came of one sentence, best first. A blank sentence has no candidates."""

    source_pieces: list[str]
    candidates: list[Candidate]
    attention: np.ndarray | None  # [T, S] of the best candidate, where the model attends
    cut: bool  # the source was longer than allowed

    @property
    def text(self) -> str:
        """The best candidate's text; empty for a blank sentence."""
        return self.candidates[0].text if self.candidates else ""


class Translator:
    """Translates sentences with a model; holds the compiled searches, one a shape.

    Args:
        decode: the jitted search, see `make_decode`.
        vocabs: of both sides.
        search: how it searches.
        rows: sentences decoded at a time.
        max_source_len: tokens with eos; a longer source is cut there.
    """

    def __init__(self, decode: Decode, vocabs: Vocabs, search: Search, *, rows: int, max_source_len: int):
        self._decode, self.vocabs, self.search = decode, vocabs, search
        self.rows, self.max_source_len = rows, max_source_len

    def translate(
        self, params: PyTree, lines: Sequence[str], *, poll: Callable[[], None] = lambda: None
    ) -> list[Translation]:
        """Translates sentences, in their order; `poll` is called before each batch and may raise to stop."""
        eos = self.vocabs.source.eos_id
        encoded = self.vocabs.source.encode_many(list(lines))
        limit = self.max_source_len - 1
        sources = [np.append(ids[:limit], eos).astype(np.int32) for ids in encoded]
        done: list[Translation | None] = [
            None if line.strip() and len(ids) else Translation([], [], None, False)
            for line, ids in zip(lines, encoded, strict=True)
        ]
        waiting = [n for n, translation in enumerate(done) if translation is None]
        for ids, source_len in self._batches([len(sources[n]) for n in waiting]):
            poll()
            rows = [waiting[n] if n >= 0 else -1 for n in ids]
            found = self._decode_rows(params, [sources[n] if n >= 0 else None for n in rows], source_len)
            for row, n in enumerate(rows):
                if n >= 0:
                    done[n] = self._read(found, row, sources[n], cut=len(encoded[n]) > limit)
        return [translation for translation in done if translation is not None]

    def _batches(self, lengths: Sequence[int]) -> Iterator[tuple[np.ndarray, int]]:
        """Few sentences are decoded in few rows: an answer to one person must not wait for 63 empty rows."""
        rows = next((n for n in (1, 8) if len(lengths) <= n <= self.rows), self.rows)
        return iter(length_batches(lengths, rows=rows, max_len=self.max_source_len))

    def _decode_rows(self, params: PyTree, sources: Sequence[np.ndarray | None], source_len: int) -> Hypotheses:
        """Pads the rows (None only fills), searches, and brings the result to the host."""
        tokens = np.zeros((len(sources), source_len), np.int32)
        mask = np.zeros(tokens.shape, bool)
        for row, source in enumerate(sources):
            if source is not None:
                tokens[row, : len(source)] = source
                mask[row, : len(source)] = True
        row_mask = np.array([source is not None for source in sources])
        found = self._decode(params, tokens, mask, row_mask, max_len=self.search.longest(source_len))
        return jax.device_get(found)

    def _read(self, found: Hypotheses, row: int, source: np.ndarray, *, cut: bool) -> Translation:
        """One row of the search's arrays as text."""
        vocab, candidates = self.vocabs.target, []
        for n, length in enumerate(found.lengths[row].tolist()):
            if length > 0:
                tokens = found.tokens[row, n, :length].tolist()
                score, log_prob = float(found.scores[row, n]), float(found.log_probs[row, n])
                text = " ".join(vocab.decode(tokens).splitlines())  # bytes can spell a line end: one line stays one
                candidates.append(Candidate(text, tokens, score, log_prob, bool(found.finished[row, n])))
        attention = None
        if found.attention is not None and candidates:
            attention = np.asarray(found.attention[row, 0, : len(candidates[0].tokens), : len(source)])
        return Translation(self.vocabs.source.pieces(source), candidates, attention, cut)
