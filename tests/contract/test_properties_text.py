"""Properties of what is written and scored, for any text: subtitles, error rates, BLEU, saved configs.

`SEQ2SEQ_JAX_EXAMPLES=2000` tries so many cases of each.
"""

from __future__ import annotations

import html
import json
import math
import re
from collections import Counter

import jiwer
import pytest
import sacrebleu
from hypothesis import example, given
from hypothesis import strategies as st

from seq2seq_jax.config import default_config, flatten, hash_config, load_config
from seq2seq_jax.evaluate.corpus_metric import make_metric
from seq2seq_jax.evaluate.speech import align_words, normalise, speech_scores
from seq2seq_jax.evaluate.text import corpus_scores, tokenize_lowercase
from seq2seq_jax.model_keys import MODEL_KEYS
from seq2seq_jax.serve.subtitles import Segment, Word, render
from seq2seq_jax.train.writers import write_json

# --- subtitles -----------------------------------------------------------------------------------

SPOKEN = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12) | st.sampled_from(
    ["-->", "--->", "---->", "<i>", "&amp;", "1", "00:00:01,000", "WEBVTT", "NOTE", "\x85", "x" * 90, "\u2028", "a\tb"]
)
TIME = st.floats(-0.5, 20.0) | st.sampled_from([0.0, 1.0, 3599.9996, 360_000.0])


@st.composite
def segments(draw) -> list[Segment]:
    """As recognisers give them: in order, but some empty, without length, or begun before the last one has ended."""
    made, at = [], draw(TIME)
    for _ in range(draw(st.integers(0, 5))):
        begun = at + draw(st.sampled_from([0.0, 0.2, 2.0]) | st.floats(-0.3, 3.0))
        words, now = [], begun
        for text in " ".join(draw(st.lists(SPOKEN, max_size=6))).split():
            end = now + draw(st.sampled_from([0.0, 0.0004, 0.3, 9.0]))
            words.append(Word(text, now, end))
            now = end + draw(st.sampled_from([0.0, 0.05, -0.01]))
        text, at = " ".join(word.text for word in words), max(now, begun)
        made.append(Segment(text, begun, at, tuple(words) if draw(st.booleans()) else ()))
    return made


def parse(text: str, form: str) -> list[tuple[int, int, str]]:
    """Milliseconds and text of every cue, read by the rules of the formats: blank lines part the blocks."""
    stamp = re.compile(r"(\d{2,}):([0-5]\d):([0-5]\d)[.,](\d{3}) --> (\d{2,}):([0-5]\d):([0-5]\d)[.,](\d{3})")
    assert text.endswith("\n") or not text
    blocks = [block for block in text.split("\n\n") if block.strip("\n")]
    if form == "vtt":
        assert blocks.pop(0).strip("\n") == "WEBVTT"
    cues = []
    for number, block in enumerate(blocks, start=1):
        lines = block.strip("\n").split("\n")
        if form == "srt":
            assert lines.pop(0) == str(number)
        match = stamp.fullmatch(lines.pop(0))
        assert match and lines and all(line.strip() for line in lines)
        assert not any("-->" in line for line in lines), "a reader would take it for a time"
        start, end = (
            ((int(h) * 60 + int(m)) * 60 + int(s)) * 1000 + int(ms)
            for h, m, s, ms in (match.groups()[:4], match.groups()[4:])
        )
        shown = " ".join(lines)
        cues.append((start, end, html.unescape(shown) if form == "vtt" else shown))
    return cues


@pytest.mark.parametrize("form", ["srt", "vtt"])
@given(said=segments())
@example(said=[Segment("--->", 0.0, 1.0)])
@example(said=[Segment("x", 2.0, 2.0), Segment("y", 2.0, 3.0)])
@example(said=[Segment("x", 0.0, 5.0), Segment("y", 1.0, 2.0), Segment("z", 1.5, 6.0)])
def test_subtitles_are_read_back_as_they_were_in_order_and_without_overlap(form, said):
    cues = parse(render(said, form), form)
    wanted = " ".join(" ".join(segment.text.split()) for segment in said).split()
    wanted = [re.sub(r"-{2,}>", "->", word) for word in wanted]
    assert " ".join(text for _, _, text in cues).split() == wanted
    assert all(start < end for start, end, _ in cues)
    assert all(before[1] <= after[0] for before, after in zip(cues, cues[1:], strict=False))
    begun = next((segment.start for segment in said if segment.text.strip()), 0.0)
    assert not cues or cues[0][0] == pytest.approx(1000 * max(0.0, begun), abs=0.51)


# --- error rates ---------------------------------------------------------------------------------

TALK = st.lists(st.sampled_from(["a", "b", "it's", "Zürich", "it\u2019s", "3"]) | st.text(max_size=5), max_size=7)
TALK = TALK.map(" ".join)


def count_errors(wanted: list[str], told: list[str]) -> int:
    """Levenshtein's distance, by the whole table."""
    table = [[max(n, m) if 0 in (n, m) else 0 for m in range(len(told) + 1)] for n in range(len(wanted) + 1)]
    for n, word in enumerate(wanted, start=1):
        for m, other in enumerate(told, start=1):
            table[n][m] = min(table[n - 1][m] + 1, table[n][m - 1] + 1, table[n - 1][m - 1] + (word != other))
    return table[-1][-1]


@given(st.lists(st.tuples(TALK, TALK), min_size=1, max_size=4), st.sampled_from(["words", "none"]))
@example([("", "a b"), ("", "")], "words")
@example([("", "a")], "none")
@example([("\u2026", "?!")], "words")
def test_error_rates_are_those_of_jiwer_and_of_the_whole_table(pairs, normaliser):
    references, hypotheses = (list(side) for side in zip(*pairs, strict=True))
    scores = speech_scores(hypotheses, references, normaliser=normaliser)
    rule = normalise if normaliser == "words" else lambda text: " ".join(text.split())
    cleaned = [(rule(wanted), rule(told)) for wanted, told in pairs]
    errors = sum(count_errors(wanted.split(), told.split()) for wanted, told in cleaned)
    letters = sum(count_errors(list(wanted), list(told)) for wanted, told in cleaned)
    words, characters = sum(len(wanted.split()) for wanted, _ in cleaned), sum(len(wanted) for wanted, _ in cleaned)
    assert (scores["words"], scores["characters"], scores["character_errors"]) == (words, characters, letters)
    assert scores["substitutions"] + scores["deletions"] + scores["insertions"] == errors
    assert scores["wer"] == pytest.approx(100 * errors / max(1, words))
    assert scores["wer"] == pytest.approx(100 * jiwer.wer(*(list(side) for side in zip(*cleaned, strict=True))))
    assert [one.errors for one in align_words(hypotheses, references, normaliser=normaliser)] == [
        count_errors(wanted.split(), told.split()) for wanted, told in cleaned
    ]


# --- BLEU ----------------------------------------------------------------------------------------

SENTENCES = st.lists(
    st.sampled_from(["the", "cat", "sat", "on", "mat", ".", ",", "Hut", "don't", "1.5", "%"]) | st.text(max_size=4),
    max_size=9,
).map(" ".join)


def count_bleu(hypotheses: list[str], references: list[str]) -> float:
    """BLEU by its definition (Papineni et al. 2002) of words between blanks, without smoothing."""
    matched, total = [0] * 4, [0] * 4
    sizes = [sum(len(line.split()) for line in side) for side in (hypotheses, references)]
    for told, wanted in zip(hypotheses, references, strict=True):
        for n in range(4):
            ours, theirs = (
                Counter(tuple(words[k : k + n + 1]) for k in range(len(words) - n))
                for words in (told.split(), wanted.split())
            )
            matched[n] += (ours & theirs).total()
            total[n] += ours.total()
    if not all(matched):
        return 0.0
    mean = sum(math.log(a / b) for a, b in zip(matched, total, strict=True)) / 4
    return 100 * math.exp(mean + min(0.0, 1 - sizes[1] / sizes[0]))


@given(st.lists(st.tuples(SENTENCES, SENTENCES, st.booleans()), min_size=1, max_size=5))
@example([("", "", False)])
def test_scores_are_sacrebleu_s_to_the_last_bit_and_those_by_hand(drawn):
    references = [wanted for _, wanted, _ in drawn]
    hypotheses = [wanted if copied else told for told, wanted, copied in drawn]
    scores = corpus_scores(hypotheses, references, target="de")
    assert scores["bleu"] == sacrebleu.corpus_bleu(hypotheses, [references]).score
    assert scores["chrf"] == sacrebleu.corpus_chrf(hypotheses, [references]).score
    for name in ("bleu", "chrf"):
        metric = make_metric(name, target="de")
        assert metric.score(metric.count(hypotheses, references).sum(axis=0)) == pytest.approx(scores[name], abs=1e-9)
    sides = (tokenize_lowercase(lines, language="de") for lines in (hypotheses, references))
    assert scores["bleu_tokenized_lowercase"] == pytest.approx(count_bleu(*sides), abs=1e-9)


# --- configs -------------------------------------------------------------------------------------

VALUES = {
    bool: st.booleans(),
    int: st.integers(-(2**53), 2**53),
    float: st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**31), 2**31).map(float),
    str: st.text(max_size=20) | st.sampled_from(["a b,c", "Zürich\u2028", 'say "it"', "C:\\corpus", "{}", "null"]),
}


@given(st.sampled_from(sorted(MODEL_KEYS)), st.data())
def test_a_saved_config_is_read_back_as_it_was(tmp_path_factory, model, data):
    config = default_config(model)
    keys = sorted(set(flatten(config)) - {"model.name"})
    for key in data.draw(st.lists(st.sampled_from(keys), max_size=8, unique=True)):
        section, _, name = key.partition(".")
        config[section][name] = data.draw(VALUES[type(config[section][name])], label=key)
    path = tmp_path_factory.mktemp("saved") / "config.json"
    write_json(path, config.to_dict())
    found = load_config(path)
    assert flatten(found) == flatten(config) and hash_config(found) == hash_config(config)
    assert {key: type(value) for key, value in flatten(found).items()} == {
        key: type(value) for key, value in flatten(config).items()
    }
    assert json.loads(path.read_text(encoding="utf-8")) == config.to_dict()
