"""Speech from files to transcripts by the command line, on a language of tones that a tiny model learns in seconds."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from seq2seq_jax.decode.arpa import read_arpa
from seq2seq_jax.main import main

RATE = 8000
TONES = {"a": 400.0, "b": 800.0, "c": 1600.0, "d": 3000.0}
COMMON = (
    "--config.audio.rate=8000", "--config.audio.hop=80", "--config.audio.window=200", "--config.audio.fft=256",
    "--config.audio.mels=20", "--config.model.listener_layers=1", "--config.model.listener_features=32",
    "--config.model.channels=4", "--config.model.dropout=0.0", "--config.data.tokens_per_batch=2400",
    "--config.data.max_shapes=1", "--config.data.max_source_len=300", "--config.train.warmup_steps=5",
    "--config.train.learning_rate=0.01", "--config.train.log_every=20", "--config.decode.beam_size=3",
    "--config.evaluate.samples=1", "--config.parallel.data=1",
)  # fmt: skip
CTC = ("--config=configs/ctc.py", *COMMON)
LAS = (
    "--config=configs/las.py", *COMMON, "--config.model.features=32", "--config.model.attention_features=16",
    "--config.model.location_filters=2", "--config.model.location_width=5",
)  # fmt: skip


def call(*args):
    return main(["seq2seq_jax.main", *map(str, args)])


def say_tones(text: str, rng: np.random.Generator) -> np.ndarray:
    """Every letter is a tone of 0.12 s and a short silence, in noise."""
    parts = [np.zeros(int(0.1 * RATE))]
    for letter in text:
        time = np.arange(int(0.12 * RATE)) / RATE
        parts += [0.4 * np.sin(2 * np.pi * TONES[letter] * time), np.zeros(int(0.04 * RATE))]
    samples = np.concatenate([*parts, np.zeros(int(0.1 * RATE))])
    return (samples + 0.01 * rng.normal(size=len(samples))).astype(np.float32)


def write_corpus(folder: Path, name: str, count: int, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    rows = ["audio\ttext"]
    (folder / name).mkdir()
    for n in range(count):
        text = "".join(rng.choice(list(TONES), size=rng.integers(2, 6)))
        soundfile.write(folder / name / f"{n:03d}.wav", say_tones(text, rng), RATE)
        rows.append(f"{name}/{n:03d}.wav\t{text}")
    path = folder / f"{name}.tsv"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """The keys that name train, dev and test manifests of tones."""
    folder = tmp_path_factory.mktemp("tones")
    files = {name: write_corpus(folder, name, count, n) for n, (name, count) in enumerate(SIZES.items())}
    return folder, [f"--config.data.{name}={path}" for name, path in files.items()]


SIZES = {"train": 60, "dev": 10, "test": 12}
SMALL_MASKS = ("--config.audio.augment=own", "--config.audio.freq_width=3", "--config.audio.time_width=4")


@pytest.fixture(scope="module")
def ctc(corpus, tmp_path_factory):
    """A CTC model that knows its letters."""
    root = tmp_path_factory.mktemp("runs") / "ctc"
    steps = ("--config.train.steps=300", "--config.train.evaluate_every=150", "--config.train.save_every=150")
    assert call(*CTC, *corpus[1], f"--workdir={root}", *steps, *SMALL_MASKS) == 0
    return root


def test_ctc_learns_tones_and_leaves_what_it_promises(ctc):
    results = json.loads((ctc / "results.json").read_text())
    test = results["test"]
    assert test["cer"] < 10 and test["sentences"] == 12 and test["words"] == 12
    assert test["search"] == "beam 3 (n-gram model of the training)" and test["real_time_factor"] > 0
    assert read_arpa(ctc / "ngram.arpa").order == 8
    outputs = ctc / "outputs"
    assert len((outputs / "test.hypotheses.txt").read_text().splitlines()) == 12
    assert "<html" in (outputs / "test.report.html").read_text()
    assert (ctc / test["samples"][0]["attention"]).read_bytes()[:4] == b"\x89PNG"


def test_searches_of_ctc_agree_where_it_is_sure(ctc):
    for method in ("greedy", "prefix_beam", "beam"):
        keys = (f"--config.decode.method={method}", "--config.decode.ngram=")
        assert call(f"--workdir={ctc}", "--mode=evaluate", *keys) == 0
        found = json.loads((ctc / "evaluation" / "results.json").read_text())["test"]
        assert found["cer"] < 12, method


def test_its_lists_have_a_second_pass(ctc, tmp_path):
    outputs, new = ctc / "outputs", tmp_path / "new"
    args = ("--models=", "--metric=wer", f"--reference={outputs / 'test.references.txt'}", f"--output={new}")
    assert call(f"--workdir={ctc}", "--mode=rescore", f"--input={outputs / 'test.nbest.txt'}", *args) == 0
    assert len(new.with_name("new.1best").read_text().splitlines()) == 12
    assert "ngram.arpa" in json.loads(new.with_name("new.weights.json").read_text())["weights"]


def test_recordings_are_transcribed_with_times(ctc, corpus, tmp_path, capsys):
    folder, _ = corpus
    rng = np.random.default_rng(9)
    pause = np.zeros(RATE, np.float32)
    talk = np.concatenate([say_tones("abcd", rng), pause, say_tones("dcba", rng), pause, say_tones("bb", rng)])
    soundfile.write(tmp_path / "talk.flac", talk, RATE)
    out = tmp_path / "talk.json"
    args = (f"--workdir={ctc}", "--mode=transcribe", f"--input={tmp_path / 'talk.flac'}")
    assert call(*args, "--format=json", f"--output={out}") == 0
    found = json.loads(out.read_text())
    assert abs(found["duration"] - len(talk) / RATE) < 0.01 and len(found["segments"]) >= 2
    words = [word for segment in found["segments"] for word in segment["words"]]
    assert "real-time factor" in capsys.readouterr().err
    begins = [word["start"] for word in words]
    assert begins == sorted(begins) and 0 <= begins[0] < 0.4 and begins[-1] > len(talk) / RATE - 1.0
    assert call(*args, "--format=srt") == 0
    assert " --> " in capsys.readouterr().out
    several = tmp_path / "several"
    assert call(f"--workdir={ctc}", "--mode=transcribe", f"--input={folder / 'test'}", f"--output={several}") == 0
    texts = [path.read_text().strip() for path in sorted(several.iterdir())]
    wanted = [line.split("\t")[1] for line in (folder / "test.tsv").read_text().splitlines()[1:]]
    assert len(texts) == len(wanted) and sum(a == b for a, b in zip(texts, wanted, strict=True)) >= 9


def test_what_cannot_be_read_is_told_and_the_rest_goes_on(ctc, corpus, tmp_path, capsys):
    folder, _ = corpus
    (tmp_path / "bad.wav").write_bytes(b"RIFF no audio at all")
    names = f"{tmp_path / 'bad.wav'},{folder / 'test' / '000.wav'}"
    assert call(f"--workdir={ctc}", "--mode=transcribe", f"--input={names}") == 2
    captured = capsys.readouterr()
    assert "bad.wav" in captured.err and "000.wav\t" in captured.out
    for args, named in (
        ((), "--input is missing"),
        (("--input=none.wav",), "none.wav"),
        ((f"--input={tmp_path / '*.mp3'}",), "no file is named so"),
        ((f"--input={folder / 'test'}", "--format=doc"), "--format must be one of"),
        ((f"--input={folder / 'test'}", "--format=srt"), "--output must name a folder"),
    ):
        assert call(f"--workdir={ctc}", "--mode=transcribe", *args) == 2
        assert named in capsys.readouterr().err
    assert call(f"--workdir={ctc}", "--mode=translate") == 2
    assert "use --mode=transcribe" in capsys.readouterr().err


def test_joint_training_and_search_resume_as_if_unbroken(corpus, tmp_path):
    """Killed at step 10 of 20 or not: the same parameters, though features are augmented and speeds drawn."""
    keys = ("--config.audio.augment=own", "--config.audio.speeds=0.9,1.1", "--config.audio.time_width=4")
    keys += ("--config.train.evaluate_every=10", "--config.train.save_every=10", "--config.evaluate.dev_sentences=4")
    digests = []
    for name, parts in (("whole", (20,)), ("broken", (10, 20))):
        for steps in parts:
            assert call(*LAS, *corpus[1], *keys, f"--workdir={tmp_path / name}", f"--config.train.steps={steps}") == 0
        digests.append(json.loads((tmp_path / name / "results.json").read_text())["parameters_sha256"])
    assert digests[0] == digests[1]
    results = json.loads((tmp_path / "whole" / "results.json").read_text())["test"]
    assert results["search"] == "beam 3 (n-gram model of the training, CTC 0.6)"


def test_a_damaged_file_is_left_out_and_counted_unless_strict(corpus, tmp_path, capsys):
    folder, _ = corpus
    rows = (folder / "train.tsv").read_text().splitlines()[:25]
    texts = [rows[0], *(f"{folder}/{row}" for row in rows[1:])]
    soundfile.write(tmp_path / "torn.wav", say_tones("abca", np.random.default_rng(3)), RATE)
    whole = (tmp_path / "torn.wav").read_bytes()
    (tmp_path / "torn.wav").write_bytes(whole[: len(whole) // 2])
    manifest = tmp_path / "train.tsv"
    manifest.write_text("\n".join([*texts, "torn.wav\tabca"]) + "\n")
    soundfile.write(tmp_path / "short.wav", say_tones("", np.random.default_rng(4)), RATE)
    spoken = (folder / "dev.tsv").read_text().splitlines()[1:]
    (tmp_path / "dev.tsv").write_text("".join(f"{folder}/{row}\n" for row in spoken) + f"short.wav\t{'ab' * 20}\n")
    dev = [f"--config.data.{name}={tmp_path / 'dev.tsv'}" for name in ("dev", "test")]
    keys = (*CTC, f"--config.data.train={manifest}", *dev, "--config.train.steps=4", "--config.train.evaluate_every=4")
    assert call(*keys, f"--workdir={tmp_path / 'run'}") == 0
    assert "1 of 25 clips cannot be read" in (told := capsys.readouterr().err) and "torn.wav" in told
    # What CTC cannot label in dev and test is no part of its loss, but an error like any other.
    assert told.count("1 of 11 utterances are too short for their transcripts") == 2 and "short.wav" in told
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["dev_loss"] for line in lines if "dev_loss" in line]
    assert len(losses) == 1 and 0 < losses[0] < 100
    assert json.loads((tmp_path / "run" / "results.json").read_text())["test"]["words"] == 11
    assert call(*keys, f"--workdir={tmp_path / 'strict'}", "--config.audio.strict=True") == 2
    error = capsys.readouterr().err
    assert "torn.wav" in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ("gone.wav\tab", "gone.wav"),
        ("text.wav\tab", "text.wav"),
        ("fine.wav\t ", "fine.wav"),
        ("fine.wav\tab\t3.0\t2.0", "must end after its start"),
    ],
)
def test_a_bad_manifest_is_refused_in_one_line(row, named, tmp_path, capsys):
    soundfile.write(tmp_path / "fine.wav", say_tones("ab", np.random.default_rng(0)), RATE)
    (tmp_path / "text.wav").write_text("this is no audio")
    (tmp_path / "m.tsv").write_text(row + "\n")
    keys = [f"--config.data.{name}={tmp_path / 'm.tsv'}" for name in ("train", "dev", "test")]
    assert call(*CTC, *keys, f"--workdir={tmp_path / 'run'}") == 2
    error = capsys.readouterr().err
    assert named in error and "Traceback" not in error
