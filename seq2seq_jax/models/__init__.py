"""One paper, one file. `MODELS` is the table that a config's `model.name` is looked up in."""

from __future__ import annotations

from seq2seq_jax.models.bert import BERT, BERTConfig
from seq2seq_jax.models.ctc import CTC, CTCConfig
from seq2seq_jax.models.gnmt import GNMT, GNMTConfig
from seq2seq_jax.models.gpt import GPT, GPTConfig
from seq2seq_jax.models.language_model import LanguageModelConfig, LSTMLanguageModel
from seq2seq_jax.models.las import LAS, LASConfig
from seq2seq_jax.models.lstm import LSTMConfig, LSTMSeq2Seq
from seq2seq_jax.models.rnnsearch import RNNsearch, RNNsearchConfig
from seq2seq_jax.models.transformer import Transformer, TransformerConfig

MODELS = {
    "bert": (BERT, BERTConfig),
    "ctc": (CTC, CTCConfig),
    "gnmt": (GNMT, GNMTConfig),
    "gpt": (GPT, GPTConfig),
    "language_model": (LSTMLanguageModel, LanguageModelConfig),
    "las": (LAS, LASConfig),
    "lstm": (LSTMSeq2Seq, LSTMConfig),
    "rnnsearch": (RNNsearch, RNNsearchConfig),
    "transformer": (Transformer, TransformerConfig),
}
"""name -> (linen module, its frozen Config)."""
