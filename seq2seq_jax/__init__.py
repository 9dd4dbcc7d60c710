"""Sequence-to-sequence learning in JAX: train, study and serve."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from seq2seq_jax.loaded_model import LoadedModel

__version__ = "0.1.0"


def load(path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> LoadedModel:
    """Loads a trained model to translate with: an exported folder (`--mode=export`), or a run's folder.

    A list of folders is an ensemble: models with the same vocabularies that search together.

        import seq2seq_jax
        model = seq2seq_jax.load("my_model")
        print(model.translate(["The cat sleeps."]))

    A model of several target languages says them in `model.targets`, and takes one: `translate(..., target="fr")`.

    Raises:
        UserError: there is no model, or it is damaged.
    """
    from seq2seq_jax.loaded_model import load_model  # here: `import seq2seq_jax` alone must stay quick

    return load_model(path)
