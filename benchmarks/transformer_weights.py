"""The weights of `transformer_search.py` as files, and the sizes of its model: for processes of any side."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from seq2seq_jax.models.transformer import TransformerConfig


def make_config(args: argparse.Namespace) -> TransformerConfig:
    """The model of a command line."""
    from seq2seq_jax.models.transformer import TransformerConfig

    return TransformerConfig(
        source_vocab=args.vocab,
        target_vocab=args.vocab,
        features=args.features,
        encoder_layers=args.layers,
        decoder_layers=args.decoder_layers,
        heads=args.heads,
        feed_forward=args.feed_forward,
        dtype=args.dtype,
    )


def write(params: dict[str, Any], folder: Path, name: str) -> None:
    """Writes a tree of two levels."""
    leaves = {f"{module}/{leaf}": array for module, own in params.items() for leaf, array in own.items()}
    np.savez(folder / f"{name}.npz", **leaves)


def find(args: argparse.Namespace, part: str) -> Path:
    """The weights of a part, without the ending: outputs of "real" end by themselves unless lengths are given."""
    return Path(args.weights) / ("real" if part == "real" and not args.references else "even")


def read(args: argparse.Namespace, part: str) -> dict[str, Any]:
    """The tree that `write` has written for a part."""
    params: dict[str, Any] = {}
    with np.load(find(args, part).with_suffix(".npz")) as leaves:
        for name, array in leaves.items():
            module, leaf = name.split("/")
            params.setdefault(module, {})[leaf] = array
    return params
