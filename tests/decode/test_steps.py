"""A step function made of a model: its search agrees with teacher forcing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from seq2seq_jax.decode.beam import beam_search
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
        return self.output(hidden)

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
    params = model.init(keys[1], jnp.full((2, 1), BOS), memory)["params"]
    options = {"beam_size": 3, "max_lengths": jnp.array([6, 5]), "max_len": 6, "length_penalty": 0.6}
    ids = {"bos_id": BOS, "eos_id": EOS, "pad_id": PAD}

    @jax.jit
    def search(params, memory):
        return beam_search(seq2seq_step(model, params, memory), jnp.zeros((2, WIDTH)), **options, **ids)

    found = search(params, memory)
    assert (found.lengths > 0).all()
    for slot in range(3):
        targets = found.tokens[:, slot]
        shifted = jnp.concatenate([jnp.full((2, 1), BOS), targets[:, :-1]], axis=1)
        logits = model.apply({"params": params}, shifted, memory)
        real = jnp.arange(6) < found.lengths[:, slot, None]
        again = sequence_log_probs(logits, targets, real)
        np.testing.assert_allclose(found.log_probs[:, slot], again, rtol=1e-5)


def test_sequence_log_probs_by_hand():
    probs = np.array([[[0.2, 0.8], [0.5, 0.5], [0.1, 0.9]]])
    logits = jnp.asarray(np.log(probs) + 3.0, jnp.bfloat16)
    found = sequence_log_probs(logits, jnp.array([[1, 0, 0]]), jnp.array([[True, True, False]]))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, [np.log(0.8 * 0.5)], rtol=0.02)
