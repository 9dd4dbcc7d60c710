"""The loop that keeps what its steps give, against a plain Python loop."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seq2seq_jax.layers.sweep import join, split, sweep

T, B, K = 7, 2, 3


@pytest.mark.parametrize("turned", [(False,), (True,), (False, True)])
@pytest.mark.parametrize("unroll", [1, 3, 4, 20])
@pytest.mark.parametrize("width", [1, K])
def test_every_step_in_its_order_and_place(turned, unroll, width):
    """Whatever the size of the blocks (7 is no multiple of 3 or 4), also where results lie over the inputs (K wide)."""
    rng = np.random.default_rng(0)
    xs = rng.normal(size=(len(turned), T, B, K)).astype(np.float32)

    def step(n, at, carry, x):
        carry = 0.5 * carry + x
        return carry, {"sum": carry[..., :width], "number": jnp.zeros_like(x[..., :1], jnp.int32) + n}

    start = join([jnp.ones((B, K))] * len(turned))
    run = jax.jit(
        lambda xs: sweep(step, start, length=T, turned=turned, unroll=unroll, like=xs[0], inputs=list(xs)),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    last, kept = run(jnp.asarray(xs))
    for r, back in enumerate(turned):
        carry = np.ones((B, K), np.float32)
        for n in range(T):
            t = T - 1 - n if back else n
            carry = 0.5 * carry + xs[r, t]
            np.testing.assert_allclose(kept[r]["sum"][t], carry[:, :width], rtol=1e-6)
            np.testing.assert_array_equal(kept[r]["number"][t], n)
        np.testing.assert_allclose(split(last, len(turned))[r], carry, rtol=1e-6)


def test_a_step_may_have_no_inputs():
    last, (kept,) = sweep(
        lambda n, at, carry, x: (carry + 1, carry + at[0]),
        jnp.zeros((B, 1), jnp.int32),
        length=T,
        turned=(True,),
        unroll=2,
        like=jnp.zeros((T, B, 1)),
    )
    np.testing.assert_array_equal(last, T)
    np.testing.assert_array_equal(kept, T - 1)  # step n works on time T - 1 - n
