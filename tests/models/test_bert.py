"""BERT against Hugging Face's, and its encoder against the Transformer's that is to start from it."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from seq2seq_jax.errors import UserError
from seq2seq_jax.interfaces import MaskedModel, Packing
from seq2seq_jax.models.bert import BERT, BERTConfig
from seq2seq_jax.models.transformer import Transformer, TransformerConfig

QUICKLY = {"xla_backend_optimization_level": 0}  # compiling is nearly all that these tests do
B, S, VOCAB = 3, 6, 17
SIZES = {"features": 8, "heads": 2, "feed_forward": 12, "max_positions": 9, "dropout": 0.0}
TINY = BERTConfig(VOCAB, 5, layers=2, **SIZES)  # nothing depends on the target's vocabulary
PUBLISHED = BERTConfig(30_522, 30_522)


def shapes_of(config: BERTConfig) -> dict:
    tokens = jnp.ones((1, 2), jnp.int32)
    return nn.meta.unbox(jax.eval_shape(lambda: BERT(config).init(jax.random.key(0), tokens, tokens > 0)))["params"]


@functools.cache
def draw_params(config: BERTConfig) -> dict:
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0.0, 0.4, leaf.shape), jnp.float32), shapes_of(config))


def make_batch() -> tuple[jax.Array, jax.Array]:
    mask = np.arange(S) < np.array([S, 4, 1])[:, None]
    return jnp.asarray(np.random.default_rng(1).integers(4, VOCAB, (B, S)), jnp.int32), jnp.asarray(mask)


@functools.cache
def run(config: BERTConfig):
    """Logits `[B, S, V]` of the batch."""
    return jax.jit(BERT(config).apply, compiler_options=QUICKLY)({"params": draw_params(config)}, *make_batch())


def make_other(config: BERTConfig):
    """Hugging Face's model with our parameters; its table of segments is zero."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    width, p = config.features, jax.tree.map(np.asarray, draw_params(config))
    sizes = {"hidden_size": width, "num_hidden_layers": config.layers, "num_attention_heads": config.heads}
    sizes |= {"intermediate_size": config.feed_forward, "vocab_size": config.source_vocab, "hidden_act": "gelu_new"}
    sizes |= {"max_position_embeddings": config.max_positions, "layer_norm_eps": 1e-5}
    other = transformers.BertForMaskedLM(transformers.BertConfig(**sizes, attn_implementation="eager")).eval()
    state = {
        "bert.embeddings.word_embeddings.weight": p["source_embedding"]["table"],
        "bert.embeddings.position_embeddings.weight": p["source_positions"]["table"],
        "bert.embeddings.token_type_embeddings.weight": np.zeros((2, width), np.float32),
        "bert.embeddings.LayerNorm.weight": p["embedding_norm"]["gain"],
        "bert.embeddings.LayerNorm.bias": p["embedding_norm"]["bias"],
        "cls.predictions.transform.dense.weight": p["head"]["kernel"].T,
        "cls.predictions.transform.dense.bias": p["head"]["bias"],
        "cls.predictions.transform.LayerNorm.weight": p["head"]["norm"]["gain"],
        "cls.predictions.transform.LayerNorm.bias": p["head"]["norm"]["bias"],
        "cls.predictions.decoder.weight": p["source_embedding"]["table"],
        "cls.predictions.bias": p["head_softmax"]["bias"],
        "cls.predictions.decoder.bias": p["head_softmax"]["bias"],
    }
    stack = p["encoder_stack"]
    for n in range(config.layers):
        own, at = {name: each[n] for name, each in stack.items()}, f"bert.encoder.layer.{n}"
        for i, name in enumerate(("query", "key", "value")):
            state[f"{at}.attention.self.{name}.weight"] = own["self_qkv_kernel"][:, i].reshape(width, width).T
            state[f"{at}.attention.self.{name}.bias"] = own["self_qkv_bias"][i].reshape(width)
        for ours, theirs in (("self_out", "attention.output"), ("mlp_in", "intermediate"), ("mlp_out", "output")):
            kernel = own[f"{ours}_kernel"]
            outputs = kernel.shape[-1]
            state[f"{at}.{theirs}.dense.weight"] = kernel.reshape(-1, outputs).T
            state[f"{at}.{theirs}.dense.bias"] = own[f"{ours}_bias"]
        for ours, theirs in (("self_norm", "attention.output"), ("mlp_norm", "output")):
            state[f"{at}.{theirs}.LayerNorm.weight"] = own[f"{ours}_gain"]
            state[f"{at}.{theirs}.LayerNorm.bias"] = own[f"{ours}_bias"]
    found = other.load_state_dict({name: torch.tensor(np.array(each)) for name, each in state.items()}, strict=False)
    assert not found.unexpected_keys and not found.missing_keys
    return other


def test_it_is_hugging_face_s():
    other, (tokens, mask) = make_other(TINY), make_batch()
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        wanted = other(torch.tensor(np.array(tokens)).long(), torch.tensor(np.array(mask)).long()).logits.numpy()
    real = np.asarray(mask)
    np.testing.assert_allclose(np.asarray(run(TINY))[real], wanted[real], rtol=1e-4, atol=1e-4)


def test_the_published_size_is_hugging_face_s_but_for_segments():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        other = transformers.BertForMaskedLM(transformers.BertConfig())
    ours = sum(leaf.size for leaf in jax.tree.leaves(shapes_of(PUBLISHED)))
    assert ours == 109_512_762 == sum(each.numel() for each in other.parameters()) - 2 * 768


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_its_encoder_is_a_transformer_s(norm):
    """With the same names and shapes, and without what a Transformer has not: the same memory."""
    same = SIZES | {"norm": norm, "positions": "sinusoidal", "activation": "relu", "init_scale": 0.0}
    bert = BERTConfig(VOCAB, VOCAB, layers=2, embedding_norm=False, head=False, **same)
    config = TransformerConfig(VOCAB, VOCAB, encoder_layers=2, decoder_layers=1, share_embeddings="target", **same)
    tokens, mask = make_batch()
    fresh = nn.meta.unbox(Transformer(config).init(jax.random.key(0), tokens, mask, tokens))["params"]
    drawn = draw_params(bert)
    shared = {name: value for name, value in drawn.items() if not name.startswith("head")}
    encoder = {name for name in fresh if name.startswith(("encoder", "source"))}
    assert set(shared) == encoder
    assert jax.tree.map(jnp.shape, shared) == jax.tree.map(jnp.shape, {name: fresh[name] for name in encoder})
    memories = [
        module.apply({"params": params}, tokens, mask, train=False, method="encode")
        for module, params in ((BERT(bert), drawn), (Transformer(config), fresh | shared))
    ]
    np.testing.assert_allclose(memories[0].hidden, memories[1].hidden, rtol=1e-5, atol=1e-5)
    assert isinstance(BERT(bert), MaskedModel) and not isinstance(Transformer(config), MaskedModel)


@pytest.mark.parametrize("positions", ["learned", "relative", "rotary"])
def test_packed_rows_are_the_texts_they_hold(positions):
    config = BERTConfig(VOCAB, VOCAB, layers=1, **SIZES | {"positions": positions})
    tokens, mask = make_batch()
    module, params = BERT(config), {"params": draw_params(config)}
    alone = module.apply(params, tokens, mask, train=False, method="encode").hidden
    lengths = np.array([4, 1])  # of the second row and the third, in one
    row = jnp.asarray(np.concatenate([tokens[1, :4], tokens[2, :1], [0]])[None])
    segments, places = jnp.asarray([[1, 1, 1, 1, 2, 0]], jnp.int32), jnp.asarray([[0, 1, 2, 3, 0, 0]], jnp.int32)
    packing = Packing(segments, places, segments, places)
    packed = module.apply(params, row, segments > 0, train=False, packing=packing, method="encode").hidden
    np.testing.assert_allclose(packed[0, : lengths[0]], alone[1, :4], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(packed[0, lengths[0]], alone[2, 0], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(packed[0, 5], 0.0)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"norm": "both"}, "`norm` must be one of"),
        ({"layers": 0}, "`layers` must be at least 1, but is 0"),
        ({"heads": 3}, "`heads` must divide features=8, but is 3"),
        ({"dropout": 1.0}, r"`dropout` must be in \[0, 1\), but is 1.0"),
        ({"linformer": 2, "positions": "rotary"}, "`positions` must be 'sinusoidal' or 'learned' with `linformer`"),
        ({"features": 10, "heads": 5, "positions": "rotary"}, None),
        ({"features": 6, "positions": "rotary"}, "`features` must be a multiple of 4"),
    ],
    ids=str,
)
def test_sizes_that_contradict_each_other_are_refused(changes, told):
    if told is None:
        BERTConfig(VOCAB, VOCAB, **SIZES | changes)
        return
    with pytest.raises(ValueError, match=told) as refused:
        BERTConfig(VOCAB, VOCAB, **SIZES | changes)
    assert "\n" not in str(refused.value)


def test_linformer_and_packing_exclude_each_other():
    config = BERTConfig(VOCAB, VOCAB, layers=1, linformer=2, **SIZES)
    tokens, mask = make_batch()
    segments = mask.astype(jnp.int32)
    packing = Packing(segments, segments, segments, segments)
    with pytest.raises(UserError, match=r"data\.pack must be False with config\.model\.linformer"):
        BERT(config).apply({"params": draw_params(config)}, tokens, mask, train=False, packing=packing, method="encode")
