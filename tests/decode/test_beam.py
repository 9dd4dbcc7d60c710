"""Beam search against enumeration and a plain search over lists, in float64."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seq2seq_jax.decode.beam import Beam, beam_search
from seq2seq_jax.decode.loop import run_loop
from seq2seq_jax.decode.method import Rows, make_rows
from seq2seq_jax.decode.ranking import Ranking
from seq2seq_jax.decode.sample import greedy_search
from seq2seq_jax.interfaces import StepResult
from seq2seq_jax.layers.dot_attention import attend_cache, write_cache

PAD, BOS, EOS = 0, 2, 3
SOURCE = 3
IDS = {"bos_id": BOS, "eos_id": EOS, "pad_id": PAD}


class World:
    """Random log-probabilities and attention for every prefix of every row: nothing is shared."""

    def __init__(self, seed: int, *, batch: int, vocab: int, steps: int, sharpness: float = 1.5):
        rng = np.random.default_rng(seed)
        self.vocab, self.steps, self.batch = vocab, steps, batch
        nodes = sum((vocab + 1) ** t for t in range(steps))
        logits = sharpness * rng.normal(size=(batch, nodes, vocab))
        self.log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        attention = np.exp(2 * rng.normal(size=(batch, nodes, SOURCE)))
        self.source_mask = np.arange(SOURCE) < rng.integers(1, SOURCE + 1, size=(batch, 1))
        attention *= self.source_mask[:, None]
        self.attention = attention / attention.sum(-1, keepdims=True)

    def node(self, prefix: tuple[int, ...]) -> int:
        index = 0
        for token in prefix:
            index = index * (self.vocab + 1) + token + 1
        return index

    def cache(self) -> dict[str, jax.Array]:
        return {
            "row": jnp.arange(self.batch),
            "node": jnp.zeros(self.batch, jnp.int32),
            "history": jnp.zeros((self.batch, self.steps, 1), jnp.int32),  # more axes, to be reordered too
        }

    def rows(self, lengths=None, shortest=None) -> Rows:
        """What a search is told of them; without lengths they may be as long as there is room."""
        return Rows(
            source_mask=jnp.asarray(self.source_mask),
            row_mask=jnp.ones(self.batch, bool),
            max_lengths=jnp.full(self.batch, self.steps) if lengths is None else jnp.asarray(lengths, jnp.int32),
            min_lengths=jnp.zeros(self.batch, jnp.int32) if shortest is None else jnp.asarray(shortest, jnp.int32),
            numbers=jnp.arange(self.batch),
        )

    def step(self, tokens, step, cache):
        log_probs = jnp.asarray(self.log_probs, jnp.float32)
        attention = jnp.asarray(self.attention, jnp.float32)
        node = jnp.where(step == 0, 0, cache["node"] * (self.vocab + 1) + tokens + 1)
        # The node is kept a second time as digits: a search that reorders only small leaves would be found out.
        history = cache["history"].at[jnp.arange(tokens.shape[0]), step, 0].set(jnp.where(step == 0, 0, tokens + 1))
        powers = (self.vocab + 1) ** jnp.maximum(step[:, None] - jnp.arange(self.steps), 0)
        seen = jnp.sum(jnp.where(jnp.arange(self.steps) <= step[:, None], history[..., 0] * powers, 0), axis=-1)
        node = jnp.where(seen == node, node, -1)
        rows = cache["row"]
        return StepResult(
            log_probs=jnp.where((node >= 0)[:, None], log_probs[rows, node], jnp.nan),
            attention=attention[rows, node],
            cache={"row": rows, "node": node, "history": history},
        )

    def score(self, row: int, tokens: tuple[int, ...], rules: Ranking) -> tuple[float, float]:
        """(score, log-probability) of an output, eos included where it has one."""
        prefixes = [self.node(tokens[:t]) for t in range(len(tokens))]
        log_prob = sum(self.log_probs[row, n, token] for n, token in zip(prefixes, tokens, strict=True))
        coverage = self.attention[row, prefixes].sum(0)[self.source_mask[row]]
        penalty = np.log(np.clip(coverage, np.finfo(np.float32).tiny, 1)).sum()
        base = {"none": 1.0, "bonus": 1.0, "gnmt": (5 + len(tokens)) / 6, "average": len(tokens)}[rules.length]
        score = log_prob / base**rules.length_penalty + rules.word_bonus * len(tokens)
        return score + rules.coverage_penalty * penalty, log_prob

    def ranked(self, row: int, outputs, rules: Ranking) -> list[tuple[int, ...]]:
        """Best first; those that did not end behind the others, if the rules say so."""
        behind = rules.unfinished == "last"
        return sorted(outputs, key=lambda y: (behind and y[-1] != EOS, -self.score(row, y, rules)[0]))

    def enumerate(self, length: int, shortest: int, rules: Ranking) -> list[tuple[int, ...]]:
        """All outputs of `shortest` to `length` tokens: ended, or cut off there."""
        words = [v for v in range(self.vocab) if v not in (PAD, BOS, EOS)]
        lengths = range(max(shortest, 1) - 1, length)
        ended = [y + (EOS,) for n in lengths for y in itertools.product(words, repeat=n)]
        return ended if rules.unfinished == "end" else ended + list(itertools.product(words, repeat=length))

    def search(self, row: int, beam: int, length: int, rules: Ranking) -> list[tuple[int, ...]]:
        """The same beam search over Python lists, without stopping early."""
        words = [v for v in range(self.vocab) if v not in (PAD, BOS)]
        live, ended = [()], []
        for t in range(length):
            last = t + 1 == length
            key = functools.partial(self._preference, row, rules if last else Ranking())
            grown = sorted((y + (v,) for y in live for v in words), key=key, reverse=True)
            if last:
                for y in live:
                    own = sorted((y + (v,) for v in words), key=key, reverse=True)[: beam * rules.end_among]
                    ended += [z for z in own if z[-1] == EOS]
            else:
                ended += [y for y in grown[: beam * rules.end_among] if y[-1] == EOS]
            live = [y for y in grown if y[-1] != EOS][:beam]
        if rules.unfinished == "last":
            ended = self.ranked(row, ended, rules)[:beam]
        return self.ranked(row, ended + live, rules)[:beam]

    def _preference(self, row: int, rules: Ranking, tokens: tuple[int, ...]) -> float:
        return self.score(row, tokens, rules)[0]


@functools.lru_cache(maxsize=1)
def make_world(*args, **options) -> World:
    return World(*args, **options)


def search(world: World, method: Beam, rows: Rows, cache=None):
    """A whole search under jit, results as numpy."""

    @jax.jit
    def run(cache, rows):
        state = method.start(world.step, cache, rows, max_len=world.steps)
        return method.collect(run_loop(lambda now: method.advance(world.step, now), state, world.steps))

    return jax.tree.map(np.asarray, run(world.cache() if cache is None else cache, rows))


def outputs_of(hypotheses, row: int) -> list[tuple[int, ...]]:
    return [
        tuple(int(t) for t in tokens[:n])
        for tokens, n in zip(hypotheses.tokens[row], hypotheses.lengths[row], strict=True)
        if n > 0
    ]


def check_hypotheses(world: World, hypotheses, rules: Ranking) -> None:
    """Sorted, distinct, padded, and with the scores that their tokens have."""
    behind = rules.unfinished == "last"
    for row in range(world.batch):
        outputs = outputs_of(hypotheses, row)
        count = len(outputs)
        assert len(set(outputs)) == count
        scores, finished = hypotheses.scores[row], hypotheses.finished[row]
        order = [(behind and not f, -s) for s, f in zip(scores[:count], finished[:count], strict=True)]
        assert order == sorted(order)
        assert (scores[count:] == -np.inf).all() and (hypotheses.log_probs[row, count:] == -np.inf).all()
        assert (hypotheses.lengths[row, count:] == 0).all() and not finished[count:].any()
        assert [y[-1] == EOS for y in outputs] == finished[:count].tolist()
        past_end = np.arange(world.steps) >= hypotheses.lengths[row][:, None]
        assert (hypotheses.tokens[row][past_end] == PAD).all()
        expected = np.array([world.score(row, y, rules) for y in outputs]).reshape(-1, 2)
        np.testing.assert_allclose(scores[:count], expected[:, 0], rtol=2e-6, atol=2e-6)
        np.testing.assert_allclose(hypotheses.log_probs[row, :count], expected[:, 1], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
    ("vocab", "steps", "rules"),
    [
        (5, 4, Ranking()),
        (7, 3, Ranking(length="gnmt", length_penalty=1.0, coverage_penalty=0.3, unfinished="compete")),
        (10, 2, Ranking(length="gnmt", length_penalty=-0.8, coverage_penalty=2.0)),
        (6, 3, Ranking(length="average", length_penalty=1.0, unfinished="end")),
        (5, 3, Ranking(length="bonus", word_bonus=1.5, coverage_penalty=0.1)),
    ],
    ids=lambda value: value.length if isinstance(value, Ranking) else str(value),
)
def test_a_wide_beam_without_early_stopping_equals_enumeration(vocab, steps, rules):
    world = make_world(vocab, batch=12, vocab=vocab, steps=steps)
    beam = vocab ** (steps - 1)
    lengths = [steps - (row % 3 == 2) for row in range(world.batch)]
    shortest = [row % 4 if row % 4 <= lengths[row] else 9 for row in range(world.batch)]
    rules = dataclasses.replace(rules, stop="never")
    found = search(world, Beam(size=beam, ranking=rules, **IDS), world.rows(lengths, shortest))
    check_hypotheses(world, found, rules)
    for row, length in enumerate(lengths):
        everything = world.enumerate(length, min(shortest[row], length), rules)
        assert outputs_of(found, row) == world.ranked(row, everything, rules)[:beam]


GNMT = Ranking(length="gnmt", length_penalty=0.6, coverage_penalty=0.2)


@pytest.mark.parametrize(
    ("beam", "vocab", "steps", "rules"),
    [
        (2, 5, 5, GNMT),
        (4, 6, 4, Ranking(length="gnmt", length_penalty=-0.7, unfinished="compete")),
        (9, 6, 4, Ranking(length="average", length_penalty=1.0, coverage_penalty=0.1, end_among=2)),
    ],
    ids=lambda value: value.length if isinstance(value, Ranking) else str(value),
)
def test_beam_equals_search_over_lists_with_and_without_early_stopping(beam, vocab, steps, rules):
    world = make_world(beam, batch=12, vocab=vocab, steps=steps)
    lengths = [steps - (row % 3) for row in range(world.batch)]
    full = search(world, Beam(size=beam, ranking=dataclasses.replace(rules, stop="never"), **IDS), world.rows(lengths))
    check_hypotheses(world, full, rules)
    for row, length in enumerate(lengths):
        assert outputs_of(full, row) == world.search(row, beam, length, rules)
    early = search(world, Beam(size=beam, ranking=rules, **IDS), world.rows(lengths))
    jax.tree.map(np.testing.assert_array_equal, early, full)


@pytest.mark.parametrize(
    ("options", "rules"),
    [
        ({"size": 2}, Ranking(length="gnmt", length_penalty=0.6, word_bonus=0.05, coverage_penalty=0.1)),
        ({"size": 4}, Ranking(length="average", length_penalty=-0.5, unfinished="compete", prune=2.0)),
        ({"size": 4, "groups": 2, "diversity": 0.7}, Ranking(length="bonus", word_bonus=-0.3, unfinished="end")),
    ],
    ids=["gnmt", "average", "bonus"],
)
def test_exact_stopping_changes_nothing_in_many_worlds(options, rules):
    """Three hundred rows of random lengths, half of whose outputs end early."""
    world = make_world(1, batch=300, vocab=6, steps=5, sharpness=2.5)
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, world.steps + 1, world.batch)
    rows = world.rows(lengths, rng.integers(0, 3, world.batch))

    def run(stop):
        method = Beam(ranking=dataclasses.replace(rules, stop=stop), **IDS, **options)

        @jax.jit
        def states(cache):
            state = method.start(world.step, cache, rows, max_len=world.steps)
            state = run_loop(lambda now: method.advance(world.step, now), state, world.steps)
            return state.time, method.collect(state)

        return states(world.cache())

    (steps, exact), (all_steps, never) = run("exact"), run("never")
    jax.tree.map(np.testing.assert_array_equal, exact, never)
    assert steps.sum() < 0.95 * all_steps.sum()  # it did stop


def run_steps(step, *, lengths, **options):
    """A search over a step without a cache."""
    options = {"beam_size": 2, "max_lengths": jnp.asarray(lengths), "max_len": max(lengths), **IDS} | options
    return jax.jit(lambda: beam_search(step, (), **options))()


def test_early_stopping_stops():
    """Steps after the first return NaN: a search that went on would meet them."""

    def step(tokens, step, cache):
        probs = jnp.asarray([0.0, 0.04, 0.0, 0.9, 0.06])
        log_probs = jnp.where(step[:, None] > 1, jnp.nan, jnp.log(probs))
        return StepResult(log_probs=log_probs, attention=None, cache=cache)

    early = run_steps(step, lengths=[9])
    assert early.tokens[0, :, :3].tolist() == [[EOS, PAD, PAD], [4, EOS, PAD]]
    np.testing.assert_allclose(early.scores[0], np.log([0.9, 0.06 * 0.9]), rtol=1e-6)
    assert not np.isfinite(run_steps(step, lengths=[9], ranking=Ranking(stop="never")).scores).all()


@pytest.mark.parametrize(
    ("beam", "rules", "eos_by_step", "best"),
    [
        # A long output, worse by log P, overtakes the short one by its length.
        (1, Ranking(length="gnmt", length_penalty=1.0), [0.55, 0.0, 0.0, 0.0, 0.0, 1.0], [4, 4, 4, 4, 4, EOS]),
        # The same by a bonus for every word: log .55 + .2 = -.4 against log .45 + 5 log .95 + 6 * .2 = .1.
        (1, Ranking(length="bonus", word_bonus=0.2), [0.55, 0.0, 0.0, 0.0, 0.0, 1.0], [4, 4, 4, 4, 4, EOS]),
        # The next step wins where short outputs are preferred, though the longest would be far behind.
        (2, Ranking(length="gnmt", length_penalty=-1.0), [0.1, 0.2, 1.0] + [0.0] * 37, [4, 4, EOS]),
    ],
)
def test_early_stopping_waits_for_what_can_still_win(beam, rules, eos_by_step, best):
    eos = jnp.asarray(eos_by_step)

    def step(tokens, step, cache):
        others = 1 - eos[step]
        probs = jnp.stack([0 * others, 0.05 * others, 0 * others, eos[step], 0.95 * others], axis=-1)
        return StepResult(log_probs=jnp.log(probs), attention=None, cache=cache)

    found = run_steps(step, lengths=[len(eos_by_step)], beam_size=beam, ranking=rules)
    assert found.tokens[0, 0, : found.lengths[0, 0]].tolist() == best


def test_rows_do_not_depend_on_their_neighbours():
    world = make_world(7, batch=6, vocab=6, steps=5)
    lengths = np.array([5, 1, 3, 5, 4, 2])
    method = Beam(size=3, ranking=GNMT, **IDS)
    rows = world.rows(lengths)

    @jax.jit
    def run(cache, rows):
        state = method.start(world.step, cache, rows, max_len=5)
        return method.collect(run_loop(lambda now: method.advance(world.step, now), state, 5))

    together = run(world.cache(), rows)
    order = np.array([3, 0, 5, 1, 4, 2])
    permuted = run(*jax.tree.map(lambda x: x[order], (world.cache(), rows)))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[order]), permuted, together)

    kept = np.array([True, False, True, False, False, True])
    some = run(world.cache(), rows.replace(row_mask=jnp.asarray(kept)))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[kept], b[kept]), some, together)
    assert (some.lengths[~kept] == 0).all() and (some.tokens[~kept] == PAD).all()
    assert (some.scores[~kept] == -np.inf).all() and not some.finished[~kept].any()


def make_steps(world: World, method: Beam):
    """The parts of a search, jitted."""
    start = jax.jit(lambda cache, rows: method.start(world.step, cache, rows, max_len=world.steps))
    return start, jax.jit(lambda state: method.advance(world.step, state))


def test_rows_of_different_ages_search_as_they_would_alone():
    """Rows begin at three times, sit in other places then, and share a batch with rows that are done."""
    world = make_world(3, batch=12, vocab=6, steps=5)
    shortest = np.arange(12) % 3
    rows = world.rows(5 - np.arange(12) % 4, shortest)
    method = Beam(size=4, ranking=GNMT, groups=2, diversity=0.4, return_attention=True, **IDS)
    expected = search(world, method, rows)

    start, advance = make_steps(world, method)
    cache, rows = jax.tree.map(np.asarray, (world.cache(), rows))

    def begin(index):
        return start(*jax.tree.map(lambda x: x[np.asarray(index)], (cache, rows)))

    state = begin(range(6))
    for newcomers in (range(6, 9), range(9, 12), ()):
        for _ in range(2):
            state = advance(state)
        if newcomers:
            joined = jax.tree.map(lambda a, b: np.concatenate([a, b]), begin(newcomers), state)
            state = jax.tree.map(lambda x: x[::-1], joined)
    ages = np.asarray(state.time)
    assert len(set(ages.tolist())) > 2
    for _ in range(5):
        state = advance(state)
    found = jax.device_get(jax.jit(method.collect)(state))
    order = np.asarray(state.cache["row"])[:, 0]
    assert sorted(order.tolist()) == list(range(12))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[order]), found, expected)


def test_rows_that_are_done_stay_as_they_are():
    world = make_world(3, batch=12, vocab=6, steps=5)
    rows = world.rows(np.arange(12) % 6)
    method = Beam(size=2, ranking=GNMT, return_attention=True, **IDS)
    start, advance = make_steps(world, method)
    state, seen = start(world.cache(), rows), 0
    for _ in range(6):
        done, later = np.asarray(state.done), advance(state)
        seen += done.sum()
        before, after = ({**vars(s), "cache": None} for s in (state, later))
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[done], b[done]), before, after)  # noqa: B023
        state = later
    assert seen > 12 and np.asarray(state.done).all()


def test_a_loop_is_left_once_so_many_rows_are_done_or_after_so_many_steps():
    world = make_world(3, batch=12, vocab=6, steps=5)
    rows = world.rows([1, 2, 2, 3, 3, 3, 5, 5, 5, 5, 5, 0])
    method = Beam(size=2, ranking=Ranking(stop="never"), **IDS)
    start, _ = make_steps(world, method)
    state = start(world.cache(), rows)
    run = jax.jit(lambda s, n, leave: run_loop(lambda now: method.advance(world.step, now), s, n, leave=leave))
    for steps, leave, taken in [(5, 1, 1), (5, 2, 2), (5, 3, 2), (5, 4, 3), (2, 12, 2), (0, 1, 0), (9, 12, 5)]:
        assert int(jnp.max(run(state, steps, leave).time)) == taken, (steps, leave)


def test_each_row_keeps_to_its_own_maximum_and_minimum_length():
    world = make_world(3, batch=12, vocab=6, steps=5)
    lengths = [0, 1, 2, 9, 3, 5, 5, 5, 5, 5, 2, 4]
    shortest = [3, 0, 0, 0, 2, 4, 5, 9, 1, 2, 9, 4]
    found = search(world, Beam(size=8, ranking=Ranking(), **IDS), world.rows(lengths, shortest))
    assert (found.lengths.max(axis=1) == np.minimum(lengths, 5)).all()
    least = np.where(found.lengths > 0, found.lengths, 9).min(axis=1)
    assert (least >= np.minimum(shortest, np.minimum(lengths, 5))).all()
    assert outputs_of(found, 1) == world.ranked(1, world.enumerate(1, 0, Ranking()), Ranking())
    check_hypotheses(world, found, Ranking())


def test_greedy_equals_a_beam_of_one_without_penalties():
    world = make_world(0, batch=60, vocab=5, steps=5)
    lengths = jnp.asarray([5 - row % 6 for row in range(60)])
    rows = jnp.arange(60) != 2
    options = {"max_lengths": lengths, "max_len": 5, "row_mask": rows, "return_attention": True, **IDS}
    greedy = jax.jit(lambda cache: greedy_search(world.step, cache, **options))(world.cache())
    beam = jax.jit(lambda cache: beam_search(world.step, cache, beam_size=1, **options))(world.cache())
    assert 10 < int(greedy.finished.sum()) < 50
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), greedy, beam)


def test_attention_is_that_of_each_hypothesis():
    world = make_world(11, batch=4, vocab=6, steps=4)
    found = search(world, Beam(size=3, ranking=Ranking(), return_attention=True, **IDS), world.rows([4, 3, 4, 2]))
    for row in range(4):
        for slot, output in enumerate(outputs_of(found, row)):
            expected = np.zeros((4, SOURCE))
            for t in range(len(output)):
                expected[t] = world.attention[row, world.node(output[:t])]
            np.testing.assert_allclose(found.attention[row, slot], expected, rtol=1e-6)


def search_in_groups(world: World, row: int, size: int, groups: int, diversity: float) -> list[tuple[int, ...]]:
    """Diverse beam search over lists, by log P."""
    words = [v for v in range(world.vocab) if v not in (PAD, BOS)]
    live, ended = [[()] for _ in range(groups)], [[] for _ in range(groups)]

    def log_prob(y):
        return world.score(row, y, Ranking())[1]

    for t in range(world.steps):
        taken: list[int] = []
        for group in range(groups):
            grown = [y + (v,) for y in live[group] for v in words]
            grown.sort(key=lambda y: log_prob(y) - diversity * taken.count(y[-1]), reverse=True)  # noqa: B023
            if t + 1 < world.steps:
                ended[group] += [y for y in grown[:size] if y[-1] == EOS]
            else:
                for y in live[group]:
                    own = sorted((y + (v,) for v in words), key=log_prob, reverse=True)[:size]
                    ended[group] += [z for z in own if z[-1] == EOS]
            live[group] = [y for y in grown if y[-1] != EOS][:size]
            taken += [y[-1] for y in live[group]]
    best = [sorted(part, key=log_prob, reverse=True)[:size] for part in ended]
    finished = sorted(set(itertools.chain(*best)), key=log_prob, reverse=True)
    cut = sorted(set(itertools.chain(*live)), key=log_prob, reverse=True)
    return (finished + cut)[: size * groups]


@pytest.mark.parametrize(("size", "groups", "diversity"), [(4, 2, 0.9), (3, 3, 2.0)])
def test_diverse_beam_search_equals_the_same_over_lists(size, groups, diversity):
    world = make_world(5, batch=12, vocab=5, steps=4)
    method = Beam(size=size, ranking=Ranking(stop="never"), groups=groups, diversity=diversity, **IDS)
    found = search(world, method, world.rows())
    check_hypotheses(world, found, Ranking())
    for row in range(world.batch):
        assert outputs_of(found, row) == search_in_groups(world, row, size // groups, groups, diversity)


def test_groups_that_find_the_same_return_it_once():
    world = make_world(5, batch=12, vocab=5, steps=4)
    plain = search(world, Beam(size=2, ranking=GNMT, **IDS), world.rows())
    twice = search(world, Beam(size=4, ranking=GNMT, groups=2, **IDS), world.rows())
    check_hypotheses(world, twice, GNMT)
    for row in range(world.batch):
        assert outputs_of(twice, row)[:2] == outputs_of(plain, row)


def must_hold(world: World, token: int):
    """The world's step, eos only once `token` was said; with the banks that lead there."""

    def step(tokens, step, cache):
        met = cache["met"] | ((tokens == token) & (step > 0))
        result = world.step(tokens, step, cache["world"])
        closed = (jnp.arange(world.vocab) == EOS) & ~met[:, None]
        wanted = jnp.where(met, -1, token)
        return StepResult(
            log_probs=jnp.where(closed, -jnp.inf, result.log_probs),
            attention=result.attention,
            cache={"met": met, "world": result.cache},
            wanted=jnp.stack([wanted, wanted], axis=-1),  # twice: it may be no candidate twice
            wanted_met=jnp.ones((met.shape[0], 2), jnp.int32),
            met=met.astype(jnp.int32),
        )

    return step


@pytest.mark.parametrize(("beam", "vocab", "steps"), [(36, 6, 3), (2, 6, 5)])
def test_banks_lead_to_outputs_that_hold_what_they_must(beam, vocab, steps):
    """A wide beam equals enumeration; a narrow one still holds a token that is never among its best."""
    world = World(8, batch=8, vocab=vocab, steps=steps)
    world.log_probs[..., 5] -= 6.0  # no longer normalised, and of no beam's own choice
    options = {"beam_size": beam, "max_lengths": world.rows().max_lengths, "max_len": steps, **IDS}
    cache = {"met": jnp.zeros(8, bool), "world": world.cache()}
    found = jax.jit(lambda cache: beam_search(must_hold(world, 5), cache, **options))(cache)
    found = jax.tree.map(np.asarray, found)
    check_hypotheses(world, found, Ranking())
    for row in range(8):
        outputs = [y for y, ended in zip(outputs_of(found, row), found.finished[row], strict=False) if ended]
        assert outputs and all(5 in y for y in outputs)
        if beam == 36:
            permitted = [y for y in world.enumerate(steps, 0, Ranking(unfinished="end")) if 5 in y]
            assert outputs == world.ranked(row, permitted, Ranking())[: len(outputs)]
            assert len(outputs) == min(beam, len(permitted))


def constant_step(*probs, token_ids=None):
    """The same probabilities at every step; one list a row."""

    def step(tokens, step, cache):
        log_probs = jnp.log(jnp.asarray(probs, jnp.float32))
        return StepResult(log_probs=log_probs, attention=None, cache=cache, token_ids=token_ids)

    return step


@pytest.mark.parametrize("search", ["beam", "greedy"])
def test_pad_and_bos_are_never_predicted_and_impossible_rows_are_empty(search):
    step = constant_step([0.5, 0.0, 0.4, 0.0, 0.1], [0.6, 0.0, 0.4, 0.0, 0.0])
    options = {"max_lengths": jnp.array([3, 3]), "max_len": 3, **IDS}
    if search == "greedy":
        found = greedy_search(step, (), **options)
    else:
        found = beam_search(step, (), beam_size=1, **options)
    assert found.tokens.tolist() == [[[4, 4, 4]], [[PAD] * 3]]
    assert found.lengths.tolist() == [[3], [0]] and not found.finished.any()
    assert found.scores[1, 0] == found.log_probs[1, 0] == -np.inf
    np.testing.assert_allclose(found.scores[0, 0], 3 * np.log(0.1), rtol=1e-6)


def test_eos_may_double_as_bos_or_pad():
    options = {"max_lengths": jnp.array([3]), "max_len": 3, "bos_id": EOS, "eos_id": EOS, "pad_id": EOS}
    found = beam_search(constant_step([0.1, 0.1, 0.1, 0.7]), (), beam_size=1, **options)
    assert found.lengths.tolist() == [[1]] and found.finished.all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_size": 0}, "`size` must be at least 1"),
        ({"max_len": 0}, "`max_len` must be at least 1"),
        ({"groups": 3}, "`groups` must divide the beam's size of 2, but is 3"),
        ({"diversity": -1.0}, "`diversity` must not be negative"),
        ({"ranking": GNMT}, "needs `source_mask`"),
        ({"ranking": GNMT, "source_mask": jnp.ones((1, 3), bool)}, "returns None"),
        ({"return_attention": True}, "returns None"),
        ({"eos_id": 4}, "`eos_id` must be a token of the step's vocabulary of 4"),
        ({"eos_id": -1}, "`eos_id` must be a token of the step's vocabulary of 4"),
    ],
)
def test_contradictions_are_refused(options, message):
    arguments = {"beam_size": 2, "max_lengths": jnp.array([3]), "max_len": 3, **IDS} | options
    with pytest.raises(ValueError, match=message):
        beam_search(constant_step([0.1, 0.2, 0.3, 0.4]), (), **arguments)


def test_a_split_vocabulary_is_refused():
    step = constant_step([0.1, 0.2, 0.3, 0.4], token_ids=jnp.arange(4))
    options = {"max_lengths": jnp.array([3]), "max_len": 3, **IDS}
    with pytest.raises(ValueError, match="split vocabulary"):
        beam_search(step, (), beam_size=2, **options)
    with pytest.raises(ValueError, match="split vocabulary"):
        greedy_search(step, (), **options)


def test_a_step_passes_over_each_cache_once():
    """Putting the hypotheses' keys into their new order and writing this step's are one instruction."""
    rows, beams, heads, room, width, vocab = 2, 3, 2, 16, 8, 11

    def step(tokens, step, caches):
        x = jax.nn.one_hot(tokens, heads * width).reshape(-1, heads, width)
        caches = [write_cache(cache, x, step) for cache in caches]
        context = attend_cache(x, *caches, jnp.arange(room) <= step[:, None])
        return StepResult(jax.nn.log_softmax(context.reshape(x.shape[0], -1)[:, :vocab]), None, caches)

    beam = Beam(size=beams, ranking=Ranking(), **IDS)
    caches = [jnp.zeros((rows, heads, room, width))] * 2
    given = make_rows(jnp.full(rows, room, jnp.int32))
    state = jax.eval_shape(lambda: beam.start(step, caches, given, max_len=room))
    advance = jax.jit(functools.partial(beam.advance, step), donate_argnums=0)
    entry = advance.lower(state).compile().as_text().split("ENTRY")[1]
    made = re.findall(rf"= f32\[(?:{rows},{beams}|{beams},{rows}),{heads},{room},{width}\]\S* (\S+)\(", entry)
    assert [name for name in made if name not in ("parameter", "copy")] == ["fusion"] * 2
