"""The built-in corpus: hand-made translations of each phenomenon, splits, determinism and French orthography."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from seq2seq_jax.data import phrasebook, phrasebook_english, phrasebook_french, phrasebook_german
from seq2seq_jax.data import phrasebook_lexicon as lexicon
from seq2seq_jax.data.phrasebook_choices import pronoun_for
from seq2seq_jax.data.phrasebook_composer import Composer
from seq2seq_jax.data.phrasebook_words import AGE, BE, STATE, Clause, Phrase, Sentence, adjectives, nouns, verbs
from seq2seq_jax.errors import UserError

Corpus = dict[str, list[dict[str, str]]]


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """Every split, made by a fresh process with another seed of `hash`, without the shape checks that slow this one."""
    code = (
        "import json; from seq2seq_jax.data import phrasebook; sizes = {'train': 10000, 'dev': 1000, 'test': 1000}; "
        "print(json.dumps({split: phrasebook.sentences(split, size=sizes[split]) for split in sizes}))"
    )
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, check=True)
    return json.loads(done.stdout)


def phrase(key: str, determiner: str = "the", *qualities: str, **features) -> Phrase:
    """A noun phrase by keys."""
    chosen = tuple(adjectives()[quality] for quality in qualities)
    return Phrase(nouns()[key], determiner=determiner, adjectives=chosen, **features)


def clause(subject: Phrase, verb: str, **features) -> Clause:
    """A clause by the key of its verb."""
    return Clause(subject, verbs()[verb], **features)


def render(meaning: Clause | Sentence) -> tuple[str, str, str]:
    """English, French and German."""
    sentence = meaning if isinstance(meaning, Sentence) else Sentence(meaning)
    return (
        phrasebook_english.render(sentence),
        phrasebook_french.render(sentence),
        phrasebook_german.render(sentence),
    )


I = Phrase(pronoun=True, person=1)  # noqa: E741
HE, SHE = Phrase(pronoun=True, sex="m"), Phrase(pronoun=True, sex="f")
THEY = Phrase(pronoun=True, plural=True)
ANNA, PAUL = Phrase(name="Anna", sex="f"), Phrase(name="Paul", sex="m")
YESTERDAY = ("yesterday", "hier", "gestern")


def test_agreement_of_adjectives_and_their_places() -> None:
    meaning = Clause(phrase("car", "this", "old", "red"), BE, predicate=(adjectives()["expensive"], None, None))
    assert render(meaning) == (
        "This old red car is expensive.",
        "Cette vieille voiture rouge est chère.",
        "Dieses alte rote Auto ist teuer.",
    )
    vowel = Clause(phrase("computer", "the", "beautiful"), BE, predicate=(adjectives()["light=light"], None, None))
    assert render(vowel)[1] == "Le bel ordinateur est léger."


def test_plural_article_before_a_french_adjective() -> None:
    item = phrase("flower", "a", "beautiful", plural=True)
    assert render(clause(I, "buy", object=item)) == (
        "I buy beautiful flowers.",
        "J'achète de belles fleurs.",
        "Ich kaufe schöne Blumen.",
    )


def test_negation_takes_the_article_and_german_kein() -> None:
    assert render(clause(HE, "eat", object=phrase("bread", "some"), negative=True)) == (
        "He does not eat any bread.",
        "Il ne mange pas de pain.",
        "Er isst kein Brot.",
    )
    assert render(clause(HE, "admire", object=phrase("castle"), negative=True)) == (
        "He does not admire the castle.",
        "Il n'admire pas le château.",
        "Er bewundert das Schloss nicht.",
    )
    never = clause(ANNA, "drink", object=phrase("water", "some"), frequency=lexicon.FREQUENCIES[3])
    assert render(never) == ("Anna never drinks any water.", "Anna ne boit jamais d'eau.", "Anna trinkt nie Wasser.")


def test_contractions_in_french_and_german() -> None:
    assert render(clause(SHE, "go", places=(("to", phrase("station")),), tense="q")) == (
        "She went to the station.",
        "Elle est allée à la gare.",
        "Sie ist zum Bahnhof gegangen.",
    )
    assert render(clause(HE, "go", places=(("to", phrase("school")),))) == (
        "He goes to the school.",
        "Il va à l'école.",
        "Er geht zur Schule.",
    )
    assert render(clause(HE, "go", places=(("to", phrase("museum")),)))[1] == "Il va au musée."
    assert render(clause(HE, "sleep", places=(("in", phrase("garden")),)))[2] == "Er schläft im Garten."
    assert render(clause(HE, "need", object=phrase("key")))[1] == "Il a besoin de la clé."
    assert render(clause(HE, "need", object=phrase("bag", "the", plural=True)))[1] == "Il a besoin des sacs."
    assert render(clause(HE, "need", object=phrase("boat")))[1] == "Il a besoin du bateau."
    assert render(clause(HE, "need", object=phrase("coat", "a", plural=True)))[1] == "Il a besoin de manteaux."


def test_german_cases_of_two_objects() -> None:
    meaning = clause(
        phrase("woman", "the", "young"), "show", object=phrase("bridge", "the", "new"), receiver=phrase("student", "a")
    )
    assert render(meaning) == (
        "The young woman shows the new bridge to a student.",
        "La jeune femme montre le nouveau pont à un étudiant.",
        "Die junge Frau zeigt einem Studenten die neue Brücke.",
    )
    many = clause(I, "help", object=phrase("child", "count", "poor", plural=True, count=3))
    assert render(many) == (
        "I help three poor children.",
        "J'aide trois enfants pauvres.",
        "Ich helfe drei armen Kindern.",
    )
    owned = clause(I, "see", object=phrase("house", owner=phrase("doctor")))
    assert render(owned) == (
        "I see the doctor's house.",
        "Je vois la maison du médecin.",
        "Ich sehe das Haus des Arztes.",
    )


def test_place_takes_dative_and_direction_accusative() -> None:
    lying = clause(HE, "put=lay", object=phrase("book"), places=(("on", phrase("table")),))
    assert render(lying)[2] == "Er legt das Buch auf den Tisch."
    assert render(clause(HE, "find", object=phrase("book"), places=(("beside", phrase("bridge")),)))[2] == (
        "Er findet das Buch neben der Brücke."
    )


def test_fronted_time_inverts_german_and_perfect_brackets_it() -> None:
    meaning = clause(phrase("teacher"), "open", tense="q", object=phrase("window"), time=YESTERDAY, time_first=True)
    assert render(meaning) == (
        "Yesterday the teacher opened the window.",
        "Hier, le professeur a ouvert la fenêtre.",
        "Gestern hat der Lehrer das Fenster aufgemacht.",
    )
    assert render(clause(phrase("teacher"), "open", object=phrase("window")))[2] == "Der Lehrer macht das Fenster auf."


def test_subordinate_clauses_are_verb_final() -> None:
    inner = clause(phrase("cook"), "turn<on", object=phrase("light"))
    assert render(clause(I, "think", after=("that", inner))) == (
        "I think that the cook turns on the light.",
        "Je pense que le cuisinier allume la lumière.",
        "Ich glaube, dass der Koch das Licht anmacht.",
    )
    first = clause(HE, "find", object=phrase("key"))
    assert render(clause(SHE, "laugh", tense="f", first=("if", first))) == (
        "If he finds the key, she will laugh.",
        "S'il trouve la clé, elle rira.",
        "Wenn er den Schlüssel findet, wird sie lachen.",
    )
    whether = clause(HE, "know=fact", negative=True, after=("whether", clause(SHE, "arrive", tense="q")))
    assert render(whether) == (
        "He does not know if she arrived.",
        "Il ne sait pas si elle est arrivée.",
        "Er weiß nicht, ob sie angekommen ist.",
    )


@pytest.mark.parametrize(("tense", "conjunction", "german"), [("q", "when_past", "als"), ("p", "when", "wenn")])
def test_when_is_als_or_wenn(tense: str, conjunction: str, german: str) -> None:
    meaning = clause(I, "laugh", tense=tense, after=(conjunction, clause(PAUL, "fall", tense=tense)))
    assert render(meaning)[0].count(" when ") == render(meaning)[1].count(" quand ") == 1
    assert f", {german} Paul " in render(meaning)[2]


def test_participle_agrees_with_a_pronoun_that_has_the_gender_of_its_noun() -> None:
    found = clause(PAUL, "find", tense="q", object=phrase("key"))
    it = pronoun_for(found.object)
    found.after = ("and", clause(PAUL, "put=lay", tense="q", object=it, places=(("on", phrase("bed")),), shared=True))
    assert render(found) == (
        "Paul found the key and put it on the bed.",
        "Paul a trouvé la clé et l'a posée sur le lit.",
        "Paul hat den Schlüssel gefunden und hat ihn auf das Bett gelegt.",
    )


def test_relative_clauses() -> None:
    lost = clause(phrase("girl"), "lose", tense="q", gap="object", object=phrase("letter"))
    meaning = clause(I, "find", object=phrase("letter", relative=lost))
    assert render(meaning) == (
        "I find the letter that the girl lost.",
        "Je trouve la lettre que la fille a perdue.",
        "Ich finde den Brief, den das Mädchen verloren hat.",
    )
    sings = clause(phrase("man"), "sing", object=phrase("song", "a"), gap="subject")
    assert render(clause(phrase("man", relative=sings), "get>up", tense="q")) == (
        "The man who sings a song got up.",
        "L'homme qui chante une chanson s'est levé.",
        "Der Mann, der ein Lied singt, ist aufgestanden.",
    )


def test_questions() -> None:
    assert render(Sentence(clause(HE, "read", tense="q", object=phrase("book")), "yes")) == (
        "Did he read the book?",
        "Est-ce qu'il a lu le livre ?",
        "Hat er das Buch gelesen?",
    )
    assert render(Sentence(clause(ANNA, "go=town"), "whither")) == (
        "Where does Anna go?",
        "Où est-ce qu'Anna va ?",
        "Wohin fährt Anna?",
    )
    assert render(Sentence(clause(HE, "help", object=THEY, gap="subject"), "who")) == (
        "Who helps them?",
        "Qui les aide ?",
        "Wer hilft ihnen?",
    )
    assert render(Sentence(clause(SHE, "turn<off", gap="object"), "what")) == (
        "What does she turn off?",
        "Qu'est-ce qu'elle éteint ?",
        "Was macht sie aus?",
    )


def test_address_decides_between_tu_and_vous() -> None:
    familiar = Phrase(pronoun=True, person=2, sex="f")
    polite = Phrase(pronoun=True, person=2, sex="f", polite=True, plural=True)
    tired = (adjectives()["tired"], None, None)
    assert render(Sentence(Clause(familiar, BE, predicate=tired), "yes", ANNA)) == (
        "Anna, are you tired?",
        "Anna, est-ce que tu es fatiguée ?",
        "Anna, bist du müde?",
    )
    madam = Phrase(name="Belck", title=True, sex="f")
    assert render(Sentence(Clause(polite, BE, predicate=tired), "yes", madam)) == (
        "Mrs Belck, are you tired?",
        "Madame Belck, est-ce que vous êtes fatiguée ?",
        "Frau Belck, sind Sie müde?",
    )


@pytest.mark.parametrize(
    ("meaning", "expected"),
    [
        (clause(HE, "know=person", object=phrase("king")), ("Il connaît le roi.", "Er kennt den König.")),
        (clause(HE, "visit", object=phrase("museum")), ("Il visite le musée.", "Er besichtigt das Museum.")),
        (clause(HE, "visit=call_on", object=phrase("king")), ("Il rend visite au roi.", "Er besucht den König.")),
        (clause(HE, "buy", object=phrase("bat=tool", "a")), ("Il achète une batte.", "Er kauft einen Schläger.")),
        (clause(HE, "see", object=phrase("bat", "a")), ("Il voit une chauve-souris.", "Er sieht eine Fledermaus.")),
        (clause(HE, "leave=place", object=phrase("bank")), ("Il quitte la banque.", "Er verlässt die Bank.")),
        (
            clause(HE, "wait", places=(("on", phrase("bank=shore", owner=phrase("river"))),)),
            ("Il attend sur la rive de la rivière.", "Er wartet am Ufer des Flusses."),
        ),
        (
            clause(HE, "find", object=phrase("glasses", "his", plural=True)),
            ("Il trouve ses lunettes.", "Er findet seine Brille."),
        ),
        (
            clause(HE, "drink", object=phrase("glass", "count", plural=True, count=2, content=nouns()["milk"])),
            ("Il boit deux verres de lait.", "Er trinkt zwei Gläser Milch."),
        ),
        (
            Clause(phrase("kitchen"), BE, predicate=(adjectives()["light=bright"], None, None)),
            ("La cuisine est claire.", "Die Küche ist hell."),
        ),
        (Clause(HE, STATE, extra=lexicon.STATES[3]), ("Il a raison.", "Er hat recht.")),
        (Clause(HE, STATE, extra=lexicon.STATES[0], negative=True), ("Il n'a pas faim.", "Er hat keinen Hunger.")),
        (
            clause(HE, "give", object=phrase("answer", "the", "right"), receiver=SHE),
            ("Il lui donne la bonne réponse.", "Er gibt ihr die richtige Antwort."),
        ),
        (Clause(HE, AGE, tense="q", extra=("six years old", "six ans", "sechs Jahre alt")),
         ("Il avait six ans.", "Er war sechs Jahre alt.")),
        (clause(phrase("baker"), "hurry", tense="q"), ("Le boulanger s'est dépêché.", "Der Bäcker hat sich beeilt.")),
    ],
)  # fmt: skip
def test_senses_of_ambiguous_words(meaning: Clause, expected: tuple[str, str]) -> None:
    assert render(meaning)[1:] == expected


@pytest.mark.parametrize(
    ("hour", "minute", "english", "french", "german"),
    [
        (3, 25, "twenty-five past three", "trois heures vingt-cinq", "fünf vor halb vier"),
        (1, 0, "one o'clock", "une heure", "ein Uhr"),
        (12, 30, "half past twelve", "douze heures et demie", "halb eins"),
        (4, 45, "a quarter to five", "cinq heures moins le quart", "Viertel vor fünf"),
        (7, 35, "twenty-five to eight", "huit heures moins vingt-cinq", "fünf nach halb acht"),
        (9, 10, "ten past nine", "neuf heures dix", "zehn nach neun"),
    ],
)
def test_clock(hour: int, minute: int, english: str, french: str, german: str) -> None:
    assert phrasebook_english.spell_clock(hour, minute) == english
    assert phrasebook_french.spell_clock(hour, minute) == french
    assert phrasebook_german.spell_clock(hour, minute) == german


@pytest.mark.parametrize(
    ("number", "french", "german"),
    [(17, "dix-sept", "siebzehn"), (21, "vingt et un", "einundzwanzig"), (71, "soixante et onze", "einundsiebzig"),
     (75, "soixante-quinze", "fünfundsiebzig"), (80, "quatre-vingts", "achtzig"),
     (81, "quatre-vingt-un", "einundachtzig"), (91, "quatre-vingt-onze", "einundneunzig")],
)  # fmt: skip
def test_numbers(number: int, french: str, german: str) -> None:
    assert phrasebook_french.spell_number(number) == french
    assert phrasebook_german.spell_number(number) == german


def test_same_arguments_give_the_same_text_everywhere(corpus: Corpus) -> None:
    text = "\n".join("|".join(record.values()) for record in corpus["train"][:1000])
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert digest == "5cad991c4d0b796a667d151780ba4eebd6998e7a082a9ee287da0abbd5be01a0"


def test_smaller_is_a_prefix_and_seeds_differ(corpus: Corpus) -> None:
    large = corpus["train"]
    assert phrasebook.sentences("train", size=120) == large[:120]
    assert phrasebook.sentences("train", size=120, seed=1) != large[:120]
    sources, targets = phrasebook.pairs("train", source="de", target="en", size=50)
    assert list(zip(sources, targets, strict=True)) == [(record["de"], record["en"]) for record in large[:50]]


def test_only_random_random_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("this draw may change between Python versions")

    for name in ("choice", "choices", "shuffle", "sample", "randrange", "randint", "getrandbits"):
        monkeypatch.setattr(random.Random, name, refuse)
    assert len(phrasebook.sentences("dev", size=50)) == 50


def test_splits_share_no_sentence_in_any_language(corpus: Corpus) -> None:
    for language in phrasebook.LANGUAGES:
        texts = {split: {record[language] for record in records} for split, records in corpus.items()}
        assert not texts["train"] & texts["dev"]
        assert not texts["train"] & texts["test"]
        assert not texts["dev"] & texts["test"]
    for records in corpus.values():
        assert len({record["en"] for record in records}) == len(records)


@pytest.mark.parametrize("split", phrasebook.SPLITS)
def test_held_out_pairs_stay_in_their_split(split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[list[tuple[str, str]]] = []
    compose = Composer.compose

    def record(self: Composer) -> tuple[Sentence, list[tuple[str, str]]]:
        sentence, pairs = compose(self)
        noted.append(pairs)
        accepted.append(sentence)
        return sentence, pairs

    accepted: list[Sentence] = []
    monkeypatch.setattr(Composer, "compose", record)
    stream = phrasebook.compose(split)
    kept = {id(next(stream)[0]) for _ in range(300)}
    owners = [
        {phrasebook.split_of_pair(pair) for pair in pairs}
        for sentence, pairs in zip(accepted, noted, strict=True)
        if id(sentence) in kept
    ]
    assert len(owners) == 300
    if split == "train":
        assert all(owner <= {"train"} for owner in owners)
    else:
        assert all(split in owner and owner <= {"train", split} for owner in owners)


def test_attributive_pairs_of_dev_and_test_are_not_in_the_text_of_train(corpus: Corpus) -> None:
    neighbours = set()
    for record in corpus["train"]:
        words = re.findall(r"[\w-]+|[^\w ]", record["en"])
        neighbours.update(zip(words, words[1:], strict=False))
    seen, held = set(), set()
    for noun in nouns().values():
        for adjective in adjectives().values():
            if adjective.en == "light" or noun.key.startswith(("bat", "bank", "glass")):
                continue
            key = (adjective.key, noun.key)
            if (adjective.en, noun.en[0]) in neighbours:
                (seen if phrasebook.split_of_pair(key) == "train" else held).add(key)
    assert len(seen) > 300
    assert not held


def test_test_sentences_are_longer_and_none_is_too_long(corpus: Corpus) -> None:
    lengths = {split: [len(record["en"].split()) for record in records] for split, records in corpus.items()}
    means = {split: sum(values) / len(values) for split, values in lengths.items()}
    assert 8 < means["train"] < 10
    assert means["train"] + 2 < means["test"] < 13
    assert max(lengths["train"]) <= 22
    assert max(lengths["test"]) <= 26


def test_every_word_is_frequent_enough_to_learn(corpus: Corpus) -> None:
    text = " ".join(record["en"] for record in corpus["train"]).lower()
    words = re.findall(r"[\w-]+", text)
    counts = {word: 0 for word in words}
    for word in words:
        counts[word] += 1
    for noun in nouns().values():
        assert sum(counts.get(form, 0) for form in set(noun.en)) >= 10, noun.key
    for adjective in adjectives().values():
        assert counts.get(adjective.en.split()[-1], 0) >= 10, adjective.key
    for verb in verbs().values():
        assert sum(counts.get(form, 0) for form in set(verb.en)) >= 10, verb.key


def test_french_is_elided_and_contracted_and_all_is_spaced_well(corpus: Corpus) -> None:
    wrong = re.compile(
        r"\b(?:le|la|de|ne|que|je|me|te|se) (?!huit|onze)[aeiouéèêâôîœhAEIOU]|\b(?:de|à) les?\b(?! [aeiouéèêâôîœh])"
        r"|\bsi ils?\b|\bdes des\b|\bde d[eu]s?\b|' "
    )
    for record in corpus["train"] + corpus["test"]:
        assert not wrong.search(record["fr"]), record
        for text in record.values():
            assert text == " ".join(text.split()), record
            assert not re.search(r" [.,]|,,|,\.|[.?].", text.replace("M. ", "").removesuffix("?").rstrip()), record
            assert text[0].isupper(), record


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"split": "valid", "source": "en", "target": "fr", "size": 1}, "split must be one of"),
        ({"split": "dev", "source": "en", "target": "es", "size": 1}, "language must be one of"),
        ({"split": "dev", "source": "fr", "target": "fr", "size": 1}, "choose two languages"),
        ({"split": "dev", "source": "en", "target": "fr", "size": -1}, "zero or more"),
    ],
)
def test_mistakes_are_named(arguments: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        phrasebook.pairs(**arguments)
