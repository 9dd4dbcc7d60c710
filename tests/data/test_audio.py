"""Clips of audio files: against the standard library's reader of WAV files, analytic tones, and damaged files."""

import math
import struct
import sys
import wave

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from seq2seq_jax.data.audio import Clip, count_frames, name_clip, parse_clip, probe_clip, read_clip, resample, to_frames
from seq2seq_jax.errors import UserError

RATE = 16_000


def write_wav(path, numbers, *, rate=RATE):
    """16-bit samples `[W, channels]` by the standard library."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(numbers.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(numbers.astype("<i2").tobytes())
    return str(path)


def draw(count, channels=1, seed=0):
    return np.random.default_rng(seed).integers(-20_000, 20_000, (count, channels), dtype=np.int16)


def tone(count, rate, hertz=440.0):
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(count) / rate)).astype(np.float32)


@pytest.mark.parametrize("channels", [1, 2, 8])
def test_samples_are_the_mean_of_the_channels(tmp_path, channels):
    numbers = draw(1000, channels)
    samples = read_clip(write_wav(tmp_path / "a.wav", numbers), rate=RATE)
    assert samples.dtype == np.float32
    np.testing.assert_allclose(samples, numbers.astype(np.float64).mean(axis=1) / 32768, atol=1e-7)


@pytest.mark.parametrize(("ending", "limit"), [("flac", 0), ("wav", 0), ("aiff", 0), ("sph", 0), ("au", 0)])
def test_formats_without_loss_agree(tmp_path, ending, limit):
    numbers = draw(4000)
    path = tmp_path / f"a.{ending}"
    soundfile.write(path, numbers, RATE, format="NIST" if ending == "sph" else None, subtype="PCM_16")
    np.testing.assert_array_equal(read_clip(str(path), rate=RATE), numbers[:, 0] / np.float32(32768))


@pytest.mark.parametrize("ending", ["ogg", "mp3"])
def test_formats_with_loss_sound_alike(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    soundfile.write(path, tone(RATE, RATE), RATE)
    samples = read_clip(str(path), rate=RATE)
    spectrum = np.abs(np.fft.rfft(samples[:RATE]))
    assert np.argmax(spectrum) == 440 and abs(len(samples) - RATE) < 2000


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 44_100, 48_000])
def test_another_rate_keeps_a_tone(tmp_path, rate):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(rate, rate), rate, subtype="FLOAT")
    samples = read_clip(str(path), rate=RATE)
    assert len(samples) == RATE
    np.testing.assert_allclose(samples[200:-200], tone(RATE, RATE)[200:-200], atol=2e-3)


def test_what_is_above_half_the_rate_is_taken_away():
    assert np.abs(resample(tone(48_000, 48_000, hertz=11_000.0), 48_000, RATE)[200:-200]).max() < 1e-2


def test_a_part_is_cut_out_by_seconds(tmp_path):
    numbers = draw(RATE)
    path = write_wav(tmp_path / "a#b.wav", numbers)
    whole = numbers[:, 0] / np.float32(32768)
    np.testing.assert_array_equal(read_clip(f"{path}#0.25-0.5", rate=RATE), whole[4000:8000])
    np.testing.assert_array_equal(read_clip(f"{path}#0.75-", rate=RATE), whole[12_000:])
    np.testing.assert_array_equal(read_clip(f"{path}#0.5-1.05", rate=RATE), whole[8000:])  # rounded by a list
    assert probe_clip(f"{path}#0.25-0.5") == 0.25 and probe_clip(path) == 1.0


@given(
    st.text(st.characters(exclude_characters="#"), min_size=1),
    st.integers(0, 10**10),
    st.none() | st.integers(1, 10**10),
)
def test_names_of_clips_go_both_ways(path, start, more):
    clip = Clip(path, start / 1e6, None if more is None else (start + more) / 1e6)
    assert parse_clip(name_clip(clip.path, clip.start, clip.end)) == clip


@given(st.integers(1, 5000), st.sampled_from([8000, 11_025, 16_000, 22_050, 44_100]), st.sampled_from([80, 160, 250]))
def test_frames_are_counted_by_the_header_as_they_are_cut(count, rate, hop):
    frames = to_frames(resample(np.ones(count, np.float32), rate, RATE), hop=hop)
    assert count_frames(count / rate, rate=RATE, hop=hop) == len(frames)
    assert frames.shape[1] == hop and frames.dtype == np.float32


def test_the_last_frame_is_filled_with_zeros():
    np.testing.assert_array_equal(to_frames(np.arange(1, 6), hop=3), [[1, 2, 3], [4, 5, 0]])
    assert to_frames(np.zeros(0), hop=3).shape == (0, 3)
    assert count_frames(np.array([np.nan, 0.5]), rate=RATE, hop=160).tolist() == [0, 50]


def make_cut(path, ending):
    """A file without its second half."""
    whole = path / f"whole.{ending}"
    noise = np.random.default_rng(0).normal(0, 0.1, 3 * RATE)
    soundfile.write(whole, noise, RATE, format="NIST" if ending == "sph" else None)
    cut = path / f"cut.{ending}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    return cut


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg", "mp3", "aiff", "sph"])
def test_a_file_that_is_cut_off_is_refused(tmp_path, ending, capfd):
    with pytest.raises(UserError, match=r"cut\.\w+: (is cut off|cannot be decoded)[^\n]*copy [^\n]*\.$"):
        read_clip(str(make_cut(tmp_path, ending)), rate=RATE)


def test_a_recording_of_unknown_length_is_read(tmp_path):
    path = tmp_path / "a.wav"
    numbers = draw(1000)
    write_wav(path, numbers)
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = struct.pack("<I", 0xFFFFFFFF)  # as ffmpeg writes to a pipe
    path.write_bytes(content)
    np.testing.assert_array_equal(read_clip(str(path), rate=RATE), numbers[:, 0] / np.float32(32768))


def make_bad(folder, kind):
    path = folder / f"{kind}.wav"
    if kind == "channels":
        write_wav(path, draw(100, 9))
    elif kind == "samples":
        write_wav(path, draw(0))
    elif kind in ("nan", "inf"):
        samples = tone(1000, RATE)
        samples[500] = math.nan if kind == "nan" else math.inf
        soundfile.write(path, samples, RATE, subtype="FLOAT")
    elif kind == "slow":
        write_wav(path, draw(100), rate=2000)
    elif kind == "quick":
        write_wav(path, draw(100), rate=400_000)
    elif kind == "streamed":
        path = folder / "streamed.flac"
        soundfile.write(path, tone(4000, RATE), RATE)
        content = bytearray(path.read_bytes())
        content[21] &= 0xF0  # STREAMINFO: the number of samples, 36 bits
        content[22:26] = bytes(4)
        path.write_bytes(content)
    elif kind == "junk":
        path.write_bytes(b"hello " * 100)
    elif kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "renamed":
        path = folder / "renamed.flac"
        write_wav(path, draw(100))
    elif kind == "ending":
        path = folder / "a.m4a"
        write_wav(path, draw(100))
    return path


BAD = {
    "channels": "must have at most 8 channels, but has 9",
    "samples": "holds no samples",
    "nan": r"NaN or infinite samples \(the first at 0.031 s\)",
    "inf": r"NaN or infinite samples \(the first at 0.031 s\)",
    "slow": "rate of 4000 to 384000 Hz, but has 2000",
    "quick": "rate of 4000 to 384000 Hz, but has 400000",
    "streamed": "does not tell how long it is",
    "junk": "cannot be read as audio",
    "empty": r"is empty \(0 bytes\)",
    "folder": "is a folder",
    "missing": "no such file",
    "renamed": "format WAV, which .flac is not the ending of",
    "ending": "ends in .m4a",
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_gives_one_line_with_its_name(tmp_path, kind):
    path = make_bad(tmp_path, kind)
    with pytest.raises(UserError, match=BAD[kind]) as caught:
        read_clip(str(path), rate=RATE)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(path))
    if kind not in ("nan", "inf"):  # those are not in the header
        with pytest.raises(UserError, match=BAD[kind]):
            probe_clip(str(path))


@pytest.mark.parametrize("part", ["#0.5-0.2", "#2-3", "#0.5-1.5", "#1-"])
def test_a_part_outside_of_its_file_is_refused(tmp_path, part):
    path = write_wav(tmp_path / "a.wav", draw(RATE))
    with pytest.raises(UserError, match=r"a\.wav#"):
        probe_clip(path + part)


def test_without_soundfile_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(UserError, match=r"pip install 'seq2seq_jax\[speech\]'"):
        read_clip(str(tmp_path / "a.wav"), rate=RATE)
