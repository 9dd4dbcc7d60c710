"""Samples have the distribution that the step function says, and nothing but their own row and number decides them.

Greedy search is a sample of temperature 0; that it equals a beam of one is in test_beam.py and here.
"""

from __future__ import annotations

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from scipy import stats

from seq2seq_jax.decode.beam import beam_search
from seq2seq_jax.decode.method import Rows
from seq2seq_jax.decode.sample import Draws, greedy_search, keep_nucleus, sample
from seq2seq_jax.interfaces import StepResult
from seq2seq_jax.parallel.draws import draw_tokens, keyed_uniform

PAD, UNK, BOS, EOS = range(4)
VOCAB, LENGTH = 6, 3
TABLE = jax.nn.log_softmax(2.0 * jax.random.normal(jax.random.key(1), (LENGTH, VOCAB, VOCAB)), axis=-1)


def step(tokens, time, cache):
    """Probabilities of the next token that depend on the time and the token before; the cache counts the steps."""
    return StepResult(log_probs=TABLE[time, tokens], attention=None, cache=cache + 1)


def draw(*, rows, samples=1, key=0, max_len=LENGTH, row_mask=None, shortest=0, **options):
    rows = jnp.asarray(rows, jnp.int32)
    options["min_lengths"] = jnp.full(rows.shape, shortest)
    found = jax.jit(
        functools.partial(
            sample, step, samples=samples, max_len=max_len, bos_id=BOS, eos_id=EOS, pad_id=PAD, row_mask=row_mask,
            **options,
        )
    )(jnp.zeros_like(rows), key=jax.random.key(key), rows=rows, max_lengths=jnp.full(rows.shape, LENGTH))  # fmt: skip
    return jax.device_get(found)


def find_nucleus(weights: np.ndarray, top_p: float) -> np.ndarray:
    """Which of some weights are the fewest with so much of the sum together, heaviest first; by sorting, in float64."""
    order = np.argsort(-weights.astype(np.float64), kind="stable")
    cumulated = np.cumsum(weights.astype(np.float64)[order])
    kept = np.zeros(weights.shape, bool)
    kept[order[: 1 + np.searchsorted(cumulated, top_p * cumulated[-1])]] = True
    return kept


def weigh(*, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, shortest: int = 0) -> dict:
    """The probability of every output, by going through all of them; float64."""
    table = np.asarray(TABLE, np.float64)
    table[:, :, [PAD, BOS]] = -np.inf
    table[: max(shortest - 1, 0), :, EOS] = -np.inf
    if top_k:
        table = np.where(table >= np.sort(table, axis=-1)[..., -top_k, None], table, -np.inf)
    table = np.exp(table / temperature)
    if top_p < 1:
        table *= np.apply_along_axis(find_nucleus, -1, table, top_p)
    table /= table.sum(axis=-1, keepdims=True)
    found = {}
    for length in range(1, LENGTH + 1):
        for output in itertools.product([UNK, EOS, 4, 5], repeat=length):
            if EOS not in output[:-1] and (output[-1] == EOS or length == LENGTH):
                before = (BOS, *output[:-1])
                found[output] = float(np.prod([table[t, before[t], output[t]] for t in range(length)]))
    return {output: p for output, p in found.items() if p > 0}


@pytest.mark.parametrize(
    ("options", "shortest"),
    [
        ({}, 0),
        ({"temperature": 0.6}, 0),
        ({"temperature": 1.5, "top_k": 3}, 0),
        ({"temperature": 1.3, "top_p": 0.8}, 2),
        ({"temperature": 2.0, "top_k": 3, "top_p": 0.9}, 0),
    ],
    ids=str,
)
def test_outputs_come_as_often_as_their_probability_says(options, shortest):
    wanted, count = weigh(**options, shortest=shortest), 8000
    assert sum(wanted.values()) == pytest.approx(1.0)
    found = draw(rows=range(count // 8), samples=8, shortest=shortest, **options)
    outputs = [
        tuple(tokens[:length].tolist())
        for tokens, length in zip(found.tokens.reshape(-1, LENGTH), found.lengths.reshape(-1), strict=True)
    ]
    assert set(outputs) <= set(wanted)
    often = [output for output, p in wanted.items() if p * count >= 5]
    rest = count - sum(outputs.count(output) for output in often)
    seen = [outputs.count(output) for output in often] + [rest]
    expected = [count * wanted[output] for output in often]
    expected.append(count - sum(expected))
    assert len(often) > 5 and stats.chisquare(np.add(seen, 1e-9), np.add(expected, 1e-9)).pvalue > 1e-3


def test_log_probs_are_the_model_s_own_whatever_the_temperature():
    found = draw(rows=range(20), samples=3, temperature=3.0)
    for tokens, length, log_prob, finished in zip(
        found.tokens.reshape(-1, LENGTH),
        found.lengths.reshape(-1),
        found.log_probs.reshape(-1),
        found.finished.reshape(-1),
        strict=True,
    ):
        before = [BOS, *tokens[: length - 1].tolist()]
        wanted = sum(float(TABLE[t, before[t], tokens[t]]) for t in range(length))
        assert log_prob == pytest.approx(wanted, rel=1e-5)
        assert finished == (tokens[length - 1] == EOS) and (tokens[length:] == PAD).all()
    assert {1, 2, 3} == set(found.lengths.reshape(-1).tolist())


def test_a_row_s_samples_do_not_depend_on_the_batch_around_it():
    together = draw(rows=[3, 7, 9, 1], samples=4)
    alone = draw(rows=[9], samples=4)
    wider = draw(rows=[9, 2], samples=6, max_len=LENGTH + 5)
    np.testing.assert_array_equal(together.tokens[2], alone.tokens[0])
    np.testing.assert_array_equal(wider.tokens[0, :4, :LENGTH], alone.tokens[0])
    assert len({tuple(tokens.tolist()) for tokens in wider.tokens[0]}) > 1  # samples are draws of their own


def test_rows_that_only_fill_come_back_empty():
    found = draw(rows=[0, 1], samples=2, row_mask=jnp.array([True, False]))
    assert (found.lengths[0] > 0).all() and (found.lengths[1] == 0).all()
    assert (found.tokens[1] == PAD).all() and (found.log_probs[1] == -np.inf).all()


@pytest.mark.parametrize(
    "options",
    [{"samples": 0}, {"temperature": -0.1}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}, {"max_len": 0}],
    ids=str,
)
def test_numbers_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="must be at least"):
        draw(rows=[0], **options)


def test_rows_without_keys_are_refused_where_something_is_drawn():
    three = jnp.full((3,), 3)
    rows = Rows(jnp.ones((3, 2), bool), three > 0, max_lengths=three, min_lengths=three, numbers=three)
    with pytest.raises(ValueError, match="give a key"):
        Draws(samples=2, bos_id=BOS, eos_id=EOS, pad_id=PAD).start(step, three, rows, max_len=4)


# --- greedy --------------------------------------------------------------------------------------


def test_greedy_takes_the_best_token_at_every_step_the_lowest_of_equal_ones():
    table = np.round(np.asarray(TABLE) * 2) / 2  # many ties
    table[0, BOS] = table[0, BOS, 4]

    def tied(tokens, time, cache):
        return StepResult(jnp.asarray(table)[time, tokens], attention=jnp.ones((len(tokens), 2)), cache=cache)

    ids = {"bos_id": BOS, "eos_id": EOS, "pad_id": PAD, "max_len": LENGTH}
    given = {"max_lengths": jnp.array([3, 2, 3, 3]), "row_mask": jnp.array([True, True, True, False])}
    shortest = jnp.array([0, 2, 3, 0])
    found = jax.jit(lambda: greedy_search(tied, (), min_lengths=shortest, return_attention=True, **given, **ids))()
    for row, (longest, least) in enumerate([(3, 0), (2, 2), (3, 3)]):
        tokens, total = [BOS], 0.0
        while len(tokens) <= longest and tokens[-1] != EOS:
            scores = table[len(tokens) - 1, tokens[-1]].copy()
            scores[[PAD, BOS] + ([EOS] if len(tokens) < least else [])] = -np.inf
            tokens.append(int(scores.argmax()))
            total += scores.max()
        length = len(tokens) - 1
        assert found.tokens[row, 0].tolist() == tokens[1:] + [PAD] * (LENGTH - length)
        assert found.lengths[row, 0] == length and found.finished[row, 0] == (tokens[-1] == EOS)
        assert found.scores[row, 0] == pytest.approx(total, rel=1e-5)
        assert found.attention[row, 0].sum(axis=-1).tolist() == [2.0] * length + [0.0] * (LENGTH - length)
    assert found.lengths[3, 0] == 0 and found.scores[3, 0] == -np.inf
    assert found.tokens[0, 0, 0] == 1  # five tokens are equally good at the first step


def test_greedy_equals_a_beam_of_one_and_the_nucleus_of_one_token():
    ids = {"bos_id": BOS, "eos_id": EOS, "pad_id": PAD, "max_len": 12}
    for seed in range(5):
        table = jax.nn.log_softmax(2.0 * jax.random.normal(jax.random.key(seed), (12, 40, 40)), axis=-1)

        def random_step(tokens, time, cache, table=table):
            return StepResult(table[time, (tokens + cache) % 40], attention=None, cache=cache)

        rows = jnp.arange(30)
        common = {"max_lengths": jnp.full((30,), 12), **ids}
        greedy = greedy_search(random_step, rows, **common)
        beam = beam_search(random_step, rows, beam_size=1, **common)
        for name in ("tokens", "lengths", "finished", "scores", "log_probs"):
            np.testing.assert_array_equal(getattr(greedy, name), getattr(beam, name))
        drawn = sample(random_step, rows, samples=2, key=jax.random.key(0), rows=rows, top_p=1e-6, **common)
        np.testing.assert_array_equal(drawn.tokens, jnp.repeat(greedy.tokens, 2, axis=1))
        assert len(set(np.asarray(greedy.lengths).ravel().tolist())) > 2


# --- rows have their own clocks ------------------------------------------------------------------


def test_rows_may_leave_and_enter_between_any_two_steps():
    method = Draws(samples=3, top_p=0.9, bos_id=BOS, eos_id=EOS, pad_id=PAD)
    numbers = jnp.arange(6)
    key = jax.random.key(4)
    rows = Rows(
        source_mask=jnp.ones((6, 2), bool),
        row_mask=numbers < 5,
        max_lengths=jnp.full((6,), LENGTH),
        min_lengths=jnp.zeros((6,), jnp.int32),
        numbers=numbers,
        keys=jnp.broadcast_to(key, (6,)),
    )
    advance = jax.jit(functools.partial(method.advance, step))
    wanted = draw(rows=range(6), samples=3, key=4, top_p=0.9, row_mask=rows.row_mask)

    def take(state, index):
        return jax.tree.map(lambda x: x[jnp.array(index)], state)

    fresh = method.start(step, numbers, rows, max_len=LENGTH)
    running = advance(take(fresh, [4, 2, 5]))
    running = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), running, take(fresh, [0, 3]))  # two enter later
    late = advance(take(running, [3, 0, 1, 2, 4]))
    assert set(late.time.tolist()) == {0, 1, 2}  # row 5 only fills
    for _ in range(LENGTH):
        before, late = late, advance(late)
        for name in ("time", "tokens", "log_probs", "lengths", "finished", "closed"):
            old, new = (np.asarray(getattr(x, name))[np.asarray(before.done)] for x in (before, late))
            np.testing.assert_array_equal(old, new)
    assert late.done.all()
    found = method.collect(late)
    for place, row in enumerate([0, 4, 2, 5, 3]):
        np.testing.assert_array_equal(found.tokens[place], wanted.tokens[row])
        np.testing.assert_array_equal(found.log_probs[place], wanted.log_probs[row])


@pytest.mark.parametrize("chosen", [{"top_k": 3}, {"top_p": 0.7}, {"temperature": 1.5, "top_p": 0.95}], ids=str)
def test_devices_that_share_a_vocabulary_draw_the_same(chosen):
    if len(jax.devices()) < 4:
        pytest.skip("needs 4 devices")
    mesh = jax.make_mesh((4,), ("tensor",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
    table = jnp.pad(TABLE, ((0, 0), (0, 0), (0, 2)), constant_values=-jnp.inf)  # two columns of each

    def part(tokens, time, cache):
        columns = 2 * jax.lax.axis_index("tensor") + jnp.arange(2)
        return StepResult(table[time, tokens][..., columns], attention=None, cache=cache, token_ids=columns)

    def run(rows):
        ids = {"bos_id": BOS, "eos_id": EOS, "pad_id": PAD}
        options = {"samples": 3, "max_len": LENGTH, "vocab_axes": ("tensor",), **chosen, **ids}
        lengths = jnp.full(rows.shape, LENGTH)
        return sample(part, rows, key=jax.random.key(0), rows=rows, max_lengths=lengths, **options)

    rows, whole = PartitionSpec(), PartitionSpec("tensor")
    found = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=rows, out_specs=whole))(jnp.arange(30))
    wanted = draw(rows=range(30), samples=3, **chosen)
    for copy in range(4):  # what each device found
        np.testing.assert_array_equal(found.tokens[30 * copy : 30 * (copy + 1)], wanted.tokens)
        np.testing.assert_allclose(found.log_probs[30 * copy : 30 * (copy + 1)], wanted.log_probs, rtol=1e-5)


# --- the nucleus ---------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [None, 3], ids=["all different", "many ties"])
@pytest.mark.parametrize("width", [5, 300])
def test_the_nucleus_is_that_of_sorting_in_float64(width, levels):
    generator = np.random.default_rng(width)
    logits = 3 * generator.normal(size=(100, width)) if levels is None else generator.integers(0, levels, (100, width))
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True)).astype(np.float32)
    weights[:, 0] *= generator.uniform(size=100) < 0.5
    sizes = set()
    for top_p in (0.05, 0.5, 0.9, 0.999):
        found = np.asarray(jax.jit(functools.partial(keep_nucleus, top_p=top_p))(weights))
        for row, kept in zip(weights, found, strict=True):
            wanted = find_nucleus(row, top_p)
            total = row.astype(np.float64).sum()
            if levels is None or abs(row[wanted].sum(dtype=np.float64) - top_p * total) > 1e-5 * total:
                np.testing.assert_array_equal(kept > 0, wanted & (row > 0))
            np.testing.assert_array_equal(kept[kept > 0], row[kept > 0])
            sizes.add(int((kept > 0).sum()))
    assert len(sizes) > 3


def test_only_sums_are_sent_for_the_nucleus_of_a_split_vocabulary():
    if len(jax.devices()) < 8:
        pytest.skip("needs 8 devices")
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    generator = np.random.default_rng(0)
    weights = np.exp(generator.integers(0, 40, size=(6, 800)) / 8 - 5).astype(np.float32)

    def run(weights):
        ids = 200 * jax.lax.axis_index("tensor") + jnp.arange(200)
        return keep_nucleus(weights, 0.8, ids, ("tensor",))

    both = PartitionSpec("data", "tensor")
    split = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=both, out_specs=both))
    np.testing.assert_array_equal(split(weights), keep_nucleus(weights, 0.8))
    text = split.lower(weights).compile().as_text()
    assert set(re.findall(r"= (\w+\[[\d,]*\])\S* all-reduce\(", text)) == {"f32[3]"} and "all-gather" not in text


# --- one draw ------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [3, 128, 300])
def test_a_token_is_where_the_number_falls_in_the_cumulated_weights(width):
    generator = np.random.default_rng(width)
    weights = (generator.uniform(size=(50, width)) * (generator.uniform(size=(50, width)) < 0.3)).astype(np.float32)
    weights[:, -1] = 0.5
    uniform = generator.uniform(size=50).astype(np.float32)
    uniform[0] = 1.0 - 2.0**-24  # the largest there is
    found = np.asarray(jax.jit(draw_tokens)(weights, uniform))
    cumulated = np.cumsum(weights.astype(np.float64), axis=-1)
    points = uniform.astype(np.float64) * cumulated[:, -1]
    for n, (token, point) in enumerate(zip(found, points, strict=True)):
        assert weights[n, token] > 0
        assert cumulated[n, token] - weights[n, token] - 1e-4 <= point <= cumulated[n, token] + 1e-4


def test_uniform_numbers_are_functions_of_their_place():
    key, rows, times = jax.random.key(0), jnp.arange(40)[:, None], jnp.arange(25)[None, :]
    whole = keyed_uniform(key, rows, times)
    assert whole.shape == (40, 25) and len(np.unique(whole)) == whole.size
    np.testing.assert_array_equal(keyed_uniform(key, rows[5:9], times[:, :7]), whole[5:9, :7])
    assert stats.kstest(np.asarray(whole).ravel(), "uniform").pvalue > 1e-3
