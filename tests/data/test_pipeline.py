"""Batches: padded as a plain loop would, the same for every number of hosts and threads."""

import threading

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seq2seq_jax.data.pipeline import Ragged, TokenPairs, batches, build_batch, length_batches, pad_rows, tokenise
from seq2seq_jax.data.plan import PlannedBatch, make_plan
from seq2seq_jax.data.shapes import Shape
from seq2seq_jax.data.sources import make_text
from seq2seq_jax.data.vocab_training import train_vocabs

rng = np.random.default_rng(0)
PAIRS = TokenPairs(
    *(Ragged.pack([rng.integers(4, 99, n).astype(np.int32) for n in rng.integers(2, 30, 300)]) for _ in range(2))
)
PLAN = make_plan(PAIRS.source_lengths, PAIRS.target_lengths, seed=5, tokens_per_batch=600)


def assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_ragged_gives_back_what_was_packed():
    parts = [np.arange(3, dtype=np.int32), np.zeros(0, np.int32), np.array([7], np.int32)]
    ragged = Ragged.pack(parts)
    assert [r.tolist() for r in (ragged[i] for i in range(3))] == [[0, 1, 2], [], [7]]
    assert ragged.lengths.tolist() == [3, 0, 1] and ragged.offsets.dtype == np.int64 and ragged[-1].tolist() == [7]
    assert len(Ragged.pack([])) == 0
    with pytest.raises(IndexError):
        ragged[3]


def test_tokenise_appends_eos_to_the_source_alone(monkeypatch):
    monkeypatch.setattr("seq2seq_jax.data.pipeline._LINES_AT_ONCE", 2)
    text = make_text(["a b", "", "b"], ["c", "d c", ""], name="n")
    vocabs = train_vocabs(text.source, text.target, kind="word", joint=False)
    pairs = tokenise(text, vocabs)
    assert [pairs.source[i].tolist() for i in range(3)] == [[*vocabs.source.encode(s), 3] for s in text.source]
    assert [pairs.target[i].tolist() for i in range(3)] == [vocabs.target.encode(t) for t in text.target]
    assert pairs.source_lengths.tolist() == [3, 1, 2] and pairs.target_lengths.tolist() == [2, 3, 1]
    alone = tokenise(make_text(text.source, None, name="n"), vocabs)
    assert alone.target_lengths.tolist() == [1, 1, 1]


@given(st.lists(st.tuples(*[st.lists(st.integers(4, 9), max_size=6)] * 2), min_size=1, max_size=6), st.data())
def test_batch_is_what_a_plain_loop_makes(examples, data):
    pairs = TokenPairs(*(Ragged.pack([np.array(e[side], np.int32) for e in examples]) for side in (0, 1)))
    ids = data.draw(st.lists(st.integers(-1, len(examples) - 1), min_size=1, max_size=8))
    batch = build_batch(pairs, PlannedBatch(Shape(len(ids), 6, 7), np.array(ids, np.int64), 0))
    for row, i in enumerate(ids):
        source, target = examples[i] if i >= 0 else ([], [])
        real = [2] if i >= 0 else []
        expect = {
            "source": source + [0] * (6 - len(source)),
            "source_mask": [True] * len(source) + [False] * (6 - len(source)),
            "target_in": (real + target + [0] * 7)[:7],
            "target_out": (target + [3] * len(real) + [0] * 7)[:7],
            "target_mask": ([True] * (len(target) + len(real)) + [False] * 7)[:7],
            "example_ids": i,
            "row_mask": i >= 0,
        }
        for name, value in expect.items():
            assert getattr(batch, name)[row].tolist() == value, name
    kinds = {"source": "i4", "target_in": "i4", "target_out": "i4", "example_ids": "i4"}
    masks = {"source_mask": "?", "target_mask": "?", "row_mask": "?"}
    assert all(getattr(batch, name).dtype == np.dtype(kind) for name, kind in (kinds | masks).items())


def test_rows_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="at least 3"):
        pad_rows(Ragged.pack([np.arange(3, dtype=np.int32)]), np.array([0]), 2)


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_reader_yields_the_planned_batches_in_order_over_epochs(threads):
    stop = 2 * PLAN.batches_per_epoch + 3
    with batches(PAIRS, PLAN, start=2, stop=stop, threads=threads) as reader:
        read = list(reader)
    assert len(read) == stop - 2
    for n, batch in enumerate(read, 2):
        assert_equal(batch, build_batch(PAIRS, PLAN.batch(n)))


@pytest.mark.parametrize("hosts", [2, 4, 8])
@pytest.mark.parametrize("split", ["blocks", "interleaved", "held_twice"])
def test_hosts_read_their_rows_of_one_global_batch(hosts, split):
    """Whatever rows the mesh gives a host, it reads those and no others."""

    def rows_of(host):
        held = {"blocks": host, "interleaved": host, "held_twice": host // 2}[split]
        groups = hosts // 2 if split == "held_twice" else hosts
        if split == "interleaved":
            return lambda rows: np.arange(rows)[held::groups]
        return lambda rows: np.arange(rows).reshape(groups, -1)[held]

    whole = list(batches(PAIRS, PLAN, start=0, stop=6))
    shares = [list(batches(PAIRS, PLAN, start=0, stop=6, rows_of=rows_of(host))) for host in range(hosts)]
    for n, batch in enumerate(whole):
        seen = set()
        for host, share in enumerate(shares):
            rows = rows_of(host)(len(batch.row_mask))
            assert len(share[n].row_mask) == len(batch.row_mask) // (hosts // 2 if split == "held_twice" else hosts)
            assert_equal(share[n], jax.tree.map(lambda leaf, rows=rows: leaf[rows], batch))
            seen |= set(rows.tolist())
        assert seen == set(range(len(batch.row_mask)))


def test_resumed_reader_goes_on_where_the_other_stopped():
    straight = list(batches(PAIRS, PLAN, start=0, stop=40))
    for stop in (1, PLAN.batches_per_epoch, 39):
        seen = sum(int(batch.row_mask.sum()) for batch in straight[:stop])
        resumed = next(batches(PAIRS, PLAN, start=PLAN.batch_index(seen), stop=40))
        assert_equal(resumed, straight[stop])


def test_threads_end_when_the_reader_is_left():
    before = set(threading.enumerate())
    with batches(PAIRS, PLAN, start=0, stop=1000, threads=2) as reader:
        next(reader)
        assert (started := set(threading.enumerate()) - before)
    for thread in started:
        thread.join(timeout=30)
    assert not any(thread.is_alive() for thread in started)
    with pytest.raises(StopIteration):
        next(reader)


def test_empty_and_impossible_ranges():
    assert list(batches(PAIRS, PLAN, start=3, stop=3)) == []
    for start, stop in ((3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="must be"):
            batches(PAIRS, PLAN, start=start, stop=stop)


@given(st.lists(st.integers(0, 300), max_size=60), st.integers(1, 9))
def test_decoding_batches_hold_every_text_once(lengths, rows):
    grouped = length_batches(lengths, rows=rows)
    ids = np.concatenate([ids for ids, _ in grouped]) if grouped else np.zeros(0)
    assert sorted(ids[ids >= 0]) == list(range(len(lengths))) and (ids < 0).sum() < rows
    table = {8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384}
    for ids, padded in grouped:
        longest = max(1, *(lengths[i] for i in ids if i >= 0), 0)
        assert padded == min(length for length in table if length >= longest)
    assert [p for _, p in grouped] == sorted((p for _, p in grouped), reverse=True)


def test_decoding_batches_are_cut_at_the_maximum():
    ((ids, padded),) = length_batches([100_000, 5], rows=2, max_len=50)
    assert ids.tolist() == [0, 1] and padded == 50
