"""Cleaning: every reason, scripts and languages, duplicates over corpora, and what the report shows."""

import json
import logging
import sys
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seq2seq_jax.data import clean
from seq2seq_jax.data.clean import (
    REASONS,
    CleanRules,
    DropSample,
    clean_pairs,
    clean_text,
    clean_texts,
    count_reasons,
    describe_drops,
    hash_pairs,
    mark_duplicates,
)
from seq2seq_jax.data.scripts import measure_lines, name_language, scripts_of, share_of_letters
from seq2seq_jax.data.sources import make_text, read_parallel
from seq2seq_jax.errors import UserError

SENTENCES = {  # from the Universal Declaration of Human Rights
    "en": "All human beings are born free and equal in dignity and rights.",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren.",
    "vi": "Tất cả mọi người sinh ra đều được tự do và bình đẳng.",
    "ru": "Все люди рождаются свободными и равными в своем достоинстве и правах.",
    "el": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι.",
    "ar": "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق.",
    "he": "כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם.",
    "hi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
    "zh": "人人生而自由,在尊严和权利上一律平等。",
    "ja": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "ko": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
    "th": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
    "ka": "ყველა ადამიანი იბადება თავისუფალი და თანასწორი თავისი ღირსებითა და უფლებებით.",
    "hy": "Բոլոր մարդիկ ծնվում են ազատ ու հավասար՝ իրենց արժանապատվությամբ և իրավունքներով։",
}


def judge(source: str, target: str, **rules) -> str:
    return REASONS[clean_pairs([source], [target], CleanRules(**rules), "en", "de")[0]]


@pytest.mark.parametrize(
    ("source", "target", "rules", "reason"),
    [
        ("a", " \t", {}, "blank"),
        ("\u3000", "b", {"max_chars": 1}, "blank"),
        ("abcde", "abcde", {"max_chars": 5}, "kept"),
        ("abcde", "abcdef", {"max_chars": 5}, "too long"),
        ("ab", "abcdef", {"max_ratio": 3.0}, "kept"),
        ("ab", "abcdefg", {"max_ratio": 3.0}, "ratio"),
        ("abcdefg", "ab", {"max_ratio": 3.0}, "ratio"),
        ("same  text", " same text", {"copies": True}, "copy"),
        ("é", "e\u0301", {"copies": True}, "copy"),
        ("same", "Same", {"copies": True}, "kept"),
        ("two words", "два слова", {"letters": 0.5}, "script"),
        ("12 + 3", "12 + 3!", {"letters": 0.5}, "kept"),
        ("ab вг", "ab вг!", {"letters": 0.5}, "kept"),
        ("ab вгд", "ab", {"letters": 0.5}, "script"),
    ],
)
def test_each_rule(source, target, rules, reason):
    assert judge(source, target, **rules) == reason


def test_the_first_broken_rule_is_named():
    rules = {"max_chars": 3, "max_ratio": 1.5, "copies": True, "letters": 1.0}
    assert judge("aaaa", "aaaa", **rules) == "too long"
    assert judge("ж", "ж", **rules) == "copy"
    assert judge("a", "ж", **rules) == "script"


@pytest.mark.parametrize("language", SENTENCES)
def test_a_sentence_is_of_its_own_script_and_of_no_other(language):
    own = set(scripts_of(language))
    assert share_of_letters([SENTENCES[language]], sorted(own))[0] == 1.0
    others = {script for code in SENTENCES for script in scripts_of(code)} - own
    assert share_of_letters([SENTENCES[language]], sorted(others))[0] == 0.0


@given(st.lists(st.text(max_size=12), max_size=5))
def test_shares_equal_a_count_by_names(lines):
    def share(line: str) -> float:
        names = [unicodedata.name(c, "") for c in line if unicodedata.category(c) in ("Lu", "Ll", "Lt", "Lo")]
        names = [name.removeprefix("FULLWIDTH ").removeprefix("HALFWIDTH ") for name in names]
        return sum(name.split(" ")[0] in ("LATIN", "GREEK") for name in names) / len(names) if names else 1.0

    assert share_of_letters(lines, ("LATIN", "GREEK")).tolist() == [share(line) for line in lines]


def test_measured_lines_of_one_meaning_are_alike():
    lengths = dict(zip(SENTENCES, measure_lines(list(SENTENCES.values())).tolist(), strict=True))
    assert lengths["en"] == len(SENTENCES["en"])
    for language in ("zh", "ja", "ko", "ru", "de"):
        assert 0.6 < lengths[language] / lengths["en"] < 1.7, language
    assert len(SENTENCES["zh"]) / len(SENTENCES["en"]) < 0.4  # what plain characters would say


@pytest.mark.parametrize(
    ("code", "name"), [("de", "de"), ("deu", "de"), ("ger", "de"), ("pt-BR", "pt"), ("zh_CN", "zh"), ("x", "x")]
)
def test_codes(code, name):
    assert name_language(code) == name


def test_an_unknown_language_turns_the_script_check_off_with_one_warning(caplog):
    clean._find_scripts.cache_clear()
    for _ in range(3):
        why = clean_pairs(["слово"], ["слово"], CleanRules(letters=1.0), "qqx", "ru")
        assert why.tolist() == [0]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "qqx" in caplog.text


def test_pieces_are_judged_as_the_whole_is(monkeypatch):
    rules = CleanRules(max_chars=60, max_ratio=1.4, copies=True, letters=0.5)
    lines = list(SENTENCES.values())
    whole = clean_pairs(lines, lines[::-1], rules, "en", "de")
    assert len(set(whole.tolist())) > 2 and whole.dtype == np.int8
    monkeypatch.setattr(clean, "_LINES_AT_ONCE", 3)
    assert clean_pairs(lines, lines[::-1], rules, "en", "de").tolist() == whole.tolist()
    assert clean_pairs([], [], rules, "en", "de").shape == (0,)


def test_hashes_are_of_the_evened_pair():
    def one(source: str, target: str) -> int:
        return int(hash_pairs([source], [target])[0])

    same = one("a b", "é")
    assert same == one(" a\tb ", "e\u0301")
    assert len({same, one("é", "a b"), one("a", "b é"), one("ab", "é"), one("a b", "É")}) == 5
    assert one("\ud800", "x") != same  # a lone surrogate does not break it
    assert hash_pairs([], []).shape == (0,)


@given(st.lists(st.integers(0, 5), max_size=20))
def test_the_first_of_equal_hashes_stays(values):
    expected = [value in values[:i] for i, value in enumerate(values)]
    assert mark_duplicates(np.array(values, np.uint64)).tolist() == expected


def test_duplicates_are_those_of_all_corpora(tmp_path, caplog):
    first = make_text(["a", "b", "a"], ["x", "y", "x"], name="first")
    second = make_text(["c", "b ", "b"], ["z", "y", "q"], name="second")
    report = tmp_path / "new" / "left_out.jsonl"
    found = clean_texts([first, second], CleanRules(duplicates=True), [("en", "de")] * 2, report)
    assert [(text.source, text.target) for text in found] == [(["a", "b"], ["x", "y"]), (["c", "b"], ["z", "q"])]
    assert found[0].digest == make_text(["a", "b"], ["x", "y"], name="").digest
    rows = [json.loads(line) for line in report.read_text().splitlines()]
    assert rows[0] == {"reason": "duplicate", "corpus": "first", "line": 3, "source": "a", "target": "x"}
    assert [row["corpus"] for row in rows] == ["first", "second"]
    assert "first: left out 1 of 3 pairs (33.3%): 1 duplicate" in caplog.text


def test_tags_stay_with_their_corpus():
    import dataclasses

    text = dataclasses.replace(make_text(["a", "a"], ["x", "x"], name="t"), tags=("bt",))
    assert clean_text(text, CleanRules(duplicates=True), "en", "de").tags == ("bt",)


def test_without_rules_nothing_is_touched(tmp_path):
    text = make_text(["a", " "], ["a", "b"], name="t")
    assert clean_text(text, CleanRules(), "en", "de", tmp_path / "report") is text
    assert not list(tmp_path.iterdir())


def test_nothing_left_is_refused():
    text = make_text(["a", "b"], ["a", "b"], name="my/corpus")
    with pytest.raises(UserError, match=r"my/corpus: config\.clean left out 2 of 2 .*2 copy"):
        clean_text(text, CleanRules(copies=True), "en", "de")


def test_the_sample_has_the_first_twenty_of_each_reason(tmp_path):
    lines = [f"line {i}" for i in range(60)]
    why = np.array([2, 3] * 30, np.int8)
    sample = DropSample()
    for start in range(0, 60, 7):
        part = slice(start, start + 7)
        sample.add(why[part], lines[part], lines[part], corpus="c", start=start)
    sample.write(tmp_path / "sample")
    rows = [json.loads(line) for line in (tmp_path / "sample").read_text().splitlines()]
    assert [row["line"] for row in rows] == [*range(1, 41, 2), *range(2, 41, 2)]
    assert all(row["source"] == lines[row["line"] - 1] for row in rows)


def test_counts_and_their_line():
    counts = count_reasons(np.array([0] * 96 + [3, 3, 7, 1], np.int8))
    assert counts == {"kept": 96, "blank": 1, "ratio": 2, "duplicate": 1}
    assert describe_drops(counts) == "left out 4 of 100 pairs (4.0%): 1 blank, 2 ratio, 1 duplicate"
    assert describe_drops({"kept": 3}) == "all 3 pairs are kept"


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "py3langid", None)
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    clean._load_identifier.cache_clear()
    clean._find_judge.cache_clear()
    with pytest.raises(UserError, match=r"seq2seq_jax\[clean\]"):
        judge("a", "b", language=0.1)


def test_languages_are_told_apart(caplog):
    pytest.importorskip("py3langid")
    lines = [SENTENCES["en"], SENTENCES["de"], SENTENCES["ru"]]
    with caplog.at_level(logging.WARNING):
        why = clean_pairs(lines, [SENTENCES["de"]] * 3, CleanRules(language=0.1), "eng", "de-AT")
    assert [REASONS[n] for n in why] == ["kept", "language", "language"]
    assert not caplog.records
    assert clean_pairs(lines, lines, CleanRules(language=0.9), "qqx", "qqx").tolist() == [0, 0, 0]
    assert "qqx" in caplog.text


@pytest.mark.data
def test_real_captions_are_kept_and_planted_damage_is_found(data_folder):
    pytest.importorskip("py3langid")
    text = read_parallel(data_folder / "multi30k" / "val", source="en", target="de")
    source, target = list(text.source), list(text.target)
    planted = {3: "copy", 10: "language", 20: "too long", 30: "ratio", 40: "script"}
    source[3] = target[3]
    source[10] = target[11]  # German on the English side
    source[20] *= 30
    source[30] = "Yes."
    target[40] = SENTENCES["ru"]
    rules = CleanRules(max_chars=500, max_ratio=4.0, duplicates=True, copies=True, letters=0.5, language=0.1)
    why = clean_pairs(source, target, rules, "en", "de")
    assert {i: REASONS[why[i]] for i in np.flatnonzero(why).tolist()} == planted
    again = mark_duplicates(hash_pairs(source + source[:5], target + target[:5]))
    pairs = list(zip(source, target, strict=True))
    assert again.tolist() == [pair in pairs[:i] for i, pair in enumerate(pairs)] + [True] * 5
