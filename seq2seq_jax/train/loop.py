"""The training loop: batches in, steps taken, numbers out, checkpoints kept, in that order.

It knows no model, no data and no search: what it needs comes as functions in `Run`.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from seq2seq_jax.errors import DivergedError, Terminated
from seq2seq_jax.failpoints import reach
from seq2seq_jax.interfaces import Batch, Sums
from seq2seq_jax.train.checkpoints import Checkpoints
from seq2seq_jax.train.profiling import Profile
from seq2seq_jax.train.signals import StopSignal
from seq2seq_jax.train.step import TrainState
from seq2seq_jax.train.stopping import Evaluations
from seq2seq_jax.train.writers import MetricsFile, Progress, format_duration

LAG = 2
"""Steps that the host reads behind the device, so that reading never waits for the step just sent."""

OF_UPDATES = {"loss", "nll", "nll_weight", "correct", "weight", "grad_norm", "reward", "best_reward"}
"""Sums that a step without an update adds nothing to; its time and tokens count."""


class CompiledStep:
    """The train step, compiled once per shape of batch: counted, timed and told.

    Args:
        step: `step(state, batch) -> (state, sums)`, jitted; or any program whose last argument is a batch.
        shapes: how many shapes there are in all; the bound on compilations.
        tell: receives one line for each compilation.
        meet: called after each: waits for all hosts, since one that is done earlier must not run into the
            time-out (Gloo's is 30 seconds) of the first exchange with the others.
        name: what people are told that it is.
    """

    def __init__(
        self,
        step: Any,
        *,
        shapes: int,
        tell: Callable[[str], None],
        meet: Callable[[], object] = lambda: None,
        name: str = "step",
    ):
        self._step, self._shapes, self._tell, self._meet, self._name = step, shapes, tell, meet, name
        self._compiled: dict[tuple[int, ...], Any] = {}
        self.seconds = 0.0

    def __call__(self, *arguments: Any) -> Any:
        """Takes one step: `(state, batch) -> (state, sums)`."""
        batch: Batch = arguments[-1]
        key = (*batch.source_mask.shape, batch.target_in.shape[1])
        if key not in self._compiled:
            started = time.monotonic()
            reach("compile")
            self._compiled[key] = self._step.lower(*arguments).compile()
            self._meet()
            took = time.monotonic() - started
            self.seconds += took
            rows, source, target = key
            self._tell(
                f"compiled the {self._name} for {rows} rows of {source} + {target} tokens in {format_duration(took)} "
                f"({len(self._compiled)} of at most {self._shapes})"
            )
        return self._compiled[key](*arguments)


class Step(Protocol):
    """What takes a step; see `CompiledStep`."""

    @property
    def seconds(self) -> float:
        """Spent on compiling so far, which is no part of a step's time."""
        ...

    def __call__(self, state: TrainState, batch: Any, /) -> tuple[TrainState, Sums]:
        """One update from what `Run.batches` yields, placed; adds `grad_norm`, `finite` and `skipped` to the sums."""
        ...


@dataclasses.dataclass(frozen=True)
class Run:
    """What the loop needs of the world.

    Attributes:
        step: takes a step, and knows how long it has been compiling.
        batches: `batches(start)` yields what the steps start, start + 1, ... take (this host's rows of it), read
            ahead: a batch, or several in a tuple.
        example_ids: `example_ids(n)` are those of step n (from 0), -1 for a filling row.
        place: puts them (with the other hosts' rows) onto the devices.
        evaluate: `evaluate(state) -> metrics` on dev; may raise `Terminated` when asked to stop.
        meta: `meta(step)` is what a checkpoint says of itself (examples consumed, digests).
        learning_rate: of a step.
        flops: `flops(sums)`: arithmetic of the products in these sums' tokens, for the MFU.
        peak_flops: of all devices a second, or None where unknown.
        steps, save_every, evaluate_every, log_every, max_skipped: see `config.train`.
        evaluations: receives the scores, and says when there have been enough.
        profile: traces the steps that it is for.
    """

    step: Step
    batches: Callable[[int], Iterator[Any]]
    example_ids: Callable[[int], np.ndarray]
    place: Callable[[Any], Any]
    evaluate: Callable[[TrainState], Mapping[str, float]]
    meta: Callable[[int], Mapping[str, Any]]
    learning_rate: Callable[[int], Any]
    flops: Callable[[Mapping[str, float]], float]
    peak_flops: float | None
    steps: int
    save_every: int
    evaluate_every: int
    log_every: int
    max_skipped: int
    evaluations: Evaluations = dataclasses.field(default_factory=Evaluations)
    profile: Profile = dataclasses.field(default_factory=Profile)


class Window:
    """Sums since the last log line, and the clock."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.slots = 0
        self.steps = 0
        self.wait = 0.0
        self.aside = 0.0  # seconds of compilation and evaluation, which are no part of a step
        self.started = time.monotonic()

    def add(self, sums: Mapping[str, Any], slots: int) -> None:
        """Adds the sums of one finished step."""
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
        self.slots += slots
        self.steps += 1

    def record(self, run: Run, step: int) -> dict[str, Any]:
        """The numbers of a log line; every mean is taken here and nowhere else."""
        total = self.sums
        seconds = max(time.monotonic() - self.started - self.aside, 1e-9)
        weight = max(total.get("weight", 0.0), 1.0)
        tokens = total.get("source_tokens", 0.0) + total.get("target_tokens", 0.0)
        record: dict[str, Any] = {
            "step": step,
            "loss": total.get("loss", 0.0) / weight,
            "nll": total.get("nll", 0.0) / max(total.get("nll_weight", weight), 1.0),
            **({"accuracy": total["correct"] / weight} if "correct" in total else {}),
            **{name: total[name] / weight for name in ("reward", "best_reward") if name in total},
            **{name: total[name] / self.steps for name in ("propose_seconds", "judge_seconds") if name in total},
            "learning_rate": float(run.learning_rate(step - 1)),
            "gradient_norm": total.get("grad_norm", 0.0) / max(total.get("finite", float(self.steps)), 1.0),
            "source_tokens_per_second": total.get("source_tokens", 0.0) / seconds,
            "target_tokens_per_second": total.get("target_tokens", 0.0) / seconds,
            "pad_share": 1.0 - tokens / max(total.get("slots", self.slots), 1),
            "data_wait_share": self.wait / seconds,
            "step_seconds": seconds / self.steps,
            "skipped": self.steps - total.get("finite", float(self.steps)),
        }
        if run.peak_flops:
            record["mfu"] = run.flops(total) / seconds / run.peak_flops
        return record


class _Follower:
    """Reads the sums of finished steps a little behind the device; finds the non-finite ones."""

    def __init__(self, run: Run, metrics: MetricsFile, tell: Callable[[str], None]):
        self._run, self._metrics, self._tell = run, metrics, tell
        self._waiting: deque[tuple[int, Sums, int]] = deque()
        self.window = Window()

    def push(self, step: int, sums: Sums, batches: Any) -> None:
        """Notes a step that was sent, and reads the one `LAG` steps before it."""
        whole = jax.tree.leaves(batches, is_leaf=lambda x: isinstance(x, Batch))
        self._waiting.append((step, sums, sum(batch.source_mask.size + batch.target_in.size for batch in whole)))
        if len(self._waiting) > LAG:
            self._read()

    def drain(self) -> None:
        """Reads all that is still waiting."""
        while self._waiting:
            self._read()

    def _read(self) -> None:
        step, sums, slots = self._waiting.popleft()
        values = {name: float(value) for name, value in jax.device_get(dict(sums)).items()}
        skipped = int(values.pop("skipped"))
        if not values["finite"]:
            ids = [int(i) for i in self._run.example_ids(step - 1) if i >= 0]
            self._metrics.write({"step": step, "event": "skipped", "in_a_row": skipped, "example_ids": ids})
            self._tell(f"step {step}: loss or gradient not finite, update left out ({skipped} in a row)")
            values = {name: (value if np.isfinite(value) else 0.0) for name, value in values.items()}
            values |= dict.fromkeys(values.keys() & OF_UPDATES, 0.0)
            if skipped >= self._run.max_skipped:
                raise DivergedError(
                    f"step {step}: {skipped} steps in a row were not finite (config.train.max_skipped); the last one "
                    f"held the examples {ids[:20]}{' ...' if len(ids) > 20 else ''} (all in metrics.jsonl). "
                    "Look at these examples, or start anew (--fresh) with a lower config.train.learning_rate."
                )
        self.window.add(values, slots)


def fit(
    run: Run,
    state: TrainState,
    *,
    checkpoints: Checkpoints,
    metrics: MetricsFile,
    progress: Progress,
    stop: StopSignal,
) -> TrainState:
    """Trains from `state.step` to `run.steps`, or until the evaluations are over.

    Raises:
        Terminated: a signal arrived; the state is saved.
        DivergedError: too many steps in a row were not finite; nothing non-finite is saved.
    """
    first = int(state.step)
    follower = _Follower(run, metrics, progress.message)
    batches = run.batches(first)
    try:
        for done in range(first + 1, run.steps + 1):
            if run.evaluations.is_over():
                break
            window = follower.window
            waited = time.monotonic()
            batch = next(batches)
            window.wait += time.monotonic() - waited
            compiled = run.step.seconds
            batch = run.place(batch)
            window.aside += run.profile.enter(done, follower.drain)
            state, sums = run.step(state, batch)
            reach("step", done)
            window.aside += run.step.seconds - compiled
            follower.push(done, sums, batch)
            window.aside += run.profile.leave(done, follower.drain)
            checkpoints.poll()
            progress.move(done)
            if done % run.log_every == 0 or done == run.steps:
                _log(run, done, follower, metrics, progress)
            _keep(run, state, done, follower, checkpoints, metrics, progress, stop)
            if run.evaluations.is_over() and follower.window.steps:
                _log(run, done, follower, metrics, progress)
        return state
    finally:
        run.profile.close()
        if hasattr(batches, "close"):
            batches.close()


def _log(run: Run, done: int, follower: _Follower, metrics: MetricsFile, progress: Progress) -> None:
    """Writes and shows what the steps since the last time came to."""
    follower.drain()
    record = follower.window.record(run, done)
    metrics.write(record)
    progress.log(done, record)
    follower.window = Window()


def _keep(
    run: Run,
    state: TrainState,
    done: int,
    follower: _Follower,
    checkpoints: Checkpoints,
    metrics: MetricsFile,
    progress: Progress,
    stop: StopSignal,
) -> None:
    """Evaluates and saves where it is time to, and stops where a signal asks for it."""
    evaluating = done % run.evaluate_every == 0 or done == run.steps
    if not (evaluating or done % run.save_every == 0 or stop.requested):
        return
    follower.drain()  # what is saved has been seen to be finite
    started = time.monotonic()
    scores = None
    if evaluating and not stop.requested:
        scores = evaluate_and_log(run, state, done, metrics, progress, stop)
    checkpoints.save(done, state, meta={**run.meta(done), "evaluated": scores is not None}, metrics=scores)
    follower.window.aside += time.monotonic() - started
    if stop.requested:
        checkpoints.wait()
        saved = "which is saved" if checkpoints.is_whole(done) else "which could not be saved"
        stop.check(f"at step {done}, {saved}")


def evaluate_and_log(
    run: Run, state: TrainState, done: int, metrics: MetricsFile, progress: Progress, stop: StopSignal
) -> Mapping[str, float] | None:
    """Scores on dev; None where a signal cut the evaluation short."""
    started = time.monotonic()
    try:
        scores = run.evaluate(state)
    except Terminated:
        return None
    run.evaluations.add(done, scores)
    metrics.write({"step": done, "event": "dev", **{f"dev_{name}": value for name, value in scores.items()}})
    shown = "  ".join(f"{name} {value:.3f}" for name, value in scores.items())
    progress.message(f"dev at step {done}: {shown}  ({format_duration(time.monotonic() - started)})")
    return scores
