"""Where the candidates of sequence-level training come from."""

from __future__ import annotations

import pytest

from seq2seq_jax.config import default_config
from seq2seq_jax.data.vocab import Vocabs
from seq2seq_jax.data.vocab_training import train_vocab
from seq2seq_jax.decode.beam import Beam
from seq2seq_jax.decode.sample import Draws
from seq2seq_jax.experiment import build
from seq2seq_jax.modes import sequence_step
from seq2seq_jax.tasks.methods import IDS


@pytest.mark.parametrize("proposals", ["sample", "nbest"])
def test_samples_are_of_the_model_s_own_distribution_whatever_is_decoded_with(proposals, monkeypatch):
    config = default_config("lstm")
    config.parallel.data = 1
    config.model.update(features=8)
    config.sequence.update(objective="minimum_risk", candidates=3, proposals=proposals)
    config.decode.update(method="sampling", temperature=0.5, min_length_extra=4, length_extra=9)
    vocab, seen = train_vocab(["one two three"], kind="word", size=9), []
    real = sequence_step.make_decode

    def make_decode(program, search, *, attention):
        seen.append(search)
        return real(program, search, attention=attention)

    monkeypatch.setattr(sequence_step, "make_decode", make_decode)
    sequence_step.jit_propose(build(config, Vocabs(vocab, vocab, True)))
    (search,) = seen
    assert (search.longest(0), search.shortest(0)) == (9, 0 if proposals == "sample" else 4)
    if proposals == "sample":
        assert search.method == Draws(samples=3, **IDS)
    else:
        assert isinstance(search.method, Beam) and search.method.size == 3
