"""A recurrent layer that attends before every step, as one loop with a backward pass written by hand.

              ┌────────────── h ◄──────────────┐
              ▼                                │        a  = attention(h Q, keys, values)
    query ► attention ► context a ► (*) ► + ► cell      x' = x + (a * noise) C
                                     x ──►┘             p  = h U

Step t asks with the output of step t - 1 (Wu et al. 2016, 1609.08144, equation 4), so that attention and layer
cannot be taken apart over time. The loop of the backward pass carries the cotangents of the state, of the keys and,
apart by rows, of v; it makes the attention's hidden layer again. The gradients of all kernels and of the values are
single products after it, where `grad(lax.scan)` would add to each of them at every step.

Everything is time-major, `[T, B, ...]`. States are float32; products are made in the dtype of the inputs.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Float

from seq2seq_jax.interfaces import Array
from seq2seq_jax.layers.attention import make_scores, masked_softmax, score_gradients, softmax_gradient
from seq2seq_jax.layers.cells import Cell, Saved, State
from seq2seq_jax.layers.runs import PLAIN_LOOP, Loop, Weights, add_bias, as_float, multiply, sum_products, zero_state
from seq2seq_jax.layers.sweep import read, sweep


@struct.dataclass
class Asking:
    """The weights between a layer and its attention, float32."""

    query: Array  # [P, A]
    v: Array  # [A]
    context: Array  # [D, Z]: the rows of the layer's input kernel that meet the context


@struct.dataclass
class Attended:
    """What is attended to."""

    keys: Array  # [B, S, A], projected
    values: Array  # [B, S, D]
    mask: Array  # [B, S], True where real


def recur_attending(
    cell: Cell,
    projected: Float[Array, "T B Z"],
    weights: Weights,
    asking: Asking,
    attended: Attended,
    *,
    noise: Float[Array, "B P"] | None = None,
    context_noise: Float[Array, "T B D"] | None = None,
    loop: Loop = PLAIN_LOOP,
) -> tuple[Float[Array, "T B P"], Float[Array, "T B D"], Float[Array, "T B S"]]:
    """Runs a layer from zeros over the whole target, its last output asking for the context that it reads.

    Args:
        cell: the equations of a step; its input's part must be a plain sum (no `cell.normalise`).
        projected: `[T, B, Z]`, input products of all steps; its dtype is that of products.
        weights: of the layer, float32.
        asking: kernels of query and context, and v, float32.
        attended: keys, values and their mask.
        noise: `[B, P]`, factors of the output on its way to the next step of the layer, though not to the attention;
            they get no gradient.
        context_noise: `[T, B, D]`, factors of the contexts that the layer itself reads; they get no gradient.
        loop: how it is run; of its choices only `unroll` is one here.

    Returns:
        Outputs `[T, B, P]` and contexts without noise `[T, B, D]`, in the dtype of the inputs, and the attention's
        weights `[T, B, S]` float32. Padding comes last: no step has a mask.
    """
    fixed = _Fixed(weights, asking, attended.keys, attended.values, noise, context_noise)
    return _recur(cell, loop.unroll, projected, fixed, attended.mask)


@struct.dataclass
class _Fixed:
    """What is the same at every step, and the noise."""

    weights: Weights
    asking: Asking
    keys: Array
    values: Array
    noise: Array | None
    context_noise: Array | None

    def cast(self, dtype: jnp.dtype) -> _Fixed:
        """All that products are made of in one dtype; vectors stay float32."""
        own, asking = self.weights, self.asking
        projection = None if own.projection is None else own.projection.astype(dtype)
        return _Fixed(
            Weights(own.recurrent.astype(dtype), projection, own.vectors, own.bias),
            Asking(asking.query.astype(dtype), asking.v.astype(dtype), asking.context.astype(dtype)),
            self.keys,
            self.values.astype(dtype),
            self.noise,
            self.context_noise,
        )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _recur(cell: Cell, unroll: int, projected: Array, fixed: _Fixed, mask: Array) -> tuple[Array, Array, Array]:
    tape = _forward(cell, unroll, projected, fixed, mask, keep=False)
    return tape.outputs, tape.contexts, tape.weights


def _recur_fwd(cell: Cell, unroll: int, projected: Array, fixed: _Fixed, mask: Array) -> Any:
    tape = _forward(cell, unroll, projected, fixed, mask, keep=True)
    return (tape.outputs, tape.contexts, tape.weights), (fixed, tape)


def _recur_bwd(cell: Cell, unroll: int, kept: tuple[_Fixed, _Tape], cotangents: tuple[Array, Array, Array]) -> Any:
    fixed, tape = kept
    back, *sums = _backward(cell, unroll, fixed, tape, cotangents)
    return back.dx, _gradients(cell, fixed, tape, back, sums, cotangents[1]), None


_recur.defvjp(_recur_fwd, _recur_bwd)


@struct.dataclass
class _Tape:
    """What the forward loop leaves behind."""

    outputs: Array  # [T, B, P]
    contexts: Array  # [T, B, D]
    weights: Array  # [T, B, S] float32
    states: State  # all of the state but the output, [T, B, H] float32 each
    saved: Saved  # of the cell


@struct.dataclass
class _Back:
    """What the backward loop leaves behind of every step."""

    dx: Array  # [T, B, Z], cotangents of the input's part of the pre-activations
    dh: Array | None  # [T, B, P], those of the outputs, where there is a projection
    d_query: Array  # [T, B, A]
    d_read: Array  # [T, B, D], of the contexts with their noise
    kept: Saved  # of the cell


def _times(a: Array, noise: Array | None) -> Array:
    return a if noise is None else a * noise.astype(a.dtype)


def _before(after: State) -> State:
    """What each step started from, `[T, B, H]` each."""
    return jax.tree.map(lambda a: jnp.concatenate([jnp.zeros_like(a[:1]), a[:-1]]), after)


def _forward(cell: Cell, unroll: int, projected: Array, fixed: _Fixed, mask: Array, *, keep: bool) -> _Tape:
    """The loop ahead; without `keep` it leaves no more than is returned."""
    dtype, own = projected.dtype, fixed.cast(projected.dtype)
    weights, asking = own.weights, own.asking

    def step(n: Array, at: Sequence[Array], state: State, z: Array) -> tuple[State, _Tape]:
        h, factor = state[-1], read([own.context_noise], at)
        queries = multiply(h, asking.query).astype(dtype)[:, None]
        attention = masked_softmax(make_scores(queries, own.keys, asking.v)[:, 0], mask)
        context = jnp.einsum("bs,bsd->bd", attention.astype(dtype), own.values)
        x = add_bias(z, weights.bias) + multiply(_times(context, factor), asking.context)
        new, saved = cell.forward(x, multiply(_times(h, own.noise), weights.recurrent), state, weights.vectors)
        if weights.projection is not None:
            new = (*new[:-1], multiply(new[-1], weights.projection))
        more = (new[:-1], jax.tree.map(lambda a: a.astype(dtype), saved)) if keep else ((), ())
        return new, _Tape(new[-1].astype(dtype), context, attention, *more)

    _, (tape,) = sweep(
        step,
        zero_state(cell, weights, projected),
        length=projected.shape[0],
        turned=[False],
        unroll=unroll,
        like=projected,
        inputs=[projected],
    )
    return tape


def _backward(
    cell: Cell, unroll: int, fixed: _Fixed, tape: _Tape, cotangents: tuple[Array, Array, Array]
) -> tuple[_Back, Array, Array]:
    """The loop back; and the sums that it carries, float32: of the keys (still to be multiplied by v), of v by rows."""
    like, dtype, own = tape.outputs, tape.outputs.dtype, fixed.cast(tape.outputs.dtype)
    weights, asking = own.weights, own.asking
    from_query, from_p, from_x = asking.query.T, weights.recurrent.T, asking.context.T
    v = asking.v.astype(jnp.float32)
    states = (*tape.states, tape.outputs)
    queries = multiply(tape.outputs, asking.query).astype(dtype)  # what each output asks at the step after it

    def ask_back(
        at: Sequence[Array], dx: Array, attention: Array, query: Array
    ) -> tuple[Array, tuple[Array, Array, Array]]:
        """Through the context: its cotangent with noise; and those of query (times v), keys and v."""
        d_read = multiply(dx, from_x).astype(dtype)
        factor, d_context, d_weights = read([(own.context_noise, *cotangents[1:])], at)
        d_context += _times(d_read, factor)
        d_weights += jnp.einsum("bd,bsd->bs", d_context, own.values, preferred_element_type=jnp.float32)
        d_scores = softmax_gradient(attention, d_weights)
        d_query, d_keys, d_v = score_gradients(query[:, None], own.keys, d_scores[:, None])
        return d_read, ((d_query[:, 0] * v).astype(dtype), d_keys, d_v)

    def step(n: Array, at: Sequence[Array], carry: tuple[State, Array, Array], x: None) -> tuple[Any, _Back]:
        d_state, *sums = carry
        saved, after, attention, d_output = as_float(read([(tape.saved, states, tape.weights, cotangents[0])], at))
        earlier = read([(states, queries)], [jnp.maximum(at[0] - 1, 0)])
        before, query = jax.tree.map(lambda a: jnp.where(at[0] == 0, jnp.zeros_like(a), a), earlier)
        d_state, dh = (*d_state[:-1], d_state[-1] + d_output), None
        if weights.projection is not None:
            dh = d_state[-1].astype(dtype)
            d_state = (*d_state[:-1], multiply(dh, weights.projection.T))
        dx, d_before, kept = cell.backward(saved, as_float(before), after, d_state, weights.vectors)
        dx = dx.astype(dtype)
        dp = cell.through(saved, dx.astype(jnp.float32), weights.vectors)
        d_read, (d_query, *terms) = ask_back(at, dx, attention, query)
        d_h = _times(multiply(dp, from_p), own.noise) + multiply(d_query, from_query)
        d_h = d_h if weights.projection is not None else d_h + d_before[-1]  # else the cell's own h is no output
        new = (*d_before[:-1], d_h), sums[0] + terms[0], sums[1] + terms[1]
        return new, _Back(dx, dh, d_query, d_read, kept)

    shapes = own.keys.shape, own.keys[:, 0].shape
    start = (zero_state(cell, weights, like), *(jnp.zeros_like(like, jnp.float32, shape=shape) for shape in shapes))
    carry, (back,) = sweep(step, start, length=like.shape[0], turned=[True], unroll=unroll, like=like)
    return back, carry[1], carry[2]


def _gradients(cell: Cell, fixed: _Fixed, tape: _Tape, back: _Back, sums: Sequence[Array], d_contexts: Array) -> _Fixed:
    """The cotangents of weights and of what is attended to: products over all steps, each made once."""
    vectors, saved, dx = fixed.weights.vectors, as_float(tape.saved), back.dx.astype(jnp.float32)
    dp = cell.through(saved, dx, vectors).astype(back.dx.dtype)
    (h,) = _before((tape.outputs,))
    projection = None
    if back.dh is not None:
        projection = sum_products(cell.emit(saved, tape.states, vectors), back.dh)
    d_vectors = {}
    if vectors:
        after = (*tape.states, tape.outputs.astype(jnp.float32))
        terms = cell.vector_terms(saved, as_float(back.kept), _before(after), after, dx, vectors)
        d_vectors = {name: term.sum(axis=(0, 1)) for name, term in terms.items()}
    d_bias = None if fixed.weights.bias is None else dx.sum(axis=(0, 1))
    d_weights = Weights(sum_products(_times(h, fixed.noise), dp), projection, d_vectors, d_bias)
    d_asking = Asking(
        query=sum_products(h, back.d_query),
        v=sums[1].sum(axis=0),
        context=sum_products(_times(tape.contexts, fixed.context_noise), back.dx),
    )
    d_contexts += _times(back.d_read, fixed.context_noise)
    attention = tape.weights.astype(d_contexts.dtype)
    d_values = jnp.einsum("tbs,tbd->bsd", attention, d_contexts, preferred_element_type=jnp.float32)
    d_keys = (sums[0] * fixed.asking.v).astype(fixed.keys.dtype)
    return _Fixed(d_weights, d_asking, d_keys, d_values.astype(fixed.values.dtype), None, None)
