"""Best paths and what they spell, against a plain definition and the published line."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from seq2seq_jax.decode.ctc import best_path, frame_log_probs, spell

_SPEC = importlib.util.spec_from_file_location("ctc_reference", Path(__file__).with_name("ctc_reference.py"))
reference = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(reference)

EOS, VOCAB = 9, 5


def make_log_probs(path):
    """Frames whose best labels are those of a path."""
    noise = np.random.default_rng(0).uniform(size=(len(path), VOCAB))
    logits = noise + 2 * np.eye(VOCAB)[list(path)]
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


PATHS = [(0, 1, 1, 0, 1, 2, 2), (3, 3, 3, 3, 3, 3, 3), (0, 0, 0, 0), (1, 2, 3, 4, 0, 4), (2,), ()]


def test_the_best_path_spells_what_it_should_and_says_when():
    longest = max(map(len, PATHS))
    log_probs = np.zeros((len(PATHS), longest, VOCAB), np.float32)
    for row, path in enumerate(PATHS):
        log_probs[row, : len(path)] = make_log_probs(path)
        log_probs[row, len(path) :, 4] = 7.0  # padding
    mask = jnp.asarray(np.arange(longest) < np.array([len(path) for path in PATHS])[:, None])
    found, frames = jax.jit(best_path, static_argnames="eos_id")(jnp.asarray(log_probs), mask, eos_id=EOS)
    for row, path in enumerate(PATHS):
        wanted = [*reference.collapse(path), EOS]
        tokens = np.asarray(found.tokens[row, 0])
        assert tokens.tolist() == wanted + [0] * (longest + 1 - len(wanted))
        assert int(found.lengths[row, 0]) == len(wanted)
        best = sum(log_probs[row, place, label] for place, label in enumerate(path))
        assert float(found.scores[row, 0]) == pytest.approx(best, rel=1e-5)
        for number, (first, last) in enumerate(np.asarray(frames[row, 0])):
            if number < len(wanted) - 1:
                assert set(path[first : last + 1]) == {wanted[number]}
                assert first == 0 or path[first - 1] != wanted[number]
                assert last == len(path) - 1 or path[last + 1] != wanted[number]
            else:
                assert first == last == -1
    assert found.finished.all()


def test_labels_at_their_frames_become_outputs():
    emitted = jnp.array([[[0, 3, 0, 3], [0, 0, 0, 0]]])
    tokens, lengths = spell(emitted, EOS)
    assert tokens.tolist() == [[[3, 3, EOS, 0, 0], [EOS, 0, 0, 0, 0]]]
    assert lengths.tolist() == [[3, 1]]


def test_frames_are_distributions_over_what_they_may_have():
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, VOCAB + 1)), jnp.float32)
    mask = jnp.array([[True, True, True], [True, False, False]])
    log_probs = np.asarray(frame_log_probs(logits, mask, forbidden=(2,), vocab_size=VOCAB))
    np.testing.assert_allclose(np.exp(log_probs).sum(-1), 1.0, rtol=1e-6)
    assert (log_probs[..., [2, VOCAB]] == -np.inf).all()
    assert (log_probs[1, 1:, 0] == 0.0).all()


def test_the_published_line_has_its_published_best_path(data_folder, tmp_path):
    scores = jnp.asarray(reference.read_line(data_folder, tmp_path))[None]
    mask = jnp.ones(scores.shape[:2], bool)
    found, _ = best_path(frame_log_probs(scores, mask), mask, eos_id=80)
    length = int(found.lengths[0, 0]) - 1
    text = "".join(reference.CHARACTERS[token - 1] for token in np.asarray(found.tokens[0, 0, :length]))
    assert text == "the fak friend of the fomly hae tC"


def test_parts_of_the_columns_are_those_of_the_whole():
    """Of twelve columns on four devices ten are tokens, and two of those are forbidden; padding spells nothing."""
    mesh = jax.make_mesh((4,), ("tensor",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 12)), jnp.float32)
    mask, columns = jnp.arange(5) < jnp.array([5, 3])[:, None], PartitionSpec(None, None, "tensor")

    def local(logits):
        return frame_log_probs(logits, mask, forbidden=(1, 7), vocab_axes=("tensor",), vocab_size=10)

    found = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=columns, out_specs=columns))(logits)
    kept = np.asarray(logits, np.float64)
    kept[..., [1, 7, 10, 11]] = -np.inf
    want = kept - np.log(np.exp(kept).sum(-1, keepdims=True))
    want[~np.asarray(mask)] = [0.0] + [-np.inf] * 11
    np.testing.assert_allclose(found, want, atol=1e-5)
