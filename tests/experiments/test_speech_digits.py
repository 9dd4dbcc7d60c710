"""The study of spoken digits: what it reads, what it counts, and what it says where there is nothing."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "experiments" / "speech" / "digits.py"


@pytest.fixture(scope="module")
def digits():
    spec = importlib.util.spec_from_file_location("digits", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_scores_are_the_share_of_recordings_whose_text_is_right(digits, tmp_path):
    outputs = tmp_path / "ann" / "outputs"
    outputs.mkdir(parents=True)
    (tmp_path / "ann" / "results.json").write_text("{}")  # trained already
    (outputs / "test.references.txt").write_text("one\ntwo\nthree\nfour\n")
    (outputs / "test.hypotheses.txt").write_text("one\ntoo\n\nfour\n")
    assert digits.recognise(tmp_path, tmp_path, "ann", []) == 50.0


def test_manifests_are_read_relative_to_their_folder(digits, tmp_path):
    (tmp_path / "ann.test.tsv").write_text("audio\ttext\nwav/1.wav\tone\n")
    assert digits.read_manifest(tmp_path / "ann.test.tsv") == ([(tmp_path / "wav" / "1.wav").resolve()], ["one"])


def test_a_folder_without_manifests_is_told(digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["digits.py", str(tmp_path), str(tmp_path / "out")])
    assert digits.main() == 2
    assert "SPEAKER.test.tsv" in capsys.readouterr().err
