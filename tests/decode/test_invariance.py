"""What is found for a sentence does not depend on the batch around it: its size, order, padding and bucket.

Random models of a few units read random sentences, each alone and in batches of other shapes. In float32 no hypothesis
may differ. In bfloat16 rounding decides where two continuations are nearly as good: every difference must be one.

A case is one sentence in one batch. `SEQ2SEQ_JAX_CASES=10000` runs so many, of every model, method and format, in
batches of more shapes, compiled as searches are in earnest; experiments/batch_invariance tells what came of it.
"""

from __future__ import annotations

import functools
import itertools
import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from seq2seq_jax.data.vocab import BOS_ID, EOS_ID, PAD_ID
from seq2seq_jax.decode.beam import Beam
from seq2seq_jax.decode.loop import run_loop
from seq2seq_jax.decode.method import Rows
from seq2seq_jax.decode.ranking import PRESETS, Ranking
from seq2seq_jax.decode.sample import Draws
from seq2seq_jax.decode.steps import Inputs, seq2seq_decoder
from seq2seq_jax.models import MODELS
from seq2seq_jax.parallel.draws import keyed_uniform

CASES = int(os.environ.get("SEQ2SEQ_JAX_CASES", "0"))
"""0: a few hundred."""
IDS = {"bos_id": BOS_ID, "eos_id": EOS_ID, "pad_id": PAD_ID}
VOCAB, LONGEST_SOURCE, LONGEST = 24, 9, 20
SIZES = {"source_vocab": VOCAB, "target_vocab": VOCAB, "features": 8, "dropout": 0.0}
MODEL_SIZES = {
    "gnmt": SIZES | {"encoder_layers": 2, "decoder_layers": 2, "attention_features": 6},
    "lstm": SIZES | {"layers": 2},
}
METHODS = {
    "beam": Beam(size=3, ranking=PRESETS["default"], **IDS),
    "greedy": Draws(samples=1, temperature=0.0, **IDS),
    "sampling": Draws(samples=2, **IDS),
}
PENALTIES = {name: method.ranking for name, method in METHODS.items() if isinstance(method, Beam)}


class Shape(NamedTuple):
    rows: int
    source: int
    room: int


ALONE = Shape(1, LONGEST_SOURCE, LONGEST)
TOGETHER = (Shape(16, LONGEST_SOURCE + 7, LONGEST + 11), Shape(5, LONGEST_SOURCE, LONGEST))[: 2 if CASES else 1]
SENTENCES = 20
"""Of each random model."""


class World:
    """Models of one architecture and number format, and their compiled searches."""

    def __init__(self, name: str, dtype: str, method: str):
        module, config = MODELS[name]
        self.name, self.method_name, self.method = name, method, METHODS[method]
        if name == "lstm" and method == "beam":
            ranking = Ranking(length="gnmt", length_penalty=0.6)  # nothing attends
            self.method = Beam(size=3, ranking=ranking, **IDS)
        self.model = module(config(**MODEL_SIZES[name], dtype=dtype))
        self.exact = module(config(**MODEL_SIZES[name], dtype="float32"))
        tokens = jnp.ones((1, 3), jnp.int32)
        boxed = jax.eval_shape(lambda: self.exact.init(jax.random.key(0), tokens, tokens > 0, tokens))
        self.shapes = nn.meta.unbox(boxed)["params"]
        options = None if CASES else {"xla_backend_optimization_level": 0}  # compiling is nearly all the time
        self.search = jax.jit(self._search, static_argnums=3, compiler_options=options)
        self.read = jax.jit(self._read, compiler_options=options)

    def draw_model(self, rng: np.random.Generator):
        return jax.tree.map(lambda leaf: rng.normal(0.0, 0.7, leaf.shape).astype(leaf.dtype), self.shapes)

    def _search(self, params, inputs: Inputs, rows: Rows, room: int):
        decoder = seq2seq_decoder(self.model)
        held = decoder.encode(params, inputs)
        step = decoder.make_step(params, held)
        state = self.method.start(step, decoder.init_cache(params, held, room), rows, max_len=room)
        return self.method.collect(run_loop(functools.partial(self.method.advance, step), state, room))

    def _read(self, params, source, mask, target_in):
        """What the model in float32 says of given outputs: log-probabilities `[1, T, V]` and attention."""

        def run(model):
            output = model.decode(target_in, model.encode(source, mask, train=False), train=False)
            return jax.nn.log_softmax(model.project(output.hidden)), output.attention

        return self.exact.apply({"params": params}, method=run)

    def run(self, params, sources, places, shape: Shape):
        """Searches the sentences of these places as one batch, -1 for rows that only fill; results by place."""
        filled = [*places, *[-1] * (shape.rows - len(places))]
        rng = np.random.default_rng(len(places))
        tokens = rng.integers(1, VOCAB, (shape.rows, shape.source)).astype(np.int32)  # padding that looks real
        lengths = np.array([len(sources[place]) if place >= 0 else 0 for place in filled], np.int32)
        for row, place in enumerate(filled):
            tokens[row, : lengths[row]] = sources[place][: lengths[row]]
        mask = np.arange(shape.source) < lengths[:, None]
        numbers = np.array(filled, np.int32)
        keys = jnp.broadcast_to(jax.random.key(3), numbers.shape)
        rows = Rows(mask, numbers >= 0, 2 * lengths + 2, lengths // 3, numbers, keys)
        found = jax.device_get(self.search(params, Inputs(tokens, mask), rows, shape.room))
        return {place: jax.tree.map(lambda x, row=row: x[row], found) for row, place in enumerate(places)}

    def explain(self, params, source, place: int, ours: list[int], theirs: list[int], sample: int) -> float:
        """How far from equally good two hypotheses are in float32: of scores, or of the number that was drawn."""
        totals = []
        for tokens in (ours, theirs):
            target_in = np.full((1, LONGEST), PAD_ID, np.int32)
            target_in[0, : len(tokens)] = [BOS_ID, *tokens[:-1]]
            padded = np.zeros((1, LONGEST_SOURCE), np.int32)
            padded[0, : len(source)] = source
            mask = np.arange(LONGEST_SOURCE)[None] < len(source)
            log_probs, attention = jax.device_get(self.read(params, padded, mask, target_in))
            each = log_probs[0, np.arange(len(tokens)), tokens].astype(np.float64)
            totals.append((each, log_probs[0], attention))
        split = next(n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
        if self.method_name == "greedy":
            return abs(totals[0][0][split] - totals[1][0][split])
        if self.method_name == "sampling":
            shares = np.exp(totals[0][1][split].astype(np.float64))
            shares[[PAD_ID, BOS_ID] + ([EOS_ID] if split + 1 < len(source) // 3 else [])] = 0.0
            ends = np.cumsum(shares) / shares.sum()
            drawn = float(keyed_uniform(jax.random.key(3), *(jnp.int32(n) for n in (place, sample, split))))
            sides = [(ends[t] - shares[t] / shares.sum(), ends[t]) for t in (ours[split], theirs[split])]
            return max(max(low - drawn, drawn - high, 0.0) for low, high in sides)
        scores = []
        for each, _, attention in totals:
            covered = 0.0
            if self.name == "gnmt":
                covered = np.log(np.minimum(attention[0, : len(each), : len(source)].sum(axis=0), 1.0)).sum()
            scores.append(each.sum() / ((5 + len(each)) / 6) ** 0.6 + 0.2 * covered)
        return abs(scores[0] - scores[1])


make_world = functools.cache(World)


def compare_batches(world: World, cases: int):
    """Yields (score difference, gap or None where the hypotheses are the same) of every hypothesis of every case."""
    rng = np.random.default_rng(len(world.name) + len(world.method_name))
    left = cases
    while left > 0:
        params = world.draw_model(rng)
        sources = [
            np.append(rng.integers(4, VOCAB, size=rng.integers(0, LONGEST_SOURCE)), EOS_ID) for _ in range(SENTENCES)
        ]
        alone = {}
        for place in range(SENTENCES):
            alone |= world.run(params, sources, [place], ALONE)
        for shape in TOGETHER:
            order = rng.permutation(SENTENCES).tolist()
            while order:
                count = int(rng.integers(1, shape.rows + 1))
                places, order = order[:count], order[count:]
                for place, found in world.run(params, sources, places, shape).items():
                    yield from compare_hypotheses(world, params, sources[place], place, alone[place], found)
                    left -= 1


def compare_hypotheses(world: World, params, source, place, ours, theirs):
    np.testing.assert_array_equal(ours.lengths > 0, theirs.lengths > 0)
    for slot in np.flatnonzero(ours.lengths):
        mine, other = (x.tokens[slot, : x.lengths[slot]].tolist() for x in (ours, theirs))
        gap = None if mine == other else world.explain(params, source, place, mine, other, slot)
        yield abs(float(ours.scores[slot]) - float(theirs.scores[slot])), gap


def test_a_difference_is_explained_by_scores_read_once_more():
    world, rng = make_world("gnmt", "float32", "beam"), np.random.default_rng(5)
    params, source = world.draw_model(rng), np.array([7, 9, 4, 11, EOS_ID])
    found = world.run(params, [source], [0], ALONE)[0]
    best, *others = (found.tokens[n, :length].tolist() for n, length in enumerate(found.lengths))
    for n, other in enumerate(others, start=1):
        gap = world.explain(params, source, 0, best, other, n)
        assert gap == pytest.approx(found.scores[0] - found.scores[n], abs=1e-4)
    assert len(others) == 2 and gap > 0.01


COMBINATIONS = list(itertools.product(MODEL_SIZES, METHODS))
IN_BFLOAT16 = COMBINATIONS if CASES else [("gnmt", "beam"), ("lstm", "greedy"), ("lstm", "sampling")]
SHARE = CASES // (2 * len(COMBINATIONS)) or 40
"""Cases of each."""


@pytest.mark.parametrize(("name", "method"), COMBINATIONS)
def test_in_float32_no_hypothesis_depends_on_the_batch(name, method):
    world = make_world(name, "float32", method)
    found = list(compare_batches(world, SHARE))
    assert len(found) >= SHARE and [gap for _, gap in found if gap is not None] == []
    largest = max(score for score, _ in found)
    print(f"{name} {method}: none of {len(found)} hypotheses differs, scores by {largest:.1e} at most")
    assert largest < 1e-4


# Bounds of what rounding to eight bits may do: to a log-probability, a score, or a cumulated probability.
BOUNDS = {"beam": 0.15, "greedy": 0.1, "sampling": 0.02}


@pytest.mark.parametrize(("name", "method"), IN_BFLOAT16)
def test_in_bfloat16_every_difference_is_one_of_rounding(name, method):
    world = make_world(name, "bfloat16", method)
    found = list(compare_batches(world, SHARE))
    gaps = [gap for _, gap in found if gap is not None]
    print(f"{name} {method}: {len(gaps)} of {len(found)} hypotheses differ, largest gap {max(gaps, default=0.0):.4f}")
    assert max(gaps, default=0.0) < BOUNDS[method]
    assert max(score for score, gap in found if gap is None) < 0.3
