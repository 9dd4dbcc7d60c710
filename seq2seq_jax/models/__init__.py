"""One paper, one file. `MODELS` is the table that a config's `model.name` is looked up in."""

from __future__ import annotations

from seq2seq_jax.models.gnmt import GNMT, GNMTConfig
from seq2seq_jax.models.language_model import LanguageModelConfig, LSTMLanguageModel
from seq2seq_jax.models.lstm import LSTMConfig, LSTMSeq2Seq
from seq2seq_jax.models.rnnsearch import RNNsearch, RNNsearchConfig

MODELS = {
    "gnmt": (GNMT, GNMTConfig),
    "language_model": (LSTMLanguageModel, LanguageModelConfig),
    "lstm": (LSTMSeq2Seq, LSTMConfig),
    "rnnsearch": (RNNsearch, RNNsearchConfig),
}
"""name -> (linen module, its frozen Config)."""
