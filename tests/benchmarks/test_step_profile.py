"""The profile of a training step: how overlapping instructions share time, how a trace and a program are read."""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.profiler import ProfileData

from seq2seq_jax.layers.dropout import drop, make_places
from seq2seq_jax.layers.recurrent import LayerKind, run_layer
from seq2seq_jax.parallel.softmax import cross_entropy

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def step_profile():
    """The module, from a folder that is no package."""
    sys.path.insert(0, str(BENCHMARKS))
    import step_profile

    yield step_profile
    sys.path.remove(str(BENCHMARKS))


# --- the sweep ------------------------------------------------------------------------------------


def share_by_brute_force(events, contains, *, end):
    """Nanosecond by nanosecond."""
    taken, idle = {}, 0.0
    for now in range(int(min(event.start for event in events)), end):
        running = [event for event in events if event.start <= now < event.end]
        leaves = [event.op for event in running if not contains(event.op)]
        if not leaves and running:
            leaves = [max(running, key=lambda event: event.start).op]
        for op in leaves:
            taken[op] = taken.get(op, 0.0) + 1.0 / len(leaves)
        idle += not leaves
    return taken, idle


def test_instructions_share_the_time_in_which_they_run_together(step_profile):
    events = [
        step_profile.Event(0, 10, "while"),
        step_profile.Event(1, 4, "dot"),
        step_profile.Event(2, 5, "add"),  # beside it on another thread
        step_profile.Event(14, 16, "dot"),
    ]
    taken, idle = step_profile.share_time(events, {"while"}.__contains__)
    assert taken == {"while": 1 + 5, "dot": 1 + 1 + 2, "add": 1 + 1}
    assert idle == 4


def test_the_shares_are_those_of_brute_force(step_profile):
    generator = np.random.default_rng(3)
    starts = generator.choice(200, 60, replace=False)  # the last opened of two loops must be one of them
    events = [
        step_profile.Event(int(start), int(start + generator.integers(1, 30)), f"op{n % 7}")
        for n, start in enumerate(starts)
    ]
    contains = {"op0", "op3"}.__contains__
    taken, idle = step_profile.share_time(events, contains)
    wanted, wanted_idle = share_by_brute_force(events, contains, end=max(event.end for event in events))
    assert idle == wanted_idle
    assert taken == pytest.approx(wanted)


# --- the trace ------------------------------------------------------------------------------------

GPU_TRACE = """
planes {
  id: 1
  name: "/device:GPU:0"
  lines { id: 7 name: "Stream #7(Compute)" timestamp_ns: 100
    events { metadata_id: 1 offset_ps: 0 duration_ps: 5000 stats { metadata_id: 1 str_value: "fusion.3" }
             stats { metadata_id: 2 str_value: "jit_step" } }
    events { metadata_id: 1 offset_ps: 9000 duration_ps: 1000 stats { metadata_id: 1 str_value: "fusion.3" }
             stats { metadata_id: 2 str_value: "jit_other" } } }
  lines { id: 8 name: "Stream #8(MemcpyH2D)" timestamp_ns: 100
    events { metadata_id: 2 offset_ps: 6000 duration_ps: 2000 } }
  lines { id: 9 name: "XLA Modules" timestamp_ns: 100
    events { metadata_id: 1 offset_ps: 0 duration_ps: 9000 stats { metadata_id: 1 str_value: "fusion.3" } } }
  event_metadata { key: 1 value { id: 1 name: "loop_add_fusion" } }
  event_metadata { key: 2 value { id: 2 name: "MemcpyH2D" } }
  stat_metadata { key: 1 value { id: 1 name: "hlo_op" } }
  stat_metadata { key: 2 value { id: 2 name: "hlo_module" } }
}
planes {
  id: 2
  name: "/host:CPU"
  lines { id: 1 name: "python" timestamp_ns: 100
    events { metadata_id: 1 offset_ps: 0 duration_ps: 9000 stats { metadata_id: 1 str_value: "fusion.9" } } }
  event_metadata { key: 1 value { id: 1 name: "launch" } }
  stat_metadata { key: 1 value { id: 1 name: "hlo_op" } }
}
"""
TPU_TRACE = """
planes {
  id: 1
  name: "/device:TPU:0"
  lines { id: 1 name: "XLA Ops" timestamp_ns: 100
    events { metadata_id: 1 offset_ps: 0 duration_ps: 5000 } }
  lines { id: 2 name: "Steps" timestamp_ns: 100
    events { metadata_id: 2 offset_ps: 0 duration_ps: 5000 } }
  event_metadata { key: 1 value { id: 1 name: "%fusion.3 = f32[2]{0} fusion(f32[2] %p), kind=kLoop" } }
  event_metadata { key: 2 value { id: 2 name: "0" } }
}
"""


def read_text(step_profile, text):
    data = ProfileData.from_serialized_xspace(ProfileData.text_proto_to_serialized_xspace(text))
    return [(event.start, event.end, event.op) for event in step_profile.read_events(data, "jit_step")]


def test_a_gpu_s_kernels_are_read_from_its_streams(step_profile):
    # Another program's kernel and a copy are there, but have no name of this program.
    assert read_text(step_profile, GPU_TRACE) == [(100, 105, "fusion.3"), (109, 110, ""), (106, 108, "")]


def test_a_tpu_s_instructions_are_read_from_its_line_of_operations(step_profile):
    assert read_text(step_profile, TPU_TRACE) == [(100, 105, "fusion.3")]


# --- names, and a step ----------------------------------------------------------------------------

PROGRAM = """
HloModule jit_step, is_scheduled=true

%body (p: (s32[], f32[2])) -> (s32[], f32[2]) {
  %p = (s32[], f32[2]{0}) parameter(0)
  %copy.1 = f32[2]{0} copy(%p)
  ROOT %out = (s32[], f32[2]{0}) tuple(%p, %copy.1)
}

ENTRY %main (a: f32[2]) -> f32[2] {
  %a = f32[2]{0} parameter(0), metadata={op_name="a"}
  %copy.2 = f32[2]{0} copy(%a)
  %dot.1 = f32[2]{0} dot(%copy.2, %a), metadata={op_name="jit(step)/jvp(Model)/layer/dot_general" source_line=3}
  ROOT %while.1 = (s32[], f32[2]{0}) while(%dot.1), condition=%cond, body=%body, metadata={op_name="jit(step)/jvp(Model)/layer/while"}
}
"""  # noqa: E501


def test_copies_belong_to_who_reads_them_or_to_their_loop(step_profile):
    found = step_profile.read_instructions(PROGRAM)
    assert found["copy.2"].name == found["dot.1"].name == "jit(step)/jvp(Model)/layer/dot_general"
    assert found["copy.1"].name == found["while.1"].name
    assert (found["while.1"].opcode, found["dot.1"].opcode, found["copy.1"].opcode) == ("while", "dot", "copy")
    assert step_profile.classify(found["copy.1"]) == "recurrent loops"
    assert step_profile.classify(found["copy.2"]) == "products outside loops"


@pytest.fixture
def own_names():
    """Programs from the compilation cache have the names of when they were compiled: those are part of the key here."""
    option = "jax_compilation_cache_include_metadata_in_key"
    before = jax.config.jax_compilation_cache_include_metadata_in_key
    jax.config.update(option, True)
    yield
    jax.config.update(option, before)


def make_step():
    """A training step that has a little of everything; the parameters are all 0.1."""
    kind = LayerKind(features=32)
    shapes = {
        "table": (11, 32),
        "input_kernel": (32, 128),
        "recurrent_kernel": (32, 128),
        "bias": (128,),
        "key": (32, 32),
    }
    params = {name: jnp.full(shape, 0.1) for name, shape in shapes.items()}
    tokens = jnp.arange(40, dtype=jnp.int32).reshape(10, 4) % 11

    def loss(params):
        with jax.named_scope("source_embedding"):
            x = params["table"][tokens]
        x = drop(0.5, x, jax.random.key(0), make_places(jnp.arange(4), 10))
        y, _ = run_layer(kind, params, [x], None)
        with jax.named_scope("attention"):
            y = jnp.tanh(y @ params["key"])
        with jax.named_scope("softmax"):
            weights = jnp.ones(40)
            return cross_entropy(y.reshape(40, 32), params["table"], jnp.zeros(11), tokens.reshape(40), weights).loss

    def step(params):
        grads = jax.grad(loss)(params)
        norm = jnp.sqrt(sum(jnp.sum(g * g) for g in jax.tree.leaves(grads)))
        return jax.tree.map(lambda p, g: p - 0.1 * g / norm, params, grads)

    return jax.jit(step).lower(params).compile(), params


def test_every_part_of_a_real_step_is_found_and_the_shares_sum_to_its_time(step_profile, own_names, tmp_path):
    compiled, params = make_step()
    profile = step_profile.profile_step(lambda: compiled(params), compiled, steps=2, folder=str(tmp_path))
    parts = set(step_profile.PARTS) - {"other", "idle"}
    assert {part for part in parts if profile.milliseconds[part] > 0} == parts
    assert profile.milliseconds["other"] < 0.5 * sum(profile.milliseconds.values())
    (trace,) = tmp_path.rglob("*.xplane.pb")
    events = step_profile.read_events(ProfileData.from_file(str(trace)), "jit_step")
    span = max(event.end for event in events) - min(event.start for event in events)
    assert sum(profile.milliseconds.values()) == pytest.approx(span / 2e6)
    assert sum(line[3] for line in profile.heaviest) == pytest.approx(span / 2e6 - profile.milliseconds["idle"])
    assert step_profile.measure_feeding({"x": np.ones(3)}, times=2) > 0
