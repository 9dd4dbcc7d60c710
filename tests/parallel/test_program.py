"""Reading compiled text: how often loops run, against loops whose trips are known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from seq2seq_jax.parallel.program import Program, count_trips, parse_program

LOOP = """HloModule jit_f

%fused (p.0: s32[], p.1: s32[]) -> pred[] {{
  %p.0 = s32[]{{:T(128)}} parameter(0)
  %p.1 = s32[]{{:T(128)}} parameter(1)
  ROOT %lt.1 = pred[]{{:T(512)}} compare(%p.0, %p.1), direction={direction}
}}

%cond (c: (s32[], f32[2,128], s32[])) -> pred[] {{
  %c = (s32[]{{:T(128)}}, f32[2,128]{{1,0:T(2,128)S(1)}}, /*index=2*/s32[]) parameter(0)
  %limit = s32[]{{:T(128)}} constant(80)
  %n = s32[]{{:T(128)}} get-tuple-element(%c), index=0
  %given = s32[] get-tuple-element(%c), index=2
  ROOT %fusion.1 = pred[]{{:T(512)}} fusion({sides}), kind=kLoop, calls=%fused
}}

%body (b: (s32[], f32[2,128], s32[])) -> (s32[], f32[2,128], s32[]) {{
  %b = (s32[]{{:T(128)}}, f32[2,128]{{1,0:T(2,128)S(1)}}, s32[]) parameter(0)
  %step = s32[] constant({step})
  %m = s32[] get-tuple-element(%b), index=0
  %x = f32[2,128]{{1,0:T(2,128)S(1)}} get-tuple-element(%b), index=1
  %same = s32[] get-tuple-element(%b), index=2
  %next = s32[] add(%m, %step)
  ROOT %out = (s32[], f32[2,128]{{1,0}}, s32[]) tuple(%next, %x, %same)
}}

ENTRY %main (x.0: f32[2,128]) -> f32[2,128] {{
  %x.0 = f32[2,128]{{1,0}} parameter(0)
  %start = s32[] constant({start})
  %end = s32[] constant(30)
  %in = (s32[], f32[2,128]{{1,0}}, s32[]) tuple(%start, %x.0, %end)
  %while.1 = (s32[], f32[2,128]{{1,0}}, s32[]) while(%in), condition=%cond, body=%body, metadata={{op_name="a/while"}}
  ROOT %result = f32[2,128]{{1,0}} get-tuple-element(%while.1), index=1
}}
"""


def trips_of(program: Program) -> list[int | None]:
    """The trips of all loops of a program, least first."""
    found = [
        count_trips(program, computation, op)
        for computation in program.computations.values()
        for op in computation.ops.values()
        if op.opcode == "while"
    ]
    return sorted(found, key=lambda n: -1 if n is None else n)


@pytest.mark.parametrize(
    ("direction", "sides", "start", "step", "trips"),
    [
        ("LT", "%n, %limit", 0, 1, 80),
        ("LE", "%n, %limit", 0, 1, 81),
        ("GT", "%limit, %n", 0, 1, 80),
        ("LT", "%n, %limit", 72, 3, 3),
        ("LT", "%n, %given", 0, 1, 30),  # the limit goes round in the loop
        ("LT", "%n, %limit", 90, 1, 0),
    ],
)
def test_trips_follow_from_the_condition(direction: str, sides: str, start: int, step: int, trips: int) -> None:
    text = LOOP.format(direction=direction, sides=sides, start=start, step=step)
    assert trips_of(parse_program(text)) == [trips]


def test_a_loop_whose_limit_is_not_constant_has_no_known_trips() -> None:
    text = LOOP.format(direction="LT", sides="%n, %limit", start=0, step=1).replace("add(%m, %step)", "add(%m, %same)")
    assert trips_of(parse_program(text)) == [None]


def test_trips_of_loops_inside_loops_are_those_of_the_scans() -> None:
    def inner(x: jax.Array, _: None) -> tuple[jax.Array, None]:
        return jnp.tanh(x @ x), None

    def outer(x: jax.Array, _: None) -> tuple[jax.Array, None]:
        return lax.scan(inner, x, None, length=5)[0], None

    compiled = jax.jit(lambda x: lax.scan(outer, x, None, length=7)[0]).lower(jnp.ones((64, 64))).compile()
    assert trips_of(parse_program(compiled.as_text())) == [5, 7]


def test_a_search_that_may_end_early_is_bounded_by_its_counter() -> None:
    def run(x: jax.Array) -> jax.Array:
        return lax.while_loop(
            lambda carry: (carry[0] < 20) & jnp.any(carry[1] < 9.0),
            lambda carry: (carry[0] + 1, carry[1] * 2.0),
            (0, x),
        )[1]

    compiled = jax.jit(run).lower(jnp.ones((64,))).compile()
    assert trips_of(parse_program(compiled.as_text())) == [20]


def test_a_loop_that_only_data_ends_has_no_known_trips() -> None:
    run = jax.jit(lambda x: lax.while_loop(lambda x: x.sum() > 1.0, lambda x: x / 2.0, x))
    assert trips_of(parse_program(run.lower(jnp.ones((64,))).compile().as_text())) == [None]


def test_text_without_an_entry_is_refused() -> None:
    with pytest.raises(ValueError, match="ENTRY"):
        parse_program("HloModule nothing\n")


def test_buffers_know_their_bytes_and_where_they_live() -> None:
    op = parse_program(LOOP.format(direction="LT", sides="%n, %limit", start=0, step=1)).computations["body"].ops["b"]
    assert [one.size for one in op.results] == [4, 2 * 128 * 4, 4]
    assert [one.fast for one in op.results] == [False, True, False]
