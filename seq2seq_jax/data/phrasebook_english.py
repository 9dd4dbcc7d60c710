"""Renders the phrasebook's clauses as English: do-support, particles, possessives, a and an."""

from __future__ import annotations

from seq2seq_jax.data.phrasebook_lexicon import EN_NUMBERS, EN_TENS, PREPOSITIONS
from seq2seq_jax.data.phrasebook_words import CONJUNCTIONS, QUESTIONS, Clause, Phrase, Sentence, Verb

_SUBJECTS = ("I", "you", "he", "we", "you", "they")
_OBJECTS = ("me", "you", "him", "us", "you", "them")


def spell_number(number: int) -> str:
    """A number under a hundred in words: 21 is twenty-one."""
    if number < 20:
        return EN_NUMBERS[number]
    tens, ones = divmod(number, 10)
    return EN_TENS[tens] + (f"-{EN_NUMBERS[ones]}" if ones else "")


def spell_clock(hour: int, minute: int) -> str:
    """A time on the twelve-hour clock, minutes in fives: (3, 25) is twenty-five past three."""
    after = EN_NUMBERS[hour % 12 + 1]
    if minute == 0:
        return f"{EN_NUMBERS[hour]} o'clock"
    if minute == 30:
        return f"half past {EN_NUMBERS[hour]}"
    distance = min(minute, 60 - minute)
    words = "a quarter" if distance == 15 else spell_number(distance)
    return f"{words} past {EN_NUMBERS[hour]}" if minute < 30 else f"{words} to {after}"


def name_person(phrase: Phrase) -> str:
    """A name with its title: Mr Beldamon."""
    if phrase.title:
        return ("Mr " if phrase.sex == "m" else "Mrs ") + phrase.name
    return phrase.name


def _pronoun(phrase: Phrase, subject: bool) -> str:
    if phrase.person == 3 and not phrase.plural:
        if not phrase.sex:
            return "it"
        if phrase.sex == "f":
            return "she" if subject else "her"
    return (_SUBJECTS if subject else _OBJECTS)[phrase.index()]


def _determine(phrase: Phrase, negated: bool) -> list[str]:
    kind = phrase.determiner
    if phrase.owner is not None and not phrase.noun.key.endswith("=shore"):
        words = render_phrase(phrase.owner)
        return [*words[:-1], words[-1] + "'s"]
    if kind == "a":
        return [] if phrase.plural else ["a"]
    if kind == "some":
        return ["any" if negated else "some"]
    if kind == "this":
        return ["these" if phrase.plural else "this"]
    if kind == "count":
        return [spell_number(phrase.count)]
    return [kind]


def render_phrase(phrase: Phrase, subject: bool = False, negated: bool = False) -> list[str]:
    """A noun phrase as words; `negated` is for the object of a negated verb (any bread)."""
    if phrase.pronoun:
        return [_pronoun(phrase, subject)]
    if phrase.name:
        words = [name_person(phrase)]
    else:
        words = _determine(phrase, negated)
        words += [adjective.en for adjective in phrase.adjectives]
        words.append(phrase.noun.en[phrase.plural])
        if words[0] == "a" and words[1][0] in "aeiou":
            words[0] = "an"
        if phrase.content is not None:
            words += ["of", phrase.content.en[0]]
        if phrase.owner is not None and phrase.noun.key.endswith("=shore"):
            words += ["of", *render_phrase(phrase.owner)]
    if phrase.relative is not None:
        person = phrase.relative.gap == "subject" and (phrase.name or "p" in phrase.noun.kinds)
        words.append("who" if person else "that")
        words += render_clause(phrase.relative)
    return words


def _be(verb: Verb, index: int, tense: str) -> str:
    if tense == "q":
        return "was" if index in (0, 2) else "were"
    return ("am", "are", "is", "are", "are", "are")[index]


def _verb_words(clause: Clause) -> tuple[str, list[str]]:
    """The auxiliary that precedes `not` and the subject of a question (or ""), and the other verb words."""
    verb, index, tense = clause.verb, clause.subject.index(), clause.tense
    base = verb.en[0]
    if clause.modal in ("can", "must"):
        return clause.modal, [base]
    if tense == "f":
        return "will", [base]
    if base == "be":
        return _be(verb, index, tense), []
    third = index == 2
    if clause.modal == "want":
        return ("does" if third else "do"), ["want", "to", base]
    return "did" if tense == "q" else "does" if third else "do", [base]


def _join_auxiliary(clause: Clause, main: list[str]) -> list[str]:
    """The main verb of a plain statement, which takes the ending that do would have: reads, read, wants to read."""
    third = clause.subject.index() == 2
    if clause.modal == "want":
        return ["wants" if third else "want", *main[1:]]
    return [clause.verb.en[2 if clause.tense == "q" else 1 if third else 0]]


def _complements(clause: Clause) -> list[str]:
    verb, words = clause.verb, []
    particle = [verb.en_particle] if verb.en_particle else []
    # One tells him a story, but explains a story to him.
    short = clause.receiver is not None and clause.receiver.pronoun and verb.en[0] != "explain"
    item = clause.object if clause.gap != "object" else None
    if item is not None and item.pronoun and verb.particle_moves:
        words += render_phrase(item) + particle
    else:
        words += particle
        if short:
            words += render_phrase(clause.receiver)
        if item is not None:
            never = clause.frequency is not None and clause.frequency[0] == "never"
            words += render_phrase(item, negated=clause.negative or never)
    if clause.receiver is not None and not short:
        words += ["to", *render_phrase(clause.receiver)]
    if clause.predicate is not None:
        adjective, degree, other = clause.predicate
        words += [degree[0]] if degree else []
        words += [adjective.comparative[0], "than", *render_phrase(other)] if other else [adjective.en]
    if clause.extra is not None:
        words.append(clause.extra[0])
    for preposition, place in clause.places:
        words += [PREPOSITIONS[preposition][0], *render_phrase(place)]
    if clause.time is not None and not clause.time_first:
        words.append(clause.time[0])
    return words


def render_clause(clause: Clause, ask: bool = False) -> list[str]:
    """A clause as words, in the order of a statement or, with `ask`, of a question."""
    words: list[str] = []
    if clause.first is not None:
        words += [CONJUNCTIONS[clause.first[0]][0], *render_clause(clause.first[1]), ","]
    if clause.time is not None and clause.time_first:
        words.append(clause.time[0])
    subject = [] if clause.gap == "subject" or clause.shared else render_phrase(clause.subject, subject=True)
    auxiliary, main = _verb_words(clause)
    negation = ["not"] if clause.negative else []
    if auxiliary == "can" and negation and not ask:
        auxiliary, negation = "cannot", []
    frequency = [clause.frequency[0]] if clause.frequency else []
    if ask:
        words += [auxiliary, *subject, *negation, *frequency, *main]
    elif auxiliary in ("do", "does", "did") and not negation:
        words += [*subject, *frequency, *_join_auxiliary(clause, main)]
    else:
        words += [*subject, auxiliary, *negation, *frequency, *main]
    words += _complements(clause)
    if clause.after is not None:
        words += [CONJUNCTIONS[clause.after[0]][0], *render_clause(clause.after[1])]
    return words


def render(sentence: Sentence) -> str:
    """A whole English sentence."""
    words = []
    if sentence.address is not None:
        words += [name_person(sentence.address), ","]
    question = sentence.question
    if question and question != "yes":
        words.append(QUESTIONS[question][0])
    words += render_clause(sentence.clause, ask=bool(question) and question != "who")
    text = " ".join(words).replace(" ,", ",")
    return text[0].upper() + text[1:] + ("?" if question else ".")
