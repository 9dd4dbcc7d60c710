"""Constraints as text: what a line may say, and the tokens that come of it."""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest

from seq2seq_jax.data.vocab_training import train_vocab
from seq2seq_jax.errors import UserError
from seq2seq_jax.tasks.constraints import (
    MOST_SPELLINGS,
    Speller,
    Wish,
    least_length,
    parse_wish,
    spell_wishes,
    split_phrases,
)

LINES = [
    "the cat sat on the mat",
    "the dogs (and cats) sat on the log",
    "a cat and a dog",
    'he said "cat" and left',
] * 9
VOCAB = train_vocab(LINES, kind="sentencepiece", size=60)
WORDS = train_vocab(LINES, kind="word", size=60)


def test_a_line_says_what_is_asked_on_top_of_what_is_asked_of_all():
    default = Wish("The", ("cat",), ("dog",))
    assert parse_wish("", where="f: line 1", default=default) == default
    assert parse_wish("{}\n", where="f: line 1", default=default) == default
    line = '{"prefix": "A", "must": ["mat"], "must_not": ["log", "hat"]}'
    assert parse_wish(line, where="f: line 1", default=default) == Wish("A", ("cat", "mat"), ("dog", "log", "hat"))
    assert split_phrases(" the cat | |dog") == ("the cat", "dog") and not Wish()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ('["cat"]', "must be a JSON object"),
        ('{"must": "cat"}', "must must be a list of strings"),
        ('{"must_not": [1]}', "must_not must be a list of strings"),
        ('{"prefix": ["cat"]}', "prefix must be a string"),
        ('{"have": ["cat"]}', "not 'have'"),
    ],
)
def test_a_wrong_line_is_named(line, message):
    with pytest.raises(UserError, match=f"f: line 7: .*{message}"):
        parse_wish(line, where="f: line 7")


def test_wishes_become_tokens_and_the_last_row_asks_nothing():
    wishes = [Wish("the cat", ("on the mat", "dog")), None, Wish(must_not=("sat",))]
    packed = spell_wishes(wishes, VOCAB).pack(range(3))
    assert {leaf.shape[0] for leaf in jax.tree.leaves(packed)} == {4}

    def read(tokens, lengths):
        return [VOCAB.decode(row[:length].tolist()) for row, length in zip(tokens, lengths, strict=True) if length]

    assert read(packed.prefix[:1], packed.prefix_lengths[:1]) == ["the cat"]
    assert read(packed.must[0], packed.must_lengths[0]) == ["on the mat", "dog"]
    assert set(read(packed.must_not[2], packed.must_not_lengths[2])) >= {"sat"}
    for row in (1, 3):
        lengths = (packed.prefix_lengths[row], packed.must_lengths[row], packed.must_not_lengths[row])
        assert not any(np.any(each) for each in lengths)
    texts = ("the cat", "on the mat", "dog")
    assert least_length(packed).tolist() == [sum(len(VOCAB.encode(text)) for text in texts) + 1, 1, 1, 1]


def test_groups_of_rows_have_the_shapes_of_all():
    wishes = [Wish(must=("cat",)), Wish(), Wish("the dogs sat", ("on the mat", "dog", "log")), Wish(must=("cat",))]
    spelled = spell_wishes(wishes, VOCAB)
    whole = spelled.pack(range(4))
    for rows in ([3, 1], [1], [2, 0, 3], []):
        packed = spelled.pack(rows)
        for part, leaf in zip(jax.tree.leaves(packed), jax.tree.leaves(whole), strict=True):
            np.testing.assert_array_equal(part, leaf[[*rows, 4]])
    assert spelled and not spell_wishes([Wish(), None], VOCAB)


def test_every_spelling_of_a_word_is_forbidden():
    found = Speller(VOCAB).list_ways("sat", "must_not")
    pieces = VOCAB.pieces(range(VOCAB.size))
    known = {piece for piece in pieces[VOCAB.first_id :]}

    def cut(text):
        """All ways to write a text as known pieces, by brute force over the places to cut."""
        places = range(1, len(text))
        for cuts in itertools.chain.from_iterable(itertools.combinations(places, n) for n in range(len(text))):
            parts = [text[a:b] for a, b in zip((0, *cuts), (*cuts, len(text)), strict=True)]
            if set(parts) <= known:
                yield tuple(pieces.index(part) for part in parts)

    wanted = set(cut("▁sat"))
    assert 1 < len(wanted) <= MOST_SPELLINGS and wanted <= set(found) and tuple(VOCAB.encode("sat")) == found[0]
    signs = {VOCAB.pieces(way)[0][-1] for way in set(found) - wanted}
    assert signs == {"(", '"'}  # of the vocabulary, those that a word follows without a blank
    assert all(VOCAB.decode(way[1:]) == "sat" for way in set(found) - wanted)
    words = Speller(WORDS)
    assert words.list_ways("cat", "") == [tuple(WORDS.encode("cat"))] and words.list_ways("zebra", "") == []


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        (Wish(must=(" ",)), "must has a phrase without any token"),
        (Wish(must_not=("",)), "must_not has a phrase without any token"),
        (Wish(must=("zebra",)), "must has 'zebra', which the vocabulary cannot spell"),
        (Wish(prefix="a zebra"), "prefix has 'a zebra'"),
        (Wish(must=("the cat sat",), must_not=("cat",)), "must asks for 'the cat sat', but must_not forbids 'cat'"),
        (Wish(prefix="the cat", must_not=("the cat",)), "prefix asks for 'the cat', but must_not forbids 'the cat'"),
    ],
)
def test_what_cannot_be_is_refused(wish, message):
    with pytest.raises(UserError, match=f"^f: line 2: {message}"):
        spell_wishes([None, wish], WORDS, where=lambda row: f"f: line {row + 1}: ")
