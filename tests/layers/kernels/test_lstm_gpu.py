"""The LSTM kernels for NVIDIA GPUs, in the interpreter of Mosaic GPU, against float64 NumPy and a plain scan.

The interpreter simulates the programs of a group as threads that really run at the same time, with shared memory,
asynchronous copies and barriers; memory that nobody has written is NaN, so that whoever reads before a meeting fails.
It runs in a process of its own: it needs its own XLA flags, and a kernel in which programs wait for one another for
ever must end in a failure, not in a test run that hangs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seq2seq_jax.layers.kernels import lstm_gpu

ROOT = Path(__file__).resolve().parents[3]
FLAGS = "--xla_cpu_parallel_codegen_split_count=1 --xla_backend_optimization_level=0"
"""The interpreter compiles inside callbacks: a compiler that shares the callbacks' threads would wait for itself."""

CASES = {
    "tiles": (3, 70, 64, lstm_gpu.Split(parts=4, groups=1, tiles=2), False),
    "pieces": (3, 70, 192, lstm_gpu.Split(parts=4, groups=2, tiles=1, units=48, stages=2), True),
}
"""Steps, rows, width, split, reverse: two tiles a program; and two groups, with three pieces through a ring of two."""

BF16 = jnp.bfloat16


def make_inputs(case: str) -> dict[str, Any]:
    steps, rows, width, *_ = CASES[case]
    rng = np.random.default_rng(7)

    def draw(*shape: int, scale: float = 1.0, dtype: Any = jnp.float32) -> jax.Array:
        return jnp.asarray(scale * rng.standard_normal(shape), dtype)

    mask = rng.random((steps, rows)) < 0.7
    mask[:, 0], mask[:, 1], mask[0, 2], mask[-1, 2], mask[-1, 3] = True, False, False, True, False
    return {
        "projected": draw(steps, rows, 4 * width, dtype=BF16),
        "kernel": draw(width, 4 * width, scale=width**-0.5, dtype=BF16),
        "mask": jnp.asarray(mask),
        "c0": draw(rows, width),
        "h0": draw(rows, width, scale=0.5),
        "d_outputs": draw(steps, rows, width),
        "d_c": draw(rows, width),
        "d_h": draw(rows, width),
    }


def run_kernels(folder: Path) -> None:
    """What the process of its own does: runs every case and leaves the results."""
    from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks, params

    interpret = params.InterpretGPUParams(detect_races=True)
    for case, (*_, split, reverse) in CASES.items():
        a = make_inputs(case)
        start = (a["mask"], a["c0"], a["h0"], reverse)
        options: dict[str, Any] = {"split": split, "interpret": interpret}
        gates, cells, outputs = lstm_gpu.run_forward(a["projected"], a["kernel"], *start, **options)
        races = [gpu_callbacks.get_races().races_found]
        back = (a["c0"], a["mask"], a["kernel"], a["d_outputs"], a["d_c"], a["d_h"], reverse)
        dz, dc0, dh0 = lstm_gpu.run_backward(gates, cells, *back, **options)
        races.append(gpu_callbacks.get_races().races_found)
        found = {"gates": gates, "cells": cells, "outputs": outputs, "dz": dz, "dc0": dc0, "dh0": dh0}
        arrays = {name: np.asarray(value, np.float32) for name, value in found.items()}
        np.savez(folder / f"{case}.npz", races=np.array(races), **arrays)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, np.ndarray]]:
    folder = tmp_path_factory.mktemp("lstm_gpu")
    environment = {
        **os.environ,
        "XLA_FLAGS": FLAGS,
        "PJRT_NPROC": "16",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, __file__, str(folder)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {case: dict(np.load(folder / f"{case}.npz")) for case in CASES}


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


def run_plainly(case: str, dtype: Any) -> dict[str, np.ndarray]:
    """Both loops step by step in float64, with h and dz rounded to `dtype` where a step hands them to the next."""
    a, reverse = make_inputs(case), CASES[case][-1]
    x, kernel, c, h, d_outputs, dc, dh = (
        np.asarray(a[name], np.float64) for name in ("projected", "kernel", "c0", "h0", "d_outputs", "d_c", "d_h")
    )
    real = np.asarray(a["mask"])[..., None]
    gates, cells, before = np.zeros_like(x), np.zeros_like(d_outputs), np.zeros_like(d_outputs)
    outputs, dz = np.zeros_like(d_outputs), np.zeros_like(x)
    order = range(len(x))[:: -1 if reverse else 1]
    for t in order:
        z = x[t] + h.astype(dtype).astype(np.float64) @ kernel
        i, f, g, o = np.split(z, 4, axis=-1)
        i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
        new = f * c + i * g
        before[t], gates[t] = c, np.concatenate([i, f, g, o], axis=-1)
        c, h = np.where(real[t], new, c), np.where(real[t], o * np.tanh(new), h)
        cells[t], outputs[t] = c, h
    for t in order[::-1]:
        i, f, g, o = np.split(gates[t].astype(dtype).astype(np.float64), 4, axis=-1)
        dh, tanh = dh + d_outputs[t], np.tanh(cells[t])
        d = dc + dh * o * (1 - tanh**2)
        parts = [d * g * i * (1 - i), d * before[t] * f * (1 - f), d * i * (1 - g**2), dh * tanh * o * (1 - o)]
        dz[t] = np.where(real[t], np.concatenate(parts, axis=-1), 0.0)
        through = dz[t].astype(dtype).astype(np.float64) @ kernel.T
        dh, dc = through + np.where(real[t], 0.0, dh), np.where(real[t], d * f, dc)
    return {"gates": gates, "cells": cells, "outputs": outputs, "dz": dz, "dc0": dc, "dh0": dh}


def run_scan(case: str) -> dict[str, jax.Array]:
    """The gradient of a plain scan in float32, differentiated by JAX."""
    a, reverse = make_inputs(case), CASES[case][-1]
    kernel = a["kernel"].astype(jnp.float32)

    def loss(x: jax.Array, c0: jax.Array, h0: jax.Array) -> jax.Array:
        def step(state: tuple[jax.Array, jax.Array], at: tuple[jax.Array, jax.Array]) -> Any:
            c, h = state
            i, f, g, o = jnp.split(at[0] + h @ kernel, 4, axis=-1)
            new = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            on = at[1][:, None]
            c, h = jnp.where(on, new, c), jnp.where(on, jax.nn.sigmoid(o) * jnp.tanh(new), h)
            return (c, h), h

        (c, h), outputs = jax.lax.scan(step, (c0, h0), (x, a["mask"]), reverse=reverse)
        return jnp.sum(outputs * a["d_outputs"]) + jnp.sum(c * a["d_c"]) + jnp.sum(h * a["d_h"])

    gradients = jax.grad(loss, argnums=(0, 1, 2))(a["projected"].astype(jnp.float32), a["c0"], a["h0"])
    return dict(zip(("dz", "dc0", "dh0"), gradients, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_both_loops_are_those_of_float64_with_the_same_roundings(case: str, results: Any) -> None:
    # One rounding to bfloat16 of a result, and now and then one of what was handed over that fell the other way.
    expected = run_plainly(case, BF16)
    for name, tolerance in (
        ("cells", 5e-3),
        ("gates", 5e-3),
        ("outputs", 5e-3),
        ("dz", 3e-2),
        ("dc0", 2e-2),
        ("dh0", 2e-2),
    ):
        np.testing.assert_allclose(results[case][name], expected[name], atol=tolerance, rtol=1e-2, err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_the_gradients_are_those_that_jax_finds_of_a_plain_scan(case: str, results: Any) -> None:
    for name, expected in run_scan(case).items():
        np.testing.assert_allclose(results[case][name], expected, atol=6e-2, rtol=3e-2, err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_a_masked_step_repeats_the_state_and_has_no_gradient(case: str, results: Any) -> None:
    a, found = make_inputs(case), results[case]
    # Row 1 is masked throughout: it keeps the initial state, and the cotangents go straight through it.
    np.testing.assert_array_equal(found["cells"][:, 1], np.broadcast_to(a["c0"][1], found["cells"][:, 1].shape))
    np.testing.assert_array_equal(found["outputs"][-1, 1], np.asarray(a["h0"][1].astype(BF16), np.float32))
    np.testing.assert_array_equal(found["dz"][~np.asarray(a["mask"])], 0.0)
    np.testing.assert_array_equal(found["dc0"][1], a["d_c"][1])
    np.testing.assert_allclose(found["dh0"][1], a["d_h"][1] + a["d_outputs"][:, 1].sum(0), rtol=1e-5, atol=1e-5)


def test_no_program_reads_what_another_may_still_be_writing(results: Any) -> None:
    for case in CASES:
        assert not results[case]["races"].any()


def test_a_split_holds_all_rows_on_the_multiprocessors_there_are() -> None:
    for batch, hidden, split in (
        (128, 1024, lstm_gpu.Split(64, 2, 1)),
        (512, 1024, lstm_gpu.Split(64, 2, 4)),
        (32, 256, lstm_gpu.Split(16, 1, 1)),
        (130, 64, lstm_gpu.Split(4, 3, 1)),
        (1024, 1024, None),
    ):
        assert lstm_gpu.make_split(batch, hidden, 132) == split
    assert lstm_gpu.make_split(64, 1024, 32) is None


@pytest.mark.parametrize(
    ("dtype", "rows", "width", "reason"),
    [
        (jnp.float32, 8, 64, "bfloat16"),
        (BF16, 8, 96, "multiple of 64"),
        (BF16, 0, 64, "a row"),
        (BF16, 8, 2048, "shared memory"),
        (BF16, 8, 64, "compute capability 9.0"),
    ],
)
def test_what_the_kernels_cannot_run_is_refused_with_the_reason(dtype: Any, rows: int, width: int, reason: str) -> None:
    projected = jax.ShapeDtypeStruct((2, rows, 4 * width), dtype)
    assert reason in (lstm_gpu.supported(projected, jax.ShapeDtypeStruct((width, 4 * width), dtype)) or "")


if __name__ == "__main__":
    run_kernels(Path(sys.argv[1]))
