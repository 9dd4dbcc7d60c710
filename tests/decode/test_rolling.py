"""A batch that rolls finds what every row finds alone: whatever enters, leaves, is cut or grown beside it.

The model is a toy whose outputs follow from all tokens said before (read back from a cache that grows, as a
Transformer's) and from the row's source; the reference is NumPy, row by row.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from seq2seq_jax.decode import rolling
from seq2seq_jax.decode.loop import run_loop
from seq2seq_jax.decode.method import Rows
from seq2seq_jax.decode.rolling import Shape, Table, Tally, fit, put, read_clocks, roll, take, write_clocks
from seq2seq_jax.interfaces import Hypotheses, StepResult

VOCAB, EOS, BOS = 31, 3, 2


def longest(length: int) -> int:
    return 2 * length + 4


@functools.cache
def make_sources(count: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    generator = np.random.default_rng(seed)
    return tuple(generator.integers(4, VOCAB, generator.integers(1, 15)) for _ in range(count))


def search_alone(source: np.ndarray) -> list[int]:
    """What the toy below says for a source: the next token follows from the source's sum, all before, and the time."""
    said, total = [], 0
    while len(said) < longest(len(source)):
        token = BOS if not said else said[-1]
        total += (len(said) + 1) * token
        score = (total + int(source.sum()) + np.arange(VOCAB) * (len(said) + 3)) % 37
        score[:3] = -1
        said.append(int(score.argmax()))
        if said[-1] == EOS:
            break
    return said


@struct.dataclass
class ToyState:
    time: jax.Array  # [B]
    done: jax.Array  # [B]
    longest: jax.Array  # [B]
    cache: jax.Array  # [B, T], the tokens that went in
    trail: jax.Array  # [B, T], those that came out
    attention: jax.Array  # [B, T, S], the source at every step


@dataclasses.dataclass(frozen=True)
class Toy:
    """Takes the best token at every step; a `Method`."""

    def start(self, step_fn, cache, rows: Rows, *, max_len: int) -> ToyState:
        shape = (*rows.row_mask.shape, max_len)
        lengths = jnp.minimum(rows.max_lengths, max_len)
        return ToyState(
            time=jnp.zeros_like(lengths),
            done=~rows.row_mask | (lengths <= 0),
            longest=lengths,
            cache=cache,
            trail=jnp.zeros(shape, jnp.int32),
            attention=jnp.zeros((*shape, rows.source_mask.shape[1]), jnp.int32),
        )

    def advance(self, step_fn, state: ToyState) -> ToyState:
        rows, place = jnp.arange(len(state.time)), jnp.where(state.done, state.trail.shape[1], state.time)
        before = state.trail.at[rows, state.time - 1].get(mode="fill", fill_value=0)
        result = step_fn(jnp.where(state.time == 0, BOS, before), state.time, state.cache)
        token = jnp.argmax(result.log_probs, axis=-1)
        time = state.time + ~state.done
        return state.replace(
            time=time,
            done=state.done | (token == EOS) | (time >= state.longest),
            cache=result.cache,
            trail=state.trail.at[rows, place].set(token, mode="drop"),
            attention=state.attention.at[rows, place].set(result.attention, mode="drop"),
        )

    def collect(self, state: ToyState) -> Hypotheses:
        zeros = jnp.zeros_like(state.time[:, None])
        return Hypotheses(
            state.trail[:, None], state.time[:, None], zeros, zeros, state.done[:, None], state.attention[:, None]
        )


def make_step(source, grows: bool):
    """The toy's step; without a cache that grows it keeps the sum of what was said in one number."""

    def step(tokens, time, cache):
        rows = jnp.arange(len(tokens))
        if grows:
            cache = cache.at[rows, time].set(tokens, mode="drop")
            times = jnp.arange(cache.shape[1])
            total = jnp.sum(jnp.where(times <= time[:, None], (times + 1) * cache, 0), axis=1)
        else:
            cache = cache + ((time + 1) * tokens)[:, None]
            total = cache[:, 0]
        tokens = jnp.arange(VOCAB)
        scores = ((total + source.sum(axis=1))[:, None] + tokens * (time + 3)[:, None]) % 37
        return StepResult(jnp.where(tokens < 3, -1, scores), source, cache)

    return step


class ToyPrograms:
    """What `tasks.engine` compiles, for the toy; counts its programs and checks that none is made twice."""

    def __init__(self, sources, *, slots: int, grows: bool):
        rows = tuple(size for size in (1, 2, 4, 8) if size <= slots)
        self.table = Table(rows, (4, 8, 16), longest, grows)
        self.sources, self.method = sources, Toy()
        self.compiled: dict[tuple, int] = {}
        self.shapes: set[Shape] = set()

    def _run(self, key, function, *given, **static):
        make = jax.jit(_counted(self.compiled, key, function), static_argnames=tuple(static))
        if key not in self.compiled:
            self.compiled[key] = 0
            setattr(self, str(key), make)
        return getattr(self, str(key))(*given, **static)

    def _make(self, tokens, mask, *, shape: Shape):
        source = jnp.where(mask, tokens, 0)
        lengths = mask.sum(axis=1)
        rows = Rows(mask, lengths > 0, 2 * lengths + 4, jnp.zeros_like(lengths), jnp.zeros_like(lengths))

        def start(room):
            width = room if self.table.grows else 1
            cache = jnp.zeros((len(tokens), width), jnp.int32)
            return self.method.start(make_step(source, self.table.grows), cache, rows, max_len=room)

        return source, fit(start(longest(shape.source)), jax.eval_shape(lambda: start(shape.room)))

    def _born(self, shape: Shape):
        tokens = jax.ShapeDtypeStruct((shape.rows, shape.source), jnp.int32)
        mask = jax.ShapeDtypeStruct(tokens.shape, jnp.bool_)
        return jax.eval_shape(functools.partial(self._make, shape=shape), tokens, mask)

    def begin(self, rows, shape):
        tokens = np.zeros((len(rows), shape.source), np.int32)
        for place, row in enumerate(rows):
            if row >= 0:
                tokens[place, : len(self.sources[row])] = self.sources[row]
        return self._run(("begin", shape), functools.partial(self._make, shape=shape), tokens, tokens > 0)

    def advance(self, batch, steps, leave, shape):
        assert jax.tree.map(jnp.shape, batch) == jax.tree.map(lambda x: x.shape, self._born(shape))
        self.shapes.add(shape)

        def step(batch, steps, leave):
            source, state = batch
            go = functools.partial(self.method.advance, make_step(source, self.table.grows))
            state = run_loop(go, state, steps, leave=leave)
            return (source, state), write_clocks(state.time, state.done)

        return self._run(("advance", shape), step, batch, np.int32(steps), np.int32(leave))

    def enter(self, batch, wave, slots, rows, shapes):
        born = self._born(shapes[0])
        enter = lambda batch, wave, slots, rows: put(batch, slots, fit(take(wave, rows), born))  # noqa: E731
        return self._run(("enter", *shapes), enter, batch, wave, slots, rows)

    def resize(self, batch, rows, shape, wanted):
        born = self._born(wanted)
        return self._run(("resize", shape, wanted), lambda batch, rows: fit(take(batch, rows), born), batch, rows)

    def read(self, batch, rows, shape):
        return self._run(("read", shape), lambda s, rows: self.method.collect(take(s, rows)), batch[1], rows)


def _counted(counts, key, function):
    """The function, counting how often it is traced: once a compilation."""

    def traced(*given, **static):
        counts[key] += 1
        return function(*given, **static)

    return traced


def roll_all(sources, *, slots: int, grows: bool, **options):
    programs, tally = ToyPrograms(sources, slots=slots, grows=grows), Tally()
    found = list(roll(programs, [len(source) for source in sources], tally=tally, **options))
    assert sorted(row for row, _ in found) == list(range(len(sources)))  # each once
    return dict(found), programs, tally


def said(found: Hypotheses) -> list[int]:
    return found.tokens[0, : found.lengths[0]].tolist()


@pytest.mark.parametrize("grows", [False, True])
@pytest.mark.parametrize(("slots", "count"), [(1, 4), (2, 9), (8, 40)])
def test_every_row_finds_what_it_finds_alone(slots, count, grows):
    sources = make_sources(count)
    found, programs, tally = roll_all(sources, slots=slots, grows=grows)
    wanted = [search_alone(source) for source in sources]
    assert len({len(tokens) for tokens in wanted}) > 2 or count < 5
    assert [said(found[row]) for row in range(count)] == wanted
    for row, source in enumerate(sources):
        attention = found[row].attention[0, : len(wanted[row])]
        np.testing.assert_array_equal(attention[:, : len(source)], np.tile(source, (len(wanted[row]), 1)))
        assert not attention[:, len(source) :].any()
    assert tally.rows == count and tally.live_row_steps == sum(map(len, wanted))
    assert set(programs.compiled.values()) == {1} and len(programs.compiled) <= programs.table.count_programs()
    assert len(programs.shapes) <= programs.table.count_shapes()
    if slots == 8:
        assert {shape.rows for shape in programs.shapes} > {8} and len({shape.source for shape in programs.shapes}) > 1
        assert not grows or {16, 24} < {shape.room for shape in programs.shapes}


@pytest.mark.parametrize("options", [{"steps": 1}, {"share": 1}, {"share": 8, "steps": 3}])
def test_how_often_the_host_looks_changes_nothing(options):
    sources = make_sources(20)
    found, _, _ = roll_all(sources, slots=4, grows=True, **options)
    assert [said(found[row]) for row in range(20)] == [search_alone(source) for source in sources]


def test_the_order_of_the_input_changes_nothing():
    sources = make_sources(20)
    order = np.random.default_rng(3).permutation(20)
    found, _, _ = roll_all([sources[n] for n in order], slots=4, grows=False)
    assert [said(found[place]) for place in range(20)] == [search_alone(sources[n]) for n in order]


def test_rows_that_are_done_leave_and_the_batch_stays_full():
    """Forty rows in batches of eight, each batch waiting for its longest, would do more steps."""
    sources = make_sources(40)
    _, _, tally = roll_all(sources, slots=8, grows=False)
    steps = [len(search_alone(source)) for source in sorted(sources, key=len, reverse=True)]
    fixed = sum(8 * max(steps[begin : begin + 8]) for begin in range(0, 40, 8))
    assert tally.row_steps < 0.9 * fixed
    assert tally.live_share > sum(steps) / fixed + 0.1


def test_poll_is_called_before_each_segment_and_can_stop_the_work():
    calls = []

    def poll():
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        roll_all(make_sources(20), slots=4, grows=False, steps=2, poll=poll)
    assert len(calls) == 3


def test_no_rows_are_nothing():
    assert list(roll(ToyPrograms((), slots=4, grows=False), [])) == []


def test_clocks_travel_with_what_is_done():
    time, done = jnp.array([0, 5, 0, 7]), jnp.array([False, True, True, False])
    times, ends = read_clocks(np.asarray(write_clocks(time, done)))
    assert times.tolist() == [0, 5, 0, 7] and ends.tolist() == done.tolist()


def test_leaves_are_cut_and_filled_up_but_for_their_rows():
    tree = {"a": jnp.ones((2, 3, 4)), "b": jnp.ones((2,)), "keys": jax.random.split(jax.random.key(0), 2)}
    born = {"a": (7, 5, 2), "b": (7,), "keys": (7,)}
    born = {name: jax.ShapeDtypeStruct(shape, tree[name].dtype) for name, shape in born.items()}
    found = fit(tree, born)
    assert found["a"].shape == (2, 5, 2) and float(found["a"].sum()) == 12 and float(found["a"][:, 3:].sum()) == 0
    assert found["b"].shape == found["keys"].shape == (2,)
    new = jax.tree.map(lambda x: x[:1], found)
    kept = put(found, jnp.array([1]), new)
    assert jax.random.key_data(kept["keys"]).tolist() == [jax.random.key_data(new["keys"])[0].tolist()] * 2
    same = put(found, jnp.array([2]), new)  # beyond the rows
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(*map(_bits, (a, b))), same, found)


def _bits(x):
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def test_rooms_grow_by_halves_and_reach_the_longest_output():
    table = Table((8,), (8, 100), lambda length: 2 * length + 10, grows=True)
    assert table.rooms(100) == (16, 24, 32, 48, 64, 96, 128, 192, 210) and table.rooms(8) == (16, 24, 26)
    assert dataclasses.replace(table, grows=False).rooms(100) == (210,)
    assert (table.round_room(100, 33), table.round_room(8, 33), table.round_source(9)) == (48, 26, 100)
    assert rolling.LEAST_STEPS <= table.rooms(8)[0]
