"""Packed rows: every pair exactly once an epoch, in rows that hold them, and little padding."""

import os
import pickle
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seq2seq_jax.data.mixture import Part
from seq2seq_jax.data.packing import make_packed_plan, pack_lengths, place_segments
from seq2seq_jax.data.pipeline import Ragged, TokenPairs, batches, build_batch
from seq2seq_jax.data.plan import PlannedBatch, make_plan
from seq2seq_jax.data.shapes import Shape
from seq2seq_jax.data.sources import read_parallel
from seq2seq_jax.data.vocab_training import train_vocabs
from seq2seq_jax.errors import UserError

rng = np.random.default_rng(0)
PAIRS = TokenPairs(
    *(Ragged.pack([rng.integers(4, 99, n).astype(np.int32) for n in rng.integers(2, 30, 300)]) for _ in range(2))
)
LIMITS = {"max_source_len": 30, "max_target_len": 31}
PLAN = make_packed_plan(PAIRS.source_lengths, PAIRS.target_lengths, seed=5, tokens_per_batch=600, **LIMITS)
LENGTHS = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=120)


def assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@given(LENGTHS, st.integers(0, 2**40), st.integers(40, 400), st.sampled_from([1, 2, 4]), st.booleans())
def test_plan_keeps_its_promises(pairs, seed, tokens, multiple, shuffle):
    source, target = np.array(pairs).T
    options = {"seed": seed, "tokens_per_batch": tokens, "rows_multiple": multiple, "shuffle": shuffle}
    options |= {"max_source_len": 18, "max_target_len": 19}
    fits = [i for i, (s, t) in enumerate(pairs) if 2 <= s <= 18 and 2 <= t <= 19]
    if not fits or tokens < 37 * multiple:
        with pytest.raises(UserError, match="is too small" if fits else "No example is left"):
            make_packed_plan(source, target, **options)
        return
    plan, again = (make_packed_plan(source, target, **options) for _ in range(2))
    ((rows, source_len, target_len),) = plan.shapes
    assert sorted([*fits, *plan.dropped]) == list(range(len(pairs)))
    assert rows % multiple == 0 and plan.shapes[0].slots <= tokens < plan.shapes[0].slots + rows
    slots = real = before = 0
    for epoch in range(3):
        seen = []
        for place in range(plan.batches_per_epoch):
            n = epoch * plan.batches_per_epoch + place
            assert plan.examples_before(n) == before and plan.batch_index(before) == n
            batch = plan.batch(n)
            np.testing.assert_array_equal(batch.example_ids, again.batch(n).example_ids)
            assert batch.epoch == epoch and len(batch.example_ids) == rows and (batch.example_ids[0] >= 0).any()
            assert (np.diff((batch.example_ids >= 0).astype(int), axis=1) <= 0).all()  # nobody comes last
            for row in batch.example_ids:
                ids = row[row >= 0]
                assert source[ids].sum() <= source_len and target[ids].sum() <= target_len
                seen += ids.tolist()
                real += int(source[ids].sum() + target[ids].sum())
                before += len(ids)
            slots += batch.shape.slots
        assert sorted(seen) == fits and len(fits) == plan.examples_per_epoch
        assert plan.batch_index(before) == (epoch + 1) * plan.batches_per_epoch
    assert plan.pad_share == pytest.approx(1 - real / slots)


def test_every_epoch_puts_others_together():
    """Those whose lengths others have, too."""
    source = rng.integers(3, 20, 2000)
    target = source + rng.integers(-1, 3, 2000)
    plan, epochs = make_packed_plan(source, target, seed=1, tokens_per_batch=600, **LIMITS), []
    for epoch in range(2):
        numbers = range(epoch * plan.batches_per_epoch, (epoch + 1) * plan.batches_per_epoch)
        rows = np.concatenate([plan.batch(n).example_ids for n in numbers])
        epochs.append({frozenset(row[row >= 0].tolist()) for row in rows} - {frozenset()})
    assert len(epochs[0]) > 400 and len(epochs[0] & epochs[1]) < 0.05 * len(epochs[0])


@pytest.mark.parametrize("seed", range(2))
def test_rows_are_few(seed):
    """Against the least that there could be, and against closing a row as soon as the next pair has no room."""
    generator = np.random.default_rng(seed)
    source = np.clip(generator.gamma(3.0, 4.0, 2000).astype(int) + 3, 3, 40)
    target = np.clip((source * generator.normal(1.05, 0.15, 2000)).astype(int) + 1, 3, 40)
    room = np.array([80, round(80 * target.sum() / source.sum())])
    found = len(pack_lengths(source, target, *room)[0]) - 1
    least = np.ceil(np.array([source.sum(), target.sum()]) / room).max()
    closed, held = 0, np.zeros(2)
    for size in zip(source.tolist(), target.tolist(), strict=True):
        if (held + size > room).any():
            closed, held = closed + 1, np.zeros(2)
        held += size
    assert least <= found <= 1.045 * least and 1.1 * found < closed + 1


@given(st.lists(st.tuples(*[st.lists(st.integers(4, 9), max_size=5)] * 2), min_size=1, max_size=7), st.data())
def test_batch_is_what_a_plain_loop_makes(examples, data):
    pairs = TokenPairs(*(Ragged.pack([np.array(e[side], np.int32) for e in examples]) for side in (0, 1)))
    count = data.draw(st.integers(1, 4))
    taken = [data.draw(st.lists(st.integers(0, len(examples) - 1), max_size=3)) for _ in range(count)]
    ids = np.array([row + [-1] * (3 - len(row)) for row in taken], np.int64)
    batch = build_batch(pairs, PlannedBatch(Shape(count, 15, 18), ids, 0))
    for n, row in enumerate(taken):
        sides = {
            "source": [examples[i][0] for i in row],
            "target_in": [[2, *examples[i][1]] for i in row],
            "target_out": [[*examples[i][1], 3] for i in row],
        }
        for name, texts in sides.items():
            side, room = name.partition("_")[0], 15 if name == "source" else 18
            expect = {
                name: sum(texts, []),
                f"{side}_segments": [k for k, text in enumerate(texts, 1) for _ in text],
                f"{side}_positions": [position for text in texts for position in range(len(text))],
                f"{side}_mask": [True for text in texts for _ in text],
            }
            for leaf, values in expect.items():
                assert getattr(batch, leaf)[n].tolist() == values + [0] * (room - len(values)), leaf
        assert batch.row_mask[n] == bool(row) and batch.example_ids[n] == (row[0] if row else -1)
    assert {leaf.dtype for leaf in jax.tree.leaves(batch)} == {np.dtype("i4"), np.dtype("?")}
    assert_equal(jax.tree.leaves(batch.packing), [getattr(batch, f"{s}_{what}") for s in ("source", "target")
                                                  for what in ("segments", "positions")])  # fmt: skip


def test_a_batch_of_one_example_a_row_is_not_packed():
    plan = make_plan(PAIRS.source_lengths, PAIRS.target_lengths, seed=0, tokens_per_batch=600)
    assert build_batch(PAIRS, plan.batch(0)).packing is None


def test_rows_without_the_room_are_refused():
    with pytest.raises(ValueError, match="at least 4"):
        place_segments(np.arange(4), np.array([3, 1]), np.array([[True, True]]), 3)


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_read_their_rows_of_one_global_batch(hosts):
    whole = list(batches(PAIRS, PLAN, start=0, stop=6))
    for host in range(hosts):

        def rows_of(rows, host=host):
            return np.arange(rows).reshape(hosts, -1)[host]

        for n, batch in enumerate(batches(PAIRS, PLAN, start=0, stop=6, rows_of=rows_of)):
            rows = rows_of(len(whole[n].row_mask))
            assert_equal(batch, jax.tree.map(lambda leaf, rows=rows: leaf[rows], whole[n]))


@pytest.mark.parametrize("threads", [0, 2])
def test_resumed_reader_goes_on_where_the_other_stopped(threads):
    straight = list(batches(PAIRS, PLAN, start=0, stop=40, threads=threads))
    assert sum(int((batch.target_in == 2).sum()) for batch in straight[: PLAN.batches_per_epoch]) == len(PAIRS)
    copy = pickle.loads(pickle.dumps(PLAN))
    for stop in (1, PLAN.batches_per_epoch, 39):
        seen = sum(int((batch.target_in == 2).sum()) for batch in straight[:stop])  # every pair begins with bos
        assert_equal(next(batches(PAIRS, copy, start=copy.batch_index(seen), stop=40)), straight[stop])
    with pytest.raises(ValueError, match="where a batch ends"):
        PLAN.batch_index(1)


def test_corpora_that_come_once_an_epoch_may_be_several():
    parts = [Part(100, 1 / 3, "a"), Part(200, 2 / 3, "b")]
    lengths, options = (PAIRS.source_lengths, PAIRS.target_lengths), {"seed": 5, "tokens_per_batch": 600, **LIMITS}
    plan = make_packed_plan(*lengths, parts=parts, **options)
    np.testing.assert_array_equal(plan.batch(3).example_ids, PLAN.batch(3).example_ids)
    assert "a 33.3%, b 66.7%" in plan.describe() and "packed into a row" in plan.describe()
    with pytest.raises(UserError, match=r"config\.data\.pack must be False with corpora that have weights"):
        make_packed_plan(*lengths, parts=[Part(100, 0.5), Part(200, 0.5)], **options)


@pytest.mark.data
def test_padding_of_multi30k():
    folder = os.environ.get("SEQ2SEQ_JAX_DATA")
    if not folder:
        pytest.skip("SEQ2SEQ_JAX_DATA is not set")
    text = read_parallel(Path(folder) / "multi30k" / "train", source="en", target="de")
    vocabs = train_vocabs(text.source, text.target, size=8000, model="bpe")
    lengths = [[len(ids) + 1 for ids in vocabs.source.encode_many(side)] for side in (text.source, text.target)]
    plan = make_packed_plan(*lengths, seed=0, tokens_per_batch=4096, max_source_len=80, max_target_len=80)
    buckets = make_plan(*lengths, seed=0, tokens_per_batch=4096, max_shapes=6)
    assert plan.pad_share < 0.04 < 0.12 < buckets.pad_share and plan.examples_per_epoch == 29_000
