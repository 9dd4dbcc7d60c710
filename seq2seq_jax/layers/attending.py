"""A recurrent layer that attends before every step, as one loop with a backward pass written by hand.

              ┌────────────── h ◄──────────────┐
              ▼                                │        a  = attention(h Q, keys, values)
    query ► attention ► context a ► (*) ► + ► cell      x' = x + (a * noise) C
                                     x ──►┘             p  = h U

Step t asks with the output of step t - 1 (Bahdanau et al. 2015, 1409.0473, section 3.1; Wu et al. 2016, 1609.08144,
equation 4), so that attention and layer cannot be taken apart over time. The loop of the backward pass carries the
cotangents of the state and, of additive attention, those of the keys and, apart by rows, of v; it makes the hidden
layer again. The gradients of all kernels and of the values are single products after it, where `grad(lax.scan)` would
add to each of them at every step.

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
    """The weights between a layer and its attention, float32; without `query` and `v` a score is a product `h . k`."""

    query: Array | None  # [P, A]
    v: Array | None  # [A]
    context: Array  # [D, Z]: the rows of the layer's input kernel that meet the context


@struct.dataclass
class Attended:
    """What is attended to."""

    keys: Array  # [B, S, A], projected; A = P where a score is a product
    values: Array  # [B, S, D]
    mask: Array  # [B, S], True where real


def recur_attending(
    cell: Cell,
    projected: Float[Array, "T B Z"],
    weights: Weights,
    asking: Asking,
    attended: Attended,
    *,
    initial: State | None = None,
    noise: Float[Array, "B P"] | None = None,
    context_noise: Float[Array, "T B D"] | None = None,
    loop: Loop = PLAIN_LOOP,
) -> tuple[Float[Array, "T B P"], Float[Array, "T B D"], Float[Array, "T B S"]]:
    """Runs a layer over the whole target, its last output asking for the context that it reads.

    Args:
        cell: the equations of a step; its input's part must be a plain sum (no `cell.normalise`).
        projected: `[T, B, Z]`, input products of all steps; its dtype is that of products.
        weights: of the layer, float32.
        asking: kernels of query and context, and v, float32.
        attended: keys, values and their mask.
        initial: state before the first step, whose output asks first; `[B, width]` float32 each; None is zeros.
        noise: `[B, P]`, factors of the output on its way to the next step of the layer, though not to the attention;
            they get no gradient.
        context_noise: `[T, B, D]`, factors of the contexts that the layer itself reads; they get no gradient.
        loop: how it is run; of its choices only `unroll` is one here.

    Returns:
        Outputs `[T, B, P]` and contexts without noise `[T, B, D]`, in the dtype of the inputs, and the attention's
        weights `[T, B, S]` float32. Padding comes last: no step has a mask.
    """
    fixed = _Fixed(weights, asking, attended.keys, attended.values, noise, context_noise, initial)
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
    initial: State | None

    def cast(self, dtype: jnp.dtype) -> _Fixed:
        """All that products are made of in one dtype; vectors stay float32."""
        own, asking = self.weights, self.asking
        projection = None if own.projection is None else own.projection.astype(dtype)
        return _Fixed(
            Weights(own.recurrent.astype(dtype), projection, own.vectors, own.bias),
            jax.tree.map(lambda a: a.astype(dtype), asking),
            self.keys,
            self.values.astype(dtype),
            self.noise,
            self.context_noise,
            self.initial,
        )

    def first_state(self, cell: Cell, like: Array) -> State:
        """The state before the first step, float32."""
        return zero_state(cell, self.weights, like) if self.initial is None else as_float(self.initial)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _recur(cell: Cell, unroll: int, projected: Array, fixed: _Fixed, mask: Array) -> tuple[Array, Array, Array]:
    tape = _forward(cell, unroll, projected, fixed, mask, keep=False)
    return tape.outputs, tape.contexts, tape.weights


def _recur_fwd(cell: Cell, unroll: int, projected: Array, fixed: _Fixed, mask: Array) -> Any:
    tape = _forward(cell, unroll, projected, fixed, mask, keep=True)
    return (tape.outputs, tape.contexts, tape.weights), (fixed, tape)


def _recur_bwd(cell: Cell, unroll: int, kept: tuple[_Fixed, _Tape], cotangents: tuple[Array, Array, Array]) -> Any:
    fixed, tape = kept
    back, d_first, sums = _backward(cell, unroll, fixed, tape, cotangents)
    d_fixed = _gradients(cell, fixed, tape, back, sums, cotangents[1])
    return back.dx, d_fixed.replace(initial=None if fixed.initial is None else d_first), None


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
    d_query: Array | None  # [T, B, A], where a query is projected
    d_scores: Array | None  # [T, B, S], where a score is a product
    d_read: Array  # [T, B, D], of the contexts with their noise
    kept: Saved  # of the cell


def _times(a: Array, noise: Array | None) -> Array:
    return a if noise is None else a * noise.astype(a.dtype)


def _before(after: State, first: State) -> State:
    """What each step started from, `[T, B, H]` each."""
    return tuple(jnp.concatenate([b[None].astype(a.dtype), a[:-1]]) for a, b in zip(after, first, strict=True))


def _make_queries(h: Array, asking: Asking, dtype: jnp.dtype) -> Array:
    return h.astype(dtype) if asking.query is None else multiply(h, asking.query).astype(dtype)


def _score(queries: Array, keys: Array, v: Array | None) -> Array:
    """Scores `[B, S]` float32 of a query `[B, A]` for each row."""
    if v is None:
        return jnp.einsum("ba,bsa->bs", queries, keys, preferred_element_type=jnp.float32)
    return make_scores(queries[:, None], keys, v)[:, 0]


def _forward(cell: Cell, unroll: int, projected: Array, fixed: _Fixed, mask: Array, *, keep: bool) -> _Tape:
    """The loop ahead; without `keep` it leaves no more than is returned."""
    dtype, own = projected.dtype, fixed.cast(projected.dtype)
    weights, asking = own.weights, own.asking

    def step(n: Array, at: Sequence[Array], state: State, z: Array) -> tuple[State, _Tape]:
        h, factor = state[-1], read([own.context_noise], at)
        attention = masked_softmax(_score(_make_queries(h, asking, dtype), own.keys, asking.v), mask)
        context = jnp.einsum("bs,bsd->bd", attention.astype(dtype), own.values)
        x = add_bias(z, weights.bias) + multiply(_times(context, factor), asking.context)
        new, saved = cell.forward(x, multiply(_times(h, own.noise), weights.recurrent), state, weights.vectors)
        if weights.projection is not None:
            new = (*new[:-1], multiply(new[-1], weights.projection))
        more = (new[:-1], jax.tree.map(lambda a: a.astype(dtype), saved)) if keep else ((), ())
        return new, _Tape(new[-1].astype(dtype), context, attention, *more)

    _, (tape,) = sweep(
        step,
        own.first_state(cell, projected),
        length=projected.shape[0],
        turned=[False],
        unroll=unroll,
        like=projected,
        inputs=[projected],
    )
    return tape


def _backward(
    cell: Cell, unroll: int, fixed: _Fixed, tape: _Tape, cotangents: tuple[Array, Array, Array]
) -> tuple[_Back, State, tuple[Array, ...]]:
    """The loop back; the cotangent of the first state; and the sums that it carries of additive attention.

    They are float32: of the keys (still to be multiplied by v), and of v by rows.
    """
    like, dtype, own = tape.outputs, tape.outputs.dtype, fixed.cast(tape.outputs.dtype)
    weights, asking = own.weights, own.asking
    from_p, from_x = weights.recurrent.T, asking.context.T
    states, first = (*tape.states, tape.outputs), own.first_state(cell, like)
    first = (*first[:-1], first[-1].astype(dtype))
    queries = _make_queries(tape.outputs, asking, dtype)  # what each output asks at the step after it
    first_query = _make_queries(first[-1], asking, dtype)

    def ask_back(at: Sequence[Array], dx: Array, attention: Array, query: Array) -> tuple[Array, _Asked]:
        """Through the context: its cotangent with noise, and what is further back."""
        d_read = multiply(dx, from_x).astype(dtype)
        factor, d_context, d_weights = read([(own.context_noise, *cotangents[1:])], at)
        d_context += _times(d_read, factor)
        d_weights += jnp.einsum("bd,bsd->bs", d_context, own.values, preferred_element_type=jnp.float32)
        return d_read, _ask_back(asking, own.keys, query, softmax_gradient(attention, d_weights))

    def step(n: Array, at: Sequence[Array], carry: tuple[State, tuple[Array, ...]], x: None) -> tuple[Any, _Back]:
        d_state, sums = carry
        saved, after, attention, d_output = as_float(read([(tape.saved, states, tape.weights, cotangents[0])], at))
        earlier = read([(states, queries)], [jnp.maximum(at[0] - 1, 0)])
        before, query = jax.tree.map(lambda a, b: jnp.where(at[0] == 0, b, a), earlier, (first, first_query))
        d_state, dh = (*d_state[:-1], d_state[-1] + d_output), None
        if weights.projection is not None:
            dh = d_state[-1].astype(dtype)
            d_state = (*d_state[:-1], multiply(dh, weights.projection.T))
        dx, d_before, kept = cell.backward(saved, as_float(before), after, d_state, weights.vectors)
        dx = dx.astype(dtype)
        dp = cell.through(saved, dx.astype(jnp.float32), weights.vectors)
        d_read, asked = ask_back(at, dx, attention, query)
        d_h = _times(multiply(dp, from_p), own.noise) + asked.d_h
        d_h = d_h if weights.projection is not None else d_h + d_before[-1]  # else the cell's own h is no output
        new = (*d_before[:-1], d_h), tuple(a + b for a, b in zip(sums, asked.terms, strict=True))
        return new, _Back(dx, dh, asked.d_query, asked.d_scores, d_read, kept)

    shapes = () if asking.v is None else (own.keys.shape, own.keys[:, 0].shape)
    start = zero_state(cell, weights, like), tuple(jnp.zeros_like(like, jnp.float32, shape=shape) for shape in shapes)
    carry, (back,) = sweep(step, start, length=like.shape[0], turned=[True], unroll=unroll, like=like)
    return back, *carry


@struct.dataclass
class _Asked:
    """What a step of the loop back gives to the one that asked."""

    d_h: Array  # [B, P] float32
    d_query: Array | None
    d_scores: Array | None
    terms: tuple[Array, ...]  # of the sums of additive attention


def _ask_back(asking: Asking, keys: Array, query: Array, d_scores: Array) -> _Asked:
    """From the cotangents of scores `[B, S]` to those of the output that asked with `query`."""
    dtype = query.dtype
    if asking.query is None or asking.v is None:
        d_scores = d_scores.astype(dtype)
        d_h = jnp.einsum("bs,bsa->ba", d_scores, keys, preferred_element_type=jnp.float32)
        return _Asked(d_h, None, d_scores, ())
    terms = score_gradients(query[:, None], keys, d_scores[:, None])
    d_query = (terms[0][:, 0] * asking.v.astype(jnp.float32)).astype(dtype)
    return _Asked(multiply(d_query, asking.query.T), d_query, None, terms[1:])


def _gradients(cell: Cell, fixed: _Fixed, tape: _Tape, back: _Back, sums: tuple[Array, ...], d_contexts: Array) -> Any:
    """The cotangents of all but the first state: products over all steps, each made once."""
    vectors, saved, dx = fixed.weights.vectors, as_float(tape.saved), back.dx.astype(jnp.float32)
    dp = cell.through(saved, dx, vectors).astype(back.dx.dtype)
    first = fixed.first_state(cell, tape.outputs)
    (h,) = _before((tape.outputs,), first[-1:])
    projection = None
    if back.dh is not None:
        projection = sum_products(cell.emit(saved, tape.states, vectors), back.dh)
    d_vectors = {}
    if vectors:
        after = (*tape.states, tape.outputs.astype(jnp.float32))
        terms = cell.vector_terms(saved, as_float(back.kept), _before(after, first), after, dx, vectors)
        d_vectors = {name: term.sum(axis=(0, 1)) for name, term in terms.items()}
    d_bias = None if fixed.weights.bias is None else dx.sum(axis=(0, 1))
    d_weights = Weights(sum_products(_times(h, fixed.noise), dp), projection, d_vectors, d_bias)
    d_context = sum_products(_times(tape.contexts, fixed.context_noise), back.dx)
    if fixed.asking.v is None or back.d_query is None:
        d_asking = Asking(None, None, d_context)
        d_keys = jnp.einsum("tbs,tba->bsa", back.d_scores, h, preferred_element_type=jnp.float32)
    else:
        d_asking = Asking(sum_products(h, back.d_query), sums[1].sum(axis=0), d_context)
        d_keys = sums[0] * fixed.asking.v
    d_contexts += _times(back.d_read, fixed.context_noise)
    attention = tape.weights.astype(d_contexts.dtype)
    d_values = jnp.einsum("tbs,tbd->bsd", attention, d_contexts, preferred_element_type=jnp.float32)
    d_keys, d_values = d_keys.astype(fixed.keys.dtype), d_values.astype(fixed.values.dtype)
    return _Fixed(d_weights, d_asking, d_keys, d_values, None, None, None)
