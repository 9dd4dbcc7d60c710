"""Prefix beam search against the listing of all paths, published results, and a plain implementation."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from seq2seq_jax.decode.alignment import align
from seq2seq_jax.decode.ctc import frame_log_probs
from seq2seq_jax.decode.ctc_beam import prefix_beam

_SPEC = importlib.util.spec_from_file_location("ctc_reference", Path(__file__).with_name("ctc_reference.py"))
reference = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(reference)

BOS, EOS, VOCAB = 1, 2, 6
FRAMES = (5, 3, 1, 0)
QUICKLY = {"xla_backend_optimization_level": 0}


def make_frames():
    """Rows of 5, 3, 1 and no frames; what is masked is huge. And their log-probabilities."""
    logits = 1.5 * np.random.default_rng(0).normal(size=(len(FRAMES), max(FRAMES), VOCAB))
    mask = np.arange(max(FRAMES)) < np.array(FRAMES)[:, None]
    logits = jnp.asarray(np.where(mask[..., None], logits, 1e9), jnp.float32)
    return frame_log_probs(logits, jnp.asarray(mask), forbidden=(BOS, EOS)), jnp.asarray(mask)


def search(log_probs, mask, size):
    def run(log_probs, mask):
        return prefix_beam(log_probs, mask, size=size, eos_id=EOS)

    return jax.jit(run, compiler_options=QUICKLY)(log_probs, mask)


def read(found, row):
    """Outputs with scores and log-probabilities, best first."""
    entries = []
    for slot in range(found.tokens.shape[1]):
        length = int(found.lengths[row, slot])
        if length:
            tokens = np.asarray(found.tokens[row, slot])
            assert tokens[length - 1] == EOS and not tokens[length:].any()
            output = tuple(tokens[: length - 1].tolist())
            entries.append((output, float(found.scores[row, slot]), float(found.log_probs[row, slot])))
        else:
            assert found.scores[row, slot] == -jnp.inf and not found.finished[row, slot]
    return entries


def plain_search(log_probs, size):
    """Hannun et al. 2014, algorithm 1, with dictionaries."""
    beam = {(): (1.0, 0.0)}  # ending with a blank, with the last label
    for frame in np.exp(np.asarray(log_probs, np.float64)):
        after = {}

        def add(prefix, blank, label, after=after):
            old = after.get(prefix, (0.0, 0.0))
            after[prefix] = (old[0] + blank, old[1] + label)

        for prefix, (blank, label) in beam.items():
            add(prefix, (blank + label) * frame[0], label * frame[prefix[-1]] if prefix else 0.0)
            for token in range(1, len(frame)):
                paths = blank if prefix and prefix[-1] == token else blank + label
                add((*prefix, token), 0.0, paths * frame[token])
        beam = dict(sorted(after.items(), key=lambda item: -sum(item[1]))[:size])
    return [(prefix, np.log(sum(both))) for prefix, both in beam.items() if sum(both) > 0]


def test_a_beam_with_room_for_all_finds_all():
    log_probs, mask = make_frames()
    found = search(log_probs, mask, 120)
    for row, frames in enumerate(FRAMES):
        outputs = reference.list_outputs(np.asarray(log_probs[row, :frames], np.float64))
        ranked = sorted(((p, output) for output, p in outputs.items() if p > 0), reverse=True)[:120]
        ours = read(found, row)
        assert len(ours) == len(ranked) == (1 if frames == 0 else 4 if frames == 1 else len(ranked))
        np.testing.assert_allclose(
            [score for _, score, _ in ours], [np.log(p) for p, _ in ranked], rtol=1e-4, atol=1e-4
        )
        assert [output for output, _, _ in ours[:20]] == [output for _, output in ranked[:20]]
        assert len({output for output, _, _ in ours}) == len(ours)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_a_narrow_beam_is_that_of_the_plain_search(size):
    generator = np.random.default_rng(size)
    logits = jnp.asarray(2 * generator.normal(size=(4, 30, 12)), jnp.float32)
    mask = jnp.ones((4, 30), bool)
    log_probs = frame_log_probs(logits, mask, forbidden=(BOS, EOS))
    found = search(log_probs, mask, size)
    for row in range(4):
        wanted = plain_search(log_probs[row], size)
        ours = read(found, row)
        assert [output for output, _, _ in ours] == [prefix for prefix, _ in wanted]
        np.testing.assert_allclose([score for _, score, _ in ours], [score for _, score in wanted], rtol=1e-4)


def test_the_published_line_has_its_published_beam(data_folder, tmp_path):
    scores = jnp.asarray(reference.read_line(data_folder, tmp_path))[None]
    mask = jnp.ones(scores.shape[:2], bool)
    found = prefix_beam(frame_log_probs(scores, mask), mask, size=25, eos_id=80)
    length = int(found.lengths[0, 0]) - 1
    text = "".join(reference.CHARACTERS[token - 1] for token in np.asarray(found.tokens[0, 0, :length]))
    assert text == "the fak friend of the fomcly hae tC"


def test_a_row_is_found_alone_as_among_others():
    log_probs, mask = make_frames()
    together = search(log_probs, mask, 4)
    alone = search(log_probs[1:2, :3], mask[1:2, :3], 4)
    for (output, score, _), (other, theirs, _) in zip(read(together, 1), read(alone, 0), strict=True):
        assert output == other
        assert score == pytest.approx(theirs, rel=1e-6)


def test_a_beam_of_nothing_is_refused():
    log_probs, mask = make_frames()
    with pytest.raises(ValueError, match="`size` must be at least 1, but is 0 instead"):
        prefix_beam(log_probs, mask, size=0, eos_id=EOS)


def test_rows_on_several_devices_give_the_same():
    if len(jax.devices()) != 8:
        pytest.skip(f"needs 8 devices, and there are {len(jax.devices())}")
    log_probs, mask = make_frames()
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

    def local(log_probs, mask):
        found = prefix_beam(log_probs, mask, size=3, eos_id=EOS)
        return found, align(log_probs, mask, found.tokens[:, 0, :2], found.tokens[:, 0, :2] > EOS)

    rows = PartitionSpec("data")
    mapped = jax.shard_map(local, mesh=mesh, in_specs=rows, out_specs=rows)
    found, wanted = (jax.jit(run, compiler_options=QUICKLY)(log_probs, mask) for run in (mapped, local))
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
