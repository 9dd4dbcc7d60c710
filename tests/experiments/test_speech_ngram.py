"""The n-gram models of the speech experiments are distributions, and read back as they were."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pytest

from seq2seq_jax.decode.arpa import read_arpa

SCRIPT = Path(__file__).resolve().parents[2] / "experiments" / "speech" / "ngram.py"


@pytest.fixture(scope="module")
def ngram():
    spec = importlib.util.spec_from_file_location("speech_ngram", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("history", [(), ("<s>",), ("a",), ("b", "\u2581"), ("<s>", "c", "a"), ("d", "d")])
def test_what_may_follow_sums_to_one(ngram, history, tmp_path):
    manifest = tmp_path / "m.tsv"
    manifest.write_text("audio\ttext\n1.wav\tAb abc\n2.wav\tcab b\n3.wav\tdab\n")
    lines = ngram.read_transcripts(manifest)
    assert lines == ["ab abc", "cab b", "dab"]
    ngram.write_arpa(tmp_path / "m.arpa", *ngram.estimate(ngram.count(lines, 3)))
    arpa = read_arpa(tmp_path / "m.arpa")
    words = ["<unk>", "</s>", "\u2581", *"abcd"]
    assert math.isclose(sum(math.exp(arpa.score_word(history, word)) for word in words), 1.0, abs_tol=1e-4)


def test_what_was_seen_more_is_likelier(ngram, tmp_path):
    ngram.write_arpa(tmp_path / "m.arpa", *ngram.estimate(ngram.count(["aab", "aab", "aac"], 3)))
    arpa = read_arpa(tmp_path / "m.arpa")
    assert arpa.score_word(("a", "a"), "b") > arpa.score_word(("a", "a"), "c") > arpa.score_word(("a", "a"), "a")
