"""Layers that see whole sequences, one after the other: each compiled by itself, all as one loop, or over devices.

    tick        0    1    2    3    4            microbatch (some of the rows) that a stage works on
    stage 0     0    1    2    3                 ─► its output goes to the next stage (ppermute)
    stage 1          0    1    2    3
    stage 2               0    1    2  ...       C microbatches over S stages take C + S - 1 ticks

A recurrent stack is cut in time, where its layers meet each other's chunks (`pipeline.wavefront`); a Transformer's
layer needs all of a sequence, so that its batch is cut by rows. Rows do not know of each other, and the result is
that of plain order. Every layer may be computed again in the backward pass (Chen et al. 2016, 1604.06174) in place of
what it would keep.

Source: Huang et al. 2019 (GPipe, 1811.06965).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from seq2seq_jax.interfaces import Array, PyTree
from seq2seq_jax.parallel.pipeline import count_chunks, cut
from seq2seq_jax.parallel.varying import vary_over, varying_axes

Layer = Callable[[PyTree, Any, Array, PyTree, PyTree], Array]
"""`layer(parameters, n, x [B, T, D], extras, shared) -> x`: layer n, which may be traced, over some rows.

`extras` lead with the rows of x, `shared` with those of all devices that share the layer's heads. Where the gradient of
its products with weights is written by hand, what they give is named "product" (`jax.ad_checkpoint.checkpoint_name`).
"""

Gather = Callable[..., Array]
"""`gather(x, axis=...)`: the rows of all devices that share a layer's heads, of this device's on that axis."""

REMAT = ("none", "dots", "full")
"""What a layer keeps for its backward pass: all it reads there; only its products with weights; only its input."""

UNROLLED = 12
"""Layers up to which a stack is compiled layer by layer where nothing is said: slower to compile than a loop, which
however has to stack what all its layers keep for their backward pass. On a CPU, 6 + 6 layers of 128: 21 seconds against
14 to compile, steps 4 % quicker."""


def run_layers(
    layer: Layer,
    parameters: PyTree,
    x: Array,
    extras: PyTree,
    shared: PyTree,
    *,
    layers: int,
    gather: Gather,
    scanned: bool | None = None,
    remat: str = "none",
) -> tuple[Array, Array]:
    """Runs a stack whose layers are all here.

    Args:
        layer: one layer over all rows.
        parameters: of all layers, leaves `[L, ...]`.
        x: `[B, T, D]`, the input of the first layer.
        extras, shared: leaves `[B, ...]` that every layer reads, of x's rows; see `Layer`.
        layers: L.
        gather: see `Gather`.
        scanned: whether the layers are one loop, compiled once; None: where they are more than `UNROLLED`.
        remat: one of `REMAT`.

    Returns:
        The top layer's output and its input, `[B, T, D]`; the latter has no gradient.
    """
    del layers  # all that there are
    shared = jax.tree.map(lambda a: gather(a, axis=0), shared)

    def run(own: PyTree, n: Any, x: Array) -> Array:
        return layer(own, n, x, extras, shared)

    return _run(run, parameters, x, 0, scanned=scanned, remat=remat)


def pipeline(
    layer: Layer,
    parameters: PyTree,
    x: Array,
    extras: PyTree,
    shared: PyTree,
    *,
    layers: int,
    gather: Gather,
    stage: str,
    group: tuple[str, ...],
    chunks: int = 0,
    scanned: bool | None = None,
    remat: str = "none",
    working: Callable[[], Array] | None = None,
) -> tuple[Array, None]:
    """Runs a stack whose layers lie on the devices of the axis `stage`, one part of it on each.

    Args:
        layer, gather, scanned, remat: see `run_layers`.
        parameters: this device's layers, leaves `[L' / stages, ...]`; L' may be more than L, filled up with anything.
        x: `[B, T, D]`, this device's rows of the input of the first layer.
        extras, shared: leaves `[B, ...]` of the same rows. Rows of zeros (False) may be added.
        layers: L; a layer beyond it passes its input on.
        stage: mesh axis of the layers.
        group: mesh axes that the rows of the group are split over, `stage` the last.
        chunks: microbatches, at most; 0 is `CHUNKS_PER_STAGE` for every stage.
        working: tells whether what this device makes is taken at all (inside the program); None: all is.

    Returns:
        The last layer's output, this device's rows `[B, T, D]`; nobody has the input of the top layer.
    """
    stages, own = lax.axis_size(stage), lax.axis_index(stage)
    given = jax.tree.map(lambda a: lax.all_gather(a, group, axis=0, tiled=True), (x, extras, shared))
    count = count_chunks(given[0].shape[0], chunks, stages)
    (xs, pieces, common), rows = cut(given, count)
    common = jax.tree.map(lambda a: gather(a, axis=1), common)  # so that its rows are those of one microbatch
    here = jax.tree.leaves(parameters)[0].shape[0]

    def tick(received: Array, k: Array) -> tuple[Array, Array]:
        at = jnp.clip(k - own, 0, count - 1)  # who has no microbatch would wait, and works in vain instead
        extras, shared = jax.tree.map(lambda a: a[at], (pieces, common))

        def run(mine: PyTree, n: Any, x: Array) -> Array:
            y = layer(mine, n, x, extras, shared)
            return y if here * stages == layers else jnp.where(n < layers, y, x)

        h, _ = _run(run, parameters, jnp.where(own == 0, xs[at], received), own * here, scanned=scanned, remat=remat)
        return lax.ppermute(h, stage, [(i, i + 1) for i in range(stages - 1)]), h

    start = vary_over(jnp.zeros_like(xs[0]), varying_axes(xs) | {stage})
    _, hs = lax.scan(tick, start, jnp.arange(count + stages - 1))
    out = hs[stages - 1 :].reshape(-1, *x.shape[1:])[:rows]  # the last stage's outputs
    last = own == stages - 1 if working is None else (own == stages - 1) & working()
    return lax.psum_scatter(jnp.where(last, out, 0), group, scatter_dimension=0, tiled=True), None


def _run(
    run: Callable[[PyTree, Any, Array], Array],
    parameters: PyTree,
    x: Array,
    first: Any,
    *,
    scanned: bool | None,
    remat: str,
) -> tuple[Array, Array]:
    """Layers `first`, `first + 1`, ... over `x`; the output and the input of the last of them."""
    count = jax.tree.leaves(parameters)[0].shape[0]
    below = x
    if count > UNROLLED if scanned is None else scanned:
        again = _recompute(run, remat, in_loop=True)

        def advance(state: tuple[Array, Array], given: tuple[PyTree, Array]) -> tuple[tuple[Array, Array], None]:
            own, n = given
            return (again(own, n, state[0]), lax.stop_gradient(state[0])), None

        start = x, lax.stop_gradient(x)
        (x, below), _ = lax.scan(advance, start, (parameters, first + jnp.arange(count)))
        return x, below
    # One split of each, so that the gradient is one concatenation and not a sum over layers.
    leaves, tree = jax.tree.flatten(parameters)
    for n, own in enumerate(zip(*(jnp.split(leaf, count) for leaf in leaves), strict=True)):
        mine, below = jax.tree.unflatten(tree, [leaf[0] for leaf in own]), x

        def run_this(mine: PyTree, x: Array, n: int = n) -> Array:
            return run(mine, first + n, x)

        x = _recompute(run_this, remat, in_loop=False)(mine, x)
    return x, lax.stop_gradient(below)


def _recompute(run: Callable[..., Array], remat: str, *, in_loop: bool) -> Callable[..., Array]:
    """The same function, which keeps for its backward pass what `remat` says."""
    if remat == "none":
        return run
    keep = None
    if remat == "dots":
        policies = jax.checkpoint_policies
        # Scores and contexts have a batch of heads. Products whose gradient is written by hand are no products to jax:
        # layers name what comes out of them.
        plain, named = policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names("product")
        keep = policies.save_from_both_policies(plain, named)
    # A loop is not undone by finding its body twice; straight code would be, unless it is kept apart.
    return jax.checkpoint(run, policy=keep, prevent_cse=not in_loop)
