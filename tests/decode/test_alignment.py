"""Alignments against the best of all paths."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seq2seq_jax.decode.alignment import align
from seq2seq_jax.decode.ctc import best_path, frame_log_probs

_SPEC = importlib.util.spec_from_file_location("ctc_reference", Path(__file__).with_name("ctc_reference.py"))
reference = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(reference)

CASES = [(6, [1, 2]), (5, [1, 1]), (3, [1, 1]), (2, [1, 1]), (6, [2]), (6, []), (4, [1, 2, 3]), (0, []), (0, [1])]


def find_frames(log_probs, labels):
    """First and last frame of each label on the best of the listed paths; None where there is none."""
    best = max(
        (p, path)
        for path, p in [*reference.list_paths(log_probs), ((), 0.0)]
        if p == 0 or reference.collapse(path) == tuple(labels)
    )
    if best[0] == 0:
        return [(-1, -1)] * len(labels)
    spans, before = [], 0
    for frame, label in enumerate(best[1]):
        if label and label != before:
            spans.append([frame, frame])
        elif label:
            spans[-1][1] = frame
        before = label
    return [tuple(span) for span in spans]


@pytest.mark.parametrize("seed", range(3))
def test_alignments_are_those_of_the_best_of_all_paths(seed):
    longest, most = 6, 3
    logits = 2 * np.random.default_rng(seed).normal(size=(len(CASES), longest, 4)).astype(np.float32)
    mask = np.arange(longest) < np.array([frames for frames, _ in CASES])[:, None]
    labels, label_mask = np.ones((len(CASES), most), np.int32), np.zeros((len(CASES), most), bool)
    for row, (_, own) in enumerate(CASES):
        labels[row, : len(own)], label_mask[row, : len(own)] = own, True
    log_probs = frame_log_probs(jnp.asarray(logits), jnp.asarray(mask))
    found = jax.jit(align)(log_probs, *map(jnp.asarray, (mask, labels, label_mask)))
    assert found.shape == (len(CASES), most, 2) and found.dtype == jnp.int32
    for row, (frames, own) in enumerate(CASES):
        wanted = find_frames(np.asarray(log_probs[row, :frames], np.float64), own) if frames else [(-1, -1)] * len(own)
        assert [tuple(span) for span in found[row].tolist()] == wanted + [(-1, -1)] * (most - len(own))


def test_what_the_best_path_spells_lies_where_it_spelt_it():
    logits = jnp.asarray(3 * np.random.default_rng(5).normal(size=(3, 40, 8)), jnp.float32)
    mask = jnp.arange(40) < jnp.array([40, 31, 7])[:, None]
    log_probs = frame_log_probs(logits, mask)
    best, frames = best_path(log_probs, mask, eos_id=9)
    label_mask = jnp.arange(41) < best.lengths[:, 0, None] - 1
    found = align(log_probs, mask, best.tokens[:, 0], label_mask)
    np.testing.assert_array_equal(found, frames[:, 0])


@pytest.mark.parametrize(("frames", "labels"), [(0, 2), (3, 0)])
def test_nothing_to_align(frames, labels):
    everything = jnp.ones((2, labels), bool)
    found = align(jnp.zeros((2, frames, 4)), jnp.ones((2, frames), bool), everything.astype(jnp.int32), everything)
    assert found.shape == (2, labels, 2) and (found == -1).all()
