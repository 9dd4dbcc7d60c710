"""Vocabularies: round trips, special ids, files that are not what they were."""

import dataclasses
import hashlib
import json
import pickle
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seq2seq_jax.data.pipeline import build_batch, tokenise
from seq2seq_jax.data.plan import make_plan
from seq2seq_jax.data.sources import make_text
from seq2seq_jax.data.vocab import BOS_ID, EOS_ID, KINDS, PAD_ID, UNK_ID, Vocab, Vocabs
from seq2seq_jax.data.vocab_training import train_vocab, train_vocabs
from seq2seq_jax.errors import UserError

LINES = ["the cat sat on the mat", "the dog sat on the log", "ein Hund läuft über die Straße"] * 5
VOCABS = {kind: train_vocab(LINES, kind=kind, size=60) for kind in KINDS}
VOCABS["bpe"] = train_vocab(LINES, kind="sentencepiece", model="bpe", size=60)
VOCABS["fallback"] = train_vocab(LINES, kind="sentencepiece", size=320, byte_fallback=True)


@pytest.mark.parametrize("name", VOCABS)
def test_round_trip_of_seen_text(name):
    vocab = VOCABS[name]
    for line in LINES[:3]:
        ids = vocab.encode(line)
        assert UNK_ID not in ids
        assert vocab.decode(ids) == line
        assert vocab.decode([BOS_ID, *ids, EOS_ID, PAD_ID, PAD_ID]) == line
        assert len(vocab.pieces(ids)) == len(ids)


@given(st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), max_size=30))
def test_bytes_give_back_any_text_as_nfkc_has_it(text):
    vocab = train_vocab([], kind="byte", normalization="nfkc")
    if "▁" not in text:  # SentencePiece's own sign for a blank
        assert vocab.decode(vocab.encode(text)) == " ".join(unicodedata.normalize("NFKC", text).split())


@given(st.text(max_size=30))
@pytest.mark.parametrize("name", ["fallback", "byte"])
def test_nothing_is_unknown_to_bytes(name, text):
    vocab = VOCABS[name]
    ids = vocab.encode(text)
    assert UNK_ID not in ids
    assert vocab.decode(ids) == vocab.normalise(text)


@pytest.mark.parametrize("name", VOCABS)
def test_special_ids_are_never_made_from_text(name):
    vocab = VOCABS[name]
    assert vocab.pieces([0, 1, 2, 3]) == ["<pad>", "<unk>", "<s>", "</s>"]
    assert (vocab.pad_id, vocab.unk_id, vocab.bos_id, vocab.eos_id) == (0, 1, 2, 3)
    ids = vocab.encode("<pad> <s> </s> a\0b \ud800 x\u2028y")
    assert not {PAD_ID, BOS_ID, EOS_ID} & set(ids)
    assert vocab.encode("") == vocab.encode(" \t \0") == []


def test_unknown_words_read_as_unknown():
    vocab = VOCABS["word"]
    assert vocab.decode(vocab.encode("the zebra sat")) == "the ⁇ sat"
    assert VOCABS["sentencepiece"].decode([UNK_ID]).strip() == "⁇"


def test_words_are_ranked_by_frequency_then_spelling():
    vocab = train_vocab(["b a c c", "c b a"], kind="word", size=6)
    assert vocab.pieces(range(vocab.size)) == ["<pad>", "<unk>", "<s>", "</s>", "c", "a"]


@pytest.mark.parametrize("name", VOCABS)
def test_many_lines_equal_one_by_one(name):
    many = VOCABS[name].encode_many([*LINES[:3], ""])
    assert all(ids.dtype == np.int32 for ids in many)
    assert [ids.tolist() for ids in many] == [VOCABS[name].encode(line) for line in [*LINES[:3], ""]]
    assert VOCABS[name].encode_many([]) == []


@pytest.mark.parametrize("model", ["unigram", "bpe"])
def test_training_twice_gives_the_same_bytes(model):
    assert train_vocab(LINES, size=50, model=model) == train_vocab(LINES, size=50, model=model)


def test_training_prints_nothing(capfd):
    train_vocab(LINES, size=50)
    assert capfd.readouterr() == ("", "")


def test_small_corpus_gives_what_it_has():
    assert 4 < train_vocab(["a b c"] * 3, size=8000).size < 20


@pytest.mark.parametrize("name", VOCABS)
def test_saved_loaded_and_pickled_vocabs_are_equal(name, tmp_path):
    vocab = VOCABS[name]
    vocab.save(tmp_path, "v")
    loaded = Vocab.load(tmp_path, "v")
    for copy in (loaded, pickle.loads(pickle.dumps(vocab))):
        assert copy == vocab and copy.digest == vocab.digest and copy.size == vocab.size
        assert copy.encode(LINES[2]) == vocab.encode(LINES[2])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v.json", "v.model"]


def test_digest_tells_normalisations_apart():
    assert train_vocab([], kind="byte").digest != train_vocab([], kind="byte", normalization="identity").digest


def test_joint_and_separate_vocabs(tmp_path):
    joint = train_vocabs(LINES[:1], LINES[2:3], joint=True, kind="word")
    assert joint.source is joint.target and UNK_ID not in joint.source.encode("cat Hund")
    apart = train_vocabs(LINES[:1], LINES[2:3], joint=False, kind="word")
    assert apart.target.encode("cat") == [UNK_ID]
    for name, vocabs in (("joint", joint), ("apart", apart)):
        vocabs.save(tmp_path / name)
        assert Vocabs.load(tmp_path / name) == vocabs
    assert joint.digest != apart.digest


def test_two_vocabularies_may_have_two_sizes():
    source, target = ["a b c d e f", "a b c"], ["u v w x y z", "u v"]
    vocabs = train_vocabs(source, target, joint=False, kind="word", size=9, target_size=6)
    assert (vocabs.source.size, vocabs.target.size) == (9, 6)  # the four special ids are among them
    assert vocabs.target.pieces(range(4, 6)) == ["u", "v"]
    assert train_vocabs(source, target, joint=False, kind="word", size=9).target.size == 9


def test_swapped_sides_are_noticed(tmp_path):
    train_vocabs(LINES[:1], LINES[2:3], joint=False, kind="word").save(tmp_path)
    for end in ("json", "model"):
        (tmp_path / f"vocab_source.{end}").write_bytes((tmp_path / f"vocab_target.{end}").read_bytes())
    with pytest.raises(UserError, match="vocabs.json"):
        Vocabs.load(tmp_path)


@pytest.mark.parametrize("end", ["json", "model"])
@pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "directory"])
@pytest.mark.parametrize("name", ["sentencepiece", "char"])
def test_damaged_files_are_named(name, damage, end, tmp_path):
    VOCABS[name].save(tmp_path, "v")
    path = tmp_path / f"v.{end}"
    data = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        middle = data.find(b"digest") + 12 if end == "json" else len(data) // 2
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    elif damage == "directory":
        path.mkdir()
    with pytest.raises(UserError, match=r"v\.(json|model)") as caught:
        Vocab.load(tmp_path, "v")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["[]", "{}", "null", '{"kind": "runes"}', '{"kind": 3, "normalization": []}'])
def test_json_of_something_else_is_refused(content, tmp_path):
    VOCABS["byte"].save(tmp_path, "v")
    (tmp_path / "v.json").write_text(content)
    with pytest.raises(UserError):
        Vocab.load(tmp_path, "v")


def test_wrong_kind_inside_a_page_is_refused(tmp_path):
    VOCABS["byte"].save(tmp_path, "v")
    page = json.loads((tmp_path / "v.json").read_text()) | {"normalization": "none"}
    (tmp_path / "v.json").write_text(json.dumps(page))
    with pytest.raises(UserError, match="normalization must be one of"):
        Vocab.load(tmp_path, "v")


@pytest.mark.parametrize(
    ("lines", "options", "said"),
    [
        (["abcdefghijklm"] * 3, {"size": 6}, r"config\.vocab\.size = 6"),
        (LINES, {"size": 4, "kind": "word"}, "must be more than 4"),
        (["", "  ", "\0"], {}, "blank"),
        (LINES, {"kind": "runes"}, "sentencepiece, word, char, byte"),
        (LINES, {"model": "wordpiece"}, "unigram, bpe"),
        (LINES, {"normalization": "nfd"}, "nmt_nfkc"),
    ],
)
def test_impossible_vocabs_are_refused_in_one_line(lines, options, said):
    with pytest.raises(UserError, match=said) as caught:
        train_vocab(lines, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", VOCABS)
@pytest.mark.parametrize("ids", [[-1], [10**6]])
def test_ids_of_no_piece_are_refused(name, ids):
    with pytest.raises(ValueError, match="must lie between"):
        VOCABS[name].decode(ids)


TAGGED = {
    "sentencepiece": train_vocab(LINES, size=60, tags=("2de", "bt")),
    "bpe": train_vocab(LINES, size=60, model="bpe", tags=("2de", "bt")),
    "fallback": train_vocab(LINES, size=320, byte_fallback=True, tags=("2de", "bt")),
    **{kind: train_vocab(LINES, size=60, kind=kind, tags=("2de", "bt")) for kind in ("word", "char", "byte")},
}


@pytest.mark.parametrize("name", TAGGED)
def test_tags_follow_the_special_ids(name, tmp_path):
    vocab = TAGGED[name]
    assert vocab.pieces(range(6)) == ["<pad>", "<unk>", "<s>", "</s>", "<2de>", "<bt>"]
    assert vocab.tag_ids(["bt", "2de"]).tolist() == [5, 4] and vocab.tag_ids([]).dtype == np.int32
    assert vocab.size <= 60 or name in ("fallback", "byte")
    vocab.save(tmp_path, "v")
    for copy in (Vocab.load(tmp_path, "v"), pickle.loads(pickle.dumps(vocab))):
        assert copy == vocab and copy.tags == ("2de", "bt")


@pytest.mark.parametrize("name", TAGGED)
def test_no_text_spells_a_tag_and_no_tag_is_text(name):
    vocab = TAGGED[name]
    for text in ("<2de> the cat", "<bt>", "a<2de>b", "▁<2de>", "2de"):
        assert not {4, 5} & set(vocab.encode(text))
    ids = vocab.encode(LINES[0])
    assert vocab.decode([4, *ids, 5]) == vocab.decode(ids) == LINES[0]


def test_a_training_text_that_spells_the_tag_changes_nothing_of_it():
    lines = [*LINES, *["<2de> the <2de> cat"] * 20]
    for options in ({"model": "unigram"}, {"model": "bpe"}, {"kind": "word"}, {"kind": "char"}):
        vocab = train_vocab(lines, size=80, tags=("2de",), **options)
        assert 4 not in vocab.encode("<2de> the <2de>")
        assert vocab.pieces(vocab.tag_ids(["2de"])) == ["<2de>"]


@pytest.mark.parametrize("name", ["sentencepiece", "word", "byte"])
def test_a_digest_covers_the_tags_and_nothing_else_new(name, tmp_path):
    plain, tagged = VOCABS[name], TAGGED[name]
    assert len({plain.digest, tagged.digest, dataclasses.replace(tagged, tags=("bt", "2de")).digest}) == 3
    plain.save(tmp_path, "v")
    assert "tags" not in json.loads((tmp_path / "v.json").read_text())
    head = f"{plain.kind}\0{plain.algorithm}\0{plain.normalization}\0".encode()
    assert plain.digest == hashlib.sha256(head + plain.model).hexdigest()


def test_a_page_with_other_tags_is_refused(tmp_path):
    TAGGED["word"].save(tmp_path, "v")
    page = json.loads((tmp_path / "v.json").read_text())
    for tags in (["2fr", "bt"], [], ["<"], "2d"):
        (tmp_path / "v.json").write_text(json.dumps(page | {"tags": tags}))
        with pytest.raises(UserError):
            Vocab.load(tmp_path, "v")


@pytest.mark.parametrize("tags", [["s"], ["a", "a"], ["a b"], ["<a>"], [""], ["unk"]])
def test_impossible_tags_are_refused(tags):
    with pytest.raises(UserError, match=r"config\.vocab\.tags"):
        train_vocab(LINES, kind="word", tags=tags)


def test_an_unknown_tag_names_the_key():
    with pytest.raises(UserError, match=r"no tag <2fr> \(it has <2de>, <bt>\).*config\.vocab\.tags"):
        TAGGED["word"].tag_ids(["2de", "2fr"])


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"model": "unigram"},
        {"model": "bpe"},
        {"model": "unigram", "byte_fallback": True, "size": 400},
        {"model": "bpe", "byte_fallback": True, "size": 400},
        {"kind": "word"},
        {"kind": "char"},
        {"kind": "byte"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
@pytest.mark.parametrize("tags", [(), ("2de",)])
def test_every_combination_from_text_to_batch_and_back(options, joint, tags, tmp_path):
    source, target = LINES[:2] * 3, [LINES[2], "der Hund saß auf der Matte"] * 3
    vocabs = train_vocabs(source, target, joint=joint, **({"size": 90} | options), tags=tags)
    vocabs.save(tmp_path)
    vocabs = Vocabs.load(tmp_path)
    pairs = tokenise(make_text(source, target, name="t"), vocabs, tags)
    plan = make_plan(pairs.source_lengths, pairs.target_lengths, seed=0, rows=6, rows_multiple=1, max_shapes=1)
    batch = build_batch(pairs, plan.batch(0))
    for i, row in enumerate(batch.example_ids):
        assert vocabs.source.decode(batch.source[i]) == source[row]
        assert vocabs.target.decode(batch.target_out[i]) == target[row]
        assert batch.source[i][: len(tags)].tolist() == vocabs.source.tag_ids(tags).tolist()
    assert batch.source.max() < vocabs.source.size and batch.target_out.max() < vocabs.target.size
