"""Lines through a pipe: answers before the input ends, in order, in full groups; errors and n-best lists."""

from __future__ import annotations

import dataclasses
import io
import threading
import time
from collections.abc import Iterator

import pytest

from seq2seq_jax.serve import translate as serve
from seq2seq_jax.serve.translate import gather, moses_nbest, split, stream

SOON = 30.0  # seconds that something immediate may take on a busy machine


class Pipe(io.StringIO):
    """Output that notes what had been written at each flush, and signals the first one."""

    def __init__(self) -> None:
        super().__init__()
        self.flushed: list[str] = []
        self.answered = threading.Event()

    def flush(self) -> None:
        """Called by whoever writes; what is not flushed has not left the process."""
        self.flushed.append(self.getvalue())
        self.answered.set()


def shout(lines: list[str]) -> list[str]:
    return [line.upper() for line in lines]


def number(count: int, text: str) -> str:
    return f"{count} {text}\n"


@pytest.fixture
def patient(monkeypatch):
    """No pause of the reader ends a group: a machine that stalls must not decide how lines are grouped."""
    monkeypatch.setattr(serve, "PAUSE", SOON)


def test_an_answer_comes_before_the_input_ends():
    output = Pipe()

    def lines() -> Iterator[str]:
        yield "first"
        if not output.answered.wait(SOON):
            raise TimeoutError("the first line was not answered while the second was awaited")
        yield "second"

    assert stream(gather(lines(), most=64), output, translate=shout, render=number) == 2
    assert output.flushed == ["0 FIRST\n", "0 FIRST\n1 SECOND\n"]


def test_a_fast_writer_gets_full_groups_in_order_and_each_is_flushed(patient):
    output, groups = Pipe(), []

    def translate(group: list[str]) -> list[str]:
        groups.append(group)
        return shout(group)

    lines = [f"line {n}" for n in range(11)]
    assert stream(gather(iter(lines), most=4), output, translate=translate, render=number) == 11
    assert groups == [lines[:4], lines[4:8], lines[8:]]
    wanted = [f"{n} LINE {n}\n" for n in range(11)]
    assert output.flushed == ["".join(wanted[:end]) for end in (4, 8, 11)]


def test_who_writes_line_by_line_is_not_made_to_wait_for_more(monkeypatch):
    """Each line is written when the one before is answered: after the first, none waits for the pause."""
    monkeypatch.setattr(serve, "PAUSE", 0.5)
    answered = threading.Semaphore(1)

    def lines() -> Iterator[str]:
        for line in "abcdefgh":
            answered.acquire()
            yield line

    begun, groups = time.monotonic(), []
    for group in gather(lines(), most=8):
        groups.append(group)
        answered.release()
    assert groups == [[line] for line in "abcdefgh"]
    assert time.monotonic() - begun < 7 * 0.5


def test_a_file_is_split_into_parts():
    assert list(split(iter("abcde"), most=2)) == [["a", "b"], ["c", "d"], ["e"]]
    assert list(split(iter(""), most=2)) == []


def test_the_reader_does_not_run_ahead_of_the_translation_without_bound(patient):
    taken: list[int] = []

    def lines() -> Iterator[str]:
        for n in range(1000):
            taken.append(n)
            yield str(n)

    groups = gather(lines(), most=3)
    assert next(groups) == ["0", "1", "2"]
    assert len(taken) < 30  # four groups wait in the queue, and a line in the reader's hand


def test_blank_lines_are_lines_and_no_input_is_no_output(patient):
    assert list(gather(iter(["", "a", ""]), most=2)) == [["", "a"], [""]]
    output = Pipe()
    assert stream(gather(iter([]), most=2), output, translate=shout, render=number) == 0
    assert output.getvalue() == ""


@pytest.mark.parametrize("read", [0, 3, 4])
def test_an_error_while_reading_is_raised_where_the_lines_are_used(patient, read):
    """... once the lines before it are answered."""

    def lines() -> Iterator[str]:
        yield from map(str, range(read))
        raise ValueError("the pipe broke")

    output = Pipe()
    with pytest.raises(ValueError, match="the pipe broke"):
        stream(gather(lines(), most=2), output, translate=shout, render=number)
    assert output.flushed[-1:] == ["".join(f"{n} {n}\n" for n in range(read))] * (read > 0)


def test_an_error_of_the_translation_goes_up_with_the_groups_before_it_written(patient):
    def translate(group: list[str]) -> list[str]:
        if "bad" in group:
            raise RuntimeError("cannot")
        return shout(group)

    output = Pipe()
    with pytest.raises(RuntimeError, match="cannot"):
        stream(gather(iter(["a", "b", "bad"]), most=2), output, translate=translate, render=number)
    assert output.flushed == ["0 A\n1 B\n"]


@dataclasses.dataclass
class Entry:
    """An entry of an n-best list."""

    text: str
    score: float
    log_prob: float


def test_nbest_lists_are_written_as_moses_writes_them():
    """`number ||| text ||| features ||| score`: see the manual of Moses, section "n-best lists"."""
    text = moses_nbest(7, [Entry("guten Tag", -0.5, -1.25), Entry("hallo", -0.75, -2.0)])
    assert (
        text
        == "7 ||| guten Tag ||| LogProb= -1.250000 ||| -0.500000\n7 ||| hallo ||| LogProb= -2.000000 ||| -0.750000\n"
    )
    fields = [line.split(" ||| ") for line in text.splitlines()]
    assert [len(field) for field in fields] == [4, 4]
    assert moses_nbest(0, []) == ""
