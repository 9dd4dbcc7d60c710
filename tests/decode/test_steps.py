"""A step function made of a model: its search agrees with teacher forcing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from seq2seq_jax.decode.beam import beam_search
from seq2seq_jax.decode.ranking import Ranking
from seq2seq_jax.decode.steps import seq2seq_step, sequence_log_probs
from seq2seq_jax.interfaces import Memory, StepOutput

PAD, BOS, EOS, VOCAB, WIDTH = 0, 2, 3, 9, 8


class Tiny(nn.Module):
    """A recurrent decoder over the mean of its memory."""

    def setup(self):
        self.embedding = nn.Embed(VOCAB, WIDTH, embedding_init=nn.initializers.normal(1.0))
        self.mix = nn.Dense(WIDTH)
        self.output = nn.Dense(VOCAB, kernel_init=nn.initializers.normal(1.0))

    def decode_step(self, token, step, memory, cache):
        weights = memory.mask / memory.mask.sum(-1, keepdims=True)
        context = jnp.einsum("BS,BSD->BD", weights, memory.hidden)
        clock = 0.1 * step[:, None].astype(jnp.float32)
        hidden = jnp.tanh(self.mix(cache + self.embedding(token) + context + clock))
        return StepOutput(hidden=hidden, attention=weights, cache=hidden)

    def project(self, hidden):
        return self.output(hidden) - 2.0 * (jnp.arange(VOCAB) == EOS)  # makes some outputs reach the limit

    def __call__(self, tokens, memory):
        """Teacher forcing, `[B, T]` to logits `[B, T, V]`."""
        cache, outputs = jnp.zeros((tokens.shape[0], WIDTH)), []
        for t in range(tokens.shape[1]):
            step = self.decode_step(tokens[:, t], jnp.full(tokens.shape[:1], t), memory, cache)
            cache = step.cache
            outputs.append(self.project(step.hidden))
        return jnp.stack(outputs, axis=1)


def test_the_log_probs_of_a_search_equal_teacher_forcing():
    keys = jax.random.split(jax.random.key(0), 2)
    mask = jnp.asarray([[True, True, True], [True, False, False]])
    memory = Memory(hidden=jax.random.normal(keys[0], (2, 3, WIDTH)) * mask[..., None], mask=mask)
    model = Tiny()
    params = jax.jit(model.init)(keys[1], jnp.full((2, 1), BOS), memory)["params"]
    ranking = Ranking("gnmt", length_penalty=0.6)
    options = {"beam_size": 3, "max_lengths": jnp.array([6, 5]), "max_len": 6, "ranking": ranking}
    ids = {"bos_id": BOS, "eos_id": EOS, "pad_id": PAD}

    @jax.jit
    def search(params, memory):
        return beam_search(seq2seq_step(model, params, memory), jnp.zeros((2, WIDTH)), **options, **ids)

    found = search(params, memory)
    assert (found.lengths > 0).all()
    assert found.finished.any() and found.lengths.max() > 2
    repeated = jax.tree.map(lambda x: jnp.repeat(x, 3, axis=0), memory)  # row 0 three times, row 1 three times
    targets, lengths = found.tokens.reshape(6, 6), found.lengths.reshape(6, 1)

    @jax.jit
    def rescore(params):
        shifted = jnp.concatenate([jnp.full((6, 1), BOS), targets[:, :-1]], axis=1)
        return sequence_log_probs(model.apply({"params": params}, shifted, repeated), targets, jnp.arange(6) < lengths)

    np.testing.assert_allclose(found.log_probs.reshape(-1), rescore(params), rtol=1e-5)


def test_sequence_log_probs_by_hand():
    probs = np.array([[[0.2, 0.8], [0.5, 0.5], [0.1, 0.9]]])
    logits = jnp.asarray(np.log(probs) + 3.0, jnp.bfloat16)
    found = sequence_log_probs(logits, jnp.array([[1, 0, 0]]), jnp.array([[True, True, False]]))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, [np.log(0.8 * 0.5)], rtol=0.02)
