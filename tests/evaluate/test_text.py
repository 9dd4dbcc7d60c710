"""Corpus scores against sacreBLEU's command line, hand counts and published references."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest

from seq2seq_jax.errors import UserError
from seq2seq_jax.evaluate.text import corpus_scores, tokenize_lowercase

HYPOTHESES = [
    "Ein Mann mit Hut steht am Fenster.",
    'Zwei Hunde spielen im "Schnee", sagt er.',
    "Das Kind isst ein Eis.",
]
REFERENCES = [
    "Ein Mann mit Hut steht vor dem Fenster.",
    'Zwei Hunde spielen im "Schnee".',
    "Ein Kind isst gerade ein Eis.",
]


def run_sacrebleu(folder, *options: str) -> dict:
    (folder / "hypotheses").write_text("\n".join(HYPOTHESES) + "\n", encoding="utf-8")
    (folder / "references").write_text("\n".join(REFERENCES) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "sacrebleu", "references", "-i", "hypotheses", "-f", "json", *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_scores_equal_those_of_the_command_line(tmp_path):
    scores = corpus_scores(HYPOTHESES, REFERENCES, target="de")
    bleu, chrf = run_sacrebleu(tmp_path, "-m", "bleu", "chrf", "-w", "8")
    assert scores["bleu"] == pytest.approx(bleu["score"], abs=1e-8)
    assert scores["bleu_signature"] == bleu["signature"]
    assert scores["chrf"] == pytest.approx(chrf["score"], abs=1e-8)
    assert scores["chrf_signature"] == chrf["signature"]


def test_case_counts_in_bleu_and_not_in_its_lower_cased_kin():
    upper = [line.upper() for line in REFERENCES]
    scores = corpus_scores(upper, REFERENCES, target="de")
    assert scores["bleu"] < 20
    assert scores["bleu_tokenized_lowercase"] == pytest.approx(100.0)


def test_tokenized_lowercase_bleu_by_hand():
    # In reach of "a" nothing matches: 6 of 7 words, 4 of 6 bigrams, 2 of 5 trigrams, 1 of 4 four-grams.
    scores = corpus_scores(["The cat sat on a mat."], ["the cat sat on the mat ."], target="en")
    expected = 100 * math.prod([6 / 7, 4 / 6, 2 / 5, 1 / 4]) ** 0.25
    assert scores["bleu_tokenized_lowercase"] == pytest.approx(expected)
    assert "tok:none" in scores["bleu_tokenized_lowercase_signature"]
    assert "smooth:none" in scores["bleu_tokenized_lowercase_signature"]


def test_without_a_common_four_gram_multi_bleu_is_zero():
    scores = corpus_scores(["a b c x y"], ["a b c d e"], target="en")
    assert scores["bleu_tokenized_lowercase"] == 0.0


def test_the_tokenized_score_can_be_left_out():
    assert set(corpus_scores(["a"], ["a"], target="en", lowercase_tokenized=False)) == {
        "bleu", "bleu_signature", "chrf", "chrf_signature",
    }  # fmt: skip


def test_chinese_gets_its_own_tokenizer():
    scores = corpus_scores(["我们今天去公园。"], ["我们今天去公园。"], target="zh-CN")
    assert scores["bleu"] == pytest.approx(100.0)
    assert "tok:zh" in scores["bleu_signature"]


@pytest.mark.parametrize("language", ["ja", "ko"])
def test_a_missing_tokenizer_is_one_clear_line(language, monkeypatch):
    def refuse(**_):
        raise RuntimeError("no such tokenizer")

    monkeypatch.setattr("seq2seq_jax.evaluate.text.BLEU", refuse)
    with pytest.raises(UserError, match=rf"pip install \"sacrebleu\[{language}\]\""):
        corpus_scores(["a"], ["a"], target=language)


def test_unequal_or_no_lines_are_refused():
    with pytest.raises(ValueError, match="2 and 1 instead"):
        corpus_scores(["a", "b"], ["a"], target="de")
    with pytest.raises(ValueError, match="at least one line"):
        corpus_scores([], [], target="de")


def test_quotes_at_the_end_of_a_line_as_in_the_perl_script():
    assert tokenize_lowercase(['Es heißt "Neude."'], language="de") == ["es heißt &quot; neude &quot; ."]


@pytest.mark.data
@pytest.mark.parametrize("language", ["de", "fr", "en"])
def test_multi30k_references_are_reproduced(data_folder, language):
    folder = data_folder / "multi30k"
    plain = (folder / f"test_2016_flickr.{language}").read_text(encoding="utf-8").split("\n")[:-1]
    published = (folder / "tok" / f"test_2016_flickr.lc.norm.tok.{language}").read_text(encoding="utf-8")
    assert len(plain) == 1000
    assert tokenize_lowercase(plain, language=language) == published.split("\n")[:-1]
