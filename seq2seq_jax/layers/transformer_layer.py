"""One layer of a Transformer (Vaswani et al. 2017, 1706.03762, section 3), as functions of its parameters, batch-major.

    x ─► self-attention ─► (+) ─► [cross-attention ─► (+)] ─► feed-forward ─► (+) ─► next layer

Every sub-layer's output goes through dropout and is added to its input; layer normalisation comes after the sum
("post": the paper) or before the sub-layer ("pre": Wang et al. 2019, 1906.01787, section 2; what comes out of the top
layer is then not normalised yet).

Where devices share the heads and the feed-forward layer (`tensor` of a mesh), each has some columns of every product:
the rows of all come together before a sub-layer, and every device gets the sums of its own rows after it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float, Int

from seq2seq_jax.errors import UserError
from seq2seq_jax.interfaces import Array, PyTree
from seq2seq_jax.layers.activations import ACTIVATIONS
from seq2seq_jax.layers.dot_attention import attend_cache, attend_caches, attend_heads, write_cache
from seq2seq_jax.layers.dropout import drop
from seq2seq_jax.layers.initializers import glorot_initializer
from seq2seq_jax.layers.linformer import attend_low_rank, describe_projections
from seq2seq_jax.layers.normalisation import normalise
from seq2seq_jax.layers.positions import rotate
from seq2seq_jax.layers.recurrent import product

NORMS = ("post", "pre")
POSITIONS = ("sinusoidal", "learned", "relative", "rotary")

Cached = tuple[Array, Array]
"""Keys and values of a layer, `[B, N, R, H]` each."""


class Devices(Protocol):
    """What layers have to know of the devices they run on; `parallel.layout.Execution` is one."""

    @property
    def platform(self) -> str: ...

    def gather_rows(self, x: Array) -> Array:
        """The rows of all devices that share the heads, `[B, ...]`."""
        ...

    def scatter_rows(self, x: Array) -> Array:
        """The sum over these devices, of this one's rows."""
        ...

    def layer_runner(self) -> Callable[..., tuple[Array, Array | None]]:
        """`run(layer, parameters, x, extras, shared, *, layers) -> (x, input of the top layer)`."""
        ...


@dataclasses.dataclass(frozen=True)
class TransformerLayer:
    """What the layers of a stack have in common.

    Attributes:
        features: D.
        heads: N, which divides D; a head is D / N wide.
        feed_forward: F.
        execution: what to know of the devices.
        norm: where layer normalisation is, one of `NORMS`.
        activation: of the feed-forward layer, one of `ACTIVATIONS`.
        positions: one of `POSITIONS`, of which layers themselves add the "relative" and "rotary" ones.
        causal: a position sees those before it and itself only.
        crosses: it also attends to a memory.
        dropout: rate on the output of every sub-layer.
        dtype: dtype of the products and of what runs through the layers; softmax and normalisation are float32.
        linformer: rank that keys and values of self-attention are mixed down to (Wang et al. 2020); 0: they are not.
        linformer_share: which layers and heads share the mixtures, one of `linformer.SHARES`.
        longest: longest text, where there are mixtures.
        init_scale: kernels are drawn uniformly from [-init_scale, init_scale]; 0: by their sizes, see
            `layers.initializers.glorot_initializer`.
    """

    features: int
    heads: int
    feed_forward: int
    execution: Devices
    norm: str = "post"
    activation: str = "relu"
    positions: str = "sinusoidal"
    causal: bool = False
    crosses: bool = False
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32
    linformer: int = 0
    linformer_share: str = "none"
    longest: int = 0
    init_scale: float = 0.0


def multiply(x: Array, kernel: Float[Array, "D Z"]) -> Array:
    """`[..., D]` by a kernel to `[..., Z]`. Rows are merged, so that the kernel's gradient is a plain product, too."""
    return product(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], -1)


def fan_out(x: Array, kernel: Array, bias: Array) -> Array:
    """`[..., D]` by a kernel `[D, ...]` to `[..., (what the kernel has after D)]`, with a bias."""
    made = multiply(x, kernel.reshape(kernel.shape[0], -1)).astype(jnp.float32) + bias.reshape(-1)
    # The name is for `parallel.remat`: it says what is kept where the rest is made again.
    return checkpoint_name(made.astype(x.dtype).reshape(*x.shape[:-1], *kernel.shape[1:]), "product")


def add_bias(x: Array, bias: Array) -> Array:
    """The sum in float32 (so is the gradient of the bias), in the dtype of `x`."""
    return checkpoint_name((x.astype(jnp.float32) + bias).astype(x.dtype), "product")


def merge_heads(contexts: Float[Array, "*B N H"], kernel: Float[Array, "N H D"]) -> Float[Array, "*B D"]:
    """What all heads here give together, without the bias."""
    flat = contexts.reshape(*contexts.shape[:-2], -1)
    return multiply(flat, kernel.reshape(-1, kernel.shape[-1]))


def ask_self(kind: TransformerLayer, own: PyTree, x: Float[Array, "B T D"]) -> tuple[Array, Array, Array]:
    """Queries, keys and values of self-attention, `[B, T, N, H]` each, of rows from their first position on."""
    made = fan_out(x, own["self_qkv_kernel"], own["self_qkv_bias"])
    q, k, v = (made[..., i, :, :] for i in range(3))
    if kind.positions == "rotary":
        places = jnp.arange(x.shape[1], dtype=jnp.int32)[None]
        q, k = rotate(q, places), rotate(k, places)
    return q, k, v


def attend_self(kind: TransformerLayer, own: PyTree, x: Array, shared: PyTree, bias: Array | None) -> Array:
    """The sub-layer of self-attention, `[B, T, D]`; for `shared` see `run_layer`."""
    with jax.named_scope("self_attention"):
        q, k, v = ask_self(kind, own, kind.execution.gather_rows(x))
        segments, mask, platform = shared.get("segments"), shared.get("mask"), kind.execution.platform
        if kind.linformer and segments is not None:
            raise UserError(
                "config.data.pack must be False with config.model.linformer above 0, which mixes all of a row, but is "
                "True instead."
            )
        with jax.named_scope("attend"):
            if kind.linformer:
                contexts = attend_low_rank(q, k, v, own["linformer_kernel"], mask=mask, platform=platform)
            else:
                segments = None if segments is None else (segments, segments)
                more = {"segments": segments, "prefix": shared.get("prefix"), "platform": platform}
                contexts = attend_heads(q, k, v, mask=mask, causal=kind.causal, bias=bias, **more)
        out = kind.execution.scatter_rows(merge_heads(contexts, own["self_out_kernel"]))
        return add_bias(out, own["self_out_bias"])


def attend_memory(kind: TransformerLayer, own: PyTree, x: Array, shared: PyTree) -> Array:
    """The sub-layer of cross-attention, `[B, T, D]`; for `shared` see `run_layer`."""
    with jax.named_scope("cross_attention"):
        q = fan_out(kind.execution.gather_rows(x), own["cross_query_kernel"], own["cross_query_bias"])
        made = fan_out(shared["memory"], own["cross_kv_kernel"], own["cross_kv_bias"])
        segments = shared.get("memory_segments")
        with jax.named_scope("attend"):
            contexts = attend_heads(
                q,
                made[:, :, 0],
                made[:, :, 1],
                mask=shared["memory_mask"],
                causal=False,
                segments=None if segments is None else (shared["segments"], segments),
                platform=kind.execution.platform,
            )
        out = kind.execution.scatter_rows(merge_heads(contexts, own["cross_out_kernel"]))
        return add_bias(out, own["cross_out_bias"])


def feed_forward(kind: TransformerLayer, own: PyTree, x: Array) -> Array:
    """The sub-layer of two products, `[..., D]`."""
    with jax.named_scope("feed_forward"):
        inner = activate(kind, fan_out(kind.execution.gather_rows(x), own["mlp_in_kernel"], own["mlp_in_bias"]))
        return add_bias(kind.execution.scatter_rows(multiply(inner, own["mlp_out_kernel"])), own["mlp_out_bias"])


def activate(kind: TransformerLayer, made: Array) -> Array:
    """The activation of what the first product made, `[..., F]`; of a gate and a product `[..., 2, F]` for "swiglu"."""
    function = ACTIVATIONS[kind.activation]
    return function(made[..., 0, :]) * made[..., 1, :] if kind.activation == "swiglu" else function(made)


def before(kind: TransformerLayer, own: PyTree, name: str, x: Array) -> Array:
    """What a sub-layer reads: its input, normalised where normalisation comes first."""
    return normalise(x, own[f"{name}_gain"], own[f"{name}_bias"]) if kind.norm == "pre" else x


def add(kind: TransformerLayer, own: PyTree, name: str, x: Array, y: Array) -> Array:
    """A sub-layer's input and output together, normalised where normalisation comes last."""
    return x + y if kind.norm == "pre" else normalise(x + y, own[f"{name}_gain"], own[f"{name}_bias"])


def run_layer(
    kind: TransformerLayer,
    own: PyTree,
    n: Any,
    x: Float[Array, "B T D"],
    extras: PyTree,
    shared: PyTree,
    *,
    key: Array | None = None,
    bias: Array | None = None,
) -> Float[Array, "B T D"]:
    """Layer n over whole sequences.

    Args:
        kind: what it is.
        own: its parameters, without the axis of layers; perhaps this device's columns of them.
        n: its number, which may be traced: what dropout is keyed by.
        x: `[B, T, D]`.
        extras: `places` `[B, T, 2]`, what dropout is keyed by besides.
        shared: `mask` `[B, T]` (absent: all that matters is real), `segments` `[B, T]` where rows are packed, `prefix`
            `[B, T]` of what those before see as well where causal; of a layer that crosses `memory` `[B, S, D]`,
            `memory_mask` `[B, S]` and perhaps `memory_segments` `[B, S]`.
        key: of dropout; None: without.
        bias: `[1, N, T, T]` of relative positions.
    """

    def lose(y: Array, sublayer: int) -> Array:
        return y if key is None else drop(kind.dropout, y, key, extras["places"], 3 * n + sublayer)

    y = attend_self(kind, own, before(kind, own, "self_norm", x), shared, bias)
    x = add(kind, own, "self_norm", x, lose(y, 0))
    if kind.crosses:
        y = attend_memory(kind, own, before(kind, own, "cross_norm", x), shared)
        x = add(kind, own, "cross_norm", x, lose(y, 1))
    y = feed_forward(kind, own, before(kind, own, "mlp_norm", x))
    return add(kind, own, "mlp_norm", x, lose(y, 2))


def describe_linformer(kind: TransformerLayer) -> tuple[tuple[int, ...], tuple[str | None, ...], Any]:
    """Shape, names of axes and initializer of Linformer's mixtures of one layer, or of all where they share them."""
    return describe_projections(
        kind.linformer_share, heads=kind.heads, length=kind.longest, rank=kind.linformer, init_scale=kind.init_scale
    )


def list_parameters(kind: TransformerLayer) -> dict[str, tuple[tuple[int, ...], tuple[str | None, ...], Any]]:
    """Shape, names of axes and initializer of every parameter of one layer."""
    width, heads, inner = kind.features, kind.heads, kind.feed_forward
    head, gates = width // heads, (2,) if kind.activation == "swiglu" else ()
    zeros, ones = nn.initializers.zeros, nn.initializers.ones

    def draw(inputs: int, outputs: int) -> nn.initializers.Initializer:
        return glorot_initializer(kind.init_scale, inputs=inputs, outputs=outputs)

    square, none_of = draw(width, width), (None,) * len(gates)
    table: dict[str, tuple[tuple[int, ...], tuple[str | None, ...], Any]] = {
        "self_qkv_kernel": ((width, 3, heads, head), ("embed", None, "heads", None), square),
        "self_qkv_bias": ((3, heads, head), (None, "heads", None), zeros),
        "self_out_kernel": ((heads, head, width), ("heads", None, "embed"), square),
        "mlp_in_kernel": ((width, *gates, inner), ("embed", *none_of, "mlp"), draw(width, inner)),
        "mlp_in_bias": ((*gates, inner), (*none_of, "mlp"), zeros),
        "mlp_out_kernel": ((inner, width), ("mlp", "embed"), draw(inner, width)),
    }
    if kind.linformer and kind.linformer_share != "layers":
        table["linformer_kernel"] = describe_linformer(kind)
    vectors = ["self_out_bias", "mlp_out_bias", "self_norm_bias", "mlp_norm_bias"]
    if kind.crosses:
        table |= {
            "cross_query_kernel": ((width, heads, head), ("embed", "heads", None), square),
            "cross_query_bias": ((heads, head), ("heads", None), zeros),
            "cross_kv_kernel": ((width, 2, heads, head), ("embed", None, "heads", None), square),
            "cross_kv_bias": ((2, heads, head), (None, "heads", None), zeros),
            "cross_out_kernel": ((heads, head, width), ("heads", None, "embed"), square),
        }
        vectors += ["cross_out_bias", "cross_norm_bias"]
    table |= {name: ((width,), ("embed",), zeros) for name in vectors}
    return table | {
        name.replace("bias", "gain"): ((width,), ("embed",), ones) for name in vectors if name.endswith("norm_bias")
    }


def make_step_weights(kind: TransformerLayer, own: PyTree) -> PyTree:
    """One layer's parameters as `run_step` reads them: kernels `[outputs, inputs]` in the dtype of the products.

    A product with 4 to 32 rows takes XLA a third longer on CPUs where the outputs are columns; with more or fewer it is
    the same.
    """

    def turn(name: str, kernel: Array) -> Array:
        outputs = kernel.shape[-1] if name.endswith("_out_kernel") else kernel.size // kernel.shape[0]
        return kernel.reshape(-1, outputs).T.astype(kind.dtype)

    # Keys and values of the memory are made before the steps.
    read = {name: each for name, each in own.items() if not name.startswith("cross_kv")}
    return {name: turn(name, each) if name.endswith("_kernel") else each for name, each in read.items()}


def step_product(x: Array, kernel: Float[Array, "Z D"], bias: Array) -> Array:
    """One row of inputs `[B, ...]` by a kernel of `make_step_weights`, to `[B, (the shape of the bias)]`."""
    made = jnp.einsum("bd,zd->bz", x.reshape(x.shape[0], -1), kernel, preferred_element_type=jnp.float32)
    return (made + bias.reshape(-1)).astype(x.dtype).reshape(x.shape[0], *bias.shape)


def run_step(
    kind: TransformerLayer,
    own: PyTree,
    x: Float[Array, "B D"],
    step: Int[Array, " B"],
    cached: Cached,
    *,
    seen: Array,
    bias: Array | None,
    memory: Cached | None = None,
    memory_mask: Array | None = None,
    position: Int[Array, " B"] | None = None,
    prefix: Cached | None = None,
    prefix_mask: Array | None = None,
) -> tuple[Float[Array, "B D"], Cached, Array | None]:
    """One step of a layer; agrees with `run_layer`.

    Args:
        kind: what it is; causal.
        own: what `make_step_weights` made of its parameters.
        x: `[B, D]`.
        step: `[B]`, each row's clock.
        cached: keys and values of the steps before.
        seen: `[B, R]`, which places of the cache are read, this step's own included.
        bias: `[B or 1, N, R]` of relative positions; with a prefix `[B, N, S + R]`.
        memory: keys and values of the memory, of a layer that crosses.
        memory_mask: `[B, S]`.
        position: `[B]` of this step in its text; None: as its clock.
        prefix: keys and values of a text of up to S tokens that the steps go on with.
        prefix_mask: `[B, S]`.

    Returns:
        The output `[B, D]`, the keys and values with those of this step, and the queries `[B, N, H]` of
        cross-attention, None of a layer that does not cross.
    """
    with jax.named_scope("self_attention"):
        made = step_product(before(kind, own, "self_norm", x), own["self_qkv_kernel"], own["self_qkv_bias"])
        q, k, v = made[:, 0], made[:, 1], made[:, 2]
        if kind.positions == "rotary":
            place = (step if position is None else position)[:, None]
            q, k = (rotate(each[:, None], place)[:, 0] for each in (q, k))
        cached = write_cache(cached[0], k, step), write_cache(cached[1], v, step)
        with jax.named_scope("attend"):
            if prefix is None or prefix_mask is None:
                contexts = attend_cache(q, *cached, seen, bias)
            else:
                contexts = attend_caches(q, (*prefix, prefix_mask), (*cached, seen), bias)
        y = step_product(contexts, own["self_out_kernel"], own["self_out_bias"])
    x, asked = add(kind, own, "self_norm", x, y), None
    if memory is not None:
        with jax.named_scope("cross_attention"):
            ask = before(kind, own, "cross_norm", x)
            asked = step_product(ask, own["cross_query_kernel"], own["cross_query_bias"])
            with jax.named_scope("attend"):
                contexts = attend_cache(asked, *memory, memory_mask)
            y = step_product(contexts, own["cross_out_kernel"], own["cross_out_bias"])
        x = add(kind, own, "cross_norm", x, y)
    with jax.named_scope("feed_forward"):
        made = step_product(before(kind, own, "mlp_norm", x), own["mlp_in_kernel"], own["mlp_in_bias"])
        y = step_product(activate(kind, made), own["mlp_out_kernel"], own["mlp_out_bias"])
    return add(kind, own, "mlp_norm", x, y), cached, asked
