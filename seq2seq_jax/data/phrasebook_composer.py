"""Composes the phrasebook's sentences as meaning, and notes which pairs of words each of them joins."""

from __future__ import annotations

from seq2seq_jax.data import phrasebook_lexicon as lexicon
from seq2seq_jax.data.phrasebook_choices import (
    COLOURS,
    FINDING,
    HANDING,
    REASONS,
    REASONS_ANY,
    TIMES,
    UNSEXED,
    group_verbs,
    list_objects,
    list_plain_transitives,
    list_subjects,
    pronoun_for,
)
from seq2seq_jax.data.phrasebook_clauses import ClauseComposer
from seq2seq_jax.data.phrasebook_words import BE, STATE, Clause, Phrase, Sentence, adjectives, verbs


class Composer(ClauseComposer):
    """An endless, repeatable source of sentences."""

    def __init__(self, seed: int, *, subordination: float) -> None:
        """Starts from a seed; `subordination` is the share of sentences with more than one clause."""
        super().__init__(seed)
        self._subordination = subordination

    def compose(self) -> tuple[Sentence, list[tuple[str, str]]]:
        """One sentence, and the pairs of words that it joins."""
        self._pairs = []
        if self._chance(self._subordination):
            sentence = Sentence(self._pick(_COMPOUND)(self))
        elif self._chance(0.2):
            sentence = self._question()
        elif self._chance(0.1):
            sentence = self._address()
        else:
            sentence = Sentence(self._clause(company=True))
        return sentence, self._pairs

    # Sentences

    def _question(self) -> Sentence:
        question = self._pick(("yes", "yes", "where", "why", "when", "who", "what"))
        if question == "who":
            clause = self._clause(Phrase(pronoun=True, sex="m"), gap="subject")
        elif question == "what":
            verb = self._pick(list_plain_transitives())
            subject = self._person()
            self._note_subject(subject, verb)
            clause = Clause(subject, verb, gap="object")
            self._tense(clause, modal=True)
            clause.negative = False
        else:
            clause = self._act(None, "", "")
        if question in ("where", "when", "why") and clause.verb.objects in ("to-place", "to-town", "in-town"):
            question = "where" if clause.verb.objects == "in-town" else "whither"
            clause.places = ()
        if question in ("when", "where", "whither"):
            clause.negative, clause.frequency = False, None
            clause.time = None if question == "when" else clause.time
            clause.places = clause.places if clause.verb.key in ("put=lay", "hit") or question == "when" else ()
            if not clause.verb.past and question == "when" or clause.verb.key == "put=lay" and question == "where":
                question = "why"
        if question == "yes":
            clause.negative = False
        clause.time_first = False
        return Sentence(clause, question)

    def _address(self) -> Sentence:
        """A sentence said to someone, whose name or title decides between tu and vous, du and Sie."""
        person = self._named(title=0.5)
        polite = person.title
        you = Phrase(pronoun=True, person=2, sex=person.sex, polite=polite, plural=polite)
        if self._chance(0.3):
            clause = self._be(you)
        else:
            clause = self._act(you, "", "")
        clause.time_first = False
        return Sentence(clause, "yes" if self._chance(0.5) else "", person)

    def _because(self) -> Clause:
        """The boy eats an apple because he is hungry."""
        clause = self._price() if self._chance(0.12) else self._act(None, "", "")
        tense = clause.tense if clause.tense != "f" else "p"
        subject = pronoun_for(clause.subject)
        if subject.noun is None:
            reasons = REASONS.get(clause.verb.key, REASONS_ANY).split()
            said = _say(clause)
            reason = self._reason(subject, tense, [reason for reason in reasons if reason not in said] or ["tired"])
        else:
            reason = self._be(subject, tense=tense, said=_say(clause))
            reason.negative = False
        if clause.subject.noun is not None and clause.subject.noun.key in UNSEXED and not clause.subject.plural:
            reason = self._clause()
        clause.after = ("because", reason)
        return clause

    def _reason(self, subject: Phrase, tense: str, reasons: list[str]) -> Clause:
        """A state or a quality of a person, for because."""
        key = self._pick(reasons)
        state = next((state for state in lexicon.STATES if state[0] == key), None)
        if state is not None:
            return Clause(subject, STATE, tense, extra=state)
        degree = lexicon.DEGREES[0] if self._chance(0.4) else None
        return Clause(subject, BE, tense, predicate=(adjectives()[key], degree, None))

    def _when(self) -> Clause:
        """When the train arrived, the king was asleep; in the past (als) or the present (wenn)."""
        tense = "q" if self._chance(0.55) else "p"
        inner, outer = self._act(None, tense, ""), self._clause(tense=tense)
        return self._subordinate("when_past" if tense == "q" else "when", inner, outer, tense)

    def _while(self) -> Clause:
        return self._subordinate("while", self._act(None, "p", ""), self._act(None, "p", ""), "p")

    def _if(self) -> Clause:
        """If the boy finds the key, he will open the door."""
        return self._subordinate("if", self._act(None, "p", ""), self._act(None, "f", ""), "p")

    def _subordinate(self, conjunction: str, inner: Clause, outer: Clause, tense: str) -> Clause:
        inner.time_first = outer.time_first = False
        inner.time = inner.frequency = None
        inner.negative = inner.negative and conjunction == "if"
        if inner.tense != tense or outer.tense != ("f" if conjunction == "if" else tense):
            return self._join(inner, outer)
        if self._chance(0.5):
            outer.first = (conjunction, inner)
        else:
            outer.after = (conjunction, inner)
        return outer

    def _join(self, left: Clause, right: Clause) -> Clause:
        right.time_first = False
        left.after = ("but" if self._chance(0.4) else "and", right)
        return left

    def _coordinate(self) -> Clause:
        return self._join(self._clause(), self._clause())

    def _contrast(self) -> Clause:
        """The lamp is beautiful, but it is too expensive: the pronoun has the gender of its noun."""
        subject = self._thing()
        left = self._be(subject)
        left.after = ("but", self._be(pronoun_for(subject), tense=left.tense, said=_say(left)))
        return left

    def _take_up(self) -> Clause:
        """Anna found the key and put it on the table: a pronoun for an object."""
        first = verbs()[self._pick(FINDING)]
        noun = self._pick(list_objects(first.key))
        suited = tuple(key for key in HANDING if noun in list_objects(key) and key != first.key)
        if not suited or noun.kinds not in ("o", "c", "r"):
            return self._contrast()
        second = verbs()[self._pick(suited)]
        subject = self._person()
        self._note_subject(subject, first)
        self._note_subject(subject, second)
        tense = "q" if first.past and self._chance(0.7) else "f"
        left = Clause(subject, first, tense, object=self._noun(noun, subject))
        self._pairs += [(first.key, noun.key), (second.key, noun.key)]
        taken = Phrase(pronoun=True, noun=noun, plural=left.object.plural)
        right = Clause(subject, second, tense, object=taken, shared=True)
        if second.objects.startswith("to:"):
            right.receiver = self._named() if self._chance(0.5) else self._noun(self._pick(list_subjects("p")), subject)
        elif second.objects.startswith("on:"):
            right.places = (("on", self._noun(self._pick(list_subjects("s")), open_=True)),)
        base, _, past = second.en
        if tense == "q" and base == past and subject.index() != 2:
            left.tense = right.tense = "f"
        if self._chance(0.3):
            left.time = self._pick(TIMES[left.tense])
            left.time_first = True
        left.after = ("and", right)
        return left

    def _report(self) -> Clause:
        """Paul thinks that ..., we do not know why ...: clauses inside clauses."""
        subject = self._person(nouns_only=0.35)
        verb = self._pick(group_verbs()["that"])
        self._note_subject(subject, verb)
        clause = Clause(subject, verb)
        conjunction = "that"
        if verb.key == "know=fact" and self._chance(0.65):
            conjunction, clause.negative = self._pick(("whether", "why")), True
        inner = self._clause()
        inner.time_first = False
        clause.after = (conjunction, inner)
        return clause


def _say(clause: Clause) -> frozenset[str]:
    """What a clause says its subject is; colours count as one, so that nothing is red and then blue."""
    words = [adjective.key for adjective in clause.subject.adjectives]
    words += [clause.predicate[0].key] if clause.predicate else []
    words += [clause.extra[0]] if clause.extra else []
    return frozenset(words) | COLOURS


_COMPOUND = (
    Composer._because, Composer._because, Composer._when, Composer._while, Composer._if, Composer._coordinate,
    Composer._coordinate, Composer._contrast, Composer._take_up, Composer._take_up, Composer._report, Composer._report,
)  # fmt: skip
