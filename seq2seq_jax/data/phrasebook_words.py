"""Reads the phrasebook's tables into words, and defines the clauses that the three languages render.

A `Sentence` holds meaning and no word order; `phrasebook_english`, `phrasebook_french` and `phrasebook_german` each
turn the same one into text, so that their outputs are translations of each other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from seq2seq_jax.data.phrasebook_lexicon import ADJECTIVES, NOUNS, VERBS


class Noun(NamedTuple):
    """A noun in three languages; the German weak form is that of the oblique singular (den Studenten)."""

    key: str
    kinds: str
    en: tuple[str, str]
    fr: tuple[str, str]
    fr_gender: str
    de: tuple[str, str]
    de_gender: str
    de_weak: str


class Adjective(NamedTuple):
    """An adjective; French as (m, f, m plural, f plural, m before a vowel), German predicative and attributive."""

    key: str
    en: str
    fr: tuple[str, str, str, str, str]
    before: bool
    de: str
    de_stem: str
    kinds: str
    comparative: tuple[str, str] | None


class Verb(NamedTuple):
    """A verb; presents are six forms (I, you, he, we, you, they), German ones without the separable prefix."""

    key: str
    en: tuple[str, str, str]
    en_particle: str
    particle_moves: bool
    fr: str
    fr_present: tuple[str, ...]
    fr_future: str
    fr_participle: str
    fr_be: bool
    fr_reflexive: bool
    fr_tail: str
    fr_preposition: str
    de: str
    de_present: tuple[str, ...]
    de_prefix: str
    de_participle: str
    de_be: bool
    de_reflexive: bool
    de_dative: bool
    subjects: str
    objects: str
    past: bool


@dataclass(slots=True, eq=False)
class Phrase:
    """A noun phrase: a noun with its company, a name, or (`pronoun`) a pronoun, whose noun is what it stands for."""

    noun: Noun | None = None
    determiner: str = "the"  # the, a, some, this, every, many, count; or my, his, her, our, their
    plural: bool = False
    count: int = 0
    adjectives: tuple[Adjective, ...] = ()
    owner: Phrase | None = None
    content: Noun | None = None  # a glass of water
    relative: Clause | None = None
    pronoun: bool = False
    person: int = 3
    sex: str = ""  # m or f for people, "" for the rest
    name: str = ""
    title: bool = False  # Mr, Mrs; as an address, the polite form
    polite: bool = False

    def index(self) -> int:
        """The place of this subject's verb form among I, you, he, we, you, they."""
        return self.person - 1 + 3 * self.plural


@dataclass(slots=True, eq=False)
class Clause:
    """A clause before it has word order: who does what to whom, where and when."""

    subject: Phrase
    verb: Verb
    tense: str = "p"  # p present, q past, f future
    negative: bool = False
    modal: str = ""  # can, must, want
    frequency: tuple[str, ...] | None = None
    object: Phrase | None = None
    receiver: Phrase | None = None
    predicate: tuple[Adjective, tuple[str, ...] | None, Phrase | None] | None = None  # degree, compared with
    extra: tuple[str, ...] | None = None  # fixed words in the three languages, and the negated German
    places: tuple[tuple[str, Phrase], ...] = ()
    time: tuple[str, ...] | None = None
    time_first: bool = False
    first: tuple[str, Clause] | None = None  # a subordinate clause in front
    after: tuple[str, Clause] | None = None  # a clause behind, joined by a conjunction
    gap: str = ""  # subject or object: the part a relative pronoun or a question word stands for
    shared: bool = False  # a second clause that shares the subject of the first


@dataclass(slots=True, eq=False)
class Sentence:
    """A clause as a statement or a question ("" or yes, where, why, when, who, what), perhaps addressed to someone."""

    clause: Clause
    question: str = ""
    address: Phrase | None = None


def english_plural(word: str) -> str:
    """The regular English plural, which is also the third person of a verb: box, boxes; story, stories."""
    if word.endswith(("s", "x", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2] not in "aeou":
        return word[:-1] + "ies"
    return word + "s"


def french_plural(word: str) -> str:
    """The regular French plural: livre, livres; gâteau, gâteaux; ours, ours."""
    if word.endswith(("s", "x")):
        return word
    return word + ("x" if word.endswith("eau") else "s")


def _noun(line: str) -> Noun:
    english, french, german = line.split("|")
    head, kinds = english.split()
    singular, _, plural = head.partition(":")
    fr = french.split()
    de = german.split()
    return Noun(
        singular, kinds, (singular, plural or english_plural(singular)),
        (fr[0], fr[2] if len(fr) > 2 else french_plural(fr[0])), fr[1], (de[0], de[2]), de[1], (de + [de[0]])[3],
    )  # fmt: skip


# Homographs and words whose number differs: one Brille is a pair of lunettes. Kinds would not tell these apart.
_SPECIAL_NOUNS = {
    "bat=tool": (("bat", "bats"), ("batte", "battes"), "f", ("Schläger", "Schläger"), "m", "Schläger"),
    "bank=shore": (("bank", "banks"), ("rive", "rives"), "f", ("Ufer", "Ufer"), "n", "Ufer"),
    "glass": (("glass", "glasses"), ("verre", "verres"), "m", ("Glas", "Gläser"), "n", "Glas"),
    "glasses": (("glasses", "glasses"), ("lunettes", "lunettes"), "f", ("Brille", "Brille"), "f", "Brille"),
}


@lru_cache(maxsize=1)
def nouns() -> dict[str, Noun]:
    """Every noun by its key."""
    table = {noun.key: noun for noun in map(_noun, re.split(r"\n| ; ", NOUNS.strip()))}
    for key, noun in _SPECIAL_NOUNS.items():
        table[key] = Noun(key, "w", *noun)
    return table


def select(spec: str) -> tuple[Noun, ...]:
    """The nouns that a list of kinds, words and `-words` (left out) names, in the order of the table."""
    words = spec.split()
    kinds = "".join(word for word in words if len(word) == 1)
    dropped = {word[1:] for word in words if word.startswith("-")}
    return tuple(
        noun for key, noun in nouns().items()
        if key not in dropped and (key in words or any(kind in kinds for kind in noun.kinds))
    )  # fmt: skip


def _adjective(line: str) -> Adjective:
    parts = line.split("|")
    key = parts[0].partition("=")[0]
    fr = parts[1].lstrip("+").split()
    m = fr[0]
    f = fr[1] if len(fr) > 1 else m if m.endswith("e") else m + "e"
    de = parts[2].split()
    english, _, german = parts[4].partition(", ") if len(parts) > 4 else ("", "", "")
    return Adjective(
        parts[0], key, (m, f, french_plural(m), f + "s", fr[2] if len(fr) > 2 else m), parts[1][0] == "+", de[0],
        de[-1], parts[3], (english, german) if english else None,
    )  # fmt: skip


@lru_cache(maxsize=1)
def adjectives() -> dict[str, Adjective]:
    """Every adjective by its key."""
    return {adjective.key: adjective for adjective in map(_adjective, ADJECTIVES.strip().splitlines())}


def _french_present(infinitive: str) -> tuple[tuple[str, ...], str, str]:
    """Present, future stem and participle of a regular French verb."""
    stem = infinitive[:-2]
    if infinitive.endswith("re"):
        return (stem + "s", stem + "s", stem, stem + "ons", stem + "ez", stem + "ent"), infinitive[:-1], stem + "u"
    if infinitive.endswith("ir"):
        return (*(stem + end for end in ("is", "is", "it", "issons", "issez", "issent")),), infinitive, stem + "i"
    strong, future = stem, infinitive
    if stem.endswith("oy"):
        strong, future = stem[:-1] + "i", stem[:-1] + "ier"
    elif infinitive == "jeter":
        strong, future = "jett", "jetter"
    elif stem in ("achet", "lev"):
        strong = stem.replace("e", "è")
        future = strong + "er"
    elif stem == "espér":
        strong = "espèr"
    first = stem + "e" if stem.endswith("g") else stem
    present = (strong + "e", strong + "es", strong + "e", first + "ons", stem + "ez", strong + "ent")
    return present, future, stem + "é"


def _german_present(infinitive: str) -> tuple[tuple[str, ...], str]:
    """Present and weak participle (without its ge-) of a regular German verb."""
    stem = infinitive[:-1] if infinitive.endswith(("ern", "eln")) else infinitive[:-2]
    soft = "e" if stem.endswith(("t", "d", "chn")) else ""
    second = stem + soft + ("t" if stem.endswith(("s", "ß", "z", "x")) else "st")
    third = stem + soft + "t"
    return (stem + "e", second, third, infinitive, third, infinitive), third


def _verb(line: str) -> Verb:
    english, french, german, subjects, objects = line.split("|")
    head, _, past = english.partition(" ")
    word, _, _ = head.partition("=")
    moves = "<" in word
    base, _, particle = word.replace("<", ">").partition(">")
    if not past:
        past = base[:-1] + "ied" if base.endswith("y") and base[-2] not in "ae" else base + "ed"[base.endswith("e") :]
    fr_words, _, fr_flags = french.partition(";")
    fr = fr_words.split()
    preposition = next((item[1:] for item in fr if item[0] == "+"), "")
    tail = fr[-1] if preposition and fr[-1][0] != "+" else ""
    fr = fr[: next((n for n, item in enumerate(fr) if item[0] == "+"), len(fr))]
    present, future, participle = _french_present(fr[0])
    if len(fr) > 2:
        present, future, participle = tuple(fr[1:7]), fr[7], fr[8]
    elif len(fr) == 2:
        participle = fr[1]
    de_words, _, de_flags = german.partition(";")
    de = de_words.split()
    prefix, _, infinitive = de[0].rpartition("_")
    de_present, weak = _german_present(infinitive)
    bare = infinitive.startswith(("be", "ver", "er", "zer")) or infinitive.endswith("ieren")
    de_participle = prefix + ("" if bare else "ge") + weak
    if len(de) > 1:
        de_participle = de[-1]
    if len(de) == 4:
        de_present = (de_present[0], de[1], de[2], *de_present[3:])
    elif len(de) == 8:
        de_present = tuple(de[1:7])
    flags = de_flags.split()
    return Verb(
        head, (base, english_plural(base) if base != "go" else "goes", past), particle, moves, fr[0], present, future,
        participle, "be" in fr_flags, "refl" in fr_flags, tail, preposition, infinitive, de_present, prefix,
        de_participle, "be" in flags, "refl" in flags, "dat" in flags, subjects, objects, "now" not in flags,
    )  # fmt: skip


@lru_cache(maxsize=1)
def verbs() -> dict[str, Verb]:
    """Every verb by its key."""
    return {verb.key: verb for verb in map(_verb, VERBS.strip().splitlines())}


# key: English, French, German, and whether German puts the verb last after it
CONJUNCTIONS = {
    "that": ("that", "que", "dass", True),
    "because": ("because", "parce que", "weil", True),
    "when": ("when", "quand", "wenn", True),
    "when_past": ("when", "quand", "als", True),
    "if": ("if", "si", "wenn", True),
    "whether": ("if", "si", "ob", True),
    "why": ("why", "pourquoi", "warum", True),
    "while": ("while", "pendant que", "während", True),
    "and": ("and", "et", "und", False),
    "but": (", but", ", mais", ", aber", False),
}
# question: English, French, German
QUESTIONS = {
    "where": ("where", "où", "wo"),
    "whither": ("where", "où", "wohin"),
    "why": ("why", "pourquoi", "warum"),
    "when": ("when", "quand", "wann"),
    "who": ("who", "qui", "wer"),
    "what": ("what", "qu'est-ce que", "was"),
}

# To be, to be hungry (avoir faim, Hunger haben) and to be ten years old (avoir dix ans, zehn Jahre alt sein).
_ETRE = ("être", ("suis", "es", "est", "sommes", "êtes", "sont"), "ser", "été")
_AVOIR = ("avoir", ("ai", "as", "a", "avons", "avez", "ont"), "aur", "eu")
_SEIN = ("sein", ("bin", "bist", "ist", "sind", "seid", "sind"), "", "gewesen")
_HABEN = ("haben", ("habe", "hast", "hat", "haben", "habt", "haben"), "", "gehabt")


_Forms = tuple[str, tuple[str, ...], str, str]


def _being(key: str, fr: _Forms, de: _Forms) -> Verb:
    english = ("be", "is", "was")
    return Verb(
        key, english, "", False, fr[0], fr[1], fr[2], fr[3], False, False, "", "",
        de[0], de[1], de[2], de[3], False, False, False, "pa", "", True,
    )  # fmt: skip


BE = _being("be", _ETRE, _SEIN)
STATE = _being("state", _AVOIR, _HABEN)
AGE = _being("age", _AVOIR, _SEIN)
