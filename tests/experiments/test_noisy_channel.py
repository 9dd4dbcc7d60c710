"""The study of a noisy channel: its runs fit together, and what is told of each is what its files say."""

import argparse
import importlib.util
import json
from pathlib import Path

import pytest

from seq2seq_jax import command_line
from seq2seq_jax.config import check_config

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("noisy_channel", ROOT / "experiments" / "noisy_channel" / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_three_runs_are_of_both_directions_and_one_vocabulary(script, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    given = argparse.Namespace(out=tmp_path, **{name: tmp_path / name for name in ("train", "dev", "test")})
    configs = {}
    for name, arguments in script.plan_runs(given).items():
        configs[name] = command_line.parse(["seq2seq_jax.main", *arguments, f"--workdir={tmp_path / name}"]).config
        check_config(configs[name])
    languages = {name: (config.data.source, config.data.target) for name, config in configs.items()}
    assert languages == {"direct": ("en", "de"), "channel": ("de", "en"), "language": ("en", "de")}
    assert not configs["language"].model.source
    assert configs["language"].vocab.file == str(tmp_path / "direct" / "vocab" / "vocab.json")
    assert {name for models, channel in script.FEATURES.values() for name in models + channel} <= set(configs)


@pytest.mark.parametrize(
    ("test", "told"),
    [
        ({"step": 20, "bleu": 39.1234}, "step 20  dev perplexity 5.500  BLEU 39.12"),
        ({"step": 10}, "step 10  dev perplexity 7.000"),
    ],
)
def test_a_run_is_told_by_its_best_step(script, tmp_path, test, told):
    (tmp_path / "results.json").write_text(json.dumps({"test": test}))
    lines = [{"step": 10, "dev_perplexity": 7.0}, {"step": 15, "loss": 1.0}, {"step": 20, "dev_perplexity": 5.5}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert script.tell(tmp_path) == told
