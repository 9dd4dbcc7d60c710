"""What is said of how a test set was searched."""

import pytest

from seq2seq_jax.config import default_config
from seq2seq_jax.modes.scoring import describe_search


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({}, "beam 5"),
        ({"preset": "fairseq", "beam_size": 4}, "beam 4 (preset fairseq)"),
        ({"method": "greedy"}, "greedy"),
        (
            {"method": "minimum_bayes_risk", "candidates": 8},
            "minimum_bayes_risk of 8 candidates from sampling",
        ),
        (
            {"ensemble": "/home/me/b,/home/me/c", "language_model": "/home/me/lm"},
            "beam 5 (ensemble with b, c, language model lm)",
        ),
    ],
)
def test_a_search_is_told_in_words_without_folders(keys, words):
    config = default_config()
    config.decode.update(keys)
    assert describe_search(config.decode) == words
