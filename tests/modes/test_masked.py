"""A masked language model as people use it: train, go on, evaluate, start a Transformer; and what it is refused for."""

import json

import numpy as np
import pytest

import seq2seq_jax
from seq2seq_jax.config import load_config
from seq2seq_jax.errors import UserError
from seq2seq_jax.main import main
from seq2seq_jax.modes.evaluate import load_run
from seq2seq_jax.provenance import hash_parameters
from seq2seq_jax.workdir import Folder

SIZES = {"features": 8, "heads": 2, "feed_forward": 12}
COMMON = {
    "data.tokens_per_batch": 256,
    "data.pack": True,
    "data.max_source_len": 12,
    "data.max_target_len": 12,
    "vocab.kind": "word",
    "vocab.size": 30,
    "parallel.data": 1,
    "train.warmup_steps": 2,
    "train.decay_steps": 20,
    "train.save_every": 2,
    "train.log_every": 2,
}


def call(*args):
    return main(["seq2seq_jax.main", *map(str, args)])


def set_keys(config):
    return [f"--config.{key}={value}" for key, value in config.items()]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """PREFIX.en and PREFIX.de of three splits."""
    root, rng = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0)
    words = "one two three four red blue cat dog a the".split()
    for name, count in (("train", 80), ("dev", 16), ("test", 16)):
        lines = [" ".join(rng.choice(words, rng.integers(2, 8))) for _ in range(count)]
        (root / f"{name}.en").write_text("".join(line + "\n" for line in lines))
        (root / f"{name}.de").write_text("".join(line.upper() + "\n" for line in lines))
    return root


@pytest.fixture(scope="module")
def run(corpus):
    """A run of the English side, stopped after two steps and gone on with to four."""
    folder = corpus / "bert"
    config = COMMON | {f"data.{name}": corpus / name for name in ("train", "dev", "test")}
    config |= {f"model.{name}": value for name, value in SIZES.items()}
    config |= {"data.target": "en", "model.layers": 1, "model.positions": "sinusoidal", "model.activation": "relu"}
    config |= {"model.embedding_norm": False, "train.evaluate_every": 2, "train.steps": 2}
    assert call("--config=configs/bert.py", f"--workdir={folder}", *set_keys(config)) == 0
    assert call(f"--workdir={folder}", "--config.train.steps=4") == 0
    return folder


def test_dev_and_test_have_loss_perplexity_and_accuracy(run, capsys):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    dev = [line for line in lines if "dev_loss" in line]
    assert [line["step"] for line in dev] == [2, 4]
    for line in dev:
        assert line["dev_perplexity"] == pytest.approx(np.exp(line["dev_loss"]))
        assert 0 <= line["dev_accuracy"] <= 1 and "dev_bleu" not in line
    logged = [line for line in lines if "pad_share" in line]
    assert logged[-1]["target_tokens_per_second"] == 0 < logged[-1]["source_tokens_per_second"]
    assert 0 <= logged[-1]["pad_share"] < 0.6  # of the source's slots alone
    results = json.loads((run / "results.json").read_text())
    assert results["test"]["sentences"] == 16 and results["test"]["hidden_tokens"] >= 16
    assert call(f"--workdir={run}", "--mode=evaluate", "--json") == 0
    again = json.loads(capsys.readouterr().out)
    for name in ("loss", "perplexity", "accuracy", "hidden_tokens", "step"):
        assert again["test"][name] == results["test"][name], name
    assert call(f"--workdir={run}", "--mode=evaluate") == 0
    assert "15% of the tokens hidden" in (told := capsys.readouterr().out) and "accuracy" in told


def test_it_is_described_and_averaged_and_has_vectors(run, tmp_path, capsys):
    assert call(f"--workdir={run}", "--mode=describe", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["model"] == "bert" and {"encoder_stack", "head"} <= set(report["parameters_by_module"])
    lengths = report["compilations"]
    rows = 256 // (12 + 12) // 8 * 8
    assert lengths["train_step_at_most"] == 1 and lengths["longest_source"] + lengths["longest_target"] == 256 // rows
    assert report["slots_per_step"] == rows * lengths["longest_source"]  # of the source alone
    assert call(f"--workdir={run}", "--mode=average", "--last=2", f"--output={tmp_path / 'mean'}") == 0
    assert call(f"--workdir={tmp_path / 'mean'}", "--mode=evaluate") == 0
    (tmp_path / "in.txt").write_text("one red cat\nthe dog\n")
    out = tmp_path / "out.npz"
    assert call(f"--workdir={run}", "--mode=vectors", f"--input={tmp_path / 'in.txt'}", f"--output={out}") == 0
    with np.load(out) as file:
        assert file["vectors"].shape == (2, 8) and str(file["kind"]) == "mean"


@pytest.mark.parametrize(
    "args",
    [
        ("--mode=translate",),
        ("--mode=score",),
        ("--mode=backtranslate",),
        ("--mode=export", "--output=nowhere"),
        ("--mode=rescore", "--models=RUN", "--input=nowhere"),
        ("--mode=rescore", "--input=nowhere"),
        ("--mode=compare",),
        ("--members=2",),
    ],
    ids=str,
)
def test_what_needs_a_decoder_is_refused_in_one_line(run, tmp_path, capsys, args):
    place = tmp_path / "new" if "--members=2" in args else run
    given = ["--config=configs/bert.py"] if "--members=2" in args else []
    assert call(f"--workdir={place}", *given, *(arg.replace("RUN", str(run)) for arg in args)) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert "needs a model with a decoder, but this one is a 'bert'" in told
    with pytest.raises(UserError, match="needs a model with a decoder"):
        seq2seq_jax.load(run)


def test_a_transformer_starts_from_it_and_keeps_the_frozen_encoder(run, corpus):
    folder = corpus / "started"
    config = COMMON | {f"data.{name}": corpus / name for name in ("train", "dev", "test")}
    config |= {f"model.{name}": value for name, value in SIZES.items()}
    config |= {"model.encoder_layers": 1, "model.decoder_layers": 1, "train.steps": 2, "train.freeze": "encoder"}
    config |= {"vocab.from_init": False, "evaluate.dev_sentences": 2, "evaluate.samples": 0, "decode.length_extra": 2}
    call_of = ["--config=configs/transformer.py", f"--workdir={folder}", f"--init_from={run}"]
    assert call(*call_of, *set_keys(config)) == 0
    taken = json.loads((folder / "init_from.json").read_text())
    assert taken["renamed"] == {"target_embedding.table": "source_embedding.table"}
    states = [load_run(load_config(path / "config.json"), Folder(path))[1].state for path in (run, folder)]
    assert taken["parameters_sha256"] == hash_parameters(states[0].averaged)
    told = json.loads((folder / "results.json").read_text())["init_from"]
    assert told == {name: taken[name] for name in ("source", "step", "parameters_sha256")}
    before, after = (state.averaged["encoder_stack"] for state in states)
    assert hash_parameters(before) == hash_parameters(after)
    assert all(f"encoder_stack.{name}" in taken["whole"] for name in before)
