"""Searching any number of sources with a model on a mesh: the compiled programs of a batch that rolls."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seq2seq_jax.data.vocab import EOS_ID
from seq2seq_jax.decode.constraints import constrain
from seq2seq_jax.decode.loop import run_loop, run_search
from seq2seq_jax.decode.method import Rows, State
from seq2seq_jax.decode.rolling import Shape, Table, Tally, fit, put, roll, take, write_clocks
from seq2seq_jax.decode.steps import Constraints, Decoder, Inputs
from seq2seq_jax.interfaces import Array, Hypotheses, PyTree
from seq2seq_jax.parallel.layout import Execution
from seq2seq_jax.tasks.search import Program, Search, fit_method, start_search

FEW = (1, 8)
"""Sizes of batches that are searched in one program: an answer to one person must not wait for 63 empty rows."""

SHORTEST_SOURCE = 8
"""Source lengths that programs are compiled for are this times a power of two."""

ATTENTION = ("none", "best", "all")

Given = tuple[Inputs, Rows]


class Engine:
    """Searches any number of sources; holds the compiled programs, each made when it is first needed.

    Args:
        program: what searches, and where.
        search: how.
        rows: sources searched at a time.
        max_source_len: tokens of a source, at most.
        attention: of which hypotheses it is returned: "none", "best" or "all".
        no_repeat_ngram, max_loop: guards against repetition; see `decode.constraints.constrain`.
    """

    def __init__(
        self,
        program: Program,
        search: Search,
        *,
        rows: int,
        max_source_len: int,
        attention: str = "best",
        no_repeat_ngram: int = 0,
        max_loop: int = 0,
    ):
        if attention not in ATTENTION:
            raise ValueError(f"`attention` must be one of {ATTENTION}, but is {attention!r} instead.")
        self.search, self.attention = search, attention
        self.rows, self.max_source_len = rows, max_source_len
        self.guards = {"no_repeat_ngram": no_repeat_ngram, "max_loop": max_loop}
        self.tally = Tally()
        self._plain, self._constrained = program, dataclasses.replace(program, build=self._build_constrained)
        self._table = make_table(program, search, rows=rows, max_source_len=max_source_len)
        self._kinds: dict[tuple[Any, ...], Parts] = {}
        self._programs: dict[tuple[Any, ...], Any] = {}
        self._shapes: dict[tuple[Any, ...], PyTree] = {}

    def _build_constrained(self, execution: Execution) -> Decoder:
        return constrain(self._plain.build(execution), eos_id=EOS_ID, **self.guards)

    def program(self, *, constrained: bool) -> Program:
        """What searches; guards and constraints cost a little where nothing is asked."""
        return self._constrained if constrained or any(self.guards.values()) else self._plain

    @property
    def programs(self) -> int:
        """How many programs were compiled."""
        return len(self._programs)

    @property
    def most_programs(self) -> int:
        """How many programs there can be for all that was asked so far.

        Every kind of input has its own: a kind is the widths of the constraints (the most and the longest of an input)
        and what its outputs need room for, as far as that is more than what they have anyway. 0 before the first one.
        """
        few = len(FEW) * len(self._table.sources)
        return sum(parts.table.count_programs() + few for parts in self._kinds.values())

    def prepare(self, params: PyTree) -> PyTree:
        """The parameters, with what steps read of them; see `Program.prepare`."""
        return self._plain.prepare(params)

    def forget(self) -> None:
        """Lets go of the parameters; so do all engines of the same program."""
        self._plain.forget()

    def find_parts(self, params: PyTree, asked: Asked) -> Parts:
        """What the programs for such an input are made of; found out once."""
        kind = asked.kind(self._table)
        if kind not in self._kinds:
            constrained = asked.constraints is not None
            program = self.program(constrained=constrained)
            nothing = asked.pad([-1] * 2, SHORTEST_SOURCE, self.search)
            attends, grows = self.remember(("model", constrained), lambda: _look_at_model(program, params, nothing))
            attention = self.attention != "none"
            method = fit_method(self.search.method, vocab_axes=program.vocab_axes, attends=attends, attention=attention)
            table = dataclasses.replace(self._table, longest=_raise(self.search.longest, kind[-1]), grows=grows)
            self._kinds[kind] = Parts(kind, program, method, table, self.search.seed, self.attention == "all")
        return self._kinds[kind]

    def run(
        self,
        params: PyTree,
        sources: Sequence[np.ndarray],
        *,
        numbers: Sequence[int] | None = None,
        constraints: Constraints | None = None,
        least: Sequence[int] | None = None,
        poll: Callable[[], None] = lambda: None,
    ) -> Iterator[tuple[int, Hypotheses]]:
        """Searches sources.

        Args:
            params: of the program.
            sources: tokens of each, int32; of speech its frames, `[S, W]` float32.
            numbers: what the draws of each are keyed by; by default its place.
            constraints: leaves `[N + 1, ...]`, the last row asking nothing.
            least: what the longest output of each must at least be.
            poll: called between segments; may raise to stop.

        Yields:
            The place of a source and what was found for it, NumPy arrays `[K, ...]`, as they come.
        """
        if not sources:
            return
        asked = Asked(sources, range(len(sources)) if numbers is None else numbers, constraints, least or ())
        bound = _Bound(self, self.prepare(params), asked)
        if len(sources) > min(FEW[-1], self.rows):
            yield from roll(bound, [len(source) for source in sources], poll=poll, tally=self.tally)
        else:
            poll()
            yield from bound.search_few()

    def compile(self, key: tuple[Any, ...], function: Any, *, donate: tuple[int, ...] = (), out: Any = None) -> Any:
        """The jitted function of a key: made once, and always called with the same shapes."""
        if key not in self._programs:
            self._programs[key] = jax.jit(function, donate_argnums=donate, out_shardings=out)
        return self._programs[key]

    def remember(self, key: tuple[Any, ...], make: Callable[[], PyTree]) -> PyTree:
        """The shapes of a key, made once."""
        if key not in self._shapes:
            self._shapes[key] = make()
        return self._shapes[key]


def _look_at_model(program: Program, params: PyTree, given: Given) -> tuple[bool, bool]:
    """Whether a model attends, and whether its cache has an axis that follows the output; by shapes alone."""

    def look(decoder: Decoder, params: PyTree, given: Given, whole: PyTree) -> Any:
        held = decoder.encode(params, given[0])
        caches = [decoder.init_cache(params, held, room) for room in (16, 17)]
        clocks = given[1].numbers
        return caches, decoder.make_step(params, held)(clocks, clocks, caches[0]).attention

    (first, second), attention = jax.eval_shape(functools.partial(program.spread, look), params, given)
    sizes = [[leaf.shape for leaf in jax.tree.leaves(cache)] for cache in (first, second)]
    return attention is not None, sizes[0] != sizes[1]


def _raise(longest: Callable[[int], int], floor: int) -> Callable[[int], int]:
    return lambda length: max(longest(length), floor)


def make_table(program: Program, search: Search, *, rows: int, max_source_len: int) -> Table:
    """A half of the batch, an eighth, and so on, as far as devices share them; source lengths by powers of two."""
    sizes, shared = [rows], program.row_axes(rows)
    for part in (2, 8, 32, 128):
        if rows % part == 0 and rows // part >= FEW[-1] and program.row_axes(rows // part) == shared:
            sizes.append(rows // part)
    sources = [min(SHORTEST_SOURCE, max_source_len)]
    while sources[-1] < max_source_len:
        sources.append(min(2 * sources[-1], max_source_len))
    return Table(tuple(reversed(sizes)), tuple(sources), search.longest)


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is to be searched; see `Engine.run`."""

    sources: Sequence[np.ndarray]
    numbers: Sequence[int]
    constraints: Constraints | None
    least: Sequence[int]

    def kind(self, table: Table) -> tuple[Any, ...]:
        """What inputs of one kind have alike: the shapes of the constraints without the rows, and the floor.

        That is what the room for outputs must at least be: a power of two, so that few shapes are compiled, and 0
        where every output has as much room by the table.
        """
        least = max(self.least, default=0)
        floor = 0 if least <= table.longest(table.sources[0]) else 1 << (least - 1).bit_length()
        return (*(tuple(leaf.shape[1:]) for leaf in jax.tree.leaves(self.constraints)), floor)

    def pad(self, rows: Sequence[int], source: int, search: Search) -> Given:
        """Rows padded to a source length; -1 only fills."""
        like = self.sources[0]
        tokens: Any = np.zeros((len(rows), source, *like.shape[1:]), like.dtype)
        mask: Any = np.zeros((len(rows), source), bool)
        longest: Any = np.zeros(len(rows), np.int32)
        shortest, numbers = np.zeros_like(longest), np.zeros_like(longest)
        index: Any = np.array(rows)
        for place, row in enumerate(rows):
            if row >= 0:
                length = len(self.sources[row])
                tokens[place, :length], mask[place, :length] = self.sources[row], True
                least = int(self.least[row]) if len(self.least) else 0
                longest[place], shortest[place] = max(search.longest(length), least), search.shortest(length)
                numbers[place] = self.numbers[row]
        constraints, real = jax.tree.map(lambda leaf: leaf[index], self.constraints), index >= 0
        return Inputs(tokens, mask, constraints, longest), Rows(mask, real, longest, shortest, numbers)


@dataclasses.dataclass(frozen=True)
class Parts:
    """What the programs for inputs of one kind are made of: functions of arrays.

    Compiled functions live as long as the engine, and with them all that they close over: that is this, and never
    the parameters or an input.

    Attributes:
        kind: see `Asked.kind`.
        program: what searches, and where.
        method: the way of searching as it fits the model.
        table: the shapes.
        seed: of the draws.
        attention_of_all: whether attention is returned of all hypotheses, not of the best alone.
    """

    kind: tuple[Any, ...]
    program: Program
    method: Any
    table: Table
    seed: int
    attention_of_all: bool

    def start(self, shape: Shape, decoder: Decoder, params: PyTree, given: Given) -> tuple[PyTree, State]:
        """A batch before its first step, on a device."""
        inputs, rows = given
        keys = jnp.broadcast_to(jax.random.key(self.seed), rows.numbers.shape)
        return start_search(
            self.method,
            decoder,
            params,
            inputs,
            dataclasses.replace(rows, keys=keys),
            max_len=self.table.longest(shape.source),
            room=shape.room,
        )

    def begin(self, shape: Shape, params: PyTree, given: Given) -> PyTree:
        """A batch before its first step."""

        def run(decoder: Decoder, params: PyTree, given: Given, whole: PyTree) -> PyTree:
            return self.start(shape, decoder, params, given)

        return self.program.spread(run, params, given)

    def advance(self, params: PyTree, held: PyTree, state: State, steps: Array, leave: Array) -> tuple[State, Array]:
        """A segment, and the clocks after it."""

        def run(decoder: Decoder, params: PyTree, batch: PyTree, whole: tuple[Array, Array]) -> State:
            advance = functools.partial(self.method.advance, decoder.make_step(params, batch[0]))
            return run_loop(advance, batch[1], whole[0], leave=whole[1])

        state = self.program.spread(run, params, (held, state), (steps, leave))
        return state, write_clocks(state.time, state.done)

    def search_few(self, shape: Shape, params: PyTree, given: Given) -> Hypotheses:
        """A whole search in one program."""

        def run(decoder: Decoder, params: PyTree, given: Given, whole: PyTree) -> Hypotheses:
            held, state = self.start(shape, decoder, params, given)
            return self._trim(run_search(self.method, decoder.make_step(params, held), state, shape.room))

        return self.program.spread(run, params, given)

    def collect(self, state: State) -> Hypotheses:
        """What was found for rows of a state, wherever they were searched."""
        return self._trim(dataclasses.replace(self.method, vocab_axes=()).collect(state))

    def _trim(self, found: Hypotheses) -> Hypotheses:
        """Without the attention that nobody asked for."""
        if found.attention is None or self.attention_of_all:
            return found
        return dataclasses.replace(found, attention=found.attention[:, :1])


class _Bound:
    """The programs of an engine for one input: what `decode.rolling` works with."""

    def __init__(self, engine: Engine, params: PyTree, asked: Asked):
        self._engine, self._params, self._asked = engine, params, asked
        self._parts = engine.find_parts(params, asked)
        self.table = self._parts.table

    def _key(self, name: str, *shapes: Shape) -> tuple[Any, ...]:
        sizes = [size for shape in shapes for size in (shape.rows, shape.source, shape.room)]
        return name, self._parts.kind, *sizes

    def _place(self, shape: Shape) -> Any:
        return self._parts.program.place(self._parts.program.row_axes(shape.rows))

    def _pad(self, rows: Sequence[int], source: int) -> Given:
        return self._asked.pad(rows, source, self._engine.search)

    def _born(self, shape: Shape) -> PyTree:
        """The shapes of a batch as it would be begun."""
        make, given = functools.partial(self._parts.begin, shape), self._pad([-1] * shape.rows, shape.source)
        return self._engine.remember(self._key("born", shape), lambda: jax.eval_shape(make, self._params, given))

    def search_few(self) -> Iterator[tuple[int, Hypotheses]]:
        """Searches a few rows in one program."""
        count, table = len(self._asked.sources), self.table
        source = table.round_source(max(len(source) for source in self._asked.sources))
        size = next((size for size in FEW if count <= size <= self._engine.rows), self._engine.rows)
        shape = Shape(size, source, table.longest(source))
        search, everywhere = functools.partial(self._parts.search_few, shape), self._parts.program.place()
        function = self._engine.compile(self._key("few", shape), search, out=everywhere)
        found = jax.device_get(function(self._params, self._pad([*range(count), *[-1] * (size - count)], source)))
        for row in range(count):
            yield row, jax.tree.map(lambda x, row=row: x[row], found)

    def begin(self, rows: Sequence[int], shape: Shape) -> PyTree:
        """See `decode.rolling.Programs`."""
        make = functools.partial(self._parts.begin, shape)
        function = self._engine.compile(self._key("begin", shape), make, out=self._place(shape))
        return function(self._params, self._pad(rows, shape.source))

    def advance(self, batch: PyTree, steps: int, leave: int, shape: Shape) -> tuple[PyTree, Array]:
        """See `decode.rolling.Programs`."""
        held, state = batch
        out = self._place(shape), self._parts.program.place()
        function = self._engine.compile(self._key("advance", shape), self._parts.advance, donate=(2,), out=out)
        ways = self._parts.program.count_ways(shape.rows)  # each device counts its own rows
        state, clocks = function(self._params, held, state, np.int32(steps), np.int32(-(-leave // ways)))
        return (held, state), clocks

    def enter(
        self, batch: PyTree, wave: PyTree, slots: np.ndarray, rows: np.ndarray, shapes: Sequence[Shape]
    ) -> PyTree:
        """See `decode.rolling.Programs`."""
        born = self._born(shapes[0])

        def let_in(batch: PyTree, wave: PyTree, slots: Array, rows: Array) -> PyTree:
            return put(batch, slots, fit(take(wave, rows), born))

        key, place = self._key("enter", *shapes), self._place(shapes[0])
        return self._engine.compile(key, let_in, donate=(0,), out=place)(batch, wave, slots, rows)

    def resize(self, batch: PyTree, rows: np.ndarray, shape: Shape, wanted: Shape) -> PyTree:
        """See `decode.rolling.Programs`."""
        born = self._born(wanted)

        def bring(batch: PyTree, rows: Array) -> PyTree:
            return fit(take(batch, rows), born)

        return self._engine.compile(self._key("resize", shape, wanted), bring, out=self._place(wanted))(batch, rows)

    def read(self, batch: PyTree, rows: np.ndarray, shape: Shape) -> Hypotheses:
        """See `decode.rolling.Programs`."""
        compiled, everywhere = self._engine.compile, self._parts.program.place()
        state = compiled(self._key("take", shape), take, out=everywhere)(_without_cache(batch[1]), rows)
        few = dataclasses.replace(shape, rows=len(rows))  # one program for all sizes of the batch
        return compiled(self._key("read", few), self._parts.collect, out=everywhere)(state)


def _without_cache(state: State) -> State:
    """A state as far as `collect` reads it."""
    return dataclasses.replace(state, cache=None)
