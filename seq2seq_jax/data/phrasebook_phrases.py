"""Composes the phrasebook's noun phrases: names, determiners, adjectives and owners."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

from seq2seq_jax.data import phrasebook_english, phrasebook_french, phrasebook_german
from seq2seq_jax.data import phrasebook_lexicon as lexicon
from seq2seq_jax.data.phrasebook_choices import (
    COLOURS,
    FAMILY,
    NUMBERS,
    OWNED,
    list_qualities,
    list_sites,
    list_subjects,
)
from seq2seq_jax.data.phrasebook_words import Noun, Phrase, nouns

T = TypeVar("T")
_LANGUAGES = (phrasebook_english, phrasebook_french, phrasebook_german)


class PhraseComposer:
    """A repeatable source of noun phrases. Only `random.random` draws, so that all Python versions agree."""

    def __init__(self, seed: int) -> None:
        """Starts the draws from a seed."""
        self._draw = random.Random(seed).random
        self._pairs: list[tuple[str, str]] = []

    def _chance(self, share: float) -> bool:
        return self._draw() < share

    def _pick(self, items: Sequence[T]) -> T:
        return items[int(self._draw() * len(items))]

    def _make_name(self, ends: Sequence[str]) -> str:
        middle = self._pick(lexicon.NAME_MIDDLES) if self._chance(0.6) else ""
        return self._pick(lexicon.NAME_STARTS) + middle + self._pick(ends)

    def _named(self, *, title: float = 0.25) -> Phrase:
        """A person with a name, half of them with one of a great stock of invented names."""
        sex = "f" if self._chance(0.5) else "m"
        if self._chance(title):
            return Phrase(name=self._make_name(lexicon.SURNAME_ENDS), title=True, sex=sex)
        if self._chance(0.5):
            return Phrase(name=self._pick(lexicon.WOMEN if sex == "f" else lexicon.MEN), sex=sex)
        return Phrase(name=self._make_name(lexicon.WOMEN_ENDS if sex == "f" else lexicon.MEN_ENDS), sex=sex)

    def _town(self) -> Phrase:
        return Phrase(name=self._make_name(lexicon.TOWN_ENDS))

    def _owner(self) -> Phrase:
        if self._chance(0.5):
            return self._named(title=0.2)
        noun = self._pick(list_subjects("p"))
        return Phrase(noun, determiner="my" if noun.key in FAMILY else "the")

    def _possessive(self, subject: Phrase | None) -> str:
        """The possessive that points back to the subject."""
        if subject is None or subject.person == 2 or not (subject.pronoun or subject.name or "p" in subject.noun.kinds):
            return "my"
        if subject.person == 1:
            return "our" if subject.plural else "my"
        if subject.plural:
            return "their"
        sex = subject.sex or (subject.noun.fr_gender if subject.noun else "")
        return "her" if sex == "f" else "his"

    def _determine(self, phrase: Phrase, subject: Phrase | None) -> None:
        """Chooses determiner and number of a phrase, which is an object where it has a subject."""
        noun, draw = phrase.noun, self._draw()
        if noun.key == "glass":
            phrase.content = self._pick(list_subjects("d"))
            phrase.determiner = "a"
            if draw < 0.4:
                phrase.determiner, phrase.plural, phrase.count = "count", True, 2 + int(self._draw() * 5)
        elif noun.key == "glasses":
            phrase.plural, phrase.determiner = True, self._possessive(subject) if draw < 0.8 else "the"
        elif noun.kinds in "md":
            phrase.determiner = "some" if draw < 0.65 and subject is not None else "the"
        elif noun.key in FAMILY:
            phrase.determiner = self._possessive(subject)
            phrase.plural = draw < 0.2 and noun.key not in ("mother", "father")
            if draw > 0.85:
                phrase.owner = self._owner()
        elif draw < 0.4:
            phrase.plural = draw < 0.09
        elif draw < 0.66:
            phrase.determiner, phrase.plural = "a", draw < 0.48
        elif draw < 0.76 and noun.kinds in OWNED:
            phrase.determiner = self._possessive(subject)
        elif draw < 0.84:
            phrase.determiner, phrase.plural = "this", draw < 0.79
        elif draw < (0.87 if noun.kinds == "p" else 0.93):
            phrase.determiner, phrase.plural, phrase.count = "count", True, 2 + int(self._draw() * 11)
        elif draw < 0.96:
            phrase.determiner, phrase.plural = "many", True
        elif noun.kinds in OWNED:
            phrase.owner = self._owner()
        elif subject is None:
            phrase.determiner = "every"

    def _noun(self, noun: Noun, subject: Phrase | None = None, *, open_: bool = False) -> Phrase:
        """A noun with a determiner (`the`, where it is open to sight) and perhaps adjectives."""
        phrase = Phrase(noun)
        if open_ or noun.key == "light":
            phrase.determiner = "the"
        else:
            self._determine(phrase, subject)
        if noun.key == "bank=shore":
            phrase.determiner, phrase.plural = "the", False
            phrase.owner = Phrase(nouns()[self._pick(("river", "lake"))])
            return phrase
        if phrase.content is None and self._chance(0.31):
            self._qualify(phrase)
        return phrase

    def _qualify(self, phrase: Phrase) -> None:
        suited = list_qualities(phrase.noun.key)
        if not suited:
            return
        first = self._pick(suited)
        phrase.adjectives = (first,)
        if first.before and first.key not in ("right", "good", "bad") and self._chance(0.2):
            colours = [item for item in suited if item.key in COLOURS]
            if colours:
                phrase.adjectives = (first, self._pick(colours))
        for adjective in phrase.adjectives:
            self._pairs.append((adjective.key, phrase.noun.key))

    def _clock(self) -> tuple[str, str, str]:
        """A time of day."""
        hour, minute = 1 + int(self._draw() * 10), 5 * int(self._draw() * 12)
        english, french, german = (language.spell_clock(hour, minute) for language in _LANGUAGES)
        return "at " + english, "à " + french, "um " + german

    def _companion(self) -> Phrase:
        noun = self._pick(list_subjects("p"))
        if self._chance(0.4):
            return self._named()
        return Phrase(noun, determiner="my" if noun.key in FAMILY else "the", plural=self._chance(0.2))

    def _place(self, verb: str) -> tuple[str, Phrase]:
        draw = self._draw()
        if draw < 0.4 or verb in ("swim", "cook"):
            return "in", self._noun(self._pick(list_sites(verb)), open_=True)
        if draw < 0.7:
            return self._pick(("behind", "front", "beside")), self._noun(self._pick(list_subjects("b")), open_=True)
        if draw < 0.8:
            return "at", self._town()
        if draw < 0.92:
            return self._pick(("on", "beside")), self._noun(nouns()["bank=shore"])
        return "beside", self._noun(nouns()[self._pick(("spring", "lake", "river", "bridge"))], open_=True)

    def _number(self, *units: str) -> tuple[str, str, str]:
        """A number in words with its unit in each language."""
        number = self._pick(NUMBERS)
        english, french, german = (language.spell_number(number) for language in _LANGUAGES)
        return english + units[0], french + units[1], german + units[2]
