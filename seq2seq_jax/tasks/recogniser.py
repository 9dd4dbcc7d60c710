"""Recognition: waveforms in, n-best lists out, with the time of every token where frames are labelled."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from seq2seq_jax.data.pipeline import length_batches
from seq2seq_jax.data.vocab import BOS_ID, EOS_ID, Vocab
from seq2seq_jax.decode.alignment import align
from seq2seq_jax.decode.ctc import frame_log_probs
from seq2seq_jax.interfaces import Array, Batch, Hypotheses, Memory, PyTree
from seq2seq_jax.parallel.frame_logits import frame_logits
from seq2seq_jax.tasks.translation import Candidate, read_candidates

SHORTEST = 32
"""Frames that sources are padded to are this times a power of two, or one and a half of one."""


class Searches(Protocol):
    """What finds hypotheses: `tasks.engine.Engine`, or a `FrameEngine`."""

    @property
    def max_source_len(self) -> int: ...

    def run(
        self, params: PyTree, sources: Sequence[np.ndarray], *, numbers: Sequence[int], poll: Callable[[], None]
    ) -> Iterator[tuple[int, Hypotheses]]: ...

    def forget(self) -> None: ...


@dataclasses.dataclass(frozen=True)
class Recognition:
    """What came of one utterance, best first.

    Attributes:
        candidates: the n-best list.
        frames: of the utterance, as far as it was heard.
        cut: it was longer than allowed.
        times: of each token of the best candidate but eos, `[T, 2]` seconds of its begin and end; None without CTC.
    """

    candidates: list[Candidate]
    frames: int
    cut: bool
    times: np.ndarray | None = None

    @property
    def text(self) -> str:
        """The best candidate's text; empty where nothing was found."""
        return self.candidates[0].text if self.candidates else ""

    @property
    def attention(self) -> np.ndarray | None:
        """Of the best candidate, `[T, S']`, where the model attends and it was asked for."""
        return self.candidates[0].attention if self.candidates else None


@dataclasses.dataclass(frozen=True)
class Recogniser:
    """Recognises utterances with a model.

    Attributes:
        engine: what searches; holds the compiled programs.
        vocab: of the transcripts.
        reduction: frames a step of the model's memory.
        clock: what finds the times of tokens; None without.
    """

    engine: Searches
    vocab: Vocab
    reduction: int
    clock: Clock | None = None

    def recognise(
        self,
        params: PyTree,
        sources: Sequence[np.ndarray],
        *,
        own: PyTree = None,
        first: int = 0,
        poll: Callable[[], None] = lambda: None,
        tell: Callable[[int], None] = lambda count: None,
    ) -> list[Recognition]:
        """Recognises utterances, in their order.

        Args:
            params: of what searches.
            sources: waveforms in frames, `[S, W]` float32 each; one without frames gives nothing.
            own: parameters of the model alone, for the times; by default `params`.
            first: the number of the first one, by which draws are keyed.
            poll: called between parts of the work; may raise to stop.
            tell: receives how many utterances more are done.
        """
        limit = self.engine.max_source_len
        done = [Recognition([], min(len(source), limit), len(source) > limit) for source in sources]
        rows = [n for n, source in enumerate(sources) if len(source)]
        given = [np.asarray(sources[n][:limit], np.float32) for n in rows]
        tell(len(sources) - len(rows))
        for place, found in self.engine.run(params, given, numbers=[first + n for n in rows], poll=poll):
            n = rows[place]
            steps = -(-len(given[place]) // self.reduction)
            done[n] = dataclasses.replace(done[n], candidates=read_candidates(found, self.vocab, steps))
            tell(1)
        if self.clock is None:
            return done
        tokens = [done[n].candidates[0].tokens if done[n].candidates else [] for n in rows]
        times = self.clock.find(params if own is None else own, given, tokens)
        for n, found_times in zip(rows, times, strict=True):
            done[n] = dataclasses.replace(done[n], times=found_times)
        return done


@dataclasses.dataclass(frozen=True)
class FrameEngine:
    """Searches the labels of frames in one program a shape: the best path, or prefix beam search.

    Attributes:
        search: `search(params, batch) -> Hypotheses`, jitted.
        rows: utterances searched at a time.
        max_source_len: frames of an utterance, at most.
        multiple: rows of every batch are a multiple of it: of the devices that share them.
    """

    search: Callable[[PyTree, Batch], Hypotheses]
    rows: int
    max_source_len: int
    multiple: int = 1

    def run(
        self,
        params: PyTree,
        sources: Sequence[np.ndarray],
        *,
        numbers: Sequence[int] | None = None,
        poll: Callable[[], None] = lambda: None,
    ) -> Iterator[tuple[int, Hypotheses]]:
        """As that of `tasks.engine.Engine`."""
        del numbers  # nothing is drawn
        sizes = {"rows": self.rows, "max_len": self.max_source_len, "multiple": self.multiple}
        for ids, batch in make_batches(sources, [[] for _ in sources], **sizes):
            poll()
            found = jax.device_get(self.search(params, batch))
            for row, n in enumerate(ids):
                if n >= 0:
                    yield int(n), jax.tree.map(lambda x, row=row: x[row], found)

    def forget(self) -> None:
        """There is nothing that it holds of parameters."""


@dataclasses.dataclass(frozen=True)
class Clock:
    """When tokens are said: the best path of CTC through the frames that spells them.

    Attributes:
        paths: `paths(params, batch) -> [B, T, 2]` first and last step of each token, jitted; see `make_paths`.
        rows: utterances at a time.
        max_source_len: frames of an utterance, at most.
        seconds: of a step of the memory.
        multiple: see `FrameEngine`.
    """

    paths: Callable[[PyTree, Batch], Array]
    rows: int
    max_source_len: int
    seconds: float
    multiple: int = 1

    def find(
        self, params: PyTree, sources: Sequence[np.ndarray], tokens: Sequence[Sequence[int]]
    ) -> list[np.ndarray | None]:
        """Seconds of begin and end of every token but eos, `[T, 2]` each; None where there is no path."""
        labels = [[token for token in each if token != EOS_ID] for each in tokens]
        found: list[np.ndarray | None] = [None] * len(sources)
        sizes = {"rows": self.rows, "max_len": self.max_source_len, "multiple": self.multiple}
        for ids, batch in make_batches(sources, labels, **sizes):
            steps = np.asarray(jax.device_get(self.paths(params, batch)))
            for row, n in enumerate(ids):
                if n >= 0 and (steps[row, : len(labels[n])] >= 0).all():
                    found[n] = (steps[row, : len(labels[n])] + np.array([0, 1])) * self.seconds
        return found


def make_batches(
    sources: Sequence[np.ndarray], labels: Sequence[Sequence[int]], *, rows: int, max_len: int, multiple: int = 1
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Utterances of like length side by side: their places (-1 only fills), and a batch of NumPy arrays.

    Args:
        sources: frames `[S, W]` float32.
        labels: tokens of each, which become `target_out`.
        rows: of a batch; of few utterances a power of two.
        max_len: frames of a source, at most.
        multiple: rows are rounded up to a multiple of it.
    """
    if not sources:
        return
    rows = -(-min(rows, 1 << (len(sources) - 1).bit_length()) // multiple) * multiple
    width = 1 << max((len(each) for each in labels), default=0).bit_length()
    lengths = [len(source) for source in sources]
    for ids, length in length_batches(lengths, rows=rows, multiple=SHORTEST, max_len=max_len):
        source = np.zeros((rows, length, *sources[0].shape[1:]), np.float32)
        frames, count = np.zeros((2, rows, 1), np.int64)
        target = np.zeros((rows, width), np.int32)
        for row, n in enumerate(ids):
            if n >= 0:
                frames[row], count[row] = min(len(sources[n]), length), len(labels[n])
                source[row, : frames[row, 0]] = sources[n][:length]
                target[row, : len(labels[n])] = labels[n]
        leaves: dict[str, Any] = {
            "source": source,
            "source_mask": np.arange(length) < frames,
            "target_in": np.zeros_like(target),
            "target_out": target,
            "target_mask": np.arange(width) < count,
            "example_ids": ids.astype(np.int32),
            "row_mask": ids >= 0,
            "epochs": np.zeros(rows, np.int32),
        }
        yield ids, Batch(**leaves)


def label_frames(model: nn.Module, params: PyTree, batch: Batch) -> tuple[Array, Array]:
    """Log-probabilities `[B, S', V]` of every step's labels, and the mask `[B, S']` of the steps."""

    def read(module: Any) -> tuple[Memory, Array, Array]:
        memory = module.encode(batch.source, batch.source_mask, train=False)
        return memory, *module.frame_weights()

    memory, kernel, bias = model.apply({"params": params}, method=read)
    split, size = model.execution.vocabulary, model.config.target_vocab
    logits = frame_logits(memory.hidden, kernel, bias, split=split, vocab_size=size)
    return frame_log_probs(logits, memory.mask, forbidden=(BOS_ID, EOS_ID)), memory.mask


def make_paths(model: nn.Module) -> Callable[[PyTree, Batch], Array]:
    """Builds `paths(params, batch) -> [B, T, 2]`: first and last step of every token of `target_out`, -1 for none."""

    def paths(params: PyTree, batch: Batch) -> Array:
        log_probs, mask = label_frames(model, params, batch)
        return align(log_probs, mask, jnp.asarray(batch.target_out), jnp.asarray(batch.target_mask))

    return paths


def make_frame_search(
    model: nn.Module, search: Callable[[Array, Array], Hypotheses]
) -> Callable[[PyTree, Batch], Hypotheses]:
    """Builds `search(params, batch) -> Hypotheses` of what searches log-probabilities `[B, S', V]` and their mask."""

    def run(params: PyTree, batch: Batch) -> Hypotheses:
        return search(*label_frames(model, params, batch))

    return run
