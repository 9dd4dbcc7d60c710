"""Properties of models for drawn parameters, sentences and lengths; `test_models.py` holds more of them for fixed ones.

`SEQ2SEQ_JAX_EXAMPLES=2000` draws so many cases of each property, spread over all models and their variants; else two
models have a few.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

_SPEC = importlib.util.spec_from_file_location("contract_models", Path(__file__).with_name("test_models.py"))
contract = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(contract)

B, S, T, VOCAB = contract.B, contract.S, contract.T, contract.VOCAB
MANY = "SEQ2SEQ_JAX_EXAMPLES" in os.environ
NAMES = sorted(contract.TINY) if MANY else ["gnmt", "transformer"]
each = settings(max_examples=max(10, settings.default.max_examples // len(NAMES)))
"""Compiling is nearly all that these tests do, so cases are shared out among the models."""
NEAR = 2e-5  # of the largest


class Compiled:
    """A tiny model and its programs, for parameters and batches that are drawn."""

    def __init__(self, name: str):
        self.case = contract.Case(name)
        module, cls = self.case.module, type(self.case.module)
        self.shapes = jax.tree.map(lambda leaf: leaf.shape, self.case.params)
        self.run = contract.compile_quickly(self.case.loss)

        def start(params, source, mask):
            def inner(module):
                memory = module.encode(source, mask, train=False)
                return memory, module.init_cache(memory, T)

            return module.apply({"params": params}, method=inner)

        def step(params, tokens, step, memory, cache):
            return module.apply({"params": params}, tokens, step, memory, cache, method=cls.decode_step)

        self.start, self.step = map(contract.compile_quickly, (start, step))

    def draw(self, seed: int, lengths: list[tuple[int, int]]):
        """Parameters, and a batch of sentences of these lengths with real-looking tokens in the padding."""
        rng = np.random.default_rng(seed)
        params = jax.tree.map(lambda x: rng.normal(0.0, 0.4, x.shape).astype(np.float32), self.case.params)
        batch = self.case.batch
        source = rng.integers(4, VOCAB + 2, (B, S)).astype(np.int32)
        if self.case.listens:
            source = rng.normal(0.0, 0.3, batch.source.shape).astype(np.float32)
        targets = rng.integers(4, VOCAB, (B, T + 1)).astype(np.int32)
        targets[:, 0] = 2
        sources, outputs = np.array(lengths).T[..., None]
        return params, batch.replace(
            source=jnp.asarray(source),
            source_mask=jnp.asarray(np.arange(S) < sources),
            target_in=jnp.asarray(targets[:, :-1]),
            target_out=jnp.asarray(targets[:, 1:]),
            target_mask=jnp.asarray(np.arange(T) < outputs),
        )


get_compiled = functools.cache(Compiled)
DRAWS = {
    "seed": st.integers(0, 2**32 - 1),
    "lengths": st.lists(st.tuples(st.integers(1, S), st.integers(1, T)), min_size=B, max_size=B),
}


every_model = pytest.mark.parametrize("model", NAMES)
every_decoder = pytest.mark.parametrize("model", [name for name in NAMES if not name.startswith(("bert", "ctc"))])


def assert_near(got, wanted, masks=None) -> None:
    """Equal but for rounding where the mask is True."""
    got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    if masks is not None:
        got, wanted = got[np.asarray(masks)], wanted[np.asarray(masks)]
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got, wanted, rtol=NEAR, atol=NEAR * max(1.0, np.abs(wanted).max(initial=0.0)))


def find_real(compiled: Compiled, batch, memory) -> jax.Array:
    """`[B, ...]`, True where the logits of `Compiled.run` are of something real."""
    return batch.target_mask if compiled.case.decodes else memory.mask


@every_model
@each
@given(**DRAWS)
def test_padding_changes_nothing(model, seed, lengths):
    compiled = get_compiled(model)
    params, batch = compiled.draw(seed, lengths)
    loss, (memory, _, logits) = compiled.run(params, batch)
    wide_loss, (_, _, wide) = compiled.run(params, contract.widen(batch))
    assert_near(wide_loss, loss)
    assert_near(wide[:B, : logits.shape[1]], logits, find_real(compiled, batch, memory))


@every_model
@each
@given(**DRAWS, row=st.integers(0, B - 1))
def test_a_row_alone_is_what_it_is_among_others(model, seed, lengths, row):
    compiled = get_compiled(model)
    params, batch = compiled.draw(seed, lengths)
    _, (memory, _, logits) = compiled.run(params, batch)
    _, (_, _, alone) = compiled.run(params, jax.tree.map(lambda leaf: leaf[row : row + 1], batch))
    assert_near(alone[0], logits[row], find_real(compiled, batch, memory)[row])


@every_decoder
@each
@given(**DRAWS, at=st.integers(1, T - 1))
def test_a_token_changes_nothing_before_it(model, seed, lengths, at):
    compiled = get_compiled(model)
    params, batch = compiled.draw(seed, lengths)
    later = jnp.where(jnp.arange(T) >= at, (batch.target_in - 3) % (VOCAB - 4) + 4, batch.target_in)
    assert (later[:, at:] != batch.target_in[:, at:]).all()
    hidden, changed = (
        compiled.run(params, batch.replace(target_in=tokens))[1][1].hidden for tokens in (batch.target_in, later)
    )
    np.testing.assert_array_equal(changed[:, :at], hidden[:, :at])
    assert (np.abs(changed[:, at] - hidden[:, at]).max(axis=-1) > 1e-6).all()


@every_decoder
@each
@given(**DRAWS)
def test_step_by_step_is_what_it_is_at_once(model, seed, lengths):
    compiled = get_compiled(model)
    params, batch = compiled.draw(seed, lengths)
    _, (_, output, _) = compiled.run(params, batch)
    memory, cache = compiled.start(params, batch.source, batch.source_mask)
    for t in range(T):
        result = compiled.step(params, batch.target_in[:, t], jnp.full(B, t), memory, cache)
        cache = result.cache
        assert_near(result.hidden, output.hidden[:, t])
