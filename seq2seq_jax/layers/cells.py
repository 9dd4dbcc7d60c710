"""The equations of one recurrent step, forward and backward, without its products and without its loop.

A cell is given what the products gave: `x`, the input's part of the pre-activations (bias included), and `p = h U`,
the state's part. All is pointwise over any leading axes, so that one cell serves a row of a search, a batch, both
directions of a layer, or (in the gradients of its vectors) a whole sequence at once.

Here are what a cell has to offer, what cells share, the LSTM and the GRU.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from seq2seq_jax.interfaces import Array

State = tuple[Array, ...]
"""What a cell carries from step to step, `[..., B, H]` float32 each; the last one is its output h."""

Saved = tuple[Array, ...]
"""Arrays of a step that its backward pass reads."""

Vectors = Mapping[str, Array]
"""The small parameters of a cell by name, float32, broadcast over the leading axes."""


@runtime_checkable
class Cell(Protocol):
    """One step of a recurrent layer; implementations are frozen dataclasses, equal where their equations are.

    Attributes:
        gates: pre-activations are Z = gates * H wide.
        states: number of arrays in the state.
        joins: the two parts of the pre-activations only ever meet as their sum.
        reads_output: `forward` reads the old output itself, not only through p.
    """

    @property
    def gates(self) -> int: ...
    @property
    def states(self) -> int: ...
    @property
    def joins(self) -> bool: ...
    @property
    def reads_output(self) -> bool: ...

    def vectors(self, width: int) -> dict[str, tuple[int, float]]:
        """Name, length and first value of every small parameter of a cell of `width` H."""
        ...

    def input_vectors(self, width: int) -> dict[str, tuple[int, float]]:
        """The same for those that only `normalise` reads: the loop neither sees them nor gives their gradients."""
        ...

    def normalise(self, products: Array, vectors: Vectors) -> Array:
        """The input products `[..., Z]` of all steps, before the loop, as the cell wants them; the bias comes after."""
        ...

    def forward(self, x: Array, p: Array, state: State, vectors: Vectors) -> tuple[State, Saved]:
        """The next state, and what the backward pass needs besides the states."""
        ...

    def backward(
        self, saved: Saved, before: State, after: State, d_state: State, vectors: Vectors
    ) -> tuple[Array, State, Saved]:
        """The cotangent of x; that of the state before, but for what flows through p; and what `vector_terms` needs."""
        ...

    def through(self, saved: Saved, dx: Array, vectors: Vectors) -> Array:
        """The cotangent of p, from that of x."""
        ...

    def emit(self, saved: Saved, states: State, vectors: Vectors) -> Array:
        """The output h of a step, from the rest of the state after it; only where an output can be projected."""
        ...

    def vector_terms(
        self, saved: Saved, kept: Saved, before: State, after: State, dx: Array, vectors: Vectors
    ) -> dict[str, Array]:
        """What to sum over steps and rows for the gradients of the vectors, `[..., k]` each, from whole sequences."""
        ...


NORM_EPSILON = 1e-6
"""Added to the variance in every layer normalisation here."""


def sigmoid_slope(y: Array) -> Array:
    """The derivative of the logistic function where its value is y."""
    return y * (1.0 - y)


def standardise(x: Array) -> tuple[Array, Array]:
    """`(x - mean) / deviation` over the last axis, and `[..., 1]` what the centred x was multiplied by for it."""
    centred = x - x.mean(axis=-1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + NORM_EPSILON)
    return centred * scale, scale


def standardise_back(standard: Array, scale: Array, d_standard: Array) -> Array:
    """The cotangent of x from both results of `standardise` and the cotangent of the first."""
    mean, along = d_standard.mean(axis=-1, keepdims=True), (d_standard * standard).mean(axis=-1, keepdims=True)
    return scale * (d_standard - mean - standard * along)


def layer_norm(x: Array, gain: Array) -> Array:
    """Layer normalisation without a bias (Ba et al. 2016, 1607.06450, equation 3): `[..., k]` to float32."""
    return standardise(x.astype(jnp.float32))[0] * gain


@dataclasses.dataclass(frozen=True)
class LSTMCell:
    """Long short-term memory; its state is (c, h).

        i, f, o = sigmoid(z_i), sigmoid(z_f), sigmoid(z_o)      g = tanh(z_g)       z = x + p
        c' = f c + i g                                          h' = o tanh(c')

    (Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al. 2000; gates in the order i, f, g, o.)

    Attributes:
        peepholes: the gates also see the cell, each unit its own: z_i += w_i c, z_f += w_f c, z_o += w_o c'
            (Gers et al. 2002; diagonal, as in Sak et al. 2014, 1402.1128, equations 1 to 6).
        layer_norm: z = LN(x K) + LN(h U) + b, each over all 4H and with a gain, and h' = o tanh(LN(c')) with a gain
            and a bias (Ba et al. 2016, 1607.06450, supplementary, equations 20 to 22). Peepholes see the plain cell.
    """

    peepholes: bool = False
    layer_norm: bool = False
    gates: ClassVar[int] = 4
    states: ClassVar[int] = 2
    reads_output: ClassVar[bool] = False

    @property
    def joins(self) -> bool:
        """Unless the parts are normalised apart."""
        return not self.layer_norm

    def vectors(self, width: int) -> dict[str, tuple[int, float]]:
        """Peepholes of the gates; the gain of LN(h U), the gain and the bias of LN(c')."""
        found = {f"peephole_{gate}": (width, 0.0) for gate in "ifo"} if self.peepholes else {}
        if self.layer_norm:
            found |= {"recurrent_gain": (4 * width, 1.0), "cell_gain": (width, 1.0), "cell_bias": (width, 0.0)}
        return found

    def input_vectors(self, width: int) -> dict[str, tuple[int, float]]:
        """The gain of LN(x K)."""
        return {"input_gain": (4 * width, 1.0)} if self.layer_norm else {}

    def normalise(self, products: Array, vectors: Vectors) -> Array:
        """LN(x K)."""
        return layer_norm(products, vectors["input_gain"]) if self.layer_norm else products

    def forward(self, x: Array, p: Array, state: State, vectors: Vectors) -> tuple[State, Saved]:
        """Saves the activated gates, side by side; with layer normalisation also what `standardise` gave of p."""
        norm: Saved = ()
        if self.layer_norm:
            norm = standardise(p)
            p = norm[0] * vectors["recurrent_gain"]
        z_i, z_f, z_g, z_o = jnp.split(x + p, 4, axis=-1)
        c = state[0]
        if self.peepholes:
            z_i, z_f = z_i + vectors["peephole_i"] * c, z_f + vectors["peephole_f"] * c
        i, f, g = jax.nn.sigmoid(z_i), jax.nn.sigmoid(z_f), jnp.tanh(z_g)
        c = f * c + i * g
        o = jax.nn.sigmoid(z_o + vectors["peephole_o"] * c if self.peepholes else z_o)
        h = o * self._tanh(c, vectors)
        return (c, h), (jnp.concatenate([i, f, g, o], axis=-1), *norm)

    def _tanh(self, c: Array, vectors: Vectors) -> Array:
        if self.layer_norm:
            c = standardise(c)[0] * vectors["cell_gain"] + vectors["cell_bias"]
        return jnp.tanh(c)

    def backward(
        self, saved: Saved, before: State, after: State, d_state: State, vectors: Vectors
    ) -> tuple[Array, State, Saved]:
        """Keeps the cotangent of the normalised cell, where there is one."""
        i, f, g, o = jnp.split(saved[0], 4, axis=-1)
        dc, dh = d_state
        tanh_c = self._tanh(after[0], vectors)
        inner = dh * o * (1.0 - tanh_c * tanh_c)
        dz_o = dh * tanh_c * sigmoid_slope(o)
        kept: Saved = ()
        if self.layer_norm:
            kept = (inner,)
            inner = standardise_back(*standardise(after[0]), inner * vectors["cell_gain"])
        dc = dc + inner
        if self.peepholes:
            dc = dc + dz_o * vectors["peephole_o"]
        dz_i, dz_f, dz_g = dc * g * sigmoid_slope(i), dc * before[0] * sigmoid_slope(f), dc * i * (1.0 - g * g)
        d_before = dc * f
        if self.peepholes:
            d_before = d_before + dz_i * vectors["peephole_i"] + dz_f * vectors["peephole_f"]
        return jnp.concatenate([dz_i, dz_f, dz_g, dz_o], axis=-1), (d_before, jnp.zeros_like(dh)), kept

    def through(self, saved: Saved, dx: Array, vectors: Vectors) -> Array:
        """The same where z = x + p; else back through the normalisation."""
        if not self.layer_norm:
            return dx
        return standardise_back(saved[1], saved[2], dx * vectors["recurrent_gain"])

    def emit(self, saved: Saved, states: State, vectors: Vectors) -> Array:
        """o tanh(c')."""
        return jnp.split(saved[0], 4, axis=-1)[3] * self._tanh(states[0], vectors)

    def vector_terms(
        self, saved: Saved, kept: Saved, before: State, after: State, dx: Array, vectors: Vectors
    ) -> dict[str, Array]:
        """What meets each vector in `forward`, times the cotangent of where they meet."""
        terms = {}
        if self.peepholes:
            dz_i, dz_f, _, dz_o = jnp.split(dx, 4, axis=-1)
            terms = {"peephole_i": dz_i * before[0], "peephole_f": dz_f * before[0], "peephole_o": dz_o * after[0]}
        if self.layer_norm:
            terms |= {"recurrent_gain": dx * saved[1], "cell_gain": kept[0] * standardise(after[0])[0]}
            terms["cell_bias"] = kept[0]
        return terms


@dataclasses.dataclass(frozen=True)
class GRUCell:
    """The gated recurrent unit; its state is (h,).

        r, z = sigmoid(x_r + p_r), sigmoid(x_z + p_z)      n = tanh(x_n + r (p_n + b_n))
        h' = (1 - z) n + z h

    (Cho et al. 2014, 1406.1078, with the reset gate after the product, as cuDNN and PyTorch have it: the products of
    all gates are then one. Gates in the order r, z, n.) Its output is its state, which cannot be projected.

    Attributes:
        layer_norm: each of the products x K and h U is normalised with a gain, its r and z as one and its n apart
            (Ba et al. 2016, 1607.06450, supplementary, equations 23 to 25; b_n is the bias of the last).
    """

    layer_norm: bool = False
    gates: ClassVar[int] = 3
    states: ClassVar[int] = 1
    reads_output: ClassVar[bool] = True
    joins: ClassVar[bool] = False

    def vectors(self, width: int) -> dict[str, tuple[int, float]]:
        """b_n, and the gains of LN(h U)."""
        return {"candidate_bias": (width, 0.0)} | ({"recurrent_gain": (3 * width, 1.0)} if self.layer_norm else {})

    def input_vectors(self, width: int) -> dict[str, tuple[int, float]]:
        """The gains of LN(x K)."""
        return {"input_gain": (3 * width, 1.0)} if self.layer_norm else {}

    def normalise(self, products: Array, vectors: Vectors) -> Array:
        """LN(x K)."""
        if not self.layer_norm:
            return products
        pairs = zip(_cut(products), _cut(vectors["input_gain"]), strict=True)
        return jnp.concatenate([layer_norm(part, gain) for part, gain in pairs], axis=-1)

    def forward(self, x: Array, p: Array, state: State, vectors: Vectors) -> tuple[State, Saved]:
        """Saves r, z, n and what r is multiplied with; with layer normalisation what `standardise` gave of p instead.

        (The factor of r then follows from the latter.)
        """
        norm: Saved = ()
        if self.layer_norm:
            (gates, gates_scale), (candidate, candidate_scale) = (standardise(part) for part in _cut(p))
            norm = (
                jnp.concatenate([gates, candidate], axis=-1),
                jnp.concatenate([gates_scale, candidate_scale], axis=-1),
            )
            p = norm[0] * vectors["recurrent_gain"]
        p_gates, p_n = _cut(p)
        x_gates, x_n = _cut(x)
        gates = jax.nn.sigmoid(x_gates + p_gates)
        r, z = jnp.split(gates, 2, axis=-1)
        inner = p_n + vectors["candidate_bias"]
        n = jnp.tanh(x_n + r * inner)
        h = n + z * (state[0] - n)
        return (h,), (jnp.concatenate([r, z, n], axis=-1), *(norm or (inner,)))

    def backward(
        self, saved: Saved, before: State, after: State, d_state: State, vectors: Vectors
    ) -> tuple[Array, State, Saved]:
        """Nothing is kept."""
        (dh,) = d_state
        r, z, n = jnp.split(saved[0], 3, axis=-1)
        inner = saved[1]
        if self.layer_norm:
            inner = _cut(saved[1])[1] * _cut(vectors["recurrent_gain"])[1] + vectors["candidate_bias"]
        dx_n = dh * (1.0 - z) * (1.0 - n * n)
        dx_r, dx_z = dx_n * inner * sigmoid_slope(r), dh * (before[0] - n) * sigmoid_slope(z)
        return jnp.concatenate([dx_r, dx_z, dx_n], axis=-1), (dh * z,), ()

    def through(self, saved: Saved, dx: Array, vectors: Vectors) -> Array:
        """That of n times r, and back through the normalisation."""
        dx_gates, dx_n = _cut(dx)
        parts = [dx_gates, dx_n * saved[0][..., : dx_n.shape[-1]]]
        if self.layer_norm:
            gains, scales = _cut(vectors["recurrent_gain"]), jnp.split(saved[2], 2, axis=-1)
            each = zip(_cut(saved[1]), scales, gains, parts, strict=True)
            parts = [standardise_back(standard, scale, d * gain) for standard, scale, gain, d in each]
        return jnp.concatenate(parts, axis=-1)

    def emit(self, saved: Saved, states: State, vectors: Vectors) -> Array:
        """There is none apart from the state."""
        raise ValueError("the output of a GRU is its state, which cannot be projected; use an LSTM cell")

    def vector_terms(
        self, saved: Saved, kept: Saved, before: State, after: State, dx: Array, vectors: Vectors
    ) -> dict[str, Array]:
        """What meets each vector in `forward`, times the cotangent of where they meet."""
        dx_gates, dx_n = _cut(dx)
        d_inner = dx_n * saved[0][..., : dx_n.shape[-1]]
        terms = {"candidate_bias": d_inner}
        if self.layer_norm:
            terms["recurrent_gain"] = jnp.concatenate([dx_gates, d_inner], axis=-1) * saved[1]
        return terms


def _cut(a: Array) -> tuple[Array, Array]:
    """`[..., 3H]` as r and z `[..., 2H]`, and n `[..., H]`."""
    at = a.shape[-1] // 3 * 2
    return a[..., :at], a[..., at:]
