"""Ensembles and fusion against averages in float64, and their searches against all outputs of a tiny world."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from seq2seq_jax.decode.beam import beam_search
from seq2seq_jax.decode.ranking import Ranking
from seq2seq_jax.decode.steps import Decoder, Inputs, ensemble, fuse, language_model_decoder
from seq2seq_jax.interfaces import Memory, StepOutput, StepResult

PAD, BOS, EOS, VOCAB, STATES, STEPS = 0, 2, 3, 8, 101, 4
WORDS = (1, 4, 5, 6)  # column 7 fills the vocabulary up
IDS = {"bos_id": BOS, "eos_id": EOS, "pad_id": PAD}
ROWS = 3
INPUTS = Inputs(jnp.arange(ROWS)[:, None], jnp.ones((ROWS, 1), bool))


def make_table(seed: int) -> np.ndarray:
    """Log-probabilities `[STATES, VOCAB]`, float64."""
    logits = 2 * np.random.default_rng(seed).normal(size=(STATES, VOCAB))
    logits[:, 7] = -np.inf
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


TABLES = [make_table(seed) for seed in range(3)]
ATTENTION = np.random.default_rng(9).dirichlet(np.ones(5), size=STATES)


def move(state, token, step, factor):
    """The state after a token; every member goes another way."""
    return (state * factor + token * 7 + step + 3) % STATES


def member(factor: int, *, attends: bool = False, vocab_axes: tuple[str, ...] = ()) -> Decoder:
    """A machine as a decoder; its parameters are its table."""

    def make_step(params, held):
        def step_fn(tokens, step, cache):
            now = jnp.where(step == 0, held, move(cache["state"], tokens, step, factor))
            ids = None
            if vocab_axes:
                ids = jax.lax.axis_index(vocab_axes) * params.shape[1] + jnp.arange(params.shape[1], dtype=jnp.int32)
            weights = jnp.asarray(ATTENTION, jnp.float32)[now] if attends else None
            return StepResult(params[now], weights, {"state": now}, ids)

        return step_fn

    return Decoder(
        encode=lambda params, inputs: inputs.source[:, 0],
        init_cache=lambda params, held, max_len: {"state": jnp.zeros_like(held)},
        make_step=make_step,
    )


def put(*numbers: int) -> tuple[jax.Array, ...]:
    return tuple(jnp.asarray(TABLES[n], jnp.float32) for n in numbers)


def average(parts, shares, kind: str) -> np.ndarray:
    """In float64, from the definition."""
    probs = [np.exp(part) for part in parts]
    if kind == "arithmetic":
        return np.log(sum(share * p for share, p in zip(shares, probs, strict=True)))
    mean = np.prod([p**share for share, p in zip(shares, probs, strict=True)], axis=0)
    return np.log(mean / mean.sum(-1, keepdims=True))


def take_step(decoder: Decoder, params) -> StepResult:
    held = decoder.encode(params, INPUTS)
    tokens = jnp.zeros(ROWS, jnp.int32)
    return decoder.make_step(params, held)(tokens, tokens, decoder.init_cache(params, held, STEPS))


@pytest.mark.parametrize("kind", ["log", "arithmetic"])
def test_averages_are_those_of_float64(kind):
    members = [member(31), member(17, attends=True), member(5, attends=True)]
    result = take_step(ensemble(members, [2.0, 1.0, 3.0], average=kind), put(0, 1, 2))
    with np.errstate(divide="ignore"):
        wanted = average([table[:ROWS] for table in TABLES], [2 / 6, 1 / 6, 3 / 6], kind)
    np.testing.assert_allclose(result.log_probs, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.exp(result.log_probs).sum(-1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(result.attention, ATTENTION[:ROWS], rtol=1e-6)
    assert take_step(ensemble([member(31)] * 2), put(0, 1)).attention is None


def test_attention_is_weighted_among_those_that_attend():
    def attend(number):
        here = member(3, attends=True)

        def make_step(params, held):
            step = here.make_step(params, held)
            return lambda *given: step(*given).replace(attention=jnp.eye(2)[jnp.full(ROWS, number)])

        return Decoder(here.encode, here.init_cache, make_step)

    found = take_step(ensemble([attend(0), member(3), attend(1)], [1.0, 5.0, 3.0]), put(0, 1, 2)).attention
    np.testing.assert_allclose(found, np.tile([0.25, 0.75], (ROWS, 1)), rtol=1e-6)


@pytest.mark.parametrize("kind", ["log", "arithmetic"])
def test_a_model_with_itself_is_the_model(kind):
    alone = take_step(member(31, attends=True), put(0)[0])
    twice = take_step(ensemble([member(31, attends=True)] * 2, [1.0, 3.0], average=kind), put(0, 0))
    np.testing.assert_allclose(twice.log_probs, alone.log_probs, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(twice.attention, alone.attention, rtol=1e-6)
    once = take_step(ensemble([member(31, attends=True)], average=kind), put(0))
    np.testing.assert_array_equal(once.log_probs, alone.log_probs)


def test_fusion_adds_a_share_of_the_language_model():
    fused = take_step(fuse(member(31, attends=True), member(17), 0.3), put(0, 1))
    np.testing.assert_allclose(fused.log_probs, TABLES[0][:ROWS] + 0.3 * TABLES[1][:ROWS], rtol=1e-5)
    np.testing.assert_allclose(fused.attention, ATTENTION[:ROWS], rtol=1e-6)
    alone = take_step(fuse(member(31), member(17), 0.0), put(0, 1))
    np.testing.assert_array_equal(alone.log_probs, put(0)[0][:ROWS])  # the filling column, too


SYSTEMS = {
    "log": (lambda axes: ensemble(_members(axes), [1.0, 2.0], average="log", vocab_axes=axes), (0, 1)),
    "arithmetic": (lambda axes: ensemble(_members(axes), [1.0, 2.0], average="arithmetic", vocab_axes=axes), (0, 1)),
    "fusion": (lambda axes: fuse(*_members(axes), 0.5), (0, 1)),
}


def _members(axes) -> list[Decoder]:
    return [member(31, vocab_axes=axes), member(17, vocab_axes=axes)]


def run(build, params, inputs, vocab_axes=()):
    decoder = build(vocab_axes)
    held = decoder.encode(params, inputs)
    step, cache = decoder.make_step(params, held), decoder.init_cache(params, held, STEPS)
    options = {"max_lengths": jnp.full(ROWS, STEPS), "max_len": STEPS, "vocab_axes": vocab_axes} | IDS
    return beam_search(step, cache, beam_size=90, ranking=Ranking("gnmt", length_penalty=0.6), **options)


def score(system: str, row: int, output: tuple[int, ...]) -> float:
    """Of an output, member by member, in float64."""
    states, total = [row, row], 0.0
    for step, token in enumerate(output):
        parts = [TABLES[n][states[n]] for n in range(2)]
        if system == "fusion":
            total += parts[0][token] + 0.5 * parts[1][token]
        else:
            with np.errstate(divide="ignore"):
                total += average(parts, [1 / 3, 2 / 3], system)[token]
        states = [move(state, token, step + 1, factor) for state, factor in zip(states, (31, 17), strict=True)]
    return total / ((5 + len(output)) / 6) ** 0.6


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_search_is_exhaustive_search_whole_and_split(system):
    build, numbers = SYSTEMS[system]
    quickly = {"xla_backend_optimization_level": 0}
    found = jax.device_get(jax.jit(lambda p: run(build, p, INPUTS), compiler_options=quickly)(put(*numbers)))
    outputs = [(*words, EOS) for length in range(STEPS) for words in itertools.product(WORDS, repeat=length)]
    for row in range(ROWS):
        wanted = sorted(outputs, key=lambda output: -score(system, row, output))
        lengths = found.lengths[row, : len(outputs)].tolist()
        assert [tuple(found.tokens[row, k, :n].tolist()) for k, n in enumerate(lengths)] == wanted
        scores = [score(system, row, output) for output in wanted]
        np.testing.assert_allclose(found.scores[row, : len(outputs)], scores, rtol=1e-4)
    mesh = jax.make_mesh((4,), ("tensor",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])

    def on_device(params):
        found = run(build, params, INPUTS, ("tensor",))
        return jax.tree.map(lambda x: jax.lax.pmax(x.astype(jnp.float32), "tensor"), found)

    spread = jax.shard_map(on_device, mesh=mesh, in_specs=PartitionSpec(None, "tensor"), out_specs=PartitionSpec())
    split = jax.device_get(jax.jit(spread, compiler_options=quickly)(put(*numbers)))
    np.testing.assert_array_equal(split.tokens[:, :20], found.tokens[:, :20])
    np.testing.assert_allclose(split.scores[:, :20], found.scores[:, :20], rtol=1e-5)


class Deaf:
    """A model that keeps what it is given of the source."""

    def apply(self, variables, *given, method, **options):
        if method == "encode":
            return Memory(hidden=jnp.zeros((*given[0].shape, 2)), mask=given[1])
        if method == "init_cache":
            return jnp.zeros((given[0].mask.shape[0], 2))
        if method == "decode_step":
            return StepOutput(hidden=given[3] + given[0][:, None], attention=None, cache=given[3] + 1)
        return given[0] @ jnp.ones((2, VOCAB))


def test_a_language_model_holds_nothing_that_grows_with_the_source():
    decoder = language_model_decoder(Deaf())
    shapes = []
    for length in (3, 50):
        inputs = Inputs(jnp.ones((ROWS, length), jnp.int32), jnp.ones((ROWS, length), bool))
        shapes.append(jax.tree.map(jnp.shape, decoder.encode({}, inputs)))
    assert shapes[0] == shapes[1] and shapes[0].mask == (ROWS, 1)
    assert take_step(decoder, {}).log_probs.shape == (ROWS, VOCAB)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="at least one member"):
        ensemble([])
    for weights in ([1.0], [1.0, 0.0], [1.0, float("inf")]):
        with pytest.raises(ValueError, match="2 numbers above 0"):
            ensemble([member(1), member(2)], weights)
    with pytest.raises(ValueError, match="'log' or 'arithmetic'"):
        ensemble([member(1)], average="mean")
    with pytest.raises(ValueError, match="at least 0"):
        fuse(member(1), member(2), -0.1)
    narrow = jnp.zeros((STATES, VOCAB - 1))
    with pytest.raises(ValueError, match="one vocabulary"):
        take_step(ensemble([member(1), member(2)]), (put(0)[0], narrow))
