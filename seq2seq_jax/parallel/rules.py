"""Logical axis → mesh axes: one table per strategy.

A model names the axes of its parameters (`("layers", "hidden", "gates")`), a table says over which
mesh axes each name is split at rest. Rules are tried from the top; a mesh axis serves one axis of an
array, and only where it divides it: seven layers over eight stages fall through to the next rule, which
splits their gates instead. `compute` names the splits that are kept while the step computes; all others
are gathered when the step begins.

| strategy        | at rest on a device              | sent in a step                                              |
|-----------------|----------------------------------|-------------------------------------------------------------|
| `data_parallel` | everything                       | gradients, once (all-reduce)                                |
| `fsdp`          | 1/fsdp of all but "positions"    | parameters gathered once, gradients scattered once          |
| `balanced`      | its layers, heads and rows of    | activations from stage to stage; hidden states to the       |
|                 | feed-forward layers, its share   | vocabulary's shards and their gradients back; rows of a     |
|                 | of all tables over every device  | Transformer's layers to the devices that share its heads    |
| `exact`         | its layers, 1/stage of all       | as `balanced`, but devices of `tensor` 0 do the layers and  |
|                 | tables                           | those of `tensor` 1 the softmax, and wait for each other    |
"""

from __future__ import annotations

import dataclasses

Rule = tuple[str, tuple[str, ...]]

NAMES = ("batch", "layers", "vocab", "embed", "hidden", "gates", "attention", "heads", "mlp", "positions")
"""Every logical axis there is; no rule splits "positions", the rows of a learned table."""


@dataclasses.dataclass(frozen=True)
class Strategy:
    """Where parameters live.

    Attributes:
        at_rest: rules for parameters and optimizer state between steps.
        compute: rules that are kept inside the step; the rest of `at_rest` is gathered.
    """

    at_rest: tuple[Rule, ...]
    compute: tuple[Rule, ...] = ()


def _over(axis: str, *names: str) -> tuple[Rule, ...]:
    return tuple((name, (axis,)) for name in names or ("gates", "attention", "hidden", "embed", "mlp", "heads"))


_LAYERS: tuple[Rule, ...] = (("layers", ("stage",)),)
# Below, "tensor" stands before "stage" and "fsdp" last: an axis that falls through to another one is split there in
# that order, and what comes last is undone first, so that every move is one all-to-all.
_WIDE: tuple[Rule, ...] = (("heads", ("tensor",)), ("mlp", ("tensor",)))
_BALANCED = (*_LAYERS, ("vocab", ("stage", "tensor")), *_WIDE)
_EXACT = (*_LAYERS, ("vocab", ("stage",)))

RULES: dict[str, Strategy] = {
    "data_parallel": Strategy(at_rest=()),
    "fsdp": Strategy(at_rest=(("vocab", ("fsdp",)), *_over("fsdp"))),
    "balanced": Strategy(
        at_rest=(*_BALANCED, *_over("tensor"), *_over("stage"), *_over("fsdp")),
        compute=_BALANCED,
    ),
    "exact": Strategy(at_rest=(*_EXACT, *_over("stage"), *_over("fsdp")), compute=_EXACT),
}
"""By the value of `config.parallel.strategy`."""
