"""The recurrent decoder of a speech model, its attention inside the loop over the output (Chan et al. 2016, 3.2).

    y(i-1) ► embedding ─┐
    c(i-1) ─────────────┴► layers ► s_i ── asks ──► attention ► c_i       s_i and c_i go to the readout

    e_ij = v . tanh(W s_i + V h_j + U f_ij + b)      f_i = F * a_(i-1)     a_i = softmax(e_i)

The term with f is what "location" adds to "content" (Chorowski et al. 2015, 1506.07503, equations 8 and 9): where the
weights of the step before were, filtered by F over time, so that attention can go on from there instead of looking for
what it has heard before. Before the first step all of the weight is on the first frame (as in the authors' program) and
the context is zero.

Teacher forcing is a loop over the steps of a search. The attention's hidden layer is made again in its backward pass:
what is kept of a step is no larger than its gates, its context and its weights.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jax import lax
from jaxtyping import Bool, Float

from seq2seq_jax.interfaces import Array, PyTree
from seq2seq_jax.layers.attention import AdditiveAttention, make_scores, masked_softmax
from seq2seq_jax.layers.cells import State
from seq2seq_jax.layers.dropout import dropout_mask
from seq2seq_jax.layers.initializers import matrix_initializer
from seq2seq_jax.layers.parameters import declare
from seq2seq_jax.layers.recurrent import LayerKind, Recurrent, draw_noise, product, run_step

ATTENTIONS = ("content", "location")
FILTERED = 32  # places that one row of a product filters


@struct.dataclass
class SpellerState:
    """What a speller carries from step to step."""

    states: tuple[State, ...]  # of every layer, [B, width] float32 each, the output last
    context: Array  # [B, D]
    weights: Array | None = None  # [B, S] float32, of the step before; of "location" only


@struct.dataclass
class Noise:
    """Factors of dropout, each None without it."""

    contexts: Array | None = None  # [T, B, D], of the contexts that the bottom layer reads
    between: Array | None = None  # [T, B, L - 1, P], of what a layer gives to the one above
    recurrent: tuple[Array | None, ...] = ()  # [B, P] of every layer


def spread_filter(kernel: Float[Array, "W C"]) -> Float[Array, "N M"]:
    """A filter's kernel as one that makes `FILTERED` places in a row at once: `[inputs, FILTERED * C]`.

    Column (p, c) is column c of the kernel, p rows down and with zeros around; the inputs are whole multiples of
    `FILTERED`, see `filter_places`.
    """
    width = kernel.shape[0]
    inputs = FILTERED * -(-(FILTERED + width - 1) // FILTERED)
    padded = jnp.pad(kernel, ((FILTERED - 1, inputs - width), (0, 0)))
    rows = np.arange(inputs)[:, None] - np.arange(FILTERED) + FILTERED - 1
    return padded[rows].reshape(inputs, -1)


def filter_places(x: Float[Array, "B S"], spread: Float[Array, "N M"], width: int) -> Float[Array, "B S C"]:
    """Filters `[B, S]` along S, zeros beyond its ends, with what `spread_filter` made of a kernel of an odd width.

    One product for many places: though most of its kernel's corners are zeros, on CPUs it takes half the time of one
    for each place, whose inputs would have to be written `width` times.
    """
    (rows, length), parts = x.shape, spread.shape[0] // FILTERED
    blocks = -(-length // FILTERED)
    after = FILTERED * (blocks + parts - 1) - length - width // 2
    padded = jnp.pad(x, ((0, 0), (width // 2, after))).reshape(rows, -1, FILTERED)
    seen = jnp.concatenate([padded[:, part : part + blocks] for part in range(parts)], axis=-1)
    made = product(seen.reshape(rows * blocks, -1), spread)  # rows are merged: on CPUs quicker, forward and backward
    return made.reshape(rows, blocks * FILTERED, -1)[:, :length]


class Speller(nn.Module):
    """Layers and attention of a recurrent decoder.

    Attributes:
        kind: what the layers share; their `features` P are the width of a state.
        layers: L.
        inputs: width of the embeddings.
        memory_features: D, width of what is attended to.
        attention: one of `ATTENTIONS`.
        attention_features: A, width of the attention's hidden layer.
        filters: number of filters over the weights of the step before.
        width: places that a filter sees, odd.
        dropout: rate on the contexts and between the layers.
    """

    kind: LayerKind
    layers: int
    inputs: int
    memory_features: int
    attention: str
    attention_features: int
    filters: int
    width: int
    dropout: float

    def setup(self) -> None:
        kind, scale = self.kind, self.kind.init_scale
        bottom = self.inputs + self.memory_features
        self.stack = [Recurrent(kind, kind.features if n else bottom) for n in range(self.layers)]
        sizes = self.attention_features, kind.features, self.memory_features
        self.content = AdditiveAttention(*sizes, kind.dtype, scale)
        if self.attention == "location":
            init, own = matrix_initializer(scale), (self.width, self.filters)
            self.filter_kernel = declare(self, "filter_kernel", init, own, (None, "hidden"))
            shape = (self.filters, self.attention_features)
            self.location_kernel = declare(self, "location_kernel", init, shape, ("hidden", "attention"))

    def project_keys(self, hidden: Float[Array, "B S D"]) -> Float[Array, "B S A"]:
        """`V h + b` of every frame."""
        return self.content.project_keys(hidden)

    def start(self, values: Float[Array, "B S D"], mask: Bool[Array, "B S"]) -> SpellerState:
        """The state before the first step."""
        rows = values.shape[:1]
        states = tuple(self.kind.zero_state(values, rows) for _ in range(self.layers))
        context = jnp.zeros_like(values, self.kind.dtype, shape=(*rows, values.shape[-1]))
        if self.attention == "content":
            return SpellerState(states, context)
        first = mask & (jnp.arange(mask.shape[1]) == 0)
        return SpellerState(states, context, first.astype(jnp.float32))

    def step_weights(self) -> PyTree:
        """The parameters as `step` reads them, to be made once, before a loop over steps."""
        dtype = self.kind.dtype
        query, v = self.content.query_weights()
        made: dict[str, Any] = {"layers": tuple(layer.step_weights() for layer in self.stack)}
        made |= {"query": query.astype(dtype), "v": v}
        if self.attention == "location":
            made |= {"filter": spread_filter(self.filter_kernel), "location": self.location_kernel}
        return made

    def step(
        self,
        own: PyTree,
        x: Array,
        old: SpellerState,
        keys: Array,
        values: Array,
        mask: Array,
        noise: Noise | None,
        *,
        by_row: bool = True,
    ) -> tuple[SpellerState, Array]:
        """One step.

        Args:
            own: what `step_weights` gave.
            x: `[B, E]`, the embedding of the token before.
            old: what the step before left.
            keys: `[B, S, A]`.
            values: `[B, S, D]`.
            mask: `[B, S]`.
            noise: of this step, `[B, ...]`; None: without dropout.
            by_row: keep the attention of one row in a processor's cache: for a search, where a row has hypotheses.

        Returns:
            The new state and the attention's weights `[B, S]` float32. The step's output is the top layer's state.
        """
        kind, states = self.kind, []
        context = old.context if noise is None or noise.contexts is None else old.context * noise.contexts
        parts: tuple[Array, ...] = (x.astype(kind.dtype), context)
        for n, weights in enumerate(own["layers"]):
            before = old.states[n]
            factors = None if noise is None else noise.recurrent[n]
            if factors is not None:
                before = (*before[:-1], before[-1] * factors)
            new = run_step(kind, weights, parts, before)
            states.append(new)
            out = new[-1].astype(kind.dtype)
            if noise is not None and noise.between is not None and n + 1 < self.layers:
                out = out * noise.between[:, n]
            parts = (out,)
        with jax.named_scope("attend"):
            query = states[-1][-1].astype(kind.dtype) @ own["query"]
            # What is as large as the hidden layer is made again in the backward pass, and never kept of all steps.
            score = jax.checkpoint(functools.partial(self._score, by_row=by_row), prevent_cse=False)
            weights = masked_softmax(score(own, query, keys, old.weights), mask)
            context = jnp.einsum("bs,bsd->bd", weights.astype(values.dtype), values).astype(kind.dtype)
        kept = None if old.weights is None else weights
        return SpellerState(tuple(states), context, kept), weights

    def _score(self, own: PyTree, query: Array, keys: Array, before: Array | None, *, by_row: bool) -> Array:
        """Scores `[B, S]` float32 of a query `[B, A]`, from the weights of the step before where they matter.

        By row, the hidden layers of a row's hypotheses (which `jax.vmap` adds) are made and used up before those of
        the next one: on CPUs they then stay in the processor's cache, where all of them would go to memory and back.
        """
        near = None if before is None else filter_places(before, own["filter"], self.width)

        def score(query: Array, keys: Array, near: Array | None) -> Array:
            if near is not None:
                # Rows are merged: on CPUs products with few inputs take half the time, forward and backward.
                added = product(near.reshape(-1, near.shape[-1]).astype(self.kind.dtype), own["location"])
                keys = keys + added.reshape(keys.shape).astype(keys.dtype)
            return make_scores(query[:, None], keys, own["v"])[:, 0]

        def score_each(*given: Any) -> Array:
            return lax.map(lambda row: score(*jax.tree.map(lambda x: x[None], row))[0], given)

        if not by_row or len(keys) == 1:
            return score(query, keys, near)
        return lax.platform_dependent(query, keys, near, cpu=score_each, default=score)

    def draw_noise(self, places: Array, *, train: bool) -> Noise | None:
        """The factors of dropout of all steps; None without it. `places` `[T, B, 2]`."""
        kind = self.kind
        if not train or not (self.dropout or kind.recurrent_dropout):
            return None
        contexts = between = None
        if self.dropout:
            contexts = dropout_mask(self.make_rng("dropout"), self.dropout, places, self.memory_features, kind.dtype)
            if self.layers > 1:
                key, above = self.make_rng("dropout"), range(self.layers - 1)
                draws = [dropout_mask(key, self.dropout, places, kind.features, kind.dtype, draw=n) for n in above]
                between = jnp.stack(draws, axis=2)
        key = self.make_rng("dropout") if kind.recurrent_dropout else None
        keys = [None if key is None else jax.random.fold_in(key, n) for n in range(self.layers)]
        return Noise(contexts, between, tuple(draw_noise(kind, each, places) for each in keys))

    def __call__(
        self,
        x: Float[Array, "T B E"],
        keys: Float[Array, "B S A"],
        values: Float[Array, "B S D"],
        mask: Bool[Array, "B S"],
        places: Array,
        *,
        train: bool,
    ) -> tuple[Float[Array, "T B P"], Float[Array, "T B D"], Float[Array, "T B S"]]:
        """Teacher forcing: top states `[T, B, P]`, contexts `[T, B, D]` and weights `[T, B, S]` float32."""
        own, dtype, noise = self.step_weights(), self.kind.dtype, self.draw_noise(places, train=train)
        fixed = () if noise is None else noise.recurrent

        def advance(state: SpellerState, given: tuple[Array, Any]) -> tuple[SpellerState, tuple[Array, Array, Array]]:
            x, drawn = given
            here = None if drawn is None else Noise(drawn[0], drawn[1], fixed)
            new, weights = self.step(own, x, state, keys, values, mask, here, by_row=False)
            return new, (new.states[-1][-1].astype(dtype), new.context, weights)

        drawn = None if noise is None else (noise.contexts, noise.between)
        return lax.scan(advance, self.start(values, mask), (x, drawn))[1]
