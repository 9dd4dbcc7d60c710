"""The chunked cross-entropy against its formula in float64, one-hot targets and all logits at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seq2seq_jax.train.losses import cross_entropy

TOKENS, WIDTH, VOCAB = 13, 5, 11


def make_inputs(*, scale: float = 1.0, dtype=np.float32):
    """Hidden states, kernel, bias, targets and uneven weights, two of them zero."""
    generator = np.random.default_rng(0)
    hidden = (scale * generator.normal(size=(TOKENS, WIDTH))).astype(np.float32)
    kernel = generator.normal(size=(VOCAB, WIDTH)).astype(np.float32)
    bias = generator.normal(size=VOCAB).astype(np.float32)
    targets = generator.integers(0, VOCAB, TOKENS, dtype=np.int32)
    weights = generator.uniform(0.2, 2.0, TOKENS).astype(np.float32)
    weights[[3, 12]] = 0.0
    arrays = (jnp.asarray(x) for x in (kernel, bias, targets, weights))
    return jnp.asarray(hidden).astype(dtype), *arrays


def oracle(hidden, kernel, bias, targets, weights, smoothing):
    """Loss, nll, correct and the gradients of the loss, float64."""
    hidden, kernel, bias, weights = (np.asarray(x, np.float64) for x in (hidden, kernel, bias, weights))
    logits = hidden @ kernel.T + bias
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    one_hot = np.eye(len(bias))[targets]
    wanted = (1.0 - smoothing) * one_hot + smoothing / len(bias)
    loss = -(weights[:, None] * wanted * log_probs).sum()
    nll = -(weights[:, None] * one_hot * log_probs).sum()
    correct = weights[log_probs.argmax(axis=1) == targets].sum()
    d_logits = weights[:, None] * (np.exp(log_probs) - wanted)
    return loss, nll, correct, (d_logits @ kernel, d_logits.T @ hidden, d_logits.sum(axis=0))


def run(inputs, **options):
    """Our sums and the gradients of the loss."""
    hidden, kernel, bias, targets, weights = inputs

    def loss(hidden, kernel, bias):
        out = cross_entropy(hidden, kernel, bias, targets, weights, **options)
        return out.loss, out

    (_, out), grads = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(hidden, kernel, bias)
    return out, grads


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [1, 4, 5, 13, 1024])
def test_values_and_gradients_are_those_of_the_formula(chunk, smoothing):
    inputs = make_inputs()
    out, grads = run(inputs, label_smoothing=smoothing, chunk=chunk)
    loss, nll, correct, wanted = oracle(*inputs, smoothing)
    np.testing.assert_allclose([out.loss, out.nll, out.correct], [loss, nll, correct], rtol=1e-5)
    for ours, theirs in zip(grads, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_value_alone_is_the_value_beside_the_gradient():
    inputs = make_inputs()
    alone = cross_entropy(*inputs, label_smoothing=0.1, chunk=4)
    beside, _ = run(inputs, label_smoothing=0.1, chunk=4)
    np.testing.assert_allclose(jax.tree.leaves(alone), jax.tree.leaves(beside), rtol=1e-6)
    assert 0 < float(alone.correct) < float(inputs[-1].sum())  # neither all nor none: it is counted


def test_smoothing_of_zero_makes_loss_and_nll_equal():
    out, _ = run(make_inputs())
    assert float(out.loss) == pytest.approx(float(out.nll), rel=1e-6)


def test_tokens_of_weight_zero_neither_count_nor_learn():
    hidden, kernel, bias, targets, weights = make_inputs()
    padding = np.asarray(weights) == 0
    out, (d_hidden, d_kernel, d_bias) = run((hidden, kernel, bias, targets, weights), label_smoothing=0.1, chunk=4)
    assert padding.sum() == 2
    np.testing.assert_array_equal(np.asarray(d_hidden)[padding], 0.0)
    other_hidden = jnp.where(padding[:, None], 7.0, hidden)
    other_targets = jnp.where(padding, 0, targets)
    other, (_, other_kernel, other_bias) = run(
        (other_hidden, kernel, bias, other_targets, weights), label_smoothing=0.1, chunk=4
    )
    np.testing.assert_array_equal(jax.tree.leaves(out), jax.tree.leaves(other))
    np.testing.assert_array_equal(d_kernel, other_kernel)
    np.testing.assert_array_equal(d_bias, other_bias)


def test_a_batch_of_padding_gives_zero_and_no_nan():
    hidden, kernel, bias, targets, weights = make_inputs()
    out, grads = run((hidden, kernel, bias, targets, jnp.zeros_like(weights)), label_smoothing=0.1, chunk=4)
    for leaf in jax.tree.leaves((out, grads)):
        np.testing.assert_array_equal(leaf, 0.0)


def test_bfloat16_products_stay_near_and_keep_their_dtypes():
    inputs = make_inputs(dtype=jnp.bfloat16)
    out, (d_hidden, d_kernel, d_bias) = run(inputs, label_smoothing=0.1, chunk=5)
    loss, nll, _, wanted = oracle(*inputs, 0.1)
    assert (out.loss.dtype, out.nll.dtype, out.correct.dtype) == (jnp.float32,) * 3
    assert (d_hidden.dtype, d_kernel.dtype, d_bias.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
    np.testing.assert_allclose([out.loss, out.nll], [loss, nll], rtol=1e-2)
    for ours, theirs in zip((d_hidden, d_kernel, d_bias), wanted, strict=True):
        error = np.linalg.norm(np.asarray(ours, np.float64) - theirs)
        assert error < 2e-2 * np.linalg.norm(theirs)


def test_nothing_flows_through_nll_and_correct():
    hidden, kernel, bias, targets, weights = make_inputs()

    def gradients(pick):
        def chosen(hidden, kernel, bias):
            return pick(cross_entropy(hidden, kernel, bias, targets, weights, label_smoothing=0.1, chunk=4))

        return jax.grad(chosen, argnums=(0, 1, 2))(hidden, kernel, bias)

    for leaf in gradients(lambda out: out.nll + out.correct):
        np.testing.assert_array_equal(leaf, 0.0)
    mixture = gradients(lambda out: 3.0 * out.loss + 5.0 * out.nll + out.correct)
    for all_three, loss_alone in zip(mixture, gradients(lambda out: out.loss), strict=True):
        assert np.abs(loss_alone).max() > 0
        np.testing.assert_allclose(all_three, 3.0 * loss_alone, rtol=1e-6)


def test_huge_logits_stay_finite():
    inputs = make_inputs(scale=1e4)
    out, grads = run(inputs, label_smoothing=0.1, chunk=4)
    loss, _, _, _ = oracle(*inputs, 0.1)
    assert float(out.loss) == pytest.approx(loss, rel=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in grads)


def test_logits_of_all_tokens_never_exist():
    hidden, kernel, bias, targets, weights = make_inputs()

    def shapes(chunk: int) -> str:
        def loss(*arrays):
            return cross_entropy(*arrays, targets, weights, chunk=chunk).loss

        return str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(hidden, kernel, bias))

    assert f"f32[{TOKENS},{VOCAB}]" in shapes(TOKENS)  # the search string finds them where they are
    chunked = shapes(4)
    assert f"[{TOKENS},{VOCAB}]" not in chunked and f"[{TOKENS + 3},{VOCAB}]" not in chunked
