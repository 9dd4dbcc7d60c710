"""Sentences that are compared with each other, in each corpus's words: who does what to whom, said in several ways.

The paper's figure 2 has six phrases on word order ("John admires Mary", "Mary admires John", ...) and six on voice ("I
gave her a card in the garden", "In the garden, I gave her a card", "She was given a card by me in the garden", ...).
`PICTURES` are such sets for pictures, `list_probes` makes the larger set that is counted over.

Captions have passives ("is being chased by"), though few; the phrasebook has none, and its order varies where a time
or a clause stands first. Its set says nothing about voice.
"""

from __future__ import annotations

import dataclasses

from seq2seq_jax.evaluate.sentence_space import Probe


@dataclasses.dataclass(frozen=True)
class Picture:
    """A set of sentences for a picture in two dimensions.

    Attributes:
        key: of files.
        title: what it shows.
        names: of its groups; sentences of a group mean the same, or have the same agent.
        sentences: text and number of its group.
    """

    key: str
    title: str
    names: tuple[str, ...]
    sentences: tuple[tuple[str, int], ...]


_MAN, _WOMAN = "a man", "a woman"

PICTURES = {
    "multi30k": (
        Picture(
            "order",
            "Who does it: the same words in another order",
            ("a man does it", "a woman does it"),
            tuple(
                (f"{one} is {verb} {other} .", group)
                for verb in ("watching", "helping", "looking at")
                for group, (one, other) in enumerate(((_MAN, _WOMAN), (_WOMAN, _MAN)))
            ),
        ),
        Picture(
            "voice",
            "What is meant: in three forms",
            ("the boy pulls", "the girl pulls"),
            tuple(
                sentence
                for group, (one, other) in enumerate((("a boy", "a girl"), ("a girl", "a boy")))
                for sentence in (
                    (f"{one} is pulling {other} in the snow .", group),
                    (f"in the snow , {one} is pulling {other} .", group),
                    (f"{other} is being pulled by {one} in the snow .", group),
                )
            ),
        ),
    ),
    "phrasebook": (
        Picture(
            "order",
            "Who does it: the same words in another order",
            ("Anna does it", "Paul does it"),
            tuple(
                (f"{one} {verb} {other}.", group)
                for verb in ("helps", "visits", "invites")
                for group, (one, other) in enumerate((("Anna", "Paul"), ("Paul", "Anna")))
            ),
        ),
        Picture(
            "place",
            "What is meant: a time or a clause first or last",
            ("the king meets", "the doctor meets", "the king arrives", "the doctor arrives"),
            tuple(
                sentence
                for group, (one, other) in enumerate((("king", "doctor"), ("doctor", "king")))
                for sentence in (
                    (f"The {one} met the {other} yesterday.", group),
                    (f"Yesterday the {one} met the {other}.", group),
                    (f"When the {one} arrived, the {other} was tired.", group + 2),
                    (f"The {other} was tired when the {one} arrived.", group + 2),
                )
            ),
        ),
    ),
}

# One person or animal, another, what one does, what is done to the other, where.
_CAPTIONS = (
    ("man", "woman", "watching", "watched", "in the park"),
    ("boy", "girl", "chasing", "chased", "on the beach"),
    ("woman", "child", "pulling", "pulled", "in the snow"),
    ("man", "boy", "carrying", "carried", "in the water"),
    ("girl", "woman", "holding", "held", "on the street"),
    ("dog", "child", "following", "followed", "in the grass"),
    ("boy", "man", "pushing", "pushed", "in the street"),
    ("woman", "man", "helping", "helped", "in a field"),
)

# One person, another, what one did, when.
_PHRASES = (
    ("doctor", "king", "helped", "yesterday"),
    ("teacher", "queen", "met", "last week"),
    ("boy", "lawyer", "invited", "last year"),
    ("girl", "soldier", "saw", "last night"),
    ("nurse", "farmer", "visited", "two days ago"),
    ("artist", "baker", "called", "on Monday"),
    ("student", "actress", "thanked", "last week"),
    ("woman", "cook", "followed", "yesterday"),
    ("gardener", "man", "heard", "last night"),
    ("driver", "child", "helped", "on Sunday"),
    ("king", "nurse", "invited", "last year"),
    ("customer", "policeman", "saw", "on Tuesday"),
)

FORMS = {"multi30k": ("plain", "place first", "passive"), "phrasebook": ("plain", "time first")}
"""The forms of `list_probes`, the plain one first."""


def list_probes(corpus: str) -> list[Probe]:
    """Scenes in which either of two does something to the other, each meaning in all forms; about fifty sentences."""
    probes = []
    if corpus == "multi30k":
        for scene, (one, other, does, done, place) in enumerate(_CAPTIONS):
            for agent, patient in ((one, other), (other, one)):
                texts = (
                    f"a {agent} is {does} a {patient} {place} .",
                    f"{place} , a {agent} is {does} a {patient} .",
                    f"a {patient} is being {done} by a {agent} {place} .",
                )
                probes += [Probe(text, scene, agent, form) for text, form in zip(texts, FORMS[corpus], strict=True)]
        return probes
    for scene, (one, other, did, time) in enumerate(_PHRASES):
        for agent, patient in ((one, other), (other, one)):
            texts = (
                f"The {agent} {did} the {patient} {time}.",
                f"{time[0].upper()}{time[1:]} the {agent} {did} the {patient}.",
            )
            probes += [Probe(text, scene, agent, form) for text, form in zip(texts, FORMS[corpus], strict=True)]
    return probes


def list_sentences(corpus: str) -> list[str]:
    """All sentences of a corpus whose vectors are needed, none twice, in an order that stays."""
    shown = (text for picture in PICTURES[corpus] for text, _ in picture.sentences)
    return list(dict.fromkeys([*shown, *(probe.text for probe in list_probes(corpus))]))
