"""Renders the phrasebook's clauses as German: cases, verb second and verb last, separable verbs, the perfect."""

from __future__ import annotations

from seq2seq_jax.data.phrasebook_lexicon import DE_NUMBERS, DE_TENS, PREPOSITIONS
from seq2seq_jax.data.phrasebook_words import CONJUNCTIONS, QUESTIONS, Clause, Phrase, Sentence

# Cases are n, a, d, g; a column is m, f, n or plural.
_THE = {"n": ("der", "die", "das", "die"), "a": ("den", "die", "das", "die"),
        "d": ("dem", "der", "dem", "den"), "g": ("des", "der", "des", "der")}  # fmt: skip
_DER_ENDS = {"n": ("er", "e", "es", "e"), "a": ("en", "e", "es", "e"),
             "d": ("em", "er", "em", "en"), "g": ("es", "er", "es", "er")}  # fmt: skip
_EIN_ENDS = {**_DER_ENDS, "n": ("", "e", "", "e"), "a": ("en", "e", "", "e")}
_WEAK = {"n": ("e", "e", "e", "en"), "a": ("en", "e", "e", "en"), "d": ("en",) * 4, "g": ("en",) * 4}
_MIXED = {**_WEAK, "n": ("er", "e", "es", "en"), "a": ("en", "e", "es", "en")}
_STRONG = {**_DER_ENDS, "g": ("en", "er", "en", "er")}
_EIN_WORDS = {"a": "ein", "my": "mein", "his": "sein", "her": "ihr", "our": "unser", "their": "ihr"}

_PRONOUNS = {
    "n": ("ich", "du", "er", "wir", "ihr", "sie"),
    "a": ("mich", "dich", "ihn", "uns", "euch", "sie"),
    "d": ("mir", "dir", "ihm", "uns", "euch", "ihnen"),
}
_THIRD = {"m": {"n": "er", "a": "ihn", "d": "ihm"}, "f": {"n": "sie", "a": "sie", "d": "ihr"},
          "n": {"n": "es", "a": "es", "d": "ihm"}}  # fmt: skip
_POLITE = {"n": "Sie", "a": "Sie", "d": "Ihnen"}
_REFLEXIVE = ("mich", "dich", "sich", "uns", "euch", "sich")
_SEIN = ("bin", "bist", "ist", "sind", "seid", "sind")
_HABEN = ("habe", "hast", "hat", "haben", "habt", "haben")
_WERDEN = ("werde", "wirst", "wird", "werden", "werdet", "werden")
_PRETERITE = {
    "sein": ("war", "warst", "war", "waren", "wart", "waren"),
    "haben": ("hatte", "hattest", "hatte", "hatten", "hattet", "hatten"),
}
_MODALS = {
    "can": ("kann", "kannst", "kann", "können", "könnt", "können"),
    "must": ("muss", "musst", "muss", "müssen", "müsst", "müssen"),
    "want": ("will", "willst", "will", "wollen", "wollt", "wollen"),
}
_CONTRACTED = {("in", "dem"): "im", ("zu", "dem"): "zum", ("zu", "der"): "zur", ("an", "dem"): "am"}
_LONG_GENITIVES = {"Mann", "Kind", "Freund", "Arzt", "Gast", "Koch", "Hund", "Fluss"}
_CASES = {"for": "a", "without": "a"}  # every other preposition takes the dative here


def spell_number(number: int) -> str:
    """A number from 2 to 99 in words: 21 is einundzwanzig."""
    if number < 20:
        return DE_NUMBERS[number]
    tens, ones = divmod(number, 10)
    return (f"{'ein' if ones == 1 else DE_NUMBERS[ones]}und" if ones else "") + DE_TENS[tens]


def spell_clock(hour: int, minute: int) -> str:
    """A time on the twelve-hour clock: (3, 25) is fünf vor halb vier."""
    here, after = DE_NUMBERS[hour], DE_NUMBERS[hour % 12 + 1]
    if minute == 0:
        return ("ein" if hour == 1 else here) + " Uhr"
    words = {15: f"Viertel nach {here}", 25: f"fünf vor halb {after}", 30: f"halb {after}",
             35: f"fünf nach halb {after}", 45: f"Viertel vor {after}"}  # fmt: skip
    if minute in words:
        return words[minute]
    return f"{spell_number(minute)} nach {here}" if minute < 30 else f"{spell_number(60 - minute)} vor {after}"


def _is_plural(phrase: Phrase) -> bool:
    return phrase.plural and not (phrase.noun is not None and phrase.noun.key == "glasses")


def _gender(phrase: Phrase) -> str:
    return phrase.noun.de_gender if phrase.noun else phrase.sex or "n"


def _column(phrase: Phrase) -> int:
    return 3 if _is_plural(phrase) else "mfn".index(_gender(phrase))


def _index(phrase: Phrase) -> int:
    """The verb form of a subject: the polite Sie takes that of they."""
    if phrase.polite:
        return 5
    return phrase.person - 1 + 3 * _is_plural(phrase)


def _determine(phrase: Phrase, case: str, negated: bool) -> tuple[list[str], dict]:
    """The determiner and the table of adjective endings that follow it."""
    kind, column = phrase.determiner, _column(phrase)
    if phrase.owner is not None or kind == "the":
        return [_THE[case][column]], _WEAK
    if kind in ("a", "some") and negated:
        return ["kein" + _EIN_ENDS[case][column]], _MIXED
    if kind == "some" or (kind == "a" and column == 3):
        return [], _STRONG
    if kind in _EIN_WORDS:
        ending = _EIN_ENDS[case][column]
        return [_EIN_WORDS[kind] + ending], _MIXED
    if kind == "count":
        return [spell_number(phrase.count)], _STRONG
    if kind == "many":
        return ["viel" + _DER_ENDS[case][3]], _STRONG
    return [("dies" if kind == "this" else "jed") + _DER_ENDS[case][column]], _WEAK


def decline_noun(phrase: Phrase, case: str) -> str:
    """The noun in its case: dem Studenten, des Hauses, den Kindern."""
    noun = phrase.noun
    if _is_plural(phrase):
        word = noun.de[1]
        return word + "n" if case == "d" and not word.endswith(("n", "s")) else word
    if case == "n":
        return noun.de[0]
    word = noun.de_weak
    if case == "g" and noun.de_gender != "f" and word == noun.de[0]:
        return word + ("es" if word in _LONG_GENITIVES or word.endswith("s") else "s")
    return word


def name_person(phrase: Phrase, case: str = "n") -> str:
    """A name with its title: Herr Beldamon, for Herrn Beldamon."""
    if not phrase.title:
        return phrase.name
    return ("Frau " if phrase.sex == "f" else "Herr " if case == "n" else "Herrn ") + phrase.name


def render_phrase(phrase: Phrase, case: str, negated: bool = False) -> list[str]:
    """A noun phrase in a case as words; `negated` is for the object of a negated verb (kein Brot)."""
    if phrase.pronoun:
        if phrase.polite:
            return [_POLITE[case]]
        if phrase.person == 3 and not _is_plural(phrase):
            return [_THIRD[_gender(phrase)][case]]
        return [_PRONOUNS[case][phrase.index()]]
    if phrase.name:
        return [name_person(phrase, case), *_relative(phrase)]
    words, endings = _determine(phrase, case, negated)
    ending = endings[case][_column(phrase)]
    words += [adjective.de_stem + ending for adjective in phrase.adjectives]
    words.append(decline_noun(phrase, case))
    if phrase.content is not None:
        words.append(phrase.content.de[0])
    if phrase.owner is not None:
        words += ["von", *render_phrase(phrase.owner, "d")] if phrase.owner.name else render_phrase(phrase.owner, "g")
    return words + _relative(phrase)


def _relative(phrase: Phrase) -> list[str]:
    """A relative clause between commas; its pronoun has the gender of the noun and the case of the gap."""
    clause = phrase.relative
    if clause is None:
        return []
    case = "n" if clause.gap == "subject" else "d" if clause.verb.de_dative else "a"
    column = _column(phrase)
    pronoun = "denen" if case == "d" and column == 3 else _THE[case][column]
    return [",", pronoun, *render_clause(clause, last=True), ","]


def _verb_words(clause: Clause) -> tuple[str, list[str]]:
    """The finite verb and the words that close the clause: a prefix, a participle or an infinitive."""
    verb, index, tense = clause.verb, _index(clause.subject), clause.tense
    if clause.modal:
        return _MODALS[clause.modal][index], [verb.de_prefix + verb.de]
    if tense == "f":
        return _WERDEN[index], [verb.de_prefix + verb.de]
    if tense == "q" and verb.key in ("be", "state", "age"):
        return _PRETERITE[verb.de][index], []
    if tense == "q":
        return (_SEIN if verb.de_be else _HABEN)[index], [verb.de_participle]
    return verb.de_present[index], [verb.de_prefix] if verb.de_prefix else []


def _place(preposition: str, phrase: Phrase, accusative: bool) -> list[str]:
    word = PREPOSITIONS[preposition][2]
    if phrase.noun is not None and phrase.noun.key == "bank=shore":
        word = "an"
    case = "a" if accusative else _CASES.get(preposition, "d")
    words = render_phrase(phrase, case)
    article = phrase.noun is not None and (phrase.determiner == "the" or phrase.owner is not None)
    if article and (word, words[0]) in _CONTRACTED:
        return [_CONTRACTED[word, words[0]], *words[1:]]
    return [word, *words]


def _middle(clause: Clause) -> list[str]:
    """What stands between the two parts of the verb: pronouns, time, dative, accusative, nicht, the rest."""
    verb, item, receiver = clause.verb, clause.object, clause.receiver
    words = [_REFLEXIVE[_index(clause.subject)]] if verb.de_reflexive else []
    case = "d" if verb.de_dative else "a"
    open_object = item is not None and clause.gap != "object"
    if open_object and item.pronoun:
        words += render_phrase(item, case)
    if receiver is not None and receiver.pronoun:
        words += render_phrase(receiver, "d")
    if clause.time is not None and not clause.time_first:
        words.append(clause.time[2])
    if clause.frequency is not None:
        words.append(clause.frequency[2])
    if receiver is not None and not receiver.pronoun:
        words += render_phrase(receiver, "d")
    none = False
    if open_object and not item.pronoun:
        none = clause.negative and (item.determiner == "some" or item.determiner == "a") and item.owner is None
        words += render_phrase(item, case, negated=none)
    if clause.negative and not none and not (clause.extra is not None and len(clause.extra) > 3):
        words.append("nicht")
    if clause.predicate is not None:
        adjective, degree, other = clause.predicate
        words += [degree[2]] if degree else []
        words += [adjective.comparative[1], "als", *render_phrase(other, "n")] if other else [adjective.de]
    if clause.extra is not None:
        words.append(clause.extra[3] if clause.negative and len(clause.extra) > 3 else clause.extra[2])
    for preposition, place in clause.places:
        words += _place(preposition, place, accusative=verb.key == "put=lay")
    return words


def render_clause(clause: Clause, *, ask: bool = False, last: bool = False) -> list[str]:
    """A clause as words: verb second, verb first (`ask`) or verb last (`last`)."""
    words: list[str] = []
    subject = [] if clause.gap == "subject" or clause.shared else render_phrase(clause.subject, "n")
    finite, close = _verb_words(clause)
    if clause.first is not None:
        conjunction, before = clause.first
        words += [CONJUNCTIONS[conjunction][2], *render_clause(before, last=True), ","]
    if clause.time is not None and clause.time_first:
        words.append(clause.time[2])
    if last:
        words += [*subject, *_middle(clause), *_close(finite, close, clause)]
    elif ask or words:
        words += [finite, *_invert(clause, subject), *close]
    else:
        words += [*subject, finite, *_middle(clause), *close]
    if clause.after is not None:
        conjunction, behind = clause.after
        _, _, german, verb_last = CONJUNCTIONS[conjunction]
        words += [",", german] if verb_last else [german]
        words += render_clause(behind, last=verb_last)
    return words


def _invert(clause: Clause, subject: list[str]) -> list[str]:
    """Subject and middle behind the finite verb: a reflexive goes before a noun (heute beeilt sich der Koch)."""
    middle = _middle(clause)
    if clause.verb.de_reflexive and subject and not clause.subject.pronoun:
        return [middle[0], *subject, *middle[1:]]
    return [*subject, *middle]


def _close(finite: str, close: list[str], clause: Clause) -> list[str]:
    """The verbs at the end of a subordinate clause: gelesen hat, aufmacht."""
    if clause.verb.de_prefix and close == [clause.verb.de_prefix]:
        return [clause.verb.de_prefix + finite]
    return [*close, finite]


def render(sentence: Sentence) -> str:
    """A whole German sentence."""
    question = sentence.question
    words = [name_person(sentence.address), ","] if sentence.address is not None else []
    if question and question != "yes":
        words.append(QUESTIONS[question][2])
    clause = sentence.clause
    words += render_clause(clause, ask=bool(question))
    text = " ".join(words).replace(" ,", ",")
    while ",," in text:
        text = text.replace(",,", ",")
    text = text.rstrip(",")
    return text[0].upper() + text[1:] + ("?" if question else ".")
