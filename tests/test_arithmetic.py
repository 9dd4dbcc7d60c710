"""What a token costs: by hand, by the products of a traced program, and by counting what a mask shows."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.extend.core import jaxprs_in_params

from seq2seq_jax.arithmetic import count_scored, count_token, count_weights
from seq2seq_jax.config import check_config, default_config
from seq2seq_jax.errors import UserError
from seq2seq_jax.experiment import make_model, make_parameters
from seq2seq_jax.modes.describe import describe, render, render_flops

BERT = {"features": 16, "layers": 2, "heads": 2, "feed_forward": 40, "max_positions": 24}


def make_shapes(config, vocab):
    module, model_config = make_model(config, vocab, vocab)
    shapes = jax.eval_shape(lambda: make_parameters(module(model_config), jax.random.key(0)))
    return module(model_config), nn.meta.unbox(shapes)


def count_products(jaxpr) -> float:
    """Operations of all products of matrices in a traced program, those of programs inside it included."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            wide = np.prod([equation.invars[0].aval.shape[axis] for axis in contracted])
            total += 2.0 * wide * np.prod(equation.outvars[0].aval.shape)
        total += sum(count_products(inner) for inner in jaxprs_in_params(equation.params))
    return total


def test_a_token_of_the_base_model_costs_what_the_paper_s_sizes_come_to():
    config = default_config("transformer")
    sizes = {"features": 512, "encoder_layers": 6, "decoder_layers": 6, "heads": 8, "feed_forward": 2048}
    config.model.update(sizes)
    found = count_token(make_shapes(config, 37_000)[1], config, source_len=50, target_len=39)
    square, inner = 512 * 512, 2 * 512 * 2048
    source = 6 * (6 * (4 * square + inner) + 6 * 2 * square)  # the encoder, and keys and values of its memory
    target = 6 * (6 * (6 * square + inner) + 37_000 * 512)
    assert (source, target) == (132_120_576, 245_784_576)
    np.testing.assert_allclose((found["source"], found["target"]), (source, target), rtol=3e-3)  # biases and gains
    # A key of 512 numbers and its value, two operations a number, once forward and twice backward; six layers.
    assert found["source_scores"] == 50 * 512 * 2 * 2 * 3 * 6
    assert found["target_scores"] == (50 + 20) * 512 * 2 * 2 * 3 * 6  # of 39 causal ones 20 in the mean


@pytest.mark.parametrize("linformer", [{}, {"linformer": 4}, {"linformer": 4, "linformer_share": "layers"}])
def test_weights_and_scores_are_the_products_of_the_traced_encoder(linformer):
    config, length = default_config("bert"), 12
    config.model.update(BERT | linformer)
    model, params = make_shapes(config, 50)
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)

    def fill(params, tokens):
        def run(model):
            memory = model.encode(tokens, jnp.ones(tokens.shape, bool), train=False)
            return model.project(model.fill(memory.hidden))

        return model.apply({"params": params}, method=run)

    computed = count_products(jax.make_jaxpr(fill)(params, tokens).jaxpr)
    vectors = sum(
        leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if str(path[-1].key).endswith(("bias", "gain"))
    )
    weights = sum(count_weights(params, config)) - vectors  # here every token meets the softmax
    scores = count_scored(config.model, length, 0)[0] * 2 * 2 * config.model.features
    assert length * (2 * weights + scores) == computed


@pytest.mark.parametrize("prefix", ["causal", "full"])
def test_a_gpt_scores_what_its_mask_shows(prefix):
    source, target = 5, 4
    seen = np.tril(np.ones((source + target, source + target)))
    if prefix == "full":
        seen[:source, :source] = 1
    keys = default_config("gpt").model
    keys.update(layers=3, prefix=prefix)
    found = count_scored(keys, source, target)
    assert found == (3 * seen[:source].sum() / source, 3 * seen[source:].sum() / target)


def test_the_line_has_sides_that_are_read_and_no_scores_of_recurrent_layers():
    config = default_config("language_model")
    _, params = make_shapes(config, 50)
    line = render_flops(count_token(params, config, source_len=80, target_len=80))
    assert line.startswith("arithmetic of training: ") and line.endswith(" MFLOP a target token")
    assert "source" not in line and "scores" not in line
    of_bert = count_token(
        make_shapes(default_config("bert"), 50)[1], default_config("bert"), source_len=7, target_len=9
    )
    line = render_flops(of_bert)
    assert "MFLOP a source token" in line and "target" not in line and "have 7 tokens" in line


def test_describe_tells_it_of_the_longest_texts():
    config = default_config("transformer")
    config.data.update(max_source_len=30, max_target_len=40)
    report = describe(config, Path("/nonexistent"))
    line = render_flops(report["flops_per_token"])
    assert line in render(report) and "have 30 + 40 tokens, the longest" in line


@pytest.mark.parametrize("name", ["transformer", "bert"])
def test_linformer_with_packed_rows_is_refused_before_anything_is_read(name):
    config = default_config(name)
    if name == "bert":
        config.train.patience_metric = "loss"
    config.data.pack = True
    check_config(config)
    config.model.linformer = 8
    with pytest.raises(UserError, match=r"config\.model\.linformer must be 0 with config\.data\.pack, but is 8"):
        check_config(config)
