"""RNNsearch: neural machine translation by jointly learning to align and translate (Bahdanau et al. 2015, 1409.0473).

    source ► embedding ► layer ahead ┐                 y(i-1) ► embedding ───────────────┬──────────────┐
                       ► layer back  ┴► h_1 ... h_S                  │                   │              │
                                            │                        ▼                   ▼              ▼
            s(i-1) ──── asks ────────► attention ► context c_i ► decoder ► s_i    t = maxout(U s + V Ey + C c) ► softmax

    s_0 = tanh(W_s h_1's backward half)                                  (appendix A.2.2)
    a_ij = v . tanh(W_a s_(i-1) + U_a h_j)   c_i = sum_j softmax(a_i)_j h_j
    p(y_i) = softmax(W_o t_i)                t_i = maxout(U_o s_(i-1) + V_o E y_(i-1) + C_o c_i)

With `attention_from="current_step"` and `readout="tanh"` it is the attention of Luong et al. (2015, 1508.04025,
section 3.1; without input feeding): the decoder's layer runs over the whole target first and without a context, all
its states ask at once, and t_i = tanh(W_c [c_i; s_i]). Their scores are `attention="general"` and `"dot"`. An
annotation is twice as wide as the state that asks; for "dot" its key is the sum of both directions.

The readout reads the state that asked, which is the paper's s_(i-1) (and that of its code, Groundhog): y_(i-1) reaches
the word y_i only through its embedding, and s_i is for later words. Many later implementations read s_i:
`readout_state="newest"`.

Differs from the paper: the reset gate is applied after the product with the state (as cuDNN and PyTorch have it), which
adds a bias inside it; the first word is predicted from the embedding of <bos>, not of nothing; biases, which the
paper leaves out of its equations, are where sums are; dropout is available (the paper uses none), on embeddings,
annotations, the contexts that the decoder reads, and the readout. Of an LSTM, s_0 is the output; its cell starts at
zero.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from seq2seq_jax.interfaces import Array, DecoderOutput, Memory, PyTree, StepOutput
from seq2seq_jax.layers.attending import Asking, Attended, recur_attending
from seq2seq_jax.layers.attention import ATTENTION, make_attention
from seq2seq_jax.layers.cells import State
from seq2seq_jax.layers.dense import Dense, maxout
from seq2seq_jax.layers.dropout import Dropout, dropout_mask, make_places
from seq2seq_jax.layers.projections import Embedding, Softmax
from seq2seq_jax.layers.recurrent import Recurrent, make_weights, project
from seq2seq_jax.models.both_directions import run_directions
from seq2seq_jax.models.layer_kind import check_layers, make_kind
from seq2seq_jax.parallel.layout import ONE_PROGRAM, Execution

ATTENTION_FROM = ("previous_step", "current_step")
READOUTS = ("maxout", "tanh")
READOUT_STATES = ("asking", "newest")
RECURRENT_INITS = ("scaled", "orthogonal")


@dataclasses.dataclass(frozen=True)
class RNNsearchConfig:
    """Sizes and choices; the defaults are RNNsearch-50's, but for its 30,000 words on each side.

    Attributes:
        source_vocab: tokens in the source vocabulary.
        target_vocab: tokens in the target vocabulary.
        features: n, width of the decoder's state and of each direction of the encoder.
        embedding_features: m, width of both embeddings.
        attention_features: n', width of the hidden layer of additive attention.
        readout_features: l, width of what the softmax reads.
        attention: how a state scores the source: "additive" (Bahdanau), "dot" or "general" (Luong).
        attention_from: whose state asks: "previous_step" (Bahdanau) or "current_step" (Luong).
        readout: "maxout" (Bahdanau) or "tanh" (Luong).
        readout_state: the state that the readout reads: "asking", the one that asked for the context (the papers), or
            "newest", which is the one after it with attention from the previous step.
        cell: of the layers: "gru", "lstm" or "lstm_peephole".
        cells: width of a cell, projected to n; 0 is n without a projection.
        layer_norm: inside the cells.
        dropout: rate on what is not recurrent.
        recurrent_dropout: rate on what a layer gives to its next step, one draw a sentence.
        init_scale: parameters are drawn uniformly from [-init_scale, init_scale]; 0 scales them by
            their inputs, see `seq2seq_jax.layers.initializers`.
        attention_init_scale: the same for the attention's; 0 is `init_scale`.
        recurrent_init: recurrent kernels are drawn as all others ("scaled"), or "orthogonal" for every gate.
        dtype: dtype of the products; parameters and states are float32.
    """

    source_vocab: int
    target_vocab: int
    features: int = 1000
    embedding_features: int = 620
    attention_features: int = 1000
    readout_features: int = 500
    attention: str = "additive"
    attention_from: str = "previous_step"
    readout: str = "maxout"
    readout_state: str = "asking"
    cell: str = "gru"
    cells: int = 0
    layer_norm: bool = False
    dropout: float = 0.0
    recurrent_dropout: float = 0.0
    init_scale: float = 0.0
    attention_init_scale: float = 0.0
    recurrent_init: str = "scaled"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        choices = {
            "attention": ATTENTION,
            "attention_from": ATTENTION_FROM,
            "readout": READOUTS,
            "readout_state": READOUT_STATES,
            "recurrent_init": RECURRENT_INITS,
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"`{name}` must be one of {known}, but is {getattr(self, name)!r} instead.")
        for name in ("features", "embedding_features", "attention_features", "readout_features"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, but is {getattr(self, name)} instead.")
        check_layers(self)
        if self.layer_norm and self.attention_from == "previous_step":
            raise ValueError(
                "`layer_norm` must be False with `attention_from` 'previous_step', whose decoder has its input "
                "products inside the loop; use 'current_step'."
            )


@struct.dataclass
class RNNsearchCache:
    """The state of the decoder's layer after the words so far."""

    state: State  # [B, width] float32 each, the output last


class RNNsearch(nn.Module):
    """A bidirectional encoder, attention, and a decoder of one layer; keeps the `Seq2Seq` protocol.

    Attributes:
        config: sizes and choices.
        execution: what to know of the devices it runs on.
    """

    config: RNNsearchConfig
    execution: Execution = ONE_PROGRAM

    def setup(self) -> None:
        cfg = self.config
        dtype, scale, look_up = jnp.dtype(cfg.dtype), cfg.init_scale, self.execution.look_up
        width, words, memory = cfg.features, cfg.embedding_features, 2 * cfg.features
        inside = cfg.attention_from == "previous_step"  # the loop over the target
        self.kind = dataclasses.replace(make_kind(cfg, self.execution), recurrent_init=cfg.recurrent_init)
        self.source_embedding = Embedding(cfg.source_vocab, words, dtype, scale, look_up)
        self.target_embedding = Embedding(cfg.target_vocab, words, dtype, scale, look_up)
        self.encoder_forward = Recurrent(self.kind, words)
        self.encoder_backward = Recurrent(self.kind, words)
        self.first_state = Dense(width, width, dtype, scale)
        self.attention = make_attention(
            cfg.attention,
            features=cfg.attention_features,
            query_features=width,
            key_features=memory,
            dtype=dtype,
            init_scale=cfg.attention_init_scale or scale,
        )
        self.decoder = Recurrent(self.kind, words + (memory if inside else 0))
        if cfg.readout == "maxout":
            self.readout = Dense(width + words + memory, 2 * cfg.readout_features, dtype, scale)
        else:
            self.readout = Dense(memory + width, cfg.readout_features, dtype, scale)
        self.softmax = Softmax(cfg.target_vocab, cfg.readout_features, init_scale=scale)
        self.dropout = Dropout(cfg.dropout)

    def _places(self, tokens: Array) -> Array:
        """What dropout is keyed by, `[T, B, 2]`, for tokens `[B, T]`."""
        return make_places(self.execution.row_numbers(tokens.shape[0]), tokens.shape[1])

    def encode(self, source: Array, source_mask: Array, *, train: bool) -> Memory:
        """Source tokens `[B, S]` to the annotations of both directions, `[B, S, 2n]`, and their keys."""
        mask, places = source_mask.T, self._places(source)
        x = self.dropout(self.source_embedding(source.T), places, train=train)  # [S, B, m]
        key = self.make_rng("dropout") if train and self.kind.recurrent_dropout else None
        directions = self.encoder_forward.parameters(), self.encoder_backward.parameters()
        x = run_directions(self.kind, self.execution, directions, x, mask, places, key=key)
        x = self.dropout(x, places, train=train)
        hidden = x.swapaxes(0, 1) * source_mask[..., None].astype(x.dtype)
        return Memory(hidden=hidden, mask=source_mask, projected=self.attention.project_keys(hidden))

    def _start(self, memory: Memory) -> State:
        """The decoder's state before the first word, of the first annotation's backward half."""
        first = jnp.tanh(self.first_state(memory.hidden[:, 0, self.config.features :]))
        zeros = self.kind.zero_state(memory.hidden, memory.mask.shape[:1])
        return (*zeros[:-1], first)

    def decode(self, target_in: Array, memory: Memory, *, train: bool) -> DecoderOutput:
        """Teacher forcing over `target_in` `[B, T]`. Padding comes last, so that no step needs a mask."""
        cfg, start, places = self.config, self._start(memory), self._places(target_in)
        x = self.dropout(self.target_embedding(target_in.T), places, train=train)  # [T, B, m]
        if cfg.attention_from == "previous_step":
            states, contexts, weights = self._decode_attending(x, memory, start, places, train=train)
        else:
            states, _ = self.decoder(x, mask=None, places=places, initial=start, train=train)
            contexts, weights = self.attention(states.swapaxes(0, 1), memory.projected, memory.hidden, memory.mask)
            contexts = contexts.swapaxes(0, 1)
        if cfg.attention_from == "previous_step" and cfg.readout_state == "asking":
            states = jnp.concatenate([start[-1][None].astype(states.dtype), states[:-1]])
        hidden = self.dropout(self._read_out(states, x, contexts), places, train=train)
        return DecoderOutput(hidden=hidden.swapaxes(0, 1), attention=weights)

    def _decode_attending(
        self, x: Array, memory: Memory, start: State, places: Array, *, train: bool
    ) -> tuple[Array, Array, Array]:
        """The paper's decoder: one loop over T in which the last state asks first.

        Returns states `[T, B, n]`, contexts `[T, B, 2n]` and weights `[B, T, S]`.
        """
        kind, own = self.kind, self.decoder.parameters()
        query, v = self.attention.query_weights()
        rate = self.config.dropout if train else 0.0
        context_noise = None
        if rate:
            width = memory.hidden.shape[-1]
            context_noise = dropout_mask(self.make_rng("dropout"), rate, places, width, x.dtype)
        states, contexts, weights = recur_attending(
            kind.cell,
            project(kind, own, (x, None)),
            make_weights(kind, own),
            Asking(query, v, own["input_kernel"][x.shape[-1] :]),
            Attended(memory.projected, memory.hidden, memory.mask),
            initial=start,
            noise=self.decoder.draw_noise(places, train=train),
            context_noise=context_noise,
            loop=kind.loop,
        )
        return states, contexts, weights.swapaxes(0, 1)

    def _read_out(self, states: Array, words: Array, contexts: Array) -> Array:
        """States `[..., n]`, embedded last words `[..., m]` and contexts `[..., 2n]` to what the softmax reads."""
        if self.config.readout == "maxout":
            return maxout(self.readout(states, words, contexts)).astype(words.dtype)
        return jnp.tanh(self.readout(contexts, states)).astype(words.dtype)

    def init_cache(self, memory: Memory, max_len: int) -> RNNsearchCache:
        """The first state; `max_len` is not needed by a recurrent decoder."""
        del max_len
        return RNNsearchCache(self._start(memory))

    def step_weights(self) -> PyTree:
        """The weights of the decoder's layer as `decode_step` reads them."""
        return self.decoder.step_weights()

    def decode_step(
        self, token: Array, step: Array, memory: Memory, cache: RNNsearchCache, weights: PyTree = None
    ) -> StepOutput:
        """One step from the previous tokens `[B]`; agrees with `decode`."""
        del step  # a recurrent decoder's clock is its state
        cfg, old = self.config, cache.state
        own = self.decoder.step_weights() if weights is None else weights

        def ask(state: Array) -> tuple[Array, Array]:
            contexts, attention = self.attention(state[:, None], memory.projected, memory.hidden, memory.mask)
            return contexts[:, 0], attention[:, 0]

        x = self.target_embedding(token)
        if cfg.attention_from == "previous_step":
            context, attention = ask(old[-1])
            new = self.decoder.step(x, context, state=old, weights=own)
        else:
            new = self.decoder.step(x, state=old, weights=own)
            context, attention = ask(new[-1])
        asked_before = cfg.attention_from == "previous_step" and cfg.readout_state == "asking"
        hidden = self._read_out((old if asked_before else new)[-1], x, context)
        return StepOutput(hidden=hidden, attention=attention, cache=RNNsearchCache(new))

    def softmax_weights(self) -> tuple[Array, Array]:
        """Kernel `[V, l]` and bias `[V]` of the output projection, float32."""
        return self.softmax.weights()

    def project(self, hidden: Array) -> Array:
        """What the readout gave `[..., l]` to logits `[..., V]` float32."""
        return self.softmax(hidden)

    def __call__(self, source: Array, source_mask: Array, target_in: Array, *, train: bool = False) -> Array:
        """Everything at once, logits `[B, T, V]`: makes the parameters, and serves small studies."""
        memory = self.encode(source, source_mask, train=train)
        return self.project(self.decode(target_in, memory, train=train).hidden)
