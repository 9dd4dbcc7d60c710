"""Vocabularies made elsewhere: SentencePiece models of any ids, lists of words, and files that are neither."""

import io
from collections import Counter

import pytest
import sentencepiece

from seq2seq_jax.data.coverage import Coverage, coverage, describe_coverage
from seq2seq_jax.data.vocab import UNK_ID, Vocabs
from seq2seq_jax.data.vocab_files import digest_files, read_vocab, read_vocabs
from seq2seq_jax.data.vocab_training import train_vocab
from seq2seq_jax.errors import UserError

LINES = ["the cat sat on the mat", "the dog sat on the log", "ein Hund läuft über die Straße"] * 5
THEIRS = {  # ids and names as the libraries that made them have them
    "default": {},
    "t5": {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "user_defined_symbols": ["<extra_id_0>"]},
    "marian": {"eos_id": 0, "unk_id": 1, "bos_id": -1, "pad_id": -1},
    "bert": {
        "unk_piece": "[UNK]",
        "bos_piece": "[CLS]",
        "eos_piece": "[SEP]",
        "pad_id": 3,
        "pad_piece": "[PAD]",
        "control_symbols": ["[MASK]"],
    },
    "bytes": {"byte_fallback": True, "vocab_size": 330},
    "folded": {"normalization_rule_name": "nfkc_cf", "add_dummy_prefix": False},
    "suffix": {"treat_whitespace_as_suffix": True},
}


def make_model(path, lines, **options):
    writer = io.BytesIO()
    options = {"vocab_size": 70, "hard_vocab_limit": False, "minloglevel": 2} | options
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=writer, **options)
    path.write_bytes(writer.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=writer.getvalue())


def spell(model, line: str) -> list[str]:
    return ["<unk>" if model.is_unknown(i) else model.id_to_piece(i) for i in model.encode(line)]


@pytest.mark.parametrize("tags", [(), ("2de", "bt")])
@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
@pytest.mark.parametrize("name", THEIRS)
def test_a_model_cuts_text_as_it_did(name, model_type, tags, tmp_path):
    theirs = make_model(tmp_path / "own.model", LINES, model_type=model_type, **THEIRS[name])
    vocab = read_vocab(tmp_path / "own.model", kind="sentencepiece", tags=tags)
    assert vocab.pieces(range(vocab.first_id)) == ["<pad>", "<unk>", "<s>", "</s>", *(f"<{tag}>" for tag in tags)]
    for line in [*LINES[:3], "Another ﬁne  thing", "☃ <2de> <pad> </s>", ""]:
        ids = vocab.encode(line)
        assert vocab.pieces(ids) == spell(theirs, line)
        assert vocab.decode(ids) == theirs.decode(theirs.encode(line))
        assert all(i == UNK_ID or i >= vocab.first_id for i in ids)
    known = {theirs.id_to_piece(i) for i in range(theirs.get_piece_size())} - {"[UNK]", "[CLS]", "[SEP]", "[PAD]"}
    assert known <= set(vocab.pieces(range(vocab.size)))
    for line in LINES[:3]:
        assert vocab.decode(vocab.encode(line)).rstrip() == vocab.normalise(line)
    vocabs = Vocabs(vocab, vocab, joint=True)
    vocabs.save(tmp_path / "saved")
    assert Vocabs.load(tmp_path / "saved") == vocabs


@pytest.mark.data
@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_a_model_cuts_real_text_as_it_did(model_type, tmp_path, data_folder):
    lines = (data_folder / "multi30k" / "val.en").read_text(encoding="utf-8").splitlines()
    others = (data_folder / "multi30k" / "val.cs").read_text(encoding="utf-8").splitlines()  # with unknown letters
    theirs = make_model(tmp_path / "own.model", lines, model_type=model_type, vocab_size=1000)
    vocab = read_vocab(tmp_path / "own.model", kind="sentencepiece", tags=("2de",))
    assert [vocab.pieces(ids) for ids in vocab.encode_many(lines + others)] == [
        spell(theirs, line) for line in lines + others
    ]


def test_two_files_for_two_sides(tmp_path):
    for name, lines in (("a", LINES[:2]), ("b", LINES[2:3])):
        make_model(tmp_path / name, lines, vocab_size=40)
    files = f"{tmp_path}/a, {tmp_path}/b"
    vocabs = read_vocabs(files, kind="sentencepiece", joint=False)
    assert vocabs.source != vocabs.target and not vocabs.joint
    with pytest.raises(UserError, match=r"config\.vocab\.joint=False"):
        read_vocabs(files, kind="sentencepiece", joint=True)
    shared = read_vocabs(f"{tmp_path}/a", kind="sentencepiece", joint=True)
    assert shared.source is shared.target and shared.joint
    assert len(set(digest_files(files))) == 2 and digest_files("") == []
    assert digest_files(f"{tmp_path}/none") == [""]


@pytest.mark.parametrize("content", [b"", b"hello", b"\n" * 9, b"the\nof\nand\n", None])
def test_other_files_are_no_models(content, tmp_path):
    path = tmp_path / "own.model"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"config\.vocab\.file: .*own\.model") as caught:
        read_vocab(path, kind="sentencepiece")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_cut_model_is_refused_or_says_so(share, tmp_path):
    make_model(tmp_path / "whole", LINES)
    data = (tmp_path / "whole").read_bytes()
    (tmp_path / "cut").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match="cut"):
        read_vocab(tmp_path / "cut", kind="sentencepiece")


def test_a_piece_of_text_cannot_be_a_tag(tmp_path):
    make_model(tmp_path / "own", LINES, user_defined_symbols=["<2de>"])
    with pytest.raises(UserError, match="<2de> of text"):
        read_vocab(tmp_path / "own", kind="sentencepiece", tags=("2de",))
    make_model(tmp_path / "own", LINES, control_symbols=["<2de>"])
    assert read_vocab(tmp_path / "own", kind="sentencepiece", tags=("2de",)).tag_ids(["2de"]).tolist() == [4]


@pytest.mark.parametrize(
    "text",
    ["the\ncat\nsat\n", "<unk>\n<s>\n</s>\nthe\ncat\nsat\n", "the 9\ncat 7\n<unk> 5\nsat\t3\n", "the\r\ncat\r\nsat"],
)
def test_a_list_of_words_keeps_its_order(text, tmp_path):
    (tmp_path / "words").write_bytes(text.encode())
    vocab = read_vocab(tmp_path / "words", kind="word", tags=("2de",))
    assert vocab.pieces(range(4, vocab.size)) == ["<2de>", "the", "cat", "sat"]
    assert vocab.encode("the dog sat <unk>") == [5, UNK_ID, 7, UNK_ID]


def test_words_are_normalised_as_the_text_is(tmp_path, caplog):
    (tmp_path / "words").write_text("ﬁne\nthe\nfine\n", encoding="utf-8")
    vocab = read_vocab(tmp_path / "words", kind="word", normalization="nfkc")
    assert vocab.encode("ﬁne fine the") == [4, 4, 5]
    assert "1 words equal an earlier one" in caplog.text
    assert read_vocab(tmp_path / "words", kind="word", normalization="identity").size == 7


def test_a_list_of_characters(tmp_path):
    (tmp_path / "letters").write_text("<unk>\n \na\nb\n", encoding="utf-8")
    vocab = read_vocab(tmp_path / "letters", kind="char")
    assert vocab.decode(vocab.encode("ab ba")) == "ab ba" and vocab.size == 7


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("the\n\ncat\n", "word", "line 2 has 0 words"),
        ("the\nbig cat\n", "word", "line 2 has 2 words"),
        ("the 3\ncat\n", "word", "line 1 has 2 words"),
        ("the\ncat\nthe\n", "word", "line 3 repeats the word 'the' of line 1"),
        ("<unk>\n<s>\n", "word", "no words"),
        ("ab\n", "char", "one character"),
        ("the\n", "byte", "byte"),
    ],
)
def test_bad_lists_are_refused_in_one_line(text, kind, said, tmp_path):
    (tmp_path / "words").write_text(text)
    with pytest.raises(UserError, match=said) as caught:
        read_vocab(tmp_path / "words", kind=kind)
    assert "\n" not in str(caught.value)


def test_a_list_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "words").write_bytes(b"the\n\xff\xfe\n")
    with pytest.raises(UserError, match="not UTF-8"):
        read_vocab(tmp_path / "words", kind="word")


def test_coverage_counts_words_and_characters():
    vocab = train_vocab(["a a b c"], kind="word", size=6)  # knows a and b
    assert coverage(vocab, ["a b x", "x y a"]) == Coverage(tokens=6, unknown=3, types=4, unknown_types=2)
    letters = train_vocab(["ab"], kind="char")
    assert coverage(letters, ["ab c", "cc"]) == Coverage(tokens=6, unknown=4, types=4, unknown_types=2)
    assert coverage(vocab, []).share == 1.0
    line = describe_coverage("source", vocab, {"train": coverage(vocab, ["a a a x"]), "dev": coverage(vocab, ["x a"])})
    assert line == "source: the vocabulary covers 75.0% of the running words of train, 50.0% of dev"


@pytest.mark.data
@pytest.mark.parametrize("model", ["unigram", "bpe"])
def test_coverage_of_real_text_is_that_of_whole_lines(model, data_folder):
    lines = (data_folder / "multi30k" / "val.cs").read_text(encoding="utf-8").splitlines()[:100]
    vocab = train_vocab(["the cat sat on a very big mat"] * 3 + lines[:5], size=70, model=model)
    found = coverage(vocab, lines)
    words = Counter(word for line in lines for word in vocab.normalise(line).split())
    missing = {word for word in words if UNK_ID in vocab.encode(word)}
    assert (found.tokens, found.types, found.unknown_types) == (words.total(), len(words), len(missing))
    assert found.unknown == sum(words[word] for word in missing) > 0


def test_the_vocabulary_of_a_run_is_taken_as_it_is(tmp_path):
    own = train_vocab(LINES, kind="sentencepiece", size=60, tags=("2de",))
    own.save(tmp_path, "vocab_target")
    path = tmp_path / "vocab_target.json"
    found = read_vocabs(str(path), kind="sentencepiece", joint=True, tags=("2de",))
    assert found.source is found.target and found.target.digest == own.digest and found.target == own
    assert digest_files(str(path)) != [""]
    with pytest.raises(UserError, match="no tag <2fr>"):
        read_vocab(path, kind="sentencepiece", tags=("2fr",))
    with pytest.raises(UserError, match=r"config\.vocab\.kind=sentencepiece"):
        read_vocab(path, kind="word")
    with pytest.raises(UserError, match="cannot be read"):
        read_vocab(tmp_path / "other.json", kind="sentencepiece")
