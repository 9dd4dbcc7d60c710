"""Translation with tiny random models: nothing but the sentence decides its translation; scores and losses by hand."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from seq2seq_jax.data.vocab import BOS_ID, EOS_ID, PAD_ID, Vocabs
from seq2seq_jax.data.vocab_training import train_vocabs
from seq2seq_jax.decode.beam import Beam
from seq2seq_jax.decode.ranking import Ranking
from seq2seq_jax.decode.sample import Draws
from seq2seq_jax.interfaces import Batch, DecoderOutput, Memory
from seq2seq_jax.layers.dropout import Dropout, make_places
from seq2seq_jax.models.gnmt import GNMT, GNMTConfig
from seq2seq_jax.models.lstm import LSTMConfig, LSTMSeq2Seq
from seq2seq_jax.parallel.layout import ONE_PROGRAM, Execution, make_layout
from seq2seq_jax.tasks.engine import Engine
from seq2seq_jax.tasks.loss import make_loss
from seq2seq_jax.tasks.search import Search, model_program
from seq2seq_jax.tasks.translation import Translator

SHORT = ["abc de", "fa", "gedab", "b"]
LONG = "abcd efg gfe dc"  # 16 tokens with eos: it is padded to twice the length of the others
CORPUS = [*SHORT, LONG]
ALPHA, BETA = 0.6, 0.2
IDS = {"bos_id": BOS_ID, "eos_id": EOS_ID, "pad_id": PAD_ID}
RANKING = Ranking("gnmt", length_penalty=ALPHA, coverage_penalty=BETA)
SEARCH = Search(Beam(3, RANKING, **IDS), length_factor=1.0, length_extra=2)
WIDTH = 32  # XLA compiles it faster than a narrower one, whose products it unrolls


@functools.cache
def make_vocabs() -> Vocabs:
    upper = [line.upper() for line in CORPUS]
    return train_vocabs(CORPUS, upper, joint=False, kind="char", size=40)


def shape_parameters(model: nn.Module) -> dict:
    """The abstract parameters with the names of their axes."""
    tokens = jnp.ones((1, 2), jnp.int32)
    return jax.eval_shape(lambda: model.init(jax.random.key(0), tokens, tokens > 0, tokens))["params"]


def randomise(model: nn.Module) -> dict:
    """Parameters drawn large enough for outputs to differ from source to source; some end with eos, some do not."""
    generator = np.random.default_rng(5)
    params = jax.tree.map(
        lambda leaf: generator.normal(0.0, 0.4, leaf.shape).astype(np.float32),
        nn.meta.unbox(shape_parameters(model)),
    )
    return jax.device_put(params)


def make_engine(model: nn.Module, search: Search, **options) -> Engine:
    """What searches, on one device."""
    layout = make_layout(data=1, fsdp=1, stage=1, tensor=1)
    return Engine(model_program(model, layout, shape_parameters(model)), search, **options)


@functools.cache
def make_gnmt(dropout: float = 0.3) -> tuple[GNMT, dict]:
    vocabs = make_vocabs()
    model = GNMT(
        GNMTConfig(len(vocabs.source), len(vocabs.target), WIDTH, 1, 2, WIDTH, "current_step", dropout=dropout)
    )
    return model, randomise(model)


@functools.cache
def make_translator(rows: int = 8, max_source_len: int = 16, **options) -> Translator:
    engine = make_engine(make_gnmt()[0], SEARCH, rows=rows, max_source_len=max_source_len, **options)
    return Translator(engine, make_vocabs())


def translate(lines: list[str], **options):
    return make_translator(**options).translate(make_gnmt()[1], lines)


def assert_same(found, wanted) -> None:
    """The same n-best lists: texts and tokens exactly, scores and attention to rounding."""
    for a, b in zip(found, wanted, strict=True):
        assert a.source_pieces == b.source_pieces and a.cut == b.cut
        assert [(c.text, c.tokens, c.finished) for c in a.candidates] == [
            (c.text, c.tokens, c.finished) for c in b.candidates
        ]
        for name in ("score", "log_prob"):
            values = [[getattr(c, name) for c in item.candidates] for item in (a, b)]
            np.testing.assert_allclose(*values, rtol=1e-5, atol=1e-5)
        if b.attention is None:
            assert a.attention is None
        else:
            np.testing.assert_allclose(a.attention, b.attention, atol=1e-5)


# --- what decides a translation ------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 3])
def test_translations_do_not_depend_on_how_many_are_decoded_at_once(rows):
    found = translate(CORPUS, rows=rows)
    assert len({item.text for item in found}) >= 4  # the model does tell its sources apart
    assert_same(found, translate(CORPUS))


def test_translations_do_not_depend_on_the_order_of_the_lines():
    order = [3, 0, 4, 2, 1]
    found = translate([CORPUS[n] for n in order])
    assert_same(found, [translate(CORPUS)[n] for n in order])


def test_translations_do_not_depend_on_the_padding_that_a_long_neighbour_brings():
    assert_same(translate(SHORT), translate([*SHORT, LONG])[:-1])


def test_blank_lines_have_empty_translations_at_their_places():
    found = translate(["", SHORT[0], "   ", "\t", SHORT[1]])
    assert [item.text == "" and not item.candidates and not item.cut for item in found] == [1, 0, 1, 1, 0]
    assert_same([found[1], found[4]], translate(SHORT)[:2])
    assert [item.text for item in translate(["", " "])] == ["", ""]
    assert translate([]) == []


def test_a_line_that_is_too_long_is_cut_and_says_so():
    """Eight tokens are seven characters and eos."""
    fits, longer = translate(["abcdefg", "abcdefgab"], max_source_len=8)
    assert not fits.cut and longer.cut
    assert fits.source_pieces == longer.source_pieces == [*"abcdefg", "</s>"]
    assert longer.candidates == fits.candidates


def test_poll_is_called_before_each_batch_and_can_stop_the_work():
    calls = []

    def poll() -> None:
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_translator(rows=3).translate(make_gnmt()[1], CORPUS, poll=poll)
    assert len(calls) == 2


# --- n-best lists --------------------------------------------------------------------------------


def test_candidates_are_distinct_and_sorted_those_that_ended_first():
    found = translate(CORPUS)
    flags = [c.finished for item in found for c in item.candidates]
    assert any(flags) and not all(flags)
    for item in found:
        assert len(item.candidates) == SEARCH.method.size
        assert len({tuple(c.tokens) for c in item.candidates}) == SEARCH.method.size
        ranks = [(not c.finished, -c.score) for c in item.candidates]
        assert ranks == sorted(ranks)
        assert item.text == item.candidates[0].text
        for c in item.candidates:
            assert (c.tokens[-1] == make_vocabs().target.eos_id) == c.finished
            assert len(c.tokens) <= SEARCH.longest(len(item.source_pieces))


def test_attention_is_a_distribution_over_the_source_for_every_token():
    for item in translate(CORPUS):
        assert item.attention.shape == (len(item.candidates[0].tokens), len(item.source_pieces))
        assert (item.attention >= 0).all()
        np.testing.assert_allclose(item.attention.sum(axis=1), 1.0, atol=1e-5)


def teacher_force(model, params, pairs) -> list[float]:
    """log P of each (source, output) in float64 from the model's logits, all pairs in one padded batch."""
    source, target_in = np.zeros((len(pairs), 16), np.int32), np.zeros((len(pairs), 18), np.int32)
    for row, (ids, output) in enumerate(pairs):
        source[row, : len(ids)] = ids
        target_in[row, : len(output)] = [make_vocabs().target.bos_id, *output[:-1]]

    @jax.jit
    def run(source, target_in):
        variables = {"params": params}
        memory = model.apply(variables, source, source > 0, train=False, method="encode")
        hidden = model.apply(variables, target_in, memory, train=False, method="decode").hidden
        return model.apply(variables, hidden, method="project")

    logits = np.asarray(run(source, target_in), np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return [log_probs[row, np.arange(len(out)), out].sum() for row, (_, out) in enumerate(pairs)]


def pair_up(lines, found):
    """(source ids, output ids) of every candidate, and the candidates."""
    vocab, pairs, candidates = make_vocabs().source, [], []
    for line, item in zip(lines, found, strict=True):
        for candidate in item.candidates:
            pairs.append(([*vocab.encode(line), vocab.eos_id], candidate.tokens))
            candidates.append(candidate)
    return pairs, candidates


def test_log_probs_are_those_under_teacher_forcing():
    pairs, candidates = pair_up(CORPUS, translate(CORPUS))
    want = teacher_force(*make_gnmt(), pairs)
    np.testing.assert_allclose([c.log_prob for c in candidates], want, rtol=1e-4, atol=1e-4)


def test_the_score_is_that_of_gnmt():
    """Wu et al. 2016, equation 14: log P / lp + coverage penalty, here of the best of each line."""
    for item in translate(CORPUS):
        best = item.candidates[0]
        divisor = ((5 + len(best.tokens)) / 6) ** ALPHA
        coverage = np.log(np.minimum(item.attention.astype(np.float64).sum(axis=0), 1.0)).sum()
        assert best.score == pytest.approx(best.log_prob / divisor + BETA * coverage, rel=1e-4)


@pytest.mark.parametrize("beam_size", [1, 2])
def test_a_model_without_attention_translates_too(beam_size):
    vocabs = make_vocabs()
    model = LSTMSeq2Seq(LSTMConfig(len(vocabs.source), len(vocabs.target), features=WIDTH, layers=1))
    params = randomise(model)
    method = Draws(samples=1, temperature=0.0, **IDS) if beam_size == 1 else Beam(beam_size, RANKING, **IDS)
    search = Search(method, length_factor=1.0, length_extra=2)
    engine = make_engine(model, search, rows=8, max_source_len=16)
    found = Translator(engine, vocabs).translate(params, CORPUS)
    assert [(item.attention, len(item.candidates)) for item in found] == [(None, beam_size)] * len(CORPUS)
    pairs, candidates = pair_up(CORPUS, found)
    want = teacher_force(model, params, pairs)
    np.testing.assert_allclose([c.log_prob for c in candidates], want, rtol=1e-4, atol=1e-4)
    alpha = ALPHA if beam_size > 1 else 0.0
    scores = [value / ((5 + len(c.tokens)) / 6) ** alpha for value, c in zip(want, candidates, strict=True)]
    np.testing.assert_allclose([c.score for c in candidates], scores, rtol=1e-4, atol=1e-4)


# --- the loss of a batch -------------------------------------------------------------------------


def make_batch() -> Batch:
    """Four rows of uneven lengths, the last of which only fills the batch; on the device, as in training."""
    generator, vocabs = np.random.default_rng(1), make_vocabs()
    row_mask = np.array([True, True, True, False])
    source_mask = (np.arange(6) < np.array([6, 2, 4, 0])[:, None]) & row_mask[:, None]
    target_mask = (np.arange(5) < np.array([3, 5, 1, 0])[:, None]) & row_mask[:, None]
    source = generator.integers(4, len(vocabs.source), source_mask.shape, dtype=np.int32)
    target = generator.integers(4, len(vocabs.target), target_mask.shape, dtype=np.int32)
    batch = Batch(
        source=np.where(source_mask, source, 0),
        source_mask=source_mask,
        target_in=np.where(target_mask, np.roll(target, 1, axis=1), 0),
        target_out=np.where(target_mask, target, 0),
        target_mask=target_mask,
        example_ids=np.array([5, 9, 2, -1], np.int32),
        row_mask=row_mask,
    )
    return jax.device_put(batch)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_without_dropout_is_the_mean_by_hand(smoothing):
    (model, params), batch = make_gnmt(), make_batch()
    logits = jax.jit(model.apply)({"params": params}, batch.source, batch.source_mask, batch.target_in)
    logits = np.asarray(logits, np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    nll = loss = correct = 0.0
    for row, position in np.argwhere(batch.target_mask):
        target, line = batch.target_out[row, position], log_probs[row, position]
        nll -= line[target]
        loss -= (1 - smoothing) * line[target] + smoothing * line.mean()
        correct += line.argmax() == target

    loss_of = jax.jit(make_loss(model, label_smoothing=smoothing, chunk=8, train=False))
    objective, sums = loss_of(params, batch, None, None)
    assert sums["weight"] == sums["target_tokens"] == 9
    assert (sums["source_tokens"], sums["rows"], sums["correct"]) == (12, 3, correct)
    assert float(sums["nll"] / sums["weight"]) == pytest.approx(nll / 9, rel=1e-5)
    assert float(sums["loss"]) == float(objective) == pytest.approx(loss, rel=1e-5)


def test_the_loss_in_training_has_dropout_that_the_key_decides():
    (model, params), batch = make_gnmt(), make_batch()
    train, still = (jax.jit(make_loss(model, label_smoothing=0.0, chunk=8, train=flag)) for flag in (True, False))
    values = [float(train(params, batch, jax.random.key(n), None)[0]) for n in (0, 0, 1)]
    assert values[0] == values[1] != values[2]
    without = [float(still(params, batch, key, None)[0]) for key in (jax.random.key(0), None)]
    assert without[0] == without[1] not in values


PLACES = make_places(jnp.arange(4), 2)


@dataclasses.dataclass(frozen=True)
class TwoTokens:
    target_vocab: int = 2


class Probe(nn.Module):
    """Keeps the `Seq2Seq` protocol as far as a loss needs it; shows what its dropout lets through."""

    config: TwoTokens = TwoTokens()
    execution: Execution = ONE_PROGRAM

    def setup(self) -> None:
        self.dropout = Dropout(0.5)

    def encode(self, source, source_mask, *, train):
        return Memory(hidden=self.dropout(jnp.ones((2, 4, 64)), PLACES, train=train), mask=source_mask)

    def decode(self, target_in, memory, *, train):
        """Zero everywhere if, and only if, both halves drew the same mask."""
        return DecoderOutput(hidden=memory.hidden - self.dropout(jnp.ones((2, 4, 64)), PLACES, train=train))

    def softmax_weights(self):
        """Two tokens; the logit of the first is the sum of the features, that of the second 0."""
        return jnp.stack([jnp.ones(64), jnp.zeros(64)]), jnp.zeros(2)


def test_encoder_and_decoder_draw_masks_of_their_own():
    tokens, mask = jnp.zeros((2, 4), jnp.int32), jnp.ones((2, 4), bool)
    batch = Batch(tokens, mask, tokens, tokens, mask, jnp.arange(2), jnp.ones(2, bool))
    key, probe = jax.random.key(0), Probe()
    sums = make_loss(probe, label_smoothing=0.0, chunk=8)({}, batch, key, None)[1]
    assert abs(float(sums["nll"]) - 8 * np.log(2)) > 1.0
    # What the two would draw if they were given one key: the same.
    memory = probe.apply({}, tokens, mask, train=True, method="encode", rngs={"dropout": key})
    output = probe.apply({}, tokens, memory, train=True, method="decode", rngs={"dropout": key})
    assert not output.hidden.any()
