"""Renders the phrasebook's clauses as French: agreement, clitics, elision, contraction, ne ... pas, être and avoir."""

from __future__ import annotations

from seq2seq_jax.data.phrasebook_lexicon import FR_NUMBERS, FR_TENS, PREPOSITIONS
from seq2seq_jax.data.phrasebook_words import CONJUNCTIONS, QUESTIONS, Clause, Phrase, Sentence

_SUBJECTS = ("je", "tu", "il", "nous", "vous", "ils")
_DIRECT = ("me", "te", "le", "nous", "vous", "les")
_INDIRECT = ("me", "te", "lui", "nous", "vous", "leur")
_REFLEXIVE = ("me", "te", "se", "nous", "vous", "se")
_STRESSED = ("moi", "toi", "lui", "nous", "vous", "eux")
_ETRE = ("suis", "es", "est", "sommes", "êtes", "sont")
_AVOIR = ("ai", "as", "a", "avons", "avez", "ont")
_IMPERFECT = {"être": "ét", "avoir": "av"}
_IMPERFECT_ENDS = ("ais", "ais", "ait", "ions", "iez", "aient")
_FUTURE_ENDS = ("ai", "as", "a", "ons", "ez", "ont")
_MODALS = {
    "can": ("peux", "peux", "peut", "pouvons", "pouvez", "peuvent"),
    "must": ("dois", "dois", "doit", "devons", "devez", "doivent"),
    "want": ("veux", "veux", "veut", "voulons", "voulez", "veulent"),
}
_ELIDED = {"je", "me", "te", "se", "le", "la", "de", "ne", "que"}
_CONTRACTED = {("à", "le"): "au", ("à", "les"): "aux", ("de", "le"): "du", ("de", "les"): "des"}
_VOWELS = frozenset("aàâeéèêiîoôuœhAÉEIOU")  # every h of the phrasebook is mute
_FULL = ("huit", "onze")  # and these begin like consonants


def begins_with_vowel(word: str) -> bool:
    """Whether a French word makes the one before it elide: l'ami, l'hôtel, but le onze."""
    return word[0] in _VOWELS and not word.startswith(_FULL)


def join_words(words: list[str]) -> str:
    """Joins words, eliding (le + ami, l'ami) and contracting (de + le, du; si + il, s'il)."""
    parts: list[str] = []
    last = len(words) - 1
    skip = False
    for place, word in enumerate(words):
        if skip:
            skip = False
            continue
        following = words[place + 1] if place < last else ""
        if word in _ELIDED and following and begins_with_vowel(following):
            parts.append(word[:-1] + "'")
            continue
        if word == "si" and following in ("il", "ils"):
            parts.append("s'")
            continue
        if word in ("à", "de") and following in ("le", "les"):
            third = words[place + 2]
            if following == "les" or not begins_with_vowel(third):
                word = _CONTRACTED[word, following]
                skip = True
        parts.append(word)
        parts.append(" ")
    return "".join(parts).replace(" ,", ",").strip()


def spell_number(number: int) -> str:
    """A number from 2 to 99 in words: 71 is soixante et onze, 80 quatre-vingts."""
    if number < 20:
        return FR_NUMBERS[number]
    tens, ones = divmod(number, 10)
    if tens in (7, 9):
        ones += 10
    if number == 80:
        return "quatre-vingts"
    if ones == 0:
        return FR_TENS[tens]
    if ones in (1, 11) and tens < 8:
        return f"{FR_TENS[tens]} et {FR_NUMBERS[ones]}"
    return f"{FR_TENS[tens]}-{FR_NUMBERS[ones]}"


def spell_clock(hour: int, minute: int) -> str:
    """A time on the twelve-hour clock: (3, 35) is quatre heures moins vingt-cinq."""
    if minute > 30:
        hour = hour % 12 + 1
    text = "une heure" if hour == 1 else f"{FR_NUMBERS[hour]} heures"
    if minute == 0:
        return text
    if minute in (15, 30):
        return text + (" et quart" if minute == 15 else " et demie")
    if minute == 45:
        return text + " moins le quart"
    return f"{text} {spell_number(minute)}" if minute < 30 else f"{text} moins {spell_number(60 - minute)}"


def _feminine(phrase: Phrase) -> bool:
    return (phrase.noun.fr_gender if phrase.noun else phrase.sex) == "f"


def _agree(forms: tuple[str, ...], phrase: Phrase) -> str:
    """The form of an adjective (m, f, m plural, f plural) for its noun; the polite vous is one person."""
    return forms[_feminine(phrase) + 2 * (phrase.plural and not phrase.polite)]


def _agree_participle(participle: str, phrase: Phrase) -> str:
    form = participle + ("e" if _feminine(phrase) else "")
    return form + ("s" if phrase.plural and not phrase.polite and not form.endswith("s") else "")


def _determine(phrase: Phrase, following: str, before: bool, negated: bool, after_de: bool) -> list[str]:
    """The determiner; `before` says that an adjective precedes the noun, `after_de` that the word de does."""
    kind, plural = phrase.determiner, phrase.plural
    feminine = _feminine(phrase)
    if phrase.owner is not None or kind == "the":
        return ["les" if plural else "la" if feminine else "le"]
    if kind in ("a", "some"):
        if after_de and (plural or kind == "some"):
            return []
        if negated:
            return ["de"]
        if kind == "some":
            return ["de", "la" if feminine else "le"]
        return [("de" if before else "des") if plural else "une" if feminine else "un"]
    if kind == "this":
        masculine = "cet" if begins_with_vowel(following) else "ce"
        return ["ces" if plural else "cette" if feminine else masculine]
    if kind in ("our", "their"):
        return [("nos" if plural else "notre") if kind == "our" else "leurs" if plural else "leur"]
    if kind in ("my", "his", "her"):
        stem = "m" if kind == "my" else "s"
        return [stem + ("es" if plural else "a" if feminine and not begins_with_vowel(following) else "on")]
    if kind == "count":
        return [spell_number(phrase.count)]
    return ["beaucoup", "de"] if kind == "many" else ["chaque"]


def name_person(phrase: Phrase, address: bool = False) -> str:
    """A name with its title, which is written out only when the person is spoken to."""
    if not phrase.title:
        return phrase.name
    if address:
        return ("Monsieur " if phrase.sex == "m" else "Madame ") + phrase.name
    return ("M. " if phrase.sex == "m" else "Mme ") + phrase.name


def render_phrase(phrase: Phrase, negated: bool = False, after_de: bool = False) -> list[str]:
    """A noun phrase as words, before elision; `negated` is for the object of a negated verb (pas de pain)."""
    if phrase.pronoun:
        if phrase.person == 3 and _feminine(phrase):
            return ["elles" if phrase.plural else "elle"]
        return [_STRESSED[phrase.index()]]
    if phrase.name:
        return [name_person(phrase), *_relative(phrase)]
    noun = phrase.noun.fr[phrase.plural]
    front, back = [], []
    for adjective in phrase.adjectives:
        form = _agree(adjective.fr, phrase)
        if not adjective.before:
            back.append(form)
        elif not phrase.plural and not _feminine(phrase) and begins_with_vowel(noun):
            front.append(adjective.fr[4])
        else:
            front.append(form)
    core = [*front, noun, *back]
    words = _determine(phrase, core[0], bool(front), negated, after_de) + core
    if phrase.content is not None:
        words += ["de", phrase.content.fr[0]]
    if phrase.owner is not None:
        words += ["de", *render_phrase(phrase.owner)]
    return words + _relative(phrase)


def _relative(phrase: Phrase) -> list[str]:
    if phrase.relative is None:
        return []
    return ["qui" if phrase.relative.gap == "subject" else "que", *render_clause(phrase.relative)]


def _clitics(clause: Clause) -> list[str]:
    """The pronouns before the verb: reflexive, direct (le) or indirect (lui)."""
    words = [_REFLEXIVE[clause.subject.index()]] if clause.verb.fr_reflexive else []
    item = clause.object
    if clause.receiver is not None and clause.receiver.pronoun:
        words.append(_INDIRECT[clause.receiver.index()])
    elif item is not None and item.pronoun and clause.gap != "object":
        if clause.verb.fr_preposition:
            words.append(_INDIRECT[item.index()])
        else:
            feminine = item.person == 3 and not item.plural and _feminine(item)
            words.append("la" if feminine else _DIRECT[item.index()])
    return words


def _participle(clause: Clause) -> str:
    """The past participle, which agrees with the subject (être) or with a direct object that stands before it."""
    verb, item = clause.verb, clause.object
    if verb.fr_be or verb.fr_reflexive:
        return _agree_participle(verb.fr_participle, clause.subject)
    if item is not None and not verb.fr_preposition and (item.pronoun or clause.gap == "object"):
        return _agree_participle(verb.fr_participle, item)
    return verb.fr_participle


def _verb_words(clause: Clause) -> list[str]:
    """The verb with its clitics, auxiliaries and negation."""
    verb, index, tense = clause.verb, clause.subject.index(), clause.tense
    never = clause.frequency is not None and clause.frequency[1] == "jamais"
    negation = ["pas"] if clause.negative else ["jamais"] if never else []
    adverb = [clause.frequency[1]] if clause.frequency is not None and not never else []
    start = ["ne"] if negation else []
    clitics = _clitics(clause)
    if clause.modal:
        return [*start, _MODALS[clause.modal][index], *negation, *adverb, *clitics, verb.fr]
    if tense == "q" and verb.key not in ("be", "state", "age"):
        auxiliary = (_ETRE if verb.fr_be or verb.fr_reflexive else _AVOIR)[index]
        return [*start, *clitics, auxiliary, *negation, *adverb, _participle(clause)]
    if tense == "q":
        finite = _IMPERFECT[verb.fr] + _IMPERFECT_ENDS[index]
    elif tense == "f":
        finite = verb.fr_future + _FUTURE_ENDS[index]
    else:
        finite = verb.fr_present[index]
    return [*start, *clitics, finite, *negation, *adverb]


def _complements(clause: Clause) -> list[str]:
    verb, item = clause.verb, clause.object
    words = [verb.fr_tail] if verb.fr_tail else []
    never = clause.frequency is not None and clause.frequency[1] == "jamais"
    if item is not None and not item.pronoun and clause.gap != "object":
        preposition = verb.fr_preposition
        words += [preposition] if preposition else []
        negated = (clause.negative or never) and not preposition
        words += render_phrase(item, negated=negated, after_de=preposition == "de")
    if clause.receiver is not None and not clause.receiver.pronoun:
        words += ["à", *render_phrase(clause.receiver)]
    if clause.predicate is not None:
        adjective, degree, other = clause.predicate
        words += [degree[1]] if degree else []
        form = _agree(adjective.fr, clause.subject)
        words += ["plus", form, "que", *render_phrase(other)] if other else [form]
    if clause.extra is not None:
        words.append(clause.extra[1])
    for preposition, place in clause.places:
        words += [*PREPOSITIONS[preposition][1].split(), *render_phrase(place)]
    if clause.time is not None and not clause.time_first:
        words.append(clause.time[1])
    return words


def _subject(clause: Clause) -> list[str]:
    if clause.gap == "subject" or clause.shared:
        return []
    phrase = clause.subject
    if not phrase.pronoun:
        return render_phrase(phrase)
    if phrase.person == 3 and _feminine(phrase):
        return ["elles" if phrase.plural else "elle"]
    return [_SUBJECTS[phrase.index()]]


def render_clause(clause: Clause) -> list[str]:
    """A clause as words, before elision."""
    words: list[str] = []
    if clause.first is not None:
        words += [*CONJUNCTIONS[clause.first[0]][1].split(), *render_clause(clause.first[1]), ","]
    if clause.time is not None and clause.time_first:
        words += [clause.time[1], ","]
    words += _subject(clause) + _verb_words(clause) + _complements(clause)
    if clause.after is not None:
        words += [*CONJUNCTIONS[clause.after[0]][1].split(), *render_clause(clause.after[1])]
    return words


def render(sentence: Sentence) -> str:
    """A whole French sentence."""
    words = [name_person(sentence.address, address=True), ","] if sentence.address is not None else []
    question = sentence.question
    if question == "what":
        words += ["qu'est-ce", "que"]
    elif question and question != "yes":
        words.append(QUESTIONS[question][1])
    if question and question not in ("who", "what"):
        words += ["est-ce", "que"]
    text = join_words(words + render_clause(sentence.clause))
    return text[0].upper() + text[1:] + (" ?" if question else ".")
