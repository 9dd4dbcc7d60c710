"""The way of searching that a config asks for, made of its numbers."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from seq2seq_jax.data.vocab import BOS_ID, EOS_ID, PAD_ID
from seq2seq_jax.decode.beam import Beam
from seq2seq_jax.decode.ranking import PRESETS, Ranking
from seq2seq_jax.decode.sample import Draws
from seq2seq_jax.errors import UserError
from seq2seq_jax.tasks.bayes_risk import choose

IDS: dict[str, Any] = {"bos_id": BOS_ID, "eos_id": EOS_ID, "pad_id": PAD_ID}


def make_method(keys: Mapping[str, Any], *, method: str | None = None, size: int | None = None) -> Beam | Draws:
    """Builds the method.

    Args:
        keys: `config.decode`.
        method: another than the config's.
        size: another beam size than the config's, made a multiple of the config's groups; 1 is greedy. Of "sampling",
            how many outputs are drawn (by default one).
    """
    method = method or keys["method"]
    if method == "minimum_bayes_risk":
        method, size = keys["candidates_from"], keys["candidates"]
    if method == "sampling":
        shape = {name: keys[name] for name in ("temperature", "top_k", "top_p")}
        return Draws(samples=size or 1, **shape, **IDS)
    size = size or keys["beam_size"]
    if method == "greedy" or size == 1:
        return Draws(samples=1, temperature=0.0, **IDS)
    groups = keys["groups"]
    size = -(-size // groups) * groups  # only the config's own size is known to be a multiple
    diversity = keys["diversity"] if groups > 1 else 0.0
    return Beam(size=size, ranking=make_ranking(keys), groups=groups, diversity=diversity, **IDS)


def check_count(keys: Mapping[str, Any], count: int, name: str) -> None:
    """Refuses to give more outputs of a sentence than the config's method finds.

    Args:
        keys: `config.decode`.
        count: how many are asked for.
        name: what they were asked for with, for the message.

    Raises:
        UserError: the method finds fewer, whatever the input.
    """
    if keys["method"] == "greedy" and count > 1:
        raise UserError(
            f"{name} must be at most 1 with config.decode.method='greedy', but is {count} instead: greedy search finds "
            "one output; use 'beam' or 'sampling'."
        )
    if keys["method"] == "minimum_bayes_risk" and count > keys["candidates"]:
        raise UserError(
            f"{name} must be at most config.decode.candidates={keys['candidates']} with "
            f"config.decode.method='minimum_bayes_risk', but is {count} instead; raise config.decode.candidates."
        )


def make_ranking(keys: Mapping[str, Any]) -> Ranking:
    """How hypotheses of a beam are ranked: the preset's rules, but for what is not "preset" or -1 beside it."""
    rules = {name: keys[name] for name in ("stop", "unfinished")} | {"length": keys["length_normalisation"]}
    numbers = {name: keys[name] for name in ("length_penalty", "word_bonus", "coverage_penalty", "prune")}
    own: dict[str, Any] = {name: rule for name, rule in rules.items() if rule != "preset"}
    own |= {name: number for name, number in numbers.items() if number != -1}
    return dataclasses.replace(PRESETS[keys["preset"]], **own)


def make_rank(keys: Mapping[str, Any], *, target: str) -> Callable[[Any], Any]:
    """What orders the candidates of minimum Bayes risk decoding; `target` is the language's code."""
    weights = "probabilities" if keys["candidates_from"] == "beam" else "counts"
    return functools.partial(choose, utility=keys["utility"], target=target, weights=weights)
