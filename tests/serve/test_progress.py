"""What people are told while a file is translated."""

from __future__ import annotations

import io

from seq2seq_jax.serve import progress
from seq2seq_jax.serve.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def count_up(total: int | None, stream: io.StringIO, monkeypatch, *, seconds: float) -> list[str]:
    """Ten counts of ten, so many seconds apart; the lines that were told."""
    now, told = [0.0], []
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress(total, stream=stream, tell=told.append) as count:
        for _ in range(10):
            now[0] += seconds
            count(10)
    return told


def test_a_line_now_and_then_where_there_is_no_terminal(monkeypatch):
    stream = io.StringIO()
    told = count_up(100, stream, monkeypatch, seconds=20.0)
    assert told[0] == "20 of 100 sentences done, about 160 s left"
    assert len(told) == 5 and told[-1] == "100 of 100 sentences done, about 0 s left"
    assert count_up(100, stream, monkeypatch, seconds=1.0) == [] and stream.getvalue() == ""


def test_a_bar_on_a_terminal(monkeypatch):
    stream = Terminal()
    assert count_up(100, stream, monkeypatch, seconds=20.0) == []
    assert "100%" in stream.getvalue() and "100/100" in stream.getvalue()


def test_nothing_where_nobody_knows_how_much_there_is(monkeypatch):
    stream = Terminal()
    assert count_up(None, stream, monkeypatch, seconds=20.0) == [] and stream.getvalue() == ""
