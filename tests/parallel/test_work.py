"""What a compiled program does, against counts by hand and against XLA's own where there are no loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from seq2seq_jax.parallel.collectives import name_axes, read_groups
from seq2seq_jax.parallel.layout import Execution
from seq2seq_jax.parallel.program import Computation, Program, parse_program
from seq2seq_jax.parallel.work import Work, count_flops, count_work, group_size

AXES = ("data", "fsdp", "tensor", "stage")
WHOLE = PartitionSpec(AXES)


def work_of(function: Callable[..., Any], *arguments: Any) -> Work:
    return count_work(parse_program(jax.jit(function).lower(*arguments).compile().as_text()))


def test_a_product_counts_two_for_every_multiplication() -> None:
    a, b = jnp.ones((30, 70)), jnp.ones((70, 110))
    assert work_of(jnp.dot, a, b).flops == 2 * 30 * 70 * 110
    a, b = jnp.ones((5, 30, 70)), jnp.ones((5, 70, 110))
    assert work_of(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), a, b).flops == 2 * 5 * 30 * 70 * 110


def test_products_in_loops_are_counted_at_every_trip() -> None:
    def inner(x: jax.Array, _: None) -> tuple[jax.Array, None]:
        return jnp.tanh(x @ x), None

    def outer(x: jax.Array, _: None) -> tuple[jax.Array, None]:
        return lax.scan(inner, x, None, length=5)[0], None

    work = work_of(lambda x: lax.scan(outer, x, None, length=7)[0], jnp.ones((64, 64)))
    assert work.flops == 7 * 5 * 2 * 64**3
    assert work.trips == 7 + 7 * 5
    assert not work.unbounded


@pytest.mark.parametrize("remat", ["none", "full"])
def test_layers_with_attention_in_a_loop_count_all_their_products(remat: str) -> None:
    """Forwards, twice as much backwards, and, where nothing is kept, what is made again."""
    layers, batch, length, width, heads, inner = 5, 3, 16, 32, 4, 64
    shapes = [(width, 3, heads, width // heads), (heads, width // heads, width), (width, inner), (inner, width)]
    kernels = [jnp.ones((layers, *shape)) for shape in shapes]

    def layer(own: list[jax.Array], n: int, x: jax.Array, extras: tuple[()], shared: tuple[()]) -> jax.Array:
        q, k, v = jnp.moveaxis(jnp.einsum("btd,dcnh->btcnh", x, own[0]), 2, 0)
        weights = jax.nn.softmax(jnp.einsum("btnh,bsnh->bnts", q, k))
        x = x + jnp.einsum("btnh,nhd->btd", jnp.einsum("bnts,bsnh->btnh", weights, v), own[1])
        return x + jnp.tanh(x @ own[2]) @ own[3]

    def total(kernels: list[jax.Array], x: jax.Array) -> jax.Array:
        run = Execution(scanned=True, remat=remat).layer_runner()
        return jnp.sum(run(layer, kernels, x, (), (), layers=layers)[0] ** 2)

    work = work_of(jax.grad(total, (0, 1)), kernels, jnp.ones((batch, length, width)))
    products = batch * length * (4 * width**2 + 2 * width * inner + 2 * length * width)
    # What comes out of the last product of a layer is not read backwards: it is not made again.
    again = layers * (products - batch * length * width * inner) if remat == "full" else 0
    assert work.flops == 2 * (3 * layers * products + again)
    assert work.trips == 2 * layers and not work.unbounded


def test_flops_agree_with_xla_where_there_is_no_loop() -> None:
    def products(x: jax.Array, w: jax.Array, v: jax.Array) -> jax.Array:
        return jnp.einsum("btd,de,bse->bts", x, w, v)

    shapes = (jnp.ones((4, 60, 32)), jnp.ones((32, 48)), jnp.ones((4, 50, 48)))
    compiled = jax.jit(products).lower(*shapes).compile()
    assert count_work(parse_program(compiled.as_text())).flops == compiled.cost_analysis()["flops"]


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_a_convolution_counts_the_places_where_the_window_meets_the_image(padding: str) -> None:
    image, kernel, stride = np.ones((2, 9, 7, 3)), np.ones((3, 2, 3, 5)), (2, 1)

    def convolve(image: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(image, kernel, stride, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    # Every multiplication of ones adds one to the result.
    multiplications = float(convolve(jnp.array(image, jnp.float32), jnp.array(kernel, jnp.float32)).sum())
    image, kernel = jnp.ones(image.shape, jnp.float32), jnp.ones(kernel.shape, jnp.float32)
    lowered = jax.jit(convolve).lower(image, kernel)
    assert count_work(parse_program(lowered.compile().as_text())).flops == 2 * multiplications


def test_a_batched_product_written_as_a_dilated_convolution_counts_as_a_product() -> None:
    """As a TPU's compiler writes `[2, 80, 60] @ [2, 60, 128]`."""
    text = """HloModule m

ENTRY %main (a: f32[2,80,60], b: f32[2,60,128]) -> f32[2,80,128] {
  %a = f32[2,80,60]{2,1,0:T(8,128)} parameter(0)
  %b = f32[2,60,128]{2,1,0:T(8,128)} parameter(1)
  ROOT %c = f32[2,80,128]{2,1,0} convolution(%a, %b), window={size=2 lhs_dilate=2}, dim_labels=0bf_0io->0bf
}
"""
    program = parse_program(text)
    main: Computation = program.computations["main"]
    assert count_flops(main, main.ops["c"]) == 2 * 2 * 80 * 60 * 128


def test_stacking_in_a_loop_moves_one_row_a_trip() -> None:
    rows, width = 200, 512

    def stack(x: jax.Array) -> jax.Array:
        return lax.scan(lambda carry, row: (carry + 1.0, row * carry), 0.0, x)[1]

    moved = work_of(stack, jnp.ones((rows, width))).bytes
    once = rows * width * 4
    assert 2 * once <= moved < 10 * once  # counted whole at every trip it would be 400 times


def test_of_two_branches_the_one_with_more_work_counts() -> None:
    def choose(flag: jax.Array, x: jax.Array) -> jax.Array:
        return lax.cond(flag, lambda x: jnp.tanh(x @ x) @ x, lambda x: x @ x, x)

    assert work_of(choose, jnp.array(True), jnp.ones((64, 64))).flops == 2 * 2 * 64**3


def run_on_mesh(
    function: Callable[[jax.Array], jax.Array], shape: tuple[int, ...], out: PartitionSpec, *, reverse: bool = False
) -> tuple[Work, Mesh]:
    devices = np.array(jax.devices()[:8])[:: -1 if reverse else 1]
    mesh = Mesh(devices.reshape(2, 1, 2, 2), AXES, axis_types=(AxisType.Auto,) * 4)
    mapped = jax.shard_map(function, mesh=mesh, in_specs=WHOLE, out_specs=out, check_vma=False)
    given = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, WHOLE))
    return count_work(parse_program(jax.jit(mapped).lower(given).compile().as_text())), mesh


def loop(step: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    return lambda x: lax.scan(lambda c, _: (jnp.tanh(step(c)), None), x, None, length=7)[0]


COLLECTIVES = {
    "all-reduce": (loop(lambda x: lax.psum(x, "tensor")), "tensor", 7, 4 * 8 * 16),
    "collective-permute": (loop(lambda x: lax.ppermute(x, "stage", [(0, 1), (1, 0)])), "stage", 7, 4 * 8 * 16),
    "all-gather": (loop(lambda x: lax.all_gather(x, "data").sum(0)), "data", 7, 2 * 4 * 8 * 16),
    "reduce-scatter": (
        loop(lambda x: jnp.tile(lax.psum_scatter(x, ("tensor", "stage"), tiled=True), (4, 1))),
        "tensor+stage",
        7,
        4 * 8 * 16,
    ),
    "all-to-all": (loop(lambda x: lax.all_to_all(x, "tensor", 0, 1, tiled=True).reshape(8, 16)), "tensor", 7, 512),
}  # fmt: skip


@pytest.mark.parametrize("reverse", [False, True], ids=["in_order", "reversed_devices"])
@pytest.mark.parametrize("kind", COLLECTIVES)
def test_collectives_in_a_loop_are_found_with_axis_count_and_bytes(kind: str, reverse: bool) -> None:
    """`[8, 16]` float32 on each of 8 devices, 7 times, whatever ids the devices of the mesh have."""
    function, axis, times, size = COLLECTIVES[kind]
    work, mesh = run_on_mesh(function, (64, 16), WHOLE, reverse=reverse)
    found = [call for call in work.calls if call.kind == kind]
    assert sum(call.times for call in found) == times
    assert sum(call.times * call.bytes for call in found) == times * size
    assert {name_axes(read_groups(call.attributes, 8), mesh.shape) for call in found} == {axis}


def test_a_reduce_scatter_in_a_fusion_and_an_asynchronous_gather_are_counted_once() -> None:
    """As a TPU's compiler writes them: the all-reduce is sliced at once, the gather is started, pushed on, awaited."""
    gather = "all-gather(%p), channel_id=2, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={0}"
    text = f"""HloModule m

%all-reduce-scatter (p: f32[256]) -> f32[64] {{
  %p = f32[256]{{0}} parameter(0)
  %ar = f32[256]{{0}} all-reduce(%p), channel_id=1, replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %s = f32[64]{{0}} dynamic-slice(%ar, %c), dynamic_slice_sizes={{64}}
}}

%start (p: f32[64]) -> (f32[64], f32[256]) {{
  %p = f32[64]{{0}} parameter(0)
  %g = f32[256]{{0}} {gather}
  ROOT %cc = (f32[64]{{0}}, f32[256]{{0}}) custom-call(%g), custom_call_target="AsyncCollectiveStart"
}}

%done (p: f32[64]) -> f32[256] {{
  %p = f32[64]{{0}} parameter(0)
  %g = f32[256]{{0}} {gather}
  ROOT %cc = f32[256]{{0}} custom-call(%g), custom_call_target="AsyncCollectiveDone"
}}

ENTRY %main (x: f32[256]) -> f32[256] {{
  %x = f32[256]{{0}} parameter(0)
  %part = f32[64]{{0}} fusion(%x), kind=kCustom, calls=%all-reduce-scatter
  %begun = (f32[64]{{0}}, f32[256]{{0}}) fusion(%part), kind=kCustom, calls=%start
  %kept = f32[64]{{0}} get-tuple-element(%begun), index=0
  ROOT %whole = f32[256]{{0}} fusion(%kept), kind=kCustom, calls=%done
}}
"""
    program: Program = parse_program(text)
    found = [(call.kind, call.times, call.bytes, call.asynchronous) for call in count_work(program).calls]
    assert found == [("reduce-scatter", 1, 1024, False), ("all-gather", 1, 1024, True)]


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("mesh['a'=2,'b'=4] {'b'}", 4),
        ("mesh['a'=2,'b'=4] {'a','b'}", 8),
        ("mesh['a'=2,'b'=8], device_ids=([8,2]T(1,0)) {'a','b':(1)2}", 4),
        ("[2,4]<=[8]", 4),
        ("{{0,1,2},{3,4,5}}", 3),
        ("{}", 1),
    ],
)
def test_devices_of_a_group_however_they_are_written(groups: str, size: int) -> None:
    assert group_size(f"channel_id=1, replica_groups={groups}, to_apply=%add") == size


@pytest.mark.parametrize(("asked", "passes"), [("", 1), ("highest", 6), ("high", 3), ("default", 1)])
def test_products_of_float32_are_made_in_as_many_passes_as_asked_for(asked: str, passes: int) -> None:
    more = f", operand_precision={{{asked},{asked}}}" if asked else ""
    text = f"""HloModule m

ENTRY %main (a: f32[3,5], b: f32[5,7]) -> f32[3,7] {{
  %a = f32[3,5]{{1,0}} parameter(0)
  %b = f32[5,7]{{1,0}} parameter(1)
  ROOT %c = f32[3,7]{{1,0}} dot(%a, %b), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}{more}
}}
"""
    [kernel] = count_work(parse_program(text)).kernels
    assert (kernel.flops, kernel.flops32) == (2 * 3 * 5 * 7, passes * 2 * 3 * 5 * 7)


def test_what_lives_in_the_chip_s_own_memory_moves_no_bytes() -> None:
    """An update of 4 of 64 numbers reads and writes 4; the slice that is fetched ahead is read once."""

    def count(space: str) -> dict[str, float]:
        text = f"""HloModule m

ENTRY %main (x: f32[64], y: f32[4]) -> f32[64] {{
  %x = f32[64]{{0{space}}} parameter(0)
  %y = f32[4]{{0}} parameter(1)
  %n = s32[] constant(3)
  %begun = ((f32[64]{{0{space}}}), f32[4]{{0:S(1)}}, u32[]) slice-start(%x), slice={{[0:4]}}
  %done = f32[4]{{0:S(1)}} slice-done(%begun)
  ROOT %new = f32[64]{{0{space}}} dynamic-update-slice(%x, %y, %n)
}}
"""
        return {kernel.name: kernel.bytes for kernel in count_work(parse_program(text)).kernels}

    assert count("") == {"begun": 4 * 4, "new": 2 * 4 * 4}
    assert count(":S(1)") == {"begun": 0, "new": 4 * 4}
