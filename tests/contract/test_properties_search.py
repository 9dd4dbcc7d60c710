"""Properties of searches in drawn worlds: every prefix has log-probabilities of its own, and all outputs can be listed.

The world travels in the cache, so that one compiled search serves all of them. `SEQ2SEQ_JAX_EXAMPLES=2000` draws so
many.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from seq2seq_jax.decode.beam import Beam
from seq2seq_jax.decode.ctc_beam import prefix_beam
from seq2seq_jax.decode.loop import run_loop
from seq2seq_jax.decode.method import Rows
from seq2seq_jax.decode.ranking import Ranking
from seq2seq_jax.decode.sample import Draws
from seq2seq_jax.interfaces import StepResult
from seq2seq_jax.tasks.ctc import ctc_losses

_SPEC = importlib.util.spec_from_file_location(
    "ctc_reference", Path(__file__).parents[1] / "decode" / "ctc_reference.py"
)
reference = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(reference)

PAD, UNK, BOS, EOS = range(4)
IDS = {"bos_id": BOS, "eos_id": EOS, "pad_id": PAD}
VOCAB, STEPS = 6, 3  # tokens 1, 4 and 5 are words
WORDS = (UNK, 4, 5)
OUTPUTS = [
    *((*words, EOS) for n in range(STEPS) for words in itertools.product(WORDS, repeat=n)),
    *itertools.product(WORDS, repeat=STEPS),
]
"""Everything that can be said in so many tokens: ended, or cut off there."""
NODES = sum(VOCAB**t for t in range(STEPS))
RULES = {
    "plain": Ranking(stop="never"),
    "gnmt": Ranking(length="gnmt", length_penalty=0.6, stop="never"),
}
QUICKLY = {"xla_backend_optimization_level": 0}
WORLDS = st.builds(
    lambda seed, sharpness: draw_world(seed, sharpness), st.integers(0, 2**32 - 1), st.sampled_from([0.1, 1.0, 5.0])
)


def draw_world(seed: int, sharpness: float) -> np.ndarray:
    """Log-probabilities `[NODES, VOCAB]` after every prefix."""
    logits = sharpness * np.random.default_rng(seed).normal(size=(NODES, VOCAB))
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def find_node(prefix: tuple[int, ...]) -> int:
    """The place of a prefix in a world."""
    before = sum(VOCAB**t for t in range(len(prefix)))
    return before + functools.reduce(lambda n, token: n * VOCAB + token, prefix, 0)


def take_step(tokens: jax.Array, step: jax.Array, cache: dict[str, jax.Array]) -> StepResult:
    """One step through the world of each row; the node is counted within its level."""
    within = jnp.where(step == 0, 0, cache["within"] * VOCAB + tokens)
    first = jnp.asarray([sum(VOCAB**t for t in range(level)) for level in range(STEPS)])[step]
    log_probs = jnp.take_along_axis(cache["world"], (first + within)[:, None, None], axis=1)[:, 0]
    return StepResult(log_probs, None, {"world": cache["world"], "within": within})


@functools.cache
def compile_search(name: str, size: int, batch: int = 1):
    """`search(worlds [B, NODES, VOCAB])` by a beam of rules, or "greedy"."""
    method = Draws(samples=1, temperature=0.0, **IDS) if name == "greedy" else Beam(size, ranking=RULES[name], **IDS)
    rows = Rows(
        source_mask=jnp.ones((batch, 1), bool),
        row_mask=jnp.ones(batch, bool),
        max_lengths=jnp.full(batch, STEPS),
        min_lengths=jnp.zeros(batch, jnp.int32),
        numbers=jnp.arange(batch),
    )

    def search(worlds):
        cache = {"world": worlds, "within": jnp.zeros(batch, jnp.int32)}
        state = method.start(take_step, cache, rows, max_len=STEPS)
        return method.collect(run_loop(functools.partial(method.advance, take_step), state, STEPS))

    return jax.jit(search, compiler_options=QUICKLY)


def run(name: str, size: int, world: np.ndarray) -> list[tuple[tuple[int, ...], float, float]]:
    """Outputs with scores and log-probabilities, best first."""
    found = jax.device_get(compile_search(name, size)(jnp.asarray(world, jnp.float32)[None]))
    lengths = found.lengths[0]
    return [
        (tuple(found.tokens[0, n, :length].tolist()), float(found.scores[0, n]), float(found.log_probs[0, n]))
        for n, length in enumerate(lengths)
        if length
    ]


def score(world: np.ndarray, output: tuple[int, ...], name: str) -> tuple[float, float]:
    """Score and log-probability, float64."""
    total = sum(world[find_node(output[:t]), token] for t, token in enumerate(output))
    bases = {"plain": 1.0, "gnmt": ((5 + len(output)) / 6) ** 0.6}
    return total / bases[name], total


@given(WORLDS)
def test_a_beam_of_one_is_greedy_search(world):
    (greedy, *_), (beam, *_) = run("greedy", 1, world), run("plain", 1, world)
    best = ()
    while len(best) < STEPS and EOS not in best:
        allowed = np.where(np.isin(np.arange(VOCAB), (PAD, BOS)), -np.inf, world[find_node(best)])
        best += (int(allowed.argmax()),)
    assert greedy[0] == best
    np.testing.assert_allclose(greedy[2], score(world, best, "plain")[1], rtol=1e-5, atol=1e-5)
    assert beam[0] == best


@given(WORLDS, st.sampled_from(sorted(RULES)))
def test_a_beam_over_everything_is_enumeration_and_a_narrower_one_finds_nothing_better(world, name):
    behind = {output: output[-1] != EOS for output in OUTPUTS}  # what did not end is behind what did
    ranked = sorted(OUTPUTS, key=lambda output: (behind[output], -score(world, output, name)[0]))
    wide = run(name, len(OUTPUTS), world)
    assert {output for output, _, _ in wide} == set(OUTPUTS)
    best = score(world, ranked[0], name)[0]
    for size in (3, len(OUTPUTS)):
        found = run(name, size, world)
        for output, ours, log_prob in found:
            np.testing.assert_allclose((ours, log_prob), score(world, output, name), rtol=1e-5, atol=1e-5)
        assert len({output for output, _, _ in found}) == len(found)
        assert behind[found[0][0]] or found[0][1] <= best + 1e-5
        keys = [(behind[output], -ours) for output, ours, _ in found]
        assert keys == sorted(keys)
    np.testing.assert_allclose(wide[0][1], best, rtol=1e-5, atol=1e-5)


FRAMES, LABELS, SYMBOLS = 6, 4, 3
FRAME_COUNTS = st.integers(0, FRAMES)


def draw_frames(seed: int, sharpness: float) -> np.ndarray:
    """Logits `[FRAMES, SYMBOLS]`."""
    return (sharpness * np.random.default_rng(seed).normal(size=(FRAMES, SYMBOLS))).astype(np.float32)


@functools.cache
def compile_losses():
    def take(logits, mask, labels, label_mask):
        (total, both), gradient = jax.value_and_grad(
            lambda logits: (lambda found: (found[0].sum(), found))(ctc_losses(logits, mask, labels, label_mask)),
            has_aux=True,
        )(logits)
        return both, gradient

    return jax.jit(take, compiler_options=QUICKLY)


@functools.cache
def compile_prefix_beam():
    def search(log_probs, mask):
        return prefix_beam(log_probs, mask, size=130, eos_id=SYMBOLS)

    return jax.jit(search, compiler_options=QUICKLY)


DRAWN_FRAMES = st.builds(draw_frames, st.integers(0, 2**32 - 1), st.sampled_from([0.1, 1.0, 4.0]))


@given(DRAWN_FRAMES, FRAME_COUNTS, st.lists(st.integers(1, SYMBOLS - 1), max_size=LABELS))
def test_the_loss_of_ctc_is_the_sum_over_all_paths(logits, frames, labels):
    padded = np.where(np.arange(FRAMES)[:, None] < frames, logits, 1e9)[None]
    given_labels = np.full((1, LABELS), 2, np.int32)
    given_labels[0, : len(labels)] = labels
    masks = np.arange(FRAMES)[None] < frames, np.arange(LABELS)[None] < len(labels)
    (losses, possible), gradient = jax.device_get(compile_losses()(padded, masks[0], given_labels, masks[1]))
    log_probs = reference.normalise(logits[:frames])
    occupied, total = np.zeros((frames, SYMBOLS)), 0.0
    for path, probability in reference.list_paths(log_probs):
        if reference.collapse(path) == tuple(labels):
            total += probability
            occupied[np.arange(frames), list(path)] += probability
    assert bool(possible[0]) == (total > 0)
    wanted = -np.log(total) if total else 0.0
    np.testing.assert_allclose(losses[0], wanted, rtol=1e-5, atol=1e-5)
    assert np.all(gradient[0, frames:] == 0.0)
    if total:
        np.testing.assert_allclose(gradient[0, :frames], np.exp(log_probs) - occupied / total, rtol=1e-4, atol=2e-5)
    else:
        assert np.all(gradient == 0.0)


@given(DRAWN_FRAMES, FRAME_COUNTS)
def test_a_prefix_beam_with_room_for_all_lists_everything_that_can_be_spelt(logits, frames):
    log_probs = np.full((1, FRAMES, SYMBOLS), 7.0, np.float32)
    log_probs[0, :frames] = reference.normalise(logits[:frames])
    found = jax.device_get(compile_prefix_beam()(log_probs, np.arange(FRAMES)[None] < frames))
    wanted = reference.list_outputs(np.asarray(log_probs[0, :frames], np.float64))
    ours = {
        tuple(found.tokens[0, n, : length - 1].tolist()): float(found.scores[0, n])
        for n, length in enumerate(found.lengths[0])
        if length
    }
    assert ours.keys() == wanted.keys()
    for output, probability in wanted.items():
        np.testing.assert_allclose(ours[output], np.log(probability), rtol=1e-4, atol=1e-4)
    scores = [float(found.scores[0, n]) for n, length in enumerate(found.lengths[0]) if length]
    assert scores == sorted(scores, reverse=True)
