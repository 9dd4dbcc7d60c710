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
        ({"method": "prefix_beam"}, "prefix beam 5"),
        ({"method": "prefix_beam", "ngram": "/home/me/own.arpa"}, "beam 5 (n-gram model own.arpa)"),
        ({"ngram": "auto", "ctc_weight": 0.3}, "beam 5 (n-gram model of the training, CTC 0.3)"),
    ],
)
def test_a_search_is_told_in_words_without_folders(keys, words):
    config = default_config()
    config.decode.update(keys)
    assert describe_search(config.decode) == words
