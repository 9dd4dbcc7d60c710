"""CTC's prefix scores and their joint search against sums over every path, rescoring, and searches over all outputs."""

from __future__ import annotations

import functools
import importlib.util
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec

from seq2seq_jax.decode.beam import beam_search
from seq2seq_jax.decode.ctc_prefix import (
    Labels,
    associate_frames,
    ctc_decoder,
    join_ctc,
    make_frames,
    prefix_step,
    run_frames,
    start_prefix,
)
from seq2seq_jax.decode.method import over_hypotheses
from seq2seq_jax.decode.ranking import Ranking
from seq2seq_jax.decode.rolling import fit
from seq2seq_jax.decode.steps import Decoder, Inputs, fuse
from seq2seq_jax.interfaces import Memory, StepResult
from seq2seq_jax.tasks.ctc import ctc_losses

_SPEC = importlib.util.spec_from_file_location("ctc_reference", Path(__file__).with_name("ctc_reference.py"))
reference = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(reference)

# Of 6 tokens: blank 0, bos 1, eos 2, labels 3 to 5.
BOS, EOS, VOCAB = 1, 2, 6
LETTERS = (3, 4, 5)
LABELS = Labels(bos_id=BOS, eos_id=EOS)
FRAMES = (5, 3, 1)
QUICKLY = {"xla_backend_optimization_level": 0}


def make_logits(scale=2.0):
    """Rows of 5, 3 and 1 frames; what is masked is huge."""
    logits = scale * np.random.default_rng(0).normal(size=(len(FRAMES), max(FRAMES), VOCAB))
    mask = np.arange(max(FRAMES)) < np.array(FRAMES)[:, None]
    return jnp.asarray(np.where(mask[..., None], logits, 1e9), jnp.float32), jnp.asarray(mask)


def find_outputs(row):
    """Probabilities of all outputs of a row, by output."""
    logits = np.asarray(make_logits()[0][row, : FRAMES[row]], np.float64).copy()
    logits[:, [BOS, EOS]] = -np.inf
    return {tuple(output): p for output, p in reference.list_outputs(reference.normalise(logits)).items() if p > 0}


@functools.partial(jax.jit, compiler_options=QUICKLY)
def walk_frames(logits, mask, tokens):
    frames = make_frames(logits, mask, LABELS)
    step = prefix_step(frames, LABELS)

    def advance(cache, now):
        time, token = now
        result = step(jnp.broadcast_to(token, len(logits)), jnp.broadcast_to(time, len(logits)), cache)
        return result.cache, result.log_probs

    return jax.lax.scan(advance, start_prefix(frames), (jnp.arange(len(tokens)), tokens))[1]


def walk(logits, mask, output):
    """The log-probabilities `[T + 1, B, V]` before each token of an output and before its end."""
    return np.asarray(walk_frames(logits, mask, jnp.array([BOS, *output])), np.float64)


@pytest.mark.parametrize("output", [(), (3,), (3, 3), (4, 5, 4), (5, 5, 5), (3, 4, 5, 3, 4)])
def test_every_step_is_the_share_of_outputs_that_go_on_so(output):
    logits, mask = make_logits()
    history = walk(logits, mask, (*output, *[3] * 5)[:5])  # compiled once
    for row in range(len(FRAMES)):
        outputs = find_outputs(row)
        for time in range(len(output) + 1):
            prefix = output[:time]
            begun = sum(p for each, p in outputs.items() if each[:time] == prefix)
            if begun < 1e-30:
                break
            wanted = np.zeros(VOCAB)
            for letter in LETTERS:
                wanted[letter] = sum(p for each, p in outputs.items() if each[: time + 1] == (*prefix, letter)) / begun
            wanted[EOS] = outputs.get(prefix, 0.0) / begun
            np.testing.assert_allclose(np.exp(history[time, row]), wanted, rtol=1e-4, atol=1e-7)
            assert wanted.sum() == pytest.approx(1.0)
            assert (history[time, row] <= 0).all()
            assert (history[time, row][[0, BOS]] == -np.inf).all()


def test_what_is_impossible_stays_a_number():
    logits, mask = make_logits(scale=200.0)
    history = walk(logits, mask.at[2].set(False), (3, 3, 4, 4, 5, 5, 5))
    letters = history[..., [EOS, *LETTERS]]
    assert np.isfinite(letters).all() and (letters <= 0).all()
    np.testing.assert_array_equal(history[-1, :, EOS], 0.0)
    np.testing.assert_array_equal(history[0, 2, EOS], 0.0)  # no frames: nothing is certain
    assert (letters[-1, :, 1:] < -80).all()


def test_both_ways_through_the_frames_agree():
    here, blank, before = jnp.asarray(-np.random.default_rng(4).exponential(9, size=(3, 5, 37)), jnp.float32)
    before = before.at[2].set(-jnp.inf).at[1, 3:9].set(-jnp.inf)
    here = here.at[0, 20:].set(-jnp.inf)
    by_frame, together = (jax.jit(run)(here, blank, before) for run in (run_frames, associate_frames))
    for ours, theirs in zip(by_frame, together, strict=True):
        assert ours.shape == (5, 38) and ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert np.isfinite(by_frame[0][[0, 1, 3, 4], 1:20]).all()


def test_padding_changes_nothing():
    logits, mask = make_logits()
    short, long = walk(logits[1:2, :3], mask[1:2, :3], (4, 4)), walk(logits[1:2], mask[1:2], (4, 4))
    np.testing.assert_allclose(short, long, rtol=1e-6)


@pytest.mark.parametrize("length", [5, 9])
def test_a_batch_that_rolls_may_cut_and_fill_rows_between_steps(length):
    """`decode.rolling.fit` fills up with zeros, which are no log-probabilities of nothing."""
    logits, mask = (x[1:] for x in make_logits())  # rows of 3 and 1 frames, in room for 5
    frames = make_frames(logits, mask, LABELS)
    cache, output = start_prefix(frames), (3, 3, 4)
    wanted = walk(logits, mask, output)
    for time, token in enumerate((BOS, *output)):
        room = (3, length)[time % 2]
        born = jax.eval_shape(
            lambda room=room: make_frames(jnp.zeros((2, room, VOCAB)), jnp.ones((2, room), bool), LABELS)
        )
        frames, cache = fit(frames, born), fit(cache, jax.eval_shape(start_prefix, born))
        result = prefix_step(frames, LABELS)(jnp.full(2, token), jnp.full(2, time), cache)
        np.testing.assert_allclose(result.log_probs, wanted[time], rtol=1e-5, atol=1e-5)
        cache = result.cache


def test_long_rows_keep_their_precision():
    """Over 300 frames of 50 labels: what was found label by label is what the loss says of the whole."""
    generator = np.random.default_rng(1)
    logits = jnp.asarray(5 * generator.normal(size=(2, 300, 50)), jnp.float32)
    output = generator.integers(3, 50, size=60)
    output[7] = output[8]
    mask, labels = jnp.ones((2, 300), bool), jnp.broadcast_to(jnp.asarray(output, jnp.int32), (2, 60))
    history = walk(logits, mask, output)
    total = sum(history[time, :, token] for time, token in enumerate((*output, EOS)))
    allowed = logits.at[..., [BOS, EOS]].set(-jnp.inf)
    losses, _ = jax.jit(ctc_losses, compiler_options=QUICKLY)(allowed, mask, labels, labels > 0)
    np.testing.assert_allclose(total, -losses, rtol=1e-5)


class FrameSpeller(nn.Module):
    """A `FrameModel` that is also a decoder: frames and next tokens are looked up in tables."""

    columns: int = VOCAB

    def setup(self):
        normal = nn.initializers.normal(2.0)
        self.frames = self.param("frames", normal, (8, self.columns))
        self.pairs = self.param("pairs", normal, (VOCAB, VOCAB))

    def encode(self, source, source_mask, *, train):
        return Memory(hidden=self.frames[source], mask=source_mask)

    def project_frames(self, memory):
        return memory.hidden

    def next_log_probs(self, tokens):
        return jax.nn.log_softmax(self.pairs.at[:, jnp.array([0, BOS])].set(-jnp.inf)[tokens])


def make_model():
    model = FrameSpeller()
    source, mask = jnp.array([[0, 1, 2, 3], [4, 5, 0, 0]]), jnp.array([[True] * 4, [True, True, False, False]])
    params = model.init(jax.random.key(0), source, mask, train=False, method="encode")["params"]
    return model, params, Inputs(source, mask)


def attention_decoder(model):
    """Next tokens by the previous one alone."""

    def make_step(params, held):
        def step_fn(tokens, step, cache):
            log_probs = model.apply({"params": params}, tokens, method="next_log_probs")
            return StepResult(log_probs, attention=held.mask / held.mask.sum(-1, keepdims=True), cache=cache + 1)

        return step_fn

    def encode(params, inputs):
        return model.apply({"params": params}, inputs.source, inputs.source_mask, train=False, method="encode")

    return Decoder(encode, lambda params, held, max_len: jnp.zeros(held.mask.shape[0]), make_step)


def score_all(params, row, frames, weight):
    """The joint score of every output of up to 3 labels, float64."""
    logits = np.asarray(params["frames"], np.float64)[row][:frames]
    logits[:, [BOS, EOS]] = -np.inf
    outputs = reference.list_outputs(reference.normalise(logits))
    pairs = np.asarray(params["pairs"], np.float64)
    pairs[:, [0, BOS]] = -np.inf
    pairs = reference.normalise(pairs)
    scores = {}
    for length in range(4):
        for output in itertools.product(LETTERS, repeat=length):
            attention = sum(pairs[a, b] for a, b in itertools.pairwise((BOS, *output, EOS)))
            if outputs.get(output, 0.0) > 0:
                scores[output] = (1 - weight) * attention + weight * np.log(outputs[output])
    return scores


@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_a_beam_over_everything_finds_what_listing_everything_finds(weight):
    model, params, inputs = make_model()
    decoder = ctc_decoder(model, LABELS) if weight == 1 else join_ctc(attention_decoder(model), model, weight, LABELS)
    size = 30

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    def search(params):
        held = decoder.encode(params, inputs)
        return beam_search(
            decoder.make_step(params, held),
            decoder.init_cache(params, held, 4),
            beam_size=size,
            max_lengths=jnp.array([4, 4]),
            max_len=4,
            bos_id=BOS,
            eos_id=EOS,
            pad_id=0,
            ranking=Ranking(unfinished="end"),
        )

    found = search(params)
    for row, (symbols, frames) in enumerate([([0, 1, 2, 3], 4), ([4, 5], 2)]):
        scores = score_all(params, symbols, frames, weight)
        ranked = sorted(scores, key=scores.get, reverse=True)
        for place, output in enumerate(ranked[:10]):
            length = int(found.lengths[row, place])
            np.testing.assert_array_equal(found.tokens[row, place, :length], [*output, EOS])
            assert float(found.scores[row, place]) == pytest.approx(scores[output], rel=1e-4)


def test_a_joint_score_is_both_scores_and_can_be_fused_again():
    model, params, inputs = make_model()
    attention, ctc = attention_decoder(model), ctc_decoder(model, LABELS)
    joint = join_ctc(attention, model, 0.25, LABELS)
    tokens, clock = jnp.array([4, 3]), jnp.array([1, 1])

    @functools.partial(jax.jit, static_argnums=0, compiler_options=QUICKLY)
    def run(decoder, params):
        held = decoder.encode(params, inputs)
        first = decoder.make_step(params, held)(
            jnp.array([BOS, BOS]), jnp.zeros(2, int), decoder.init_cache(params, held, 4)
        )
        return decoder.make_step(params, held)(tokens, clock, first.cache)

    own, other, both = run(attention, params), run(ctc, params), run(joint, params)
    seen = np.isfinite(both.log_probs)
    assert seen.sum() == 2 * 4
    wanted = 0.75 * own.log_probs + 0.25 * other.log_probs
    np.testing.assert_allclose(np.asarray(both.log_probs)[seen], np.asarray(wanted)[seen], rtol=1e-6)
    np.testing.assert_array_equal(both.attention, own.attention)
    fused = run(fuse(joint, attention, 0.5), (params, params))
    wanted = both.log_probs + 0.5 * own.log_probs
    np.testing.assert_allclose(np.asarray(fused.log_probs)[seen], np.asarray(wanted)[seen], rtol=1e-6)
    assert join_ctc(attention, model, 0.0, LABELS) is attention


def test_a_weight_that_is_no_share_is_refused():
    model, _, _ = make_model()
    with pytest.raises(ValueError, match="`weight` must be from 0 to 1, but is 1.5 instead"):
        join_ctc(attention_decoder(model), model, 1.5, LABELS)


def test_a_split_vocabulary_gives_the_same():
    if len(jax.devices()) != 8:
        pytest.skip(f"needs 8 devices, and there are {len(jax.devices())}")
    logits, mask = make_logits()
    split = Labels(BOS, EOS, vocab_axes=("tensor",), vocab_size=VOCAB)
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

    def run(step, cache):
        tokens = jnp.full((len(FRAMES), 2), BOS)
        found = []
        for time in range(2):
            result = over_hypotheses(step)(tokens, jnp.full(len(FRAMES), time), cache)
            found.append(result.log_probs)
            cache, tokens = result.cache, jnp.broadcast_to(jnp.array([3, 4]), tokens.shape)
        return jnp.stack(found)

    def beams(cache):
        return jax.tree.map(lambda x: jnp.stack([x, x], axis=1), cache)

    def search(labels, logits):
        frames = make_frames(logits, mask, labels)
        return run(prefix_step(frames, labels), beams(start_prefix(frames)))

    padded = jnp.pad(logits, ((0, 0), (0, 0), (0, 2)), constant_values=9.0)
    columns = PartitionSpec(None, None, "tensor")
    mapped = jax.shard_map(
        functools.partial(search, split),
        mesh=mesh,
        in_specs=columns,
        out_specs=PartitionSpec(None, None, None, "tensor"),
    )
    found = jax.jit(mapped, compiler_options=QUICKLY)(padded)
    assert (np.asarray(found[..., VOCAB:]) == -np.inf).all()
    wanted = jax.jit(functools.partial(search, LABELS), compiler_options=QUICKLY)(logits)
    np.testing.assert_allclose(found[..., :VOCAB], wanted, rtol=1e-5, atol=1e-6)


def test_a_beam_over_a_split_vocabulary_finds_the_same():
    if len(jax.devices()) != 8:
        pytest.skip(f"needs 8 devices, and there are {len(jax.devices())}")
    logits, mask = make_logits()
    logits, mask = jnp.concatenate([logits, logits[::-1]])[:4], jnp.concatenate([mask, mask[::-1]])[:4]
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

    def search(labels, logits, mask):
        frames = make_frames(logits, mask, labels)
        found = beam_search(
            prefix_step(frames, labels),
            start_prefix(frames),
            beam_size=3,
            max_lengths=jnp.full(len(mask), 4),
            max_len=4,
            bos_id=BOS,
            eos_id=EOS,
            pad_id=0,
            ranking=Ranking(),
            vocab_axes=labels.vocab_axes,
        )
        found = jax.tree.map(lambda x: x.astype(jnp.float32), found)
        return jax.tree.map(lambda x: jax.lax.pmax(x, "tensor"), found) if labels.vocab_axes else found

    split = functools.partial(search, Labels(BOS, EOS, vocab_axes=("tensor",), vocab_size=VOCAB))
    rows, columns = PartitionSpec("data"), PartitionSpec("data", None, "tensor")
    mapped = jax.shard_map(split, mesh=mesh, in_specs=(columns, rows), out_specs=rows)
    padded = jnp.pad(logits, ((0, 0), (0, 0), (0, 2)), constant_values=9.0)
    found = jax.jit(mapped, compiler_options=QUICKLY)(padded, mask)
    wanted = jax.jit(functools.partial(search, LABELS), compiler_options=QUICKLY)(logits, mask)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
