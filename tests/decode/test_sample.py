"""Samples have the distribution that the step function says, and nothing but their own row and number decides them."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from scipy import stats

from seq2seq_jax.decode.sample import sample
from seq2seq_jax.interfaces import StepResult
from seq2seq_jax.parallel.draws import draw_tokens, keyed_uniform

PAD, UNK, BOS, EOS = range(4)
VOCAB, LENGTH = 6, 3
TABLE = jax.nn.log_softmax(2.0 * jax.random.normal(jax.random.key(1), (LENGTH, VOCAB, VOCAB)), axis=-1)


def step(tokens, time, cache):
    """Probabilities of the next token that depend on the time and the token before; the cache counts the steps."""
    return StepResult(log_probs=TABLE[time, tokens], attention=None, cache=cache + 1)


def draw(*, rows, samples=1, key=0, max_len=LENGTH, row_mask=None, **options):
    rows = jnp.asarray(rows, jnp.int32)
    found = jax.jit(
        functools.partial(
            sample, step, samples=samples, max_len=max_len, bos_id=BOS, eos_id=EOS, pad_id=PAD, row_mask=row_mask,
            **options,
        )
    )(jnp.zeros_like(rows), key=jax.random.key(key), rows=rows, max_lengths=jnp.full(rows.shape, LENGTH))  # fmt: skip
    return jax.device_get(found)


def weigh(*, temperature: float = 1.0, top_k: int = 0) -> dict[tuple[int, ...], float]:
    """The probability of every output, by going through all of them; float64."""
    table = np.asarray(TABLE, np.float64)
    table[:, :, [PAD, BOS]] = -np.inf
    if top_k:
        table = np.where(table >= np.sort(table, axis=-1)[..., -top_k, None], table, -np.inf)
    table = np.exp(table / temperature)
    table /= table.sum(axis=-1, keepdims=True)
    found = {}
    for length in range(1, LENGTH + 1):
        for output in itertools.product([UNK, EOS, 4, 5], repeat=length):
            if EOS not in output[:-1] and (output[-1] == EOS or length == LENGTH):
                before = (BOS, *output[:-1])
                found[output] = float(np.prod([table[t, before[t], output[t]] for t in range(length)]))
    return {output: p for output, p in found.items() if p > 0}


@pytest.mark.parametrize("options", [{}, {"temperature": 0.6}, {"temperature": 1.5, "top_k": 3}], ids=str)
def test_outputs_come_as_often_as_their_probability_says(options):
    wanted, count = weigh(**options), 8000
    assert sum(wanted.values()) == pytest.approx(1.0)
    found = draw(rows=range(count // 8), samples=8, **options)
    outputs = [
        tuple(tokens[:length].tolist())
        for tokens, length in zip(found.tokens.reshape(-1, LENGTH), found.lengths.reshape(-1), strict=True)
    ]
    assert set(outputs) <= set(wanted)
    often = [output for output, p in wanted.items() if p * count >= 5]
    rest = count - sum(outputs.count(output) for output in often)
    seen = [outputs.count(output) for output in often] + [rest]
    expected = [count * wanted[output] for output in often]
    expected.append(count - sum(expected))
    assert len(often) > 5 and stats.chisquare(np.add(seen, 1e-9), np.add(expected, 1e-9)).pvalue > 1e-3


def test_log_probs_are_the_model_s_own_whatever_the_temperature():
    found = draw(rows=range(20), samples=3, temperature=3.0)
    for tokens, length, log_prob, finished in zip(
        found.tokens.reshape(-1, LENGTH),
        found.lengths.reshape(-1),
        found.log_probs.reshape(-1),
        found.finished.reshape(-1),
        strict=True,
    ):
        before = [BOS, *tokens[: length - 1].tolist()]
        wanted = sum(float(TABLE[t, before[t], tokens[t]]) for t in range(length))
        assert log_prob == pytest.approx(wanted, rel=1e-5)
        assert finished == (tokens[length - 1] == EOS) and (tokens[length:] == PAD).all()
    assert {1, 2, 3} == set(found.lengths.reshape(-1).tolist())


def test_a_row_s_samples_do_not_depend_on_the_batch_around_it():
    together = draw(rows=[3, 7, 9, 1], samples=4)
    alone = draw(rows=[9], samples=4)
    wider = draw(rows=[9, 2], samples=6, max_len=LENGTH + 5)
    np.testing.assert_array_equal(together.tokens[2], alone.tokens[0])
    np.testing.assert_array_equal(wider.tokens[0, :4, :LENGTH], alone.tokens[0])
    assert len({tuple(tokens.tolist()) for tokens in wider.tokens[0]}) > 1  # samples are draws of their own


def test_rows_that_only_fill_come_back_empty():
    found = draw(rows=[0, 1], samples=2, row_mask=jnp.array([True, False]))
    assert (found.lengths[0] > 0).all() and (found.lengths[1] == 0).all()
    assert (found.tokens[1] == PAD).all() and (found.log_probs[1] == -np.inf).all()


@pytest.mark.parametrize("options", [{"samples": 0}, {"temperature": 0.0}, {"top_k": -1}, {"max_len": 0}], ids=str)
def test_numbers_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="but are"):
        draw(rows=[0], **options)


def test_devices_that_share_a_vocabulary_draw_the_same():
    if len(jax.devices()) < 4:
        pytest.skip("needs 4 devices")
    mesh = jax.make_mesh((4,), ("tensor",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
    table = jnp.pad(TABLE, ((0, 0), (0, 0), (0, 2)), constant_values=-jnp.inf)  # two columns of each

    def part(tokens, time, cache):
        columns = 2 * jax.lax.axis_index("tensor") + jnp.arange(2)
        return StepResult(table[time, tokens][..., columns], attention=None, cache=cache, token_ids=columns)

    def run(rows):
        ids = {"bos_id": BOS, "eos_id": EOS, "pad_id": PAD}
        options = {"samples": 3, "top_k": 3, "max_len": LENGTH, "vocab_axes": ("tensor",), **ids}
        lengths = jnp.full(rows.shape, LENGTH)
        return sample(part, rows, key=jax.random.key(0), rows=rows, max_lengths=lengths, **options)

    rows, whole = PartitionSpec(), PartitionSpec("tensor")
    found = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=rows, out_specs=whole))(jnp.arange(30))
    wanted = draw(rows=range(30), samples=3, top_k=3)
    for copy in range(4):  # what each device found
        np.testing.assert_array_equal(found.tokens[30 * copy : 30 * (copy + 1)], wanted.tokens)
        np.testing.assert_allclose(found.log_probs[30 * copy : 30 * (copy + 1)], wanted.log_probs, rtol=1e-5)


# --- one draw ------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [3, 128, 300])
def test_a_token_is_where_the_number_falls_in_the_cumulated_weights(width):
    generator = np.random.default_rng(width)
    weights = (generator.uniform(size=(50, width)) * (generator.uniform(size=(50, width)) < 0.3)).astype(np.float32)
    weights[:, -1] = 0.5
    uniform = generator.uniform(size=50).astype(np.float32)
    uniform[0] = 1.0 - 2.0**-24  # the largest there is
    found = np.asarray(jax.jit(draw_tokens)(weights, uniform))
    cumulated = np.cumsum(weights.astype(np.float64), axis=-1)
    points = uniform.astype(np.float64) * cumulated[:, -1]
    for n, (token, point) in enumerate(zip(found, points, strict=True)):
        assert weights[n, token] > 0
        assert cumulated[n, token] - weights[n, token] - 1e-4 <= point <= cumulated[n, token] + 1e-4


def test_uniform_numbers_are_functions_of_their_place():
    key, rows, times = jax.random.key(0), jnp.arange(40)[:, None], jnp.arange(25)[None, :]
    whole = keyed_uniform(key, rows, times)
    assert whole.shape == (40, 25) and len(np.unique(whole)) == whole.size
    np.testing.assert_array_equal(keyed_uniform(key, rows[5:9], times[:, :7]), whole[5:9, :7])
    assert stats.kstest(np.asarray(whole).ravel(), "uniform").pvalue > 1e-3
