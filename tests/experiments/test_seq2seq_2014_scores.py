"""The study of Sutskever et al. 2014: its tests of significance, rescoring and tables, on studies that are made up."""

import importlib.util
import json
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from sacrebleu.metrics import BLEU

from seq2seq_jax.data.nbest import read_nbest
from seq2seq_jax.errors import UserError

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "seq2seq_2014"


def load(name):
    """A file of the study; it is no package, its files stand beside each other. Another study has a run.py, too."""
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    if name != "run":
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location("seq2seq_2014_run", FOLDER / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


names = ("claims", "programs", "rescoring", "scores", "significance", "tables", "run")
claims, programs, rescoring, scores, significance, tables, run = map(load, names)


# Significance.

REFERENCES = [
    "un homme marche dans la rue .", "deux chiens courent sur l&apos; herbe verte .", "une femme lit un livre .",
    "des gens attendent le bus .", "un enfant joue avec un ballon rouge .", "le chat dort sur la table .",
    "trois filles sautent en l&apos; air .", "un garçon monte sur un cheval .",
]  # fmt: skip


def make_systems(seeds, share):
    """Translations that have lost a share of the references' words."""
    found = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        lines = [" ".join(w if rng.random() > share else "et" for w in line.split()) for line in REFERENCES]
        found.append(lines)
    return found


def test_the_effect_its_interval_and_p_are_those_of_sacrebleu_on_every_resampled_test_set():
    metric = significance.make_words_metric()
    before, after = make_systems((0, 1), 0.35), make_systems((2, 3), 0.2)
    statistics = [[metric.count(lines, REFERENCES) for lines in group] for group in (before, after)]
    counts = significance.draw_counts(len(REFERENCES), resamples=40)
    assert (counts.sum(axis=1) == len(REFERENCES)).all() and counts.std() > 0
    found = significance.find_effect(*statistics, metric.score, counts)

    def score(lines, row):
        drawn = np.repeat(np.arange(len(REFERENCES)), row.astype(int))
        scorer = BLEU(tokenize="none", force=True)
        return scorer.corpus_score([lines[n] for n in drawn], [[REFERENCES[n] for n in drawn]]).score

    whole = [[score(lines, np.ones(len(REFERENCES))) for lines in group] for group in (before, after)]
    real = np.mean(whole[1]) - np.mean(whole[0])
    assert found.effect == pytest.approx(real) and found.before == pytest.approx(np.mean(whole[0]))
    assert found.pairs == pytest.approx(np.subtract(whole[1], whole[0]))
    drawn = [np.mean([score(x, row) for x in after]) - np.mean([score(x, row) for x in before]) for row in counts]
    assert found.interval == pytest.approx(np.percentile(drawn, [2.5, 97.5]))
    assert found.p == (1 + sum(abs(d - np.mean(drawn)) >= abs(real) for d in drawn)) / 41
    assert real > 0 and 1 / 41 <= found.p < 0.5


def test_equal_systems_have_p_one_and_one_system_is_paired_with_each_of_several():
    rng = np.random.default_rng(0)
    nats = [np.stack([rng.uniform(1, 9, 50), np.full(50, 3.0)], axis=1) for _ in range(3)]
    counts = significance.draw_counts(50, resamples=99)
    score = significance.score_log_probs
    same = significance.find_effect(nats, nats, score, counts)
    assert (same.p, same.effect, same.pairs) == (1.0, 0.0, (0.0, 0.0, 0.0))
    better = nats[0] - [0.6, 0.0]  # a fifth of a nat a token for every sentence
    found = significance.find_effect([nats[0]], [better], score, counts)
    assert found.p == 1 / 100 and found.effect == pytest.approx(-0.2) and found.interval == pytest.approx((-0.2, -0.2))
    several = significance.find_effect(nats, [better], score, counts)
    assert several.pairs == pytest.approx([float(score(better.sum(0)) - score(each.sum(0))) for each in nats])
    assert significance.find_effect([better], nats, score, counts).effect == pytest.approx(-several.effect)
    with pytest.raises(ValueError, match=r"are of \(2, 3\) instead"):
        significance.find_effect(nats[:2], nats, score, counts)


@pytest.mark.parametrize(
    ("effect", "p", "pairs", "wanted", "verdict"),
    [
        (1.0, 0.01, (0.5, 1.5), 1, "appeared"),
        (1.0, 0.051, (0.5, 1.5), 1, "not shown"),
        (1.0, 0.01, (-0.5, 2.5), 1, "not shown"),
        (-1.0, 0.01, (-0.5, -1.5), 1, "did not appear"),
        (-1.0, 0.2, (-0.5, -1.5), 1, "not shown"),
        (-1.0, 0.01, (-0.5, -1.5), -1, "appeared"),
        (0.0, 1.0, (0.0,), 1, "not shown"),
    ],
)
def test_verdicts_ask_for_the_sign_p_and_every_pair(effect, p, pairs, wanted, verdict):
    assert significance.judge(effect, p, pairs, wanted=wanted) == verdict


def test_p_of_several_tests_is_corrected_as_holm_does():
    assert significance.correct([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # R's p.adjust
    assert significance.correct([0.04]) == [0.04] and significance.correct([]) == []
    rng = np.random.default_rng(0)
    for count in (2, 5, 30):
        ps = np.concatenate([rng.uniform(size=count) ** 3, [1 / 5001] * 2])
        corrected = significance.correct(ps)
        for level in (0.01, 0.05, 0.3):  # by the definition: as long as the smallest of those left is shown
            left, shown = list(range(len(ps))), set()
            while left and min(ps[left]) * len(left) <= level:
                shown.add(left.pop(int(np.argmin(ps[left]))))
            assert {n for n, p in enumerate(corrected) if p <= level} == shown
    assert 30 / (significance.RESAMPLES + 1) < significance.LEVEL  # else no claim of thirty could be shown


def test_a_mean_is_bounded_by_how_rows_and_columns_differ():
    assert significance.bound_mean(np.full((3, 8), 0.7)) == pytest.approx((0.7, 0.7))
    rng = np.random.default_rng(0)
    rows, columns = rng.normal(size=(60, 1)), rng.normal(size=(1, 30))
    low, high = significance.bound_mean(rows + columns, resamples=2000)
    wanted = 1.96 * math.sqrt(rows.var() / 60 + columns.var() / 30)
    middle = float((rows + columns).mean())
    assert (middle - low, high - middle) == pytest.approx((wanted, wanted), rel=0.1)


def test_words_are_what_stands_between_blanks_so_that_apostrophes_are_split_once():
    metric = significance.make_words_metric()
    said = ["sur l&apos; eau et l&apos; herbe verte ."]
    assert metric.count(said, said)[0][0] == 8  # not twelve
    assert "tok:none" in metric.signature and metric.score(metric.count(said, said)[0]) == pytest.approx(100.0)


def test_perplexities_change_by_per_cent_and_for_each_layer():
    counts = significance.draw_counts(20, resamples=50)
    worse = [np.stack([np.full(20, 6.0), np.full(20, 3.0)], axis=1)]  # 2 nats a token
    better = [np.stack([np.full(20, 5.4), np.full(20, 3.0)], axis=1)]  # 1.8
    claim = claims.Claim("two layers", "perplexity", "reversed", "layers4", "nearly -10 %", 2)
    found = claims.check_claim(claim, worse, better, significance.score_log_probs, counts)
    assert found["before_value"] == pytest.approx(math.exp(2.0)) and found["after_value"] == pytest.approx(
        math.exp(1.8)
    )
    assert found["effect"] == pytest.approx(100 * (math.exp(-0.1) - 1)) == pytest.approx(-9.516, abs=1e-3)
    other = claims.check_claim(claim, better, worse, significance.score_log_probs, counts)
    verdicts = [each["verdict"] for each in claims.judge_claims([found, other])]
    assert verdicts == ["appeared", "did not appear"]  # lower is better
    judged = claims.judge_claims([found] * 3)  # p is 1 of 51, three times as much is above 0.05
    assert {(each["p"], each["p_corrected"], each["verdict"]) for each in judged} == {(1 / 51, 3 / 51, "not shown")}


# Whole studies that are made up.


def make_run(out, corpus, label, share, *, vocabulary="v", references=REFERENCES, more=0.0):
    """A finished run whose translations have lost a share of the words."""
    place = scores.Place(out, corpus)
    seed = int(label[-1])
    (out / corpus / label / "outputs").mkdir(parents=True)
    (lines,) = make_systems((seed,), share)
    sides = {"hypotheses": lines, "references": references, "source": references}
    for side, text in sides.items():
        (out / corpus / label / "outputs" / f"test.{side}.txt").write_text("".join(line + "\n" for line in text))
    results = {"test": {"bleu": 1.0}, "vocab_sha256": vocabulary, "parameters": 2_000_000, "wall_seconds": 300.0}
    (out / corpus / label / "results.json").write_text(json.dumps(results | {"steps": 9, "train_loss": 1.5}))
    rows = [{"line": n + 1, "log_prob": -9.0 * (1 + share) - n - more, "tokens": 5} for n in range(len(references))]
    place.folder.mkdir(parents=True, exist_ok=True)
    place.find_log_probs(label).write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_what_is_finished_is_compared_and_what_is_missing_is_named(tmp_path):
    for seed in range(3):
        make_run(tmp_path, "multi30k", f"reversed-{seed}", 0.1)
        make_run(tmp_path, "multi30k", f"forward-{seed}", 0.4, more=seed)
    make_run(tmp_path, "multi30k", "layers1-0", 0.2)
    found = claims.find_results("multi30k", tmp_path)
    assert found["metric"]["name"] == "bleu_words" and found["metric"]["sentences"] == 8
    assert set(found["systems"]) == {"forward@12", "reversed@12"} and set(found["perplexities"]) == {
        "forward",
        "reversed",
    }
    of_seeds = [math.exp((8 * (9 * 1.4 + seed) + 28) / 40) for seed in range(3)]
    forward = found["perplexities"]["forward"]
    assert forward["values"] == pytest.approx(of_seeds)
    assert forward["mean"] == pytest.approx(np.prod(of_seeds) ** (1 / 3))
    assert forward["mean"] == pytest.approx(found["comparisons"][0]["before_value"])
    assert [each["key"] for each in found["comparisons"]] == [
        "perplexity: forward to reversed",
        "bleu: forward@12 to reversed@12",
    ]
    assert all(each["verdict"] == "appeared" and len(each["pairs"]) == 3 for each in found["comparisons"])
    assert "training layers1-1" in found["missing"] and "smt: no smt/test.1best" in found["missing"]
    assert "layers1@12: no multi30k/layers1-1/outputs/test.hypotheses.txt" in found["missing"]
    log_probs = scores.Place(tmp_path, "multi30k").find_log_probs("forward-1")
    text = log_probs.read_text()
    log_probs.write_text("".join(text.splitlines(keepends=True)[:5]))
    with pytest.raises(UserError, match="forward-1.log_probs.jsonl: has 5 rows, but the test set has 8"):
        claims.find_results("multi30k", tmp_path)
    log_probs.write_text(text)
    os.utime(log_probs, (0, 0))  # as where the run was trained again
    again = claims.find_results("multi30k", tmp_path)
    told = "scores/multi30k/forward-1.log_probs.jsonl is older than what it is made of"
    assert list(again["perplexities"]) == ["reversed"] and f"perplexity of forward: {told}" in again["missing"]
    (tmp_path / "multi30k" / "forward-2" / "outputs" / "test.hypotheses.txt").write_text("too short\n")
    with pytest.raises(UserError, match="has 1 lines, but the test set has 8"):
        claims.find_results("multi30k", tmp_path)


@pytest.mark.parametrize(("other", "told"), [({"vocabulary": "w"}, "vocabulary"), ({"references": ["a"]}, "test set")])
def test_runs_of_other_texts_or_vocabularies_are_not_compared(other, told, tmp_path):
    make_run(tmp_path, "phrasebook", "reversed-0", 0.1)
    make_run(tmp_path, "phrasebook", "forward-0", 0.1, **other)
    with pytest.raises(UserError, match=f"forward-0: has another {told} than reversed-0"):
        claims.find_results("phrasebook", tmp_path)


def write_lists(place, split, items, references):
    """The system's lists and the reading of one model; items are `segment, text, total, log-probability`."""
    place.find_scored("x", split).parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{n} ||| {text} ||| LM= {total / 2} ||| {total}\n" for n, text, total, _ in items]
    place.find_list(split).write_text("".join(lines))
    for label, offset in (("reversed-0", 0.0), ("reversed-1", -1.0)):
        lines = [f"{n} ||| {text} ||| LM= 0 {label}= {lp + offset} ||| 0\n" for n, text, _, lp in reversed(items)]
        place.find_scored(label, split).write_text("".join(lines))
    (place.out / "text" / "multi30k").mkdir(parents=True, exist_ok=True)
    (place.out / "text" / "multi30k" / f"{split}.fr").write_text("".join(line + "\n" for line in references))


def test_lists_are_weighed_evenly_by_tuned_weights_and_by_an_oracle(tmp_path, monkeypatch):
    place = scores.Place(tmp_path, "multi30k")
    right, wrong = REFERENCES[:2], ["un chat bleu .", "rien du tout ."]
    # val: the model alone knows; test: by an even average the first list goes wrong, by tuned weights neither.
    val = [(0, wrong[0], -1.0, -9.0), (0, right[0], -6.0, -6.0), (1, wrong[1], -1.0, -8.0), (1, right[1], -5.0, -7.5)]
    test = [(0, wrong[0], -1.0, -5.0), (0, right[0], -6.0, -3.0), (2, wrong[1], -2.0, -8.0), (2, right[1], -3.0, -2.0)]
    write_lists(place, "val", val, right)
    write_lists(place, "test", test, [right[0], "sans liste", right[1]])
    monkeypatch.setitem(rescoring.MIXES, "pair", ("reversed-0", "reversed-1"))
    items, features = rescoring.read_lists(place, ("reversed-0", "reversed-1"), "test")
    assert [item.segment for item in items] == [0, 0, 2, 2]
    assert features[0].tolist() == [-1.0, -5.5]  # the total, and the mean of -5 and -6
    for name in ("pair", "oracle"):
        rescoring.rescore(tmp_path, name)
    assert scores.read_lines(place.folder / "average-pair.txt") == [wrong[0], "", right[1]]
    assert scores.read_lines(place.folder / "tuned-pair.txt") == [right[0], "", right[1]]
    assert scores.read_lines(place.folder / "oracle.txt") == [right[0], "", right[1]]
    report = json.loads((place.folder / "rescored-pair.json").read_text())
    assert report["val"]["tuned"] == pytest.approx(100.0) and report["val"]["before"] < 20
    assert report["weights"]["models"] > 5 * report["weights"]["total"]
    scored = place.find_scored("reversed-0", "test")
    scored.write_text(scored.read_text().replace("reversed-0=", "other="))
    with pytest.raises(UserError, match="reversed-0.test.nbest: is not of .* it has no 'reversed-0'"):
        rescoring.rescore(tmp_path, "pair")
    scored.write_text(scored.read_text().replace("other=", "reversed-0="))
    place.find_list("test").write_text("0 ||| another text ||| LM= 0 ||| -1\n")
    with pytest.raises(UserError, match="reversed-0.test.nbest: is not of .*test.nbest"):
        rescoring.rescore(tmp_path, "pair")


def test_models_read_the_first_of_every_list(tmp_path, monkeypatch):
    monkeypatch.setattr(rescoring, "LIST_LENGTH", 2)
    (tmp_path / "smt").mkdir()
    for split in ("val", "test"):
        lines = [f"{n} ||| {split} {k} ||| LM= {k}.5 ||| {-k}\n" for n in (0, 3) for k in range(4 - n)]
        (tmp_path / "smt" / f"{split}.nbest").write_text("".join(lines))
    rescoring.cut_lists(tmp_path)
    kept = read_nbest(scores.Place(tmp_path, "multi30k").find_list("test"))
    found = [(item.segment, item.text, item.features["LM"], item.total) for item in kept]
    assert found == [(0, "test 0", (0.5,), 0.0), (0, "test 1", (1.5,), -1.0), (3, "test 0", (0.5,), 0.0)]


def test_a_file_that_is_not_there_is_told_in_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["rescoring.py", f"--out={tmp_path}", "--name=oracle"])
    assert programs.call("rescoring.py", rescoring.main) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and told[0].startswith(f"rescoring.py: error: {tmp_path}")


# Tables.


def make_result():
    system = {"label": "one", "values": [7.25, 7.375], "mean": 7.3125, "std": 0.0884, "interval": 0.5, "paper": 30.59}
    smt = {"label": "a system", "values": [40.0], "mean": 40.0, "std": None, "interval": 1.0, "paper": 33.3}
    average = {"label": "its lists, even average with one", "values": [41.0], "mean": 41.0, "std": None}
    claim = {"claim": "more", "measure": "bleu", "paper": "", "before_value": 7.25, "after_value": 8.0, "effect": 0.75}
    claim |= {"interval": [0.25, 1.25], "p": 0.004, "p_corrected": 0.0123, "pairs": [1.0, -0.5], "verdict": "not shown"}
    run_facts = {"parameters": 2066336, "steps": 3000, "wall_seconds": 300.0, "train_loss": 2.5}
    return {
        "metric": {"name": "bleu", "signature": "tok:none", "sentences": 1000},
        "missing": ["training layers4-2"],
        "runs": {"reversed-0": run_facts},
        "systems": {"reversed@12": system, "smt": smt, "average:reversed": average | {"interval": 1.0, "paper": 35.85}},
        "perplexities": {"reversed": {"label": "two", "mean": 9.5, "std": 0.25, "tokens": 14988, "paper": 4.7}},
        "comparisons": [claim, claim | {"measure": "perplexity", "paper": "5.8 → 4.7"}],
    }


def test_tables_show_numbers_beside_the_papers():
    found = tables.make_tables({"multi30k": make_result()})
    assert [table["key"].partition("-")[2] for table in found] == [
        "systems",
        "rescoring",
        "perplexities",
        "claims",
        "runs",
    ]
    assert all(len(row) == len(table["columns"]) for table in found for row in table["rows"])
    text = tables.render(found, {"multi30k": ["training layers4-2"]})
    assert "| one | 2 | 7.31 ± 0.09 | 0.50 | 30.59 |" in text
    assert "| nothing: its 1-best | 40.00 | – | 33.30 |\n| one | 41.00 | – | 35.85 |" in text
    assert "| two | 2,066,336 | 9.50 ± 0.25 | 4.70 |" in text and "Of 14,988 tokens" in text
    assert "| more | – | 7.25 → 8.00 | +0.75 [+0.25, +1.25] | 0.0040 | 0.0123 | 1 of 2 | not shown |" in text
    assert "| more | 5.8 → 4.7 | 7.25 → 8.00 | +0.75 % [+0.25, +1.25] |" in text
    assert text.rstrip().endswith("- multi30k: training layers4-2")
    json.dumps(found)


def test_a_readme_gets_the_tables_between_its_markers_and_nothing_else_changes(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("# Head\n\n<!-- tables -->\nold\n<!-- /tables -->\n\nTail\n")
    for text in ("| a |\n", "| b |\n"):
        tables.write_readme(path, text)
    assert path.read_text() == "# Head\n\n<!-- tables -->\n\n| b |\n\n<!-- /tables -->\n\nTail\n"
    path.write_text("none")
    with pytest.raises(UserError, match="must have the lines"):
        tables.write_readme(path, "text")
    assert tables.BEGIN in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_the_tables_of_a_study_are_written_and_keep_what_was_told_of_other_corpora(tmp_path, capsys):
    make_run(tmp_path, "phrasebook", "reversed-0", 0.1)
    (tmp_path / "tables.json").write_text(json.dumps({"corpora": {"multi30k": make_result()}}))
    run.write_tables(("phrasebook",), tmp_path)
    found = json.loads((tmp_path / "tables.json").read_text())
    assert list(found["corpora"]) == ["multi30k", "phrasebook"] and "jax" in found["made_with"]
    text = (tmp_path / "tables.md").read_text()
    assert "- phrasebook: training layers4-2" in text and text in capsys.readouterr().out
