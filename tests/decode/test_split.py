"""Search over a vocabulary split across devices against the same search over the whole of it."""

from __future__ import annotations

import dataclasses
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from seq2seq_jax.decode.beam import beam_search
from seq2seq_jax.decode.ranking import Ranking
from seq2seq_jax.decode.sample import greedy_search
from seq2seq_jax.decode.steps import seq2seq_step
from seq2seq_jax.interfaces import Memory, StepOutput, StepResult

PAD, BOS, EOS = 0, 2, 3
IDS = {"bos_id": BOS, "eos_id": EOS, "pad_id": PAD}
ROWS, STEPS, SOURCE = 6, 24, 3
AXES = ("data", "fsdp", "tensor", "stage")


class Layout(NamedTuple):
    mesh: tuple[int, int, int, int]
    vocab_axes: tuple[str, ...]
    row_axes: tuple[str, ...] = ()

    @property
    def parts(self) -> int:
        return int(np.prod([self.mesh[AXES.index(axis)] for axis in self.vocab_axes]))

    def make_mesh(self) -> jax.sharding.Mesh:
        return jax.make_mesh(self.mesh, AXES, axis_types=(AxisType.Auto,) * 4)


EIGHT = Layout((1, 1, 8, 1), ("tensor",))
FOUR_BY_TWO = Layout((1, 1, 2, 4), ("stage", "tensor"))  # not in the order of the mesh
ROWS_TOO = Layout((2, 1, 1, 4), ("stage",), ("data",))
TWO = Layout((4, 1, 2, 1), ("tensor",))  # rows on every device


def make_tables(seed: int, vocab: int, *, levels: int | None = None) -> dict[str, np.ndarray]:
    """Random log-probabilities and attention for every state of a machine with 50 states.

    With `levels` there are only so many different logits, so that many tokens are equally probable.
    """
    rng = np.random.default_rng(seed)
    states = 50
    if levels is None:
        logits = 2 * rng.normal(size=(states, vocab))
    else:
        logits = rng.integers(0, levels, size=(states, vocab)).astype(float)
    logits[:, EOS] = rng.normal(size=states)
    attention = np.exp(rng.normal(size=(states, SOURCE)))
    return {
        "log_probs": (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float32),
        "attention": (attention / attention.sum(-1, keepdims=True)).astype(np.float32),
    }


def pad_vocab(x: np.ndarray, parts: int, fill: float) -> np.ndarray:
    """Columns up to a multiple of `parts`."""
    return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % parts)], constant_values=fill)


def make_step(log_probs, attention, *, vocab_axes=(), vocab=None, padding_id=None):
    """The machine as a step; the cache is its state."""

    def step_fn(tokens, step, cache):
        state = (7 * cache["state"] + 5 * tokens + step) % log_probs.shape[0]
        ids = None
        if vocab_axes:
            width = log_probs.shape[-1]
            ids = lax.axis_index(vocab_axes) * width + jnp.arange(width, dtype=jnp.int32)
            ids = ids if padding_id is None else jnp.where(ids < vocab, ids, padding_id)
        # A search that fed a token beyond the vocabulary would meet NaN.
        known = log_probs[state] if vocab is None else jnp.where((tokens < vocab)[:, None], log_probs[state], jnp.nan)
        cache = {"state": state, "constant": jnp.zeros(state.shape)}  # the same on all devices, whatever came in
        return StepResult(log_probs=known, attention=attention[state], cache=cache, token_ids=ids)

    return step_fn


def run_search(step, rows, max_lengths, options, vocab_axes=()):
    """A search from a state for each row; greedy if the options name no beam."""
    search = beam_search if "beam_size" in options else greedy_search
    options = options | IDS | {"max_lengths": max_lengths, "max_len": STEPS, "vocab_axes": vocab_axes}
    if "ranking" in options:
        options["source_mask"] = jnp.ones((rows.shape[0], SOURCE), bool)
    return search(step, {"state": rows, "constant": jnp.zeros(rows.shape)}, **options)


def make_split_search(layout: Layout, vocab: int, options, *, padding_id=None, change=lambda step: step):
    """The jitted search over parts, from what `place` returns."""

    def search(log_probs, attention, rows, max_lengths):
        step = make_step(log_probs, attention, vocab_axes=layout.vocab_axes, vocab=vocab, padding_id=padding_id)
        return run_search(change(step), rows, max_lengths, options, layout.vocab_axes)

    row = P(layout.row_axes or None)
    specs = (P(None, layout.vocab_axes), P(), row, row)
    return jax.jit(jax.shard_map(search, mesh=layout.make_mesh(), in_specs=specs, out_specs=row))


def make_whole_search(options, *, change=lambda step: step):
    """The same over the whole vocabulary, on one device."""

    def search(log_probs, attention, rows, max_lengths):
        return run_search(change(make_step(log_probs, attention)), rows, max_lengths, options)

    return jax.jit(search)


def place(tables, max_lengths=None, *, parts=1):
    """The arguments of a search, the vocabulary filled up to a multiple of `parts`."""
    lengths = np.full(ROWS, STEPS) if max_lengths is None else np.asarray(max_lengths)
    log_probs = pad_vocab(tables["log_probs"], parts, -np.inf)
    return log_probs, tables["attention"], np.arange(ROWS, dtype=np.int32), lengths.astype(np.int32)


def check_equal(split, whole):
    for name in ("tokens", "lengths", "finished"):
        np.testing.assert_array_equal(getattr(split, name), getattr(whole, name))
    for name in ("scores", "log_probs", "attention"):
        if getattr(whole, name) is not None:
            np.testing.assert_allclose(getattr(split, name), getattr(whole, name), rtol=1e-6, atol=1e-6)


GNMT = Ranking(length="gnmt", length_penalty=0.7, coverage_penalty=0.2)
BEAM = {"beam_size": 3, "ranking": GNMT, "return_attention": True}
GREEDY = {"return_attention": True}


@pytest.mark.parametrize(
    ("layout", "options", "padding_id"),
    [
        (EIGHT, BEAM, None),
        (FOUR_BY_TWO, BEAM, -1),
        (ROWS_TOO, BEAM, None),
        (EIGHT, GREEDY, -1),
        (FOUR_BY_TWO, GREEDY, None),
        (ROWS_TOO, GREEDY, None),
    ],
)
def test_the_split_search_finds_the_same_with_and_without_ties(layout, options, padding_id):
    split, whole = make_split_search(layout, 37, options, padding_id=padding_id), make_whole_search(options)
    for levels in (None, 2):
        tables = make_tables(1, 37, levels=levels)
        expected = whole(*place(tables))
        assert len({tuple(row) for row in expected.tokens[:, 0].tolist()}) > 1 and expected.lengths.max() > 2
        check_equal(split(*place(tables, parts=layout.parts)), expected)


def want_tokens(step):
    """The step with a token or two that have to be candidates, in any part, and banks that they lead to."""

    def wanting(tokens, clock, cache):
        state = cache["state"]
        wanted = jnp.stack([(11 * state + 4) % 37, jnp.where(state % 2 == 0, -1, 36)], axis=-1)
        wanted_met = jnp.stack([state % 3, state % 3], axis=-1)
        return dataclasses.replace(step(tokens, clock, cache), wanted=wanted, wanted_met=wanted_met, met=state % 2)

    return wanting


def test_tokens_are_looked_up_in_all_parts():
    """Those that have to be candidates, and the eos that is forced at the longest output."""
    rules = Ranking(length="average", length_penalty=1.0, prune=4.0, stop="first", unfinished="end", end_among=2)
    options = {"beam_size": 4, "ranking": rules}
    tables = make_tables(3, 37)
    tables["log_probs"][:, EOS] -= 6.0
    expected = make_whole_search(options, change=want_tokens)(*place(tables, [5, 9, 4, 6, 8, 7]))
    assert (expected.lengths[:, 0] > 2).any() and expected.finished[:, 0].all()
    split = make_split_search(FOUR_BY_TWO, 37, options, change=want_tokens)
    check_equal(split(*place(tables, [5, 9, 4, 6, 8, 7], parts=FOUR_BY_TWO.parts)), expected)
    plain = make_whole_search(options)(*place(tables, [5, 9, 4, 6, 8, 7]))
    assert (plain.tokens != expected.tokens).any()


def test_candidates_are_sent_and_no_part_of_the_vocabulary():
    layout, beam = FOUR_BY_TWO, 3
    search = make_split_search(layout, 1000, {"beam_size": beam})
    text = search.lower(*place(make_tables(1, 1000), parts=layout.parts)).compile().as_text()
    results = re.findall(r"= (\S+) all-gather", text)
    sent = {
        tuple(int(n) for n in dims.split(",")) for result in results for dims in re.findall(r"\[([\d,]+)\]", result)
    }
    # A value and a token for each of the K + 1 best of each beam from each part, and that is all.
    assert sent == {(2, ROWS, beam, layout.parts * (beam + 1))}
    collectives = re.findall(r" (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)", text)
    assert set(collectives) == {"all-gather"}


@pytest.mark.parametrize("options", [{"beam_size": 3}, {}], ids=["beam", "greedy"])
def test_groups_of_devices_loop_as_often_as_their_own_rows_need(options):
    tables = make_tables(5, 37)
    tables["log_probs"][:, EOS] = -20.0  # hardly any output ends by itself
    split, whole = make_split_search(ROWS_TOO, 37, options), make_whole_search(options)
    for lengths in ([1, 1, 1, STEPS, STEPS, STEPS], [STEPS, 2, 2, 0, 0, 0]):
        found = split(*place(tables, lengths, parts=ROWS_TOO.parts))
        assert found.lengths[:, 0].tolist() == lengths
        check_equal(found, whole(*place(tables, lengths)))


@pytest.mark.parametrize(
    ("beam", "vocab", "levels"),
    [
        (12, 6, None),  # wider than a part and than the vocabulary; two parts hold nothing but padding
        (3, 4999, 5),  # parts so wide that they are searched in blocks
    ],
)
def test_beams_and_vocabularies_of_unlike_widths(beam, vocab, levels):
    tables, options = make_tables(beam, vocab, levels=levels), {"beam_size": beam}
    layout = EIGHT if vocab < 8 * 128 else TWO
    split = make_split_search(layout, vocab, options)
    check_equal(split(*place(tables, parts=layout.parts)), make_whole_search(options)(*place(tables)))


class Tiny(nn.Module):
    """A recurrent decoder; its output layer has as many columns as its parameters say."""

    columns: int

    def setup(self):
        self.embedding = nn.Embed(37, 8, embedding_init=nn.initializers.normal(1.0))
        self.output = nn.Dense(self.columns, kernel_init=nn.initializers.normal(1.0))

    def decode_step(self, token, step, memory, cache):
        hidden = jnp.tanh(cache + self.embedding(token) + memory.hidden[:, 0] + 0.1 * step[:, None])
        return StepOutput(hidden=hidden, attention=None, cache=hidden)

    def project(self, hidden):
        return self.output(hidden)

    def __call__(self, token, memory):
        return self.project(self.decode_step(token, token, memory, memory.hidden[:, 0]).hidden)


@pytest.mark.parametrize(
    "options", [{"beam_size": 4, "ranking": Ranking(length="gnmt", length_penalty=0.6)}, {}], ids=["beam", "greedy"]
)
def test_a_model_whose_projection_is_split_and_whose_rows_lie_everywhere(options):
    """Rows are split over all axes; each group gathers its rows, searches them, and keeps its own."""
    layout = Layout((2, 1, 2, 2), ("stage", "tensor"))
    keys = jax.random.split(jax.random.key(0), 2)
    hidden = jax.random.normal(keys[0], (8, 1, 8))
    memory = Memory(hidden=hidden, mask=jnp.ones((8, 1), bool))
    params = jax.jit(Tiny(37).init)(keys[1], jnp.zeros(8, jnp.int32), memory)["params"]
    params["output"]["bias"] = params["output"]["bias"].at[EOS].set(1.0)  # ends some rows at once
    common = {"max_len": STEPS, **IDS, **options}
    run = beam_search if options else greedy_search

    @jax.jit
    def whole(params, memory):
        step = seq2seq_step(Tiny(37), params, memory)
        return run(step, jnp.zeros((8, 8)), max_lengths=jnp.full(8, STEPS), **common)

    def search(params, memory):
        axes = layout.vocab_axes
        memory = jax.tree.map(lambda x: lax.all_gather(x, axes, tiled=True), memory)
        step = seq2seq_step(Tiny(10), params, memory, vocab_axes=axes, vocab_size=37)
        rows = memory.hidden.shape[0]
        found = run(step, jnp.zeros((rows, 8)), max_lengths=jnp.full(rows, STEPS), vocab_axes=axes, **common)
        own = rows // layout.parts
        return jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, lax.axis_index(axes) * own, own), found)

    # What fills the projection must not matter: these columns would win every step.
    padded = params | {"output": jax.tree.map(lambda x: pad_vocab(np.asarray(x), layout.parts, 50.0), params["output"])}
    specs = {
        "embedding": {"embedding": P()},
        "output": {"kernel": P(None, layout.vocab_axes), "bias": P(layout.vocab_axes)},
    }
    rows = P(("data", *layout.vocab_axes))
    split = jax.jit(jax.shard_map(search, mesh=layout.make_mesh(), in_specs=(specs, rows), out_specs=rows))
    expected = whole(params, memory)
    assert len(set(expected.lengths[:, 0].tolist())) > 1
    check_equal(split(padded, memory), expected)


def test_a_vocabulary_that_is_split_for_one_side_only_is_refused():
    tables = make_tables(0, 16)
    step = make_step(jnp.asarray(tables["log_probs"]), jnp.asarray(tables["attention"]))
    for options in ({"beam_size": 2}, {}):
        with pytest.raises(ValueError, match="need a step over a split vocabulary"):
            run_search(step, jnp.arange(2), jnp.array([3, 3]), options, ("tensor",))
