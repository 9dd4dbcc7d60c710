"""Searching with models on a mesh: what searches, how, and one batch in one program. `engine` searches any number."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import dtypes
from jax.sharding import NamedSharding, PartitionSpec

from seq2seq_jax.decode.loop import run_search
from seq2seq_jax.decode.method import Method, Rows, State
from seq2seq_jax.decode.rolling import fit
from seq2seq_jax.decode.steps import Decoder, Inputs, seq2seq_decoder
from seq2seq_jax.interfaces import Array, Hypotheses, PyTree
from seq2seq_jax.parallel.layout import ONE_PROGRAM, Execution, Layout
from seq2seq_jax.parallel.shard import plan_leaves
from seq2seq_jax.parallel.softmax import VocabularySplit
from seq2seq_jax.parallel.spread import specs_at_rest, take_parts
from seq2seq_jax.parallel.varying import varying_axes


@dataclasses.dataclass(frozen=True)
class Search:
    """How to search.

    Attributes:
        method: `decode.beam.Beam` or `decode.sample.Draws`; its `vocab_axes` and `return_attention` are set here.
        length_factor, length_extra: longest output, factor x source tokens + extra, eos included.
        shortest_factor, shortest_extra: shortest output, likewise; never more than the longest.
        seed: of an engine's draws; the search of one batch (`make_decode`) is given a key with every call instead.
    """

    method: Any
    length_factor: float
    length_extra: int
    shortest_factor: float = 0.0
    shortest_extra: int = 0
    seed: int = 0

    def longest(self, source_len: int) -> int:
        """The longest output for a source of so many tokens, eos included."""
        return int(self.length_factor * source_len) + self.length_extra

    def shortest(self, source_len: int) -> int:
        """The shortest output for a source of so many tokens, eos included."""
        return min(int(self.shortest_factor * source_len) + self.shortest_extra, self.longest(source_len))


def limit(method: Any, keys: Mapping[str, Any]) -> Search:
    """A method with the limits of `config.decode`."""
    return Search(
        method=method,
        length_factor=keys["length_factor"],
        length_extra=keys["length_extra"],
        shortest_factor=keys["min_length_factor"],
        shortest_extra=keys["min_length_extra"],
        seed=keys["seed"],
    )


@dataclasses.dataclass
class Kept:
    """The parameters that were prepared last, and what came of it; None before."""

    given: PyTree = None
    prepared: PyTree = None


@dataclasses.dataclass(frozen=True)
class Program:
    """What searches, and where.

    Attributes:
        build: the decoder as its code runs on a device that knows so much of the others.
        layout: where the parameters live.
        boxed: the abstract parameters with the names of their axes.
        kept: what was prepared last, for all engines of this program.
    """

    build: Callable[[Execution], Decoder]
    layout: Layout
    boxed: PyTree
    kept: Kept = dataclasses.field(default_factory=Kept, compare=False, repr=False)

    def prepare(self, params: PyTree) -> PyTree:
        """The parameters as they are, with what steps read of them; made once, and kept until `forget`."""
        if self.layout.step != "jit":
            return params  # each device has parts, which it brings into shape in every segment
        if params is not self.kept.given:
            self.forget()
            self.kept.prepared = self.build(ONE_PROGRAM).prepare(params)
            self.kept.given = params
        return self.kept.prepared

    def forget(self) -> None:
        """Lets go of the parameters and of what was made of them."""
        self.kept.given = self.kept.prepared = None

    @property
    def vocab_axes(self) -> tuple[str, ...]:
        """The mesh axes that the vocabulary is split over while searching."""
        return () if self.layout.step == "jit" else self.layout.execution.vocabulary.axes

    def row_axes(self, rows: int) -> tuple[str, ...]:
        """The mesh axes that so many rows are split over; none for a few: every device does all of them."""
        sizes = self.layout.mesh.shape
        axes = tuple(axis for axis in ("data", "fsdp") if sizes[axis] > 1)
        return () if rows % math.prod(sizes[axis] for axis in axes) else axes

    def count_ways(self, rows: int) -> int:
        """The devices that share so many rows, each looping over its own."""
        ways = math.prod(self.layout.mesh.shape[axis] for axis in self.row_axes(rows))
        return 1 if self.layout.step == "jit" else ways

    def place(self, axes: tuple[str, ...] = ()) -> NamedSharding:
        """Rows over these axes of the mesh."""
        return NamedSharding(self.layout.mesh, PartitionSpec(axes) if axes else PartitionSpec())

    def spread(self, run: Callable[..., PyTree], params: PyTree, rows: PyTree, whole: PyTree = ()) -> PyTree:
        """`run(decoder, params, rows, whole)` on the mesh: `rows` and the result have leaves `[B, ...]`."""
        if self.layout.step == "jit":
            return run(self.build(ONE_PROGRAM), params, rows, whole)
        decoder = self.build(Execution(vocabulary=VocabularySplit(self.vocab_axes)))
        leaves = plan_leaves(self.boxed, self.layout, layers_here=True)
        shared = self.row_axes(jax.tree.leaves(rows)[0].shape[0])

        def on_device(params: PyTree, rows: PyTree, whole: PyTree) -> PyTree:
            found = run(decoder, take_parts(leaves, params, ()), rows, whole)
            return jax.tree.map(lambda x: _agree(x, shared), found)

        by_rows = PartitionSpec(shared)
        in_specs = (specs_at_rest(leaves), by_rows, PartitionSpec())
        mapped = jax.shard_map(on_device, mesh=self.layout.mesh, in_specs=in_specs, out_specs=by_rows)
        return mapped(params, rows, whole)


def model_program(model: nn.Module, layout: Layout, boxed: PyTree) -> Program:
    """The program of one model that keeps the `Seq2Seq` protocol."""

    def build(execution: Execution) -> Decoder:
        here, size = model.clone(execution=execution), model.config.target_vocab
        return seq2seq_decoder(here, vocab_axes=execution.vocabulary.axes, vocab_size=size)

    return Program(build, layout, boxed)


def _agree(x: Array, rows: tuple[str, ...]) -> Array:
    """What all devices of a group have found alike, marked as such (the largest of equal values)."""
    if dtypes.issubdtype(x.dtype, dtypes.prng_key):
        return jax.random.wrap_key_data(_agree(jax.random.key_data(x), rows), impl=jax.random.key_impl(x))
    axes = tuple(sorted(varying_axes(x) - set(rows)))
    if not axes:
        return x
    return jax.lax.pmax(x.astype(jnp.int32) if x.dtype == bool else x, axes).astype(x.dtype)


# --- the parts of a search, as they run on a device -----------------------------------------------


def start_search(
    method: Method, decoder: Decoder, params: PyTree, inputs: Inputs, rows: Rows, *, max_len: int, room: int
) -> tuple[PyTree, State]:
    """Encodes; what is held, and the state of a search for outputs up to `max_len`, with room for `room` steps yet."""
    held = decoder.encode(params, inputs)
    step, attended = decoder.make_step(params, held), decoder.attended(held)
    if attended is not None:  # speech: a memory has fewer steps than the source has frames
        rows = dataclasses.replace(rows, source_mask=attended)

    def begin(room: int) -> State:
        return method.start(step, decoder.init_cache(params, held, room), rows, max_len=room)

    state = begin(max_len)  # with all the room at first, by which the longest outputs are cut
    return held, state if room == max_len else fit(state, jax.eval_shape(lambda: begin(room)))


def fit_method(method: Any, *, vocab_axes: tuple[str, ...], attends: bool, attention: bool) -> Any:
    """The method for a model whose vocabulary is split over these axes, and that attends or does not."""
    method = dataclasses.replace(method, vocab_axes=vocab_axes, return_attention=attends and attention)
    ranking = getattr(method, "ranking", None)
    if ranking is None or attends:
        return method
    return dataclasses.replace(method, ranking=dataclasses.replace(ranking, coverage_penalty=0.0))


def _attends(decoder: Decoder, params: PyTree, inputs: Inputs) -> bool:
    """Whether the model returns attention, by shapes alone."""

    def step() -> Array | None:
        held = decoder.encode(params, inputs)
        tokens = jnp.zeros_like(inputs.source_mask[:, 0], jnp.int32)
        return decoder.make_step(params, held)(tokens, tokens, decoder.init_cache(params, held, 2)).attention

    return jax.eval_shape(step) is not None


Decode = Callable[..., Hypotheses]
"""`decode(params, source [B, S], source_mask [B, S], row_mask [B], numbers [B], key, *, max_len) -> Hypotheses`."""


def make_decode(program: Program, search: Search, *, attention: bool = True) -> Decode:
    """Builds the jitted search of one batch in one program, for training and studies.

    Its arguments after the row mask are needed where a method draws: numbers of the rows, and a key.
    """

    def run(
        max_len: int, decoder: Decoder, params: PyTree, given: tuple[Inputs, Rows], whole: tuple[Array, ...]
    ) -> Any:
        inputs, rows = given
        if whole:
            rows = dataclasses.replace(rows, keys=jnp.broadcast_to(whole[0], rows.numbers.shape))
        method = fit_method(
            search.method,
            vocab_axes=program.vocab_axes,
            attends=_attends(decoder, params, inputs),
            attention=attention,
        )
        held, state = start_search(method, decoder, params, inputs, rows, max_len=max_len, room=max_len)
        return run_search(method, decoder.make_step(params, held), state, max_len)

    def decode(
        params: PyTree,
        source: Array,
        source_mask: Array,
        row_mask: Array,
        numbers: Array | None = None,
        key: Array | None = None,
        *,
        max_len: int,
    ) -> Hypotheses:
        counts = range(source.shape[1] + 1)  # by a table: the same rounding as on the host
        lengths = source_mask.sum(axis=-1)
        longest = jnp.array([search.longest(count) for count in counts], jnp.int32)[lengths]
        shortest = jnp.array([search.shortest(count) for count in counts], jnp.int32)[lengths]
        if numbers is None:
            numbers = jnp.arange(source.shape[0], dtype=jnp.int32)
        rows = Rows(source_mask, row_mask, longest, shortest, numbers)
        given = Inputs(source, source_mask, max_lengths=longest), rows
        return program.spread(functools.partial(run, max_len), params, given, () if key is None else (key,))

    return jax.jit(decode, static_argnames=("max_len",), out_shardings=program.place())
