"""The phrase-based system of the 2014 study: the glue against brute force, and the engine where it is installed."""

import itertools
import json
import math
import os
import random
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import sacrebleu

from seq2seq_jax.data.nbest import group_segments, list_columns, make_matrix, read_nbest, render_line
from seq2seq_jax.errors import UserError

sys.path.append(str(Path(__file__).resolve().parents[2] / "experiments" / "seq2seq_2014"))

import phrase_based  # noqa: E402
import phrase_models  # noqa: E402

SENTENCES = [
    line.split()
    for line in (
        "le chat noir dort . | le chat blanc dort . | un chien noir court dans la rue . | le chien court . | "
        "un chat blanc court . | le chat noir court dans la maison . | la maison est dans la rue . | le chien dort"
    ).split(" | ")
]


def join(sentences):
    return [" ".join(words) for words in sentences]


# n-best lists


def test_lists_hold_each_text_once_with_totals_that_the_features_sum_to(tmp_path):
    generator = np.random.default_rng(0)
    weights = generator.normal(size=8)
    derivations = [(text, generator.normal(size=8) * 10) for text in ("a b", "a c", "a b", "b", "a b", "a c")]
    items = phrase_based.make_list(3, derivations, weights)
    path = tmp_path / "lists"
    path.write_text("".join(render_line(item) for item in items))
    read = read_nbest(path)
    assert [item.segment for item in read] == [3, 3, 3]
    best = {}
    for text, values in derivations:
        best[text] = max(best.get(text, -math.inf), float(values @ weights))
    assert [item.text for item in read] == sorted(best, key=lambda text: -best[text])
    np.testing.assert_allclose([item.total for item in read], sorted(best.values(), reverse=True), atol=1e-4)
    assert [name for name, _ in list_columns(read)] == list(phrase_based.FEATURES)  # both phrase probabilities are TM0
    np.testing.assert_allclose(make_matrix(read, list_columns(read)) @ weights, [x.total for x in read], atol=1e-4)


def write_lists(path, texts, features):
    """Lists `texts[segment][rank]` with one feature."""
    lines = []
    for segment, (some, values) in enumerate(zip(texts, features, strict=True)):
        for text, value in zip(some, values, strict=True):
            lines.append(f"{segment} ||| {text} ||| Good= {value[0]} Bad= {value[1]} ||| 0\n")
    path.write_text("".join(lines))


def test_oracle_and_scores_are_those_of_all_choices(tmp_path):
    references = join(SENTENCES[:4])
    generator = random.Random(1)
    texts = [
        [" ".join(generator.sample(line.split(), k=len(line.split()) - n)) for n in range(3)] for line in references
    ]
    path = tmp_path / "lists"
    write_lists(path, texts, [[(0, 0)] * 3] * 4)
    found = phrase_based.judge(path, references)

    def score(choice):
        return sacrebleu.corpus_bleu(choice, [references], tokenize="none", force=True).score

    assert found["bleu"] == pytest.approx(score([some[0] for some in texts]))
    best = max(score(list(choice)) for choice in itertools.product(*texts))
    assert found["oracle"] <= best + 1e-9
    assert found["oracle"] == pytest.approx(best, abs=0.5)  # exchanges of one at a time may miss a little
    assert (found["sentences"], found["hypotheses"], found["least_hypotheses"]) == (4, 12, 3)


def test_tuned_weights_choose_what_the_good_feature_says(tmp_path):
    references = join(SENTENCES)
    texts = [["oh non", line, "le le le le"] for line in references]
    write_lists(tmp_path / "lists", texts, [[(0.1, 0.9), (0.5, 0.2), (0.3, 0.4)]] * len(texts))
    path = tmp_path / "weights.json"
    phrase_based.tune_weights([tmp_path / "lists"], references, [0.0, 1.0], 2, path)
    found = json.loads(path.read_text())
    items = read_nbest(tmp_path / "lists")
    totals = make_matrix(items, list_columns(items)) @ np.array(found["weights"])
    chosen = [items[max(places, key=lambda n: totals[n])].text for places in group_segments(items).values()]
    assert chosen == references
    assert found["after"] == pytest.approx(100.0)
    assert found["before"] < 1.0
    assert np.abs(found["weights"]).sum() == pytest.approx(phrase_based.SCALE)


# models


def find_probability(history, word, order, sentences):
    """Interpolated modified Kneser-Ney by its definition, with nothing kept between calls."""
    if len(history) == order - 1 or history[:1] == ("<s>",):
        counts = Counter(count_all(sentences, len(history) + 1))
    else:
        longer = set(count_all(sentences, len(history) + 2))
        counts = Counter(ngram[1:] for ngram in longer)
        if history:
            counts.update({k: v for k, v in Counter(count_all(sentences, len(history) + 1)).items() if k[0] == "<s>"})
    discounts = phrase_models.find_discounts(every_count(len(history) + 1, order, sentences))
    here = {ngram[-1]: count for ngram, count in counts.items() if ngram[:-1] == history}
    vocabulary = {word for words in sentences for word in words} | {"</s>"}
    shorter = find_probability(history[1:], word, order, sentences) if history else 1 / len(vocabulary)
    if not here:
        return shorter
    total = sum(here.values())
    kept = max(here.get(word, 0) - discounts[min(here.get(word, 0), 3)], 0) / total
    return kept + sum(discounts[min(count, 3)] for count in here.values()) / total * shorter


def count_all(sentences, length):
    for words in sentences:
        padded = ("<s>", *words, "</s>")
        yield from (padded[n : n + length] for n in range(len(padded) - length + 1))


def every_count(length, order, sentences):
    return phrase_models.count_ngrams(sentences, order)[length - 1]


def read_model(folder, *, more=0):
    """What the engine makes of a language model's files: a function of history and word, without the engine.

    `more` words besides those of the file share what unigrams leave: the engine's vocabulary has some of its own.
    """
    order, levels, size, *weights = (float(x) for x in (folder / "lm.weights").read_text().split())
    ngrams, totals = {}, {}
    for line in (folder / "lm").read_text().splitlines():
        *words, total, count = line.split()
        ngrams[tuple(words)] = float(count)
        assert totals.setdefault(tuple(words[:-1]), float(total)) == float(total)

    def find(history, word):
        level = min(int(totals.get(history, 0.0) / size), int(levels) - 1)
        weight = weights[len(history) * int(levels) + level]
        ratio = ngrams.get((*history, word), 0.0) / totals.get(history, 1.0)
        return weight * ratio + (1 - weight) * (find(history[1:], word) if history else zero)

    zero = 1 / (sum(len(ngram) == 1 for ngram in ngrams) + more)
    return find


@pytest.mark.parametrize("order", [2, 3, 4])
def test_language_model_files_mean_kneser_ney(tmp_path, order):
    phrase_models.write_language_model(SENTENCES, order, tmp_path / "language_model")
    find = read_model(tmp_path / "language_model")
    vocabulary = sorted({word for words in SENTENCES for word in words} | {"</s>"})
    for history in [(), ("chat",), ("<s>", "le"), ("dort", "dort"), ("le", "chat", "noir"), ("<s>", "la", "maison")]:
        history = history[-(order - 1) :]
        found = [find(history, word) for word in vocabulary]
        wanted = [find_probability(history, word, order, SENTENCES) for word in vocabulary]
        np.testing.assert_allclose(found, wanted, atol=3 / phrase_models.LEVELS)
        assert sum(found) == pytest.approx(1.0, abs=1e-6)


def test_discounts_are_those_of_chen_and_goodman():
    counts = Counter({(str(n),): count for n, count in enumerate([1] * 10 + [2] * 4 + [3] * 3 + [4] * 2 + [9])})
    share = 10 / 18
    wanted = [0, 1 - 2 * share * 4 / 10, 2 - 3 * share * 3 / 4, 3 - 4 * share * 2 / 3]
    np.testing.assert_allclose(phrase_models.find_discounts(counts), wanted)


def test_alignments_look_like_those_of_giza():
    found = phrase_models.render_alignment(["la", "maison", "bleue", "!"], ["blue", "house"], [(1, 1), (2, 0), (0, 1)])
    assert found.splitlines() == ["# 1", "la maison bleue !", "NULL ({ 4 }) blue ({ 3 }) house ({ 1 2 })"]


def test_filtered_phrases_are_those_of_the_sentences(tmp_path):
    lines = [f"x ||| {source} ||| 1 1\n" for source in ("a", "a b", "b a", "c", "a b c d e f g", "d", "e f g h", "z")]
    (tmp_path / "all").write_text("".join(lines))
    phrase_models.filter_phrases(tmp_path / "all", [list("abcdefg"), ["h"]], tmp_path / "kept")
    sentence = " a b c d e f g "
    wanted = [line for line in lines if f" {line.split(' ||| ')[1]} " in sentence]
    assert (tmp_path / "kept").read_text() == "".join(wanted)
    assert 0 < len(wanted) < len(lines)


# stages and mistakes


def test_stages_appear_whole_and_once(tmp_path):
    stages, calls = phrase_models.Stages(tmp_path), []

    def fail(path):
        path.mkdir()
        (path / "half").write_text("")
        raise KeyboardInterrupt

    def work(path):
        calls.append(path)
        path.mkdir()
        (path / "whole").write_text("")

    with pytest.raises(KeyboardInterrupt):
        stages.make("a/b", fail)
    assert not (tmp_path / "a" / "b").exists()
    for again in (stages, phrase_models.Stages(tmp_path)):
        assert [file.name for file in again.make("a/b", work).iterdir()] == ["whole"]
    assert len(calls) == 1
    assert "a/b" in phrase_models.Stages(tmp_path).seconds


def write_corpus(folder, pairs, **files):
    folder.mkdir(exist_ok=True)
    for name in phrase_based.SPLITS:
        for side, language in enumerate(("en", "fr")):
            (folder / f"{name}.{language}").write_text("".join(pair[side] + "\n" for pair in pairs[name]))


def test_mistakes_are_told_in_a_line(tmp_path, monkeypatch):
    good = {name: [("a b", "x y"), ("c", "z")] for name in phrase_based.SPLITS}
    write_corpus(tmp_path / "data", good)
    given = phrase_based.parse([f"--data={tmp_path / 'data'}", f"--out={tmp_path / 'out'}"])
    monkeypatch.setitem(sys.modules, "thot", None)
    with pytest.raises(UserError, match=r"seq2seq_jax\[smt\]"):
        phrase_based.run(given)
    assert not (tmp_path / "out").exists()
    for line, wanted in (("", "blank"), (f"a {phrase_models.END}", phrase_models.END), ("a ||| b", r"\|\|\|")):
        write_corpus(tmp_path / "data", {**good, "val": [("a", "x"), (line, "z")]})
        with pytest.raises(UserError, match=rf"val\.en: line 2 .*{wanted}"):
            phrase_based.run(given)
    (tmp_path / "data" / "val.en").write_text("a\n")
    with pytest.raises(UserError, match="val must have as many lines"):
        phrase_based.run(given)
    (tmp_path / "data" / "val.en").unlink()
    with pytest.raises(UserError, match=r"val\.en"):
        phrase_based.run(given)


def test_stages_of_other_choices_are_refused(tmp_path, monkeypatch):
    path, texts = tmp_path / "settings.json", {"train": ([["a"]], [["b"]])}
    flags = ["--data=data", "--out=out"]

    def check(flags, texts=texts):
        given = phrase_based.parse(flags)
        return phrase_based.check_settings(given, phrase_based.describe_settings(given, texts), path)

    assert not check(flags)
    path.write_text(json.dumps(phrase_based.describe_settings(phrase_based.parse(flags), texts)))
    assert check(flags) and check(["--data=elsewhere", "--out=out"])
    with pytest.raises(UserError, match=r"--order=3: .* had 4;"):
        check([*flags, "--order=3"])
    with pytest.raises(UserError, match=r"--data=data: .* other texts;"):
        check(flags, {"train": ([["a"]], [["c"]])})
    monkeypatch.setattr(phrase_based, "JOIN", 2.5)
    with pytest.raises(UserError, match=r"JOIN in phrase_based.py, now 2.5: .* had 1.0; remove that folder"):
        check(flags)


def test_a_report_of_other_choices_is_not_taken_for_these(tmp_path, monkeypatch):
    write_corpus(tmp_path / "data", {name: [("a b", "x y"), ("c", "z")] for name in phrase_based.SPLITS})
    flags = [f"--data={tmp_path / 'data'}", f"--out={tmp_path / 'out'}"]
    given = phrase_based.parse(flags)
    calls = []

    def make_stages(given, thot, stages, splits):
        calls.append(given)
        for name in ("val", "test"):
            for ending in ("nbest", "1best"):
                (stages.folder / "work" / f"{name}.{ending}").write_text(f"{given.order}")
                os.utime(stages.folder / "work" / f"{name}.{ending}", (1000, 1000))
        return {"order": given.order}

    monkeypatch.setattr(phrase_based, "make_stages", make_stages)
    monkeypatch.setattr(phrase_based, "import_thot", lambda: None)
    assert phrase_based.run(given) == phrase_based.run(given) == {"order": 4} and len(calls) == 1
    assert (tmp_path / "out" / "val.nbest").stat().st_mtime == 1000  # a copy of a stage is as old as it
    other = phrase_based.parse([*flags, "--order=3"])
    with pytest.raises(UserError, match=r"--order=3: .*work were made with, but they had 4; remove that folder"):
        phrase_based.run(other)
    shutil.rmtree(tmp_path / "out" / "work")  # as it says
    assert phrase_based.run(other) == {"order": 3} and len(calls) == 2
    assert {(tmp_path / "out" / f"{name}.nbest").read_text() for name in ("val", "test")} == {"3"}


@pytest.mark.parametrize("flag", ["--rounds=0", "--jump=-1", "--nbest=0", "--order=x"])
def test_numbers_out_of_range_end_with_code_2(flag, capsys):
    with pytest.raises(SystemExit) as ended:
        phrase_based.parse(["--data=data", "--out=out", flag])
    assert ended.value.code == 2
    assert flag.split("=")[0] in capsys.readouterr().err


# with the engine


def make_toy(seed, count):
    """Sentences `the ADJECTIVE NOUN VERB`, whose French has the adjective last."""
    generator = random.Random(seed)
    nouns, adjectives, verbs = (
        [(f"{kind}{n}", f"{kind.upper()}{n}") for n in range(size)] for kind, size in (("n", 6), ("a", 5), ("v", 4))
    )
    pairs = []
    for _ in range(count):
        noun, adjective, verb = (generator.choice(some) for some in (nouns, adjectives, verbs))
        pairs.append((f"the {adjective[0]} {noun[0]} {verb[0]}", f"le {noun[1]} {adjective[1]} {verb[1]}"))
    return pairs


def test_engine_learns_a_toy_language_and_keeps_what_is_done(tmp_path):
    pytest.importorskip("thot")
    test = [*make_toy(3, 12), ("the unheard n1 v1", "le N1 unheard V1")]
    write_corpus(tmp_path / "data", {"train": make_toy(1, 300), "val": make_toy(2, 12), "test": test})
    arguments = [f"--data={tmp_path / 'data'}", f"--out={tmp_path / 'out'}", "--rounds=2", "--restarts=1"]
    given = phrase_based.parse([*arguments, "--jump=2", "--nbest=20", "--order=3"])
    report = phrase_based.run(given)
    assert report["scores"]["test"]["bleu"] > 90
    assert report["scores"]["test"]["oracle"] >= report["scores"]["test"]["bleu"]
    first = (tmp_path / "out" / "test.1best").read_text().splitlines()
    assert first[:12] == [french for _, french in test[:12]]
    assert "unheard" in first[12].split()  # a word that was never seen is copied
    items = read_nbest(tmp_path / "out" / "test.nbest")
    groups = group_segments(items)
    assert list(groups) == list(range(13))
    assert [items[places[0]].text for places in groups.values()] == first
    weights = np.array(list(report["weights"].values()))
    np.testing.assert_allclose(make_matrix(items, list_columns(items)) @ weights, [x.total for x in items], atol=1e-3)
    for places in groups.values():
        totals = [items[place].total for place in places]
        assert totals == sorted(totals, reverse=True)
        assert len({items[place].text for place in places}) == len(places)
    (tmp_path / "out" / "report.json").unlink()
    (tmp_path / "out" / "val.nbest").unlink()  # a copy
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "work").rglob("*") if path.is_file()}
    assert phrase_based.run(given)["scores"] == report["scores"]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert read_nbest(tmp_path / "out" / "val.nbest") == read_nbest(tmp_path / "out" / "work" / "val.nbest")


@pytest.mark.parametrize("order", [2, 4])
def test_engine_reads_the_language_model_as_it_is_meant(tmp_path, order):
    pytest.importorskip("thot")
    from thot.common import NGramLanguageModel

    folder = tmp_path / "language_model"
    phrase_models.write_language_model(SENTENCES, order, folder)
    model, find = NGramLanguageModel(), read_model(folder, more=3)
    assert model.load(str(folder / "lm"))
    for line in ("le chat noir dort .", "la rue est blanc", "chien"):
        padded = ["<s>", *line.split(), "</s>"]
        wanted = sum(
            math.log10(find(tuple(padded[max(0, n - order + 1) : n]), padded[n])) for n in range(1, len(padded))
        )
        assert model.get_sentence_log_probability(line.split()) == pytest.approx(wanted, abs=1e-5)


def test_engine_joins_links_of_both_directions():
    pytest.importorskip("thot")
    thot = phrase_models.import_thot()
    # Both say 0-0 and 1-1; one says that word 2 goes with word 1, next to what is agreed on.
    assert phrase_models.join_links(thot, (3, 2), [1, 2], [1, 2, 2]) == [(0, 0), (1, 1), (2, 1)]
