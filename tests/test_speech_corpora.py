"""What a corpus of speech says of clips that are too short, and what hosts compare of the lengths they found."""

import logging

import numpy as np
import pytest
import soundfile

from seq2seq_jax.config import default_config
from seq2seq_jax.data.pipeline import tokenise
from seq2seq_jax.data.sources import make_text
from seq2seq_jax.data.vocab import Vocabs
from seq2seq_jax.data.vocab_training import train_vocab
from seq2seq_jax.parallel.hosts import find_difference
from seq2seq_jax.speech_corpora import describe_clips, describe_lengths, make_pairs

RATE, HOP = 8000, 80
TEXTS = ["aab", "ab", "aab", "b"]
FRAMES = (16, 8, 13, 1)
"""With four frames a step they are 4, 2, 4 and 1 steps: "aab" needs 4, "ab" needs 2, "b" needs 1."""
VOCAB = train_vocab(TEXTS, size=10, kind="char")


@pytest.fixture
def text(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return write(tmp_path, FRAMES)


def write(folder, frames):
    names = [str(folder / f"{n}.wav") for n in range(len(frames))]
    for name, count in zip(names, frames, strict=True):
        soundfile.write(name, np.full(count * HOP, 0.1), RATE)
    return make_text(names, TEXTS[: len(frames)], name="clips")


def make_config(name="ctc", **changes):
    config = default_config(name)
    config.model.reduction = 4
    config.audio.update(rate=RATE, hop=HOP, **changes)
    return config


def test_all_fit_as_they_are_and_not_all_when_played_faster(text, caplog, capsys):
    assert make_pairs(make_config(), text, VOCAB, reduction=4).frames.tolist() == list(FRAMES)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        pairs = make_pairs(make_config(speeds="0.9,1.1"), text, VOCAB, reduction=4)
    assert pairs.frames.tolist() == [16, 8, 0, 1]  # 13 frames are 11 then, three steps
    assert [record.getMessage().partition(":")[2] for record in caplog.records] == [
        " 1 utterances are too short for their transcripts (CTC has a step for every token) and set aside: "
        + text.source[2]
    ]
    assert not capsys.readouterr().err


@pytest.mark.parametrize(("name", "weight", "told"), [("ctc", 0.0, True), ("las", 0.3, True), ("las", 0.0, False)])
def test_to_be_scored_all_stay_and_those_that_do_not_fit_are_told(tmp_path, text, capsys, name, weight, told):
    config = make_config(name, ctc_weight=weight)
    text = write(tmp_path, (12, 8, 4, 1))
    (tmp_path / "3.wav").write_bytes(b"no audio")
    pairs = make_pairs(config, text, VOCAB)
    assert pairs.frames.tolist() == [12, 8, 4, 0]
    lines = [line for line in capsys.readouterr().err.splitlines() if "too short" in line]
    assert len(lines) == told
    if told:
        assert lines[0].startswith("clips: 2 of 4 utterances are too short for their transcripts")
        assert "they count in the error rates" in lines[0] and lines[0].endswith("/0.wav, " + text.source[2])


def test_hosts_that_read_a_clip_differently_are_told_of_it(tmp_path, text):
    names = ["host a", "host b"]

    def compare(one, other):
        return find_difference([describe_lengths({"train": one}), describe_lengths({"train": other})], names)

    pairs = make_pairs(make_config(), text, VOCAB)
    frames = pairs.frames
    assert describe_clips({"train": pairs}) == describe_lengths({"train": frames})
    assert describe_clips({"train": tokenise(text, Vocabs(VOCAB, VOCAB, True))}) == {}
    assert compare(frames, frames.copy()) == ""
    (tmp_path / "1.wav").write_bytes(b"no audio")
    torn = make_pairs(make_config(), text, VOCAB).frames
    assert compare(frames, torn) == "host 1 (host b) has usable train clips 3, host 0 has 4"
    assert "frames of train clips 39" in compare(frames, frames + np.array([0, 0, 0, 1]))
    swapped = compare(frames, frames[[1, 0, 2, 3]])  # as many frames, at other places
    assert "host 1 (host b) has lengths of train clips with digest" in swapped
