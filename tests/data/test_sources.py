"""Parallel text: what is read, and the one line each bad input gets."""

import gzip
import hashlib
import os
import random
import sys
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seq2seq_jax.data import sources
from seq2seq_jax.data.sources import drop_blank, hold_out, make_text, open_split, read_parallel
from seq2seq_jax.errors import UserError

EN, DE = "one cat\ntwo dogs\n", "eine Katze\nzwei Hunde\n"


def write(folder, **files):
    for name, content in files.items():
        data = content.encode() if isinstance(content, str) else content
        (folder / f"t.{name.replace('_', '.')}").write_bytes(data)
    return folder / "t"


def read(prefix):
    return read_parallel(prefix, source="en", target="de")


def error_of(call) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_way_to_store_a_corpus_reads_the_same(tmp_path):
    plain = read(write(tmp_path, en=EN, de=DE))
    assert plain.source == ["one cat", "two dogs"] and plain.target == ["eine Katze", "zwei Hunde"]
    rows = "one cat\teine Katze\ntwo dogs\tzwei Hunde"
    write(tmp_path, tsv=rows, tsv_gz=gzip.compress(rows.encode()))
    others = [read(tmp_path / "t.tsv"), read(tmp_path / "t.tsv.gz")]
    write(tmp_path, en="\ufeff" + EN.replace("\n", "\r\n"), de_gz=gzip.compress(DE.rstrip("\n").encode()))
    (tmp_path / "t.de").unlink()
    others.append(read(tmp_path / "t"))
    for other in others:
        assert (other.source, other.target, other.digest) == (plain.source, plain.target, plain.digest)


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n\ufeff")), min_size=1))
def test_only_newlines_split_lines(tmp_path_factory, lines):
    lines = [line.rstrip("\r") for line in lines]
    prefix = write(tmp_path_factory.mktemp("d"), en="".join(f"{line}\n" for line in lines))
    assert read_parallel(prefix, source="en", target=None).source == lines


@pytest.mark.parametrize("block", [1, 3, 7])
def test_blocks_do_not_show(tmp_path, monkeypatch, block):
    monkeypatch.setattr(sources, "_BLOCK_BYTES", block)
    text = read(write(tmp_path, en="\ufeffä\n\nxyz ßßß\n", de="\r\nü\r\n日本"))
    assert (text.source, text.target) == (["ä", "", "xyz ßßß"], ["", "ü", "日本"])


def test_digest_changes_with_every_sentence():
    texts = [(["a", "b"], ["c", "d"]), (["a b"], ["c", "d"][:1]), (["a"], ["b"]), (["a", "b"], None), (["b"], ["a"])]
    assert len({make_text(*sides, name="n").digest for sides in texts}) == len(texts)


def test_missing_side_names_what_is_there(tmp_path):
    message = error_of(lambda: read(write(tmp_path, en=EN, dd=DE)))
    assert "t.de: no such file, nor t.de.gz" in message and "t.en" in message and "t.dd" in message
    assert "does not exist" in error_of(lambda: read(tmp_path / "nowhere" / "t"))
    assert "t.en" in error_of(lambda: read(tmp_path / "t.tsv"))


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"en": EN, "de": ""}, ["t.de", "is empty"]),
        ({"tsv": ""}, ["t.tsv", "is empty"]),
        ({"en": EN, "de": b"gut\nschlecht \xff!\n"}, ["t.de", "line 2", "0xff", "position 10"]),
        ({"en": EN.encode("utf-16"), "de": DE}, ["t.en", "line 1", "UTF-16"]),
        ({"en": EN, "de": b"\xed\xa0\x80\nx\n"}, ["t.de", "line 1", "not UTF-8"]),
        ({"en": EN, "de_gz": b"no gzip"}, ["t.de.gz", "gzip"]),
        ({"en": EN, "de_gz": gzip.compress(DE.encode() * 99)[:-12]}, ["t.de.gz", "gzip"]),
        ({"tsv": "a\tb\nonly one\n"}, ["t.tsv", "line 2", "0 tabs"]),
        ({"tsv": "a\tb\nc\td\ne\tf\tg\n"}, ["t.tsv", "line 3", "2 tabs"]),
        ({"tsv": "a\tb\n\n"}, ["line 2", "0 tabs"]),
        ({"en": EN + "three\n", "de": DE}, ["source has 3 lines, target has 2", "line 3", "only source"]),
    ],
)
def test_bad_files_get_one_line(tmp_path, files, said):
    prefix = write(tmp_path, **files)
    message = error_of(lambda: read(f"{prefix}.tsv" if "tsv" in files else prefix))
    assert all(part in message for part in said), message


def test_line_numbers_count_over_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_BLOCK_BYTES", 16)
    prefix = write(tmp_path, en=b"good line\n" * 50 + b"bad \xc3\n")
    assert "line 51 " in error_of(lambda: read_parallel(prefix, source="en", target=None))


def test_folders_and_pipes_are_refused(tmp_path):
    (tmp_path / "t.en").mkdir()
    os.mkfifo(tmp_path / "t.de")
    assert "is a folder" in error_of(lambda: read(tmp_path / "t"))
    assert "not a regular file" in error_of(lambda: read_parallel(tmp_path / "t", source="de", target=None))


def test_endless_line_is_refused_and_a_long_one_is_read(tmp_path):
    long = "word " * 400_000
    assert read_parallel(write(tmp_path, en=long), source="en", target=None).source == [long]
    endless = bytes(sources.MAX_LINE_BYTES + (8 << 20))
    for name, data, said in (
        ("yy", endless, "line of more than 32 MiB"),
        ("xx_gz", gzip.compress(endless, 1), "unpacks to more than 200 times its size"),
        ("zz_gz", gzip.compress(b"\n" * len(endless), 1), "unpacks to more than 200 times its size"),
    ):
        prefix = write(tmp_path, **{name: data})
        assert said in error_of(lambda: read_parallel(prefix, source=name[:2], target=None))  # noqa: B023


@pytest.mark.parametrize("lost", [0, 70, 199])
def test_lost_line_is_found_by_lengths(lost):
    rng = random.Random(lost)
    source = ["x" * rng.randint(5, 150) for _ in range(200)]
    target = ["y" * round(len(line) * rng.uniform(1.0, 1.3)) for line in source]
    del target[lost]
    message = error_of(lambda: make_text(source, target, name="n"))
    assert "source has 200 lines, target has 199" in message
    if lost == 199:
        assert "out of step" not in message
    else:
        found = int(message.split("out of step near line ")[1].split(".")[0])
        assert abs(found - (lost + 1)) <= 3


def test_blank_on_one_side_is_pointed_at():
    assert "line 2 is blank on one side only" in error_of(lambda: make_text(["a", " ", "b"], ["a", "b"], name="n"))


def test_training_skips_blank_pairs_and_test_keeps_them(tmp_path, caplog):
    prefix = write(tmp_path, en="a\n\nc\nd\n", de="A\nB\n \nD\n")
    text = open_split(str(prefix), split="train", source="en", target="de")
    assert (text.source, text.target) == (["a", "d"], ["A", "D"])
    assert "2 of 4 pairs" in caplog.text and "(lines 2, 3)" in caplog.text
    assert len(open_split(str(prefix), split="test", source="en", target="de")) == 4
    assert "nothing is left" in error_of(lambda: drop_blank(make_text([""], ["a"], name="n")))
    assert "data.dev is empty" in error_of(lambda: open_split("", split="dev", source="en", target="de"))
    with pytest.raises(ValueError, match="train, dev, test"):
        open_split(str(prefix), split="val", source="en", target="de")


def test_phrasebook_is_opened_by_name(monkeypatch):
    asked = []

    def pairs(split, *, source, target, size, seed=0):
        asked.append((split, source, target, size, seed))
        return ["a"] * size, ["b"] * size

    module = types.ModuleType("phrasebook")
    module.pairs = pairs
    monkeypatch.setitem(sys.modules, "seq2seq_jax.data.phrasebook", module)
    monkeypatch.setattr("seq2seq_jax.data.phrasebook", module, raising=False)
    text = open_split("phrasebook", split="dev", source="en", target="de", phrasebook_pairs=3, seed=5)
    assert text.source == ["a"] * 3 and asked == [("dev", "en", "de", 3, 5)]


def test_hold_out_keeps_repeats_together_and_ignores_order():
    rng = random.Random(0)
    pairs = [(f"s{rng.randint(0, 300)}", f"t{i}") for i in range(1000)]
    parts = hold_out(make_text(*map(list, zip(*pairs, strict=True)), name="n"), dev=50, test=60)
    assert sum(map(len, parts)) == 1000 and sorted(t for part in parts for t in part.target) == sorted(
        t for _, t in pairs
    )
    _, dev, test = parts
    assert 50 <= len(dev) < 65 and 110 - len(dev) <= len(test) < 75
    sides = [set(part.source) for part in parts]
    assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]
    rng.shuffle(pairs)
    again = hold_out(make_text(*map(list, zip(*pairs, strict=True)), name="n"), dev=50, test=60)
    assert [set(part.source) for part in again] == sides


def test_hold_out_is_by_blake2b_of_the_source():
    lines = [f"s{i}" for i in range(9)]
    key = {line: int.from_bytes(hashlib.blake2b(line.encode(), digest_size=8).digest(), "little") for line in lines}
    _, dev, _ = hold_out(make_text(lines, lines, name="n"), dev=2, test=0)
    assert set(dev.source) == set(sorted(lines, key=key.get)[:2])


def test_hold_out_refuses_to_leave_nothing():
    assert "at least half" in error_of(lambda: hold_out(make_text(["a"] * 9, ["b"] * 9, name="n"), dev=3, test=3))
    assert "distinct" in error_of(lambda: hold_out(make_text(["a"] * 9, ["b"] * 9, name="n"), dev=1, test=1))
