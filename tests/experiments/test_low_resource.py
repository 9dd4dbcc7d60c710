"""The study of few pairs: its files, and runs that differ in what they are compared for and in nothing else."""

import importlib.util
import json
from pathlib import Path

import pytest

from seq2seq_jax import command_line
from seq2seq_jax.config import check_config, flatten
from seq2seq_jax.data.vocab import Vocabs

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("low_resource", ROOT / "experiments" / "low_resource" / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def out(script, tmp_path_factory):
    """A study's folder, its files made of a small corpus."""
    root = tmp_path_factory.mktemp("study")
    for name, count in (("train", 60), ("val", 5), ("test_2016_flickr", 5)):
        for language, word in (("en", "dog"), ("de", "hund")):
            lines = [f"{word} {language} number {n} of {name}\n" for n in range(count)]
            (root / f"{name}.lc.norm.tok.{language}").write_text("".join(lines))
    script.make_data(root, root / "out" / "data", 20)
    return root / "out"


def test_pairs_are_few_and_the_text_is_all(out):
    counts = {path.name: len(path.read_text().splitlines()) for path in (out / "data").glob("*.*")}
    assert counts == {"pairs.en": 20, "pairs.de": 20, "text.en": 60, "dev.en": 5, "dev.de": 5} | {
        "test.en": 5,
        "test.de": 5,
    }
    vocabs = Vocabs.load(out / "data" / "vocab")
    assert vocabs.joint and vocabs.source.digest == vocabs.target.digest


def test_runs_are_alike_but_for_the_start(script, out, monkeypatch):
    monkeypatch.chdir(ROOT)
    runs = script.plan_runs(out, 3, bert_steps=300, steps=400, more=["--config.parallel.data=1"])
    configs = {}
    for name, arguments in runs.items():
        config = command_line.parse(["seq2seq_jax.main", *arguments, f"--workdir={out / name}"]).config
        check_config(config)
        configs[name] = flatten(config)
    scratch, started = configs["scratch"], configs["started"]
    differing = {key for key in scratch if scratch[key] != started[key]}
    assert differing == {"train.init_from"}
    assert started["train.init_from"] == str(out / "seed-3" / "bert")
    bert = configs["bert"]
    same = ("features", "heads", "feed_forward", "norm", "positions", "activation")
    assert all(bert[f"model.{key}"] == scratch[f"model.{key}"] for key in same)
    assert bert["model.layers"] == scratch["model.encoder_layers"] and not bert["model.embedding_norm"]
    assert {config["train.seed"] for config in configs.values()} == {3}


def test_bleu_is_of_words_as_they_are(script, tmp_path):
    """By hand; nothing is split or lower-cased: else BLEU would be 100, or precisions other."""
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "test.hypotheses.txt").write_text("a b c d don't e F\n")
    (tmp_path / "outputs" / "test.references.txt").write_text("a b c d don't e f\n")
    results = {"test": {"bleu": 1.0, "step": 3}, "steps": 4, "wall_seconds": 5.0}
    (tmp_path / "results.json").write_text(json.dumps(results))
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "dev_bleu": 2.5}\n{"step": 4, "dev_bleu": 1.5}\n{"loss": 1}\n')
    found = script.score(tmp_path)
    assert 0 < found.pop("chrf") < 100
    bleu = 100 * (6 / 7 * 5 / 6 * 4 / 5 * 3 / 4) ** 0.25  # of seven words the last one differs
    assert found == {"step": 3, "steps": 4, "wall_seconds": 5.0, "bleu": round(bleu, 2), "dev_bleu": 2.5}
