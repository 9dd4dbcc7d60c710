"""The prepared corpus on a disk: what is read is what was written, from any thread or process; damage is refused."""

import json
import pickle
import threading

import numpy as np
import pytest

from seq2seq_jax.data import store
from seq2seq_jax.data.pipeline import Ragged, TokenPairs, batches
from seq2seq_jax.data.plan import make_plan
from seq2seq_jax.data.store import Index, Part, PreparedPairs, Shard, hash_file, shard_files, write_tokens
from seq2seq_jax.errors import UserError

SIZES = (300, 0, 150, 5)  # pairs of each shard; the first two are one corpus, the others another


def make_pairs(dtype="uint16"):
    """Random pairs, some with an empty target, ids up to the largest of the type."""
    draw = np.random.default_rng(0)
    largest = min(np.iinfo(dtype).max, 2**31 - 1)
    sides = [
        [draw.integers(3, largest, n, endpoint=True).astype(np.int32) for n in draw.integers(least, 30, sum(SIZES))]
        for least in (1, 0)
    ]
    return TokenPairs(*map(Ragged.pack, sides))


def write_corpus(folder, pairs, dtype="uint16"):
    """Shards and index, as a preparation leaves them."""
    (folder / "shards").mkdir(parents=True)
    shards, start = [], 0
    for number, size in enumerate(SIZES):
        if not size:
            shards.append(Shard(0, 0, 0, "", ""))
            continue
        tokens, lengths, _ = shard_files(folder, number)
        ids = range(start, start + size)
        flat = np.concatenate([side[i] for i in ids for side in (pairs.source, pairs.target)]).astype(dtype)
        sizes = np.array([[len(pairs.source[i]) for i in ids], [len(pairs.target[i]) for i in ids]])
        write_tokens(tokens, flat, sizes.sum(axis=0))
        np.save(lengths, (sizes + [[0], [1]]).astype(np.uint16))
        bytes_ = tokens.stat().st_size
        shards.append(Shard(int(number > 1), size, bytes_, hash_file(tokens), hash_file(lengths)))
        start += size
    parts = (Part("a", "en", "de", (), 300), Part("b", "en", "fr", ("2fr",), 155))
    Index({"x": 1}, "r", "v", dtype, parts, tuple(shards), (), {"blank": 2}, {}).save(folder)
    return folder


@pytest.fixture(scope="module")
def pairs():
    return make_pairs()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pairs):
    return write_corpus(tmp_path_factory.mktemp("store") / "prepared", pairs)


def assert_reads(prepared, pairs, ids):
    """Both give the same sequences."""
    for found, wanted in zip(prepared.read(ids), pairs.read(ids), strict=True):
        assert found.flat.dtype == np.int32
        np.testing.assert_array_equal(found.offsets, wanted.offsets)
        np.testing.assert_array_equal(found.flat, wanted.flat)


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_reads_what_was_written(tmp_path, dtype):
    pairs = make_pairs(dtype)
    prepared = PreparedPairs.open(write_corpus(tmp_path / "prepared", pairs, dtype))
    assert len(prepared) == len(pairs) == 455 and prepared.part_sizes == (300, 155)
    for side in ("source_lengths", "target_lengths"):
        table = getattr(prepared, side)
        assert table.dtype == np.uint16
        np.testing.assert_array_equal(table, getattr(pairs, side))
    draw = np.random.default_rng(1)
    for ids in (np.arange(455), draw.integers(0, 455, 200), np.array([7, 7, 454, 300, 299]), np.zeros(0, np.int64)):
        assert_reads(prepared, pairs, ids)


def test_ids_outside_are_refused(folder):
    prepared = PreparedPairs.open(folder)
    for ids in ([455], [-1], [0, 1000]):
        with pytest.raises(IndexError, match="455 examples"):
            prepared.read(np.array(ids))


def test_a_copy_in_another_process_opens_its_own_files(folder, pairs):
    prepared = PreparedPairs.open(folder)
    prepared.read(np.array([0]))
    copy = pickle.loads(pickle.dumps(prepared))
    assert copy.digest == prepared.digest
    assert_reads(copy, pairs, np.arange(0, 455, 7))


def test_few_files_stay_open(folder, pairs, monkeypatch):
    monkeypatch.setattr(store, "_MOST_OPEN", 1)
    prepared = PreparedPairs.open(folder)
    for start in range(3):
        assert_reads(prepared, pairs, np.arange(start, 455, 5))
    assert len(prepared._open) == 1


def test_threads_share_it(folder, pairs):
    prepared, wrong = PreparedPairs.open(folder), []

    def read(seed):
        draw = np.random.default_rng(seed)
        for _ in range(30):
            try:
                assert_reads(prepared, pairs, draw.integers(0, 455, 20))
            except AssertionError as error:
                wrong.append(error)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("threads", [0, 2])
def test_batches_are_those_of_the_corpus_in_memory(folder, pairs, threads):
    prepared = PreparedPairs.open(folder)
    settings = {"seed": 3, "tokens_per_batch": 600, "max_shapes": 3, "rows_multiple": 2}
    plans = [make_plan(p.source_lengths, p.target_lengths, **settings) for p in (pairs, prepared)]
    stop = 2 * plans[0].batches_per_epoch
    with (
        batches(pairs, plans[0], start=1, stop=stop) as in_memory,
        batches(prepared, plans[1], start=1, stop=stop, threads=threads) as on_disk,
    ):
        count = 0
        for a, b in zip(in_memory, on_disk, strict=True):
            count += 1
            for name in ("source", "source_mask", "target_in", "target_out", "target_mask", "example_ids", "row_mask"):
                np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert count == stop - 1


def flip(path, place=-1):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing", "lengths", "no lengths"])
def test_a_damaged_shard_is_refused_by_name_with_the_cure(tmp_path, pairs, damage):
    folder = write_corpus(tmp_path / "prepared", pairs)
    tokens, lengths, _ = shard_files(folder, 2)
    if damage == "cut":
        tokens.write_bytes(tokens.read_bytes()[:-1000])
    elif damage == "flipped":
        flip(tokens, 66_000)
    elif damage == "missing":
        tokens.unlink()
    elif damage == "lengths":
        flip(lengths)
    else:
        lengths.unlink()
    with pytest.raises(UserError, match="run --mode=prepare again") as caught:
        PreparedPairs.open(folder)
    assert str(lengths if "lengths" in damage else tokens) in str(caught.value) and "\n" not in str(caught.value)


def test_damage_that_comes_later_is_found_when_it_is_read(tmp_path, pairs):
    folder = write_corpus(tmp_path / "prepared", pairs)
    path = shard_files(folder, 0)[0]
    flip(path, path.read_bytes().index(pairs.source[40].astype(np.uint16).tobytes()))
    prepared = PreparedPairs.open(folder, check=False)
    assert_reads(prepared, pairs, np.array([299, 301]))
    with pytest.raises(UserError, match="00000.array_record"):
        prepared.read(np.array([40]))


@pytest.mark.parametrize("page", [None, "{", "[]", '{"format": 0}', '{"format": 1}'])
def test_an_index_that_is_none_is_refused(tmp_path, pairs, page):
    folder = write_corpus(tmp_path / "prepared", pairs)
    (folder / "index.json").unlink()
    if page is not None:
        (folder / "index.json").write_text(page)
    with pytest.raises(UserError, match=r"index\.json") as caught:
        PreparedPairs.open(folder)
    assert "--mode=prepare" in str(caught.value)


def test_the_digest_is_of_the_content(tmp_path, folder, pairs):
    """Not of where it came from; and another token gives another."""
    index = Index.load(folder)
    assert Index.load(write_corpus(tmp_path / "again", pairs)).digest == index.digest
    page = json.loads((folder / "index.json").read_text())
    assert page["pairs"] == 455 and page["left_out"] == {"blank": 2}
    other = make_pairs()
    other.target.flat[5] += 1
    assert Index.load(write_corpus(tmp_path / "other", other)).digest != index.digest
