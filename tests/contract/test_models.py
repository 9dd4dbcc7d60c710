"""What every model of `MODELS` promises, tested by the protocols that it keeps. A new model adds one line to `TINY`."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from seq2seq_jax import interfaces
from seq2seq_jax.layers.frontend import Frontend
from seq2seq_jax.models import MODELS
from seq2seq_jax.train.optimizers import find_matrices

B, S, T, VOCAB = 4, 6, 5, 13
SIZES = {"source_vocab": VOCAB + 2, "target_vocab": VOCAB, "features": 8, "dropout": 0.2}
GNMT_SIZES = SIZES | {"encoder_layers": 2, "decoder_layers": 3, "attention_features": 6}
RNNSEARCH_SIZES = SIZES | {"embedding_features": 7, "attention_features": 6, "readout_features": 5}
TRANSFORMER_SIZES = SIZES | {"encoder_layers": 2, "decoder_layers": 2, "heads": 2, "feed_forward": 12}
TRANSFORMER_SIZES |= {"share_embeddings": "none"}
GPT_SIZES = SIZES | {"layers": 2, "heads": 2, "feed_forward": 12, "share_embeddings": "target", "max_positions": 19}
BERT_SIZES = SIZES | {"layers": 2, "heads": 2, "feed_forward": 12, "max_positions": 11}
FRONTEND = Frontend(rate=800, hop=8, window=20, fft=32, mels=5, low=0.0, normalisation="none")
SPEECH_SIZES = {"target_vocab": VOCAB, "dropout": 0.2, "frontend": FRONTEND, "reduction": 2, "listener_layers": 2}
SPEECH_SIZES |= {"listener_features": 8, "heads": 2, "feed_forward": 12, "kernel": 3, "channels": 3}
LAS_SIZES = SPEECH_SIZES | {"features": 8, "attention_features": 6, "location_filters": 3, "location_width": 3}
TINY = {
    "bert": BERT_SIZES,
    "bert-encoder": BERT_SIZES
    | {"embedding_norm": False, "head": False, "positions": "sinusoidal", "activation": "relu"},
    "bert-pre": BERT_SIZES | {"norm": "pre", "positions": "relative", "activation": "swiglu", "layers": 1},
    "ctc": SPEECH_SIZES | {"listener_layers": 3},
    "ctc-conformer": SPEECH_SIZES
    | {"listener": "conformer", "subsample": "conv", "reduction": 4, "listener_layers": 1},
    "ctc-convolved": SPEECH_SIZES | {"subsample": "conv", "cell": "gru", "recurrent_dropout": 0.2},
    "gnmt": GNMT_SIZES | {"attention_from": "previous_step"},
    "gnmt-current_step": GNMT_SIZES | {"attention_from": "current_step", "encoder_layers": 1},
    "gnmt-gru": GNMT_SIZES | {"attention_from": "previous_step", "cell": "gru", "attention": "general"},
    "gnmt-normalised": GNMT_SIZES
    | {"attention_from": "current_step", "cell": "lstm_peephole", "cells": 10, "layer_norm": True}
    | {"recurrent_dropout": 0.2},
    "gpt": GPT_SIZES,
    "gpt-full": GPT_SIZES | {"prefix": "full", "positions": "relative", "share_embeddings": "none", "layers": 1},
    "gpt-rotary": GPT_SIZES | {"positions": "rotary", "norm": "post", "activation": "swiglu"},
    "gpt-language_model": GPT_SIZES | {"source": False},
    "language_model": SIZES | {"layers": 2, "share_embeddings": "target"},
    "language_model-two_tables": SIZES | {"layers": 1, "share_embeddings": "none"},
    "las": LAS_SIZES | {"frontend": dataclasses.replace(FRONTEND, log="whisper", mel_scale="slaney")},
    "las-conformer": LAS_SIZES
    | {"listener": "conformer", "subsample": "conv", "positions": "relative", "ctc_head": True, "listener_layers": 1},
    "las-content": LAS_SIZES
    | {"attention": "content", "subsample": "vgg", "cell": "lstm_peephole", "cells": 10, "layer_norm": True}
    | {"recurrent_dropout": 0.2, "speller_layers": 2, "listener_layers": 1},
    "lstm": SIZES | {"layers": 2},
    "lstm-projected": SIZES | {"layers": 2, "cells": 11, "recurrent_dropout": 0.2},
    "rnnsearch": RNNSEARCH_SIZES,
    "rnnsearch-dot": RNNSEARCH_SIZES | {"attention": "dot", "cell": "lstm", "readout_state": "newest"},
    "rnnsearch-luong": RNNSEARCH_SIZES
    | {"attention": "general", "attention_from": "current_step", "readout": "tanh", "cell": "lstm_peephole"}
    | {"cells": 10, "layer_norm": True, "recurrent_dropout": 0.2},
    "transformer": TRANSFORMER_SIZES | {"share_embeddings": "target"},
    "transformer-learned": TRANSFORMER_SIZES | {"positions": "learned", "max_positions": 16, "activation": "gelu"},
    "transformer-linformer": TRANSFORMER_SIZES
    | {"decoder_layers": 1, "linformer": 3, "linformer_share": "layers", "max_positions": 11},
    "transformer-relative": TRANSFORMER_SIZES | {"norm": "pre", "positions": "relative", "decoder_layers": 1},
    "transformer-rotary": TRANSFORMER_SIZES | {"norm": "pre", "positions": "rotary", "activation": "swiglu"},
}
"""Name in `MODELS`, and after a hyphen which variant of it -> the fields of a tiny config."""


compile_quickly = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""`jax.jit` in half the time: compiling is nearly all that these tests do."""


class Case:
    """One tiny model, its parameters and its compiled functions, shared by all tests of it."""

    def __init__(self, name: str, **changes: str) -> None:
        module, config = MODELS[name.partition("-")[0]]
        self.name, self.module = name, module(config(**TINY[name] | changes))
        self.masked = isinstance(self.module, interfaces.MaskedModel)
        self.listens = isinstance(self.module, interfaces.FrameModel)
        self.decodes = isinstance(self.module, interfaces.Seq2Seq)
        inputs = (*self.make_source(2, 3), jnp.ones((2, 3), jnp.int32))[: 3 if self.decodes else 2]
        self.boxed = jax.eval_shape(lambda: self.module.init(jax.random.key(0), *inputs))
        rng = np.random.default_rng(0)
        self.params = jax.tree.map(
            lambda leaf: jnp.asarray(rng.normal(0.0, 0.4, leaf.shape), leaf.dtype), nn.meta.unbox(self.boxed)["params"]
        )
        self.graded = compile_quickly(jax.value_and_grad(self.loss, has_aux=True))
        self.batch = make_batch(self.listens)

    def make_source(self, rows: int, length: int) -> tuple[jax.Array, jax.Array]:
        """Any source and its mask."""
        source = jnp.ones((rows, length, FRONTEND.hop)) if self.listens else jnp.ones((rows, length), jnp.int32)
        return source, jnp.ones((rows, length), bool)

    def loss(self, params: dict, batch: interfaces.Batch, dropout: jax.Array | None = None):
        """Cross-entropy summed over real target tokens; also everything that was made on the way.

        Of a masked model it is that of all source tokens, none of them hidden, and there is no decoder's output; nor
        is there one of a model that labels frames alone, whose loss is that of all frames. One that does both has both.
        """
        rngs = None if dropout is None else {"dropout": dropout}

        def run(module):
            memory = module.encode(batch.source, batch.source_mask, train=dropout is not None)
            if self.masked:
                return memory, None, module.project(module.fill(memory.hidden)), None
            frames = module.project_frames(memory) if self.labels_frames else None
            if not self.decodes:
                return memory, None, frames, frames
            output = module.decode(batch.target_in, memory, train=dropout is not None)
            return memory, output, module.project(output.hidden), frames

        memory, output, logits, frames = self.module.apply({"params": params}, rngs=rngs, method=run)
        loss = jnp.zeros(())
        if self.masked:
            loss += count_loss(logits, batch.source, batch.source_mask)
        if self.decodes:
            loss += count_loss(logits, batch.target_out, batch.target_mask)
        if frames is not None:
            labels = jnp.broadcast_to(jnp.arange(frames.shape[1]) % VOCAB, memory.mask.shape)
            loss += count_loss(frames, labels, memory.mask)
        return loss, (memory, output, logits)

    @property
    def labels_frames(self) -> bool:
        """It has a softmax of frames: always, or where its config says so."""
        return self.listens and getattr(self.module.config, "ctc_head", True)

    @functools.cached_property
    def plain(self):
        """Loss, what was made on the way, and gradients of the batch without dropout."""
        (loss, made), gradients = self.graded(self.params, self.batch)
        return loss, made, gradients

    def dropped(self, seed: int):
        """The same under dropout."""
        (loss, made), gradients = self.graded(self.params, self.batch, jax.random.key(seed))
        return loss, made, gradients


def count_loss(logits: jax.Array, wanted: jax.Array, real: jax.Array) -> jax.Array:
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), wanted[..., None], axis=-1)[..., 0]
    return -jnp.sum(jnp.where(real, picked, 0.0))


def make_batch(waveform: bool = False) -> interfaces.Batch:
    """Rows of different lengths, with real-looking tokens, or samples, in the padding."""
    rng = np.random.default_rng(1)
    targets = rng.integers(4, VOCAB, (B, T + 1))
    targets[:, 0] = 2
    source_mask = np.arange(S) < np.array([S, 3, 1, 4])[:, None]
    target_mask = np.arange(T) < np.array([2, T, 4, 1])[:, None]
    source = rng.integers(4, VOCAB + 2, (B, S)).astype(np.int32)
    batch = interfaces.Batch(
        source=rng.normal(0.0, 0.3, (B, S, FRONTEND.hop)).astype(np.float32) if waveform else source,
        source_mask=source_mask,
        target_in=targets[:, :-1].astype(np.int32),
        target_out=targets[:, 1:].astype(np.int32),
        target_mask=target_mask,
        example_ids=np.arange(B, dtype=np.int32),
        row_mask=np.ones(B, bool),
    )
    return jax.tree.map(jnp.asarray, batch)


def widen(batch: interfaces.Batch) -> interfaces.Batch:
    """Five more source positions, three more target positions and one row that only fills the batch."""

    def grow(array: jax.Array, columns: int, filler: int | bool) -> jax.Array:
        return jnp.pad(array, ((0, 1), (0, columns), *[(0, 0)] * (array.ndim - 2)), constant_values=filler)

    return dataclasses.replace(
        batch,
        source=grow(batch.source, 5, 7),
        source_mask=grow(batch.source_mask, 5, False),
        target_in=grow(batch.target_in, 3, 6),
        target_out=grow(batch.target_out, 3, 5),
        target_mask=grow(batch.target_mask, 3, False),
        example_ids=jnp.append(batch.example_ids, -1),
        row_mask=jnp.append(batch.row_mask, False),
    )


def assert_near(got, want, tolerance: float = 2e-5) -> None:
    """Two trees of arrays are equal up to rounding."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, a), b in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=jax.tree_util.keystr(path))


@functools.cache
def get_case(name: str) -> Case:
    return Case(name)


@pytest.fixture(params=TINY)
def case(request: pytest.FixtureRequest) -> Case:
    return get_case(request.param)


@pytest.fixture
def seq2seq(case: Case) -> Case:
    if not isinstance(case.module, interfaces.Seq2Seq):
        pytest.skip("not a Seq2Seq")
    return case


@pytest.fixture
def trained(case: Case) -> Case:
    """Every model that learns from sources: with a decoder, by filling its source, or by labelling its frames."""
    if not (case.masked or case.decodes or case.listens):
        pytest.skip("neither a Seq2Seq nor a MaskedModel nor a FrameModel")
    return case


def test_every_model_is_tested():
    assert {name.partition("-")[0] for name in TINY} == set(MODELS)
    assert sum(isinstance(get_case(name).module, interfaces.Seq2Seq) for name in TINY) >= 3


def test_steps_equal_teacher_forcing(seq2seq):
    _, (memory, output, _), _ = seq2seq.plain
    apply, variables, cls = seq2seq.module.apply, {"params": seq2seq.params}, type(seq2seq.module)
    step = compile_quickly(functools.partial(apply, variables, method=cls.decode_step))
    cache = apply(variables, memory, T, method=cls.init_cache)
    quick = isinstance(seq2seq.module, interfaces.QuickSteps)
    more = (apply(variables, method=cls.step_weights),) if quick else ()  # made once, before the loop
    for t in range(T):
        result = step(seq2seq.batch.target_in[:, t], jnp.full(B, t), memory, cache, *more)
        cache = result.cache
        assert_near(result.hidden, output.hidden[:, t])
        if output.attention is not None:
            assert_near(result.attention, output.attention[:, t])


def test_the_future_is_not_read(seq2seq):
    _, (_, output, _), _ = seq2seq.plain
    later = seq2seq.batch.target_in.at[:, 3:].set(4)
    _, (_, changed, _) = seq2seq.graded(seq2seq.params, seq2seq.batch.replace(target_in=later))[0]
    assert_near(changed.hidden[:, :3], output.hidden[:, :3], 0.0)
    assert np.abs(changed.hidden[:, 3:] - output.hidden[:, 3:]).max() > 1e-3


def test_the_source_is_read(seq2seq):
    if "language_model" in seq2seq.name:
        pytest.skip("reads no source")
    _, (_, output, _), _ = seq2seq.plain
    _, (_, changed, _) = seq2seq.graded(seq2seq.params, seq2seq.batch.replace(source=seq2seq.batch.source - 1))[0]
    assert (np.abs(changed.hidden - output.hidden).max(axis=(1, 2)) > 1e-4).all()


def test_padding_and_filling_rows_change_nothing(trained):
    loss, (memory, output, logits), gradients = trained.plain
    (wide_loss, (wide_memory, wide_output, wide_logits)), wide_gradients = trained.graded(
        trained.params, widen(trained.batch)
    )
    assert_near(wide_loss, loss, 1e-6)
    assert_near(wide_gradients, gradients)
    if not trained.masked:  # whose padding is read by padding alone
        assert_near(wide_logits[:B, : logits.shape[1]], logits)
    length = memory.hidden.shape[1]
    assert_near(wide_memory.hidden[:B, :length], memory.hidden)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((wide_memory, wide_output, wide_logits)))
    np.testing.assert_array_equal(np.where(wide_memory.mask[..., None], 0.0, wide_memory.hidden), 0.0)
    if output is not None and output.attention is not None:
        assert_near(wide_output.attention[:B, :T, :length], output.attention)
        np.testing.assert_array_equal(wide_output.attention[:B, :, length:], 0.0)


def test_attention_rows_sum_to_one(seq2seq):
    _, (memory, output, _), _ = seq2seq.plain
    if output.attention is None:
        pytest.skip("no attention")
    assert output.attention.shape == (B, T, memory.mask.shape[1])
    assert_near(output.attention.sum(-1), np.ones((B, T)), 1e-6)


def test_permuting_the_batch_permutes_the_result(trained):
    loss, made, gradients = trained.plain
    order = np.array([2, 0, 3, 1])
    (permuted_loss, permuted), permuted_gradients = trained.graded(
        trained.params, jax.tree.map(lambda leaf: leaf[order], trained.batch)
    )
    assert_near(permuted, jax.tree.map(lambda leaf: leaf[order], made), 1e-6)
    assert_near(permuted_loss, loss, 1e-6)
    assert_near(permuted_gradients, gradients, 1e-5)


@pytest.mark.parametrize("batch", [1, 7])
def test_memory_and_cache_lead_with_the_batch(seq2seq, batch):
    def start(module):
        tokens = jnp.ones((batch, 3), jnp.int32)
        memory = module.encode(*seq2seq.make_source(batch, 3), train=False)
        cache = module.init_cache(memory, 5)
        return memory, cache, module.decode_step(tokens[:, 0], tokens[:, 0], memory, cache).cache

    memory, cache, after = jax.eval_shape(lambda p: seq2seq.module.apply({"params": p}, method=start), seq2seq.params)
    assert jax.tree.leaves(cache) and jax.tree.leaves(memory)
    assert all(leaf.shape[:1] == (batch,) for leaf in jax.tree.leaves((memory, cache)))
    # A search carries the cache through a loop: a step must leave its shapes and dtypes as they are.
    assert after == cache


def test_every_parameter_names_its_axes(case):
    boxed = jax.tree.leaves_with_path(case.boxed, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned))
    for path, leaf in boxed:
        name = jax.tree_util.keystr(path)
        assert isinstance(leaf, nn.LogicallyPartitioned), name
        assert len(leaf.names) == leaf.value.ndim, name
        assert all(axis is None or isinstance(axis, str) for axis in leaf.names), name  # None: it is never split
        assert any(leaf.names), name
        assert leaf.value.dtype == jnp.float32, name


def test_weight_decay_is_of_matrices_alone(case):
    chosen = jax.tree_util.tree_leaves_with_path(find_matrices(nn.meta.unbox(case.boxed)["params"]))
    for path, decayed in chosen:
        name = path[-1].key
        assert decayed == name.endswith(("kernel", "table")), name


def test_every_parameter_is_trained_under_dropout(trained):
    loss, _, gradients = trained.dropped(seed=0)
    assert np.isfinite(loss)
    for path, leaf in jax.tree.leaves_with_path(gradients):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(leaf).all(), name
        assert np.abs(leaf).max() > 0, name


def test_the_key_decides_what_is_dropped(trained):
    losses = [float(trained.dropped(seed)[0]) for seed in (0, 0, 1)]
    assert losses[0] == losses[1]
    assert len({losses[0], losses[2], float(trained.plain[0])}) == 3


def test_softmax_weights_are_the_projection(trained):
    _, (memory, output, logits), _ = trained.plain
    apply, cls = functools.partial(trained.module.apply, {"params": trained.params}), type(trained.module)
    if trained.labels_frames and not trained.decodes:
        kernel, bias = apply(method=cls.frame_weights)
        hidden = memory.hidden
    else:
        kernel, bias = apply(method=cls.softmax_weights)
        hidden = apply(memory.hidden, method=cls.fill) if trained.masked else output.hidden
    want = np.asarray(hidden, np.float64) @ np.asarray(kernel, np.float64).T
    assert logits.dtype == jnp.float32
    assert_near(logits, want + (0 if bias is None else np.asarray(bias, np.float64)))


def test_bfloat16_is_near_float32(trained):
    low = Case(trained.name, dtype="bfloat16")
    loss, (memory, output, logits) = compile_quickly(low.loss)(low.params, low.batch)
    want_loss, (_, _, want_logits), _ = trained.plain
    hidden = memory.hidden if output is None else output.hidden
    assert (hidden.dtype, memory.hidden.dtype, logits.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(loss, want_loss, rtol=0.01)
    assert np.abs(logits - want_logits).max() < 0.05 * np.abs(want_logits).max()


def test_call_gives_logits(seq2seq):
    batch = seq2seq.batch
    inputs = (batch.source, batch.source_mask, batch.target_in)
    whole = jax.eval_shape(seq2seq.module.apply, {"params": seq2seq.params}, *inputs)
    assert (whole.shape, whole.dtype) == ((B, T, VOCAB), jnp.float32)
