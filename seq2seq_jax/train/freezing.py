"""Parameters that stay as they are, chosen by name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Set
from typing import Any

import jax
import jax.numpy as jnp
import optax

from seq2seq_jax.interfaces import Array, Batch, PyTree
from seq2seq_jax.parallel.spread import Gradient


def name_of(path: Any) -> str:
    """The name of a parameter by its place in the tree: "encoder_stack.bias"."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def find_frozen(patterns: str, params: PyTree) -> frozenset[str]:
    """The names of the parameters that any of the patterns is found in.

    Args:
        patterns: regular expressions, separated by commas; "" freezes nothing.
        params: their names count, not their values.

    Raises:
        ValueError: a pattern is no regular expression, or is found nowhere, or nothing is left to train.
    """
    names = [name_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    frozen: set[str] = set()
    for pattern in filter(None, map(str.strip, patterns.split(","))):
        try:
            found = {name for name in names if re.search(pattern, name)}
        except re.error as error:
            raise ValueError(f"`train.freeze`: {pattern!r} is no regular expression ({error}).") from error
        if not found:
            near = difflib.get_close_matches(pattern, sorted({part for name in names for part in name.split(".")}), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            known = ", ".join(sorted({name.partition(".")[0] for name in names}))
            raise ValueError(f"`train.freeze`: {pattern!r} is in no parameter's name; they begin with {known}{hint}")
        frozen |= found
    if len(frozen) == len(names):
        raise ValueError(f"`train.freeze` must leave something to train, but {patterns!r} is in the names of all "
                         f"parameters: {', '.join(names)}.")  # fmt: skip
    return frozenset(frozen)


def freeze(optimizer: optax.GradientTransformation, frozen: Set[str]) -> optax.GradientTransformation:
    """An optimizer that sees the other parameters alone: no moments, no decay, no update of the frozen ones."""
    if not frozen:
        return optimizer

    def label(params: PyTree) -> PyTree:
        return jax.tree_util.tree_map_with_path(lambda path, _: _label(path, frozen), params)

    return optax.partition({"trained": optimizer, "frozen": optax.set_to_zero()}, label)


def hold(gradient: Gradient, frozen: Set[str]) -> Gradient:
    """A gradient that is zero for frozen parameters, so that no norm knows them and the compiler leaves them out."""
    if not frozen:
        return gradient

    def held(params: PyTree, batch: Batch, key: Array, step: Array) -> Any:
        aside, grads = gradient(params, batch, key, step)
        zero = jax.tree_util.tree_map_with_path(
            lambda path, g: jnp.zeros_like(g) if name_of(path) in frozen else g, grads
        )
        return aside, zero

    return held


def _label(path: Any, frozen: Set[str]) -> str:
    return "frozen" if name_of(path) in frozen else "trained"
