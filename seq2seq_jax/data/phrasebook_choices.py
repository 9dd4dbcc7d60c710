"""What goes with what in the phrasebook: which nouns suit a verb, which adjectives a noun, which reason an act."""

from __future__ import annotations

from functools import cache, lru_cache

from seq2seq_jax.data import phrasebook_lexicon as lexicon
from seq2seq_jax.data.phrasebook_words import Adjective, Noun, Phrase, Verb, adjectives, nouns, select, verbs

FAMILY = frozenset("brother sister mother father aunt uncle grandmother grandfather friend neighbour colleague".split())
UNSEXED = frozenset(("child",))
OPEN_PLACE = frozenset(  # verbs that take a place without a change of sense
    "read write eat drink find lose meet see wait sleep work dance laugh cry swim run stay rest buy sing wash cook "
    "draw hide forget hear repair look>for".split()
)
NUMBERS = tuple(range(2, 20)) + tuple(10 * tens + ones for tens in range(2, 10) for ones in (0, 1, 5, 8))
COLOURS = frozenset("red green blue black white yellow".split())
OWNED = frozenset(("o", "c", "r", "v", "vt", "s"))  # kinds of what people have
OPPOSITES = tuple(
    frozenset(pair.split("-"))
    for pair in "old-new old-young big-small good-bad clean-dirty light=bright-dark light=light-heavy hot-cold "
    "happy-sad rich-poor boring-interesting difficult-easy".split()
)
EXCESSIVE = frozenset("old small big long expensive heavy dark dangerous difficult hot cold boring".split())
MILD = frozenset("tired sick sad heavy cold expensive dirty boring difficult strange lazy dark fast".split())
# Where one does things, if not anywhere with an inside.
SITES = {
    "swim": "lake river", "cook": "kitchen restaurant hotel hospital", "wash": "kitchen garden garage house",
    "buy": "shop village museum hotel airport bakery", "run": "park garden forest village station",
    "sleep": "bedroom house hotel hospital castle garden", "rest": "bedroom house hotel park garden forest",
    "work": "i -bedroom -forest", "repair": "garage house garden factory", "hear": "park garden forest church theatre",
}  # fmt: skip
# Why one does things: a state or a quality of people.
REASONS = {
    "eat": "hungry", "cook": "hungry", "drink": "thirsty", "sleep": "tired", "rest": "tired",
    "fall>asleep": "tired sick", "cry": "sad afraid", "laugh": "happy", "dance": "happy", "sing": "happy",
    "help": "polite", "thank": "polite happy", "invite": "polite happy rich", "bring": "polite", "give": "polite rich",
    "run": "afraid strong", "buy": "rich happy", "hide": "afraid poor", "steal": "poor hungry", "sell": "poor old",
    "build": "rich clever", "call": "sad afraid sick", "stay": "tired sick lazy", "lend": "rich polite",
    "repair": "clever", "understand": "clever", "explain": "clever",
}  # fmt: skip
REASONS_ANY = "happy sad tired afraid hungry thirsty young old clever brave poor rich right wrong"
FINDING = ("find", "buy", "look>for", "choose", "steal", "forget", "see", "draw", "repair", "wash", "bring", "need")
HANDING = ("give", "show", "lend", "put=lay", "sell", "hide", "lose", "throw<away", "break", "clean", "read", "forget")


@cache
def list_objects(key: str) -> tuple[Noun, ...]:
    """What a verb may be done to."""
    return select(verbs()[key].objects.removeprefix("to:").removeprefix("on:"))


@cache
def list_subjects(kinds: str) -> tuple[Noun, ...]:
    return select(" ".join(kinds))


@cache
def list_qualities(key: str) -> tuple[Adjective, ...]:
    """The adjectives that suit a noun."""
    kinds = nouns()[key].kinds
    return tuple(
        adjective for adjective in adjectives().values()
        if any(word == key or (len(word) == 1 and word in kinds) for word in adjective.kinds.split())
    )  # fmt: skip


@lru_cache(maxsize=1)
def group_verbs() -> dict[str, tuple[Verb, ...]]:
    """Verbs by the pattern of clause they make."""
    groups: dict[str, list[Verb]] = {}
    for verb in verbs().values():
        pattern = verb.objects.split(":")[0] if ":" in verb.objects else ""
        if not pattern:
            special = ("to-place", "to-town", "in-town", "with-bat", "music", "sport", "that", "price")
            pattern = verb.objects if verb.objects in special else "transitive" if verb.objects else "intransitive"
        groups.setdefault(pattern, []).append(verb)
    return {pattern: tuple(group) for pattern, group in groups.items()}


@cache
def list_predicates(key: str) -> tuple[Adjective, ...]:
    """The adjectives that are said of a noun, not only put beside it."""
    return tuple(item for item in list_qualities(key) if item.key not in ("new", "right"))


@cache
def list_sites(key: str) -> tuple[Noun, ...]:
    return select(SITES.get(key, "i"))


@lru_cache(maxsize=1)
def list_describable() -> tuple[Noun, ...]:
    return tuple(noun for noun in nouns().values() if "p" not in noun.kinds and len(list_predicates(noun.key)) > 2)


@cache
def list_relatable(key: str) -> tuple[Verb, ...]:
    """Verbs whose object a relative pronoun may stand for."""
    return tuple(
        verb for verb in list_plain_transitives() if nouns()[key] in list_objects(verb.key) and "p" in verb.subjects
    )


@lru_cache(maxsize=1)
def list_plain_transitives() -> tuple[Verb, ...]:
    return tuple(
        verb for verb in group_verbs()["transitive"]
        if not verb.fr_preposition and not verb.de_dative and verb.objects != "p"
        and verb.key not in ("know=person", "visit", "feed")
    )  # fmt: skip


PATTERNS = (
    (0.5, "transitive"), (0.62, "to"), (0.67, "on"), (0.85, "intransitive"), (0.89, "to-place"), (0.92, "to-town"),
    (0.94, "in-town"), (0.955, "with-bat"), (0.98, "music"), (1.0, "sport"),
)  # fmt: skip
PRONOUNS = (
    Phrase(pronoun=True, person=1), Phrase(pronoun=True, sex="m"), Phrase(pronoun=True, sex="f"),
    Phrase(pronoun=True, person=1, plural=True), Phrase(pronoun=True, plural=True),
)  # fmt: skip
TIMES = {tense: tuple(time[:3] for time in lexicon.TIMES if tense in time[3]) for tense in "pqf"}


def spread(weights: tuple[tuple[float, str], ...], draw: float) -> str:
    for bound, item in weights:
        if draw < bound:
            return item
    return weights[-1][1]


def pronoun_for(phrase: Phrase) -> Phrase:
    """The pronoun of the third person that takes up a phrase: it for the lamp (elle, sie), she for the nurse."""
    if phrase.pronoun:
        return phrase
    if phrase.name:
        return Phrase(pronoun=True, sex=phrase.sex)
    if "p" in phrase.noun.kinds:
        return Phrase(pronoun=True, sex=phrase.noun.fr_gender, plural=phrase.plural)
    return Phrase(pronoun=True, noun=phrase.noun, plural=phrase.plural)
