"""N-gram language models as arrays, and as a decoder that `steps.fuse` adds to another one.

A state is the longest part of what was said that the model knows, an index: 0 for nothing, then every n-gram below the
longest. Of a state there are:

    backoff, and the state without its first word          [N]
    the words that it lists: a range of [E]                 with their log-probabilities and the states they lead to
    or, where [N, W] is small: all words                    the same, with the backing off done

W are those words of the model that are tokens of ours, and <unk>: all tokens that the model does not list.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from seq2seq_jax.decode.arpa import BOS, EOS, UNKNOWN, Arpa
from seq2seq_jax.decode.steps import Decoder, Inputs
from seq2seq_jax.errors import UserError
from seq2seq_jax.interfaces import Array, Step, StepResult

DENSE_UP_TO = 2**24  # entries, 64 MiB for each of two tables


@struct.dataclass
class NGram:
    """A model over the tokens of one vocabulary; what the decoder takes as its parameters."""

    columns: Array  # [V] int32, the word of each token; -1 for those that are never predicted
    start: Array  # [] int32, the state after <s>
    words: Table | Lists


@struct.dataclass
class Table:
    """All words in all states."""

    log_probs: Array  # [N, W] float32
    after: Array  # [N, W] int32, the states that follow


@struct.dataclass
class Lists:
    """The words that each state lists; state 0 lists all of them."""

    top_log_probs: Array  # [W] float32, of state 0
    top_after: Array  # [W] int32
    backoff: Array  # [N] float32
    shorter: Array  # [N] int32, the state without its first word
    first: Array  # [N + 1] int32, where the words of each state begin; state 0 has none here
    words: Array  # [E] int32, in order within a state
    log_probs: Array  # [E] float32
    after: Array  # [E] int32
    order: int = struct.field(pytree_node=False)
    most: int = struct.field(pytree_node=False)  # words of a state


def make_ngram(
    arpa: Arpa,
    pieces: Sequence[str],
    *,
    bos_id: int,
    eos_id: int,
    pad_id: int,
    dense_up_to: int = DENSE_UP_TO,
) -> NGram:
    """A model over a vocabulary.

    Args:
      arpa: The model; its words are pieces of the vocabulary.
      pieces: Every token as the model's file writes it, in their order.
      bos_id, eos_id: The tokens that are its <s> and </s>.
      pad_id: Never predicted, as bos.
      dense_up_to: The largest table, in entries.

    Raises:
      UserError: the model lists none of the pieces, or no end.
    """
    special = {bos_id, eos_id, pad_id}
    listed = [number for number, piece in enumerate(pieces) if number not in special and (piece,) in arpa.words]
    if not listed:
        example = next((piece for number, piece in enumerate(pieces) if number not in special), "")
        raise UserError(
            f"{arpa.name}: lists none of the vocabulary's {len(pieces)} pieces (such as {example!r}); make it of text "
            "that is cut into these pieces."
        )
    if (EOS,) not in arpa.words:
        raise UserError(f"{arpa.name}: has no {EOS}; make it of text by sentences.")
    own = [piece for piece in (pieces[number] for number in listed) if piece not in (BOS, EOS, UNKNOWN)]
    words = {word: number for number, word in enumerate(dict.fromkeys([UNKNOWN, EOS, *own]))}
    columns = np.array([words.get(piece, 0) for piece in pieces], np.int32)
    columns[[bos_id, pad_id]] = -1
    columns[eos_id] = words[EOS]
    arpa = _complete(arpa)
    states = _list_states(arpa, words)
    lists = _make_lists(arpa, words, states)
    small = len(states) * len(words) <= dense_up_to
    start = states.get((BOS,), 0)
    return NGram(jnp.asarray(columns), jnp.asarray(start, jnp.int32), _fill_table(lists) if small else lists)


def find_missing(arpa: Arpa, pieces: Sequence[str]) -> list[str]:
    """The pieces that the model does not list: they are its <unk>."""
    return [piece for piece in pieces if (piece,) not in arpa.words]


def _complete(arpa: Arpa) -> Arpa:
    """The same model, which also lists the beginnings of all n-grams that it lists (as nearly all files do)."""
    grams = [dict(own) for own in arpa.grams]
    for length in range(arpa.order, 1, -1):
        for gram in grams[length - 1]:
            begins = gram[:-1]
            if begins not in grams[length - 2]:
                grams[length - 2][begins] = arpa.score_word(begins[:-1], begins[-1]), 0.0
    return dataclasses.replace(arpa, grams=tuple(grams))


def _list_states(arpa: Arpa, words: dict[str, int]) -> dict[tuple[str, ...], int]:
    """Every n-gram that may be a state: of words of ours alone, but for <s> as the first one; no end in it."""
    states: dict[tuple[str, ...], int] = {(): 0}
    for grams in arpa.grams[:-1]:
        for gram in grams:
            if EOS not in gram and (gram[0] == BOS or gram[0] in words) and all(word in words for word in gram[1:]):
                states[gram] = len(states)
    return states


def _find_state(gram: tuple[str, ...], states: dict[tuple[str, ...], int]) -> int:
    """The longest end of an n-gram that is a state."""
    while gram not in states:
        gram = gram[1:]
    return states[gram]


def _make_lists(arpa: Arpa, words: dict[str, int], states: dict[tuple[str, ...], int]) -> Lists:
    backoff, shorter = np.zeros(len(states), np.float32), np.zeros(len(states), np.int32)
    for gram, state in states.items():
        if gram:
            backoff[state] = arpa.grams[len(gram) - 1][gram][1]
            shorter[state] = _find_state(gram[1:], states)
    top = np.array([arpa.words.get((word,), (arpa.unknown, 0.0))[0] for word in words], np.float32)
    top_after = np.array([_find_state((word,), states) for word in words], np.int32)
    entries = [
        (states[gram[:-1]], words[gram[-1]], log_prob, _find_state(gram[-(arpa.order - 1) :], states))
        for grams in arpa.grams[1:]
        for gram, (log_prob, _) in grams.items()
        if gram[-1] in words and gram[:-1] in states
    ]
    entries.sort(key=lambda entry: entry[:2])
    numbers = np.array([entry[0] for entry in entries], np.int64)
    counts = np.bincount(numbers, minlength=len(states)) if entries else np.zeros(len(states), np.int64)
    return Lists(
        top_log_probs=jnp.asarray(top),
        top_after=jnp.asarray(top_after),
        backoff=jnp.asarray(backoff),
        shorter=jnp.asarray(shorter),
        first=jnp.asarray(np.concatenate([[0], np.cumsum(counts)]), jnp.int32),
        words=jnp.asarray([entry[1] for entry in entries], jnp.int32),
        log_probs=jnp.asarray([entry[2] for entry in entries], jnp.float32),
        after=jnp.asarray([entry[3] for entry in entries], jnp.int32),
        order=arpa.order,
        most=int(counts.max(initial=0)),
    )


def _fill_table(lists: Lists) -> Table:
    """The same with the backing off done, state by state; a state comes after the shorter one."""
    kept = jax.tree.map(np.asarray, lists)
    log_probs = np.empty((len(kept.backoff), len(kept.top_log_probs)), np.float32)
    after = np.empty(log_probs.shape, np.int32)
    log_probs[0], after[0] = kept.top_log_probs, kept.top_after
    for state in range(1, len(log_probs)):
        shorter, own = kept.shorter[state], slice(kept.first[state], kept.first[state + 1])
        log_probs[state], after[state] = log_probs[shorter] + kept.backoff[state], after[shorter]
        log_probs[state, kept.words[own]], after[state, kept.words[own]] = kept.log_probs[own], kept.after[own]
    return Table(jnp.asarray(log_probs), jnp.asarray(after))


def ngram_decoder(*, vocab_axes: tuple[str, ...] = (), width: int | None = None) -> Decoder:
    """The decoder of an n-gram model, for `steps.fuse`; its parameters are an `NGram`, its cache is the state.

    Its log-probabilities are those of the file, natural; tokens that are never predicted are at -inf. They sum to one
    where every word of the file is one token.

    Args:
      vocab_axes: The mesh axes over which the other decoder's vocabulary is split.
      width: The columns of the other decoder, on all devices together, where there are more than tokens.
    """

    def encode(params: NGram, inputs: Inputs) -> Array:
        return jnp.zeros_like(inputs.source_mask, jnp.int32, shape=inputs.source_mask.shape[:1])

    def init_cache(params: NGram, held: Array, max_len: int) -> Array:
        return held

    def make_step(params: NGram, held: Array) -> Step:
        columns, token_ids = params.columns, None
        if width is not None:
            columns = jnp.pad(columns, (0, width - len(columns)), constant_values=-1)
        if vocab_axes:
            share = len(columns) // lax.axis_size(vocab_axes)
            token_ids = lax.axis_index(vocab_axes) * share + jnp.arange(share, dtype=jnp.int32)
            columns = columns[token_ids]

        def step_fn(tokens: Array, step: Array, cache: Array) -> StepResult:
            word = params.columns[jnp.minimum(tokens, len(params.columns) - 1)]
            state = jnp.where(step == 0, params.start, find_next(params.words, cache, jnp.maximum(word, 0)))
            found = find_log_probs(params.words, state)[:, jnp.maximum(columns, 0)]
            return StepResult(jnp.where(columns < 0, -jnp.inf, found), None, state, token_ids)

        return step_fn

    return Decoder(encode, init_cache, make_step)


def find_log_probs(words: Table | Lists, states: Array) -> Array:
    """Log-probabilities `[B, W]` of all words in states `[B]`."""
    if isinstance(words, Table):
        return words.log_probs[states]
    chain = _back_off(words, states)
    rows = jnp.arange(len(states))[:, None]
    found = jnp.broadcast_to(words.top_log_probs, (len(states), len(words.top_log_probs)))
    for state in reversed(chain):
        places = words.first[state][:, None] + jnp.arange(words.most)
        listed = places < words.first[state + 1][:, None]
        places = jnp.where(listed, places, 0)
        target = jnp.where(listed, words.words[places], found.shape[1])  # beyond the end: dropped
        found = (found + words.backoff[state][:, None]).at[rows, target].set(words.log_probs[places], mode="drop")
    return found


def find_next(words: Table | Lists, states: Array, taken: Array) -> Array:
    """The states `[B]` that follow where a word `[B]` was taken."""
    if isinstance(words, Table):
        return words.after[states, taken]
    after = words.top_after[taken]
    for state in reversed(_back_off(words, states)):
        place, listed = _search(words, state, taken)
        after = jnp.where(listed, words.after[place], after)
    return after


def _back_off(words: Lists, states: Array) -> list[Array]:
    """The states that are read, each without the first word of the one before; the last ones may be state 0."""
    chain = [states] if words.most else []
    while chain and len(chain) < words.order - 1:
        chain.append(words.shorter[chain[-1]])
    return chain


def _search(words: Lists, state: Array, taken: Array) -> tuple[Array, Array]:
    """Where a state lists a word, by halving, and whether it does."""
    low, end = words.first[state], words.first[state + 1]
    high = end
    for _ in range(words.most.bit_length()):
        middle = (low + high) // 2
        later = (low < high) & (words.words[middle] < taken)
        low, high = jnp.where(later, middle + 1, low), jnp.where(later, high, middle)
    place = jnp.minimum(low, len(words.words) - 1)
    return place, (low < end) & (words.words[place] == taken)
