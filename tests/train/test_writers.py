"""Writers: records survive crashes and resumes, and a terminal and a log file show the same numbers."""

import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from seq2seq_jax.errors import UserError
from seq2seq_jax.train.writers import MetricsFile, Progress, format_count, format_duration, format_record, write_json

RECORD = {
    "loss": 2.34567,
    "learning_rate": 3e-4,
    "gradient_norm": 1.5,
    "source_tokens_per_second": 12345.0,
    "target_tokens_per_second": 2_000_000,
    "pad_share": 0.0312,
    "data_wait_share": 0.5,
    "mfu": 0.413,
}
SHOWN = "loss 2.3457  lr 3.00e-04  grad 1.500  src tok/s 12.3k  tgt tok/s 2.00M  pad 3.1%  wait 50.0%  mfu 41.3%"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_records_are_on_disk_at_once_and_are_strict_json(tmp_path):
    path = tmp_path / "deep" / "metrics.jsonl"
    with MetricsFile(path) as metrics:
        metrics.write({"step": 1, "loss": np.float32(0.5), "norms": [math.inf, math.nan], "n": {"a": np.int64(3)}})
        line = path.read_text()
    record = json.loads(line, parse_constant=pytest.fail)
    assert record == {"step": 1, "loss": 0.5, "norms": ["inf", "nan"], "n": {"a": 3}}


def test_resume_drops_later_records_and_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path) as metrics:
        for step in (1, 2, 3):
            metrics.write({"step": step})
        metrics.write({"note": "no step"})
    path.write_text(path.read_text() + '{"step": 4, "lo')
    with MetricsFile(path) as metrics:
        metrics.write({"step": 4})  # not glued to the torn line
        assert metrics.truncate_after(2) == 2
        metrics.write({"step": 3})
    assert read_lines(path) == [{"step": 1}, {"step": 2}, {"note": "no step"}, {"step": 3}]
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_nonsense_in_the_middle_is_a_user_error_that_names_the_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\noops\n{"step": 2}\n')
    with MetricsFile(path) as metrics:
        with pytest.raises(UserError, match=r"metrics.jsonl:2: .*'oops'"):
            metrics.truncate_after(1)
        metrics.write({"step": 3})
    assert path.read_text().endswith('{"step": 3}\n')


def test_write_json_replaces_whole_files_or_nothing(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    write_json(path, ["ü"])
    assert json.loads(path.read_text(encoding="utf-8")) == ["ü"]
    assert os.listdir(tmp_path) == ["a.json"]
    (tmp_path / "plain").write_text("")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (185, "3m05s"), (7440, "2h04m"), (266400, "3d02h"), (math.nan, "?")],
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (999.4, "999"),
        (1000, "1.00k"),
        (12345, "12.3k"),
        (123456, "123k"),
        (999_600, "1.00M"),
        (2.5e9, "2.50G"),
    ],
)
def test_counts_keep_three_digits(count, text):
    assert format_count(count) == text


def test_a_count_is_five_characters_at_most_and_a_half_percent_off():
    for count in np.unique(np.round(np.geomspace(1, 9.9e11, 20_000))).tolist():
        text = format_count(count)
        told = float(text.rstrip("kMG")) * {"k": 1e3, "M": 1e6, "G": 1e9}.get(text[-1], 1.0)
        assert len(text) <= 5, (count, text)
        assert abs(told - count) <= 0.005 * count, (count, text)


def test_plain_lines_off_the_terminal_hold_all_numbers():
    stream = io.StringIO()
    with Progress(200, start=50, stream=stream) as progress:
        progress.log(100, RECORD)
        progress.message("saved [step 100]")
    first, second = stream.getvalue().splitlines()
    assert first.startswith("step 100/200 (50.0%)  eta ") and first.endswith(SHOWN)
    assert second == "saved [step 100]"


def test_the_bar_shows_the_same_numbers(monkeypatch):
    monkeypatch.setenv("COLUMNS", "220")
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    progress = Progress(200, stream=stream)
    progress.log(100, RECORD)
    progress.message("saved [step 100]")
    progress.close()
    progress.close()
    text = stream.getvalue()
    assert SHOWN in text and "100/200" in text and "50%" in text and "eta " in text
    assert "saved [step 100]" in text


def test_time_left_counts_from_the_first_log_so_that_compilation_does_not_count(monkeypatch):
    now = iter([0.0, 100.0, 110.0])  # made, first log (after compiling), second log
    monkeypatch.setattr("seq2seq_jax.train.writers.time.monotonic", lambda: next(now))
    stream = io.StringIO()
    progress = Progress(30, stream=stream)
    progress.log(10, {})
    progress.log(20, {})
    assert "eta 10s" in stream.getvalue().splitlines()[1]


def test_absent_numbers_are_left_out():
    assert format_record({"loss": 1, "mfu": None}) == "loss 1.0000"


def test_printing_needs_no_jax():
    code = "import sys, seq2seq_jax.train.writers; sys.exit('jax' in sys.modules or 'rich' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0
