"""The Transformer against Hugging Face's Marian and PyTorch's layers, and its published sizes."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from seq2seq_jax.config import default_config
from seq2seq_jax.errors import UserError
from seq2seq_jax.experiment import make_training
from seq2seq_jax.layers.transformer import TransformerStack
from seq2seq_jax.layers.transformer_layer import TransformerLayer
from seq2seq_jax.models.transformer import Transformer, TransformerConfig
from seq2seq_jax.parallel.layout import ONE_PROGRAM

_SPEC = importlib.util.spec_from_file_location("marian_reference", Path(__file__).with_name("marian_reference.py"))
reference = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(reference)

QUICKLY = {"xla_backend_optimization_level": 0}  # compiling is nearly all that these tests do
B, S, T, VOCAB = 3, 7, 5, 19
TINY = TransformerConfig(
    source_vocab=VOCAB,
    target_vocab=VOCAB,
    features=16,
    encoder_layers=2,
    decoder_layers=3,
    heads=4,
    feed_forward=24,
    dropout=0.0,
)


def example_inputs() -> tuple[jax.Array, jax.Array, jax.Array]:
    tokens = jnp.ones((1, 2), jnp.int32)
    return tokens, tokens > 0, tokens


def shapes_of(config: TransformerConfig) -> dict:
    return nn.meta.unbox(jax.eval_shape(lambda: Transformer(config).init(jax.random.key(0), *example_inputs())))[
        "params"
    ]


def draw_params(config: TransformerConfig, seed: int = 0) -> dict:
    """Parameters large enough that every part matters, biases and gains included."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0.0, 0.3, leaf.shape), jnp.float32), shapes_of(config))


def make_batch() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    mask = np.arange(S) < np.array([S, 4, 1])[:, None]
    return np.where(mask, rng.integers(4, VOCAB, (B, S)), 0), mask, rng.integers(4, VOCAB, (B, T))


@pytest.mark.parametrize(
    "changes",
    [{}, {"share_embeddings": "none", "source_vocab": VOCAB + 3, "activation": "swish"}],
    ids=["one table", "three tables"],
)
def test_hugging_face_s_marian_gives_the_same_memory_and_logits(changes):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    config = dataclasses.replace(TINY, **changes)
    params, (source, mask, target) = draw_params(config), make_batch()

    def run(module):
        memory = module.encode(jnp.asarray(source, jnp.int32), jnp.asarray(mask), train=False)
        return memory.hidden, module.project(module.decode(jnp.asarray(target, jnp.int32), memory, train=False).hidden)

    ours = jax.jit(lambda p: Transformer(config).apply({"params": p}, method=run), compiler_options=QUICKLY)
    hidden, logits = ours(params)
    model = reference.make_marian(params, config)
    with torch.no_grad():
        given = {"input_ids": torch.tensor(source), "attention_mask": torch.tensor(mask.astype(np.int64))}
        theirs = model(**given, decoder_input_ids=torch.tensor(target))
    np.testing.assert_allclose(
        hidden, np.where(mask[..., None], theirs.encoder_last_hidden_state.numpy(), 0.0), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(logits, theirs.logits.numpy(), rtol=1e-5, atol=2e-5)
    assert np.abs(logits).max() > 1


def test_pytorch_s_pre_norm_layers_give_the_same():
    torch = pytest.importorskip("torch")
    width, heads, inner, layers = 16, 4, 24, 2
    kind = TransformerLayer(width, heads, inner, ONE_PROGRAM, norm="pre", activation="gelu")
    stack = TransformerStack(kind, layers)
    rng, mask = np.random.default_rng(0), make_batch()[1]
    x, mask = jnp.asarray(rng.normal(size=(B, S, width)), jnp.float32), jnp.asarray(mask)
    places = jnp.zeros((B, S, 2), jnp.int32)
    shapes = nn.meta.unbox(jax.eval_shape(lambda: stack.init(jax.random.key(0), x, mask, places=places, train=False)))[
        "params"
    ]
    own = jax.tree.map(lambda leaf: rng.normal(0.0, 0.5, leaf.shape).astype(np.float32), shapes)
    run = jax.jit(
        lambda own: stack.apply({"params": own}, x, mask, places=places, train=False)[0], compiler_options=QUICKLY
    )

    def gelu(x):
        return torch.nn.functional.gelu(x, approximate="tanh")

    want = torch.tensor(np.asarray(x))
    for n in range(layers):
        layer = torch.nn.TransformerEncoderLayer(
            width, heads, inner, dropout=0.0, activation=gelu, batch_first=True, norm_first=True
        ).eval()
        parts = {
            "self_attn.in_proj_weight": own["self_qkv_kernel"][n].reshape(width, -1).T,
            "self_attn.in_proj_bias": own["self_qkv_bias"][n].reshape(-1),
            "self_attn.out_proj.weight": own["self_out_kernel"][n].reshape(-1, width).T,
            "self_attn.out_proj.bias": own["self_out_bias"][n],
            "linear1.weight": own["mlp_in_kernel"][n].T,
            "linear1.bias": own["mlp_in_bias"][n],
            "linear2.weight": own["mlp_out_kernel"][n].T,
            "linear2.bias": own["mlp_out_bias"][n],
            "norm1.weight": own["self_norm_gain"][n],
            "norm1.bias": own["self_norm_bias"][n],
            "norm2.weight": own["mlp_norm_gain"][n],
            "norm2.bias": own["mlp_norm_bias"][n],
        }
        layer.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in parts.items()})
        with torch.no_grad():
            want = layer(want, src_key_padding_mask=torch.tensor(~np.asarray(mask)))
    real = mask[..., None]
    np.testing.assert_allclose(np.where(real, run(own), 0), np.where(real, want.numpy(), 0), rtol=1e-5, atol=1e-5)


def published_size(width: int, inner: int, *, layers: int = 6, vocab: int = 37_000) -> int:
    """Parameters counted from the paper's sizes: one table of 37,000 pieces, biases everywhere."""
    attention = 4 * (width * width + width)  # queries, keys, values, output
    feed_forward = width * inner + inner + inner * width + width
    norm = 2 * width
    encoder, decoder = attention + feed_forward + 2 * norm, 2 * attention + feed_forward + 3 * norm
    return vocab * width + vocab + layers * (encoder + decoder)


@pytest.mark.parametrize(
    ("width", "inner", "heads", "size", "published"),
    [(512, 2048, 8, 63_119_496, 65e6), (1024, 4096, 16, 214_282_376, 213e6)],
    ids=["base", "big"],
)
def test_published_sizes(width, inner, heads, size, published):
    config = TransformerConfig(37_000, 37_000, features=width, feed_forward=inner, heads=heads)
    counted = sum(leaf.size for leaf in jax.tree.leaves(shapes_of(config)))
    assert counted == published_size(width, inner) == size
    assert abs(size - published) < 0.03 * published  # table 3 of the paper


@pytest.mark.parametrize(("share", "tables"), [("none", 3), ("target", 2), ("all", 1)])
def test_shared_tables_are_one_parameter(share, tables):
    leaves = jax.tree.leaves(shapes_of(dataclasses.replace(TINY, share_embeddings=share)))
    assert sum(leaf.ndim == 2 and leaf.shape[0] == VOCAB for leaf in leaves) == tables


def test_embeddings_and_layers_begin_at_the_size_of_one():
    """Glorot's ranges: what goes in with variance 1 comes out of a square product with variance 1."""
    config = dataclasses.replace(TINY, features=64, heads=4, feed_forward=256)
    init = jax.jit(lambda key: Transformer(config).init(key, *example_inputs()), compiler_options=QUICKLY)
    tree = nn.meta.unbox(init(jax.random.key(0)))["params"]
    for name, inputs, outputs in (
        ("self_qkv_kernel", 64, 64),
        ("self_out_kernel", 64, 64),
        ("cross_kv_kernel", 64, 64),
        ("mlp_in_kernel", 64, 256),
        ("mlp_out_kernel", 256, 64),
    ):
        drawn = np.asarray(tree["decoder_stack"][name])
        assert np.abs(drawn).max() <= (6 / (inputs + outputs)) ** 0.5
        np.testing.assert_allclose(drawn.var(), 2 / (inputs + outputs), rtol=0.05, err_msg=name)
        assert np.abs(drawn[0] - drawn[1]).max() > 0  # every layer has a draw of its own
    np.testing.assert_allclose(np.asarray(tree["target_embedding"]["table"]).var(), 1 / 64, rtol=0.1)


def test_rotary_and_relative_layers_see_the_order_of_a_text():
    """Without what is added to embeddings, layers that add nothing themselves see a bag of words."""
    rng, order = np.random.default_rng(2), np.array([2, 0, 3, 1])
    text, mask = jnp.asarray(rng.normal(size=(1, 4, 16)), jnp.float32), jnp.ones((1, 4), bool)
    places = jnp.zeros((1, 4, 2), jnp.int32)
    for positions in ("rotary", "relative", "sinusoidal"):
        stack = TransformerStack(TransformerLayer(16, 4, 24, ONE_PROGRAM, positions=positions), 2)
        shapes = nn.meta.unbox(
            jax.eval_shape(functools.partial(stack.init, places=places, train=False), jax.random.key(0), text, mask)
        )
        own = jax.tree.map(lambda leaf: rng.normal(0.0, 0.5, leaf.shape).astype(np.float32), shapes)
        run = jax.jit(functools.partial(stack.apply, places=places, train=False), compiler_options=QUICKLY)
        plain, permuted = (run(own, given, mask)[0] for given in (text, text[:, order]))
        assert (np.abs(permuted - plain[:, order]).max() < 1e-5) == (positions == "sinusoidal")


def test_a_text_longer_than_the_learned_positions_is_refused_in_one_line():
    config = dataclasses.replace(TINY, positions="learned", max_positions=4)
    tokens = jnp.ones((1, 5), jnp.int32)
    with pytest.raises(
        UserError, match=r"config\.model\.max_positions must be at least 5.* but is 4 instead"
    ) as refused:
        jax.eval_shape(lambda: Transformer(config).init(jax.random.key(0), tokens, tokens > 0, tokens))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("norm", {"norm": "middle"}),
        ("positions", {"positions": "none"}),
        ("activation", {"activation": "tanh"}),
        ("share_embeddings", {"share_embeddings": "source"}),
        ("share_embeddings", {"source_vocab": 7}),
        ("heads", {"heads": 3}),
        ("features", {"features": 12, "heads": 4, "positions": "rotary"}),
        ("features", {"features": 9, "heads": 3}),
        ("decoder_layers", {"decoder_layers": 0}),
        ("dropout", {"dropout": 1.0}),
    ],
)
def test_config_names_the_field_that_is_wrong(field, change):
    with pytest.raises(ValueError, match=f"`{field}`"):
        dataclasses.replace(TINY, **change)


def test_a_step_s_arithmetic_counts_every_weight_once_for_each_token_that_it_meets():
    """Of the base model at 1,000 source and 2,000 target tokens, by the sizes of the paper's table 3."""
    config = default_config("transformer")
    sizes = {"encoder_layers": 6, "decoder_layers": 6, "heads": 8, "feed_forward": 2048, "positions": "learned"}
    config.model.update(sizes | {"features": 512})
    training = make_training(config, 37_000, 37_000)
    square, inner = 512 * 512, 2 * 512 * 2048
    source = 6 * (4 * square + inner) + 6 * 2 * square  # the encoder, and keys and values of its memory
    target = 6 * (6 * square + inner) + 37_000 * 512
    found = training.step_flops({"source_tokens": 1000.0, "target_tokens": 2000.0})
    np.testing.assert_allclose(found, 6 * (1000 * source + 2000 * target), rtol=3e-3)  # biases and gains: 0.2 %
