"""The built-in speech: sound that repeats, splits that share no sentence, levels of noise by their own arithmetic."""

import csv
import itertools
import re
import sys

import numpy as np
import pytest
import soundfile
from scipy.signal import fftconvolve

from seq2seq_jax.data import spoken
from seq2seq_jax.data.spoken import OTHER_VOICE, SPLITS, VOICES, add_noise, compose_sentences, draw_manner, write_spoken
from seq2seq_jax.data.utterances import index_durations, read_utterances
from seq2seq_jax.errors import UserError


def read_manifest(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A dozen utterances of training, spoken by two blocks."""
    folder = tmp_path_factory.mktemp("spoken")
    patch = pytest.MonkeyPatch()
    patch.setattr(spoken, "_BLOCK", 8)
    told = []
    yield write_spoken(folder, split="train", size=12, seed=3, tell=told.append), told, folder
    patch.undo()


def test_the_manifest_is_a_corpus(corpus):
    manifest, told, _ = corpus
    text = read_utterances(manifest)
    seconds = index_durations(text, cache=None, strict=True)
    assert len(text) == 12 and 0.5 < seconds.min() and seconds.max() < 6 and 1 < seconds.mean() < 4
    rows = read_manifest(manifest)
    assert [row["text"] for row in rows] == text.target and {row["voice"] for row in rows} <= set(VOICES)
    assert all(re.fullmatch(r"[a-z']+( [a-z']+){1,8}", row["text"]) for row in rows)
    info = soundfile.info(text.source[0])
    assert (info.samplerate, info.channels, info.format, info.subtype) == (16_000, 1, "FLAC", "PCM_16")
    assert told and all("\n" not in line for line in told)


def test_the_files_hold_speech_and_not_silence(corpus):
    for row in read_manifest(corpus[0]):
        samples = soundfile.read(corpus[0].parent / row["audio"])[0]
        frames = samples[: len(samples) // 160 * 160].reshape(-1, 160)
        levels_db = 10 * np.log10(np.mean(np.square(frames), axis=1) + 1e-10)
        assert 0.2 < np.abs(samples).max() < 0.95
        assert np.percentile(levels_db, 80) - np.percentile(levels_db, 2) > 8  # words and pauses


def test_another_time_the_same_samples_and_a_smaller_corpus_is_the_beginning(corpus, tmp_path):
    manifest = write_spoken(tmp_path, split="train", size=5, seed=3, tell=str)
    again = read_manifest(manifest)
    assert again == read_manifest(corpus[0])[:5]
    for row in again:
        assert (manifest.parent / row["audio"]).read_bytes() == (corpus[0].parent / row["audio"]).read_bytes()


def test_what_is_there_is_not_made_again(corpus, monkeypatch):
    manifest, _, folder = corpus
    monkeypatch.setattr(spoken, "_speak", None)
    assert write_spoken(folder, split="train", size=12, seed=3, tell=str) == manifest


def test_whole_or_not_at_all(tmp_path, monkeypatch):
    def end(sentences):
        raise UserError("killed")

    monkeypatch.setattr(spoken, "_speak", end)
    with pytest.raises(UserError, match="killed"):
        write_spoken(tmp_path, split="dev", size=3, seed=0, tell=str)
    assert not list(tmp_path.iterdir())


def take(split, count, seed=0):
    return list(itertools.islice(compose_sentences(split, seed=seed), count))


def test_splits_share_no_sentence_and_most_words():
    texts = {split: [text for _, text in take(split, 300)] for split in SPLITS}
    for a, b in itertools.combinations(("train", "dev", "test"), 2):
        assert not set(texts[a]) & set(texts[b])
    assert not set(texts["train"]) & set(texts["test_voice"]) and texts["test"] != texts["test_voice"]
    for split, lines in texts.items():
        assert len(set(lines)) == len(lines) and {len(line.split()) for line in lines} <= set(range(2, 10)), split
    known = {word for _, text in take("train", 3000) for word in text.split()}
    others = [word for split in ("dev", "test", "test_voice") for line in texts[split] for word in line.split()]
    assert len(known) < 1000 and np.mean([word not in known for word in others]) < 0.01


def test_transcripts_say_what_is_spoken():
    for english, text in take("train", 50):
        assert text == " ".join(re.sub(r"[^a-z' ]", " ", english.lower()).split())


def test_one_voice_is_heard_in_no_other_split():
    voices = {split: {draw_manner(split, i, seed=0)[0]["voice"] for i in range(300)} for split in SPLITS}
    assert voices["test_voice"] == {OTHER_VOICE} and OTHER_VOICE not in VOICES
    assert voices["train"] == voices["dev"] == voices["test"] == set(VOICES)


def test_noise_has_its_level_and_the_speech_its_pauses():
    speech = np.sin(np.arange(16_000) * 0.3).astype(np.float32)
    ratios = []
    for seed in range(40):
        mixed = add_noise(speech, np.random.default_rng(seed), rate=16_000).astype(np.float64)
        assert 1600 <= len(mixed) - len(speech) <= 8000
        assert 0.9 * 10 ** (-12 / 20) - 1e-3 <= np.abs(mixed).max() <= 0.9 + 1e-6
        start = int(np.argmax(fftconvolve(mixed, speech[::-1], "valid")))
        gain = mixed[start : start + len(speech)] @ speech / (speech @ speech)
        clean = np.zeros(len(mixed))
        clean[start : start + len(speech)] = gain * speech
        ratios.append(10 * np.log10(np.mean((gain * speech) ** 2) / np.mean((mixed - clean) ** 2)))
    assert 9 < min(ratios) < 16 and 34 < max(ratios) < 41


@pytest.mark.parametrize(("module", "package"), [("espeakng_loader", "espeakng-loader"), ("soundfile", "soundfile")])
def test_a_missing_wheel_names_the_extra(tmp_path, monkeypatch, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"{package}.*pip install 'seq2seq_jax\[speech\]'") as caught:
        write_spoken(tmp_path, split="dev", size=3, seed=0, tell=str)
    assert "\n" not in str(caught.value)


def test_a_voice_that_is_not_there_is_told():
    manner = draw_manner("train", 0, seed=0)[0] | {"text": "Hello.", "voice": "nobody"}
    with pytest.raises(UserError, match="no voice 'nobody'"):
        spoken._speak([manner])


def test_an_unknown_split_is_refused(tmp_path):
    with pytest.raises(ValueError, match="split"):
        write_spoken(tmp_path, split="valid", size=3, seed=0, tell=str)
