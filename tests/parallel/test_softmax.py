"""The cross-entropy, chunked and over a split vocabulary, against its formula in float64; look-ups in a split table."""

from __future__ import annotations

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from seq2seq_jax.parallel.layout import Layout, make_layout
from seq2seq_jax.parallel.program import parse_program
from seq2seq_jax.parallel.softmax import choose_chunk, cross_entropy, look_up
from seq2seq_jax.parallel.spread import add_up
from seq2seq_jax.parallel.varying import vary_over
from seq2seq_jax.parallel.work import count_work

TOKENS, WIDTH, VOCAB = 13, 5, 11
QUICKLY = {"xla_backend_optimization_level": 0}


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


# --- rows, and memory that does not grow with the length -----------------------------------------


def test_rows_make_no_difference():
    hidden, kernel, bias, targets, weights = make_inputs()
    cut = lambda x: x[:12].reshape(3, 4, *x.shape[1:])  # noqa: E731
    want, wanted = run((hidden[:12], kernel, bias, targets[:12], weights[:12]), label_smoothing=0.1)
    for chunk in (1, 6, 100):
        out, grads = run((cut(hidden), kernel, bias, cut(targets), cut(weights)), label_smoothing=0.1, chunk=chunk)
        np.testing.assert_allclose(jax.tree.leaves(out), jax.tree.leaves(want), rtol=1e-5)
        np.testing.assert_allclose(grads[0].reshape(12, WIDTH), wanted[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(grads[1], wanted[1], rtol=1e-5, atol=1e-5)


def test_the_memory_it_takes_does_not_grow_with_the_logits():
    rows, vocab, width = 4, 2000, 4

    def dense(hidden, kernel, bias, targets):
        log_probs = jax.nn.log_softmax(hidden @ kernel.T + bias)
        return -jnp.sum(jnp.take_along_axis(log_probs, targets[..., None], axis=-1))

    def chunked(hidden, kernel, bias, targets):
        return cross_entropy(hidden, kernel, bias, targets, jnp.ones(targets.shape), chunk=16).loss

    def measure(loss, length: int) -> int:
        """Bytes of working memory."""
        shapes = ((rows, length, width), (vocab, width), (vocab,))
        arrays = (*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes),)
        targets = jax.ShapeDtypeStruct((rows, length), jnp.int32)
        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*arrays, targets).compile(compiler_options=QUICKLY)
        return compiled.memory_analysis().temp_size_in_bytes

    logits = rows * (64 - 8) * vocab * 4
    assert measure(dense, 64) - measure(dense, 8) >= logits
    assert measure(chunked, 64) - measure(chunked, 8) < 0.02 * logits


@pytest.mark.parametrize("width", [8, 96])
def test_a_gradient_takes_the_place_of_its_logits(width):
    """Of a chunk of logits there are two copies at most (the product, and with the bias), or one beside V x D."""
    rows, length, vocab, chunk = 4, 64, 1999, 64

    def loss(hidden, kernel, bias, targets):
        weights = jnp.ones(targets.shape)
        return cross_entropy(hidden, kernel, bias, targets, weights, label_smoothing=0.1, chunk=chunk).loss

    shapes = ((rows, length, width), (vocab, width), (vocab,))
    arrays = (*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes),)
    targets = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*arrays, targets).compile(compiler_options=QUICKLY)
    logits, hidden = 4 * chunk * vocab, 4 * rows * length * width
    taken = compiled.memory_analysis().temp_size_in_bytes
    assert taken < logits + 4 * vocab * max(chunk, width) + 2 * hidden + 0.2 * logits


def test_sums_of_long_rows_are_products_on_a_cpu():
    """The CPU's own sum over the rows of a chunk takes half as long as the gradient's whole product."""
    if jax.default_backend() != "cpu":
        pytest.skip("speaks of the CPU's compiler")
    shapes = ((4, 8, 4), (50, 4), (50,))
    arrays = (*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes),)
    targets = jax.ShapeDtypeStruct((4, 8), jnp.int32)

    def loss(hidden, kernel, bias, targets):
        return cross_entropy(hidden, kernel, bias, targets, jnp.ones(targets.shape), label_smoothing=0.1, chunk=16).loss

    text = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*arrays, targets).compile(compiler_options=QUICKLY).as_text()
    sums = re.findall(r"f32\[([\d,]*)\]\S* reduce\(.*dimensions=\{([\d,]+)\}", text)
    assert sums and not [found for found in sums if found == ("50", "0")]
    assert "conditional(" not in text  # what a platform does is decided before


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_bias_s_gradient_is_summed_in_float32(dtype):
    """As many tokens as bfloat16 cannot count: each adds 1/2 to the gradient of the other token's bias."""
    tokens = 2048
    inputs = (jnp.zeros((tokens, 2), dtype), jnp.zeros((2, 2)), jnp.zeros(2), jnp.zeros(tokens, jnp.int32))
    _, (d_hidden, _, d_bias) = run((*inputs, jnp.ones(tokens)), chunk=tokens)
    assert d_hidden.dtype == dtype
    np.testing.assert_array_equal(d_bias, [-tokens / 2, tokens / 2])


@pytest.mark.parametrize(
    ("vocab", "width", "tokens"), [(32_000, 1024, 8388), (256_000, 1024, 4096), (1500, 128, 178956)]
)
def test_a_chunk_on_an_accelerator_is_a_gibibyte_of_logits_but_no_less_than_four_widths(vocab, width, tokens):
    assert choose_chunk(vocab, width, platform="gpu") == choose_chunk(vocab, width, platform="tpu") == tokens
    assert choose_chunk(vocab, width, platform="cpu") == 512


# --- a vocabulary that is split over devices -----------------------------------------------------

SPLITS = {
    "stage x tensor": {"stage": 4, "tensor": 2},
    "stage, rows over data too": {"data": 2, "stage": 4},
    "exact": {"stage": 4, "tensor": 2, "strategy": "exact"},
    "all axes": {"data": 2, "stage": 2, "tensor": 2},
}


def layout_of(name: str) -> Layout:
    if len(jax.devices()) < 8:
        pytest.skip(f"needs 8 devices, and there are {len(jax.devices())}")
    return make_layout(**({"data": 1, "fsdp": 1, "stage": 1, "tensor": 1} | SPLITS[name]))


def make_batch(vocab: int, *, width: int = WIDTH, rows: int = 8, length: int = 5):
    """Hidden states, kernel, bias, targets and weights with zeros."""
    generator = np.random.default_rng(vocab)
    draw = lambda *shape: generator.normal(size=shape).astype(np.float32)  # noqa: E731
    targets = generator.integers(0, vocab, (rows, length), dtype=np.int32)
    hidden, kernel, bias = draw(rows, length, width), draw(vocab, width), draw(vocab)
    targets[0, :2], targets[1] = [0, vocab - 1], (hidden[1] @ kernel.T + bias).argmax(axis=1)
    weights = generator.uniform(0.2, 2.0, targets.shape) * (generator.random(targets.shape) < 0.8)
    weights[:2, :2], weights[3] = 1.0, 0.0
    return hidden, kernel, bias, targets, weights.astype(np.float32)


def count_parts(layout: Layout) -> int:
    return math.prod(layout.mesh.shape[axis] for axis in layout.execution.vocabulary.axes)


def fill(inputs, layout: Layout):
    """Kernel and bias filled up to equal parts, with what must not matter."""
    hidden, kernel, bias, targets, weights = inputs
    missing = -len(bias) % count_parts(layout)
    kernel = np.pad(kernel, ((0, missing), (0, 0)), constant_values=3.0)
    return hidden, kernel, np.pad(bias, (0, missing), constant_values=3.0), targets, weights


def split_loss(layout: Layout, vocab: int, **options):
    """`f(hidden, kernel, bias, targets, weights) -> (sums, gradients)`: each device has rows and part of the kernel."""
    split = layout.execution.vocabulary

    def local(hidden, kernel, bias, targets, weights):
        def total(hidden, kernel, bias):
            kernel, bias = (vary_over(x, layout.rows) for x in (kernel, bias))
            out = cross_entropy(hidden, kernel, bias, targets, weights, split=split, vocab_size=vocab, **options)
            out = add_up(out, layout.rows)
            return out.loss, out

        grads, out = jax.grad(total, (0, 1, 2), has_aux=True)(hidden, kernel, bias)
        return out, grads

    rows, columns = PartitionSpec(layout.rows), PartitionSpec(split.axes)
    specs = {"in_specs": (rows, columns, columns, rows, rows), "out_specs": (PartitionSpec(), (rows, columns, columns))}
    return jax.jit(jax.shard_map(local, mesh=layout.mesh, **specs), compiler_options=QUICKLY)


@pytest.mark.parametrize(
    ("name", "vocab", "smoothing", "chunk"),
    [
        ("stage x tensor", 19, 0.1, 16),
        ("stage x tensor", 9, 0.0, 1),  # three of the eight devices have nothing but filling
        ("stage, rows over data too", 16, 0.1, 8),
        ("stage, rows over data too", 18, 0.0, 1000),
        ("exact", 19, 0.1, 16),
        ("all axes", 21, 0.1, 8),
    ],
)
def test_a_split_vocabulary_gives_the_formula_s_values_and_gradients(name, vocab, smoothing, chunk):
    inputs, layout = make_batch(vocab), layout_of(name)
    loss_of = split_loss(layout, vocab, label_smoothing=smoothing, chunk=chunk)
    out, (d_hidden, d_kernel, d_bias) = loss_of(*fill(inputs, layout))
    hidden, kernel, bias, targets, weights = inputs
    flat = (hidden.reshape(-1, WIDTH), kernel, bias, targets.reshape(-1), weights.reshape(-1))
    loss, nll, correct, wanted = oracle(*flat, smoothing)
    assert 0 < correct < weights.sum()
    np.testing.assert_allclose([out.loss, out.nll, out.correct], [loss, nll, correct], rtol=1e-5)
    grads = d_hidden.reshape(-1, WIDTH), d_kernel[:vocab], d_bias[:vocab]
    for ours, theirs in zip(grads, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(d_kernel[vocab:], 0.0)


def find_shapes(text: str) -> set[tuple[int, ...]]:
    """The sizes of all arrays that a compiled program makes."""
    return {tuple(int(n) for n in dims.split(",")) for dims in re.findall(r"[a-z]\w*\[([\d,]+)\]", text)}


def sent_bytes(compiled) -> float:
    """The payload of all collectives on a device."""
    calls = count_work(parse_program(compiled.as_text())).calls
    return sum(call.times * call.bytes for call in calls)


@pytest.mark.parametrize("name", ["exact", "all axes"])
def test_no_device_ever_has_all_logits_nor_sends_any(name):
    layout, vocab, rows, length = layout_of(name), 1003, 8, 6
    inputs = fill(make_batch(vocab, rows=rows, length=length), layout)
    own = len(inputs[2]) // count_parts(layout)
    text = split_loss(layout, vocab, chunk=24).lower(*inputs).compile().as_text()
    shapes = find_shapes(text)
    group = rows // layout.mesh.shape["data"]
    steps = 24 // group
    assert (group * steps, own) in shapes  # a chunk's logits of this device's part: the search sees what there is
    assert not [shape for shape in shapes if {vocab, len(inputs[2])} & set(shape)]
    assert not [shape for shape in shapes if own in shape and math.prod(shape) > own * max(group * steps, WIDTH)]
    kinds = r"= (\S+|\([^)]*\)) (?:all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\("
    sent = re.findall(kinds, text)
    assert sent and not [shape for shape in sent if str(own) in re.findall(r"\d+", shape)]


def test_it_sends_far_less_than_the_compiler_does_of_itself():
    """Recorded with jax 0.10: `jit` gathers the whole kernel and sums its whole gradient: 24 times as many bytes."""
    layout, vocab, width = layout_of("stage x tensor"), 1000, 32
    inputs = make_batch(vocab, width=width, rows=8, length=6)

    def dense(hidden, kernel, bias, targets, weights):
        log_probs = jax.nn.log_softmax(hidden @ kernel.T + bias)
        return -jnp.sum(weights * jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0])

    rows, columns = (
        NamedSharding(layout.mesh, PartitionSpec(axes)) for axes in (layout.rows, layout.execution.vocabulary.axes)
    )
    gradient = jax.jit(
        jax.value_and_grad(dense, (0, 1, 2)),
        in_shardings=(rows, columns, columns, rows, rows),
        out_shardings=(None, (rows, columns, columns)),
        compiler_options=QUICKLY,
    )
    left_to_itself = gradient.lower(*inputs).compile()
    ours = split_loss(layout, vocab, chunk=24).lower(*inputs).compile()
    assert sent_bytes(ours) < sent_bytes(left_to_itself) / 10
    assert sent_bytes(ours) < vocab * width * 4  # less than one table
    (value, grads), (out, found) = gradient(*inputs), ours(*inputs)
    np.testing.assert_allclose(out.loss, value, rtol=1e-5)
    for a, b in zip(found, grads, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["stage, rows over data too", "exact", "all axes"])
def test_a_look_up_in_parts_is_that_in_the_whole_table(name):
    layout, vocab = layout_of(name), 19
    split, generator = layout.execution.vocabulary, np.random.default_rng(0)
    table = generator.normal(size=(vocab, WIDTH)).astype(np.float32)
    tokens = generator.integers(0, vocab, (3, 8), dtype=np.int32)  # time-major
    tokens[0, :2], tokens[1] = [0, vocab - 1], 7  # one of them often: its gradients add up
    weights = generator.normal(size=(3, 8, WIDTH)).astype(np.float32)
    missing = -vocab % count_parts(layout)
    rows, parts = PartitionSpec(None, layout.rows), PartitionSpec(split.axes)

    def local(table, tokens, weights):
        def total(table):
            vectors = look_up(vary_over(table, layout.rows), tokens, split=split)
            return add_up(jnp.vdot(weights, vectors), layout.rows), vectors

        return jax.grad(total, has_aux=True)(table)

    mapped = jax.shard_map(local, mesh=layout.mesh, in_specs=(parts, rows, rows), out_specs=(parts, rows))
    filled = np.pad(table, ((0, missing), (0, 0)), constant_values=np.nan)  # never read
    compiled = jax.jit(mapped, compiler_options=QUICKLY).lower(filled, tokens, weights).compile()
    grad, vectors = compiled(filled, tokens, weights)
    np.testing.assert_array_equal(vectors, table[tokens])
    want = np.zeros_like(table)
    np.add.at(want, tokens, weights)
    np.testing.assert_allclose(grad[:vocab], want, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(grad[vocab:], 0.0)
