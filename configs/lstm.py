"""The LSTM without attention (Sutskever et al. 2014, arXiv 1409.3215), reading its source reversed.

    python -m seq2seq_jax.main --config=configs/lstm.py              the built-in corpus

It is the measure of what attention is worth: the same data, vocabulary, width, batches and steps as
`configs/gnmt.py`; only the model differs. The decoder starts from the encoder's last state and knows
no more of the source. There is no attention to draw and no coverage to penalise.

Differs from the paper: 2 layers of width 128 and subwords instead of 4 layers of 1000 and 160,000
words; Adam instead of gradient descent; dropout.
"""

from ml_collections import ConfigDict

from seq2seq_jax.config import default_config
from seq2seq_jax.errors import UserError


def get_config(preset: str = "") -> ConfigDict:
    """The config; there are no presets."""
    if preset:
        raise UserError(f"configs/lstm.py has no preset {preset!r}: leave it out.")
    return default_config("lstm")
