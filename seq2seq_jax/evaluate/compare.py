"""Compares two systems' translations of one test set, or looks closely at those of one.

Scores are sacreBLEU's, and so are the tests: paired bootstrap resampling (Koehn 2004). What lies behind the scores is
shown as compare-mt does (Neubig et al. 2019): by the length of sentences, by how often words were seen in training, by
n-grams that come too often or too seldom, and by the sentences in which the systems differ most.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest

from seq2seq_jax.evaluate.text import make_bleu

RESAMPLES = 1000
LENGTHS = (5, 10, 15, 20, 30, 40, 60)
"""Where buckets of sentence lengths begin, after the one that begins at 0."""

COUNTS = (1, 2, 3, 4, 5, 10, 100, 1000)
"""Where buckets of word counts begin, after that of 0."""

SHOWN = 10
LONGEST_NGRAM = 4

Tokenizer = Callable[[str], Sequence[str]]


@dataclasses.dataclass(frozen=True)
class System:
    """Translations of a test set, and what to call them."""

    name: str
    hypotheses: Sequence[str]


def compare_systems(
    systems: Sequence[System],
    references: Sequence[str],
    *,
    sources: Sequence[str] | None = None,
    training: Iterable[str] | None = None,
    target: str = "",
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Everything there is to say about one or two systems' translations, as JSON-ready values.

    Args:
        systems: one or two; tests compare the second with the first.
        references: one for each sentence.
        sources: likewise, where they are known; else lengths are those of the references.
        training: target sentences that the models were trained on, to count words in; else those of the
            references are counted.
        target: language code, for sacreBLEU's tokenizer.
        resamples: of the bootstrap.

    Returns:
        `systems` (names), `sentences`, `scores`, `lengths`, `words`, `ngrams`, `differences`, `worst`; see the
        functions that make them.

    Raises:
        ValueError: there are not one or two systems, no sentences, or the counts of lines differ.
        UserError: sacreBLEU lacks the tokenizer of the target language.
    """
    counts = {len(references), *(len(system.hypotheses) for system in systems)} | ({len(sources)} if sources else set())
    if len(systems) not in (1, 2) or len(counts) > 1 or not references:
        raise ValueError(f"one or two systems and equally many lines are needed, but there are {counts} instead.")
    bleu = make_bleu(target)
    tokenize = _make_tokenizer(bleu)
    chrf = score_sentences(systems, references)
    tokens = [[tokenize(line) for line in system.hypotheses] for system in systems]
    wanted = [tokenize(line) for line in references]
    return {
        "systems": [system.name for system in systems],
        "sentences": len(references),
        "scores": judge_scores(systems, references, bleu=bleu, resamples=resamples),
        "lengths": score_lengths(systems, references, sources, target=target),
        "words": score_words(tokens, wanted, None if training is None else map(tokenize, training)),
        "ngrams": count_ngrams(tokens, wanted),
        "differences": find_differences(systems, references, sources, chrf),
        "worst": [find_worst(systems, references, sources, chrf, n) for n in range(len(systems))],
    }


def _make_tokenizer(bleu: BLEU) -> Tokenizer:
    """sacreBLEU's tokenizer, so that words are what BLEU counts."""

    def tokenize(line: str) -> list[str]:
        return str(bleu.tokenizer(line)).split()

    return tokenize


def judge_scores(
    systems: Sequence[System], references: Sequence[str], *, bleu: BLEU, resamples: int = RESAMPLES
) -> list[dict[str, Any]]:
    """BLEU and chrF with confidence intervals of 95 %, and the test of whether two systems differ.

    Returns:
        For each metric: `name`, `signature` (it tells the seed and the number of resamples), `p_value` of the second
        system against the first (None if there is one), and `systems`: `score`, `mean` and `interval` (half its
        width) of each.
    """
    named: list[tuple[str, Sequence[str]]] = [
        (f"{n} {system.name}", list(system.hypotheses)) for n, system in enumerate(systems)
    ]
    metrics = {"bleu": bleu, "chrf": CHRF()}
    test = PairedTest(named, metrics, [list(references)], test_type="bs", n_samples=resamples)
    signatures, found = test()
    same = len(named) > 1 and named[0][1] == named[1][1]  # of equal texts sacreBLEU's p would be the least there is
    rows = []
    for name, signature in signatures.items():
        results: list[Any] = list(found[name])
        rows.append(
            {
                "name": name,
                "signature": str(signature),
                "p_value": None if len(results) < 2 else 1.0 if same else float(results[1].p_value),
                "systems": [{"score": float(r.score), "mean": float(r.mean), "interval": float(r.ci)} for r in results],
            }
        )
    return rows


def score_sentences(systems: Sequence[System], references: Sequence[str]) -> list[list[float]]:
    """chrF of every sentence, a list for each system."""
    metric = CHRF()

    def score(line: str, reference: str) -> float:
        return float(metric.sentence_score(line, [reference]).score)

    return [[score(*pair) for pair in zip(system.hypotheses, references, strict=True)] for system in systems]


def score_lengths(
    systems: Sequence[System], references: Sequence[str], sources: Sequence[str] | None, *, target: str
) -> dict[str, Any]:
    """BLEU of the sentences of each length.

    Returns:
        `of` ("source" or "reference"), `unit` ("words", or "characters" where words are not apart), and `buckets`:
        `label`, `sentences` and `bleu` of each system.
    """
    lines = references if sources is None else sources
    apart = sum(line.count(" ") for line in lines) * 20 >= sum(map(len, lines))  # Chinese, Japanese, Thai: no blanks
    lengths = [len(line.split()) if apart else len(line.strip()) for line in lines]
    buckets: dict[int, list[int]] = {}
    for n, length in enumerate(lengths):
        buckets.setdefault(_place(length, LENGTHS), []).append(n)
    rows = []
    for place in sorted(buckets):
        ids, metric = buckets[place], make_bleu(target)
        wanted = [[references[n] for n in ids]]
        scores = [float(metric.corpus_score([s.hypotheses[n] for n in ids], wanted).score) for s in systems]
        rows.append({"label": _label(place, LENGTHS), "sentences": len(ids), "bleu": scores})
    of = "reference" if sources is None else "source"
    return {"of": of, "unit": "words" if apart else "characters", "buckets": rows}


def score_words(
    tokens: Sequence[Sequence[Sequence[str]]],
    references: Sequence[Sequence[str]],
    training: Iterable[Sequence[str]] | None,
) -> dict[str, Any]:
    """How well words come out, by how often they stood in the training text.

    A word is right as often as it stands in both the translation and the reference of a sentence.

    Args:
        tokens: of every system's sentences.
        references: of every reference.
        training: of every training sentence; None to count in the references.

    Returns:
        `counted_in` ("training text" or "references") and `buckets`: `label`, `words` (in the references), and
        `f1` of each system, from 0 to 100: the harmonic mean of precision and recall.
    """
    known = {word for sentence in references for word in sentence}
    known |= {word for system in tokens for sentence in system for word in sentence}
    counts: Counter[str] = Counter()
    for sentence in references if training is None else training:
        counts.update(word for word in sentence if word in known)
    place = {word: _place(counts[word], COUNTS) for word in known}
    wanted = Counter(place[word] for sentence in references for word in sentence)
    given = [Counter(place[word] for sentence in system for word in sentence) for system in tokens]
    right: list[Counter[int]] = [Counter() for _ in tokens]
    for n, system in enumerate(tokens):
        for said, reference in zip(system, references, strict=True):
            for word, count in (Counter(said) & Counter(reference)).items():
                right[n][place[word]] += count
    rows = []
    for bucket in sorted(wanted):
        sides = zip(right, given, strict=True)
        f1 = [200.0 * hits[bucket] / (wanted[bucket] + said[bucket]) for hits, said in sides]
        rows.append({"label": _label(bucket, COUNTS), "words": wanted[bucket], "f1": f1})
    return {"counted_in": "references" if training is None else "training text", "buckets": rows}


def count_ngrams(tokens: Sequence[Sequence[Sequence[str]]], references: Sequence[Sequence[str]]) -> dict[str, Any]:
    """N-grams of one to four words that come too often or too seldom, and those one system gets right more often.

    Returns:
        `over` and `under`: for each system the n-grams with the largest surplus and lack (`ngram`, `count`), summed
        over sentences. `better`: for each of two systems those that it matches and the other does not, by compare-mt's
        ratio (matches + 1) / (matches of both + 2); `counts` are the matches of both.
    """
    over: list[Counter[str]] = [Counter() for _ in tokens]
    under: list[Counter[str]] = [Counter() for _ in tokens]
    right: list[Counter[str]] = [Counter() for _ in tokens]
    for n, system in enumerate(tokens):
        for said, reference in zip(system, references, strict=True):
            have, want = _ngrams(said), _ngrams(reference)
            over[n].update(have - want)
            under[n].update(want - have)
            right[n].update(have & want)
    better = []
    if len(tokens) == 2:
        for mine, other in (right, right[::-1]):
            ratio = {
                gram: (mine[gram] + 1) / (mine[gram] + other[gram] + 2) for gram in mine if mine[gram] > other[gram]
            }
            best = sorted(ratio, key=lambda gram: (-ratio[gram], -len(gram.split()), gram))[:SHOWN]
            better.append([{"ngram": gram, "counts": [right[0][gram], right[1][gram]]} for gram in best])
    return {"over": [_rank(c) for c in over], "under": [_rank(c) for c in under], "better": better}


def _ngrams(words: Sequence[str]) -> Counter[str]:
    return Counter(
        " ".join(words[start : start + size])
        for size in range(1, LONGEST_NGRAM + 1)
        for start in range(len(words) - size + 1)
    )


def _rank(counts: Counter[str]) -> list[dict[str, Any]]:
    """The largest counts; of equals the longer n-gram first, since it holds the shorter ones."""
    best = sorted(counts, key=lambda gram: (-counts[gram], -len(gram.split()), gram))[:SHOWN]
    return [{"ngram": gram, "count": counts[gram]} for gram in best]


def find_differences(
    systems: Sequence[System], references: Sequence[str], sources: Sequence[str] | None, chrf: Sequence[Sequence[float]]
) -> list[list[dict[str, Any]]]:
    """For each of two systems, the sentences in which its chrF exceeds the other's most; empty for one system."""
    if len(systems) < 2:
        return []
    gains = [a - b for a, b in zip(*chrf, strict=True)]
    order = sorted(range(len(gains)), key=lambda n: (-gains[n], n))
    better = [n for n in order if gains[n] > 0][:SHOWN], [n for n in order[::-1] if gains[n] < 0][:SHOWN]
    return [[_show(systems, references, sources, chrf, n) for n in ids] for ids in better]


def find_worst(
    systems: Sequence[System],
    references: Sequence[str],
    sources: Sequence[str] | None,
    chrf: Sequence[Sequence[float]],
    which: int,
) -> list[dict[str, Any]]:
    """The sentences of the lowest chrF of one system."""
    order = sorted(range(len(references)), key=lambda n: (chrf[which][n], n))[:SHOWN]
    return [_show(systems, references, sources, chrf, n) for n in order]


def _show(
    systems: Sequence[System],
    references: Sequence[str],
    sources: Sequence[str] | None,
    chrf: Sequence[Sequence[float]],
    n: int,
) -> dict[str, Any]:
    """One sentence with all that is known of it; `number` counts from 1."""
    return {
        "number": n + 1,
        "source": None if sources is None else sources[n],
        "reference": references[n],
        "hypotheses": [system.hypotheses[n] for system in systems],
        "chrf": [scores[n] for scores in chrf],
    }


def _place(value: int, starts: Sequence[int]) -> int:
    """The number of the bucket that holds a value; bucket 0 lies before the first start."""
    return sum(value >= start for start in starts)


def _label(place: int, starts: Sequence[int]) -> str:
    """ "0–4", "7" or "60+"."""
    first = starts[place - 1] if place else 0
    if place == len(starts):
        return f"{first}+"
    last = starts[place] - 1
    return str(first) if first == last else f"{first}–{last}"
