"""What spoiled files have shown, one test for each kind of what was mended."""

import gzip
import json
import os
import shutil

import numpy as np
import pytest
import soundfile
from safetensors.numpy import load_file, save_file

import seq2seq_jax
from seq2seq_jax.config import default_config, load_config
from seq2seq_jax.corpora import find_prepared
from seq2seq_jax.data import audio
from seq2seq_jax.data.audio import read_clip
from seq2seq_jax.data.audio_pairs import make_audio_pairs
from seq2seq_jax.data.nbest import MOST_SEGMENTS, read_nbest
from seq2seq_jax.data.sources import make_text
from seq2seq_jax.data.spec import CorpusSpec
from seq2seq_jax.data.store import Index, Part, Shard
from seq2seq_jax.data.streams import find_corpus, stream
from seq2seq_jax.data.utterances import read_utterances
from seq2seq_jax.data.vocab import Vocab, Vocabs
from seq2seq_jax.data.vocab_files import read_vocab
from seq2seq_jax.data.vocab_training import train_vocabs
from seq2seq_jax.decode.arpa import read_arpa
from seq2seq_jax.errors import UserError
from seq2seq_jax.modes.average import _read_corpora
from seq2seq_jax.modes.compare import _read_curves
from seq2seq_jax.modes.export import _averaged_steps, _find_scores
from seq2seq_jax.modes.members import _read_finished
from seq2seq_jax.modes.weights import read_weights
from seq2seq_jax.serve.model_folder import hash_tensors, nest, read_model, write_model
from seq2seq_jax.tasks.constraints import parse_wish
from seq2seq_jax.train.writers import MetricsFile, write_json
from seq2seq_jax.workdir import Folder, list_members

DEEP = "[" * 100_000


def error_of(read):
    with pytest.raises(UserError) as caught:
        read()
    return str(caught.value)


@pytest.mark.parametrize("sign", [b"\0", b"\n"])
def test_a_bomb_is_refused_by_every_reader_of_gzipped_text(tmp_path, sign):
    (tmp_path / "c.en").write_text("a\n")
    for name in ("c.de.gz", "lm.arpa.gz"):
        (tmp_path / name).write_bytes(gzip.compress(sign * (64 << 20), 9))
    corpus = find_corpus(CorpusSpec(str(tmp_path / "c"), "en", "de"), phrasebook_pairs=0)
    assert "c.de.gz: unpacks to more" in error_of(lambda: list(stream((corpus,), 10, {})))
    told = error_of(lambda: read_arpa(tmp_path / "lm.arpa.gz"))
    assert "lm.arpa.gz" in told and ("unpacks to more" in told or "bytes; give an ARPA file" in told)


def test_a_pipe_or_device_is_never_waited_for(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, "/dev/zero"):
        assert "not a regular file" in error_of(lambda: read_arpa(path))  # noqa: B023
    (tmp_path / "a.model").symlink_to("/dev/zero")
    assert "not a regular file" in error_of(lambda: read_vocab(tmp_path / "a.model", kind="sentencepiece"))
    (tmp_path / "vocabs.json").symlink_to("/dev/zero")
    assert "not a regular file" in error_of(lambda: Vocabs.load(tmp_path))
    (tmp_path / "config.json").symlink_to("/dev/zero")
    assert "not a regular file" in error_of(lambda: load_config(tmp_path / "config.json"))
    assert "not a regular file" in error_of(lambda: read_weights(tmp_path / "config.json"))


def test_a_segment_of_a_huge_number_is_refused(tmp_path):
    for number in (MOST_SEGMENTS, 10**30, int("9" * 4000)):
        (tmp_path / "l.txt").write_text(f"0 ||| a ||| 1\n{number} ||| b ||| 1\n")
        assert "line 2 is not of an n-best list: its number must be less" in error_of(
            lambda: read_nbest(tmp_path / "l.txt")
        )


@pytest.mark.parametrize("head", ["ngram 1=" + "9" * 5000, "ngram " + "1" * 5000 + "=1", "ngram \u0661=1"])
def test_counts_of_an_arpa_file_are_numbers_that_can_be(tmp_path, head):
    (tmp_path / "lm.arpa").write_text(f"\\data\\\n{head}\n\n\\1-grams:\n-1 <s>\n\\end\\\n")
    assert "lm.arpa:2: must be 'ngram 1=COUNT'" in error_of(lambda: read_arpa(tmp_path / "lm.arpa"))


def test_seconds_beyond_all_files_are_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(1600), 16_000)
    for part in ("9" * 400 + "-", "0-" + "9" * 310, "1" + "0" * 306 + "-"):
        assert "must lie within 1,000,000,000 seconds" in error_of(
            lambda: read_clip(f"{tmp_path / 'a.wav'}#{part}", rate=16_000)  # noqa: B023
        )
    for value in ("1" + "0" * 400, "1e308", "1e999"):
        (tmp_path / "l.jsonl").write_text(f'{{"audio": "a.wav", "text": "x", "start": {value}}}\n')
        assert "line 1: start must be a number of seconds" in error_of(lambda: read_utterances(tmp_path / "l.jsonl"))


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38, -1e12])
def test_sound_that_would_overflow_is_refused(tmp_path, value):
    samples = np.zeros(1600, np.float32)
    samples[800] = value
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    assert "the first at 0.050 s" in error_of(lambda: read_clip(str(tmp_path / "a.wav"), rate=8000))


def test_sound_that_is_hardly_any_is_silence(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.full(1600, 1e-41, np.float32), 16_000, subtype="FLOAT")
    vocab = train_vocabs([], ["x"], kind="char", joint=True, size=8).target
    text = make_text([str(tmp_path / "a.wav")], ["x"], name="a")
    pairs = make_audio_pairs(text, vocab, rate=16_000, hop=160, seconds=np.array([0.1]), strict=True)
    sound = pairs.read(np.array([0]))[0].flat
    assert sound.shape == (10, 160) and not sound.any()


def test_hours_of_sound_are_refused_by_the_header(tmp_path, monkeypatch):
    monkeypatch.setattr(audio, "MOST_SAMPLES", 1000)
    soundfile.write(tmp_path / "a.flac", np.zeros(1600), 16_000)
    assert "must have at most 0.0 hours at 16000 Hz" in error_of(lambda: read_clip(str(tmp_path / "a.flac"), rate=8000))
    assert len(read_clip(f"{tmp_path / 'a.flac'}#0-0.05", rate=16_000)) == 800


def test_an_mp3_without_sound_is_not_said_to_be_missing(tmp_path):
    (tmp_path / "a.mp3").write_bytes(b"\xff\xfb\x00\x00" * 200)
    told = error_of(lambda: read_clip(str(tmp_path / "a.mp3"), rate=16_000))
    assert "holds no sound that can be recognised" in told and "does not exist" not in told


@pytest.fixture(scope="module")
def sentencepiece_model():
    """The bytes of a good one."""
    lines = ["one two three", "two three four", "four one one"] * 10
    return train_vocabs(lines, lines, kind="sentencepiece", size=40, model="bpe").source.model


def test_pieces_that_are_no_text_are_refused(tmp_path, sentencepiece_model):
    path = tmp_path / "a.model"
    path.write_bytes(sentencepiece_model.replace("▁one".encode(), b"\xff\xfe\xfdone"))
    assert f"{path} is not a SentencePiece model" in error_of(lambda: read_vocab(path, kind="sentencepiece"))


def test_scores_that_are_no_numbers_are_refused(tmp_path, sentencepiece_model):
    from seq2seq_jax.data.model_proto import parse_model

    proto = parse_model(sentencepiece_model)
    proto.pieces[-1].score = float("nan")
    (tmp_path / "a.model").write_bytes(proto.SerializeToString())
    assert "scores that are no numbers" in error_of(lambda: read_vocab(tmp_path / "a.model", kind="sentencepiece"))


def test_what_a_vocabularys_page_gets_wrong_names_the_page(tmp_path):
    Vocab("byte", b"").save(tmp_path, "vocab")
    page = tmp_path / "vocab.json"
    fields = json.loads(page.read_text())
    for key, value in (("kind", "x"), ("normalization", False), ("tags", ["<s>"])):
        page.write_text(json.dumps({**fields, key: value}))
        assert f"{page}: {key}" in error_of(lambda: Vocab.load(tmp_path, "vocab"))


def test_json_of_any_depth_is_no_recursion(tmp_path):
    for name in ("config", "vocabs", "weights", "members", "index", "results"):
        (tmp_path / f"{name}.json").write_text(DEEP)
    (tmp_path / "m.jsonl").write_text(DEEP + "\n")
    assert "config.json: not a saved config" in error_of(lambda: load_config(tmp_path / "config.json"))
    assert "vocabs.json: not valid JSON" in error_of(lambda: Vocabs.load(tmp_path))
    assert "weights.json: not valid JSON" in error_of(lambda: read_weights(tmp_path / "weights.json"))
    assert "members.json: does not say" in error_of(lambda: list_members(tmp_path))
    assert "index.json: not the index" in error_of(lambda: Index.load(tmp_path))
    assert "a.txt: line 3: not JSON" in error_of(lambda: parse_wish(DEEP, where="a.txt: line 3"))
    with MetricsFile(tmp_path / "m.jsonl") as metrics:
        assert "m.jsonl:1: every line" in error_of(lambda: metrics.truncate_after(3))
    assert _read_curves(tmp_path / "m.jsonl") == _read_corpora(Folder(tmp_path)) == {}
    assert _find_scores(Folder(tmp_path), 3) == {} and _read_finished(default_config(), Folder(tmp_path), None) is None


@pytest.mark.parametrize("count", ["-1", "0", "1", "true", '"3"', "1000000000", "1e3", "null"])
def test_a_count_of_members_that_cannot_be_is_refused(tmp_path, count):
    (tmp_path / "members.json").write_text(f'{{"members": {count}}}')
    assert "members.json" in error_of(lambda: list_members(tmp_path))


def test_a_saved_config_with_values_of_other_types_is_refused(tmp_path):
    page = default_config().to_dict()
    page["decode"]["beam_size"] = "many"
    write_json(tmp_path / "config.json", page)
    told = error_of(lambda: load_config(tmp_path / "config.json"))
    assert "config.json: not a saved config (decode.beam_size must be of type int, but is 'many')" in told
    page["decode"]["beam_size"], page["train"]["learning_rate"] = 3, 1
    write_json(tmp_path / "config.json", page)
    assert load_config(tmp_path / "config.json").train.learning_rate == 1


def test_weights_of_features_are_numbers_of_a_size_that_can_be(tmp_path):
    for value in ("1" + "0" * 400, "1e999", "NaN", "true"):
        (tmp_path / "w.json").write_text(f'{{"weights": {{"LM": [{value}]}}}}')
        assert "must be a list of finite numbers" in error_of(lambda: read_weights(tmp_path / "w.json"))


def test_records_that_are_none_are_refused_with_their_line(tmp_path):
    for line in ('{"step": "x"}', "[1]", '{"step": 1.5}', '{"loss": "\udcff"}'):
        (tmp_path / "m.jsonl").write_bytes(('{"step": 1}\n' + line + "\n").encode("utf-8", "surrogateescape"))
        with MetricsFile(tmp_path / "m.jsonl") as metrics:
            assert "m.jsonl:2: every line" in error_of(lambda: metrics.truncate_after(3))  # noqa: B023
            assert "m.jsonl:2: every line" in error_of(lambda: metrics.follow(print))  # noqa: B023
        assert _read_curves(tmp_path / "m.jsonl") == {}


def test_sections_of_results_that_are_none_are_left_out_of_a_card(tmp_path):
    write_json(tmp_path / "results.json", {"test": [3], "corpus_sha256": "x"})
    write_json(tmp_path / "average.json", {"step": 3, "sources": [5, {"step": 3}, {}]})
    assert _find_scores(Folder(tmp_path), 3) == {} and _averaged_steps(Folder(tmp_path), 3) == [3]


def test_an_index_with_values_that_cannot_be_is_refused(tmp_path):
    shard, part = Shard(0, 2, 10, "a", "b"), Part("c", "en", "de", (), 2)
    good = Index({"shard_pairs": 2}, "a", "b", "uint16", (part,), (shard,), (), {}, {})
    good.save(tmp_path)
    assert Index.load(tmp_path) == good
    page = json.loads((tmp_path / "index.json").read_text())
    for key, value in (("dtype", "float64"), ("recipe", []), ("left_out", {"x": -1}), ("vocab_sha256", 5)):
        (tmp_path / "index.json").write_text(json.dumps({**page, key: value}))
        assert "index.json: not the index" in error_of(lambda: Index.load(tmp_path))
    for key, value in (("part", 1), ("pairs", True), ("bytes", -1), ("sha256", None)):
        shards = [{**page["shards"][0], key: value}]
        (tmp_path / "index.json").write_text(json.dumps({**page, "shards": shards}))
        assert "index.json: not the index" in error_of(lambda: Index.load(tmp_path))
    assert find_prepared(default_config(), tmp_path) is None


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with everything but a model that fits: it is refused before that is seen."""
    folder = tmp_path_factory.mktemp("models") / "model"
    folder.mkdir()
    config = default_config("lstm").to_dict()
    config = {name: config[name] for name in ("model", "vocab", "decode")}
    config["data"] = {"source": "en", "target": "de", "target_tag": False, "train": "", "dev": "", "test": ""}
    vocab = Vocab("byte", b"")
    tensors = {"a.b": np.ones((2, 2), np.float32)}
    write_model(folder, config=config, vocabs=Vocabs(vocab, vocab, True), tensors=tensors, metadata={}, card="# a\n")
    return folder


def forge(model, tmp_path, *, tensors=None, **metadata):
    """A copy whose digests fit what was put in."""
    from safetensors import safe_open

    from seq2seq_jax.serve.model_folder import _hash

    folder = shutil.copytree(model, tmp_path / "forged")
    path = folder / "model.safetensors"
    with safe_open(path, framework="numpy") as file:
        header = {key: value for key, value in file.metadata().items() if key != "header_sha256"}
    tensors = load_file(path) if tensors is None else tensors
    header |= {"parameters_sha256": hash_tensors(tensors), **metadata}
    save_file(tensors, path, metadata={**header, "header_sha256": _hash(header)})
    return folder


def test_a_card_in_any_encoding_is_read(model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "copy")
    (folder / "README.md").write_bytes("für".encode("latin-1"))
    assert read_model(folder).card == "f\ufffdr"


@pytest.mark.parametrize("key", ["ensemble", "language_model", "ngram"])
def test_a_models_folder_names_no_file_outside_of_it(model, tmp_path, key):
    folder = shutil.copytree(model, tmp_path / "copy")
    page = json.loads((folder / "config.json").read_text())
    page["decode"][key] = "../../etc/passwd"
    (folder / "config.json").write_text(json.dumps(page))
    assert f"config.json: decode.{key} must name nothing" in error_of(lambda: read_model(folder))
    page["decode"][key] = "auto"
    (folder / "config.json").write_text(json.dumps(page))
    if key == "ngram":
        assert read_model(folder).config["decode"]["ngram"] == "auto"
    else:
        assert "must name nothing" in error_of(lambda: read_model(folder))


@pytest.mark.parametrize("step", ["x", "-1", "", "1e3", "9" * 30, "\u0663"])
def test_a_step_that_is_no_number_is_refused(model, tmp_path, step):
    assert "its step must be a whole number" in error_of(lambda: read_model(forge(model, tmp_path, step=step)))


def test_weights_that_are_no_numbers_are_refused(model, tmp_path):
    tensors = {"a.b": np.array([[1, np.nan], [1, 1]], np.float32)}
    assert "a.b holds NaN" in error_of(lambda: read_model(forge(model, tmp_path, tensors=tensors)))


def test_names_that_go_on_behind_others_are_refused():
    ones = np.ones(1, np.float32)
    for names in (("a", "a.b"), ("a.b", "a"), ("a.b.c", "a.b")):
        assert "goes on behind the name" in error_of(lambda: nest(dict.fromkeys(names, ones)))  # noqa: B023


def test_a_loaded_config_is_checked(model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "copy")
    page = json.loads((folder / "config.json").read_text())
    page["decode"]["beam_size"] = 0
    (folder / "config.json").write_text(json.dumps(page))
    told = error_of(lambda: seq2seq_jax.load(folder))
    assert "config.json: config." in told


def test_weights_that_are_gone_are_named(model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "copy")
    (folder / "model.safetensors").unlink()
    assert "model.safetensors: is missing" in error_of(lambda: seq2seq_jax.load(folder))


def test_results_of_a_member_that_cannot_be_are_none(tmp_path):
    config = default_config()
    write_json(tmp_path / "config.json", config.to_dict())
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "test.hypotheses.txt").write_text("x\n")
    good = {"corpus_sha256": {"train": "a"}, "vocab_sha256": "b", "config": {"train": config.train.to_dict()}}
    write_json(tmp_path / "results.json", good)
    assert _read_finished(config, Folder(tmp_path), None) == good
    bad = ({"vocab_sha256": None}, {"corpus_sha256": {"train": 5}}, {"config": {"train": {"steps": None}}})
    for change in (*bad, {"config": {"train": []}}):
        write_json(tmp_path / "results.json", {**good, **change})
        assert _read_finished(config, Folder(tmp_path), None) is None
