"""How large parameters are at first, against the variances that the papers state."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from seq2seq_jax.layers.initializers import glorot_initializer, matrix_initializer, table_gain, table_initializer

INPUTS, OUTPUTS = 400, 300

VARIANCES = {
    "matrices, LeCun et al. 1998": (matrix_initializer(0.0), 1 / INPUTS),
    "matrices, Sutskever et al. 2014": (matrix_initializer(0.08), 0.08**2 / 3),
    "Glorot and Bengio 2010": (glorot_initializer(0.0, inputs=INPUTS, outputs=OUTPUTS), 2 / (INPUTS + OUTPUTS)),
    "tables": (table_initializer(0.0), 1 / OUTPUTS),
    "tables, uniform": (table_initializer(0.08), 0.08**2 / 3),
}


@pytest.mark.parametrize("case", VARIANCES)
def test_parameters_have_mean_0_and_the_variance_of_the_paper(case: str) -> None:
    init, variance = VARIANCES[case]
    drawn = np.asarray(init(jax.random.key(0), (INPUTS, OUTPUTS)), np.float64)
    np.testing.assert_allclose(drawn.var(), variance, rtol=0.02)
    assert abs(drawn.mean()) < 5 * (variance / drawn.size) ** 0.5


def test_vectors_that_are_looked_up_have_variance_1() -> None:
    drawn = table_gain(0.0, OUTPUTS) * np.asarray(table_initializer(0.0)(jax.random.key(0), (INPUTS, OUTPUTS)))
    np.testing.assert_allclose(drawn.var(), 1.0, rtol=0.02)
