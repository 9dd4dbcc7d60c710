"""The LSTM's loops as TPU kernels: interpreted, against float64 and a plain scan; compiled, where libtpu is."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from seq2seq_jax.layers.kernels import lstm_tpu
from seq2seq_jax.layers.kernels.lstm_tpu import make_plan, run_backward, run_forward, supported
from seq2seq_jax.parallel.program import parse_program
from seq2seq_jax.parallel.topology import describe_devices
from seq2seq_jax.parallel.work import count_work

Case = tuple[int, int, int, int, str, bool]
"""Steps, rows, width, cores, dtype, reversed."""

CASES = [
    pytest.param((11, 5, 256, 1, "float32", False), id="odd rows, two blocks of time, the last cut short"),
    pytest.param((9, 32, 128, 2, "float32", True), id="reversed, rows in two parts"),
    pytest.param((3, 2, 128, 1, "bfloat16", False), id="bfloat16"),
]


def make_inputs(case: Case) -> dict[str, jax.Array]:
    length, rows, width, _, dtype, _ = case
    rng = np.random.default_rng(length)
    shapes = {"projected": (length, rows, 4 * width), "d_outputs": (length, rows, width)}
    inputs = {name: jnp.asarray(rng.normal(size=shape), dtype) for name, shape in shapes.items()}
    inputs["kernel"] = jnp.asarray(rng.normal(size=(width, 4 * width)) / np.sqrt(width), dtype)
    for name in ("c0", "h0", "d_c", "d_h"):
        inputs[name] = jnp.asarray(rng.normal(size=(rows, width)), jnp.float32)
    mask = rng.random((length, rows)) < 0.7
    mask[0, 0] = mask[-1, -1] = False
    return inputs | {"mask": jnp.asarray(mask)}


def scan_plainly(
    projected: jax.Array, kernel: jax.Array, c0: jax.Array, h0: jax.Array, *, mask: jax.Array, reverse: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The outputs of every step and the last state, in float32."""

    def step(carry: tuple, inputs: tuple) -> tuple[tuple, jax.Array]:
        c, h = carry
        x, real = inputs
        i, f, g, o = jnp.split(x + h @ kernel, 4, axis=-1)
        new_c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        c, h = (
            jnp.where(real[:, None], new, old) for new, old in ((new_c, c), (jax.nn.sigmoid(o) * jnp.tanh(new_c), h))
        )
        return (c, h), h

    (c, h), outputs = jax.lax.scan(step, (c0, h0), (projected, mask), reverse=reverse)
    return outputs, c, h


def loop_in_float64(inputs: dict[str, jax.Array], reverse: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gates, cells and outputs of every step, a masked one repeating the state before it."""
    x, kernel, c, h = (np.asarray(inputs[name], np.float64) for name in ("projected", "kernel", "c0", "h0"))
    gates, cells, outputs = np.zeros_like(x), np.zeros((*x.shape[:2], c.shape[1])), np.zeros((*x.shape[:2], c.shape[1]))
    for t in range(len(x))[:: -1 if reverse else 1]:
        z = x[t] + h @ kernel
        i, f, g, o = np.split(1 / (1 + np.exp(-z)), 4, axis=-1)
        g = np.tanh(np.split(z, 4, axis=-1)[2])
        gates[t] = np.concatenate([i, f, g, o], axis=-1)
        real = np.asarray(inputs["mask"])[t][:, None]
        new = f * c + i * g
        c, h = np.where(real, new, c), np.where(real, o * np.tanh(new), h)
        cells[t], outputs[t] = c, h
    return gates, cells, outputs


@functools.cache
def run_both(case: Case) -> tuple[dict, tuple, tuple]:
    """Inputs, and what the two kernels make of them."""
    inputs, cores, reverse = make_inputs(case), case[3], case[5]
    keep = [inputs[name] for name in ("projected", "kernel", "mask", "c0", "h0")]
    ahead = run_forward(*keep, reverse, cores=cores, interpret=True)
    rest = [inputs[name] for name in ("c0", "mask", "kernel", "d_outputs", "d_c", "d_h")]
    return inputs, ahead, run_backward(*ahead[:2], *rest, reverse, cores=cores, interpret=True)


def near(case: Case, found: jax.Array, wanted: jax.Array | np.ndarray) -> None:
    tolerance = 0.1 if case[4] == "bfloat16" else 1e-4
    np.testing.assert_allclose(np.asarray(found, np.float64), np.asarray(wanted, np.float64), atol=tolerance)


@pytest.mark.parametrize("case", CASES)
def test_the_loop_ahead_is_that_of_float64(case: Case) -> None:
    inputs, ahead, _ = run_both(case)
    for found, wanted in zip(ahead, loop_in_float64(inputs, case[5]), strict=True):
        near(case, found, wanted)
    assert [a.dtype for a in ahead] == [case[4], "float32", case[4]]


@pytest.mark.parametrize("case", CASES)
def test_the_loop_back_is_the_derivative_of_a_plain_scan(case: Case) -> None:
    inputs, _, back = run_both(case)
    float32 = {name: a if name == "mask" else a.astype(jnp.float32) for name, a in inputs.items()}
    plain = functools.partial(scan_plainly, mask=inputs["mask"], reverse=case[5])
    _, derive = jax.vjp(plain, *(float32[name] for name in ("projected", "kernel", "c0", "h0")))
    dz, _, dc0, dh0 = derive(tuple(float32[name] for name in ("d_outputs", "d_c", "d_h")))
    for found, wanted in zip(back, (dz, dc0, dh0), strict=True):
        near(case, found, wanted)
    assert not np.asarray(back[0], np.float32)[~np.asarray(inputs["mask"])].any()


@pytest.mark.parametrize(
    ("shape", "dtypes", "said"),
    [
        ((50, 128, 1024), ("bfloat16", "bfloat16"), None),
        ((1600, 20, 256), ("float32", "float32"), None),
        ((50, 512, 2048), ("bfloat16", "bfloat16"), None),
        ((50, 128, 1024), ("bfloat16", "float32"), "but are bfloat16 and float32"),
        ((50, 128, 1024), ("float16", "float16"), "both arrays must be"),
        ((50, 128, 1000), ("bfloat16", "bfloat16"), "a multiple of 128, but is 1000"),
        ((0, 128, 1024), ("bfloat16", "bfloat16"), "a step and a row"),
        ((50, 128, 4096), ("bfloat16", "bfloat16"), "a kernel of 128 MiB and the state do not fit into 56 MiB"),
    ],
)
def test_what_cannot_run_is_told(shape: tuple[int, int, int], dtypes: tuple[str, str], said: str | None) -> None:
    length, rows, width = shape
    x = jax.ShapeDtypeStruct((length, rows, 4 * width), dtypes[0])
    kernel = jax.ShapeDtypeStruct((width, 4 * width), dtypes[1])
    reason = supported(x, kernel)
    assert (reason is None) if said is None else (said in (reason or ""))
    if said is not None:
        state = jax.ShapeDtypeStruct((rows, width), "float32")
        with pytest.raises(ValueError, match="because"):
            jax.eval_shape(functools.partial(run_forward, reverse=False), x, kernel, x, state, state)


def test_cores_get_equal_shares_where_rows_allow() -> None:
    for rows, cores, wanted in ((128, 1, 128), (128, 2, 64), (24, 2, 24), (32, 2, 16)):
        plan = make_plan((50, rows, 4096), jnp.bfloat16, cores)
        assert plan is not None
        assert plan.rows == wanted
        assert plan.vmem <= lstm_tpu.VMEM_BYTES


def test_as_many_steps_come_together_as_8_mib_hold() -> None:
    """A step brings the gates, their derivatives and the outputs' (bfloat16), and cells and a mask (float32)."""
    counted = {}
    for rows, width in ((16, 128), (64, 1024), (128, 1024), (512, 1024), (1024, 128)):
        plan = make_plan((50, rows, 4 * width), jnp.bfloat16)
        assert plan is not None and plan.rows == rows
        fetched = rows * width * (4 * 2 + 4 * 2 + 2 + 4 + 4)
        counted[rows, width] = plan.steps
        assert plan.steps * fetched <= 8 * 2**20 or plan.steps == 1
        assert plan.steps == 8 or 2 * plan.steps * fetched > 8 * 2**20
    assert set(counted.values()) == {1, 2, 4, 8}
    short = make_plan((3, 16, 512), jnp.bfloat16)
    assert short is not None and short.steps == 3


def test_vmem_holds_the_matrix_and_two_of_every_block_that_moves() -> None:
    """While one block is worked on, the next is fetched."""
    rows, width, size = 16, 128, 2
    plan = make_plan((50, rows, 4 * width), jnp.bfloat16)
    assert plan is not None and plan.steps == 8
    matrix, states, block = width * 4 * width * size, 9 * rows * width * 4, 8 * rows * width * (8 * size + 8 + size)
    assert plan.vmem == matrix + states + 2 * block + lstm_tpu._SLACK


def test_the_compiler_is_told_of_the_products_and_of_the_bytes_that_move() -> None:
    length, rows, width = 50, 16, 128
    plan = make_plan((length, rows, 4 * width), jnp.bfloat16)
    assert plan is not None
    cut = lstm_tpu._Cut(plan, length, rows, True)
    told = cut.estimate(jnp.zeros((length, rows, 4 * width), jnp.bfloat16), read=4 * width, written=3 * width)
    assert told.flops == 2 * length * rows * width * 4 * width
    assert told.bytes_accessed == 2 * (length * rows * 7 * width + width * 4 * width)


@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_tpus_compile_it(topology: str) -> None:
    """Mosaic takes the kernels, and its VMEM holds what the plan says: it is refused more than `Plan.vmem`."""
    pytest.importorskip("libtpu", reason="compiling for a TPU needs libtpu (pip install 'seq2seq_jax[plan]')")
    device = describe_devices(topology)[0]
    length, rows, width = 50, 128, 1024
    make = functools.partial(jax.ShapeDtypeStruct, sharding=SingleDeviceSharding(device))
    state, mask = make((rows, width), jnp.float32), make((length, rows), bool)
    x, kernel = make((length, rows, 4 * width), jnp.bfloat16), make((width, 4 * width), jnp.bfloat16)
    outputs, cells = make((length, rows, width), jnp.bfloat16), make((length, rows, width), jnp.float32)

    def both(x, kernel, mask, state, cells, outputs):  # type: ignore[no-untyped-def]
        ahead = run_forward(x, kernel, mask, state, state, False, cores=device.num_cores)
        back = run_backward(x, cells, state, mask, kernel, outputs, state, state, True, cores=device.num_cores)
        return ahead, back

    compiled = jax.jit(both).lower(x, kernel, mask, state, cells, outputs).compile()
    work = count_work(parse_program(compiled.as_text()))
    assert work.trips == 0  # no loop of XLA's
    assert work.flops == 2 * 2 * length * rows * width * 4 * width


def test_several_tpus_compile_it_with_rows_on_each() -> None:
    pytest.importorskip("libtpu", reason="compiling for a TPU needs libtpu (pip install 'seq2seq_jax[plan]')")
    mesh = Mesh(np.array(describe_devices("v5e:2x2")), ("data",), axis_types=(AxisType.Auto,))
    split, whole = PartitionSpec(None, "data"), PartitionSpec()
    length, rows, width = 3, 64, 128

    def make(shape: tuple[int, ...], dtype: str, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    def run(x: jax.Array, kernel: jax.Array, mask: jax.Array) -> jax.Array:
        zeros = jnp.zeros_like(x, jnp.float32, shape=(x.shape[1], width))
        return run_forward(x, kernel, mask, zeros, zeros, False)[2]

    mapped = jax.shard_map(run, mesh=mesh, in_specs=(split, whole, split), out_specs=split)
    x, kernel = make((length, rows, 4 * width), "float32", split), make((width, 4 * width), "float32", whole)
    compiled = jax.jit(mapped).lower(x, kernel, make((length, rows), "bool", split)).compile()
    assert count_work(parse_program(compiled.as_text())).flops == 2 * length * rows / 4 * width * 4 * width
