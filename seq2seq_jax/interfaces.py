"""START HERE: the contracts every part of seq2seq_jax keeps, and the words it uses.

Letters of shapes and einsums, once for the whole project:

    B batch · S source length · T target length · K beam · D model width · N heads · H head width
    F feed-forward · V vocabulary · M mel bins · L layers · A attention width · W waveform samples

Rules that hold everywhere:

- A mask is True where something is real. Padding is False.
- `Memory` is what a decoder reads of one example and never rewrites; `Cache` is what it rewrites,
  one per hypothesis. Every leaf of both leads with the batch (or batch and beam) axis; there are no
  scalars in them: the clock (`step`) is an argument that the search owns, one value a row.
- Steps return sums and counts (`Sums`); a mean is taken once, where a line is logged.
- The output projection stands apart from the decoder (`hidden` first, `project` after it), so that
  loss and search can run it in chunks or over a vocabulary that is split across devices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
from flax import struct

Array = jax.Array
PyTree = Any

Cache = PyTree
"""What a decoder rewrites, one per hypothesis: any pytree whose leaves are `[B, ...]`."""

Sums = Mapping[str, Array]
"""Named sums and counts over a batch, float32 scalars. They add up over batches, devices and hosts."""


@struct.dataclass
class Packing:
    """Which of its row's examples every token is of, and where in it: several short examples share a row.

    Segments count from 1 in every row, 0 is padding; those of a row follow each other, in the same order on both
    sides. Positions count from 0 within each segment.
    """

    source_segments: Array  # [B, S] int32
    source_positions: Array  # [B, S] int32
    target_segments: Array  # [B, T] int32
    target_positions: Array  # [B, T] int32


@struct.dataclass
class Batch:
    """One global batch (or one host's rows of it), padded to a declared shape.

    A row with `row_mask` False only fills the batch: its `example_ids` is -1 and all its masks are
    False. A packed batch carries several short examples a row, told apart by the segment ids (1, 2,
    ...; 0 is padding) with positions counted within each segment; `example_ids` has the first of each row.
    """

    source: Array  # [B, S] int32 tokens; of speech [B, S, W] float32, S frames of W waveform samples each
    source_mask: Array  # [B, S] bool
    target_in: Array  # [B, T] int32, bos first
    target_out: Array  # [B, T] int32, eos last
    target_mask: Array  # [B, T] bool
    example_ids: Array  # [B] int32, index in the corpus, -1 for a filling row
    row_mask: Array  # [B] bool
    source_segments: Array | None = None  # [B, S] int32, packed batches only
    source_positions: Array | None = None  # [B, S] int32
    target_segments: Array | None = None  # [B, T] int32
    target_positions: Array | None = None  # [B, T] int32
    candidates: Array | None = None  # [B, G, T] int32, sequence-level training only: the reference, then outputs
    candidate_lengths: Array | None = None  # [B, G] int32, eos included; 0 for a slot that holds none
    rewards: Array | None = None  # [B, G] float32
    epochs: Array | None = (
        None  # [B] int32, speech only: the epoch that a row is of, which its augmentation is keyed by
    )

    @property
    def packing(self) -> Packing | None:
        """What tells the examples of packed rows apart; None where every row is one example."""
        if self.source_segments is None:
            return None
        parts = (self.source_segments, self.source_positions, self.target_segments, self.target_positions)
        return Packing(*parts)  # type: ignore[arg-type]


@struct.dataclass
class Memory:
    """Everything a decoder reads of its example; never rewritten, never copied per beam."""

    hidden: Array  # [B, S, D] encoder output, zero where masked
    mask: Array  # [B, S] bool
    projected: PyTree = None  # keys, values, whatever is made once a sentence; leaves [B, ...]


@struct.dataclass
class DecoderOutput:
    """The decoder's output under teacher forcing, before the output projection."""

    hidden: Array  # [B, T, D]
    attention: Array | None = None  # [B, T, S] weights, rows sum to one


@struct.dataclass
class StepOutput:
    """One decoder step, before the output projection."""

    hidden: Array  # [B, D]
    attention: Array | None  # [B, S]
    cache: Cache


@struct.dataclass
class StepResult:
    """What the search sees of one step of any model, ensemble or fusion of models.

    Over a split vocabulary `log_probs` is this device's part and `token_ids` says which tokens
    those are; otherwise column v is token v and `token_ids` is None.
    """

    log_probs: Array  # [B, V] float32, normalised over the whole vocabulary
    attention: Array | None  # [B, S]
    cache: Cache
    token_ids: Array | None = None  # [V_local] int32
    # Only where phrases have to appear (`decode.constraints`); "met" counts their tokens that this hypothesis has.
    wanted: Array | None = None  # [B, C] int32, tokens that have to be candidates; -1 is none
    wanted_met: Array | None = None  # [B, C] int32, met after taking each of them
    met: Array | None = None  # [B] int32, met after taking any other token


Step = Callable[[Array, Array, Cache], StepResult]
"""`step(tokens [B] int32, step [B] int32, cache) -> StepResult`: all that a search knows of a model.

`tokens` are the previous tokens (bos at step 0), `step` each row's own clock, counted from 0.
"""


@struct.dataclass
class Hypotheses:
    """The n best outputs of each row, best first.

    Tokens exclude bos, include eos where the hypothesis ended by itself, and are pad after that.
    """

    tokens: Array  # [B, K, T] int32
    lengths: Array  # [B, K] int32, eos included; 0 for a slot that holds no hypothesis
    scores: Array  # [B, K] float32, what the search ranks by; -inf for an empty slot
    log_probs: Array  # [B, K] float32, sum of token log-probabilities
    finished: Array  # [B, K] bool, True if it ended with eos
    attention: Array | None = None  # [B, K, T, S]


class ScoredText(Protocol):
    """An output as text: one entry of an n-best list."""

    @property
    def text(self) -> str: ...

    @property
    def score(self) -> float:
        """What it is ranked by."""
        ...

    @property
    def log_prob(self) -> float: ...


@runtime_checkable
class Encoder(Protocol):
    """Reads a source once."""

    def encode(self, source: Array, source_mask: Array, *, train: bool) -> Memory:
        """`[B, S]` tokens (of speech `[B, S, W]` samples) and their mask to a `Memory`."""
        ...


@runtime_checkable
class Projection(Protocol):
    """The output projection, usable as a whole or in parts."""

    def project(self, hidden: Array) -> Array:
        """Hidden states `[..., D]` to logits `[..., V]`."""
        ...

    def softmax_weights(self) -> tuple[Array, Array]:
        """The same projection as its parts: kernel `[V, D]` and bias `[V]` (zeros where a model has none)."""
        ...


@runtime_checkable
class Seq2Seq(Encoder, Projection, Protocol):
    """An encoder and a decoder that attends to (or starts from) the encoder's memory."""

    def decode(self, target_in: Array, memory: Memory, *, train: bool) -> DecoderOutput:
        """Teacher forcing: all steps of `target_in` `[B, T]` at once."""
        ...

    def init_cache(self, memory: Memory, max_len: int) -> Cache:
        """The cache before the first step; leaves `[B, ...]`, room for `max_len` steps."""
        ...

    def decode_step(self, token: Array, step: Array, memory: Memory, cache: Cache) -> StepOutput:
        """One step: previous token `[B]`, each row's clock `[B]`. Agrees with `decode`."""
        ...


@runtime_checkable
class QuickSteps(Protocol):
    """A `Seq2Seq` whose steps can be told what is made of its parameters once, before the loop over steps."""

    def step_weights(self) -> PyTree:
        """The parameters of the decoder's layers, in the shape in which its steps read them."""
        ...

    def decode_step(
        self, token: Array, step: Array, memory: Memory, cache: Cache, weights: PyTree = None
    ) -> StepOutput:
        """As that of `Seq2Seq`; without `weights` it makes them itself."""
        ...


@runtime_checkable
class Packs(Protocol):
    """A model that keeps several examples of a row apart while it trains: it says so by `packs`.

    The `decode` of a `Seq2Seq` that does takes `packing` likewise: every example reads its own part of the memory.
    """

    packs: bool

    def encode(self, source: Array, source_mask: Array, *, train: bool, packing: Packing | None = None) -> Memory:
        """As that of `Encoder`; with `packing` no example reads of another."""
        ...


@runtime_checkable
class SentenceVectors(Protocol):
    """A `Seq2Seq` without attention, whose decoder knows of a sentence what one state holds."""

    def sentence_vectors(self, memory: Memory) -> Array:
        """That state as one vector for each sentence, `[B, D]`; reads no parameters."""
        ...


@runtime_checkable
class LanguageModel(Projection, Protocol):
    """A decoder without a source (GPT): the same steps as `Seq2Seq` with no memory."""

    def decode(self, target_in: Array, *, train: bool) -> DecoderOutput: ...

    def init_cache(self, batch: int, max_len: int) -> Cache: ...

    def decode_step(self, token: Array, step: Array, cache: Cache) -> StepOutput: ...


@runtime_checkable
class FrameModel(Encoder, Protocol):
    """A model that labels frames (CTC): logits `[B, S, V]` straight from the memory, token 0 the blank."""

    def project_frames(self, memory: Memory) -> Array: ...

    def frame_weights(self) -> tuple[Array, Array]:
        """The same projection as its parts: kernel `[V, D]` and bias `[V]`."""
        ...


@runtime_checkable
class Listener(Encoder, Protocol):
    """An `Encoder` of speech, whose two halves can be had apart: between them training augments the features."""

    def compute_features(self, source: Array, source_mask: Array) -> Array:
        """Waveforms `[B, S, W]` and their mask `[B, S]` to features `[B, S, M]`, zero where masked."""
        ...

    def encode_features(self, features: Array, mask: Array, *, train: bool) -> Memory:
        """Features `[B, S, M]` to the memory, whose steps may be fewer than S."""
        ...


@runtime_checkable
class Streaming(Protocol):
    """An encoder that can be fed in chunks. `state` is a pytree with leaves `[B, ...]`."""

    def init_stream(self, batch: int) -> PyTree: ...

    def encode_chunk(self, chunk: Array, state: PyTree) -> tuple[Memory, PyTree]:
        """The memory of this chunk alone, and the state for the next one."""
        ...


@runtime_checkable
class MaskedModel(Encoder, Projection, Protocol):
    """An encoder trained to fill hidden tokens (BERT): it has no decoder, and nothing searches with it."""

    def fill(self, hidden: Array) -> Array:
        """What `project` reads of hidden tokens, `[..., D]`, from `Memory.hidden` at their places."""
        ...
