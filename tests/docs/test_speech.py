"""The page on speech: its keys are keys, its tables name what the program has, its code runs."""

import re
from pathlib import Path

import numpy as np
import pytest

from seq2seq_jax.evaluate.speech import NORMALISERS, normalise
from seq2seq_jax.keys import CHOICES, DEFAULTS
from seq2seq_jax.layers.spec_augment import POLICIES
from seq2seq_jax.model_keys import MODEL_KEYS
from seq2seq_jax.serve.subtitles import CUE_SECONDS, FORMATS, LINE_LETTERS, Segment

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "speech.md").read_text(encoding="utf-8")


def part_of(heading: str) -> str:
    """What stands under a heading."""
    return re.split(r"\n#+ ", PAGE.partition(f"\n{heading}\n")[2])[0]


def rows_of(heading: str) -> list[list[str]]:
    """The cells of all tables under a heading, without their heads."""
    lines = [line for line in part_of(heading).split("\n") if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "---" not in line]


@pytest.mark.parametrize("key", sorted(set(re.findall(r"`(?:config\.)?((?:audio|data|decode|train)\.[a-z_]+)", PAGE))))
def test_every_key_is_one(key):
    section, name = key.split(".")
    assert name in DEFAULTS[section]


def test_the_front_end_has_these_defaults():
    told = {}
    for cells in rows_of("## Front end")[1:]:
        values = re.sub(r"`", "", cells[1]).split(", ")
        told |= dict(zip(re.findall(r"`(\w+)`", cells[0]), values, strict=True))
    assert set(told) == {
        "rate", "hop", "window", "fft", "mels", "low", "high", "mel_scale", "log", "normalisation", "preemphasis",
    }  # fmt: skip
    for name, value in told.items():
        default = DEFAULTS["audio"][name]
        assert value == default if isinstance(default, str) else float(value) == default
    for name in ("mel_scale", "log", "normalisation"):
        assert all(f"`{choice}`" in part_of("## Front end") for choice in CHOICES[f"audio.{name}"])


def test_the_policies_are_those_of_the_program():
    rows = {cells[0].strip("`"): cells[1:] for cells in rows_of("## SpecAugment")[1:]}
    assert {*rows, "none"} == set(CHOICES["audio.augment"]) and set(rows) - {"own"} == set(POLICIES) - {"none"}
    for name in set(rows) - {"own"}:
        policy, numbers = POLICIES[name], [float(n) for n in re.findall(r"[\d.]+", " ".join(rows[name]))]
        sizes = [policy.time_warp, policy.freq_masks, policy.freq_width, policy.time_masks, policy.time_width]
        assert numbers == [*sizes, policy.time_share]
    assert all(name in DEFAULTS["audio"] for name in re.findall(r"`(\w+)`", " ".join(rows["own"])))


def test_every_choice_is_told():
    models, search = part_of("## Models"), part_of("## Search")
    for name in ("listener", "subsample"):
        assert all(f"`{choice}`" in models for choice in CHOICES[f"model.{name}"])
    assert all(f"`{name}`" in search for name in ("beam", "greedy", "prefix_beam"))
    assert set(re.findall(r"`(\w+)`", "".join(cells[0] for cells in rows_of("## Models")))) <= set(MODEL_KEYS["ctc"])
    assert all(f"`{name}`" in part_of("## Evaluation") for name in NORMALISERS)
    assert all(f"`{form}`" in part_of("## Transcribing") for form in FORMATS)
    assert f"two lines of {LINE_LETTERS} letters and {CUE_SECONDS:g} seconds" in part_of("## Transcribing")


def test_files_and_presets_are_there():
    for name in re.findall(r"`(\w+/\w+\.py)(?::\w+)?`", PAGE):
        assert (ROOT / name).exists() or (ROOT / "seq2seq_jax" / name).exists(), name
    for config, preset in re.findall(r"`(configs/\w+\.py):(\w+)`", PAGE):
        assert f'"{preset}"' in (ROOT / config).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([\w./]+)\)", PAGE):
        assert (ROOT / "docs" / link).exists(), link


def test_the_example_of_the_rule_is_true():
    assert normalise("twenty-one") == normalise("twenty one") != normalise("21")


def test_the_code_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict = {"hypotheses": ["a b"], "references": ["a c"], "clips": ["a.wav"]}
    names |= {"names": ["a.wav"], "read": lambda name: np.random.default_rng(0).normal(size=16000).astype(np.float32)}
    names |= {"recognise": lambda group: [Segment("hello", 0.0, 1.0) for _ in group]}
    for block in blocks:
        exec(compile(block, "docs/speech.md", "exec"), names)
    assert "<!DOCTYPE html>" in names["page"]
    assert capsys.readouterr().out == "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\nhello\n\n"
