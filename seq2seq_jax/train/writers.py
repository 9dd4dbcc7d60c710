"""Where a run's numbers go: a JSON Lines file, a progress bar (or plain lines), and small JSON files.

Nothing here imports jax, so that command lines which only print stay quick. Numbers are passed as
plain Python numbers or anything `float()` takes.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from seq2seq_jax.errors import UserError
from seq2seq_jax.failpoints import reach

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

COLUMNS: Mapping[str, tuple[str, str]] = {
    "loss": ("loss", "{:.4f}"),
    "learning_rate": ("lr", "{:.2e}"),
    "gradient_norm": ("grad", "{:.3f}"),
    "source_tokens_per_second": ("src tok/s", "count"),
    "target_tokens_per_second": ("tgt tok/s", "count"),
    "pad_share": ("pad", "percent"),
    "data_wait_share": ("wait", "percent"),
    "mfu": ("mfu", "percent"),
}
"""Keys of a log record that people are shown: the short name and the format of each, in this order."""


def format_duration(seconds: float) -> str:
    """A duration as people say it: `12s`, `3m05s`, `2h04m`, `3d02h`; `?` where it is unknown.

    >>> format_duration(185)
    '3m05s'
    """
    if not math.isfinite(seconds) or seconds < 0:
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def format_count(count: float) -> str:
    """A count in at most five characters: `950`, `12.3k`, `4.56M`.

    >>> format_count(12345)
    '12.3k'
    """
    if not math.isfinite(count):
        return str(count)
    for limit, divisor, suffix in ((999.5, 1, ""), (999.5e3, 1e3, "k"), (999.5e6, 1e6, "M"), (math.inf, 1e9, "G")):
        if abs(count) < limit:
            scaled = count / divisor
            decimals = 0 if not suffix or abs(scaled) >= 99.95 else 1 if abs(scaled) >= 9.995 else 2
            return f"{scaled:.{decimals}f}{suffix}"
    return f"{count:g}"


def format_record(record: Mapping[str, Any]) -> str:
    """The numbers of a log record that people are shown, in the order of `COLUMNS`; absent ones are left out.

    >>> format_record({"loss": 2.5, "pad_share": 0.031, "note": "not shown"})
    'loss 2.5000  pad 3.1%'
    """
    parts = []
    for key, (name, form) in COLUMNS.items():
        value = record.get(key)
        if value is None:
            continue
        number = float(value)
        if form == "percent":
            text = f"{100 * number:.1f}%"
        elif form == "count":
            text = format_count(number)
        else:
            text = form.format(number)
        parts.append(f"{name} {text}")
    return "  ".join(parts)


def write_json(path: str | os.PathLike[str], obj: Any, *, before_rename: Callable[[], object] = lambda: None) -> None:
    """Writes `obj` as JSON so that a reader, or a crash at any moment, finds the old file or the new one whole.

    Temporary file in the same folder, fsync, `before_rename`, rename, fsync of the folder.
    """
    replace_text(path, format_json(obj), before_rename=before_rename)


def format_json(obj: Any) -> str:
    """The text that `write_json` writes."""
    return json.dumps(obj, indent=1, ensure_ascii=False) + "\n"


def replace_text(
    path: str | os.PathLike[str], text: str, *, before_rename: Callable[[], object] = lambda: None
) -> None:
    """Replaces the file's content as one atomic step; see `write_json`."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~read_umask())  # mkstemp makes 0600: others must still be able to read the log
        before_rename()
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_umask() -> int:
    """The modes that new files do not get."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _plain(value: Any) -> Any:
    """A number that JSON knows: NaN and infinities as text, numpy and jax scalars as Python numbers."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no NaN; jq, browsers and pandas refuse a file that holds one
    return value


def print_line(text: str, stream: TextIO) -> None:
    """Prints a line at once; that the log it goes to is on a full disk is no reason to end a training."""
    with contextlib.suppress(OSError):
        print(text, file=stream, flush=True)


class MetricsFile:
    """A run's numbers as JSON Lines: one record a line, readable while the run writes it.

    A record is any mapping with a `step`. A line that a crash tore off half-way is dropped when the
    file is next opened for writing. A full disk ends no training: its lines wait until they can be written.

    Args:
      path: the file; its folder is made.
      warn: receives a line of text when records cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], *, warn: Callable[[str], None] = lambda _: None):
        self.path = Path(path)
        self._warn, self._waiting, self._told = warn, b"", False
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._drop_torn_line()
        self._file = self._open()
        self._readers: list[Callable[[Mapping[str, Any]], None]] = []

    def follow(self, reader: Callable[[Mapping[str, Any]], None]) -> None:
        """Gives a reader every record: those that are there, and from now on each that is written."""
        for record in self._read():
            reader(record)
        self._readers.append(reader)

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one record and flushes it. NaN and infinities are written as the strings "nan", "inf", "-inf"."""
        line = json.dumps(_plain(record), ensure_ascii=False) + "\n"
        reach("log", record.get("step"), first=lambda: self._write(line[: len(line) // 2]))
        self._write(line)
        for reader in self._readers:
            reader(_plain(record))

    def truncate_after(self, step: int) -> int:
        """Drops the records of later steps than `step`, so that a resumed run does not log them twice.

        Returns:
          How many lines were dropped. Records without a step stay.

        Raises:
          UserError: a line is no JSON record.
        """
        records = self._read()
        kept = [record for record in records if record.get("step") is None or record["step"] <= step]
        if len(kept) < len(records):
            self._file.close()
            replace_text(self.path, "".join(json.dumps(record) + "\n" for record in kept))
            self._file = self._open()
        return len(records) - len(kept)

    def _read(self) -> list[dict[str, Any]]:
        """All records.

        Raises:
          UserError: a line is none.
        """
        records = []
        for number, line in enumerate(self.path.read_bytes().splitlines(), 1):
            try:
                record = json.loads(line)
                whole = isinstance(record, dict) and isinstance(record.get("step"), int | None)
            except (ValueError, RecursionError):
                whole = False
            if not whole:
                shown = line[:60].decode("utf-8", "replace")
                raise UserError(
                    f"{self.path}:{number}: every line must be a JSON record, but {shown!r} is not; "
                    "remove the line or move the file away"
                )
            records.append(record)
        return records

    def close(self) -> None:
        """Closes the file; may be called twice."""
        self._write("")
        if self._waiting:
            self._warn(f"{self.path}: {self._waiting.count(10)} lines were not written")
            self._waiting = b""
        self._file.close()

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _write(self, text: str) -> None:
        self._waiting += text.encode()
        try:
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) :]
            self._told = False
        except OSError as error:
            if not self._told:
                self._warn(f"{self.path}: {error.strerror}; its lines are written as soon as they can be")
            self._told = True

    def _open(self) -> FileIO:
        return self.path.open("ab", buffering=0)  # what could not be written is known to the byte

    def _drop_torn_line(self) -> None:
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        if content and not content.endswith(b"\n"):
            os.truncate(self.path, content.rfind(b"\n") + 1)


class Progress:
    """Shows how far a run is: a bar with the time left on a terminal, one plain line per `log` elsewhere.

    Both show the same numbers, those of `COLUMNS`.
    """

    def __init__(self, total_steps: int, *, start: int = 0, stream: TextIO | None = None):
        self.total_steps = total_steps
        self._first = (start, time.monotonic())
        self._warm: tuple[int, float] | None = None  # the first log
        self._stream = sys.stderr if stream is None else stream
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        if self._stream.isatty():
            self._bar, self._task = _open_bar(self._stream, total_steps=total_steps, start=start)

    def log(self, step: int, record: Mapping[str, Any]) -> None:
        """Shows the record of `step` (counted from 1, as many as are done)."""
        numbers = format_record(record)
        left = format_duration(self._seconds_left(step))
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step, left=left, numbers=numbers)
            return
        share = 100 * step / max(self.total_steps, 1)
        print_line(f"step {step}/{self.total_steps} ({share:.1f}%)  eta {left}  {numbers}", self._stream)

    def move(self, step: int) -> None:
        """Moves the bar to `step`; where there is none, `log` tells."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step)

    def message(self, text: str) -> None:
        """Prints a line of text above the bar."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print_line(text, self._stream)

    def close(self) -> None:
        """Leaves the bar as it stands; may be called twice."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _seconds_left(self, step: int) -> float:
        """From the first log on: the steps before it hold start-up and compilation, which do not come again."""
        first_step, first_time = self._first
        now = time.monotonic()
        if self._warm is None:
            self._warm = (step, now)
        elif step > self._warm[0]:
            first_step, first_time = self._warm
        if step <= first_step:
            return math.nan
        return (now - first_time) / (step - first_step) * max(self.total_steps - step, 0)


def _open_bar(stream: TextIO, *, total_steps: int, start: int) -> tuple[Bar, TaskID]:
    """Starts a rich bar. Imported here: rich takes 50 ms, and a run that is not on a terminal never shows it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TaskProgressColumn, TextColumn
    from rich.progress import Progress as Bar

    bar = Bar(
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TaskProgressColumn(),
        TextColumn("eta {task.fields[left]}"),
        TextColumn("{task.fields[numbers]}"),
        console=Console(file=stream),
        refresh_per_second=4,
    )
    task = bar.add_task("train", total=total_steps, completed=start, left="?", numbers="")
    bar.start()
    return bar, task
