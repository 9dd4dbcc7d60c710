"""A config file for `--config` that reads back the config a run was started with."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from seq2seq_jax.config import load_config


def get_config(path: str) -> ConfigDict:
    """The config saved at `path`."""
    return load_config(Path(path))
