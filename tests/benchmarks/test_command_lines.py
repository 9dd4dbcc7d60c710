"""The command lines of the benchmarks: what cannot be measured is refused in one line, before anything runs."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

REFUSED = [
    ("wavefront", "--chunk=0,7", "'0,7'"),
    ("wavefront", "--rows=a", "--rows"),
    ("wavefront", "--dtype=float17", "float32"),
    ("wavefront", "--seconds=0", "above 0"),
    ("wavefront", "--seconds=inf", "above 0"),
    ("recurrent", "--rows=0", "at least 1"),
    ("recurrent", "--features=1", "--features"),
    ("recurrent", "--projection=256", "between 1 and 255"),
    ("recurrent", "--projection=-1", "or 0 for half of --features"),
    ("recurrent", "--json=/nonexistent/x.json", "make /nonexistent"),
    ("recurrent", "--cores=9999", "at most"),
    ("gnmt_step", "--json=/", "is a folder"),
    ("gnmt_step", "--sides=ours,troch", "'troch'"),
    ("gnmt_step", "--profile --sides=torch", "--sides=plain"),
    ("gnmt_step", "--heaviest=3", "--profile"),
    ("gnmt_step", "--profile_folder=there", "--profile"),
    ("gnmt_step", "--attention_from=previous_step --check", "--check"),
    ("transformer_step", "--sides=ours,plain", "'plain'"),
    ("transformer_step", "--profile --sides=torch", "--sides=ours"),
    ("transformer_step", "--features=30 --heads=4", "multiple of the 4 --heads"),
    ("transformer_step", "--vocab=3", "four tokens"),
    ("listener", "--sides=ours,troch", "'troch'"),
    ("listener", "--reduction=3", "power of two"),
    ("listener", "--layers=2", "at least 3"),
    ("linformer", "--features=30 --heads=4", "multiple of the 4 --heads"),
    ("linformer", "--lengths=64,512", "the shortest of --lengths, 64, but has 256"),
    ("transformer_search", "--parts=batch,all", "'all'"),
    ("transformer_search", "--source=3", "at least 4"),
    ("transformer_search", "--sources=x.de", "go together"),
    ("transformer_search", "--json=/nonexistent/x.json", "make /nonexistent"),
]


@pytest.mark.parametrize(("script", "arguments", "words"), REFUSED)
def test_what_cannot_be_measured_is_refused_in_one_line(script, arguments, words, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(script).parse_arguments(arguments.split())
    printed = capsys.readouterr()
    assert (ended.value.code, printed.out) == (2, "")
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
    assert words in printed.err


def test_help_has_defaults_presets_and_variants(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    with pytest.raises(SystemExit):
        importlib.import_module("recurrent").parse_arguments(["--help"])
    printed = capsys.readouterr().out
    assert "(default: cpu)" in printed and "rows 128,512" in printed and "  both directions, two loops\n" in printed


def test_variants_that_this_device_is_not_for_are_refused_before_measuring(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    recurrent = importlib.import_module("recurrent")
    found = recurrent.find_misfits(recurrent.parse_arguments(["--variants=ours;kernel;wavefront", "--layers=1"]))
    assert set(found) == {"kernel", "wavefront"}  # tests run on a CPU
