"""GNMT against a float64 reference written from the paper's equations, and its published size."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from seq2seq_jax.models.gnmt import GNMT, GNMTConfig

_SPEC = importlib.util.spec_from_file_location("gnmt_reference", Path(__file__).with_name("gnmt_reference.py"))
reference = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(reference)

VOCAB, WIDTH, ATTENTION = 11, 6, 5
QUICKLY = {"xla_backend_optimization_level": 0}  # compiling is nearly all that these tests do
# Sentence pairs without padding: source, target fed in, target asked for.
PAIRS = [
    ([4, 9, 5, 3], [2, 6, 7, 10, 4], [6, 7, 10, 4, 3]),
    ([8, 3], [2, 5], [5, 3]),
    ([10, 4, 4, 7, 6, 3], [2, 9, 8], [9, 8, 3]),
]
# (attention_from, encoder layers, decoder layers, share_embeddings)
CASES = [
    ("previous_step", 1, 1, "none"),
    ("previous_step", 2, 2, "target"),
    ("previous_step", 3, 3, "none"),
    ("previous_step", 4, 4, "all"),
    ("current_step", 1, 2, "all"),
    ("current_step", 2, 2, "none"),
    ("current_step", 3, 3, "target"),
    ("current_step", 4, 4, "none"),
]


def make_config(attention_from: str, encoder_layers: int, decoder_layers: int, share: str) -> GNMTConfig:
    return GNMTConfig(
        source_vocab=VOCAB if share == "all" else VOCAB + 2,
        target_vocab=VOCAB,
        features=WIDTH,
        encoder_layers=encoder_layers,
        decoder_layers=decoder_layers,
        attention_features=ATTENTION,
        attention_from=attention_from,
        share_embeddings=share,
    )


def pad(rows: list[list[int]], length: int, filler: int) -> np.ndarray:
    """Rows of different lengths as one array; what stands in the padding must not matter."""
    return np.array([row + [filler] * (length - len(row)) for row in rows], np.int32)


def make_batch() -> dict[str, jax.Array]:
    sources, targets_in, targets_out = (list(column) for column in zip(*PAIRS, strict=True))
    rows = {
        "source": pad(sources, 8, 9),
        "source_mask": pad([[1] * len(s) for s in sources], 8, 0).astype(bool),
        "target_in": pad(targets_in, 6, 8),
        "target_out": pad(targets_out, 6, 8),
        "target_mask": pad([[1] * len(t) for t in targets_in], 6, 0).astype(bool),
    }
    return jax.tree.map(jnp.asarray, rows)


def draw_params(module: GNMT, seed: int) -> dict:
    """Parameters large enough that every gate bends, biases included."""
    shapes = jax.eval_shape(lambda: nn.meta.unbox(module.init(jax.random.key(0), *example_inputs())))["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0.0, 0.5, leaf.shape), jnp.float32), shapes)


def example_inputs() -> tuple[jax.Array, jax.Array, jax.Array]:
    tokens = jnp.ones((1, 2), jnp.int32)
    return tokens, tokens > 0, tokens


def run(module: GNMT, batch: dict) -> tuple[jax.Array, jax.Array, jax.Array]:
    memory = module.encode(batch["source"], batch["source_mask"], train=False)
    output = module.decode(batch["target_in"], memory, train=False)
    return module.project(output.hidden), output.attention, memory.hidden


def reference_loss(params: dict, config: GNMTConfig) -> float:
    total = 0.0
    for source, target_in, target_out in PAIRS:
        logits, _, _ = reference.translate(params, source, target_in, **reference_sizes(config))
        total += reference.cross_entropy(logits, target_out)
    return total


def reference_sizes(config: GNMTConfig) -> dict:
    return {name: getattr(config, name) for name in ("encoder_layers", "decoder_layers", "attention_from")}


def to_float64(params: dict) -> dict:
    return jax.tree.map(lambda leaf: np.array(leaf, np.float64), params)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_padded_batch_equals_the_paper_sentence_by_sentence(case):
    config = make_config(*case)
    module = GNMT(config)
    params = draw_params(module, seed=1)
    batch = make_batch()
    logits, attention, memory = jax.jit(
        lambda p, b: module.apply({"params": p}, b, method=run), compiler_options=QUICKLY
    )(params, batch)

    for row, (source, target_in, _) in enumerate(PAIRS):
        want = reference.translate(to_float64(params), source, target_in, **reference_sizes(config))
        s, t = len(source), len(target_in)
        np.testing.assert_allclose(logits[row, :t], want[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(attention[row, :t, :s], want[1], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(memory[row, :s], want[2], rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(attention[row, :t, s:], 0.0)
        np.testing.assert_array_equal(memory[row, s:], 0.0)


@pytest.mark.parametrize("case", [CASES[2], CASES[6]], ids=lambda case: case[0])
def test_gradients_equal_central_differences_of_the_reference(case):
    config = make_config(*case)
    module = GNMT(config)
    params, batch = draw_params(module, seed=2), make_batch()

    def loss(params):
        logits, _, _ = module.apply({"params": params}, batch, method=run)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["target_out"][..., None], axis=-1)[..., 0]
        return -jnp.sum(picked * batch["target_mask"])

    value, gradients = jax.jit(jax.value_and_grad(loss), compiler_options=QUICKLY)(params)
    exact = to_float64(params)
    np.testing.assert_allclose(value, reference_loss(exact, config), rtol=1e-5)

    rng, eps = np.random.default_rng(3), 1e-4
    for path, leaf in jax.tree.leaves_with_path(exact):
        # A few entries of every parameter at once: the slope along a random direction within it, and the steepest one.
        gradient = np.asarray(gradients[path[0].key][path[1].key], np.float64)
        steepest = np.zeros_like(leaf)
        steepest[np.unravel_index(np.abs(gradient).argmax(), leaf.shape)] = 1.0
        for direction in (steepest, rng.normal(size=leaf.shape)):
            start = leaf.copy()
            leaf[...] = start + eps * direction
            above = reference_loss(exact, config)
            leaf[...] = start - eps * direction
            below = reference_loss(exact, config)
            leaf[...] = start
            slope = np.vdot(gradient, direction)
            name = jax.tree_util.keystr(path)
            np.testing.assert_allclose(slope, (above - below) / (2 * eps), rtol=1e-3, atol=1e-4, err_msg=name)


def published_size(layers: int, width: int, vocab: int, attention: int) -> int:
    """Parameters of the paper's network, counted from its sizes: 8 + 8 layers of 1,024, 32,000 word pieces."""
    gates = 4 * width  # every LSTM has four gates over [input; output] and a bias

    def lstm(inputs: int) -> int:
        return gates * (inputs + width + 1)

    encoder = 2 * lstm(width) + lstm(2 * width) + (layers - 2) * lstm(width)
    decoder = layers * lstm(width + width)  # the layer below and the context
    hidden = 2 * width * attention + 2 * attention
    return 3 * vocab * width + vocab + encoder + decoder + hidden


@pytest.mark.parametrize(("attention_from", "size"), [("previous_step", 280_859_904), ("current_step", 276_665_600)])
def test_published_size(attention_from, size):
    config = GNMTConfig(source_vocab=32_000, target_vocab=32_000, attention_from=attention_from)
    shapes = jax.eval_shape(lambda: GNMT(config).init(jax.random.key(0), *example_inputs()))
    counted = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    formula = published_size(8, 1024, 32_000, 1024)
    if attention_from == "current_step":
        formula -= 4 * 1024 * 1024  # the bottom layer reads no context
    assert counted == formula == size


@pytest.mark.parametrize(("share", "tables"), [("none", 3), ("target", 2), ("all", 1)])
def test_shared_tables_are_one_parameter(share, tables):
    config = make_config("previous_step", 1, 1, share)
    shapes = nn.meta.unbox(jax.eval_shape(lambda: GNMT(config).init(jax.random.key(0), *example_inputs())))
    wide = [leaf for leaf in jax.tree.leaves(shapes) if leaf.ndim == 2 and leaf.shape[0] in (VOCAB, VOCAB + 2)]
    assert len(wide) == tables


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("attention_from", {"attention_from": "next_step"}),
        ("share_embeddings", {"share_embeddings": "source"}),
        ("share_embeddings", {"share_embeddings": "all", "source_vocab": 7}),
        ("decoder_layers", {"decoder_layers": 0}),
        ("decoder_layers", {"decoder_layers": 1, "attention_from": "current_step"}),
        ("dropout", {"dropout": 1.0}),
    ],
)
def test_config_names_the_field_that_is_wrong(field, change):
    with pytest.raises(ValueError, match=f"`{field}`"):
        GNMTConfig(**({"source_vocab": 8, "target_vocab": 8} | change))


def test_the_bottom_decoder_layer_reads_its_context_through_dropout():
    module = GNMT(make_config("previous_step", 1, 1, "none"))
    params, batch = draw_params(module, seed=4), make_batch()

    def run_bottom(module, train):
        memory = module.encode(batch["source"], batch["source_mask"], train=False)
        x = module.target_embedding(batch["target_in"].T)
        return module._attending_bottom(x, memory, module._places(batch["target_in"]), train=train)

    key = jax.random.key(0)
    apply = jax.jit(module.apply, static_argnums=1, static_argnames="method", compiler_options=QUICKLY)
    outputs, contexts, _ = apply({"params": params}, False, method=run_bottom)
    dropped, same_contexts, _ = apply({"params": params}, True, method=run_bottom, rngs={"dropout": key})
    # The first query is zero either way; what the layers above get is dropped there, once for each.
    np.testing.assert_allclose(same_contexts[0], contexts[0], atol=1e-6)
    assert np.abs(dropped[0] - outputs[0]).max() > 1e-3
