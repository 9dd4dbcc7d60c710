"""Lists of AN4 and of the spoken digits, from folders as they are unpacked."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import soundfile

from seq2seq_jax.data.audio import read_clip
from seq2seq_jax.data.utterances import read_utterances

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("manifests", ROOT / "experiments" / "speech" / "manifests.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an4_is_split_by_speaker_and_name(script, tmp_path):
    root = tmp_path / "an4"
    (root / "etc").mkdir(parents=True)
    names = [f"an{number}-{speaker}-b" for speaker in ("mzzz", "faaa") for number in (2, 1, 10)]
    lines = [f"<s> WORDS OF {name.upper()} </s> ({name})\n" for name in names]
    (root / "etc" / "an4_train.transcription").write_text("".join(lines))
    samples = np.arange(800, dtype=np.int16)
    for number, name in enumerate(names):
        home = root / "wav" / "an4_clstk" / name.split("-")[1]
        home.mkdir(parents=True, exist_ok=True)
        if number == 0:
            samples.astype(">i2").tofile(home / f"{name}.raw")
        else:
            soundfile.write(home / f"{name}.sph", samples, 16_000, format="NIST", subtype="PCM_16")
    script.DEV_UTTERANCES = 2
    out = tmp_path / "lists"
    out.mkdir()
    assert script.make_an4(tmp_path, out) == {"train": 4, "dev": 2}
    texts = [read_utterances(out / f"{split}.tsv") for split in ("dev", "train")]
    told = [line for text in texts for line in text.target]
    expected = [f"an{number}-{speaker}-b" for speaker in ("faaa", "mzzz") for number in (1, 10, 2)]
    assert told == [f"words of {name}" for name in expected]
    for name in texts[0].source + texts[1].source:
        np.testing.assert_array_equal(read_clip(name, rate=16_000), samples / np.float32(32768))


def test_every_speaker_of_the_digits_is_a_test(script, tmp_path):
    folder = tmp_path / "fsdd" / "recordings"
    folder.mkdir(parents=True)
    for digit in range(10):
        for speaker in ("anna", "bert", "carl"):
            soundfile.write(folder / f"{digit}_{speaker}_0.wav", np.zeros(100), 8000)
    out = tmp_path / "lists"
    out.mkdir()
    written = script.make_digits(tmp_path, out)
    assert written == {
        f"{name}.{split}": n for name in ("anna", "bert", "carl") for split, n in (("train", 20), ("test", 10))
    }
    test, train = (read_utterances(out / f"bert.{split}.tsv") for split in ("test", "train"))
    assert all("_bert_" in name for name in test.source) and not any("_bert_" in name for name in train.source)
    assert test.target == list(script.DIGITS)


def test_recordings_as_heard_elsewhere_are_others_of_the_same_and_always_these(script, tmp_path):
    folder, rng = tmp_path / "fsdd" / "recordings", np.random.default_rng(0)
    folder.mkdir(parents=True)
    for name in ("3_anna_0", "7_bert_1", "7_carl_0"):
        tone = np.sin(np.arange(4000) / 3) * np.hanning(4000) + 0.001 * rng.normal(size=4000)
        soundfile.write(folder / f"{name}.wav", 0.5 * tone, 8000)
    for out in (tmp_path / "a", tmp_path / "b"):
        out.mkdir()
        assert script.make_heard(tmp_path, out, ["anna", "bert"]) == {"heard": 2}
    found = read_utterances(tmp_path / "a" / "heard.tsv")
    assert found.target == ["three", "seven"]
    for name in found.source:
        heard, _ = soundfile.read(name)
        again, _ = soundfile.read(name.replace("/a/", "/b/"))
        np.testing.assert_array_equal(heard, again)
        assert 0.1 < np.abs(heard).max() <= 1.0 and 2000 < len(heard) < 5200
    with pytest.raises(SystemExit, match="has no speaker 'nobody'; it has anna, bert, carl"):
        script.make_heard(tmp_path, tmp_path / "a", ["nobody"])


def test_digits_of_a_synthesiser_are_all_of_them_in_turn(script, tmp_path):
    pytest.importorskip("espeakng_loader")
    assert script.make_spoken(tmp_path, 12) == {"spoken": 12}
    found = read_utterances(tmp_path / "spoken.tsv")
    assert found.target == [*script.DIGITS, "zero", "one"]
    assert len({soundfile.read(name)[0].tobytes() for name in found.source}) == 12


def test_another_folder_is_refused_in_one_line(script, tmp_path):
    with pytest.raises(SystemExit, match="holds no etc/an4_train"):
        script.make_an4(tmp_path, tmp_path)
