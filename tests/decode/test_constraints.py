"""Constraints and guards against all outputs of a tiny world that keep them, listed one by one."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from seq2seq_jax.decode import constraints
from seq2seq_jax.decode.beam import beam_search
from seq2seq_jax.decode.constraints import Widths, constrain, measure_constraints, pack_constraints
from seq2seq_jax.decode.guards import completes_loop, count_guards, loop_window
from seq2seq_jax.decode.ranking import Ranking
from seq2seq_jax.decode.sample import greedy_search
from seq2seq_jax.decode.steps import Constraints, Decoder, Inputs
from seq2seq_jax.interfaces import StepResult

PAD, UNK, BOS, EOS = 0, 1, 2, 3
IDS = {"bos_id": BOS, "eos_id": EOS, "pad_id": PAD}
VOCAB, STATES, STEPS = 8, 499, 5
WORDS = (1, 4, 5, 6)  # the padding column 7 is never possible

RANKING = Ranking("gnmt", length_penalty=0.6)

ROWS = (  # prefix, must, must_not, longest output
    ((), (), (), 5),
    ((4, 1), (), (), 5),
    ((), ((5, 6),), (), 5),
    ((), ((4,), (6, 5)), (), 5),
    ((), (), ((4,), (5, 6), (1, 1, 1)), 5),
    ((6,), ((1, 6),), ((1, 1), (6, 6, 1)), 5),
    ((), ((5, 5, 6),), (), 4),
    ((1, 4), ((4, 5),), (), 4),
)
"""What is asked of each row."""


def make_table(seed: int = 0) -> np.ndarray:
    """Log-probabilities `[STATES, VOCAB]`, float64; no eos is favoured."""
    logits = np.random.default_rng(seed).normal(size=(STATES, VOCAB))
    logits[:, 7] = -np.inf
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


TABLE = make_table()


def move(state, token, step):
    """The state after a token: nearly every prefix has its own."""
    return (state * 31 + token * 7 + step + 3) % STATES


def world(table: np.ndarray = TABLE, vocab_axes: tuple[str, ...] = ()) -> Decoder:
    """The machine as a decoder; the parameters are its table, or a device's columns of it."""

    def encode(params, inputs):
        return {"row": inputs.source[:, 0]}

    def init_cache(params, held, max_len):
        return {"state": jnp.zeros_like(held["row"])}

    def make_step(params, held):
        def step_fn(tokens, step, cache):
            state = jnp.where(step == 0, held["row"], move(cache["state"], tokens, step))
            ids = None
            if vocab_axes:
                width = params.shape[1]
                ids = jax.lax.axis_index(vocab_axes) * width + jnp.arange(width, dtype=jnp.int32)
            return StepResult(params[state], None, {"state": state}, ids)

        return step_fn

    return Decoder(encode, init_cache, make_step)


def make_inputs(asked) -> Inputs:
    rows = len(asked)
    packed = pack_constraints(*([row[n] for row in asked] for n in range(3)))
    source = jnp.asarray([[ROWS.index(row)] if row in ROWS else [0] for row in asked], jnp.int32)
    limits = jnp.asarray([row[3] for row in asked], jnp.int32)
    return Inputs(source, jnp.ones((rows, 1), bool), jax.tree.map(jnp.asarray, packed), limits)


QUICKLY = {"xla_backend_optimization_level": 0}  # compiling is nearly all that these tests do


@functools.partial(
    jax.jit, static_argnames=("beam", "steps", "no_repeat_ngram", "max_loop", "banks"), compiler_options=QUICKLY
)
def search(inputs, *, beam, steps=STEPS, no_repeat_ngram=0, max_loop=0, banks=True, table=None):
    """Searches; a beam of 0 is greedy, and without banks the search does not know what has to be said."""
    params = jnp.asarray(TABLE if table is None else table, jnp.float32)
    decoder = constrain(world(), eos_id=EOS, no_repeat_ngram=no_repeat_ngram, max_loop=max_loop)
    held = decoder.encode(params, inputs)
    informed, cache = decoder.make_step(params, held), decoder.init_cache(params, held, steps)

    def step(tokens, time, cache):
        result = informed(tokens, time, cache)
        return result if banks else result.replace(wanted=None, wanted_met=None, met=None)

    lengths = jnp.full(inputs.source.shape[0], steps) if inputs.max_lengths is None else inputs.max_lengths
    options = {"max_lengths": lengths, "max_len": steps} | IDS
    if beam == 0:
        return greedy_search(step, cache, **options)
    return beam_search(step, cache, beam_size=beam, ranking=RANKING, **options)


def score(row: int, output: tuple[int, ...]) -> float:
    """The model's own log-probability over the length penalty of GNMT."""
    state, total = row, 0.0
    for step, token in enumerate(output):
        total += TABLE[state, token]
        state = move(state, token, step + 1)
    return total / ((5 + len(output)) / 6) ** 0.6


def has(output, phrase) -> bool:
    return any(output[n : n + len(phrase)] == phrase for n in range(len(output)))


def loops(output, most: int, start: int) -> bool:
    """Whether a phrase follows itself more than so often, its last token at `start` or later."""
    for size in range(1, 9):
        whole = size * (most + 2)
        for end in range(max(start + 1, whole), len(output) + 1):
            part = output[end - whole : end]
            if part == part[:size] * (most + 2):
                return True
    return False


def repeats(output, size: int, start: int) -> bool:
    """Whether an n-gram comes twice, the second time with its last token at `start` or later."""
    grams = [output[n : n + size] for n in range(len(output) - size + 1)]
    return any(gram in grams[:n] for n, gram in enumerate(grams) if n + size > start)


def list_outputs(row: int, asked, *, no_repeat_ngram=0, max_loop=0) -> list[tuple[int, ...]]:
    """All outputs that end and keep what is asked, best first."""
    prefix, must, must_not, longest = asked
    found = []
    for length in range(longest):
        for output in itertools.product(WORDS, repeat=length):
            start = len(prefix)
            if output[:start] != prefix or not all(has(output, phrase) for phrase in must):
                continue
            forbidden = any(
                output[n - len(phrase) + 1 : n + 1] == phrase for phrase in must_not for n in range(start, len(output))
            )
            if forbidden or (no_repeat_ngram and repeats(output, no_repeat_ngram, start)):
                continue
            if not (max_loop and loops(output, max_loop, start)):
                found.append((*output, EOS))
    return sorted(found, key=lambda output: -score(row, output))


def read(found, row: int) -> list[tuple[int, ...]]:
    """The outputs of a row that ended."""
    many = zip(found.tokens[row].tolist(), found.lengths[row].tolist(), found.finished[row].tolist(), strict=True)
    return [tuple(tokens[:length]) for tokens, length, finished in many if length and finished]


@pytest.fixture(scope="module")
def everything():
    """All rows at once, with a beam that loses nothing."""
    return jax.device_get(search(make_inputs(ROWS), beam=360))


@pytest.mark.parametrize("row", range(len(ROWS)))
def test_the_search_finds_all_outputs_that_keep_what_is_asked(everything, row):
    wanted = list_outputs(row, ROWS[row])
    assert read(everything, row) == wanted and 1 <= len(wanted) < 360
    scores = everything.scores[row, : len(wanted)]
    np.testing.assert_allclose(scores, [score(row, output) for output in wanted], rtol=1e-5)


def test_rows_do_not_touch_each_other(everything):
    order = [5, 2, 7, 0, 1, 6, 3, 4]
    found = jax.device_get(search(make_inputs([ROWS[n] for n in order]), beam=360))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(everything), strict=True):
        np.testing.assert_array_equal(a, b[np.array(order)])


def test_nothing_asked_is_the_plain_search_to_the_bit(everything):
    nothing = Inputs(jnp.zeros((8, 1), jnp.int32), jnp.ones((8, 1), bool), max_lengths=jnp.full(8, 5))
    found = jax.device_get(search(nothing, beam=360))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(everything), strict=True):
        np.testing.assert_array_equal(a[0], b[0])
    empty = make_inputs([((), (), (), 5)])
    assert all(leaf.size == 0 or not leaf.any() for leaf in jax.tree.leaves(empty.constraints))
    assert empty.constraints.must.shape == (1, 0, 0) and empty.constraints.prefix.shape == (1, 0)


@pytest.mark.parametrize("guards", [{"no_repeat_ngram": 1}, {"no_repeat_ngram": 2}, {"max_loop": 1}], ids=str)
def test_guards_leave_all_outputs_that_do_not_repeat(guards):
    rows = [((), (), (), 5), ((4, 4), (), (), 5), ((), (), ((5,),), 5)]
    found = jax.device_get(search(make_inputs(rows), beam=360, **guards))
    for n, row in enumerate(rows):
        start = ROWS.index(row) if row in ROWS else 0
        wanted = list_outputs(start, row, **guards)
        assert read(found, n) == wanted
        assert len(wanted) < len(list_outputs(start, row))


@pytest.mark.parametrize("beam", [0, 2])
def test_what_must_be_said_is_said_by_small_beams(beam):
    found = jax.device_get(search(make_inputs(ROWS), beam=beam))
    for n, (prefix, must, must_not, longest) in enumerate(ROWS):
        best = tuple(found.tokens[n, 0, : found.lengths[n, 0]].tolist())
        assert 0 < len(best) <= longest
        assert best[: len(prefix)] == prefix and all(has(best, phrase) for phrase in must)
        assert not any(has(best[len(prefix) :], phrase) for phrase in must_not)


def test_banks_find_better_outputs_than_phrases_forced_at_the_end():
    rng = np.random.default_rng(5)
    inputs = make_inputs([((), (tuple(rng.choice(WORDS, 2).tolist()),), (), 12) for _ in range(16)])
    found, plain = (jax.device_get(search(inputs, beam=4, steps=12, banks=banks)) for banks in (True, False))
    assert found.finished[:, 0].all() and plain.finished[:, 0].all()
    gains = found.scores[:, 0] - plain.scores[:, 0]
    assert gains.mean() > 0.2 and (gains > 0).sum() > 8


@pytest.mark.parametrize("guards", [{"no_repeat_ngram": 3}, {"max_loop": 2}], ids=str)
def test_long_outputs_do_not_repeat(guards):
    looping = np.where(np.arange(VOCAB) == EOS, -9.0, np.where(np.isin(np.arange(VOCAB), (4, 5)), 2.0, TABLE / 5))
    looping = looping - np.log(np.exp(looping).sum(-1, keepdims=True))
    inputs = Inputs(jnp.arange(4)[:, None], jnp.ones((4, 1), bool))
    plain = jax.device_get(search(inputs, beam=3, steps=30, table=looping))
    found = jax.device_get(search(inputs, beam=3, steps=30, table=looping, **guards))

    def is_broken(output) -> bool:
        return repeats(output, 3, 0) if "no_repeat_ngram" in guards else loops(output, 2, 0)

    outputs = [tuple(found.tokens[n, k, : found.lengths[n, k]].tolist()) for n in range(4) for k in range(3)]
    assert all(len(output) > 10 and not is_broken(output) for output in outputs)
    assert any(is_broken(tuple(line)) for line in plain.tokens[:, 0].tolist())
    settings = {"no_repeat_ngram": 0, "max_loop": 0} | guards
    assert all(count_guards(output, **settings)[next(iter(guards))] > 0 for output in outputs)


def test_guards_are_counted_where_they_had_something_to_forbid():
    said = (4, 5, 4, 5, 6, 4, 5, EOS)
    # after 4, 5: 4 (once), then 4, 5 again: 4 and 6 are forbidden; after 5, 4: nothing came twice
    assert count_guards(said, no_repeat_ngram=3, max_loop=0) == {"no_repeat_ngram": 2}
    assert count_guards((4, 4, 5, 5, 4), no_repeat_ngram=0, max_loop=1) == {"max_loop": 2}
    assert count_guards(said, no_repeat_ngram=0, max_loop=0) == {}


def test_a_split_vocabulary_gives_what_the_whole_one_gives(everything):
    mesh = jax.make_mesh((4,), ("tensor",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
    inputs = make_inputs(ROWS)

    def run(table, inputs):
        decoder = constrain(world(vocab_axes=("tensor",)), eos_id=EOS, no_repeat_ngram=4)
        held = decoder.encode(table, inputs)
        step, cache = decoder.make_step(table, held), decoder.init_cache(table, held, STEPS)
        options = {"max_lengths": inputs.max_lengths, "max_len": STEPS, "vocab_axes": ("tensor",)} | IDS
        found = beam_search(step, cache, beam_size=5, ranking=RANKING, **options)
        return jax.tree.map(lambda x: jax.lax.pmax(x.astype(jnp.float32), "tensor"), found)

    spread = jax.shard_map(
        run, mesh=mesh, in_specs=(PartitionSpec(None, "tensor"), PartitionSpec()), out_specs=PartitionSpec()
    )
    found = jax.device_get(jax.jit(spread, compiler_options=QUICKLY)(jnp.asarray(TABLE, jnp.float32), inputs))
    wanted = jax.device_get(search(inputs, beam=5, no_repeat_ngram=4))
    np.testing.assert_array_equal(found.tokens, wanted.tokens)
    np.testing.assert_array_equal(found.scores, wanted.scores)


def test_packing_rounds_widths_up_and_leaves_out_what_is_said_twice():
    packed = pack_constraints([[4], []], [[[5, 6], [5], [5, 6]], []], [[[4]] * 3, [[1], [4], [5]]])
    assert isinstance(packed, Constraints)
    shapes = [leaf.shape for leaf in jax.tree.leaves(packed)]
    assert shapes == [(2, 2), (2,), (2, 2, 2), (2, 2), (2, 8, 2), (2, 8)]
    assert packed.must[0].tolist() == [[5, 6], [0, 0]] and packed.must_lengths.tolist() == [[2, 0], [0, 0]]
    assert packed.must_not_lengths.tolist() == [[1] + [0] * 7, [1, 1, 1] + [0] * 5]
    with pytest.raises(ValueError, match="at least one token"):
        pack_constraints([[]], [[[]]], [[]])
    with pytest.raises(ValueError, match="There are 2 prefixes"):
        pack_constraints([[], []], [[]], [[]])


def test_rows_are_packed_in_the_widths_of_others():
    rows = ([[4] * 9, []], [[[5] * 40], [[4]] * 3], [[], [[1, 4, 5]]])
    widths = measure_constraints(*rows)
    assert widths == Widths(16, (2, 64), (2, 8)) and not measure_constraints([[]], [[]], [[]])
    whole = pack_constraints(*rows)
    part = pack_constraints(*([row[1]] for row in rows), widths=widths)
    for one, all_of_them in zip(jax.tree.leaves(part), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(one, all_of_them[1:])


def test_a_long_phrase_is_followed_as_a_search_of_the_whole_text_follows_it():
    """How much of a phrase the latest tokens are, against trying all lengths."""
    rng = np.random.default_rng(4)
    phrases = [rng.choice((4, 5), size).tolist() for size in (1, 2, 7, 40, 40)] + [[4, 5] * 20, [4] * 64]
    packed = pack_constraints([[]], [phrases[2:]], [[]])
    tokens = jnp.where(jnp.arange(64) < packed.must_lengths[..., None], packed.must, -1)
    matches = np.asarray(constraints._match_beginnings(tokens))
    asked = constraints._Phrases(tokens, jnp.asarray(packed.must_lengths), jnp.asarray(matches))
    move = jax.jit(constraints._move)
    kept = [row[:n].tolist() for row, n in zip(packed.must[0], packed.must_lengths[0], strict=True) if n]
    progress, said = jnp.zeros_like(asked.lengths), []
    wanted = [0] * len(kept)
    for token in (*rng.choice((4, 5), 60).tolist(), *[4, 5] * 21, *kept[1], *[4] * 70):
        said.append(token)
        progress = move(asked, progress, jnp.asarray([[token]]))[:, 0]
        for n, phrase in enumerate(kept):
            most = max(size for size in range(len(phrase) + 1) if said[len(said) - size :] == phrase[:size])
            wanted[n] = wanted[n] if wanted[n] == len(phrase) else most
        assert progress[0, : len(kept)].tolist() == wanted
    assert sum(size == len(phrase) for size, phrase in zip(wanted, kept, strict=True)) >= 3


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="at least 0"):
        constrain(world(), eos_id=EOS, max_loop=-1)


def test_phrases_of_up_to_eight_tokens_in_a_row_are_noticed():
    for period in range(1, 11):
        said = [*range(10, 10 + period)] * 2
        recent = jnp.asarray([([-1] * 100 + said + [*range(10, 9 + period)])[-loop_window(1) :]], jnp.int32)
        found = completes_loop(recent, 1)[0].tolist()
        assert (9 + period in found) == (period <= 8), period
        assert sum(token >= 0 for token in found) == (period <= 8)
