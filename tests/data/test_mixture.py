"""Mixtures: shares follow the formula, epochs are alike in size, and nobody comes twice before all have come."""

import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seq2seq_jax.data.mixture import Part, mix, share_parts
from seq2seq_jax.data.plan import make_plan

SIZES = (900, 90, 10)


def lengths(count, seed=0):
    rng = np.random.default_rng(seed)
    source = rng.integers(3, 30, count)
    return source, np.clip(source + rng.integers(-2, 3, count), 2, None)


def parts_of(sizes, weights=None, temperature=1.0):
    return share_parts(
        sizes, weights or [1.0] * len(sizes), [f"c{n}" for n in range(len(sizes))], temperature=temperature
    )


def plan_of(parts, **options):
    options = {"seed": 3, "tokens_per_batch": 300, "max_shapes": 3, "rows_multiple": 1, **options}
    return make_plan(*lengths(sum(part.size for part in parts)), parts=parts, **options)


def epoch_of(plan, epoch):
    """The ids of an epoch in their order, those that only fill left out."""
    batches = [plan.batch(epoch * plan.batches_per_epoch + n).example_ids for n in range(plan.batches_per_epoch)]
    ids = np.concatenate(batches)
    return ids[ids >= 0]


@pytest.mark.parametrize("temperature", [1.0, 5.0, 100.0, 0.02])
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.5, 3.0, 20.0)])
def test_shares_follow_the_formula(temperature, weights):
    p = np.array(SIZES, float) * weights
    p /= p.sum()
    wanted = p ** (1 / temperature) / (p ** (1 / temperature)).sum()
    found = [part.share for part in parts_of(SIZES, weights, temperature)]
    np.testing.assert_allclose(found, wanted, rtol=1e-9)


def test_shares_of_the_published_example():
    """Devlin et al. on multilingual BERT: with the power 0.7, 1000 times as much English is seen 100 times as often."""
    english, icelandic = (part.share for part in parts_of((1_000_000, 1_000), temperature=1 / 0.7))
    assert english / icelandic == pytest.approx(1000**0.7) and 100 < english / icelandic < 130


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (1.0, 5.0, 50.0), (0.01, 1.0, 1.0)])
@pytest.mark.parametrize("temperature", [1.0, 5.0])
def test_epochs_hold_the_shares(weights, temperature):
    parts = parts_of(SIZES, weights, temperature)
    plan = plan_of(parts)
    for epoch in range(3):
        ids = epoch_of(plan, epoch)
        counts = np.bincount(np.searchsorted(np.cumsum(SIZES), ids, side="right"), minlength=3)
        # Rounding moves half an example a cell, of which a corpus has three; a cell keeps at least one.
        np.testing.assert_allclose(counts, [part.share * 1000 for part in parts], atol=3 * 1.01)
        assert len(ids) == plan.examples_per_epoch == counts.sum()
        np.testing.assert_allclose(plan.shares, counts / counts.sum(), rtol=1e-12)
    assert "shares: c0 " in plan.describe() and f"c2 {plan.shares[2]:.1%}" in plan.describe()


@given(
    st.lists(st.tuples(st.integers(1, 60), st.floats(0.05, 20)), min_size=1, max_size=4),
    st.sampled_from([1.0, 3.0]),
    st.integers(0, 2**40),
)
def test_no_example_comes_again_before_all_of_its_cell_have_come(corpora, temperature, seed):
    sizes, weights = zip(*corpora, strict=True)
    plan = plan_of(parts_of(sizes, weights, temperature), seed=seed)
    ends, total = np.cumsum(sizes), sum(sizes)
    cells = [ids[np.searchsorted(ends, ids, side="right") == c] for ids in plan._members for c in range(len(sizes))]
    assert sorted(np.concatenate(cells)) == list(range(total))
    seen, before = np.zeros(total, int), 0
    for epoch in range(4):
        seen += np.bincount(epoch_of(plan, epoch), minlength=total)
        for cell in cells:
            if len(cell):
                assert seen[cell].max() - seen[cell].min() <= 1 and seen[cell].sum() >= epoch + 1
        before += plan.examples_per_epoch
        n = (epoch + 1) * plan.batches_per_epoch
        assert seen.sum() == before == plan.examples_before(n) and plan.batch_index(before) == n


@pytest.mark.parametrize("shuffle", [True, False])
def test_corpora_without_weights_are_planned_as_one(shuffle):
    plan = plan_of(parts_of(SIZES), shuffle=shuffle)
    one = make_plan(*lengths(1000), seed=3, tokens_per_batch=300, max_shapes=3, rows_multiple=1, shuffle=shuffle)
    assert plan.batches_per_epoch == one.batches_per_epoch and plan.pad_share == one.pad_share
    for n in range(2 * one.batches_per_epoch):
        np.testing.assert_array_equal(plan.batch(n).example_ids, one.batch(n).example_ids)


def test_an_empty_corpus_takes_no_part():
    parts = parts_of((0, 5), (9.0, 1.0))
    assert [part.share for part in parts] == [0.0, 1.0]
    plan = make_plan(np.full(5, 4), np.full(5, 4), seed=0, rows=8, parts=parts)
    assert sorted(epoch_of(plan, 0)) == [0, 1, 2, 3, 4]


def test_what_is_too_long_takes_nothing_from_the_others():
    """Every kept example is seen as often as without the long ones: shares are not moved to other examples."""
    source, target = lengths(1000)
    source[100:400] = 99
    parts = parts_of(SIZES)
    plan = make_plan(source, target, seed=0, rows=8, max_source_len=50, parts=parts)
    assert sorted(epoch_of(plan, 0)) == [*range(100), *range(400, 1000)]


def test_any_batch_can_be_asked_first_and_epochs_differ():
    parts = parts_of(SIZES, (1.0, 3.0, 30.0))
    plan = plan_of(parts)
    count = plan.batches_per_epoch
    straight = [plan.batch(n).example_ids for n in range(3 * count)]
    fresh = pickle.loads(pickle.dumps(plan_of(parts)))
    for n in np.random.default_rng(0).permutation(3 * count)[:12]:
        np.testing.assert_array_equal(fresh.batch(int(n)).example_ids, straight[n])
    epochs = [np.sort(epoch_of(plan, epoch)).tolist() for epoch in range(3)]
    assert all(a != b for a, b in itertools.combinations(epochs, 2))
    other = plan_of(parts, seed=4)
    assert np.sort(epoch_of(other, 0)).tolist() != epochs[0]


def test_without_shuffling_a_corpus_goes_on_where_the_last_epoch_ended():
    parts = (Part(6, 0.25), Part(6, 0.75))
    plan = make_plan(np.full(12, 5), np.full(12, 5), seed=0, rows=12, rows_multiple=1, shuffle=False, parts=parts)
    assert [plan.batch(n).example_ids.tolist() for n in range(2)] == [
        [0, 1, 2, 6, 7, 8, 9, 10, 11, 6, 7, 8],
        [3, 4, 5, 9, 10, 11, 6, 7, 8, 9, 10, 11],
    ]


def test_padding_is_the_mean_over_epochs():
    plan = plan_of(parts_of(SIZES, (1.0, 4.0, 7.0)))
    source, target = lengths(1000)
    slots = real = 0
    for n in range(60 * plan.batches_per_epoch):
        batch = plan.batch(n)
        ids = batch.example_ids[batch.example_ids >= 0]
        slots, real = slots + batch.shape.slots, real + int(source[ids].sum() + target[ids].sum())
    assert plan.pad_share == pytest.approx(1 - real / slots, abs=2e-4)


@pytest.mark.parametrize("parts", [[], [Part(5, 1.0)], [Part(10, -1.0)], [Part(-1, 1.0), Part(11, 1.0)]])
def test_parts_that_are_not_those_of_the_ids_are_refused(parts):
    with pytest.raises(ValueError, match="`parts` must have"):
        mix(parts, [np.arange(10)])
