"""From models to the step function that a search runs: one model, an ensemble, a fusion with a language model.

    inputs ──▶ encode ──▶ held (memories: read, never rewritten) ──▶ make_step ──▶ step(tokens, clock, cache)
                            └────▶ init_cache ──▶ cache (rewritten, one a hypothesis) ───▲

A `Step` is all that a search knows of a model. What it closes over is the same at every step and for every beam;
what `constraints.constrain` puts around it is a step again. Also here: a model's own score of given outputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jax import lax

from seq2seq_jax.interfaces import Array, Cache, Memory, PyTree, QuickSteps, Step, StepResult


@struct.dataclass
class Constraints:
    """What the outputs of each row must have and must not have, as tokens; a width of 0 asks nothing, of any row.

    A phrase of length 0 only fills. See `constraints.constrain` for what each of them does.
    """

    prefix: Array  # [B, P] int32, the first tokens of the output
    prefix_lengths: Array  # [B] int32
    must: Array  # [B, C, M] int32, phrases that have to appear
    must_lengths: Array  # [B, C] int32
    must_not: Array  # [B, N, L] int32, phrases that may not
    must_not_lengths: Array  # [B, N] int32


@struct.dataclass
class Inputs:
    """What is known of each row before its search."""

    source: Array  # [B, S] int32; of speech [B, S, W] float32
    source_mask: Array  # [B, S] bool
    constraints: Constraints | None = None
    max_lengths: Array | None = None  # [B] int32, longest output, eos included; read by what must fit into it


@struct.dataclass
class Prepared:
    """Parameters with what a decoder's steps read of them, so that no step (and no call) has to bring it into shape.

    The parameters are those that were given: only the weights take memory of their own.
    """

    params: PyTree
    weights: PyTree  # what the model's `step_weights` returned; None where it has none


@dataclasses.dataclass(frozen=True)
class Decoder:
    """How one or several models become a step: pure functions of their parameters.

    Attributes:
      encode: `(params, inputs) -> held`: all that is read and not rewritten while a row is searched; leaves `[B, ...]`.
      init_cache: `(params, held, max_len) -> cache` before the first step, with room for `max_len` steps; leaves
        `[B, ...]`.
      make_step: `(params, held) -> step`.
      attended: `held -> mask [B, S]` of what the steps' attention is over; None: of the source.
      prepare: `params -> params` that all of these take as well, and are quicker with where they are called again;
        compiles what it needs itself, so that the given arrays are shared.
    """

    encode: Callable[[PyTree, Inputs], PyTree]
    init_cache: Callable[[PyTree, PyTree, int], Cache]
    make_step: Callable[[PyTree, PyTree], Step]
    prepare: Callable[[PyTree], PyTree] = lambda params: params
    attended: Callable[[PyTree], Array | None] = lambda held: None


def seq2seq_decoder(model: nn.Module, *, vocab_axes: tuple[str, ...] = (), vocab_size: int | None = None) -> Decoder:
    """The decoder of one model that keeps the `Seq2Seq` protocol; for the arguments see `seq2seq_step`."""

    def encode(params: PyTree, inputs: Inputs) -> PyTree:
        variables = {"params": _plain(params)}
        return model.apply(variables, inputs.source, inputs.source_mask, train=False, method="encode")

    def init_cache(params: PyTree, held: PyTree, max_len: int) -> Cache:
        return model.apply({"params": _plain(params)}, held, max_len, method="init_cache")

    def make_step(params: PyTree, held: PyTree) -> Step:
        return seq2seq_step(model, params, held, vocab_axes=vocab_axes, vocab_size=vocab_size)

    def prepare(params: PyTree) -> PyTree:
        return Prepared(params, _compiled_weights(model, params) if isinstance(model, QuickSteps) else None)

    return Decoder(encode, init_cache, make_step, prepare, attended=lambda held: held.mask)


def _plain(params: PyTree) -> PyTree:
    return params.params if isinstance(params, Prepared) else params


def _step_weights(model: nn.Module, params: PyTree) -> PyTree:
    """What the model's steps are told besides; None where they are not told anything."""
    has_weights = isinstance(model, QuickSteps)
    return model.apply({"params": params}, method="step_weights") if has_weights else None


_compiled_weights = jax.jit(_step_weights, static_argnums=0)  # compiled once for all models that are equal


def language_model_decoder(
    model: nn.Module, *, vocab_axes: tuple[str, ...] = (), vocab_size: int | None = None
) -> Decoder:
    """The decoder of a `Seq2Seq` that reads nothing of its source (`models/language_model.py`).

    Its memory is that of a single masked position, so that nothing in it grows with the source.
    """
    decoder = seq2seq_decoder(model, vocab_axes=vocab_axes, vocab_size=vocab_size)

    def encode(params: PyTree, inputs: Inputs) -> PyTree:
        source = jnp.zeros_like(inputs.source_mask, jnp.int32, shape=(inputs.source.shape[0], 1))
        return decoder.encode(params, Inputs(source, source > 0))

    return dataclasses.replace(decoder, encode=encode)


def ensemble(
    decoders: Sequence[Decoder],
    weights: Sequence[float] | None = None,
    *,
    average: str = "log",
    vocab_axes: tuple[str, ...] = (),
) -> Decoder:
    """Several models of one vocabulary that search together; they may be of different architectures.

        "log"          p(y) = 1/Z * prod_m p_m(y)^w_m      the geometric mean, renormalised over the vocabulary
        "arithmetic"   p(y) = sum_m w_m p_m(y)             (Sutskever et al. 2014, GNMT: what is mostly meant)

    With the weights as shares: they are divided by their sum. Both are distributions, so that scores stay
    log-probabilities. The attention is the mean of the members that attend, weighted alike. The parameters are a
    tuple, one a member; so are what is held and the caches.

    Args:
      decoders: The members.
      weights: One a member, above 0; equal if absent.
      average: "log" or "arithmetic".
      vocab_axes: The mesh axes over which the vocabulary is split, for all members alike.

    Raises:
      ValueError: the weights are not one a member and above 0, or the average is none of the two.
    """
    shares = _make_shares(len(decoders), weights)
    if average not in ("log", "arithmetic"):
        raise ValueError(f"`average` must be 'log' or 'arithmetic', but is {average!r} instead.")

    def encode(params: PyTree, inputs: Inputs) -> PyTree:
        return tuple(each.encode(own, inputs) for each, own in zip(decoders, params, strict=True))

    def init_cache(params: PyTree, held: PyTree, max_len: int) -> Cache:
        members = zip(decoders, params, held, strict=True)
        return tuple(each.init_cache(own, kept, max_len) for each, own, kept in members)

    def make_step(params: PyTree, held: PyTree) -> Step:
        steps = [each.make_step(own, kept) for each, own, kept in zip(decoders, params, held, strict=True)]

        def step_fn(tokens: Array, step: Array, cache: Cache) -> StepResult:
            results = [each(tokens, step, own) for each, own in zip(steps, cache, strict=True)]
            _check_columns(results)
            return StepResult(
                log_probs=_average([each.log_probs for each in results], shares, average, vocab_axes),
                attention=_average_attention(results, shares),
                cache=tuple(each.cache for each in results),
                token_ids=results[0].token_ids,
            )

        return step_fn

    def prepare(params: PyTree) -> PyTree:
        return tuple(each.prepare(own) for each, own in zip(decoders, params, strict=True))

    return Decoder(encode, init_cache, make_step, prepare, attended=lambda held: decoders[0].attended(held[0]))


def _make_shares(members: int, weights: Sequence[float] | None) -> tuple[float, ...]:
    if members < 1:
        raise ValueError("`decoders` must have at least one member, but has none.")
    weights = [1.0] * members if weights is None else list(weights)
    if len(weights) != members or not all(0 < weight < float("inf") for weight in weights):
        raise ValueError(f"`weights` must be {members} numbers above 0, one a member, but are {weights} instead.")
    return tuple(float(weight) / float(sum(weights)) for weight in weights)


def _check_columns(results: Sequence[StepResult]) -> None:
    """Members must agree on what column is what token; the order of tokens is the callers' promise."""
    widths = {each.log_probs.shape[-1] for each in results}
    if len(widths) > 1 or len({each.token_ids is None for each in results}) > 1:
        raise ValueError(f"The members must have one vocabulary, split alike, but have {sorted(widths)} columns.")


def _average(parts: Sequence[Array], shares: tuple[float, ...], average: str, vocab_axes: tuple[str, ...]) -> Array:
    """The mean distribution's log-probabilities `[B, V]`, float32."""
    if len(parts) == 1:
        return parts[0]
    if average == "log":
        mean = jnp.sum(jnp.stack([share * part for share, part in zip(shares, parts, strict=True)]), axis=0)
        return normalise_logits(mean, vocab_axes)
    shifted = jnp.stack([part + np.float32(np.log(share)) for share, part in zip(shares, parts, strict=True)])
    return jax.nn.logsumexp(shifted, axis=0)


def _average_attention(results: Sequence[StepResult], shares: tuple[float, ...]) -> Array | None:
    attending = [(share, each.attention) for share, each in zip(shares, results, strict=True)]
    attending = [(share, weights) for share, weights in attending if weights is not None]
    total = sum(share for share, _ in attending)
    parts = [share / total * weights for share, weights in attending if weights is not None]
    return sum(parts[1:], start=parts[0]) if parts else None


def fuse(decoder: Decoder, language_model: Decoder, weight: float) -> Decoder:
    """Shallow fusion (Gulcehre et al. 2015, arXiv:1503.03535, section 4.1): log p(y|x) + weight * log p_lm(y).

    The sum is not normalised (as in the paper): what a search then calls log-probabilities are these sums, none
    of them above 0. The parameters are a pair, the translation model's first.

    Raises:
      ValueError: the weight is under 0.
    """
    if not 0 <= weight < float("inf"):
        raise ValueError(f"`weight` must be at least 0, but is {weight} instead.")

    def encode(params: PyTree, inputs: Inputs) -> PyTree:
        return decoder.encode(params[0], inputs), language_model.encode(params[1], inputs)

    def init_cache(params: PyTree, held: PyTree, max_len: int) -> Cache:
        own = decoder.init_cache(params[0], held[0], max_len)
        return own, language_model.init_cache(params[1], held[1], max_len)

    def make_step(params: PyTree, held: PyTree) -> Step:
        translate, continue_text = decoder.make_step(params[0], held[0]), language_model.make_step(params[1], held[1])

        def step_fn(tokens: Array, step: Array, cache: Cache) -> StepResult:
            own, other = translate(tokens, step, cache[0]), continue_text(tokens, step, cache[1])
            _check_columns([own, other])
            # A padding column is at -inf in both, and 0 * -inf would be no number.
            fused = jnp.where(other.log_probs > -jnp.inf, own.log_probs + weight * other.log_probs, -jnp.inf)
            return own.replace(log_probs=fused, cache=(own.cache, other.cache))  # type: ignore[attr-defined]

        return step_fn

    def prepare(params: PyTree) -> PyTree:
        return decoder.prepare(params[0]), language_model.prepare(params[1])

    return Decoder(encode, init_cache, make_step, prepare, attended=lambda held: decoder.attended(held[0]))


def seq2seq_step(
    model: nn.Module,
    params: PyTree,
    memory: Memory,
    *,
    vocab_axes: tuple[str, ...] = (),
    vocab_size: int | None = None,
) -> Step:
    """The step function of a sequence-to-sequence model for the examples in `memory`.

    Args:
      model: A linen module that keeps the `Seq2Seq` protocol.
      params: Its parameters, `Prepared` or not; with `vocab_axes` the output projection's are this device's part.
      memory: What its `encode` returned, leaves `[B, ...]`.
      vocab_axes: The mesh axes over which the output projection is split, in parts of one width, in the
        order of the tokens; for a search inside `jax.shard_map`.
      vocab_size: The true number of tokens where the projection has more columns; None if it has not.

    Returns:
      `step(tokens [B], step [B], cache) -> StepResult`; the log-probabilities are taken in float32.
    """
    variables = {"params": _plain(params)}
    weights = params.weights if isinstance(params, Prepared) else _step_weights(model, params)
    more = () if weights is None else (weights,)

    def step_fn(tokens: Array, step: Array, cache: Cache) -> StepResult:
        output: Any = model.apply(variables, tokens, step, memory, cache, *more, method="decode_step")
        logits: Any = model.apply(variables, output.hidden, method="project")
        logits = logits.astype(jnp.float32)
        width, parts = logits.shape[-1], 1
        columns = jnp.arange(width, dtype=jnp.int32)
        if vocab_axes:
            parts = lax.axis_size(vocab_axes)
            columns = columns + lax.axis_index(vocab_axes) * width
        if vocab_size is not None and vocab_size < parts * width:
            logits = jnp.where(columns < vocab_size, logits, -jnp.inf)
        return StepResult(
            log_probs=normalise_logits(logits, vocab_axes),
            attention=output.attention,
            cache=output.cache,
            token_ids=columns if vocab_axes else None,
        )

    return step_fn


def normalise_logits(logits: Array, vocab_axes: tuple[str, ...]) -> Array:
    """The log-softmax of `[B, V]` over a vocabulary that may be split over mesh axes."""
    if not vocab_axes:
        # One number a row comes off the logits, so that whoever reads them takes it off as they are read:
        # `jax.nn.log_softmax` subtracts twice, and what stands between is a second copy of the whole vocabulary.
        return logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    # The largest is only a shift: without its gradient the result has the same one.
    largest = lax.pmax(lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)), vocab_axes)
    shifted = logits - largest
    return shifted - jnp.log(lax.psum(jnp.sum(jnp.exp(shifted), axis=-1, keepdims=True), vocab_axes))


def sequence_log_probs(logits: Array, targets: Array, mask: Array) -> Array:
    """The log-probability of given outputs under teacher forcing, summed over each row.

    Equals the `log_probs` of a search whose hypotheses are the targets (eos included).

    Args:
      logits: `[B, T, V]`, position t predicting target t.
      targets: `[B, T]` int32.
      mask: `[B, T]` bool, True where a target counts.

    Returns:
      `[B]` float32.
    """
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    chosen = jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]  # [B, T]
    return jnp.sum(jnp.where(mask, chosen, 0.0), axis=-1)
