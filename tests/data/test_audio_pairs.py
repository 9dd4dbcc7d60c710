"""Corpora of speech for plans and batches: samples against soundfile's, CTC's limit against all paths, tones."""

import itertools
import logging
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile

from seq2seq_jax.data.audio_pairs import SpeedPerturbation, change_speed, impossible, make_audio_pairs, pack_frames
from seq2seq_jax.data.pipeline import Ragged, batches, build_batch
from seq2seq_jax.data.plan import PlannedBatch, make_plan
from seq2seq_jax.data.shapes import Shape
from seq2seq_jax.data.sources import make_text
from seq2seq_jax.data.utterances import index_durations
from seq2seq_jax.data.vocab_training import train_vocab
from seq2seq_jax.errors import UserError

RATE, HOP = 8000, 80
COUNTS = (800, 1201, 2000, 79)
TEXTS = ["aab", "b", "abab", "ba"]
VOCAB = train_vocab(TEXTS, size=10, kind="char")


@pytest.fixture
def names(tmp_path):
    generator = np.random.default_rng(0)
    found = []
    for i, count in enumerate(COUNTS):
        path = tmp_path / f"{i}.wav"
        soundfile.write(path, generator.integers(-20_000, 20_000, count, dtype=np.int16), RATE)
        found.append(str(path))
    return found


def make(names, *, strict=False, **options):
    text = make_text(names, TEXTS[: len(names)], name="test")
    seconds = index_durations(text, cache=None, strict=False, tell=str)
    return make_audio_pairs(text, VOCAB, rate=RATE, hop=HOP, seconds=seconds, strict=strict, **options)


def expected_frames(name):
    samples = soundfile.read(name, dtype="float32")[0]
    padded = np.pad(samples, (0, -len(samples) % HOP))
    return padded.reshape(-1, HOP)


@pytest.mark.parametrize("room", [0, 1 << 20])
def test_frames_are_the_samples_of_the_files(names, room):
    pairs = make(names, room=room)
    assert len(pairs) == 4 and pairs.source_lengths.tolist() == [10, 16, 25, 1]
    assert pairs.target_lengths.tolist() == [len(text) + 1 for text in TEXTS]
    for _ in range(2):  # the second time from memory, or not
        sources, targets = pairs.read(np.array([2, 0, 3]))
        assert sources.flat.dtype == np.float32 and sources.flat.shape == (36, HOP)
        for place, i in enumerate((2, 0, 3)):
            np.testing.assert_array_equal(sources[place], expected_frames(names[i]))
            assert VOCAB.decode(targets[place]) == TEXTS[i]


def test_memory_keeps_no_more_than_its_room(names, monkeypatch):
    pairs = make(names, room=2 * (COUNTS[0] + COUNTS[1]))
    first = pairs.read(np.arange(4))[0]
    assert pairs.room == 0
    opened = []
    monkeypatch.setattr(
        "seq2seq_jax.data.audio_pairs.read_clip",
        lambda name, *, rate: opened.append(name) or soundfile.read(name, dtype="float32")[0],
    )
    np.testing.assert_array_equal(pairs.read(np.arange(4))[0].flat, first.flat)
    assert opened == names[2:]


@pytest.mark.parametrize("peak", [1e-4, 3.0, 30_000.0])
def test_sixteen_bits_hold_quiet_and_loud_files(tmp_path, peak):
    samples = (peak * np.random.default_rng(0).uniform(-1, 1, 800)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    read = make([str(tmp_path / "a.wav")]).read(np.array([0]))[0].flat.reshape(-1)
    np.testing.assert_allclose(read, samples, atol=peak / 32767)


def test_a_clip_that_breaks_in_training_fills_its_row_and_is_named_once(names, caplog):
    pairs = make(names)
    with open(names[1], "r+b") as file:
        file.truncate(500)
    planned = PlannedBatch(Shape(source_len=30, target_len=6, rows=3), np.array([0, 1, 2]), epoch=2)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            batch = build_batch(pairs, planned)
    assert batch.row_mask.tolist() == [True, False, True] and batch.example_ids.tolist() == [0, -1, 2]
    assert not batch.source_mask[1].any() and not batch.target_mask[1].any() and not batch.source[1].any()
    np.testing.assert_array_equal(batch.source[2, :25], expected_frames(names[2]))
    assert batch.epochs.tolist() == [2, 2, 2]
    assert list(pairs.skipped) == [names[1]] and "is cut off" in pairs.skipped[names[1]]
    assert [record.getMessage().count(names[1]) for record in caplog.records] == [1]


def test_strict_ends_at_a_clip_that_breaks(names):
    pairs = make(names, strict=True)
    os.remove(names[1])
    with pytest.raises(UserError, match=r"1\.wav: no such file"):
        pairs.read(np.array([0, 1]))


def test_a_clip_that_has_grown_is_not_read(names):
    pairs = make(names)
    soundfile.write(names[0], np.full(2000, 0.1), RATE)
    sources, targets = pairs.read(np.array([0]))
    assert sources.lengths.tolist() == targets.lengths.tolist() == [0]
    assert "has 25 frames, but had 10" in pairs.skipped[names[0]]


def test_a_clip_that_was_never_readable_has_no_frames(names):
    with open(names[3], "wb") as file:
        file.write(b"no audio")
    assert make(names).source_lengths.tolist() == [10, 16, 25, 0]


def test_threads_read_the_same(names):
    pairs, one = make(names, room=3000), make(names)
    ids = [np.random.default_rng(seed).permutation(4) for seed in range(40)]
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda order: pairs.read(order)[0].flat, ids))
    for order, flat in zip(ids, read, strict=True):
        np.testing.assert_array_equal(flat, one.read(order)[0].flat)
    assert pairs.room >= 0


def collapse(path):
    """CTC's map from a path to its labels; 0 is the blank."""
    return tuple(label for label, _ in itertools.groupby(path) if label)


def test_what_ctc_cannot_label_is_what_no_path_gives():
    labels = [labels for count in range(4) for labels in itertools.product((1, 2), repeat=count)]
    reachable = [{collapse(path) for path in itertools.product((0, 1, 2), repeat=steps)} for steps in range(6)]
    target = Ragged.pack([np.array(row, np.int32) for row in labels])
    for steps in range(6):
        expected = [i for i, row in enumerate(labels) if row not in reachable[steps]]
        for frames in {4 * steps, max(0, 4 * steps - 3)}:  # an encoder fills its last step up
            found = impossible(np.full(len(labels), frames), target, reduction=4)
            assert found.tolist() == expected


def find_hertz(frames):
    samples = frames.reshape(-1)
    return np.argmax(np.abs(np.fft.rfft(samples * np.hanning(len(samples)), 1 << 17))) * RATE / (1 << 17)


@pytest.mark.parametrize("speed", [0.9, 1.0, 1.1, 1.25])
def test_a_faster_tone_is_higher_and_shorter(speed):
    tone = np.sin(2 * np.pi * 400 * np.arange(HOP * 99) / RATE).astype(np.float32).reshape(-1, HOP)
    changed = change_speed(tone, speed)
    assert len(changed) == int(np.ceil(round(99 / speed, 6))) and changed.dtype == np.float32
    assert abs(find_hertz(changed) - 400 * speed) < 0.5
    level = np.sqrt(np.mean(np.square(changed[5:-5])))
    assert abs(level - np.sqrt(0.5)) < 0.01


def speed_of(speeds, ids, epoch, room=10**6):
    """By the lengths that clips of a hundred frames come to have."""
    sources = pack_frames([np.ones((100, HOP), np.float32)] * len(ids), hop=HOP)
    planned = PlannedBatch(Shape(len(ids), room, 9), np.asarray(ids), epoch)
    targets = Ragged.pack([np.arange(3, dtype=np.int32)] * len(ids))
    changed, kept = speeds(sources, targets, np.asarray(ids), planned)
    assert kept is targets
    return changed.lengths.tolist()


def test_speeds_follow_from_seed_epoch_and_example_alone():
    speeds = SpeedPerturbation((0.9, 1.0, 1.1), 1, HOP)
    together = speed_of(speeds, range(60), 3)
    assert together == [speed_of(speeds, [i], 3)[0] for i in range(60)]
    assert together != speed_of(speeds, range(60), 4)
    assert together != speed_of(SpeedPerturbation((0.9, 1.0, 1.1), 2, HOP), range(60), 3)
    counts = Counter(speeds.draw(np.arange(6000), 0).tolist())
    assert set(counts) == {0.9, 1.0, 1.1} and min(counts.values()) > 1850


def test_plans_have_room_for_the_slowest_and_without_room_nothing_changes():
    speeds = SpeedPerturbation((0.9, 1.0, 1.1), 1, HOP)
    assert speeds.plan_lengths(np.array([0, 1, 9, 10, 100])).tolist() == [0, 2, 10, 12, 112]
    assert max(speed_of(speeds, range(60), 0)) == 112
    assert set(speed_of(speeds, range(60), 0, room=111)) == {100, 91}
    assert SpeedPerturbation((1.1,), 1, HOP).plan_lengths(np.array([100])).tolist() == [100]
    with pytest.raises(ValueError, match="speeds"):
        SpeedPerturbation((0.0,), 1, HOP)


def test_a_plan_and_its_reader_take_speech(names):
    pairs, speeds = make(names), SpeedPerturbation((0.9, 1.1), 0, HOP)
    lengths = speeds.plan_lengths(pairs.source_lengths), pairs.target_lengths
    plan = make_plan(*lengths, seed=0, tokens_per_batch=200, rows_multiple=1)
    seen = []
    with batches(pairs, plan, start=0, stop=plan.batches_per_epoch, redraw=speeds, threads=2) as reader:
        for batch in reader:
            assert batch.source.dtype == np.float32 and batch.source.shape[2] == HOP
            seen += batch.example_ids[batch.row_mask].tolist()
    assert sorted(seen) == [0, 1, 2, 3]
