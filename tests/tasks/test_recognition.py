"""The loss of speech is that of its parts, whatever shares a batch; what recognises gives every utterance its own."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from seq2seq_jax.data.vocab import BOS_ID, EOS_ID
from seq2seq_jax.data.vocab_training import train_vocab
from seq2seq_jax.decode.beam import Beam
from seq2seq_jax.decode.ctc import best_path
from seq2seq_jax.decode.ctc_prefix import Labels, ctc_decoder, join_ctc
from seq2seq_jax.decode.ranking import Ranking
from seq2seq_jax.decode.steps import seq2seq_decoder
from seq2seq_jax.interfaces import Batch
from seq2seq_jax.layers.frontend import Frontend
from seq2seq_jax.layers.spec_augment import Policy, augment, make_keys
from seq2seq_jax.models import MODELS
from seq2seq_jax.parallel.layout import make_layout
from seq2seq_jax.tasks.ctc import ctc_losses
from seq2seq_jax.tasks.engine import Engine
from seq2seq_jax.tasks.loss import make_loss
from seq2seq_jax.tasks.methods import IDS
from seq2seq_jax.tasks.recogniser import Clock, FrameEngine, Recogniser, make_batches, make_frame_search, make_paths
from seq2seq_jax.tasks.recognition import make_speech_loss
from seq2seq_jax.tasks.search import Program, Search

HOP, VOCAB, REDUCTION = 16, 9, 4
FRONT = Frontend(rate=1600, hop=HOP, window=32, fft=32, mels=6, low=20.0)
SIZES = {"target_vocab": VOCAB, "frontend": FRONT, "dropout": 0.0, "channels": 2, "subsample": "conv"}
SIZES |= {"listener_layers": 1, "listener_features": 8}
LAS_SIZES = SIZES | {"features": 8, "attention_features": 6, "location_filters": 2, "location_width": 3}
FRAMES = (40, 25, 33, 9)
compile_quickly = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def make_model(name: str):
    module, config = MODELS[name]
    model = module(config(**SIZES) if name == "ctc" else config(ctc_head=True, **LAS_SIZES))
    tokens = [jnp.ones((1, 2), jnp.int32)] if name == "las" else []
    boxed = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 16, HOP)), jnp.ones((1, 16), bool), *tokens)
    )["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.4, x.shape), x.dtype), nn.meta.unbox(boxed))
    return model, params, boxed


def make_sources() -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.normal(size=(frames, HOP)).astype(np.float32) for frames in FRAMES]


@functools.cache
def make_batch() -> Batch:
    rng = np.random.default_rng(2)
    lengths = (4, 2, 3, 3)  # of which the last is more than its frames can say
    tokens = [rng.integers(4, VOCAB, n).tolist() for n in lengths]
    ((_, batch),) = make_batches(make_sources(), [[*each, EOS_ID] for each in tokens], rows=4, max_len=40)
    order = np.argsort(batch.example_ids)
    batch = jax.tree.map(lambda x: np.asarray(x)[order], batch)
    target_in = np.roll(batch.target_out, 1, axis=1)
    target_in[:, 0] = BOS_ID
    return jax.tree.map(jnp.asarray, batch.replace(target_in=target_in))


def run_loss(name: str, weight: float, batch: Batch | None = None, **options):
    model, params, _ = make_model(name)
    loss = make_speech_loss(model, ctc_weight=weight, label_smoothing=0.0, chunk=64, **options)
    return compile_quickly(loss)(params, batch or make_batch(), jax.random.key(0), jnp.int32(0))


def test_a_joint_loss_is_the_weighted_sum_of_both():
    model, params, _ = make_model("las")
    batch = make_batch()
    spelled = compile_quickly(make_loss(model, label_smoothing=0.0, chunk=64))(params, batch, None, None)[0]
    memory = model.apply({"params": params}, batch.source, batch.source_mask, train=False, method="encode")
    logits = model.apply({"params": params}, memory, method="project_frames")
    labels = batch.target_mask & (batch.target_out != EOS_ID)
    losses, possible = ctc_losses(logits, memory.mask, batch.target_out, labels)
    assert possible.tolist()[:3] == [True] * 3
    objective, sums = run_loss("las", 0.3)
    np.testing.assert_allclose(objective, 0.7 * spelled + 0.3 * losses.sum(), rtol=1e-5)
    np.testing.assert_allclose(sums["ctc"], losses.sum(), rtol=1e-5)
    assert sums["impossible"] == 4 - possible.sum() and sums["rows"] == 4
    np.testing.assert_allclose(run_loss("las", 0.0)[0], spelled, rtol=1e-5)


def test_ctc_alone_is_its_loss_and_counts_frames():
    objective, sums = run_loss("ctc", 0.0)
    assert objective == sums["ctc"] == sums["nll"] == sums["loss"]
    assert sums["source_tokens"] == sum(FRAMES) and sums["target_tokens"] == make_batch().target_mask.sum()


@pytest.mark.parametrize("name", ["las", "ctc"])
def test_a_row_that_only_fills_changes_nothing(name):
    batch = make_batch()
    wide = jax.tree.map(lambda x: jnp.concatenate([x, jnp.zeros_like(x[:1])]), batch)
    np.testing.assert_allclose(run_loss(name, 0.5, wide)[0], run_loss(name, 0.5)[0], rtol=1e-5)


def test_augmentation_is_of_the_epoch_and_the_example_and_of_training_alone():
    policy = Policy(time_warp=2, freq_masks=1, freq_width=3, time_masks=1, time_width=8, time_share=1.0)

    def hide(features, mask, epochs, ids):
        return augment(features, mask, make_keys(0, epochs, ids), policy)

    def run(epoch, order=(0, 1, 2, 3), **options):
        batch = jax.tree.map(lambda x: x[jnp.array(order)], make_batch().replace(epochs=jnp.full(4, epoch)))
        return float(run_loss("ctc", 0.0, batch, augment=hide, **options)[0])

    assert run(0) != run(1) and run(0) == run(0)
    np.testing.assert_allclose(run(0, (2, 0, 3, 1)), run(0), rtol=1e-5)
    np.testing.assert_allclose(run(0, train=False), run_loss("ctc", 0.0)[0], rtol=1e-6)


def make_program(name: str) -> tuple[Program, dict]:
    model, params, boxed = make_model(name)
    layout = make_layout(data=1, fsdp=1, stage=1, tensor=1, devices=jax.devices()[:1])

    def build(execution):
        here, labels = model.clone(execution=execution), Labels(bos_id=BOS_ID, eos_id=EOS_ID, vocab_size=VOCAB)
        if name == "ctc":
            return ctc_decoder(here, labels)
        return join_ctc(seq2seq_decoder(here, vocab_size=VOCAB), here, 0.4, labels)

    return Program(build, layout, boxed), params


VOCABULARY = train_vocab(["abcde"], kind="char", size=VOCAB)


@pytest.mark.parametrize("name", ["las", "ctc"])
def test_utterances_of_all_lengths_together_are_those_one_by_one(name):
    """More than there are rows, so that they come and go in a batch that is cut and filled up."""
    program, params = make_program(name)
    search = Search(Beam(size=3, ranking=Ranking(), **IDS), length_factor=0.3, length_extra=3)
    rng = np.random.default_rng(3)
    sources = [rng.normal(size=(n, HOP)).astype(np.float32) for n in rng.integers(6, 64, 21)]
    recogniser = Recogniser(Engine(program, search, rows=8, max_source_len=64, attention="none"), VOCABULARY, REDUCTION)
    together = recogniser.recognise(params, [*sources, np.zeros((0, HOP), np.float32)])
    assert together[-1].text == "" and together[-1].frames == 0
    for n in (0, 5, 13, 20):
        (alone,) = recogniser.recognise(params, [sources[n]])
        assert alone.candidates[0].tokens == together[n].candidates[0].tokens
        np.testing.assert_allclose(alone.candidates[0].log_prob, together[n].candidates[0].log_prob, rtol=1e-4)


def test_labels_of_frames_and_their_times():
    model, params, _ = make_model("ctc")
    paths = compile_quickly(make_paths(model))
    search = compile_quickly(make_frame_search(model, lambda a, b: best_path(a, b, eos_id=EOS_ID)[0]))
    engine = FrameEngine(search, rows=2, max_source_len=36)
    clock = Clock(paths, rows=2, max_source_len=36, seconds=0.04)
    found = Recogniser(engine, VOCABULARY, REDUCTION, clock).recognise(params, make_sources())
    assert [item.cut for item in found] == [True, False, False, False]
    for item, frames in zip(found, FRAMES, strict=True):
        tokens = [token for token in item.candidates[0].tokens if token != EOS_ID]
        assert item.times is not None and item.times.shape == (len(tokens), 2)
        assert (np.diff(item.times.reshape(-1)) > -1e-9).all() and item.times.max(initial=0) <= 0.04 * -(-frames // 4)
