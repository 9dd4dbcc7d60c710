"""A stack of Conformer layers: attention for what is far, a convolution for what is near.

    x ─► ½ feed-forward ─► (+) ─► self-attention ─► (+) ─► convolution ─► (+) ─► ½ feed-forward ─► (+) ─► norm ─► next

    convolution: norm ► product, gated (GLU) ► each channel over time ► norm ► swish ► product

After Gulati et al. (2020, 2005.08100). Feed-forward layers and self-attention are a Transformer's
(`layers.transformer_layer`), normalised first. Frames that are not real are zero before the convolution, and hidden
from attention.

Differs from the paper: layer normalisation inside the convolution in place of batch normalisation, which would make a
recording depend on its batch and on its padding; positions are rotary or T5's relative ones in place of
Transformer-XL's; dropout on the output of every part alone.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Bool, Float, Int

from seq2seq_jax.interfaces import Array, PyTree
from seq2seq_jax.layers.dropout import drop
from seq2seq_jax.layers.initializers import glorot_initializer, table_initializer
from seq2seq_jax.layers.normalisation import normalise
from seq2seq_jax.layers.parameters import declare, stacked
from seq2seq_jax.layers.positions import make_bias, make_distances
from seq2seq_jax.layers.transformer import RELATIVE_BUCKETS, RELATIVE_DISTANCE
from seq2seq_jax.layers.transformer_layer import (
    TransformerLayer,
    add_bias,
    attend_self,
    before,
    fan_out,
    feed_forward,
    list_parameters,
    multiply,
)

POSITIONS = ("rotary", "relative")
PARTS = 4  # sub-layers, each with dropout of its own


def list_convolution(
    kind: TransformerLayer, width: int
) -> dict[str, tuple[tuple[int, ...], tuple[str | None, ...], Any]]:
    """Shape, names of axes and initializer of every parameter of a layer's convolution over `width` frames."""
    size, zeros, ones = kind.features, nn.initializers.zeros, nn.initializers.ones
    square = glorot_initializer(kind.init_scale, inputs=size, outputs=size)
    depth = glorot_initializer(kind.init_scale, inputs=width, outputs=width)
    norms = {f"{name}_gain": ((size,), ("embed",), ones) for name in ("conv_norm", "conv_depth_norm", "out_norm")}
    return {
        "conv_in_kernel": ((size, 2, size), ("embed", None, "hidden"), square),
        "conv_in_bias": ((2, size), (None, "hidden"), zeros),
        "conv_depth_kernel": ((width, size), (None, "hidden"), depth),
        "conv_depth_bias": ((size,), ("hidden",), zeros),
        "conv_out_kernel": ((size, size), ("hidden", "embed"), square),
        "conv_out_bias": ((size,), ("embed",), zeros),
        **norms,
        **{name.replace("gain", "bias"): (shape, axes, zeros) for name, (shape, axes, _) in norms.items()},
    }


def list_layer(kind: TransformerLayer, width: int) -> dict[str, tuple[tuple[int, ...], tuple[str | None, ...], Any]]:
    """The same of a whole layer: the second feed-forward layer is called "last_mlp"."""
    table = list_parameters(kind)
    table |= {f"last_{name}": each for name, each in table.items() if name.startswith("mlp")}
    return table | list_convolution(kind, width)


def convolve_channels(x: Float[Array, "B T D"], kernel: Float[Array, "K D"]) -> Float[Array, "B T D"]:
    """Each channel over time on its own, K frames around each (K odd), zeros beyond the ends; adds up in float32."""
    width, length = kernel.shape[0], x.shape[1]
    padded = jnp.pad(x, ((0, 0), (width // 2, width // 2), (0, 0)))
    terms = (padded[:, k : k + length].astype(jnp.float32) * kernel[k] for k in range(width))
    return sum(terms, jnp.zeros((), jnp.float32))


def convolve(kind: TransformerLayer, own: PyTree, x: Float[Array, "B T D"], mask: Bool[Array, "B T"]) -> Array:
    """The sub-layer of the convolution, `[B, T, D]` (section 2.2 of the paper)."""
    with jax.named_scope("convolution"):
        made = fan_out(before(kind, own, "conv_norm", x), own["conv_in_kernel"], own["conv_in_bias"])
        gated = made[..., 0, :] * jax.nn.sigmoid(made[..., 1, :]) * mask[..., None].astype(made.dtype)
        deep = convolve_channels(gated, own["conv_depth_kernel"]) + own["conv_depth_bias"]
        normal = normalise(deep, own["conv_depth_norm_gain"], own["conv_depth_norm_bias"])
        inner = jax.nn.silu(normal).astype(x.dtype)
        return add_bias(multiply(inner, own["conv_out_kernel"]), own["conv_out_bias"])


def run_layer(
    kind: TransformerLayer,
    own: PyTree,
    n: Any,
    x: Float[Array, "B T D"],
    extras: PyTree,
    shared: PyTree,
    *,
    key: Array | None,
    bias: Array | None,
) -> Float[Array, "B T D"]:
    """Layer n over whole sequences.

    Args:
        kind: what it is.
        own: its parameters, without the axis of layers.
        n: its number, which may be traced: what dropout is keyed by.
        x: `[B, T, D]`.
        extras: `places` `[B, T, 2]` and `mask` `[B, T]` of these rows.
        shared: `mask` of the rows of all devices that share the heads.
        key: of dropout; None: without.
        bias: `[1, N, T, T]` of relative positions.
    """

    def lose(y: Array, part: int) -> Array:
        return y if key is None else drop(kind.dropout, y, key, extras["places"], PARTS * n + part)

    last = {name.removeprefix("last_"): each for name, each in own.items() if name.startswith("last_")}
    x = x + 0.5 * lose(feed_forward(kind, own, before(kind, own, "mlp_norm", x)), 0)
    x = x + lose(attend_self(kind, own, before(kind, own, "self_norm", x), shared, bias), 1)
    x = x + lose(convolve(kind, own, x, extras["mask"]), 2)
    x = x + 0.5 * lose(feed_forward(kind, last, before(kind, last, "mlp_norm", x)), 3)
    return normalise(x, own["out_norm_gain"], own["out_norm_bias"])


class ConformerStack(nn.Module):
    """The parameters of L layers, and how they run over whole sequences.

    Attributes:
        kind: what a layer's attention and feed-forward layers are; `norm` "pre" and `activation` "swish".
        layers: L.
        width: frames that a convolution sees, odd.
    """

    kind: TransformerLayer
    layers: int
    width: int

    def setup(self) -> None:
        self.own = {
            name: declare(self, name, stacked(init), (self.layers, *shape), ("layers", *axes))
            for name, (shape, axes, init) in list_layer(self.kind, self.width).items()
        }
        if self.kind.positions == "relative":
            table, init = (RELATIVE_BUCKETS, self.kind.heads), table_initializer(self.kind.init_scale)
            self.relative_table = declare(self, "relative_table", init, table, (None, "heads"))

    def _bias(self, length: int) -> Array | None:
        if self.kind.positions != "relative":
            return None
        places: Int[Array, "1 T"] = jnp.arange(length, dtype=jnp.int32)[None]
        distances = make_distances(places, places)
        return make_bias(self.relative_table, distances, max_distance=RELATIVE_DISTANCE, both_ways=True)

    def __call__(
        self, x: Float[Array, "B T D"], mask: Bool[Array, "B T"], places: Int[Array, "B T 2"], *, train: bool
    ) -> Float[Array, "B T D"]:
        """Runs over whole sequences.

        Args:
            x: `[B, T, D]`.
            mask: `[B, T]`, True where real; padding comes last.
            places: what dropout is keyed by; see `layers.dropout.make_places`, here rows first.
            train: with dropout.
        """
        kind, bias = self.kind, self._bias(x.shape[1])
        key = self.make_rng("dropout") if train and kind.dropout else None

        def layer(own: PyTree, n: Any, x: Array, extras: PyTree, shared: PyTree) -> Array:
            return run_layer(kind, own, n, x, extras, shared, key=key, bias=bias)

        extras = {"places": places, "mask": mask}
        run = kind.execution.layer_runner()
        return run(layer, dict(self.own), x, extras, {"mask": mask}, layers=self.layers)[0]
