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


def test_nothing_of_the_tested_speaker_is_trained_on(digits, tmp_path):
    (tmp_path / "ann.train.tsv").write_text("audio\ttext\n1_bob_0.wav\tone\n2_bob_0.wav\ttwo\n")
    (tmp_path / "heard.tsv").write_text("audio\ttext\nheard/1_bob_0.wav\tone\nheard/1_ann_0.wav\tone\n")
    (tmp_path / "spoken.tsv").write_text("audio\ttext\nspoken/00000.wav\tzero\n")
    out = tmp_path / "out"
    out.mkdir()
    flags = digits.write_training(tmp_path, out, "ann")
    assert flags == [f"--config.data.{split}={out / f'ann.{split}.tsv'}" for split in ("train", "dev")]
    paths, texts = digits.read_manifest(out / "ann.train.tsv")
    assert texts == ["one", "two", "one", "zero"] and not any("_ann_" in path.name for path in paths)
    watched, _ = digits.read_manifest(out / "ann.dev.tsv")
    assert watched == [(tmp_path / f"{n}_bob_0.wav").resolve() for n in (1, 2)]


def test_a_folder_without_manifests_is_told(digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["digits.py", str(tmp_path), str(tmp_path / "out")])
    assert digits.main() == 2
    assert "SPEAKER.test.tsv" in capsys.readouterr().err
