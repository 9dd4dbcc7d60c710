"""Files in, transcripts out: in order, in full groups across files, with times of the file; errors do not stop it."""

from __future__ import annotations

import numpy as np
import pytest

from seq2seq_jax.errors import UserError
from seq2seq_jax.serve.subtitles import Segment, Word
from seq2seq_jax.serve.transcribe import Tally, Transcript, cut_recording, transcribe_files

RATE = 1000


def make_samples(name: str) -> np.ndarray:
    """ "a:2,1,3" is 2 seconds of voice, one of silence, 3 of voice; the voice's height is told by its letter."""
    letter, _, parts = name.partition(":")
    if letter == "broken":
        raise UserError(f"{name}: cannot be read.")
    if letter == "bug":
        raise ZeroDivisionError
    height = 0.1 + 0.01 * (ord(letter) - ord("a"))
    sounds = []
    for n, seconds in enumerate(map(float, parts.split(","))):
        sign = np.where(np.arange(round(seconds * RATE)) % 2, -height, height)
        sounds.append(np.zeros_like(sign) if n % 2 else sign)
    return np.concatenate(sounds).astype(np.float32)


class Recogniser:
    """Hears the letter of each waveform."""

    def __init__(self) -> None:
        self.groups: list[int] = []

    def __call__(self, waveforms: list[np.ndarray]) -> list[Segment]:
        self.groups.append(len(waveforms))
        results = []
        for samples in waveforms:
            text = chr(ord("a") + round((float(np.abs(samples).max()) - 0.1) / 0.01))
            results.append(Segment(text, 0.0, 99.0, (Word(text, 0.25, 0.5),), -1.0))
        return results


def run(names: list[str], **options) -> tuple[list[Transcript], list[str], Recogniser]:
    told, recogniser = list[str](), Recogniser()
    options = {"longest_s": 4.0, **options}
    found = list(
        transcribe_files(names, read=make_samples, recognise=recogniser, rate=RATE, tell=told.append, **options)
    )
    return found, told, recogniser


def test_transcripts_come_in_order_with_times_of_the_file():
    found, told, recogniser = run(["a:1", "b:3,1,3,1,3", "c:2"])
    assert [one.name for one in found] == ["a:1", "b:3,1,3,1,3", "c:2"] and not told
    assert [[segment.text for segment in one.segments] for one in found] == [["a"], ["b", "b", "b"], ["c"]]
    assert [one.duration for one in found] == [1.0, 11.0, 2.0]
    for segment, start in zip(found[1].segments, (0.0, 4.0, 8.0), strict=True):
        assert segment.start == pytest.approx(start, abs=0.2) and segment.end == pytest.approx(start + 3, abs=0.2)
        assert segment.words[0].start == pytest.approx(segment.start + 0.25)
    assert recogniser.groups == [5]


def test_groups_are_full_across_files_and_nothing_waits_longer_than_it_must():
    seen, recogniser = [], Recogniser()
    names = ["a:3,1,3", "b:1", "c:3,1,3,1,3", "d:1"]

    def read(name: str) -> np.ndarray:
        seen.append(name)
        return make_samples(name)

    transcripts = transcribe_files(
        (name for name in names), read=read, recognise=recogniser, rate=RATE, longest_s=4.0, tell=print, most=3
    )
    assert next(transcripts).name == "a:3,1,3" and recogniser.groups == [3]
    assert "d:1" in seen or len(seen) >= 2  # read ahead, but not everything at once
    assert [one.name for one in transcripts] == names[1:]
    assert recogniser.groups == [3, 3, 1]


def test_short_recordings_stay_whole():
    assert cut_recording(make_samples("a:1,1,1"), rate=RATE, longest_s=4.0) == [(0, 3000)]
    assert len(cut_recording(make_samples("a:3,1,3"), rate=RATE, longest_s=4.0)) == 2
    assert cut_recording(np.zeros(2000, np.float32), rate=RATE, longest_s=4.0) == []


def test_silence_is_an_empty_transcript_and_is_not_recognised():
    found, _, recogniser = run(["a:0,9", "a:0,0"])
    assert [one.segments for one in found] == [(), ()] and [one.duration for one in found] == [9.0, 0.0]
    assert recogniser.groups == []


def test_what_cannot_be_read_is_one_line_and_the_others_go_on():
    tally = Tally()
    found, told, _ = run(["a:1", "broken:1", "b:1"], tally=tally)
    assert told == ["broken:1: cannot be read."]
    assert [one.error for one in found] == ["", "broken:1: cannot be read.", ""]
    assert [[segment.text for segment in one.segments] for one in found] == [["a"], [], ["b"]]
    with pytest.raises(UserError, match="1 of 3 recordings could not be read") as failure:
        tally.check()
    assert failure.value.exit_code == 2
    run(["a:1"], tally=(clean := Tally()))
    clean.check()


def test_a_bug_is_not_taken_for_a_bad_file():
    with pytest.raises(ZeroDivisionError):
        run(["a:1", "bug:1", "b:1"])


def test_all_sound_is_counted():
    counted, tally = [], Tally()
    run(["a:1.5", "b:3,1,3.25", "c:0,2.5", "broken:"], progress=counted.append, tally=tally, most=2)
    assert tally.audio == 11.25 and sum(counted) == 11
    assert (tally.recordings, tally.failed, tally.pieces) == (4, 1, 3)
    assert tally.real_time_factor == pytest.approx(tally.spent / 11.25) and tally.spent > 0
    assert "3 recordings, 11.2 s of audio in 3 pieces" in tally.summarise() and "1 could not" in tally.summarise()
    assert Tally().real_time_factor == 0.0


def test_a_recogniser_must_answer_for_each_waveform():
    with pytest.raises(ValueError, match="shorter"):
        list(
            transcribe_files(
                ["a:1"], read=make_samples, recognise=lambda group: [], rate=RATE, longest_s=4.0, tell=print
            )
        )
