"""RNNsearch against its appendix in plain float64 numpy, a sentence and a step at a time; and its size."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from seq2seq_jax.experiment import make_model
from seq2seq_jax.models.rnnsearch import RNNsearch, RNNsearchConfig

VOCAB, SOURCE_VOCAB = 11, 13
SIZES = {"features": 6, "embedding_features": 5, "attention_features": 7, "readout_features": 4}
LUONG = {"attention_from": "current_step", "readout": "tanh"}
CASES = {
    "paper": {},
    "newest state, general": {"readout_state": "newest", "attention": "general"},
    "luong, general": LUONG | {"attention": "general"},
    "luong, dot": LUONG | {"attention": "dot"},
    "lstm, dot": {"cell": "lstm", "attention": "dot"},
}
QUICKLY = {"xla_backend_optimization_level": 0}  # compiling is nearly all that these tests do
# Sentence pairs without padding: source, target fed in.
PAIRS = [([4, 9, 5, 3], [2, 6, 7, 10, 4]), ([8, 3], [2, 5]), ([10, 4, 4, 7, 6, 3], [2, 9, 8])]


# --- the appendix, with the parameters' names ------------------------------------------------------------------------


def sigma(x):
    return 1.0 / (1.0 + np.exp(-x))


def gated_unit(layer, x, h):
    """A.1.1: `h' = (1 - z) h~ + z h` with the gates r, z and the candidate h~, r applied to the product with h."""
    r, z, new = np.split(x @ layer["input_kernel"] + layer["bias"], 3)
    r_h, z_h, new_h = np.split(h @ layer["recurrent_kernel"], 3)
    r, z = sigma(r + r_h), sigma(z + z_h)
    return (1 - z) * np.tanh(new + r * (new_h + layer["candidate_bias"])) + z * h


def memory_unit(layer, x, c, h):
    """An LSTM: gates i, f, g, o."""
    i, f, g, o = np.split(x @ layer["input_kernel"] + h @ layer["recurrent_kernel"] + layer["bias"], 4)
    c = sigma(f) * c + sigma(i) * np.tanh(g)
    return c, sigma(o) * np.tanh(c)


def advance(layer, x, state):
    return memory_unit(layer, x, *state) if len(state) == 2 else (gated_unit(layer, x, *state),)


def run(layer, vectors, width):
    state = (np.zeros(width),) * (2 if layer["recurrent_kernel"].shape[1] == 4 * width else 1)
    outputs = []
    for x in vectors:
        state = advance(layer, x, state)
        outputs.append(state[-1])
    return outputs


def align(attention, s, annotations):
    """A.1.2 (additive), or Luong et al., equation 8: the weights of all annotations."""
    if "v" in attention:
        asked = s @ attention["query_kernel"] + attention["bias"]
        scores = [attention["v"] @ np.tanh(asked + h @ attention["key_kernel"]) for h in annotations]
    elif attention:
        scores = [s @ (h @ attention["key_kernel"]) for h in annotations]
    else:
        scores = [s @ (h[: len(s)] + h[len(s) :]) for h in annotations]
    weights = np.exp(np.array(scores) - max(scores))
    return weights / weights.sum()


def translate(params, config, source, target_in):
    """Logits `[T, V]` and weights `[T, S]` of a sentence pair (A.2.1, A.2.2)."""
    words = [params["source_embedding"]["table"][token] for token in source]
    ahead = run(params["encoder_forward"], words, config.features)
    back = run(params["encoder_backward"], words[::-1], config.features)[::-1]
    annotations = [np.concatenate(pair) for pair in zip(ahead, back, strict=True)]
    first = np.tanh(back[0] @ params["first_state"]["kernel"] + params["first_state"]["bias"])
    state = (first,) if config.cell == "gru" else (np.zeros(config.features), first)
    attention, readout, softmax = params.get("attention", {}), params["readout"], params["softmax"]
    logits, found = [], []
    for token in target_in:
        y, asking = params["target_embedding"]["table"][token], state
        if config.attention_from == "current_step":
            asking = state = advance(params["decoder"], y, state)
        weights = align(attention, asking[-1], annotations)
        context = sum(a * h for a, h in zip(weights, annotations, strict=True))
        if config.attention_from == "previous_step":
            state = advance(params["decoder"], np.concatenate([y, context]), state)
        s = (asking if config.readout_state == "asking" else state)[-1]
        if config.readout == "maxout":
            before = np.concatenate([s, y, context]) @ readout["kernel"] + readout["bias"]
            half = len(before) // 2
            t = np.array([max(before[j], before[half + j]) for j in range(half)])
        else:
            t = np.tanh(np.concatenate([context, s]) @ readout["kernel"] + readout["bias"])
        logits.append(softmax["kernel"] @ t + softmax["bias"])
        found.append(weights)
    return np.stack(logits), np.stack(found)


# --- the module ------------------------------------------------------------------------------------------------------


def make_module(case: str) -> RNNsearch:
    return RNNsearch(RNNsearchConfig(SOURCE_VOCAB, VOCAB, **SIZES, init_scale=0.1, **CASES[case]))


def example_inputs() -> tuple[jax.Array, jax.Array, jax.Array]:
    tokens = jnp.ones((1, 2), jnp.int32)
    return tokens, tokens > 0, tokens


def find_shapes(module: nn.Module):
    return nn.meta.unbox(jax.eval_shape(lambda: module.init(jax.random.key(0), *example_inputs())))["params"]


def draw_params(module: nn.Module) -> dict:
    """Parameters large enough that every gate bends, biases included."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(0.0, 0.6, leaf.shape).astype(np.float32), find_shapes(module))


def pad(rows: list[list[int]], length: int) -> jax.Array:
    """What stands in the padding must not matter."""
    return jnp.array([row + [9] * (length - len(row)) for row in rows], jnp.int32)


@pytest.mark.parametrize("case", CASES)
def test_equals_the_appendix(case):
    module = make_module(case)
    params, source = draw_params(module), pad([row for row, _ in PAIRS], 8)
    mask = jnp.arange(8) < jnp.array([len(row) for row, _ in PAIRS])[:, None]

    def run_all(params, source, mask, target_in):
        def everything(module):
            memory = module.encode(source, mask, train=False)
            output = module.decode(target_in, memory, train=False)
            cache, steps = module.init_cache(memory, target_in.shape[1]), []
            for t in range(2):  # the first steps of a search: the first state, and the one after it
                step = module.decode_step(target_in[:, t], jnp.full(len(PAIRS), t), memory, cache)
                steps.append(module.project(step.hidden))
                cache = step.cache
            return module.project(output.hidden), output.attention, jnp.stack(steps, 1)

        return module.apply({"params": params}, method=everything)

    compiled = jax.jit(run_all, compiler_options=QUICKLY)
    logits, attention, steps = compiled(params, source, mask, pad([row for _, row in PAIRS], 6))
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    for row, (words, target_in) in enumerate(PAIRS):
        wanted, weights = translate(exact, module.config, words, target_in)
        np.testing.assert_allclose(logits[row, : len(target_in)], wanted, atol=2e-5)
        np.testing.assert_allclose(attention[row, : len(target_in), : len(words)], weights, atol=2e-6)
        np.testing.assert_allclose(steps[row], wanted[:2], atol=2e-5)


# --- sizes, first values and refusals ---------------------------------------------------------------------------------


def load_config(name: str):
    path = Path(__file__).resolve().parents[2] / "configs" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{name}_config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def published_size(n: int, m: int, hidden: int, half: int, words: int) -> int:
    """Appendix A.2: the matrices of the paper's equations, and the biases that it leaves out of them.

    `hidden` is n' and `half` l. A gated unit has one bias more, inside the reset gate.
    """

    def gated(inputs: int) -> int:
        return 3 * (n * inputs + n * n + n) + n  # W and U of the gates r and z and of the candidate

    tables = 2 * words * m
    first_state = n * n + n
    alignment = hidden * n + hidden * 2 * n + hidden + hidden  # W_a, U_a, v_a and a bias
    readout = 2 * half * (n + m + 2 * n) + 2 * half  # U_o, V_o, C_o
    softmax = words * half + words
    return tables + 2 * gated(m) + first_state + alignment + gated(m + 2 * n) + readout + softmax


def test_the_paper_s_size():
    config = load_config("rnnsearch").get_config("paper")
    module, sizes = make_model(config, config.vocab.size, config.vocab.size)
    counted = sum(leaf.size for leaf in jax.tree.leaves(find_shapes(module(sizes))))
    assert counted == published_size(1000, 620, 1000, 500, 30_000) == 80_446_000
    defaults = RNNsearchConfig(30_000, 30_000)
    assert (sizes.features, sizes.embedding_features) == (defaults.features, defaults.embedding_features) == (1000, 620)


def test_small_is_the_lstm_s_small_but_for_the_model():
    ours, theirs = (load_config(name).get_config("small").to_dict() for name in ("rnnsearch", "lstm"))
    model = ours.pop("model"), theirs.pop("model")
    assert ours == theirs
    for key in ("features", "dropout", "recurrent_dropout", "init_scale", "dtype"):
        assert model[0][key] == model[1][key], key


def test_first_values_are_the_paper_s():
    cfg = RNNsearchConfig(
        40, 50, 30, 20, 25, 10, init_scale=0.01732, attention_init_scale=0.001732, recurrent_init="orthogonal"
    )
    params = nn.meta.unbox(RNNsearch(cfg).init(jax.random.key(0), *example_inputs()))["params"]
    for name in ("encoder_forward", "encoder_backward", "decoder"):
        for block in np.split(np.asarray(params[name]["recurrent_kernel"]), 3, axis=1):
            np.testing.assert_allclose(block.T @ block, np.eye(30), atol=1e-5)
        assert not params[name]["bias"].any() and not params[name]["candidate_bias"].any()
    for leaf, deviation in (
        (params["decoder"]["input_kernel"], 0.01),
        (params["readout"]["kernel"], 0.01),
        (params["source_embedding"]["table"], 0.01),
        (params["attention"]["key_kernel"], 0.001),
    ):
        assert abs(float(leaf.std()) / deviation - 1.0) < 0.1


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("attention", {"attention": "multiplicative"}),
        ("attention_from", {"attention_from": "next_step"}),
        ("readout", {"readout": "relu"}),
        ("readout_state", {"readout_state": "oldest"}),
        ("recurrent_init", {"recurrent_init": "zeros"}),
        ("embedding_features", {"embedding_features": 0}),
        ("layer_norm", {"layer_norm": True}),
        ("cells", {"cells": 7}),
        ("dropout", {"dropout": 1.0}),
    ],
)
def test_config_names_the_field_that_is_wrong(field, change):
    with pytest.raises(ValueError, match=f"`{field}`"):
        RNNsearchConfig(**({"source_vocab": 8, "target_vocab": 8} | change))
