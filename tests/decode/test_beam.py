"""Beam and greedy search against enumeration and a plain search over lists, in float64."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seq2seq_jax.decode.beam import beam_search
from seq2seq_jax.decode.greedy import greedy_search
from seq2seq_jax.decode.selection import select_largest
from seq2seq_jax.interfaces import StepResult

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

    def score(self, row: int, tokens: tuple[int, ...], alpha: float, beta: float) -> tuple[float, float]:
        """(score, log-probability) of an output, eos included where it has one."""
        prefixes = [self.node(tokens[:t]) for t in range(len(tokens))]
        log_prob = sum(self.log_probs[row, n, token] for n, token in zip(prefixes, tokens, strict=True))
        coverage = self.attention[row, prefixes].sum(0)[self.source_mask[row]]
        penalty = beta * np.log(np.clip(coverage, np.finfo(np.float32).tiny, 1)).sum()
        return log_prob / ((5 + len(tokens)) / 6) ** alpha + penalty, log_prob

    def ranked(self, row: int, outputs, alpha: float, beta: float) -> list[tuple[int, ...]]:
        """Those that ended before those that did not, best first."""
        return sorted(outputs, key=lambda y: (y[-1] != EOS, -self.score(row, y, alpha, beta)[0]))

    def enumerate(self, length: int) -> list[tuple[int, ...]]:
        """All outputs of at most `length` tokens: ended, or cut off there."""
        words = [v for v in range(self.vocab) if v not in (PAD, BOS, EOS)]
        ended = [y + (EOS,) for n in range(length) for y in itertools.product(words, repeat=n)]
        return ended + list(itertools.product(words, repeat=length))

    def search(self, row: int, beam: int, length: int, alpha: float, beta: float) -> list[tuple[int, ...]]:
        """The same beam search over Python lists, without stopping early."""
        words = [v for v in range(self.vocab) if v not in (PAD, BOS)]
        live, ended = [()], []
        for t in range(length):
            key = (lambda y: self.score(row, y, 0, 0)[0]) if t + 1 < length else (
                lambda y: self.score(row, y, alpha, beta)[0]
            )  # fmt: skip
            grown = sorted((y + (v,) for y in live for v in words), key=key, reverse=True)
            if t + 1 < length:
                ended += [y for y in grown[:beam] if y[-1] == EOS]
            else:
                for y in live:
                    own = sorted((y + (v,) for v in words), key=key, reverse=True)[:beam]
                    ended += [z for z in own if z[-1] == EOS]
            live = [y for y in grown if y[-1] != EOS][:beam]
        return (
            self.ranked(row, ended, alpha, beta)[:beam]
            + self.ranked(row, live, alpha, beta)[: max(0, beam - len(ended))]
        )


def run_beam(world: World, lengths=None, **options):
    """`beam_search` under jit, results as numpy."""
    lengths = jnp.full(world.batch, world.steps) if lengths is None else jnp.asarray(lengths)
    if options.get("coverage_penalty"):
        options.setdefault("source_mask", jnp.asarray(world.source_mask))
    search = jax.jit(lambda c, m: beam_search(world.step, c, max_lengths=m, max_len=world.steps, **IDS, **options))
    return jax.tree.map(np.asarray, search(world.cache(), lengths))


def outputs_of(hypotheses, row: int) -> list[tuple[int, ...]]:
    return [
        tuple(int(t) for t in tokens[:n])
        for tokens, n in zip(hypotheses.tokens[row], hypotheses.lengths[row], strict=True)
        if n > 0
    ]


def check_hypotheses(world: World, hypotheses, alpha: float, beta: float) -> None:
    """Sorted, distinct, padded, and with the scores that their tokens have."""
    for row in range(world.batch):
        outputs = outputs_of(hypotheses, row)
        count = len(outputs)
        assert len(set(outputs)) == count
        scores, finished = hypotheses.scores[row], hypotheses.finished[row]
        order = [(not f, -s) for s, f in zip(scores[:count], finished[:count], strict=True)]
        assert order == sorted(order)
        assert (scores[count:] == -np.inf).all() and (hypotheses.log_probs[row, count:] == -np.inf).all()
        assert (hypotheses.lengths[row, count:] == 0).all() and not finished[count:].any()
        assert [y[-1] == EOS for y in outputs] == finished[:count].tolist()
        past_end = np.arange(world.steps) >= hypotheses.lengths[row][:, None]
        assert (hypotheses.tokens[row][past_end] == PAD).all()
        expected = np.array([world.score(row, y, alpha, beta) for y in outputs]).reshape(-1, 2)
        np.testing.assert_allclose(scores[:count], expected[:, 0], rtol=2e-6, atol=2e-6)
        np.testing.assert_allclose(hypotheses.log_probs[row, :count], expected[:, 1], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
    ("vocab", "steps", "alpha", "beta"),
    [(5, 4, 0.0, 0.0), (7, 3, 1.0, 0.3), (10, 2, -0.8, 2.0)],
)
def test_a_wide_beam_without_early_stopping_equals_enumeration(vocab, steps, alpha, beta):
    world = World(vocab, batch=12, vocab=vocab, steps=steps)
    beam = vocab ** (steps - 1)
    lengths = [steps - (row % 3 == 2) for row in range(world.batch)]
    penalties = {"length_penalty": alpha, "coverage_penalty": beta}
    found = run_beam(world, lengths, beam_size=beam, early_stop=False, **penalties)
    check_hypotheses(world, found, alpha, beta)
    for row, length in enumerate(lengths):
        assert outputs_of(found, row) == world.ranked(row, world.enumerate(length), alpha, beta)[:beam]


@pytest.mark.parametrize(
    ("beam", "vocab", "steps", "alpha", "beta"),
    [(2, 5, 5, 0.6, 0.2), (4, 6, 4, -0.7, 0.0), (9, 6, 4, 1.0, 0.1)],
)
def test_beam_equals_search_over_lists_with_and_without_early_stopping(beam, vocab, steps, alpha, beta):
    world = World(beam, batch=12, vocab=vocab, steps=steps)
    lengths = [steps - (row % 3) for row in range(world.batch)]
    penalties = {"length_penalty": alpha, "coverage_penalty": beta}
    full = run_beam(world, lengths, beam_size=beam, early_stop=False, **penalties)
    check_hypotheses(world, full, alpha, beta)
    for row, length in enumerate(lengths):
        assert outputs_of(full, row) == world.search(row, beam, length, alpha, beta)
    early = run_beam(world, lengths, beam_size=beam, early_stop=True, **penalties)
    jax.tree.map(np.testing.assert_array_equal, early, full)


def test_early_stopping_stops():
    """Steps after the first return NaN: a search that went on would meet them."""

    def step(tokens, step, cache):
        probs = jnp.asarray([0.0, 0.04, 0.0, 0.9, 0.06])
        log_probs = jnp.where(step[:, None] > 1, jnp.nan, jnp.log(probs))
        return StepResult(log_probs=log_probs, attention=None, cache=cache)

    def search(early_stop):
        options = {"beam_size": 2, "max_lengths": jnp.array([9]), "max_len": 9, **IDS}
        return jax.jit(lambda: beam_search(step, (), early_stop=early_stop, **options))()

    early = search(True)
    assert early.tokens[0, :, :3].tolist() == [[EOS, PAD, PAD], [4, EOS, PAD]]
    np.testing.assert_allclose(early.scores[0], np.log([0.9, 0.06 * 0.9]), rtol=1e-6)
    assert not np.isfinite(search(False).scores).all()


@pytest.mark.parametrize(
    ("beam", "alpha", "eos_by_step", "best"),
    [
        # A long output, worse by log P, overtakes the short one by its length.
        (1, 1.0, [0.55, 0.0, 0.0, 0.0, 0.0, 1.0], [4, 4, 4, 4, 4, EOS]),
        # The next step wins where short outputs are preferred, though the longest would be far behind.
        (2, -1.0, [0.1, 0.2, 1.0] + [0.0] * 37, [4, 4, EOS]),
    ],
)
def test_early_stopping_waits_for_what_can_still_win(beam, alpha, eos_by_step, best):
    steps = len(eos_by_step)
    eos = jnp.asarray(eos_by_step)

    def step(tokens, step, cache):
        others = 1 - eos[step]
        probs = jnp.stack([0 * others, 0.05 * others, 0 * others, eos[step], 0.95 * others], axis=-1)
        return StepResult(log_probs=jnp.log(probs), attention=None, cache=cache)

    options = {"beam_size": beam, "max_lengths": jnp.array([steps]), "max_len": steps, "length_penalty": alpha, **IDS}
    found = jax.jit(lambda: beam_search(step, (), **options))()
    assert found.tokens[0, 0, : found.lengths[0, 0]].tolist() == best


def test_rows_do_not_depend_on_their_neighbours():
    world = World(7, batch=6, vocab=6, steps=5)
    lengths = np.array([5, 1, 3, 5, 4, 2])
    options = {"beam_size": 3, "length_penalty": 0.8, "coverage_penalty": 0.2, "max_len": 5, **IDS}
    mask = jnp.asarray(world.source_mask)
    search = jax.jit(lambda c, m, s, r: beam_search(world.step, c, max_lengths=m, source_mask=s, row_mask=r, **options))
    everyone = jnp.ones(6, bool)
    together = search(world.cache(), jnp.asarray(lengths), mask, everyone)

    order = np.array([3, 0, 5, 1, 4, 2])
    cache = jax.tree.map(lambda x: x[order], world.cache())
    permuted = search(cache, jnp.asarray(lengths[order]), mask[order], everyone)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[order]), permuted, together)

    kept = np.array([True, False, True, False, False, True])
    some = search(world.cache(), jnp.asarray(lengths), mask, jnp.asarray(kept))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[kept], b[kept]), some, together)
    assert (some.lengths[~kept] == 0).all() and (some.tokens[~kept] == PAD).all()
    assert (some.scores[~kept] == -np.inf).all() and not some.finished[~kept].any()


def test_each_row_keeps_to_its_own_maximum_length():
    world = World(3, batch=5, vocab=6, steps=4)
    found = run_beam(world, [0, 1, 2, 9, 3], beam_size=8)
    assert (found.lengths.max(axis=1) == [0, 1, 2, 4, 3]).all()
    assert outputs_of(found, 1) == world.ranked(1, world.enumerate(1), 0, 0)
    check_hypotheses(world, found, 0, 0)


def test_greedy_equals_a_beam_of_one_without_penalties():
    world = World(0, batch=60, vocab=5, steps=5)
    lengths = jnp.asarray([5 - row % 6 for row in range(60)])
    rows = jnp.arange(60) != 2
    options = {"max_lengths": lengths, "max_len": 5, "row_mask": rows, "return_attention": True, **IDS}
    greedy = jax.jit(lambda cache: greedy_search(world.step, cache, **options))(world.cache())
    beam = jax.jit(lambda cache: beam_search(world.step, cache, beam_size=1, **options))(world.cache())
    assert 10 < int(greedy.finished.sum()) < 50
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), greedy, beam)


def test_attention_is_that_of_each_hypothesis():
    world = World(11, batch=4, vocab=6, steps=4)
    found = run_beam(world, [4, 3, 4, 2], beam_size=3, return_attention=True)
    for row in range(4):
        for slot, output in enumerate(outputs_of(found, row)):
            expected = np.zeros((4, SOURCE))
            for t in range(len(output)):
                expected[t] = world.attention[row, world.node(output[:t])]
            np.testing.assert_allclose(found.attention[row, slot], expected, rtol=1e-6)


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
        ({"beam_size": 0}, "`beam_size` must be at least 1"),
        ({"max_len": 0}, "`max_len` must be at least 1"),
        ({"coverage_penalty": -0.1}, "must not be negative"),
        ({"coverage_penalty": 0.1}, "needs `source_mask`"),
        ({"coverage_penalty": 0.1, "source_mask": jnp.ones((1, 3), bool)}, "returns None"),
        ({"return_attention": True}, "returns None"),
        ({"eos_id": 9}, "`eos_id` must be a token of the step's vocabulary of 4"),
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


@pytest.mark.parametrize(("width", "count"), [(100, 5), (2048, 3), (5000, 6), (5000, 4000)])
def test_select_largest_equals_top_k_with_its_order_of_ties(width, count):
    x = np.random.default_rng(0).integers(0, 40, size=(2, 3, width)).astype(np.float32)
    x[0, 0] = -np.inf
    x[0, 0, 7::997] = 1.0
    values, index = select_largest(jnp.asarray(x), count)
    order = np.argsort(-x, axis=-1, kind="stable")[..., :count]
    finite = np.take_along_axis(x, order, -1) > -np.inf
    np.testing.assert_array_equal(values, np.take_along_axis(x, order, -1))
    np.testing.assert_array_equal(np.where(finite, index, -1), np.where(finite, order, -1))
