"""Events for TensorBoard, read back: they are the numbers of metrics.jsonl, each step once."""

from __future__ import annotations

import importlib.util
import math
import struct
from pathlib import Path

import pytest

from seq2seq_jax.errors import UserError
from seq2seq_jax.train.tensorboard import TensorBoard, check_tensorboard
from seq2seq_jax.train.writers import MetricsFile


def read_events(folder: Path) -> list[tuple[str, int, float]]:
    """Tag, step and value of every scalar, by the format: length, checksum, event, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.iterdir()):
        content, place = path.read_bytes(), 0
        while place < len(content):
            (length,) = struct.unpack_from("<Q", content, place)
            event = Event.FromString(content[place + 12 : place + 12 + length])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            place += 16 + length
    return found


def test_a_resumed_run_shows_every_step_once(tmp_path):
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed: the extra [tensorboard]")
    board_folder = tmp_path / "tensorboard"
    with MetricsFile(tmp_path / "metrics.jsonl") as metrics:
        board = TensorBoard(board_folder)
        metrics.follow(board.add)
        for step in (1, 2, 3):
            metrics.write({"step": step, "loss": 1.0 / step, "mfu": None})
        metrics.write({"step": 3, "event": "dev", "dev_bleu": 7.5})
        metrics.write({"note": "no step"})
        board.close()
    with MetricsFile(tmp_path / "metrics.jsonl") as metrics:  # killed at step 3, goes on from step 2
        metrics.truncate_after(2)
        board = TensorBoard(board_folder)
        metrics.follow(board.add)
        metrics.write({"step": 3, "loss": math.nan, "learning_rate": 0.5})
        metrics.write({"step": 3, "event": "dev", "dev_bleu": 8.5})
        metrics.write({"step": 4, "event": "skipped", "in_a_row": 1, "example_ids": [4, 5]})
        board.close()
    events = read_events(board_folder)
    assert [event[:2] for event in events] == [
        ("train/loss", 1), ("train/loss", 2), ("train/loss", 3), ("train/learning_rate", 3), ("dev/bleu", 3),
        ("skipped/in_a_row", 4),
    ]  # fmt: skip
    values = [value for _, _, value in events]
    assert values[:2] == [1.0, 0.5] and math.isnan(values[2]) and values[3:] == [0.5, 8.5, 1.0]


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package tensorboardX.*seq2seq_jax\[tensorboard\]"):
        check_tensorboard()
