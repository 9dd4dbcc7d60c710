"""The rules of ranking, ending and stopping on small trees worked out by hand, where presets disagree.

A tree says the probability of each next token ("." is eos) after some words. Probabilities need not add up to one:
what is left lies on tokens that no beam would take.
"""

from __future__ import annotations

import dataclasses
import functools
from math import log

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seq2seq_jax.decode.beam import beam_search
from seq2seq_jax.decode.ranking import PRESETS, Ranking
from seq2seq_jax.interfaces import StepResult

PAD, BOS, EOS = 0, 2, 3
TOKENS = {".": EOS, "a": 4, "b": 5}
VOCAB = 6
RULES = PRESETS | {"exact average": Ranking(length="average", length_penalty=1.0)}


@dataclasses.dataclass(frozen=True)
class Tree:
    """Next tokens by what was said so far; attention to two source positions, (1, 1) where it is not told."""

    tokens: dict[str, dict[str, float]]
    longest: int = 5
    attention: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)


TREES = {
    # Two have ended after two steps, "." and "a."; better ones are still to come.
    "better ones come later": Tree({"": {".": 0.3, "a": 0.7}, "a": {".": 0.3, "a": 0.7}, "aa": {".": 1}}),
    # The live "aa" is behind both that ended, but a longer average would overtake them.
    "a long one overtakes": Tree(
        {"": {".": 0.6, "a": 0.4}, "a": {".": 0.55, "a": 0.45}, "aa": {"a": 1}, "aaa": {"a": 1}, "aaaa": {".": 1}}
    ),
    # At the longest output the better continuation is no end.
    "cut off": Tree({"": {"a": 1}, "a": {"b": 0.6, ".": 0.4}}, longest=2),
    # The first eos is the third best of all continuations, so is that of "b".
    "an end among the four best": Tree(
        {
            "": {"a": 0.4, "b": 0.35, ".": 0.25},
            "a": {".": 0.55, "b": 0.45},
            "b": {".": 0.4, "a": 0.6},
            "ab": {".": 0.9, "a": 0.1},
            "ba": {".": 0.9, "a": 0.1},
        }
    ),
    # log .96 - log .04 = 3.18 at the first step.
    "a poor token": Tree({"": {"a": 0.96, "b": 0.04}, "a": {".": 1}, "b": {".": 1}}),
    # No token is that poor, but "b." is: (log .8 - log .03) / (7/6)^.2 = 3.18.
    "a poor output": Tree(
        {"": {"a": 0.8, "b": 0.2}, "a": {".": 1}, "b": {".": 0.15, "a": 0.1}, "ba": {".": 1}}, longest=4
    ),
    # "a" attends to the first position alone: coverage (1.5, .5), where that of "b" is (1, 1).
    "uncovered": Tree(
        {"": {"a": 0.52, "b": 0.48}, "a": {".": 1}, "b": {".": 1}},
        attention={"": (0.5, 0.5), "a": (1, 0), "b": (0.5, 0.5)},
    ),
}


def lp(alpha: float, length: int) -> float:
    """GNMT's."""
    return ((5 + length) / 6) ** alpha


EXPECTED = {
    "better ones come later": {
        "default": [("aa.", log(0.49) / lp(0.6, 3)), (".", log(0.3))],
        "gnmt": [("aa.", log(0.49) / lp(0.2, 3)), (".", log(0.3))],
        "tensor2tensor": [("aa.", log(0.49) / lp(0.6, 3)), (".", log(0.3))],
        "fairseq": [("a.", log(0.21) / 2), (".", log(0.3))],
        "huggingface": [("aa.", log(0.49) / 3), ("a.", log(0.21) / 2)],
    },
    "a long one overtakes": {
        "fairseq": [(".", log(0.6)), ("a.", log(0.22) / 2)],
        "huggingface": [(".", log(0.6)), ("a.", log(0.22) / 2)],
        "exact average": [("aaaa.", log(0.18) / 5), (".", log(0.6))],
    },
    "cut off": {
        "default": [("a.", log(0.4) / lp(0.6, 2)), ("ab", log(0.6) / lp(0.6, 2))],
        "fairseq": [("a.", log(0.4) / 2)],
        "huggingface": [("ab", log(0.6) / 2), ("a.", log(0.4) / 2)],
    },
    "an end among the four best": {
        "default": [("a.", log(0.22) / lp(0.6, 2)), ("ba.", log(0.189) / lp(0.6, 3))],  # -1.380, -1.402
        "tensor2tensor": [("a.", log(0.22) / lp(0.6, 2)), (".", log(0.25))],  # -1.380, -1.386
    },
    "a poor token": {
        "default": [("a.", log(0.96) / lp(0.6, 2)), ("b.", log(0.04) / lp(0.6, 2))],
        "gnmt": [("a.", log(0.96) / lp(0.2, 2))],
    },
    "a poor output": {
        "default": [("a.", log(0.8) / lp(0.6, 2)), ("b.", log(0.03) / lp(0.6, 2))],
        "gnmt": [("a.", log(0.8) / lp(0.2, 2))],
    },
    "uncovered": {
        "default": [("b.", log(0.48) / lp(0.6, 2)), ("a.", log(0.52) / lp(0.6, 2) + 0.2 * log(0.5))],  # -.669, -.735
        "gnmt": [("b.", log(0.48) / lp(0.2, 2)), ("a.", log(0.52) / lp(0.2, 2) + 0.2 * log(0.5))],
        "tensor2tensor": [("a.", log(0.52) / lp(0.6, 2)), ("b.", log(0.48) / lp(0.6, 2))],
        "fairseq": [("a.", log(0.52) / 2), ("b.", log(0.48) / 2)],
    },
}


def plant(trees: list[Tree]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log-probabilities `[trees, nodes, V]`, the node that each token leads to, and attention; node 0 is the root."""
    nodes = max(len(tree.tokens) for tree in trees) + 1
    probs = np.zeros((len(trees), nodes, VOCAB), np.float32)
    following = np.full((len(trees), nodes, VOCAB), nodes - 1)  # the last one leads nowhere
    attention = np.ones((len(trees), nodes, 2), np.float32)
    for row, tree in enumerate(trees):
        names = list(tree.tokens)
        for node, said in enumerate(names):
            attention[row, node] = tree.attention.get(said, (1, 1))
            for word, prob in tree.tokens[said].items():
                probs[row, node, TOKENS[word]] = prob
                if said + word in names:
                    following[row, node, TOKENS[word]] = names.index(said + word)
    with np.errstate(divide="ignore"):
        return np.log(probs), following, attention


@functools.cache
def search_all(rules: Ranking, size: int = 2):
    """All trees at once, a row each: outputs as text with their scores, and log-probabilities."""
    trees = list(TREES.values())
    log_probs, following, attention = (jnp.asarray(x) for x in plant(trees))

    def step(tokens, step, cache):
        row, node = cache
        node = jnp.where(step == 0, 0, following[row, node, tokens])
        return StepResult(log_probs=log_probs[row, node], attention=attention[row, node], cache=(row, node))

    cache = jnp.arange(len(trees)), jnp.zeros(len(trees), jnp.int32)
    options = {"max_lengths": jnp.asarray([tree.longest for tree in trees]), "max_len": 5, "ranking": rules}
    options |= {"bos_id": BOS, "eos_id": EOS, "pad_id": PAD, "source_mask": jnp.ones((len(trees), 2), bool)}
    found = jax.device_get(jax.jit(lambda cache: beam_search(step, cache, beam_size=size, **options))(cache))
    words = {token: word for word, token in TOKENS.items()}
    return {
        name: [
            ("".join(words[token] for token in tokens[:length].tolist()), float(score))
            for tokens, length, score in zip(found.tokens[row], found.lengths[row], found.scores[row], strict=True)
            if length
        ]
        for row, name in enumerate(TREES)
    }


@pytest.mark.parametrize("rule", RULES)
def test_presets_find_what_their_rules_say(rule):
    found = search_all(RULES[rule])
    compared = 0
    for tree, by_rule in EXPECTED.items():
        if rule in by_rule:
            assert [text for text, _ in found[tree]] == [text for text, _ in by_rule[rule]], tree
            np.testing.assert_allclose(
                [score for _, score in found[tree]], [score for _, score in by_rule[rule]], rtol=1e-6, err_msg=tree
            )
            compared += 1
    assert compared


def test_every_two_presets_disagree_somewhere():
    """So that no preset could take another's place unseen."""
    for one in PRESETS:
        for other in PRESETS:
            answers = [[text for text, _ in by[one]] != [text for text, _ in by[other]] or
                       not np.allclose([s for _, s in by[one]], [s for _, s in by[other]], rtol=1e-3)
                       for by in EXPECTED.values() if one in by and other in by]  # fmt: skip
            assert one == other or any(answers), (one, other)


@pytest.mark.parametrize(
    ("rules", "score"),
    [
        (Ranking(), -1.2039728),  # log .3
        (Ranking(length="gnmt", length_penalty=0.6), -1.0131031),  # over (8/6)^.6 = 1.1884
        (Ranking(length="gnmt", length_penalty=-0.6), -1.4308045),
        (Ranking(length="average", length_penalty=1.0), -0.4013243),  # over 3
        (Ranking(length="average", length_penalty=0.5), -0.6951140),  # over the root of 3
        (Ranking(length="bonus", word_bonus=0.5), 0.2960272),  # + 3 * .5
        (Ranking(length="average", length_penalty=1.0, word_bonus=0.5), 1.0986757),
    ],
)
def test_scores_of_an_output_of_three_tokens(rules, score):
    terms = rules.terms(5)[jnp.array([3])]
    np.testing.assert_allclose(terms.score(jnp.array([np.log(0.3)], jnp.float32)), [score], rtol=1e-6)


@pytest.mark.parametrize(
    ("stop", "done"),
    [
        ("never", [True, True, False, False, False]),
        ("first", [True, True, False, True, True]),
        ("heuristic", [True, True, False, True, False]),
        ("exact", [True, True, False, True, False]),
    ],
)
def test_a_row_is_settled_when_nothing_that_matters_can_come(stop, done):
    """Rows: nothing lives and nothing ended; nothing lives and all ended; one place is empty; the best that lives is
    below the worst that ended; it is above."""
    best = jnp.array([[-jnp.inf], [-jnp.inf], [-5.0], [-5.0], [-1.0]])
    ended = jnp.array([[[-jnp.inf] * 2], [[-2.0, -3.0]], [[-2.0, -jnp.inf]], [[-2.0, -3.0]], [[-2.0, -3.0]]])
    rules = Ranking(length="none", stop=stop)
    terms = rules.terms(5)[jnp.full((5, 1), 3)]
    found = rules.is_settled(best, ended, now=terms, shortest=terms, longest=terms)
    assert found[:, 0].tolist() == done


def test_coverage_counts_real_positions_up_to_one():
    rules = Ranking(coverage_penalty=0.5)
    coverage = jnp.array([[[0.5, 2.0, 0.1], [0.25, 0.5, 0.0]]])
    found = rules.penalise_coverage(coverage, jnp.array([[True, True, False]]))
    np.testing.assert_allclose(found, [[0.5 * np.log(0.5), 0.5 * (np.log(0.25) + np.log(0.5))]], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": "mean"}, "`length` must be one of"),
        ({"stop": "early"}, "`stop` must be one of"),
        ({"unfinished": "first"}, "`unfinished` must be one of"),
        ({"coverage_penalty": -0.1}, "`coverage_penalty` must not be negative"),
        ({"prune": -1.0}, "`prune` must not be negative"),
        ({"end_among": 0}, "`end_among` must be at least 1"),
    ],
)
def test_unknown_rules_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Ranking(**options)
