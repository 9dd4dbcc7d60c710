"""Cutting at silences: all speech is kept, no pause is missed, no piece is too long."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seq2seq_jax.serve.silences import cut_at_silences, measure_levels

RATE = 8000


def make_voice(seconds: float, *, seed: int = 0) -> np.ndarray:
    """A sound that swells four times a second, as syllables do."""
    time = np.arange(round(seconds * RATE)) / RATE
    tone = np.random.default_rng(seed).normal(size=len(time)) * (1.2 + np.cos(2 * np.pi * 4 * time))
    return (0.1 * tone).astype(np.float32)


def make_recording(*parts: float, noise: float = 0.0) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """Seconds of voice, of silence, of voice, ...; and where the voice is."""
    pieces, spans, at = [], [], 0.0
    for n, seconds in enumerate(parts):
        pieces.append(np.zeros(round(seconds * RATE), np.float32) if n % 2 else make_voice(seconds, seed=n))
        if not n % 2 and seconds:
            spans.append((at, at + seconds))
        at += seconds
    samples = np.concatenate(pieces)
    return samples + noise * np.random.default_rng(9).normal(size=len(samples)).astype(np.float32), spans


def cut(samples: np.ndarray, **options) -> list[tuple[float, float]]:
    return [(start / RATE, end / RATE) for start, end in cut_at_silences(samples, rate=RATE, **options)]


@pytest.mark.parametrize("noise", [0.0, 0.003, 0.02])
def test_pieces_end_at_pauses_and_hold_all_speech(noise):
    samples, voices = make_recording(3.0, 0.8, 4.0, 0.5, 2.5, 2.0, 3.0, noise=noise)
    pieces = cut(samples, longest_s=10.0, shortest_s=2.0)
    assert len(pieces) == len(voices)
    for (start, end), (first, last) in zip(pieces, voices, strict=True):
        assert first - 0.3 <= start <= first + 0.03 and last - 0.03 <= end <= last + 0.3


def test_short_ones_go_together_and_far_ones_do_not():
    samples, _ = make_recording(0.5, 0.4, 0.5, 0.4, 3.0, 3.0, 0.5)
    pieces = cut(samples, longest_s=10.0, shortest_s=2.0)
    assert len(pieces) == 2 and pieces[0][1] - pieces[0][0] > 4.8 and pieces[1][0] > 7.6
    assert len(cut(samples, longest_s=10.0, shortest_s=0.1)) == 4


def test_what_is_too_long_is_cut_in_its_longest_short_pause():
    samples, _ = make_recording(4.0, 0.12, 3.0, 0.2, 4.0)
    (_, cut_at), (start, _) = cut(samples, longest_s=8.0)
    assert cut_at == start and 7.12 < cut_at < 7.32
    # None in the later half of what can be reached: an early one is better than none.
    samples, _ = make_recording(2.5, 0.2, 8.0)
    assert 2.5 < cut(samples, longest_s=8.0)[0][1] < 2.7


def test_without_a_pause_the_quietest_place_is_taken():
    samples, _ = make_recording(12.0)
    samples[int(5.9 * RATE) : int(6.1 * RATE)] *= 0.5
    assert cut(samples, longest_s=8.0)[0][1] == pytest.approx(6.0, abs=0.15)


@given(
    st.lists(st.floats(0.0, 6.0), min_size=1, max_size=7),
    st.floats(0.05, 5.0),
    st.sampled_from([0.1, 1.0, 3.0]),
    st.sampled_from([0.0, 0.001, 0.05]),
)
def test_pieces_are_in_order_within_the_limit_and_keep_the_sound(parts, longest, shortest, noise):
    samples, voices = make_recording(*parts, noise=noise)
    pieces = cut_at_silences(samples, rate=RATE, longest_s=longest, shortest_s=shortest)
    assert all(0 <= start < end <= len(samples) for start, end in pieces)
    assert all(end - start <= longest * RATE for start, end in pieces)
    assert all(before[1] <= after[0] for before, after in zip(pieces, pieces[1:], strict=False))
    kept = np.zeros(len(samples), bool)
    for start, end in pieces:
        kept[start:end] = True
    for first, last in voices:
        if last - first > 0.5:
            assert kept[int(first * RATE) : int(last * RATE)].mean() > 0.9


@pytest.mark.parametrize(
    "samples",
    [
        np.zeros(0),
        np.zeros(1),
        np.zeros(5 * RATE),
        np.full(5 * RATE, 0.3),
        np.random.default_rng(0).normal(size=5 * RATE) * 0.005,
        np.eye(1, 5 * RATE, 2 * RATE)[0],
    ],
    ids=["empty", "one sample", "zeros", "an offset", "noise", "a click"],
)
def test_silence_gives_nothing(samples):
    assert cut_at_silences(samples, rate=RATE, longest_s=2.0) == []


def test_a_loud_steady_sound_is_kept_and_cut():
    tone = 0.1 * np.sin(np.arange(10 * RATE))
    pieces = cut(tone, longest_s=4.0)
    assert pieces[0][0] == 0.0 and pieces[-1][1] == 10.0
    assert all(before[1] == after[0] for before, after in zip(pieces, pieces[1:], strict=False))


def test_levels_are_decibels_without_the_offset():
    square = np.tile([0.1, -0.1], 50) + 0.5
    assert measure_levels(square, hop=40) == pytest.approx([-20.0, -20.0, -20.0], abs=1e-3)


def test_lengths_must_be_positive():
    with pytest.raises(ValueError, match="must be positive"):
        cut_at_silences(np.zeros(9), rate=RATE, longest_s=0.0)
    with pytest.raises(ValueError, match=r"\[W\], but have \(9, 2\)"):
        cut_at_silences(np.zeros((9, 2)), rate=RATE, longest_s=1.0)
    with pytest.raises(ValueError, match="at least 0.01 seconds"):
        cut_at_silences(np.zeros(9), rate=RATE, longest_s=0.001)


@pytest.mark.data
def test_a_speech_is_cut_where_the_speaker_pauses(data_folder: Path):
    import soundfile

    with tarfile.open(data_folder / "archives" / "speech_excerpts.tar.xz") as archive:
        for name in ("jfk.flac", "2412-153948-0000.flac", "LJ002-0035.wav", "aishell-BAC009S0724W0121.wav", "ru.wav"):
            member = next(one for one in archive.getmembers() if one.name.endswith(f"/{name}"))
            samples, rate = soundfile.read(
                io.BytesIO(archive.extractfile(member).read()), dtype="float32", always_2d=True
            )
            samples = samples.mean(1)
            pieces = cut_at_silences(samples, rate=rate, longest_s=4.0, shortest_s=1.0)
            power = np.square(samples, dtype=np.float64)
            assert sum(power[start:end].sum() for start, end in pieces) > 0.995 * power.sum()
            levels = measure_levels(samples, hop=rate // 100)
            for _, end in pieces[:-1]:
                assert levels[end // (rate // 100)] < np.median(levels)
            if name == "jfk.flac":  # and so my fellow Americans / ask not / what your country ... / ask what you ...
                borders = [end / rate for _, end in pieces]
                assert borders == pytest.approx([2.3, 4.4, 7.7, 11.0], abs=0.3)
