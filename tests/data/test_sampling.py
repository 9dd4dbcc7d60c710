"""Sampled segmentations: distributions against enumeration and SentencePiece, draws, room, the reader of batches."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import sentencepiece

from seq2seq_jax.data.pipeline import Ragged, batches, tokenise
from seq2seq_jax.data.plan import make_plan
from seq2seq_jax.data.sampling import PairSampler, SubwordSampler, mix
from seq2seq_jax.data.sources import make_text
from seq2seq_jax.data.vocab import EOS_ID, UNK_ID, Vocab, Vocabs
from seq2seq_jax.data.vocab_files import read_model
from seq2seq_jax.data.vocab_training import train_vocab
from seq2seq_jax.errors import UserError

LINES = [
    "the lower tower is the lowest of the new towers",
    "a newer flower grows slowly by the widest window",
    "we know how the snow flows down the narrow town",
    "no one owns the crown of the brown yellow gown",
] * 3
MODELS = {
    "unigram": train_vocab(LINES, size=60, model="unigram", tags=("2de",)),
    "bpe": train_vocab(LINES, size=60, model="bpe", tags=("2de",)),
}
ANY = 10**9


def keys(count: int, start: int = 0) -> np.ndarray:
    return mix(np.array([7], np.uint64), np.arange(start, start + count))


def sample(vocab: Vocab, line: str, strength: float, count: int, room: int = ANY) -> list[list[int]]:
    ragged = Ragged.pack([np.array(vocab.encode(line), np.int32)] * count)
    drawn = SubwordSampler(vocab, strength).sample(ragged, keys(count), np.full(count, room))
    return [drawn[i].tolist() for i in range(count)]


def distance(found: Counter, expected: Counter) -> float:
    """Total variation between two distributions."""
    names = set(found) | set(expected)
    return sum(abs(found[n] / found.total() - expected[n] / expected.total()) for n in names) / 2


def enumerate_segmentations(vocab: Vocab, word: str, alpha: float) -> Counter:
    """Every way to write "▁word" in pieces, weighted by p^alpha, by trying all sets of cuts."""
    model = sentencepiece.SentencePieceProcessor(model_proto=vocab.model)
    text, weights = "▁" + word, Counter()
    for count in range(len(text)):
        for cuts in itertools.combinations(range(1, len(text)), count):
            parts = [text[a:b] for a, b in itertools.pairwise((0, *cuts, len(text)))]
            ids = [model.piece_to_id(part) for part in parts]
            if UNK_ID not in ids:
                weights[tuple(ids)] = math.exp(alpha * sum(model.get_score(i) for i in ids))
    return weights


@pytest.mark.parametrize("alpha", [0.1, 0.3])
@pytest.mark.parametrize("word", ["lower", "towers"])
def test_unigram_draws_each_segmentation_by_its_share(word, alpha):
    vocab = MODELS["unigram"]
    found = Counter(map(tuple, sample(vocab, word, alpha, 20_000)))
    expected = enumerate_segmentations(vocab, word, alpha)
    assert len(expected) >= 8
    assert distance(found, expected) < 0.02  # for the right distribution 0.01 with 20,000 draws
    assert distance(found, enumerate_segmentations(vocab, word, alpha + 0.2)) > 0.03


@pytest.mark.parametrize(("name", "strength"), [("unigram", 0.3), ("bpe", 0.1), ("bpe", 0.5)])
def test_draws_are_distributed_as_those_of_sentencepiece(name, strength):
    vocab, count = MODELS[name], 20_000
    model = sentencepiece.SentencePieceProcessor(model_proto=vocab.model)
    sentencepiece.set_random_generator_seed(1)
    theirs = model.encode(["lowest"] * count, enable_sampling=True, nbest_size=-1, alpha=strength)
    ours = sample(vocab, "lowest", strength, count)
    assert distance(*(Counter(map(tuple, drawn)) for drawn in (ours, theirs))) < 0.03
    other = sample(vocab, "lowest", strength + 0.1, count)
    assert distance(*(Counter(map(tuple, drawn)) for drawn in (other, theirs))) > 0.05


def test_bpe_that_drops_nothing_merges_as_sentencepiece_does():
    sampler, vocab = SubwordSampler(MODELS["bpe"], 1e-9), MODELS["bpe"]
    for word in {word for line in LINES for word in line.split()}:
        ids = vocab.encode(word)
        assert sampler._merge(ids, [0.5] * 3 * (len(word) + 1)) == ids


def test_bpe_that_drops_everything_leaves_characters():
    assert all("".join(MODELS["bpe"].pieces(ids)) == "▁the▁town" for ids in sample(MODELS["bpe"], "the town", 1.0, 5))
    assert all(len(ids) == len("▁the▁town") for ids in sample(MODELS["bpe"], "the town", 1.0, 5))


def test_a_sharp_unigram_gives_a_best_segmentation():
    vocab = MODELS["unigram"]
    model = sentencepiece.SentencePieceProcessor(model_proto=vocab.model)
    for line in LINES[:4]:
        (drawn,) = sample(vocab, line, 500.0, 1)
        scores = [sum(model.get_score(i) for i in ids) for ids in (drawn, vocab.encode(line))]
        assert scores[0] == pytest.approx(scores[1], rel=1e-4)


def make_pairs(vocab: Vocab):
    text = make_text(LINES, [line.upper().lower()[::-1].strip() for line in LINES], name="t")
    return tokenise(text, Vocabs(vocab, vocab, joint=True), ("2de",))


@pytest.mark.parametrize("name", MODELS)
def test_the_text_its_tags_and_its_end_stay(name):
    vocab, pairs = MODELS[name], make_pairs(MODELS[name])
    sampler = PairSampler(Vocabs(vocab, vocab, joint=True), 0.4, "both", seed=3)
    ids = np.arange(len(pairs))
    best = pairs.read(ids)
    drawn = sampler.draw(*best, ids, 0, (ANY, ANY))
    for old, new in zip(best, drawn, strict=True):
        assert new.flat.dtype == np.int32 and new.offsets[-1] == len(new.flat) and len(new) == len(old)
        assert any(new[i].tolist() != old[i].tolist() for i in ids)
        for i in ids:
            assert vocab.decode(new[i]) == vocab.decode(old[i])
    tag = vocab.tag_ids(["2de"])[0]
    assert all(row[0] == tag and row[-1] == EOS_ID and EOS_ID not in row[:-1] for row in map(drawn[0].__getitem__, ids))


@pytest.mark.parametrize("name", MODELS)
def test_draws_follow_from_seed_epoch_and_example_alone(name):
    vocab, pairs = MODELS[name], make_pairs(MODELS[name])
    vocabs, ids = Vocabs(vocab, vocab, joint=True), np.arange(len(pairs))

    def draw(ids: np.ndarray, *, seed: int = 3, epoch: int = 2) -> list[list[int]]:
        sides = PairSampler(vocabs, 0.4, "both", seed).draw(*pairs.read(ids), ids, epoch, (ANY, ANY))
        return [[*source.tolist(), -1, *target.tolist()] for source, target in zip(*map(iterate, sides), strict=True)]

    whole = draw(ids)
    assert whole == [draw(ids[i : i + 1])[0] for i in ids]
    assert draw(ids[::-1]) == whole[::-1]
    assert sum(a == b for a, b in zip(whole, draw(ids, epoch=3), strict=True)) < 3
    assert sum(a == b for a, b in zip(whole, draw(ids, seed=4), strict=True)) < 3
    assert whole[0] != whole[4]  # the same pair again, as another example


def iterate(ragged: Ragged) -> list[np.ndarray]:
    return [ragged[i] for i in range(len(ragged))]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("extra", [0, 3])
def test_there_is_always_room(name, extra):
    vocab, line = MODELS[name], LINES[0]
    best = vocab.encode(line)
    free, held = (sample(vocab, line, 0.4, 300, room=room) for room in (ANY, len(best) + extra))
    assert max(map(len, held)) <= len(best) + extra < max(map(len, free))
    assert all(vocab.decode(ids) == line for ids in held)
    assert [a for a in free if len(a) <= len(best) + extra] == [
        b for a, b in zip(free, held, strict=True) if len(a) <= len(best) + extra
    ]
    assert not extra or sum(ids != best for ids in held) > 200


@pytest.mark.parametrize("options", [{"size": 60}, {"byte_fallback": True, "size": 320}])
def test_unknown_pieces_and_bytes_stay(options):
    vocab = train_vocab(LINES, **options)
    ids = vocab.encode("the lowЖer tower")
    odd = [i for i, piece in zip(ids, vocab.pieces(ids), strict=True) if piece.startswith("<")]
    assert odd == ([UNK_ID] if len(options) == 1 else vocab.encode("Ж")[1:])
    drawn = sample(vocab, "the lowЖer tower", 0.1, 50)
    assert len(set(map(tuple, drawn))) > 10
    for found in drawn:
        assert vocab.decode(found) == vocab.decode(ids)
        assert any(found[i : i + len(odd)] == odd for i in range(len(found)))


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_pieces_over_blanks_are_drawn_too(tmp_path, model_type):
    path = tmp_path / "own"
    options = {
        "model_type": model_type,
        "vocab_size": 45 if model_type == "unigram" else 90,
        "split_by_whitespace": False,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(LINES), model_prefix=str(path), **options)
    vocab = read_model(path.with_suffix(".model"))
    assert any("▁" in piece[1:] for piece in vocab.pieces(range(4, vocab.size)))
    drawn = sample(vocab, LINES[0], 0.3, 50)
    assert all(vocab.decode(ids) == LINES[0] for ids in drawn) and len(set(map(tuple, drawn))) > 25


@pytest.mark.parametrize("sides", ["source", "target"])
def test_one_side_alone(sides):
    vocab, pairs = MODELS["bpe"], make_pairs(MODELS["bpe"])
    ids = np.arange(len(pairs))
    best = pairs.read(ids)
    drawn = PairSampler(Vocabs(vocab, vocab, joint=True), 0.4, sides, 0).draw(*best, ids, 0, (ANY, ANY))
    changed = [a.flat.tolist() != b.flat.tolist() for a, b in zip(best, drawn, strict=True)]
    assert changed == [sides == "source", sides == "target"]


@pytest.mark.parametrize("kind", ["word", "char", "byte"])
def test_other_kinds_are_refused(kind):
    with pytest.raises(UserError, match=r"config\.data\.subword_sampling"):
        SubwordSampler(train_vocab(LINES, kind=kind), 0.1)


@pytest.mark.parametrize("name", MODELS)
def test_batches_are_the_same_for_any_threads_hosts_and_after_a_resume(name):
    vocab, pairs = MODELS[name], make_pairs(MODELS[name])
    sampler = PairSampler(Vocabs(vocab, vocab, joint=True), 0.3, "both", seed=5)
    lengths = sampler.plan_lengths(pairs, max_source_len=80, max_target_len=80)
    plan = make_plan(*lengths, seed=0, rows=4, rows_multiple=2, max_shapes=2)

    def read(**options) -> list:
        with batches(pairs, plan, stop=2 * plan.batches_per_epoch, redraw=sampler, **options) as reader:
            return list(reader)

    whole = read(start=0, threads=0)
    for i, batch in enumerate(read(start=0, threads=3, prefetch=4)):
        assert np.array_equal(batch.source, whole[i].source) and np.array_equal(batch.target_out, whole[i].target_out)
    resumed = read(start=3)
    assert np.array_equal(resumed[0].source, whole[3].source) and len(resumed) == len(whole) - 3
    half = read(start=0, rows_of=lambda rows: np.arange(rows // 2, rows))
    assert all(np.array_equal(part.source, batch.source[2:]) for part, batch in zip(half, whole, strict=True))
    seen = {
        i: row for batch in whole[: len(whole) // 2] for i, row in zip(batch.example_ids, batch.source, strict=True)
    }
    again = {
        i: row for batch in whole[len(whole) // 2 :] for i, row in zip(batch.example_ids, batch.source, strict=True)
    }
    assert sum(seen[i].tolist() != again[i].tolist() for i in seen) > len(seen) / 2


def test_planned_lengths_grow_within_the_limits():
    vocab, pairs = MODELS["bpe"], make_pairs(MODELS["bpe"])
    sampler = PairSampler(Vocabs(vocab, vocab, joint=True), 0.3, "source", seed=5)
    limit = int(np.sort(pairs.source_lengths)[len(pairs) // 2])
    source, target = sampler.plan_lengths(pairs, max_source_len=limit, max_target_len=ANY)
    best = pairs.source_lengths
    assert np.array_equal(source > limit, best > limit)
    assert (source[best <= limit] >= best[best <= limit]).all() and (
        source[best < limit - 2] > best[best < limit - 2]
    ).all()
    assert np.array_equal(target, pairs.target_lengths)


@pytest.mark.data
@pytest.mark.parametrize(("model", "strength"), [("unigram", 0.2), ("bpe", 0.1)])
def test_real_sentences_keep_their_text(model, strength, data_folder):
    lines = (data_folder / "multi30k" / "val.de").read_text(encoding="utf-8").splitlines()[:400]
    vocab = train_vocab(lines, size=800, model=model)
    encoded = vocab.encode_many(lines)
    drawn = SubwordSampler(vocab, strength).sample(Ragged.pack(encoded), keys(len(lines)), np.full(len(lines), ANY))
    assert [vocab.decode(drawn[i]) for i in range(len(lines))] == [vocab.decode(ids) for ids in encoded]
    growth = len(drawn.flat) / sum(map(len, encoded))
    assert 1.1 < growth < 1.6
    if model == "bpe":  # every word of real text
        sampler = SubwordSampler(vocab, 1e-9)
        for word in {word for line in lines for word in vocab.normalise(line).split()}:
            ids = vocab.encode(word)
            assert UNK_ID in ids or sampler._merge(ids, [0.5] * 3 * (len(word) + 1)) == ids
