"""The report of the study of Sutskever et al. 2014, from a made-up study: no model is run."""

import importlib.util
import json
import os
import re
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from sacrebleu.metrics import BLEU

from seq2seq_jax.data import phrasebook
from seq2seq_jax.errors import UserError

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "seq2seq_2014"
VOID = {"meta", "img", "br"}


def load(name):
    """A file of the study; another study has files of the same names, which this must not stand before."""
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    spec = importlib.util.spec_from_file_location(f"seq2seq_2014_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


report = load("report")
analyses, figures, probes = (sys.modules[name] for name in ("analyses", "figures", "probes"))

SENTENCES = 40
WORDS = "a man woman dog is on the street with red hat".split()
TABLE = {"key": "t", "title": "Beams & such", "note": "A <note>.", "columns": ["system", "BLEU"],
         "rows": [["reversed", 7.314], ["forward", None]]}  # fmt: skip


def make_lines(seed, *, noise=0.0):
    draw, noisy = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    lines = [[WORDS[k] for k in draw.integers(0, len(WORDS), 4 + n % 9)] for n in range(SENTENCES)]
    return [" ".join("x" if noisy.random() < noise else word for word in words) for words in lines]


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines))


def make_run(out, name, seed, *, noise):
    """A finished run and what is made of it."""
    root, scores = out / "multi30k" / f"{name}-{seed}", out / "scores" / "multi30k"
    write(root / "outputs" / "test.source.txt", make_lines(1))
    write(root / "outputs" / "test.references.txt", make_lines(2))
    write(root / "outputs" / "test.hypotheses.txt", make_lines(2, noise=noise + 0.01 * seed))
    write(root / "config.json", ["{}"])
    write(root / "results.json", [json.dumps({"test": {"bleu": 1.0}})])
    metrics = [{"step": n, "loss": 7 - 0.1 * n + noise} for n in range(1, 31)]
    metrics += [{"step": n, "dev_perplexity": 30 / n} for n in (10, 20, 30)]
    write(root / "metrics.jsonl", map(json.dumps, metrics))
    draw = np.random.default_rng(seed)
    tokens = [len(line.split()) + 1 for line in make_lines(2)]
    log_probs = [{"line": n, "log_prob": -count * (1 + noise), "tokens": count} for n, count in enumerate(tokens, 1)]
    write(scores / f"{name}-{seed}.log_probs.jsonl", map(json.dumps, log_probs))
    if not (scores / "probes.txt").is_file():
        write(scores / "probes.txt", probes.list_sentences("multi30k"))
    vectors = draw.normal(size=(len(probes.list_sentences("multi30k")), 6))
    np.savez(scores / f"{name}-{seed}.vectors.npz", vectors=vectors)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study of three seeds and its report."""
    out = tmp_path_factory.mktemp("study")
    for seed in range(3):
        make_run(out, "reversed", seed, noise=0.1)
        make_run(out, "forward", seed, noise=0.3)
    write(out / "text" / "multi30k" / "train.en", make_lines(3))
    (out / "tables.json").write_text(json.dumps({"tables": [TABLE]}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analyses, "call", lambda argv: pytest.fail(f"nothing is missing, but {argv} is run"))
        assert report.write_report(out) == out / "report.html"
    return out


class Page(HTMLParser):
    """Checks that every tag is closed in its turn; collects tags with their attributes, and text."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def page(study):
    parser = Page()
    parser.feed((study / "report.html").read_text(encoding="utf-8"))
    assert not parser.open
    return parser


def test_the_page_is_whole_and_asks_for_nothing(page):
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe")
        for key in ("src", "href"):
            assert attributes.get(key, "#").startswith(("#", "data:"))
    anchors = {attributes["href"][1:] for tag, attributes in page.tags if tag == "a"}
    assert anchors <= {attributes.get("id") for _, attributes in page.tags} and "multi30k-vectors" in anchors
    assert sum(tag == "svg" for tag, _ in page.tags) == 2 + 4 + 2  # learning, length and rarity, two planes


def test_tables_stand_in_it_as_they_are(page):
    for told in ("Beams & such", "A <note>.", "7.31", "–", "forward"):
        assert told in page.text


def test_pictures_show_every_sentence_and_the_words_are_counted(page, study):
    for picture in probes.PICTURES["multi30k"]:
        for text, _ in picture.sentences:
            assert text in page.text
    assert f"{len(probes.list_probes('multi30k'))} sentences" in page.text
    counts = Counter(word for line in make_lines(3) for word in line.split())
    assert counts["watching"] == 0 and "“beach” (0)" in page.text
    for name in ("lengths", "vectors"):
        assert (study / "pictures" / f"{name}_multi30k.png").read_bytes()[:4] == b"\x89PNG"


def test_numbers_along_the_test_set_are_sacrebleu_s_and_the_log_probabilities(study):
    found = json.loads((study / "figures.json").read_text())["multi30k"]["sorted"]["length"]
    sources, references = make_lines(1), make_lines(2)
    first = sorted(range(SENTENCES), key=lambda n: len(sources[n].split()))[: SENTENCES // 8]
    metric = BLEU(tokenize="none", force=True)
    for seed in range(3):
        said = make_lines(2, noise=0.3 + 0.01 * seed)
        wanted = metric.corpus_score([said[n] for n in first], [[references[n] for n in first]]).score
        assert found["bleu"]["forward"][seed][0] == pytest.approx(wanted)
    assert np.allclose(found["perplexity"]["reversed"], np.exp(1.1))
    assert np.allclose(found["perplexity"]["forward"], np.exp(1.3))
    assert len(found["ranges"]) == 8 and found["ranges"][0].startswith("4–")


def test_means_of_perplexities_are_geometric():
    found = np.array([[2.0, 3.0], [8.0, 3.0]])
    assert figures.average("perplexity", found).tolist() == pytest.approx([4.0, 3.0])
    assert figures.average("BLEU", found).tolist() == [5.0, 3.0]
    assert report.tell_mean([2.0, 8.0], "perplexity") == "4.00 ± 4.24" and report.tell_mean([2.0, 8.0]) == "5.00 ± 4.24"


def test_what_vectors_say_is_told_with_how_sure_it_is(study):
    runs = [run for run in analyses.find_finished(study) if run.name == "reversed"]
    shares = figures.share_nearer(runs, "multi30k", study)
    spaces = figures.compare_spaces(runs, "multi30k", study)["reversed"]
    for pair, found in shares.items():  # of every scene, and in all what `measure_distances` says
        assert found.shape == (3, 8)
        assert found.mean(axis=1).tolist() == pytest.approx([each.nearer for each in spaces[pair]])
    pair = ("plain", "passive")
    rare, often, mixed = np.full((3, 8), 0.25), np.full((3, 8), 0.75), np.tile([0.0, 1.0, 1.0, 0.75], (3, 2))
    told = [report.tell_spaces({pair: found})[0] for found in (often, rare, mixed)]
    assert "passive: in 75% of the cases" in told[0] and told[0].endswith("as in the paper's figure.")
    assert "unlike in the paper's figure" in told[1]
    assert "in 69% of the cases" in told[2] and told[2].endswith("hardly other than chance.")
    assert report.tell_spaces({pair: np.array([])}) == []


def test_only_what_is_missing_or_old_is_made(study, tmp_path, monkeypatch):
    make_run(tmp_path, "reversed", 0, noise=0.1)
    made = []
    monkeypatch.setattr(analyses, "call", lambda argv: made.append(argv[2]) or 0)
    runs = analyses.find_finished(tmp_path)
    assert [run.label for run in runs] == ["reversed-0"]
    analyses.make_analyses(runs, tmp_path)
    assert made == []
    (tmp_path / "scores" / "multi30k" / "reversed-0.vectors.npz").unlink()
    analyses.make_analyses(runs, tmp_path)
    assert made == ["--mode=vectors"]
    results = tmp_path / "multi30k" / "reversed-0" / "results.json"
    os.utime(results, (results.stat().st_atime, results.stat().st_mtime + 100))
    analyses.make_analyses(runs, tmp_path)
    assert made[1:] == ["--mode=score", "--mode=vectors"]
    monkeypatch.setattr(analyses, "call", lambda argv: 2)
    with pytest.raises(UserError, match="--mode=score of reversed-0 did not end well"):
        analyses.make_analyses(runs, tmp_path)


def test_what_is_wrong_is_told_in_one_line(tmp_path, capsys):
    assert report.main(["report.py", f"--out={tmp_path}"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "holds no finished run" in line
    for text, wanted in (("{", "Expecting"), ("{}", "'tables' is missing"),
                         (json.dumps({"tables": [{**TABLE, "rows": [["one"]]}]}), "not as many cells")):  # fmt: skip
        (tmp_path / "tables.json").write_text(text)
        with pytest.raises(UserError, match=wanted):
            report.read_tables(tmp_path / "tables.json")


@pytest.mark.parametrize("corpus", ["multi30k", "phrasebook"])
def test_probes_of_a_scene_and_form_have_the_same_words_in_another_order(corpus):
    found = probes.list_probes(corpus)
    assert 45 <= len(found) <= 60 and len({probe.text for probe in found}) == len(found)
    groups = {}
    for probe in found:
        groups.setdefault((probe.scene, probe.form), []).append(probe)
    assert {form for _, form in groups} == set(probes.FORMS[corpus])
    for one, other in groups.values():
        assert one.meaning != other.meaning
        assert sorted(one.text.lower().strip(".").split()) == sorted(other.text.lower().strip(".").split())


def test_the_phrasebook_has_every_word_of_its_probes():
    known = {word for row in phrasebook.sentences("train", size=2500) for word in re.findall(r"\w+", row["en"].lower())}
    asked = {word for text in probes.list_sentences("phrasebook") for word in re.findall(r"\w+", text.lower())}
    assert asked <= known
