"""The CTC loss against sums over all paths, published values, and what must never be infinite."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from seq2seq_jax.tasks.ctc import count_needed, ctc_losses

_SPEC = importlib.util.spec_from_file_location(
    "ctc_reference", Path(__file__).parents[1] / "decode" / "ctc_reference.py"
)
reference = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(reference)


def sum_over_paths(logits, labels):
    """Loss and its gradient for one row, float64, by listing every path."""
    log_probs = reference.normalise(logits)
    total, occupied = 0.0, np.zeros_like(log_probs)
    for path, probability in reference.list_paths(log_probs):
        if reference.collapse(path) == tuple(labels):
            total += probability
            occupied[np.arange(len(path)), list(path)] += probability
    return -np.log(total), np.exp(log_probs) - occupied / total


CASES = [(4, [1, 2]), (4, [1, 1]), (3, [1, 1]), (5, [2]), (4, []), (5, [1, 2, 2]), (1, [3]), (0, [])]


def make_batch():
    """All cases as one padded batch; what is masked is huge."""
    generator = np.random.default_rng(0)
    longest, most = max(frames for frames, _ in CASES), max(len(labels) for _, labels in CASES)
    logits = 2 * generator.normal(size=(len(CASES), longest, 4)).astype(np.float32)
    mask = np.arange(longest) < np.array([frames for frames, _ in CASES])[:, None]
    labels, label_mask = np.full((len(CASES), most), 3, np.int32), np.zeros((len(CASES), most), bool)
    for row, (_, own) in enumerate(CASES):
        labels[row, : len(own)], label_mask[row, : len(own)] = own, True
    return np.where(mask[..., None], logits, 1e30).astype(np.float32), mask, labels, label_mask


def take_gradient(logits, *rest):
    logits, *rest = map(jnp.asarray, (logits, *rest))

    def total(logits):
        losses, possible = ctc_losses(logits, *rest)
        return jnp.sum(losses), (losses, possible)

    (_, (losses, possible)), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(logits)
    return losses, possible, gradient


def find_losses(*batch):
    return ctc_losses(*map(jnp.asarray, batch))


def test_values_and_gradients_are_sums_over_all_paths():
    logits, mask, labels, label_mask = make_batch()
    losses, possible, gradient = take_gradient(logits, mask, labels, label_mask)
    assert possible.all() and losses.dtype == jnp.float32
    for row, (frames, own) in enumerate(CASES):
        loss, slope = sum_over_paths(logits[row, :frames], own)
        np.testing.assert_allclose(losses[row], loss, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(gradient[row, :frames], slope, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(gradient[row, frames:], 0.0)


def test_the_published_line_has_its_published_loss(data_folder, tmp_path):
    scores = reference.read_line(data_folder, tmp_path)
    text = "the fake friend of the family, like the"
    labels = np.array([[reference.CHARACTERS.index(character) + 1 for character in text]], np.int32)
    everything = np.ones((1, len(scores)), bool)
    losses, _ = find_losses(scores[None], everything, labels, np.ones_like(labels, bool))
    assert float(losses[0]) == pytest.approx(28.0907217749, rel=1e-6)


def test_rows_without_a_path_count_nothing_and_teach_nothing():
    logits = np.random.default_rng(1).normal(size=(4, 3, 4)).astype(np.float32)
    frames = np.array([3, 2, 2, 0])
    labels = np.array([[1, 1, 0], [1, 1, 0], [1, 2, 3], [1, 0, 0]], np.int32)
    mask, label_mask = np.arange(3) < frames[:, None], labels > 0
    losses, possible, gradient = take_gradient(logits, mask, labels, label_mask)
    np.testing.assert_array_equal(count_needed(jnp.asarray(labels), jnp.asarray(label_mask)), [3, 3, 3, 1])
    np.testing.assert_array_equal(possible, [True, False, False, False])
    np.testing.assert_array_equal(losses[1:], 0.0)
    np.testing.assert_array_equal(gradient[1:], 0.0)
    assert losses[0] > 0 and np.abs(gradient[0]).max() > 0


@pytest.mark.parametrize("scale", [1e3, 1e6, 1e15, 1e30, 3e38, np.inf])
def test_huge_logits_stay_finite(scale):
    signs = np.where(np.random.default_rng(2).normal(size=(8, 6, 4)) > 0, 1.0, -1.0)
    logits = (signs * scale).astype(np.float32)
    _, _, labels, label_mask = make_batch()
    mask = np.arange(6) < np.array([6, 5, 4, 3, 2, 1, 0, 6])[:, None]
    losses, _, gradient = take_gradient(logits, mask, labels, label_mask)
    assert np.isfinite(losses).all() and np.isfinite(gradient).all()


def test_unlikely_paths_keep_their_loss():
    """-1e5, log 0 elsewhere, is no bound: a path of logits so small costs what it costs."""
    logits = np.zeros((1, 4, 3), np.float32)
    logits[:, :, 1] = -1e6
    label = np.ones((1, 1), np.int32)
    losses, _, gradient = take_gradient(logits, np.ones((1, 4), bool), label, label > 0)
    assert float(losses[0]) == pytest.approx(1e6, rel=1e-5)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


@pytest.mark.parametrize("shape", [(2, 0, 3), (2, 3, 0), (2, 0, 0)])
def test_no_frames_and_no_labels_at_all(shape):
    rows, frames, most = shape
    logits = np.ones((rows, frames, 4), np.float32)
    labels = np.ones((rows, most), np.int32)
    losses, possible, gradient = take_gradient(logits, np.ones((rows, frames), bool), labels, labels > 0)
    np.testing.assert_array_equal(possible, frames >= 2 * most - 1 if most else True)
    np.testing.assert_allclose(losses, frames * np.log(4.0) * possible, rtol=1e-6)
    assert gradient.shape == logits.shape and np.isfinite(gradient).all()


def test_bfloat16_logits_are_summed_in_float32():
    logits, mask, labels, label_mask = make_batch()
    rounded = jnp.asarray(logits, jnp.bfloat16)
    losses, _ = find_losses(rounded, mask, labels, label_mask)
    wanted, _ = find_losses(rounded.astype(jnp.float32), mask, labels, label_mask)
    np.testing.assert_array_equal(losses, wanted)


def test_rows_on_several_devices_give_the_same():
    if len(jax.devices()) != 8:
        pytest.skip(f"needs 8 devices, and there are {len(jax.devices())}")
    batch = [jnp.asarray(x) for x in make_batch()]
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = PartitionSpec("data")
    spread = jax.jit(jax.shard_map(ctc_losses, mesh=mesh, in_specs=rows, out_specs=rows))
    wanted, _, slopes = take_gradient(*batch)
    slope = jax.jit(jax.grad(lambda logits: jnp.sum(spread(logits, *batch[1:])[0])))(batch[0])
    np.testing.assert_allclose(spread(*batch)[0], wanted, rtol=1e-6)
    np.testing.assert_allclose(slope, slopes, rtol=1e-5, atol=1e-6)
