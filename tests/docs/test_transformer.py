"""The page on the Transformer: its keys are keys, and its tables name every choice there is."""

import re
from pathlib import Path

import pytest

from seq2seq_jax.keys import CHOICES, DEFAULTS
from seq2seq_jax.model_keys import MODEL_KEYS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "transformer.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("key", sorted(set(re.findall(r"config\.([a-z_]+\.[a-z_]+)", PAGE))))
def test_every_key_is_one(key):
    section, name = key.split(".")
    assert name in (MODEL_KEYS["transformer"] | MODEL_KEYS["bert"] if section == "model" else DEFAULTS[section])


@pytest.mark.parametrize("name", ["norm", "positions", "activation", "share_embeddings", "linformer_share"])
def test_every_choice_is_told(name):
    start = PAGE.index(f"| `config.model.{name}` |")
    rows = re.match(r"\|.*\n(\| \|.*\n)*", PAGE[start:]).group()  # further values stand in rows without a key
    assert set(re.findall(r"`([a-z]+)`", " ".join(row.split("|")[2] for row in rows.splitlines()))) == set(
        CHOICES[f"model.{name}"]
    )
