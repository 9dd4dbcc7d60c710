"""GPT against Hugging Face's GPT-2, as a language model and as one that translates."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from seq2seq_jax.decode.steps import Inputs, fuse, language_model_decoder, seq2seq_decoder
from seq2seq_jax.errors import UserError
from seq2seq_jax.models.gpt import GPT, GPTConfig

QUICKLY = {"xla_backend_optimization_level": 0}  # compiling is nearly all that these tests do
B, S, T, VOCAB = 3, 6, 5, 17
TINY = GPTConfig(
    VOCAB, VOCAB, features=8, layers=2, heads=2, feed_forward=12, max_positions=S + T, dropout=0.0, init_scale=0.02
)


def shapes_of(config: GPTConfig) -> dict:
    tokens = jnp.ones((1, 2), jnp.int32)
    made = jax.eval_shape(lambda: GPT(config).init(jax.random.key(0), tokens, tokens > 0, tokens))
    return nn.meta.unbox(made)["params"]


@functools.cache
def draw_params(config: GPTConfig) -> dict:
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0.0, 0.4, leaf.shape), jnp.float32), shapes_of(config))


def make_batch() -> tuple[jax.Array, jax.Array, jax.Array]:
    rng = np.random.default_rng(1)
    mask = np.arange(S) < np.array([S, 4, 1])[:, None]
    source, target = np.split(rng.integers(4, VOCAB, (B, S + T)), [S], axis=1)
    return jnp.asarray(source, jnp.int32), jnp.asarray(mask), jnp.asarray(target, jnp.int32)


@functools.cache
def run(config: GPTConfig):
    """Logits `[B, T, V]` of the batch by teacher forcing, and the same step by step."""

    def both(module, source, mask, target):
        memory = module.encode(source, mask, train=False)
        cache, steps = module.init_cache(memory, T), []
        for t in range(T):
            found = module.decode_step(target[:, t], jnp.full(B, t), memory, cache)
            cache = found.cache
            steps.append(module.project(found.hidden))
        return module.project(module.decode(target, memory, train=False).hidden), jnp.stack(steps, axis=1)

    call = functools.partial(GPT(config).apply, method=both)
    return jax.jit(call, compiler_options=QUICKLY)({"params": draw_params(config)}, *make_batch())


def make_gpt2(config: GPTConfig):
    """Hugging Face's model with our parameters."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    sizes = {"n_embd": config.features, "n_layer": config.layers, "n_head": config.heads}
    sizes |= {"n_inner": config.feed_forward, "n_positions": config.max_positions, "vocab_size": config.target_vocab}
    other = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, attn_implementation="eager")).eval()
    p, width = jax.tree.map(np.asarray, draw_params(config)), config.features
    stack, state = p["stack"], {}
    for n in range(config.layers):
        own = {
            "ln_1.weight": stack["self_norm_gain"][n],
            "ln_1.bias": stack["self_norm_bias"][n],
            "attn.c_attn.weight": stack["self_qkv_kernel"][n].reshape(width, -1),
            "attn.c_attn.bias": stack["self_qkv_bias"][n].reshape(-1),
            "attn.c_proj.weight": stack["self_out_kernel"][n].reshape(width, width),
            "attn.c_proj.bias": stack["self_out_bias"][n],
            "ln_2.weight": stack["mlp_norm_gain"][n],
            "ln_2.bias": stack["mlp_norm_bias"][n],
            "mlp.c_fc.weight": stack["mlp_in_kernel"][n],
            "mlp.c_fc.bias": stack["mlp_in_bias"][n],
            "mlp.c_proj.weight": stack["mlp_out_kernel"][n],
            "mlp.c_proj.bias": stack["mlp_out_bias"][n],
        }
        state |= {f"transformer.h.{n}.{name}": value for name, value in own.items()}
    table = p["target_embedding"]["table"]
    state |= {"transformer.wte.weight": table, "lm_head.weight": table}
    state |= {"transformer.wpe.weight": p["positions"]["table"]}
    state |= {"transformer.ln_f.weight": p["norm"]["gain"], "transformer.ln_f.bias": p["norm"]["bias"]}
    other.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in state.items()}, strict=True)

    def logits(tokens, mask=None) -> np.ndarray:
        """Of a batch of texts `[B, T]`; `mask` `[T, T]` says what each token sees."""
        more = {} if mask is None else {"attention_mask": torch.from_numpy(mask)[None, None]}
        with torch.no_grad():
            return other(torch.tensor(np.asarray(tokens, np.int64)), **more).logits.numpy()

    return logits


def test_as_a_language_model_it_is_hugging_face_s_gpt2():
    config = dataclasses.replace(TINY, source=False)
    wanted = make_gpt2(config)(make_batch()[2]) + np.asarray(draw_params(config)["softmax"]["bias"])
    for found in run(config):
        np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("prefix", ["causal", "full"])
def test_a_translation_goes_on_with_its_source(prefix):
    """Row by row Hugging Face's GPT-2 reads the source's tokens and then the target's, without any padding."""
    config = dataclasses.replace(TINY, prefix=prefix)
    logits, (source, mask, target) = make_gpt2(config), make_batch()
    found = run(config)
    for row, length in enumerate(mask.sum(axis=1).tolist()):
        text = np.concatenate([source[row, :length], target[row]])[None]
        seen = np.tril(np.ones((text.shape[1],) * 2, bool))
        seen[:length, :length] |= prefix == "full"
        hidden = np.where(seen, np.float32(0), np.finfo(np.float32).min)
        wanted = logits(text, hidden)[0, length:] + np.asarray(draw_params(config)["softmax"]["bias"])
        for each in found:
            np.testing.assert_allclose(each[row], wanted, rtol=2e-4, atol=2e-5)
    if prefix == "full":
        assert np.abs(found[0] - run(dataclasses.replace(config, prefix="causal"))[0])[0].max() > 0.01


def test_sizes_are_those_of_gpt2():
    """124,439,808 of the smallest GPT-2, and the bias of our softmax."""
    config = GPTConfig(50_257, 50_257)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes_of(config))) == 124_439_808 + 50_257
    assert shapes_of(config) == shapes_of(dataclasses.replace(config, source=False))


def test_a_language_model_joins_a_search():
    """Log-probabilities of shallow fusion are those of both, added up, whatever the source's length."""
    weight, (source, mask, target) = 0.3, make_batch()
    configs = TINY, dataclasses.replace(TINY, source=False)
    first, second = (GPT(config) for config in configs)
    fused = fuse(seq2seq_decoder(first), language_model_decoder(second), weight)

    def search(params):
        held = fused.encode(params, Inputs(source, mask))
        step, cache, found = fused.make_step(params, held), fused.init_cache(params, held, T), []
        for t in range(T):
            result = step(target[:, t], jnp.full(B, t), cache)
            cache = result.cache
            found.append(result.log_probs)
        return jnp.stack(found, axis=1)

    found = jax.jit(search, compiler_options=QUICKLY)(tuple(draw_params(config) for config in configs))
    own, other = (jax.nn.log_softmax(run(config)[0]) for config in configs)
    np.testing.assert_allclose(found, own + weight * other, rtol=1e-4, atol=1e-4)


def test_a_language_model_reads_nothing_of_its_source():
    config, (source, mask, target) = dataclasses.replace(TINY, source=False), make_batch()
    apply = jax.jit(functools.partial(GPT(config).apply, {"params": draw_params(config)}), compiler_options=QUICKLY)
    np.testing.assert_array_equal(apply(source, mask, target), apply(source[:, ::-1] + 90, ~mask, target))


def test_texts_longer_than_the_table_of_positions_are_refused():
    config, (source, mask, target) = dataclasses.replace(TINY, max_positions=S + T - 1), make_batch()
    with pytest.raises(UserError, match=rf"max_positions must be at least {S + T}, .* is {S + T - 1}"):
        jax.eval_shape(functools.partial(GPT(config).apply, {"params": draw_params(config)}), source, mask, target)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"heads": 5}, "`heads` must divide features=8, but is 5"),
        ({"prefix": "both"}, r"`prefix` must be one of \('causal', 'full'\), but is 'both'"),
        ({"layers": 0}, "`layers` must be at least 1"),
        ({"dropout": 1.0}, "`dropout` must be in"),
        ({"source_vocab": 9}, "`share_embeddings` 'all' must have one vocabulary"),
        ({"positions": "rotary", "features": 6}, "`features` must be a multiple of 4"),
    ],
)
def test_wrong_sizes_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(TINY, **changes)
    assert dataclasses.replace(TINY, source_vocab=9, source=False)
