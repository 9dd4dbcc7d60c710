"""How far two translators without a model get on the phrasebook: a learned dictionary and the nearest sentence.

The corpus is only worth training on if both fail. The dictionary is IBM model 1 (Brown et al., 1993): each source word
becomes its most probable target word, in place. The nearest sentence is that of greatest TF-IDF cosine over words and
pairs of words; its translation is the output. Scores are sacrebleu's BLEU on the test split.

    python experiments/phrasebook_baselines/run.py --train 30000 --test 1000
"""

from __future__ import annotations

import argparse
import re
from collections import Counter, defaultdict

import numpy as np
import sacrebleu

from seq2seq_jax.data import phrasebook

_WORD = re.compile(r"\w+(?:-\w+)*'?|[^\w\s]")


def split_words(text: str) -> list[str]:
    """Words, elided articles (l') and punctuation, the first word in lower case."""
    words = _WORD.findall(text)
    return [words[0].lower(), *words[1:]]


def join_words(words: list[str]) -> str:
    """Undoes `split_words`."""
    text = " ".join(words).replace("' ", "'")
    text = re.sub(r" ([.,])", r"\1", text)
    return text[0].upper() + text[1:]


def learn_dictionary(sources: list[list[str]], targets: list[list[str]], rounds: int) -> dict[str, str]:
    """The most probable translation t of each word s after some rounds of IBM model 1.

    p(t | s) is used both ways round, p(t | s) p(s | t), which keeps frequent words from translating everything.
    """
    forward, backward = _align(sources, targets, rounds), _align(targets, sources, rounds)
    best: dict[str, tuple[float, str]] = {}
    for (source, target), share in forward.items():
        score = share * backward[target, source]
        if score > best.get(source, (0.0, ""))[0]:
            best[source] = (score, target)
    return {source: target for source, (_, target) in best.items()}


def _align(sources: list[list[str]], targets: list[list[str]], rounds: int) -> dict[tuple[str, str], float]:
    """IBM model 1: p(target word | source word) by expectation maximisation."""
    table: dict[tuple[str, str], float] = defaultdict(lambda: 1.0)
    for _ in range(rounds):
        counts: dict[tuple[str, str], float] = defaultdict(float)
        totals: dict[str, float] = defaultdict(float)
        for source, target in zip(sources, targets, strict=True):
            for word in target:
                weights = [table[other, word] for other in source]
                norm = sum(weights)
                for other, weight in zip(source, weights, strict=True):
                    counts[other, word] += weight / norm
                    totals[other] += weight / norm
        table = defaultdict(float, {pair: count / totals[pair[0]] for pair, count in counts.items()})
    return table


def find_nearest(train: list[list[str]], test: list[list[str]]) -> list[int]:
    """For each test sentence, the training sentence of greatest TF-IDF cosine over words and word pairs."""
    grams = [Counter(_list_grams(words)) for words in train]
    frequency = Counter(gram for counter in grams for gram in counter)
    weight = {gram: np.log(len(train) / count) for gram, count in frequency.items()}
    postings: dict[tuple[str, ...], list[tuple[int, float]]] = defaultdict(list)
    for row, counter in enumerate(grams):
        norm = np.sqrt(sum((count * weight[gram]) ** 2 for gram, count in counter.items())) or 1.0
        for gram, count in counter.items():
            postings[gram].append((row, count * weight[gram] / norm))
    packed = {
        gram: (np.array([row for row, _ in rows]), np.array([value for _, value in rows]))
        for gram, rows in postings.items()
    }
    nearest = []
    for words in test:
        scores = np.zeros(len(train))
        for gram, count in Counter(_list_grams(words)).items():
            if gram in packed:
                rows, values = packed[gram]
                scores[rows] += count * weight[gram] * values
        nearest.append(int(scores.argmax()))
    return nearest


def _list_grams(words: list[str]) -> list[tuple[str, ...]]:
    return [(word,) for word in words] + list(zip(words, words[1:], strict=False))


def measure(source: str, target: str, *, train: int, test: int, rounds: int) -> tuple[float, float]:
    """BLEU of the dictionary and of the nearest sentence in one direction."""
    train_source, train_target = phrasebook.pairs("train", source=source, target=target, size=train)
    test_source, test_target = phrasebook.pairs("test", source=source, target=target, size=test)
    sources, targets = [split_words(text) for text in train_source], [split_words(text) for text in train_target]
    queries = [split_words(text) for text in test_source]
    dictionary = learn_dictionary(sources, targets, rounds)
    by_word = [join_words([dictionary.get(word, word) for word in words]) for words in queries]
    by_sentence = [train_target[row] for row in find_nearest(sources, queries)]
    word_bleu = sacrebleu.corpus_bleu(by_word, [test_target]).score
    return word_bleu, sacrebleu.corpus_bleu(by_sentence, [test_target]).score


def main() -> None:
    """Prints a table of both scores for a few directions."""
    parser = argparse.ArgumentParser(description="Baselines without a model on the phrasebook corpus.")
    parser.add_argument("--train", type=int, default=30_000, help="training sentences")
    parser.add_argument("--test", type=int, default=1_000, help="test sentences")
    parser.add_argument("--rounds", type=int, default=4, help="rounds of expectation maximisation")
    parser.add_argument("--directions", nargs="+", default=["en-fr", "en-de", "fr-de"], help="such as en-fr")
    arguments = parser.parse_args()
    print("| direction | dictionary BLEU | nearest sentence BLEU |\n|---|---|---|")
    for direction in arguments.directions:
        source, target = direction.split("-")
        words, nearest = measure(source, target, train=arguments.train, test=arguments.test, rounds=arguments.rounds)
        print(f"| {source} to {target} | {words:.1f} | {nearest:.1f} |", flush=True)


if __name__ == "__main__":
    main()
