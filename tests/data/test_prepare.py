"""Preparing a corpus: the shards hold what reading into memory gives, whatever the workers, hosts, kills and damage."""

import dataclasses
import gzip
import json
import os
import random
import shutil

import numpy as np
import pytest

from seq2seq_jax.data.clean import CleanRules, clean_texts
from seq2seq_jax.data.pipeline import join_pairs, tokenise
from seq2seq_jax.data.prepare import prepare, read_held_out
from seq2seq_jax.data.recipe import describe_content, find_files
from seq2seq_jax.data.sources import drop_blank, hold_out, make_text, read_parallel
from seq2seq_jax.data.spec import CorpusSpec
from seq2seq_jax.data.store import PreparedPairs, shard_files
from seq2seq_jax.data.streams import LineFile, find_corpus, read_piece, stream
from seq2seq_jax.data.survey import Findings, Order
from seq2seq_jax.data.vocab import Vocabs
from seq2seq_jax.data.vocab_training import train_vocabs
from seq2seq_jax.errors import UserError

RULES = CleanRules(max_chars=60, duplicates=True)


def make_lines(count, seed):
    """Sentences with blank ones, repeats, long ones and odd characters."""
    draw = random.Random(seed)
    words = [chr(97 + i % 26) * (1 + i % 4) for i in range(60)] + ["é", "ü\u2028x", "日本"]
    source = [" ".join(draw.choices(words, k=draw.randint(1, 9))) for _ in range(count)]
    target = [line.upper() for line in source]
    for i in range(0, count, 17):
        target[i] = " "
    for i in range(5, count, 13):
        source[i], target[i] = source[i - 5], target[i - 5]
    source[3] = "long " * 20
    return source, target


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Two corpora: plain and gzipped files with carriage returns, and a TSV with no last line end."""
    root = tmp_path_factory.mktemp("texts")
    source, target = make_lines(400, 0)
    (root / "a.en").write_bytes(b"\xef\xbb\xbf" + "".join(line + "\r\n" for line in source).encode())
    with gzip.open(root / "a.de.gz", "wb") as file:
        file.write("".join(line + "\n" for line in target).encode())
    more = list(zip(*make_lines(150, 1), strict=True)) + list(zip(source[:30], target[:30], strict=True))
    (root / "b.tsv").write_text("\n".join("\t".join(pair) for pair in more), encoding="utf-8", newline="\n")
    return root


def make_order(texts, folder, **changes):
    specs = (CorpusSpec(str(texts / "a"), "en", "de"), CorpusSpec(str(texts / "b.tsv"), "en", "de", 2.0, ("bt",)))
    order = Order(
        folder=folder,
        corpora=tuple(find_corpus(spec, phrasebook_pairs=0) for spec in specs),
        rules=RULES,
        held_out_pairs=1000,
        hold_dev=True,
        hold_test=True,
        turned=False,
        needs_sample=True,
        shard_pairs=70,
        workers=1,
        host=0,
        hosts=1,
        tell=lambda line: None,
    )
    return dataclasses.replace(order, **changes)


def run(order):
    """Prepares; the vocabularies are made once, of what is sampled."""
    content = describe_content(
        [corpus.spec for corpus in order.corpora],
        order.rules,
        phrasebook_pairs=0,
        held_out_pairs=order.held_out_pairs,
        hold_dev=order.hold_dev,
        hold_test=order.hold_test,
        turned=order.turned,
    )

    def obtain(text):
        if text is not None:
            train_vocabs(text.source, text.target, kind="char", size=80, tags=("bt",)).save(order.folder / "vocab")
        return Vocabs.load(order.folder / "vocab")

    return prepare(order, content, obtain)


def read_in_memory(order):
    """The same by the functions that keep all text in memory: train, dev and test."""
    whole = [read_parallel(corpus.spec.name, source="en", target="de") for corpus in order.corpora]
    whole = [drop_blank(text) for text in whole]
    pairs = min(order.held_out_pairs, len(whole[0]) // 20)
    whole[0], dev, test = hold_out(whole[0], dev=pairs * order.hold_dev, test=pairs * order.hold_test)
    return clean_texts(whole, order.rules, [("en", "de")] * 2), dev, test


def assert_same(prepared, pairs):
    ids = np.arange(len(pairs))
    assert len(prepared) == len(pairs)
    for found, wanted in zip(prepared.read(ids), pairs.read(ids), strict=True):
        np.testing.assert_array_equal(found.offsets, wanted.offsets)
        np.testing.assert_array_equal(found.flat, wanted.flat)


@pytest.fixture(scope="module")
def prepared(texts, tmp_path_factory):
    order = make_order(texts, tmp_path_factory.mktemp("done") / "prepared")
    return order, run(order)


def test_holds_what_reading_into_memory_gives(prepared):
    order, index = prepared
    train, dev, test = read_in_memory(order)
    joined = make_text(*([line for text in train for line in side(text)] for side in SIDES), name="")
    vocabs = train_vocabs(joined.source, joined.target, kind="char", size=80, tags=("bt",))
    assert Vocabs.load(order.folder / "vocab").digest == vocabs.digest == index.vocab_sha256
    found = PreparedPairs.open(order.folder)
    pairs = join_pairs([tokenise(text, vocabs, tags) for text, tags in zip(train, ((), ("bt",)), strict=True)])
    assert_same(found, pairs)
    assert found.part_sizes == tuple(len(text) for text in train)
    for name, text in (("dev", dev), ("test", test)):
        held = read_held_out(order.folder, name, index)
        assert (held.source, held.target, held.digest) == (text.source, text.target, text.digest)
    with pytest.raises(UserError, match=r"dev\.json: its digest is not that in index\.json"):
        read_held_out(order.folder, "dev", dataclasses.replace(index, held_out={}))


SIDES = (lambda text: text.source, lambda text: text.target)


def test_says_what_was_left_out_and_why(prepared):
    order, index = prepared
    left = index.left_out
    assert left["blank"] >= 24 + 9 and left["too long"] == 2 and left["duplicate"] > 10
    assert sum(left.values()) + len(index) == 400 + 180
    rows = [json.loads(line) for line in (order.folder / "dropped.jsonl").read_text().split("\n")[:-1]]
    counts = {reason: sum(row["reason"] == reason for row in rows) for reason in ("blank", "duplicate", "too long")}
    assert counts == {"blank": 20, "duplicate": min(20, left["duplicate"]), "too long": 2}
    first = next(row for row in rows if row["reason"] == "too long")
    assert (first["corpus"], first["line"], first["source"][:9]) == (order.corpora[1].spec.name, 4, "long long")


def test_hosts_share_the_shards_and_the_last_one_writes_the_index(texts, tmp_path, prepared):
    whole = prepared[1]
    order = make_order(texts, tmp_path / "prepared", hosts=3)
    for host in (1, 2):
        assert run(dataclasses.replace(order, host=host)) is None
    index = run(order)
    assert index.digest == whole.digest and index.files == whole.files
    assert run(dataclasses.replace(order, host=2)).digest == whole.digest


def test_two_processes_give_the_same(texts, tmp_path, prepared):
    assert run(make_order(texts, tmp_path / "prepared", workers=2)).digest == prepared[1].digest


def test_goes_on_after_a_kill_and_makes_only_what_is_missing(texts, tmp_path, prepared):
    """A kill leaves no index, perhaps a shard without its note, and files of odd names; a disk may damage a shard."""
    said = []
    order = make_order(texts, tmp_path / "prepared", tell=said.append)
    run(order)
    paths = {number: shard_files(order.folder, number) for number in range(9)}
    (order.folder / "index.json").unlink()
    paths[1][2].unlink()
    paths[4][0].write_bytes(paths[4][0].read_bytes()[:70_000])
    (order.folder / "shards" / ".00005.array_record.abcdef").write_bytes(b"half")
    kept = {number: paths[number][0].stat().st_mtime_ns for number in (0, 2, 3, 5, 6, 7, 8)}
    said.clear()
    assert run(order).digest == prepared[1].digest
    assert any("2 of 9 shards made now, 7 were there" in line for line in said)
    assert {number: paths[number][0].stat().st_mtime_ns for number in kept} == kept
    assert not list((order.folder / "shards").glob(".*"))


def test_a_damaged_shard_of_a_finished_corpus_is_made_again(texts, tmp_path, prepared):
    order = make_order(texts, tmp_path / "prepared")
    run(order)
    path = shard_files(order.folder, 2)[0]
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match="00002.array_record"):
        PreparedPairs.open(order.folder)
    assert run(order).digest == prepared[1].digest
    PreparedPairs.open(order.folder)


def test_another_recipe_is_refused_with_what_differs(prepared):
    order, _ = prepared
    with pytest.raises(UserError, match=r"clean\.max_chars \(there 60, now 0\).*config\.data\.prepared"):
        run(dataclasses.replace(order, rules=dataclasses.replace(RULES, max_chars=0)))
    with pytest.raises(UserError, match=r"shard_pairs \(there 70, now 71\)"):
        run(dataclasses.replace(order, shard_pairs=71))


@pytest.mark.parametrize("finished", [True, False])
def test_a_changed_file_is_noticed(texts, tmp_path, finished):
    root = tmp_path / "texts"
    root.mkdir()
    for path in texts.iterdir():
        (root / path.name).write_bytes(path.read_bytes())
    order = make_order(root, tmp_path / "prepared")
    run(order)
    if not finished:
        (order.folder / "index.json").unlink()
    path = root / "b.tsv"
    data = path.read_bytes()
    path.write_bytes(data)
    os.utime(path, ns=(0, 0))
    if finished:
        assert run(order)  # the same bytes at another time: their sha256 is known
    path.write_bytes(data.replace(b"a", b"b", 1))
    os.utime(path, ns=(0, 0))
    with pytest.raises(UserError, match=r"b\.tsv: was changed"):
        run(order)


@pytest.mark.parametrize("finished", [True, False])
def test_files_may_move_and_their_bytes_decide(texts, tmp_path, finished):
    """Also where a corpus of the same name, size and languages lies in another folder."""
    first, second = tmp_path / "1", tmp_path / "2"
    shutil.copytree(texts, first)
    order = make_order(first, tmp_path / "prepared")
    digest = run(order).digest
    if not finished:
        (order.folder / "index.json").unlink()
        shard_files(order.folder, 3)[2].unlink()
    shutil.copytree(first, second)  # keeps the times of change, as far as the system has them
    moved = make_order(second, order.folder)
    assert run(moved).digest == digest
    data = (second / "a.en").read_bytes()
    (second / "a.en").write_bytes(data.replace(b"a", b"b", 1))
    told = r"is not the text of .*1/a\.en" if finished else "was changed since"
    with pytest.raises(UserError, match=rf"2/a\.en: {told}.* bytes by index\.json"):
        run(moved)
    assert find_files([corpus.spec for corpus in order.corpora]) == [path for c in order.corpora for path in c.paths]
    (second / "a.en").unlink()
    (second / "b.tsv").unlink()
    assert find_files([corpus.spec for corpus in moved.corpora]) == ["", "", ""]


def test_damaged_notes_are_told_or_made_again(texts, tmp_path, prepared):
    order = make_order(texts, tmp_path / "prepared")
    run(order)
    for path in (order.folder / "index.json", shard_files(order.folder, 1)[2]):
        path.unlink()
    scan, recipe = order.folder / "scan-0.npz", order.folder / "recipe.json"
    for damaged in (scan.read_bytes()[:200], b"", b"PK"):
        scan.write_bytes(damaged)
        assert Findings.load(scan, "key") is None
    assert run(order).digest == prepared[1].digest
    (order.folder / "index.json").unlink()
    recipe.write_bytes(recipe.read_bytes()[:50])
    with pytest.raises(UserError, match=r"recipe\.json: cannot be read .*remove"):
        run(order)


@pytest.mark.parametrize("pairs", [1, 70])
def test_only_pairs_that_stay_count_as_seen(texts, tmp_path, pairs):
    """A pair that was too long with its blanks is no reason to drop the same one without them."""
    lines = [f"{word} and so on" for word in ("one", "two", "three", "four", "five")]
    long = [line.replace(" ", " " * 20) for line in lines[:2]]
    for name, source in (("a", [*long, *lines[1:]]), ("b", [*lines, lines[0]])):
        (tmp_path / f"{name}.tsv").write_text("".join(f"{line}\t{line.upper()}\n" for line in source))
    specs = [CorpusSpec(str(tmp_path / f"{name}.tsv"), "en", "de") for name in "ab"]
    corpora = tuple(find_corpus(spec, phrasebook_pairs=0) for spec in specs)
    order = make_order(texts, tmp_path / "prepared", corpora=corpora, hold_dev=False, hold_test=False)
    order = dataclasses.replace(order, shard_pairs=pairs)
    index = run(order)
    whole = [drop_blank(read_parallel(spec.name, source="en", target="de")) for spec in specs]
    kept = clean_texts(whole, order.rules, [("en", "de")] * 2)
    assert [text.source for text in kept] == [lines[1:], lines[:1]]
    assert [part.pairs for part in index.parts] == [4, 1] and index.left_out == {"too long": 2, "duplicate": 5}


def test_turned_corpora_have_their_sides_changed(texts, tmp_path):
    order = make_order(texts, tmp_path / "prepared", turned=True, rules=CleanRules(), hold_dev=False, hold_test=False)
    run(order)
    vocabs = Vocabs.load(order.folder / "vocab")
    train = [drop_blank(read_parallel(corpus.spec.name, source="en", target="de")) for corpus in order.corpora]
    turned = [make_text(text.target, text.source, name="") for text in train]
    pairs = join_pairs([tokenise(text, vocabs, tags) for text, tags in zip(turned, ((), ("bt",)), strict=True)])
    assert_same(PreparedPairs.open(order.folder), pairs)


@pytest.mark.parametrize("pairs", [1, 7, 400, 1000])
def test_pieces_hold_every_line_whatever_their_size(texts, pairs):
    order = make_order(texts, texts)
    read = [([], []) for _ in order.corpora]
    digests = {}
    for number, piece in enumerate(stream(order.corpora, pairs, digests)):
        assert piece.number == number and piece.count <= pairs and piece.first == len(read[piece.part][0])
        for side, lines in zip(read[piece.part], read_piece(piece, order.corpora[piece.part]), strict=True):
            side += lines
    for corpus, sides in zip(order.corpora, read, strict=True):
        text = read_parallel(corpus.spec.name, source="en", target="de")
        assert sides == (text.source, text.target)
    assert sorted(os.path.basename(path) for path in digests) == ["a.de.gz", "a.en", "b.tsv"]


@pytest.mark.parametrize("data", [b"", b"\n", b"a", b"a\n", b"\n\n", b"a\n\nb", b"a\nb\n\n"])
def test_lines_end_where_files_read_whole_end_them(tmp_path, data):
    path = tmp_path / "x"
    path.write_bytes(data)
    file = LineFile(str(path))
    count = 0
    while taken := file.take(1)[1]:
        count += taken
    assert count == data.count(b"\n") + (not data.endswith(b"\n") and bool(data))


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("c.en", b"one\n\xff\n" * 50, "line 2 is not UTF-8"),
        ("c.en", b"one\n" * 99, "99, "),
        ("c.en", b"", "is empty"),
        ("c.de", b"one\n" * 300, "has 300"),
    ],
)
def test_bad_text_is_told_in_one_line(tmp_path, name, data, told):
    for side in ("c.en", "c.de"):
        (tmp_path / side).write_bytes(data if side == name else b"ein\n" * 100)
    if told == "is empty":
        (tmp_path / "c.de").write_bytes(b"")
    corpus = find_corpus(CorpusSpec(str(tmp_path / "c"), "en", "de"), phrasebook_pairs=0)
    with pytest.raises(UserError, match=told) as caught:
        for piece in stream((corpus,), 40, {}):
            read_piece(piece, corpus)
    assert "\n" not in str(caught.value)
