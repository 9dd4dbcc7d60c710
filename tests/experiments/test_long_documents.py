"""Long documents: the texts that are made of news, the flags of every training, and the table."""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import re
from pathlib import Path

import pytest

from seq2seq_jax import command_line
from seq2seq_jax.config import check_config
from seq2seq_jax.data.vocab import Vocab

FILE = Path(__file__).resolve().parents[2] / "experiments" / "long_documents" / "run.py"
spec = importlib.util.spec_from_file_location("long_documents_run", FILE)
run = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run)

ARGS = argparse.Namespace(
    length=128, batch=2, steps=40, learning_rate=0.003, features=8, layers=1, heads=2, more=["--config.train.seed=3"]
)


def test_documents_are_consecutive_sentences_as_long_as_they_fit():
    sentences = ["a b", "c", "d e f g h", "i", "j"]
    sizes = [len(sentence.split()) for sentence in sentences]
    assert list(run.join_sentences(sentences, sizes, 4)) == [
        "a b c",
        "d e f g h",
        "i j",
    ]  # one is longer than a document


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """News of every year, and the texts made of them."""
    news, out = tmp_path_factory.mktemp("news"), tmp_path_factory.mktemp("out")
    for n, name in enumerate((*run.TRAINED_ON, run.HELD_OUT)):
        lines = [f"in year {n} the house of number {i} was sold for {i * 7 % 13} coins" for i in range(30)]
        (news / f"{name}.en").write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    run.write_texts(news, out, length=ARGS.length, vocab_size=60)
    return out


def test_both_forms_have_the_same_text_and_no_document_is_too_long_or_of_two_years(folder):
    vocab, texts = Vocab.load(folder / "texts", "vocab"), folder / "texts"
    for split, parts in (("train", len(run.TRAINED_ON)), ("dev", 1)):
        forms = [(texts / f"{split}_{kind}.en").read_text(encoding="utf-8") for kind in ("sentences", "documents")]
        assert forms[0].split() == forms[1].split() and forms[0].count("\n") == 30 * parts
        documents = forms[1].splitlines()
        assert parts < len(documents) < 30 * parts
        assert max(len(vocab.encode(document)) for document in documents) < ARGS.length
        assert all(len(set(re.findall(r"year (\d+)", document))) == 1 for document in documents)


@pytest.mark.parametrize("name", run.NAMES)
def test_every_training_is_one_that_the_program_takes(name, folder):
    config = command_line.parse(["seq2seq_jax.main", *run.list_flags(name, folder, ARGS)]).config
    check_config(config)
    assert config.model.linformer == (int(name.removeprefix("linformer_")) if "linformer" in name else 0)
    assert config.data.train.endswith("train_sentences" if name == "sentences" else "train_documents")
    assert {config.data.dev[-9:], config.data.test[-9:]} == {"sentences", "documents"} and config.train.seed == 3


def test_a_row_has_both_forms_and_takes_the_place_of_an_older_one(tmp_path, capsys):
    for name in ("sentences", "documents"):
        (tmp_path / name).mkdir()
        other = {"loss": 3.0, "perplexity": 20.1, "accuracy": 0.2}
        page = {"test": other, "steps": 40, "parameters": 99}
        (tmp_path / name / "results.json").write_text(json.dumps(page))
        lines = [
            {"step": 1, "loss": 9.0},
            {"event": "dev", "dev_loss": 2.0, "dev_perplexity": 7.4, "dev_accuracy": 0.5},
        ]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in ("sentences", "documents", "sentences"):
        run.record(tmp_path / "results.csv", run.read_row(name, tmp_path, ARGS))
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = [(row["name"], row["documents_loss"], row["sentences_loss"], row["source_slots"]) for row in rows]
    assert found == [("sentences", "3.0000", "2.0000", "10240"), ("documents", "2.0000", "3.0000", "10240")]
    assert "over documents      7.4, over sentences     20.1" in capsys.readouterr().out
