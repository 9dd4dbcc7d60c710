"""The plan: every kept example exactly once an epoch, whatever the lengths, and little padding."""

import itertools
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from seq2seq_jax.data.plan import make_plan, permute
from seq2seq_jax.data.shapes import Shape, choose_shapes, count_slots, settle_leftovers
from seq2seq_jax.data.sources import read_parallel
from seq2seq_jax.data.vocab_training import train_vocabs
from seq2seq_jax.errors import UserError

LENGTHS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=150)
OPTIONS = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**40),
        "max_shapes": st.integers(1, 6),
        "rows_multiple": st.sampled_from([1, 2, 4]),
        "max_source_len": st.integers(10, 40),
        "shuffle": st.booleans(),
    },
    optional={"rows": st.sampled_from([4, 8])},
)


def plan_of(pairs, options):
    source, target = np.array(pairs).T
    budget = {} if "rows" in options else {"tokens_per_batch": 400}
    return source, target, make_plan(source, target, **options, **budget)


def synthetic(count=2000, seed=0):
    rng = np.random.default_rng(seed)
    source = rng.integers(3, 50, count)
    return source, np.clip(source + rng.integers(-4, 5, count), 2, None)


@given(LENGTHS, OPTIONS)
@example(  # the largest shape has no example and takes no leftovers
    [(2, 2), (2, 2), (2, 2), (11, 40), (12, 2)],
    {"seed": 0, "max_shapes": 4, "rows_multiple": 4, "max_source_len": 12, "shuffle": False},
)
def test_plan_keeps_its_promises(pairs, options):
    fits = [i for i, (s, t) in enumerate(pairs) if 2 <= s <= options["max_source_len"] and t >= 2]
    if not fits:
        with pytest.raises(UserError, match="No example is left"):
            plan_of(pairs, options)
        return
    source, target, plan = plan_of(pairs, options)
    again = plan_of(pairs, options)[2]
    assert 1 <= len(plan.shapes) <= options["max_shapes"]
    assert sorted([*fits, *plan.dropped]) == list(range(len(pairs)))
    slots = real = before = 0
    for epoch in range(3):
        seen = []
        for place in range(plan.batches_per_epoch):
            n = epoch * plan.batches_per_epoch + place
            assert plan.examples_before(n) == before and plan.batch_index(before) == n
            batch, other = plan.batch(n), again.batch(n)
            assert batch.epoch == epoch and batch.shape in plan.shapes and batch.shape == other.shape
            np.testing.assert_array_equal(batch.example_ids, other.example_ids)
            assert batch.example_ids.shape == (batch.shape.rows,) and batch.example_ids.dtype == np.int64
            ids = batch.example_ids[batch.example_ids >= 0]
            assert len(ids) and (batch.example_ids[len(ids) :] == -1).all()
            assert source[ids].max() <= batch.shape.source_len <= options["max_source_len"]
            assert target[ids].max() <= batch.shape.target_len
            assert batch.shape.rows % options["rows_multiple"] == 0
            assert batch.shape.rows == options["rows"] if "rows" in options else batch.shape.slots <= 400
            slots += batch.shape.slots
            real += int(source[ids].sum() + target[ids].sum())
            before += len(ids)
            seen += ids.tolist()
        assert sorted(seen) == fits and len(fits) == plan.examples_per_epoch
    assert plan.pad_share == pytest.approx(1 - real / slots)


def test_examples_that_end_no_batch_are_refused():
    plan = make_plan(*synthetic(), seed=1, tokens_per_batch=1024)
    ends = {plan.examples_before(n) for n in range(plan.batches_per_epoch + 1)}
    for examples in (1, max(ends) - 1):
        assert examples not in ends
        with pytest.raises(ValueError, match="where a batch ends"):
            plan.batch_index(examples)
    for call in (plan.batch, plan.examples_before, plan.batch_index):
        with pytest.raises(ValueError, match="must not be negative"):
            call(-1)


def test_order_differs_by_epoch_and_seed_and_any_batch_can_be_asked_first():
    lengths = synthetic()
    plan = make_plan(*lengths, seed=3, tokens_per_batch=1024)
    count = plan.batches_per_epoch
    straight = [plan.batch(n).example_ids for n in range(3 * count)]
    fresh = make_plan(*lengths, seed=3, tokens_per_batch=1024)
    for n in np.random.default_rng(0).permutation(3 * count)[:12]:
        np.testing.assert_array_equal(fresh.batch(int(n)).example_ids, straight[n])

    def order(ids):
        return np.concatenate(ids)[:100].tolist()

    other = make_plan(*lengths, seed=4, tokens_per_batch=1024)
    firsts = [
        order(straight[:count]),
        order(straight[count:]),
        order([other.batch(n).example_ids for n in range(count)]),
    ]
    assert all(a != b for a, b in itertools.combinations(firsts, 2))
    shapes = [plan.batch(n).shape for n in range(count)]
    assert shapes != sorted(shapes, key=lambda shape: sum(shape[1:]))


def test_without_shuffling_the_corpus_keeps_its_order():
    plan = make_plan(np.full(20, 5), np.full(20, 6), seed=0, rows=8, shuffle=False)
    ids = np.concatenate([plan.batch(n).example_ids for n in range(3)])
    assert ids.tolist() == [*range(20), *[-1] * 4] and plan.shapes == (Shape(8, 5, 6),)


def test_pickled_plan_gives_the_same_batches():
    plan = make_plan(*synthetic(), seed=3, tokens_per_batch=1024)
    plan.batch(0)
    copy = pickle.loads(pickle.dumps(plan))
    assert not copy._epochs
    np.testing.assert_array_equal(copy.batch(7).example_ids, plan.batch(7).example_ids)


def test_a_curriculum_goes_from_short_to_long_and_then_as_usual():
    source, target = synthetic()
    options = {"seed": 3, "tokens_per_batch": 1024}
    plan, usual = (make_plan(source, target, **options, curriculum_epochs=n) for n in (2, 0))
    count = plan.batches_per_epoch
    assert count == usual.batches_per_epoch and "short to long in the first 2 epochs" in plan.describe()
    before, orders = 0, []
    for epoch in range(3):
        means, seen = [], []
        for n in range(epoch * count, (epoch + 1) * count):
            assert plan.examples_before(n) == before and plan.batch_index(before) == n
            batch = plan.batch(n)
            ids = batch.example_ids[batch.example_ids >= 0]
            assert source[ids].max() <= batch.shape.source_len and target[ids].max() <= batch.shape.target_len
            means.append((source[ids] + target[ids]).mean())
            seen += ids.tolist()
            before += len(ids)
            if epoch == 2:
                np.testing.assert_array_equal(batch.example_ids, usual.batch(n).example_ids)
        assert sorted(seen) == list(range(len(source)))
        assert (means == sorted(means)) == (epoch < 2)
        orders.append(seen)
    assert orders[0] != orders[1]  # equal lengths are shuffled
    for epoch in range(2):
        totals = (source + target)[orders[epoch]]
        assert abs(totals - np.sort(totals)).mean() < 2  # shapes apart, nearly in order of the sentences, too
        again = make_plan(source, target, **options, curriculum_epochs=2)
        np.testing.assert_array_equal(
            again.batch(epoch * count + 7).example_ids, plan.batch(epoch * count + 7).example_ids
        )


def test_only_the_last_epochs_are_kept():
    plan = make_plan(*synthetic(), seed=3, tokens_per_batch=1024)
    for epoch in range(5):
        plan.batch(epoch * plan.batches_per_epoch)
    assert sorted(plan._epochs) == [3, 4]


def test_permutation_is_pinned_for_good():
    """A checkpoint of an old release must find the same order: these numbers never change."""
    assert permute(10, 1, 2, 3).tolist() == PINNED
    assert sorted(permute(1000, 7)) == list(range(1000))


PINNED = [1, 8, 2, 4, 6, 5, 0, 9, 7, 3]


def best_table(source, target, count):
    """All tables of `count` shapes, tried one by one: least slots, rows that only fill not counted."""
    corners = [(s, t) for s in sorted(set(source)) for t in sorted(set(target))]
    last, least = (max(source), max(target)), None
    for chosen in itertools.combinations(corners, count - 1):
        table = [*chosen, last]
        slots = sum(min(a + b for a, b in table if s <= a and t <= b) for s, t in zip(source, target, strict=True))
        least = slots if least is None else min(least, slots)
    return least


@pytest.mark.parametrize("seed", range(4))
def test_shapes_are_nearly_the_best_there_are(seed):
    rng = np.random.default_rng(seed)
    source = rng.integers(2, 8, 300)
    target = np.clip(source + rng.integers(-2, 3, 300), 2, None)
    shapes, shape_of = choose_shapes(source, target, tokens_per_batch=None, rows=1, max_shapes=3, rows_multiple=1)
    slots = sum(shapes[k].source_len + shapes[k].target_len for k in shape_of)
    assert len(shapes) == 3
    assert slots <= 1.005 * best_table(source.tolist(), target.tolist(), 3)


def test_sides_without_correlation_get_their_own_lengths():
    source = np.array([10, 10, 40, 40] * 100)
    target = np.array([10, 40, 10, 40] * 100)
    plan = make_plan(source, target, seed=0, rows=4, rows_multiple=1)
    assert {shape[1:] for shape in plan.shapes} == {(10, 10), (10, 40), (40, 10), (40, 40)}
    assert plan.pad_share == 0


def test_leftovers_are_settled_as_well_as_by_trying_everything():
    rng = np.random.default_rng(0)
    for _ in range(20):
        shapes = [Shape(int(rng.integers(1, 9)) * 4, 5 * k, int(rng.integers(5, 9)) * k) for k in range(1, 5)]
        sizes = rng.integers(1, 60, 4).tolist()
        found = count_slots(shapes, sizes, settle_leftovers(shapes, sizes))[1]
        everything = itertools.product(*([-1, *range(i + 1, 4)] for i in range(4)))
        allowed = (
            p for p in everything if all(j < 0 or shapes[i].target_len <= shapes[j].target_len for i, j in enumerate(p))
        )
        best = min(count_slots(shapes, sizes, p)[1] for p in allowed)
        assert best <= found <= count_slots(shapes, sizes, [-1] * 4)[1]
        assert found <= 1.2 * best


def test_long_lengths_stay_cheap_and_inside_the_maximum():
    rng = np.random.default_rng(0)
    source = np.minimum(rng.geometric(0.02, 20_000) + 2, 451)
    plan = make_plan(source, source, seed=0, tokens_per_batch=8_000, max_source_len=451, max_target_len=451)
    assert max(shape.source_len for shape in plan.shapes) == source.max()
    # The best 12 lengths, by dynamic programming over all lengths; rows that only fill not counted.
    held = np.cumsum(np.bincount(source))  # [length]
    least = held * np.arange(len(held))
    for _ in range(11):
        least = np.array([min(least[a] + (held[b] - held[a]) * b for a in range(b + 1)) for b in range(len(held))])
    assert plan.pad_share < 1 - source.sum() / least[-1] + 0.01


def test_what_is_left_out_is_counted_and_named():
    plan = make_plan([5, 100_001, 1, 7], [5, 9, 5, 1], seed=0, rows=8)
    assert plan.too_long.tolist() == [1] and plan.too_short.tolist() == [2, 3] and plan.dropped.tolist() == [1, 2, 3]
    assert "1 examples are too long and left out (ids 1)" in plan.describe() and "empty" in plan.describe()


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"tokens_per_batch": 100}, UserError, r"data\.tokens_per_batch = 100 is too small: 8 rows .* need 152"),
        ({"rows": 8, "max_source_len": 4}, UserError, r"2 are longer than config\.data\.max_source_len = 4"),
        ({"rows": 12}, UserError, "multiple of 8"),
        ({}, ValueError, "Exactly one"),
        ({"rows": 8, "tokens_per_batch": 99}, ValueError, "Exactly one"),
        ({"rows": 8, "seed": -1}, ValueError, "`seed` must be at least 0"),
    ],
)
def test_impossible_plans_are_refused(options, error, said):
    with pytest.raises(error, match=said) as caught:
        make_plan([9, 9], [10, 10], **{"seed": 0, **options})
    assert "\n" not in str(caught.value)


@pytest.mark.data
def test_padding_of_multi30k():
    folder = os.environ.get("SEQ2SEQ_JAX_DATA")
    if not folder:
        pytest.skip("SEQ2SEQ_JAX_DATA is not set")
    text = read_parallel(Path(folder) / "multi30k" / "train", source="en", target="de")
    vocabs = train_vocabs(text.source, text.target, size=8000, model="bpe")
    lengths = [[len(ids) + 1 for ids in vocabs.source.encode_many(side)] for side in (text.source, text.target)]
    for max_shapes, bound in ((12, 0.10), (6, 0.16)):
        plan = make_plan(*lengths, seed=0, tokens_per_batch=4096, max_shapes=max_shapes)
        assert len(plan.shapes) <= max_shapes and plan.examples_per_epoch == 29_000
        assert plan.pad_share < bound
