"""N-gram models from ARPA files: as arrays, as a decoder and as a score of texts, against plain backing off."""

from __future__ import annotations

import functools
import gzip
import importlib.util
import itertools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from seq2seq_jax.decode.arpa import read_arpa
from seq2seq_jax.decode.beam import beam_search
from seq2seq_jax.decode.method import over_hypotheses
from seq2seq_jax.decode.ngram import Lists, Table, find_missing, make_ngram, ngram_decoder
from seq2seq_jax.decode.ranking import Ranking
from seq2seq_jax.decode.steps import Decoder, Inputs, fuse
from seq2seq_jax.errors import UserError
from seq2seq_jax.interfaces import StepResult

_SPEC = importlib.util.spec_from_file_location("ctc_reference", Path(__file__).with_name("ctc_reference.py"))
reference = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(reference)

PIECES = ["<pad>", "<unk>", "<s>", "</s>", "a", "b", "▁c", "d", "never"]
PAD, BOS, EOS = 0, 2, 3
IDS = {"bos_id": BOS, "eos_id": EOS, "pad_id": PAD}
INPUTS = Inputs(jnp.zeros((3, 4), jnp.int32), jnp.ones((3, 4), bool))


@functools.cache
def make_grams(order, unknown=True):
    """Log-probabilities (base 10) and backoffs by n-gram: some of all that there could be, also of words not ours."""
    generator = np.random.default_rng(order)
    words = ["<s>", "</s>", "a", "b", "▁c", "d", "other", *(["<unk>"] if unknown else [])]
    grams = {(word,): None for word in words}
    for length in range(2, order + 1):
        for gram in itertools.product(words, repeat=length):
            if "</s>" not in gram[:-1] and "<s>" not in gram[1:] and generator.uniform() < 0.3:
                grams[gram] = None
    numbers = {gram: tuple(round(float(-x), 4) for x in generator.uniform(0, 2, 2)) for gram in grams}
    return {gram: (both[0], both[1] if len(gram) < order else 0.0) for gram, both in numbers.items()}


def write_arpa(path, order, unknown=True):
    grams = make_grams(order, unknown)
    by_order = [[gram for gram in grams if len(gram) == length] for length in range(1, order + 1)]
    lines = ["", "\\data\\", *(f"ngram {n}={len(own)}" for n, own in enumerate(by_order, 1)), ""]
    for length, own in enumerate(by_order, 1):
        lines.append(f"\\{length}-grams:")
        for gram in own:
            log_prob, backoff = grams[gram]
            lines.append(f"{log_prob}\t{' '.join(gram)}" + (f"\t{backoff}" if length < order else ""))
        lines.append("")
    path.write_text("\n".join([*lines, "\\end\\", ""]), encoding="utf-8")
    return path


def back_off(grams, history, word):
    """log10 p(word | history), by the definition."""
    if (*history, word) in grams:
        return grams[*history, word][0]
    if not history:
        return -20.0 / math.log(10)  # no <unk> in the file
    return grams.get(history, (0.0, 0.0))[1] + back_off(grams, history[1:], word)


def spell(token):
    return "<unk>" if PIECES[token] == "never" else PIECES[token]


def walk(decoder, params, path):
    """The log-probabilities `[T + 1, V]` before each token of a path and after it; on rows that all take it."""
    run = jax.jit(decoder.make_step(params, decoder.encode(params, INPUTS)))
    cache, history = decoder.init_cache(params, decoder.encode(params, INPUTS), 9), []
    for time, token in enumerate((BOS, *path)):
        result = run(jnp.full(3, token), jnp.full(3, time), cache)
        history.append(np.asarray(result.log_probs[1]))
        cache = result.cache
    return np.stack(history)


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize(("order", "unknown"), [(1, True), (2, True), (3, True), (3, False), (4, True)])
def test_every_step_is_what_backing_off_gives(order, unknown, dense, tmp_path):
    arpa = read_arpa(write_arpa(tmp_path / "lm.arpa", order, unknown))
    model = make_ngram(arpa, PIECES, **IDS, dense_up_to=10**6 if dense else 0)
    assert isinstance(model.words, Table if dense else Lists)
    grams, decoder = make_grams(order, unknown), ngram_decoder()
    for seed in range(3):
        path = np.random.default_rng(seed).choice([1, 4, 5, 6, 7, 8], 12)
        history = walk(decoder, model, path.tolist())
        for time in range(len(path) + 1):
            words = ["<s>", *(spell(token) for token in path[:time])]
            context = tuple(words[len(words) - min(len(words), order - 1) :])
            for token in range(len(PIECES)):
                if token in (PAD, BOS):
                    assert history[time, token] == -np.inf
                    continue
                wanted = math.log(10) * back_off(grams, context, spell(token))
                assert history[time, token] == pytest.approx(wanted, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("order", [1, 3])
def test_a_text_is_scored_as_the_decoder_scores_it(order, tmp_path):
    path = write_arpa(tmp_path / "lm.arpa", order)
    with gzip.open(tmp_path / "lm.arpa.gz", "wb") as file:
        file.write(path.read_bytes())
    arpa = read_arpa(tmp_path / "lm.arpa.gz")
    tokens = [4, 6, 8, 5, 5, 7, 4]
    history = walk(ngram_decoder(), make_ngram(arpa, PIECES, **IDS), tokens)
    total = sum(history[time, token] for time, token in enumerate([*tokens, EOS]))
    assert arpa.score_words([PIECES[token] for token in tokens]) == pytest.approx(total, rel=1e-5)
    assert arpa.score_words([]) == pytest.approx(history[0, EOS], rel=1e-5)


def test_a_published_file_is_read(data_folder, tmp_path):
    folder = reference.read_archive(data_folder, tmp_path)
    (path,) = folder.rglob("bugs_bunny_kenlm.arpa")
    arpa = read_arpa(path)
    assert arpa.order == 2
    assert arpa.score_words(["bugs", "bunny"]) == 0.0
    assert arpa.score_words(["bunny", "bugs"]) == pytest.approx(-20 * math.log(10))
    assert find_missing(arpa, ["bugs", "hare"]) == ["hare"]


def table_decoder(columns):
    """Another decoder: any token by a fixed row."""
    row = jax.nn.log_softmax(jnp.asarray(np.random.default_rng(2).normal(size=columns), jnp.float32))
    row = jnp.where(jnp.arange(columns) < len(PIECES), row, -jnp.inf)

    def make_step(params, held):
        return lambda tokens, step, cache: StepResult(jnp.broadcast_to(row, (len(tokens), columns)), None, cache)

    return Decoder(lambda params, inputs: None, lambda params, held, room: jnp.zeros(3), make_step), np.asarray(row)


@pytest.mark.parametrize("dense", [True, False])
def test_it_goes_with_another_decoder_in_a_beam(dense, tmp_path):
    model = make_ngram(read_arpa(write_arpa(tmp_path / "lm.arpa", 3)), PIECES, **IDS, dense_up_to=10**6 * dense)
    other, row = table_decoder(len(PIECES) + 3)
    decoder = fuse(other, ngram_decoder(width=len(PIECES) + 3), 0.6)

    @jax.jit
    def search(model):
        held = decoder.encode((None, model), INPUTS)
        return beam_search(
            decoder.make_step((None, model), held),
            decoder.init_cache((None, model), held, 3),
            beam_size=64,
            max_lengths=jnp.full(3, 3),
            max_len=3,
            bos_id=BOS,
            eos_id=EOS,
            pad_id=PAD,
            ranking=Ranking(unfinished="end"),
        )

    found = search(model)
    grams, scores = make_grams(3), {}
    for length in range(3):
        for output in itertools.product([1, 4, 5, 6, 7, 8], repeat=length):
            words, total = ["<s>"], 0.0
            for token in (*output, EOS):
                context = tuple(words[-2:])
                total += row[token] + 0.6 * math.log(10) * back_off(grams, context, spell(token))
                words.append(spell(token))
            scores[output] = total
    ranked = sorted(scores, key=scores.get, reverse=True)[:20]
    for place, output in enumerate(ranked):
        assert float(found.scores[1, place]) == pytest.approx(scores[output], rel=1e-5)
    np.testing.assert_array_equal(found.tokens[1, 0, : len(ranked[0]) + 1], [*ranked[0], EOS])


@pytest.mark.parametrize("dense", [True, False])
def test_a_split_vocabulary_gives_the_same(dense, tmp_path):
    if len(jax.devices()) != 8:
        pytest.skip(f"needs 8 devices, and there are {len(jax.devices())}")
    model = make_ngram(read_arpa(write_arpa(tmp_path / "lm.arpa", 3)), PIECES, **IDS, dense_up_to=10**6 * dense)
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    tokens = jnp.array([[4, 5], [6, 7], [8, 1]])

    def run(decoder, model):
        held = decoder.encode(model, INPUTS)
        step = over_hypotheses(decoder.make_step(model, held))
        cache = jnp.stack([decoder.init_cache(model, held, 3)] * 2, axis=1)
        first = step(jnp.full((3, 2), BOS), jnp.zeros(3, int), cache)
        return step(tokens, jnp.ones(3, int), first.cache)

    def local(model):
        result = run(ngram_decoder(vocab_axes=("tensor",), width=12), model)
        return result.log_probs, result.token_ids[:, 0]

    by_column = PartitionSpec(None, None, "tensor"), PartitionSpec("tensor")
    split, ids = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=PartitionSpec(), out_specs=by_column))(model)
    np.testing.assert_array_equal(ids, np.arange(12))
    np.testing.assert_array_equal(split[..., : len(PIECES)], run(ngram_decoder(), model).log_probs)
    assert (np.asarray(split[..., len(PIECES) :]) == -np.inf).all()


def test_a_model_of_other_words_is_refused(tmp_path):
    arpa = read_arpa(write_arpa(tmp_path / "lm.arpa", 2))
    with pytest.raises(UserError, match=r"lm\.arpa: lists none of the vocabulary's 6 pieces \(such as '<unk>x'\)"):
        make_ngram(arpa, ["<pad>", "<unk>x", "<s>", "</s>", "x", "y"], **IDS)


GOOD = (
    "\\data\\\nngram 1=3\nngram 2=1\n\n\\1-grams:\n-1 <s> -0.5\n-1\t</s>\n-1 a -0.1\n\n"
    "\\2-grams:\n-0.5 a a\n\n\\end\\\n"
)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\\data\\", "data", r"lm.arpa:13: the file ends before '\\data\\'; give a whole ARPA file."),
        ("\\end\\", "", r"lm.arpa:13: the file ends before '\\end\\'; give a whole ARPA file."),
        ("ngram 2=1", "ngram 3=1", r"lm.arpa:3: must be 'ngram 2=COUNT', but is 'ngram 3=1'"),
        ("ngram 1=3", "ngram 1=4", r"lm.arpa:10: ends 3 1-grams, and the head of the file says 4"),
        ("\\2-grams:", "\\3-grams:", r"lm.arpa:10: must be '\\2-grams:', but is '\\3-grams:'"),
        ("-1 a -0.1", "-1", r"lm.arpa:8: must be a log-probability, 1 words and at most one backoff, but is '-1'"),
        ("-0.5 a a", "-0.5 a a -1", r"lm.arpa:11: must be a log-probability, 2 words"),
        ("-0.5 a a", "-0.5 a b", r"lm.arpa:11: has a word that is no 1-gram, 'b', but is '-0.5 a b'"),
        ("-1\t</s>", "-1 a", r"lm.arpa:8: is there twice"),
        ("-1 a -0.1", "x a -0.1", r"lm.arpa:8: must have a number in the place of 'x'"),
        ("-1 a -0.1", "1 a -0.1", r"lm.arpa:8: must have a log-probability of at most 0"),
        ("-1 a -0.1", "-1 \udcff -0.1", r"lm.arpa:8: must be UTF-8, but is not"),
        ("\\data\\", "mmap lm http://kheafield.com/code", r"lm.arpa: is a binary of KenLM"),
    ],
)
def test_damaged_files_are_refused_with_the_line(old, new, message, tmp_path):
    path = tmp_path / "lm.arpa"
    path.write_bytes(GOOD.encode())
    assert read_arpa(path).score_words(["a"]) == pytest.approx(-2.6 * math.log(10))
    path.write_bytes(GOOD.replace(old, new).encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=message) as caught:
        read_arpa(path)
    assert "\n" not in str(caught.value)


def test_missing_and_broken_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="none.arpa: cannot be read"):
        read_arpa(tmp_path / "none.arpa")
    (tmp_path / "lm.gz").write_text("no gzip")
    with pytest.raises(UserError, match="lm.gz: cannot be read"):
        read_arpa(tmp_path / "lm.gz")
