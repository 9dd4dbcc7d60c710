"""A batch that rolls on a mesh finds what one program on one device finds; its programs are counted."""

from __future__ import annotations

import functools
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from seq2seq_jax.data.vocab import EOS_ID
from seq2seq_jax.decode.beam import Beam
from seq2seq_jax.decode.constraints import pack_constraints
from seq2seq_jax.decode.ranking import Ranking
from seq2seq_jax.decode.sample import Draws
from seq2seq_jax.models.gnmt import GNMT, GNMTConfig
from seq2seq_jax.parallel.layout import make_layout
from seq2seq_jax.tasks.engine import Asked, Engine, make_table
from seq2seq_jax.tasks.methods import IDS
from seq2seq_jax.tasks.search import Search, model_program

BEAM = Search(Beam(3, Ranking("gnmt", length_penalty=0.6, coverage_penalty=0.2), **IDS), 1.0, 3)
LONG = Search(BEAM.method, 1.0, 16)
DRAWS = Search(Draws(samples=2, **IDS), 1.0, 3, seed=7)
MODEL = GNMT(GNMTConfig(23, 23, 32, 1, 2, 32, "current_step"))


def shape_parameters():
    tokens = jnp.ones((1, 2), jnp.int32)
    return jax.eval_shape(lambda: MODEL.init(jax.random.key(0), tokens, tokens > 0, tokens))["params"]


@functools.cache
def start():
    generator = np.random.default_rng(5)
    return jax.tree.map(
        lambda leaf: generator.normal(0.0, 0.4, leaf.shape).astype(np.float32), nn.meta.unbox(shape_parameters())
    )


@functools.cache
def make_sources() -> tuple[np.ndarray, ...]:
    generator = np.random.default_rng(2)
    lengths = generator.integers(1, 8, 13)
    return tuple(np.append(generator.integers(4, 23, length), EOS_ID).astype(np.int32) for length in lengths)


class QuickEngine(Engine):
    """Compiles without much optimisation: tiny programs run once."""

    def compile(self, key, function, *, donate=(), out=None):
        if key not in self._programs:
            options = {"xla_backend_optimization_level": 0}
            self._programs[key] = jax.jit(function, donate_argnums=donate, out_shardings=out, compiler_options=options)
        return self._programs[key]


def make_engine(search: Search, *, rows: int, attention: str = "best", **mesh) -> Engine:
    """Long outputs are kept from repeating themselves, which takes a cache that grows with them."""
    layout = make_layout(**{"data": 1, "fsdp": 1, "stage": 1, "tensor": 1} | mesh)
    program = model_program(MODEL, layout, shape_parameters())
    guard = 2 if search is LONG else 0
    return QuickEngine(program, search, rows=rows, max_source_len=8, attention=attention, no_repeat_ngram=guard)


def run(engine: Engine, places):
    """What is found for the sources at these places; draws are keyed by the place."""
    found = dict(engine.run(start(), [make_sources()[n] for n in places], numbers=list(places)))
    return [found[n] for n in range(len(places))]


@functools.cache
def search_in_one_program(search: Search):
    """Eight rows at a time at most: no batch rolls."""
    engine = make_engine(search, rows=8, attention="all")
    found = [*run(engine, range(8)), *run(engine, range(8, 13))]
    assert engine.tally.segments == 0 and engine.programs == 1
    return found


def assert_same(found, wanted) -> None:
    """The same, but for the room that was left for longer outputs."""
    for a, b in zip(found, wanted, strict=True):
        room = min(a.tokens.shape[1], b.tokens.shape[1])
        assert max(a.lengths.max(), b.lengths.max()) <= room
        np.testing.assert_array_equal(a.tokens[:, :room], b.tokens[:, :room])
        for name in ("lengths", "finished"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
        for name in ("scores", "log_probs"):
            np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-5, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(a.attention[:, :room], b.attention[: len(a.attention), :room], atol=1e-5)


@pytest.mark.parametrize(
    ("search", "rows", "mesh"),
    [(LONG, 2, {}), (BEAM, 8, {"data": 4, "tensor": 2}), (DRAWS, 8, {"data": 8})],
    ids=["a cache that grows", "beam, 4x2", "draws, data"],
)
def test_a_batch_that_rolls_finds_what_one_program_finds(search, rows, mesh):
    engine = make_engine(search, rows=rows, **mesh)
    assert_same(run(engine, range(13)), search_in_one_program(search))
    assert engine.tally.rows == 13 and engine.tally.segments > 1
    rooms = {key[-1] for key in engine._programs if key[0] == "advance"}
    assert len(rooms) > 1 if search is LONG else len(rooms) == 1
    assert 5 <= engine.programs <= engine.most_programs


def test_programs_are_counted_and_made_once():
    """... as JAX itself tells it: a second call compiles nothing."""
    compiled = []

    def listen(event: str, seconds: float, **about) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(about.get("fun_name"))

    engine = make_engine(DRAWS, rows=3)
    run(engine, range(13))
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        jax.clear_caches()
        engine = make_engine(DRAWS, rows=3)
        run(engine, range(13))
        first = len(compiled)
        run(engine, range(12, 3, -1))
        assert len(compiled) == first
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert 0 < engine.programs <= engine.most_programs
    assert engine.programs <= first <= engine.programs + 6  # and small ones: what arrays and keys are made with


def test_attention_is_that_of_whom_it_was_asked_for():
    found = {name: run(make_engine(BEAM, rows=8, attention=name), range(2)) for name in ("none", "best")}
    wanted = search_in_one_program(BEAM)[:2]
    assert [item.attention for item in found["none"]] == [None, None]
    for a, b in zip(found["best"], wanted, strict=True):
        assert (len(a.attention), len(b.attention)) == (1, 3)
        np.testing.assert_allclose(a.attention[0], b.attention[0], atol=1e-5)
    with pytest.raises(ValueError, match="one of"):
        make_engine(BEAM, rows=8, attention="some")


def test_parameters_and_inputs_are_let_go_of():
    """... and until then, what was prepared is there once for all engines of a program."""
    engine = make_engine(DRAWS, rows=3)
    other = QuickEngine(engine.program(constrained=False), DRAWS, rows=8, max_source_len=8)
    params = jax.tree.map(jnp.array, start())
    prepared = engine.prepare(params)
    assert other.prepare(params) is prepared and prepared.params is params
    assert jax.tree.leaves(prepared.weights)
    sources = [source.copy() for source in make_sources()[:10]]
    assert len(list(engine.run(params, sources))) == 10 and len(list(other.run(params, sources[:2]))) == 2
    assert engine.programs > 4 and other.programs == 1
    held = [weakref.ref(leaf) for leaf in (*jax.tree.leaves(prepared), *sources)]
    del params, prepared, sources
    assert sum(leaf() is not None for leaf in held) > len(held) // 2  # the parameters are kept for the next call
    engine.forget()
    gc.collect()
    assert [leaf() for leaf in held] == [None] * len(held)


def test_every_kind_of_input_has_its_own_programs_and_they_are_counted():
    engine, source = make_engine(DRAWS, rows=3), list(make_sources()[:1])
    room = DRAWS.longest(8)
    assert (room, engine.most_programs) == (11, 0)

    def ask(phrase: list[int] | None, *least: int) -> tuple[int, int]:
        """How many programs there are and how many there can be, after a search."""
        asked = None if phrase is None else pack_constraints([[], []], [[], []], [[phrase], []])
        ((_, found),) = engine.run(start(), source, constraints=asked, least=least)
        assert phrase is None or all(row[n : n + 2].tolist() != phrase for row in found.tokens for n in range(9))
        return engine.programs, engine.most_programs

    first, most = ask(None)
    assert first == 1 and ask(None, room) == (1, most)  # room that outputs have anyway
    assert ask(None, room + 1) == (2, 2 * most) == ask(None, 16)
    assert ask([5, 6]) == (3, 3 * most) == ask([7, 8])  # as wide
    table = make_table(engine.program(constrained=False), DRAWS, rows=3, max_source_len=8)
    floors = [Asked(source, [0], None, [least]).kind(table)[-1] for least in (1, 11, 12, 16, 17, 32, 33)]
    assert floors == [0, 0, 16, 16, 32, 32, 64]
