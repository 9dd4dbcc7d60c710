"""A stack of a Transformer's layers: their parameters, and the ways to run them.

The parameters of all layers are stacked, `[L, ...]`. Over whole sequences the execution chooses how they run: one after
the other, as one loop that is compiled once, or over devices. A step of a search runs them one after the other.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Bool, Float, Int

from seq2seq_jax.errors import UserError
from seq2seq_jax.interfaces import Array, PyTree
from seq2seq_jax.layers.dot_attention import attention_weights
from seq2seq_jax.layers.initializers import table_initializer
from seq2seq_jax.layers.normalisation import normalise
from seq2seq_jax.layers.parameters import declare, stacked
from seq2seq_jax.layers.positions import make_bias, make_distances, sinusoids
from seq2seq_jax.layers.transformer_layer import (
    Cached,
    TransformerLayer,
    add,
    add_bias,
    ask_self,
    attend_self,
    before,
    describe_linformer,
    fan_out,
    list_parameters,
    make_step_weights,
    run_layer,
    run_step,
)

RELATIVE_BUCKETS, RELATIVE_DISTANCE = 32, 128  # of relative positions, as T5 has them


class Norm(nn.Module):
    """Layer normalisation, gain and bias `[D]`: what follows the top layer where normalisation comes first."""

    features: int

    def setup(self) -> None:
        self.gain = declare(self, "gain", nn.initializers.ones, (self.features,), ("embed",))
        self.bias = declare(self, "bias", nn.initializers.zeros, (self.features,), ("embed",))

    def __call__(self, x: Array) -> Array:
        """`[..., D]`, normalised in float32, in the dtype of `x`."""
        return normalise(x, self.gain, self.bias)


class Positions(nn.Module):
    """What is added to embeddings so that they tell where they stand.

    Attributes:
        kind: one of `transformer_layer.POSITIONS`; those that layers add themselves add nothing here.
        features: D.
        longest: rows of a learned table.
        init_scale: see `seq2seq_jax.layers.initializers`.
    """

    kind: str
    features: int
    longest: int
    init_scale: float = 0.0

    def setup(self) -> None:
        if self.kind == "learned":
            init, shape = table_initializer(self.init_scale), (self.longest, self.features)
            self.table = declare(self, "table", init, shape, ("positions", "embed"))

    def __call__(self, x: Float[Array, "*B D"], positions: Int[Array, "*#B"] | None = None) -> Float[Array, "*B D"]:
        """Embeddings `[..., D]` of texts, or of one step, with their positions.

        Args:
            x: `[B, T, D]`, or `[B, D]` of a step.
            positions: `[B, T]` (or `[B]`); None: each text begins at 0.
        """
        if self.kind not in ("sinusoidal", "learned"):
            return x
        if positions is None:
            self.check(x.shape[-2])
            positions = jnp.arange(x.shape[-2], dtype=jnp.int32)[None]
        added = sinusoids(positions, self.features) if self.kind == "sinusoidal" else self.table[positions]
        return (x.astype(jnp.float32) + added).astype(x.dtype)

    def check(self, length: int) -> None:
        """Raises UserError if a learned table has no such positions."""
        if self.kind == "learned" and length > self.longest:
            raise UserError(
                f"config.model.max_positions must be at least {length}, what texts (with eos) are padded to or searched"
                f" for, but is {self.longest} instead; train with more, or set lower limits of lengths (config.data."
                "max_source_len, max_target_len, config.decode.max_source_len, length_factor)."
            )


class TransformerStack(nn.Module):
    """The parameters of L layers and the ways to run them: whole sequences, or one step.

    Attributes:
        kind: what a layer is.
        layers: L.
    """

    kind: TransformerLayer
    layers: int

    def setup(self) -> None:
        kind = self.kind
        self.own = {
            name: declare(self, name, stacked(init), (self.layers, *shape), ("layers", *axes))
            for name, (shape, axes, init) in list_parameters(kind).items()
        }
        if kind.positions == "relative":
            buckets, table_init = (RELATIVE_BUCKETS, kind.heads), table_initializer(kind.init_scale)
            self.relative_table = declare(self, "relative_table", table_init, buckets, (None, "heads"))
        self.of_all: dict[str, Array] = {}
        if kind.linformer and kind.linformer_share == "layers":
            shape, axes, init = describe_linformer(kind)
            self.of_all = {"linformer_kernel": declare(self, "linformer_kernel", init, shape, axes)}

    def _bias(self, queries: Int[Array, "#B T"], keys: Int[Array, "#B S"]) -> Array | None:
        """What relative positions add to scores, `[B or 1, N, T, S]`, the same in all layers."""
        if self.kind.positions != "relative":
            return None
        distances = make_distances(queries, keys)
        both_ways = not self.kind.causal
        return make_bias(self.relative_table, distances, max_distance=RELATIVE_DISTANCE, both_ways=both_ways)

    def _bias_of_all(self, length: int) -> Array | None:
        places = jnp.arange(length, dtype=jnp.int32)[None]  # within a segment of a packed row distances are the same
        return self._bias(places, places)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "B T"] | None,
        *,
        memory: Float[Array, "B S D"] | None = None,
        memory_mask: Bool[Array, "B S"] | None = None,
        segments: Int[Array, "B T"] | None = None,
        memory_segments: Int[Array, "B S"] | None = None,
        prefix: Bool[Array, "B T"] | None = None,
        places: Int[Array, "B T 2"],
        train: bool,
    ) -> tuple[Float[Array, "B T D"], Array | None]:
        """Runs over whole sequences.

        Args:
            x: `[B, T, D]`.
            mask: `[B, T]`, True where real; padding comes last. None, where causal: padding is read by padding alone.
            memory: `[B, S, D]`, what layers that cross attend to.
            memory_mask: `[B, S]`.
            segments: `[B, T]` of packed rows.
            memory_segments: `[B, S]` likewise.
            prefix: `[B, T]`, what those before see as well where layers are causal; see `attend_heads`.
            places: what dropout is keyed by; see `layers.dropout.make_places`, here rows first.
            train: with dropout.

        Returns:
            The top layer's output `[B, T, D]`, and its input, without a gradient; None where this device has no top.
        """
        kind, of_all = self.kind, dict(self.of_all)
        key = self.make_rng("dropout") if train and kind.dropout else None
        bias = self._bias_of_all(x.shape[1])
        given = {"mask": mask, "memory": memory, "memory_mask": memory_mask}
        given |= {"segments": segments, "memory_segments": memory_segments, "prefix": prefix}
        shared = {name: each for name, each in given.items() if each is not None}

        def layer(own: PyTree, n: Any, x: Array, extras: PyTree, shared: PyTree) -> Array:
            return run_layer(kind, own | of_all, n, x, extras, shared, key=key, bias=bias)

        run = kind.execution.layer_runner()
        return run(layer, dict(self.own), x, {"places": places}, shared, layers=self.layers)

    def read(
        self, x: Float[Array, "B T D"], mask: Bool[Array, "B T"], *, prefix: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], tuple[Cached, ...]]:
        """Runs over texts that steps are to go on with, on this device alone and without dropout.

        Args:
            x: `[B, T, D]`.
            mask: `[B, T]`.
            prefix: as for `__call__`.

        Returns:
            The output, and the keys and values of every layer, `[B, N, T, H]` each.
        """
        kind, shared, kept = self.kind, {"mask": mask} | ({} if prefix is None else {"prefix": prefix}), []
        bias = self._bias_of_all(x.shape[1])
        for n in range(self.layers):
            own = {name: each[n] for name, each in self.own.items()}
            _, k, v = ask_self(kind, own, before(kind, own, "self_norm", x))  # the layer makes them, too: made once
            kept.append((k.swapaxes(1, 2), v.swapaxes(1, 2)))
            x = run_layer(kind, own, n, x, {}, shared, bias=bias)
        return x, tuple(kept)

    def top_attention(self, below: Array, memory: Array, memory_mask: Array) -> Float[Array, "B T S"]:
        """What the top layer attends to, `[B, T, S]`, the mean over heads, from its input `[B, T, D]`; no dropout."""
        kind, own = self.kind, {name: each[-1] for name, each in self.own.items()}
        y = attend_self(kind, own, before(kind, own, "self_norm", below), {}, self._bias_of_all(below.shape[1]))
        x = before(kind, own, "cross_norm", add(kind, own, "self_norm", below, y))
        q = fan_out(x, own["cross_query_kernel"], own["cross_query_bias"])
        k = fan_out(memory, own["cross_kv_kernel"][:, 0], own["cross_kv_bias"][0])
        return attention_weights(q, k, memory_mask)

    def project_memory(self, hidden: Float[Array, "B S D"]) -> tuple[Cached, ...]:
        """The keys and values of cross-attention of every layer, for `step`."""
        kernel, bias = self.own["cross_kv_kernel"].astype(hidden.dtype), self.own["cross_kv_bias"]
        made = add_bias(jnp.einsum("bsd,ldcnh->lcbnsh", hidden, kernel), bias[:, :, None, :, None])
        return tuple((made[n, 0], made[n, 1]) for n in range(made.shape[0]))

    def init_cache(self, like: Array, room: int) -> tuple[Cached, ...]:
        """Zeros for `room` steps; `like` is any array of the run, `[B, ...]`."""
        shape = (like.shape[0], self.kind.heads, room, self.kind.features // self.kind.heads)
        zeros = jnp.zeros_like(like, self.kind.dtype, shape=shape)
        return ((zeros, zeros),) * self.layers

    def step_weights(self) -> tuple[PyTree, ...]:
        """The parameters of every layer as `step` reads them, to be made once, before a loop over steps."""
        layers = ({name: each[n] for name, each in self.own.items()} for n in range(self.layers))
        return tuple(make_step_weights(self.kind, own) for own in layers)

    def step(
        self,
        x: Float[Array, "B D"],
        step: Int[Array, " B"],
        cache: tuple[Cached, ...],
        memory: tuple[Cached, ...] = (),
        memory_mask: Bool[Array, "B S"] | None = None,
        *,
        weights: tuple[PyTree, ...] | None = None,
        prefix: tuple[Cached, ...] = (),
        prefix_mask: Bool[Array, "B S"] | None = None,
    ) -> tuple[Float[Array, "B D"], tuple[Cached, ...], Array | None]:
        """Runs one step of causal layers; agrees with `__call__`.

        Args:
            x: `[B, D]`.
            step: `[B]`, each row's clock.
            cache: of the steps before.
            memory: what `project_memory` gave, for layers that cross.
            memory_mask: `[B, S]`.
            weights: what `step_weights` gave.
            prefix: what `read` gave of texts that the steps go on with: positions are counted from their beginning.
            prefix_mask: `[B, S]`.

        Returns:
            The output `[B, D]`, the cache, and what the top layer attends to, `[B, S]`, the mean over heads.
        """
        own = self.step_weights() if weights is None else weights
        room = jnp.arange(cache[0][0].shape[2], dtype=jnp.int32)[None]
        seen, position, keys = room <= step[:, None], step, room
        if prefix_mask is not None:
            lengths = jnp.sum(prefix_mask, axis=-1, dtype=jnp.int32)
            position, first = lengths + step, jnp.broadcast_to(jnp.arange(prefix_mask.shape[1]), prefix_mask.shape)
            keys = jnp.concatenate([first.astype(jnp.int32), lengths[:, None] + room], axis=1)
        bias = self._bias(position[:, None], keys)
        bias = None if bias is None else bias[:, :, 0]
        after, asked = [], None
        for n in range(self.layers):
            x, cached, asked = run_step(
                self.kind,
                own[n],
                x,
                step,
                cache[n],
                seen=seen,
                bias=bias,
                position=position,
                memory=memory[n] if self.kind.crosses else None,
                memory_mask=memory_mask,
                prefix=None if prefix_mask is None else prefix[n],
                prefix_mask=prefix_mask,
            )
            after.append(cached)
        if asked is None:
            return x, tuple(after), None
        return x, tuple(after), attention_weights(asked[:, None], memory[-1][0].swapaxes(1, 2), memory_mask)[:, 0]
