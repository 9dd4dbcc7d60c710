"""Composes the phrasebook's clauses: subjects, verbs and all that the verbs ask for."""

from __future__ import annotations

from seq2seq_jax.data import phrasebook_lexicon as lexicon
from seq2seq_jax.data.phrasebook_choices import (
    COLOURS,
    EXCESSIVE,
    MILD,
    OPEN_PLACE,
    OPPOSITES,
    PATTERNS,
    PRONOUNS,
    TIMES,
    group_verbs,
    list_describable,
    list_objects,
    list_predicates,
    list_relatable,
    list_subjects,
    spread,
)
from seq2seq_jax.data.phrasebook_phrases import PhraseComposer
from seq2seq_jax.data.phrasebook_words import AGE, BE, STATE, Adjective, Clause, Noun, Phrase, Verb, nouns, verbs


class ClauseComposer(PhraseComposer):
    """A repeatable source of clauses."""

    def _attach(self, phrase: Phrase, company: bool) -> Phrase:
        """Perhaps adds a relative clause, where company is allowed and the phrase has none yet."""
        simple = phrase.determiner in ("the", "this", "a") and phrase.owner is None and phrase.noun.key != "bank=shore"
        if company and simple and self._chance(0.15):
            phrase.relative = self._relative(phrase)
        return phrase

    def _relative(self, head: Phrase) -> Clause | None:
        """A relative clause about a noun: who sings, that the king lost."""
        noun = head.noun
        if "p" in noun.kinds:
            bare = Phrase(noun, plural=head.plural)
            return self._clause(bare, gap="subject")
        suited = list_relatable(noun.key)
        if not suited:
            return None
        verb = self._pick(suited)
        subject = self._person(nouns_only=0.45)
        self._note_subject(subject, verb)
        self._pairs.append((verb.key, noun.key))
        clause = Clause(subject, verb, tense="q" if verb.past else "p", gap="object")
        clause.object = Phrase(noun, plural=head.plural)
        return self._settle(clause)

    def _person(self, *, nouns_only: float = 0.4, kinds: str = "p", company: bool = False) -> Phrase:
        """A subject: a noun, a name or a pronoun."""
        draw = self._draw()
        if draw < nouns_only or "p" not in kinds:
            return self._attach(self._noun(self._pick(list_subjects(kinds))), company)
        if draw < nouns_only + (1 - nouns_only) * 0.55:
            return self._named()
        return self._pronoun()

    def _pronoun(self) -> Phrase:
        return self._pick(PRONOUNS)

    def _note_subject(self, subject: Phrase, verb: Verb) -> None:
        if subject.noun is not None and not subject.pronoun:
            self._pairs.append((subject.noun.key, verb.key))

    # Clauses

    def _settle(self, clause: Clause) -> Clause:
        """Keeps English unambiguous: `they put` would be of any tense, so it becomes `they will put`."""
        base, _, past = clause.verb.en
        if base == past and clause.tense != "f" and clause.subject.index() != 2 and not clause.negative:
            if not clause.modal and clause.verb.past:
                clause.tense, clause.frequency = "f", None
        return clause

    def _tense(self, clause: Clause, *, tense: str = "", modal: bool = True) -> None:
        """Chooses tense, mood, negation, an adverb of frequency and the time."""
        verb, draw = clause.verb, self._draw()
        if tense:
            clause.tense = tense if tense != "q" or verb.past else "p"
        elif verb.past and draw < 0.48:
            clause.tense = "q"
        elif draw < 0.6 and verb.key != "know=person":
            clause.tense = "f"
        elif modal and draw < 0.72 and verb.past:
            clause.modal = self._pick(("can", "must", "want"))
        if clause.tense == "q" and not verb.past:
            clause.tense = "p"
        draw = self._draw()
        if draw < 0.15 and clause.modal != "must":
            clause.negative = True
        elif draw < 0.33 and clause.tense == "p" and not clause.modal and verb.past:
            clause.frequency = self._pick(lexicon.FREQUENCIES)

    def _time(self, clause: Clause, share: float = 0.36) -> None:
        """Perhaps says when, in front or behind."""
        if clause.modal or not clause.verb.past or not self._chance(share):
            return
        if clause.frequency is None and not clause.negative and self._chance(0.3):
            clause.time = self._clock()
            return
        suited = TIMES[clause.tense]
        if clause.tense == "p" and clause.frequency is not None:
            return
        clause.time = self._pick(suited)
        clause.time_first = clause.gap == "" and self._chance(0.45)

    def _predicate(
        self, subject: Phrase, said: frozenset[str]
    ) -> tuple[Adjective, tuple[str, ...] | None, Phrase | None]:
        """An adjective for a subject that was not said of it yet, perhaps with a degree or a comparison."""
        person = subject.noun is None or "p" in subject.noun.kinds
        suited = list_predicates("doctor" if person else subject.noun.key)
        said = said.union(adjective.key for adjective in subject.adjectives)
        said = said.union(*(pair for pair in OPPOSITES if pair & said), COLOURS if said & COLOURS else ())
        suited = tuple(item for item in suited if item.key not in said) or suited
        adjective = self._pick(suited)
        if subject.noun is not None:
            self._pairs.append((adjective.key, subject.noun.key))
        draw = self._draw()
        if adjective.comparative and draw < 0.4:
            if person:
                return adjective, None, self._person(nouns_only=0.5) if draw < 0.2 else self._named()
            noun = self._pick(list_subjects(subject.noun.kinds[0])) if subject.noun.kinds != "w" else subject.noun
            return adjective, None, self._noun(noun)
        degrees = [lexicon.DEGREES[0]]
        if adjective.key in EXCESSIVE and not person:
            degrees.append(lexicon.DEGREES[1])
        if adjective.key in MILD:
            degrees.append(lexicon.DEGREES[2])
        return adjective, self._pick(degrees) if draw > 0.6 and adjective.key not in COLOURS else None, None

    def _be(self, subject: Phrase, *, tense: str = "", said: frozenset[str] = frozenset()) -> Clause:
        """A clause with to be: is tired, is older than Anna, is hungry, is thirty years old; nothing `said` before."""
        person = subject.noun is None or "p" in subject.noun.kinds
        draw = self._draw()
        tense = tense or ("p" if draw < 0.65 else "q")
        draw = self._draw()
        if person and draw < 0.3:
            return Clause(subject, STATE, tense, negative=self._chance(0.2), extra=self._pick(lexicon.STATES))
        if person and draw < 0.48:
            extra = self._number(" years old", " ans", " Jahre alt")
            return Clause(subject, AGE, tense, extra=extra)
        clause = Clause(subject, BE, tense, predicate=self._predicate(subject, said))
        clause.negative = clause.predicate[1] is None and self._chance(0.15)
        return clause

    def _clause(
        self, subject: Phrase | None = None, *, tense: str = "", gap: str = "", company: bool = False
    ) -> Clause:
        """A clause with a subject, or about a given one."""
        draw = self._draw()
        if subject is None and draw < 0.07:
            return self._price()
        if subject is not None and (subject.noun is not None and "p" not in subject.noun.kinds):
            return self._be(subject, tense=tense) if gap == "" else self._act(subject, tense, gap)
        if draw < 0.24 and gap == "":
            thing = subject is None and self._chance(0.5)
            about = subject or (self._thing() if thing else self._person(company=company))
            return self._be(about, tense=tense)
        return self._act(subject, tense, gap, company=company)

    def _thing(self) -> Phrase:
        return self._noun(self._pick(list_describable()))

    def _price(self) -> Clause:
        """What something costs."""
        verb = verbs()["cost"]
        subject = self._noun(self._pick(list_subjects(verb.subjects)))
        extra = self._number(" euros", " euros", " Euro")
        self._note_subject(subject, verb)
        return Clause(subject, verb, tense="f" if self._chance(0.15) else "p", extra=extra)

    def _act(self, subject: Phrase | None, tense: str, gap: str, *, company: bool = False) -> Clause:
        """A clause with a verb that is not to be."""
        verb = self._pick(group_verbs()[spread(PATTERNS, self._draw())])
        given = subject is not None
        if subject is None:
            kinds = verb.subjects
            if len(kinds) > 1 and self._chance(0.5):
                kinds = kinds[1]
            subject = self._person(kinds=kinds, company=company)
        elif "p" not in verb.subjects:
            verb = verbs()["wait"]
        if not given or subject.noun is not None:
            self._note_subject(subject, verb)
        clause = Clause(subject, verb, gap=gap)
        human = subject.noun is None or "p" in subject.noun.kinds
        self._tense(clause, tense=tense, modal=human)
        self._complete(clause, company and not given and subject.relative is None)
        self._settle(clause)
        if not tense or self._chance(0.3):
            self._time(clause)
        return clause

    def _complete(self, clause: Clause, company: bool) -> None:
        """Adds what the verb asks for: objects, receivers, places."""
        verb, objects = clause.verb, clause.verb.objects
        if objects == "to-place":
            clause.places = (("to", self._noun(self._pick(list_subjects("l")), open_=True)),)
        elif objects in ("to-town", "in-town"):
            clause.places = (("toward" if objects == "to-town" else "at", self._town()),)
        elif objects == "with-bat":
            self._pairs.append((verb.key, "ball"))
            clause.object = Phrase(nouns()["ball"])
            clause.places = (("with", Phrase(nouns()["bat=tool"], determiner="a" if self._chance(0.5) else "the")),)
        elif objects in ("music", "sport"):
            clause.extra = self._pick(lexicon.MUSIC if objects == "music" else lexicon.SPORTS)
        elif objects:
            self._add_object(clause, company)
        if verb.key in OPEN_PLACE and self._chance(0.2):
            clause.places = (self._place(verb.key),)
        elif not verb.objects and verb.subjects[0] == "p" and self._chance(0.15):
            clause.places = (("with", self._companion()),)

    def _add_object(self, clause: Clause, company: bool) -> None:
        verb = clause.verb
        suited = list_objects(verb.key)
        noun = self._special(verb) or self._pick(suited)
        person = "p" in noun.kinds
        if person and (noun is clause.subject.noun or (verb.key != "need" and self._chance(0.35))):
            clause.object = self._named()
            if verb.key != "need" and self._chance(0.5):
                clause.object = self._another(self._pronoun(), clause.subject)
        else:
            clause.object = self._attach(self._noun(noun, clause.subject), company)
            self._pairs.append((verb.key, noun.key))
            if clause.negative and clause.object.determiner in ("count", "many"):
                clause.object.determiner = "the"
        if verb.objects.startswith("to:"):
            clause.receiver = self._another(self._person(nouns_only=0.45), clause.subject)
        elif verb.objects.startswith("on:"):
            clause.places = (("on", self._noun(self._pick(list_subjects("s")), open_=True)),)

    def _another(self, person: Phrase, subject: Phrase) -> Phrase:
        """A person who is not the subject: the same noun or pronoun gives way to a name."""
        same = person.index() == subject.index() if person.pronoun else person.noun is subject.noun
        return self._named() if same and not person.name else person

    def _special(self, verb: Verb) -> Noun | None:
        """Now and then an ambiguous word, which its company makes clear: a glass of water, my glasses."""
        if verb.key == "drink" and self._chance(0.5):
            return nouns()["glass"]
        if verb.key in ("wear", "find", "lose", "look>for", "forget", "need") and self._chance(0.1):
            return nouns()["glasses"]
        if verb.key in ("see", "find") and self._chance(0.06):
            return nouns()["bank=shore"]
        if verb.key in ("turn<on", "turn<off") and self._chance(0.4):
            return nouns()["light"]
        return None
