"""Kills real processes at random moments; what comes of it must equal, bit for bit, a run left alone.

The nightly check does the same hundreds of times, with a Transformer and with speech, and with SIGTERM.
"""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "nightly"))

from kills import kill_lstm  # noqa: E402
from rows import Job  # noqa: E402

KILLS = 15


@pytest.mark.slow
def test_runs_killed_again_and_again_equal_one_left_alone(tmp_path):
    [row] = kill_lstm(Job(KILLS, 1, tmp_path, print))
    assert row.passed, row
    phases = row.details["phases"]
    assert sum(phases.values()) == KILLS and phases["save"] > 0 and len(phases) >= 4, phases
