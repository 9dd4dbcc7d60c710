"""The training loop with a toy step and a made-up clock: what is logged, saved and evaluated, and how it ends.

The toy device takes a second a step and works while the host goes on: asking for a sum waits until it is there.
"""

from __future__ import annotations

import dataclasses
import io
import json
import signal
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seq2seq_jax.errors import DivergedError, Terminated
from seq2seq_jax.interfaces import Batch
from seq2seq_jax.train import loop, profiling
from seq2seq_jax.train.loop import CompiledStep, Run, fit
from seq2seq_jax.train.profiling import Profile
from seq2seq_jax.train.signals import StopSignal
from seq2seq_jax.train.step import TrainState
from seq2seq_jax.train.stopping import Evaluations
from seq2seq_jax.train.writers import MetricsFile, Progress

STEP_SECONDS, COMPILE_SECONDS, EVALUATE_SECONDS = 1.0, 100.0, 50.0
ROWS, SOURCE, TARGET = 2, 3, 4
SLOTS = ROWS * (SOURCE + TARGET)


def make_batch(number: int, *, source: int = SOURCE) -> Batch:
    """Batch n (from 0) holds the examples 10 n and a filling row; no more of it is looked at."""
    return Batch(
        source=np.zeros((ROWS, source), np.int32),
        source_mask=np.ones((ROWS, source), bool),
        target_in=np.zeros((ROWS, TARGET), np.int32),
        target_out=np.zeros((ROWS, TARGET), np.int32),
        target_mask=np.ones((ROWS, TARGET), bool),
        example_ids=np.array([10 * number, -1], np.int32),
        row_mask=np.array([True, False]),
    )


def make_sums(step: int) -> dict[str, float]:
    """The sums of a step (from 1): every step has another weight, so that a mean of means is no mean."""
    weight = float(step)
    losses = {"loss": 3.0 * weight * step, "nll": 2.0 * weight * step, "correct": 0.5 * weight}
    counts = {"weight": weight, "source_tokens": 4.0, "target_tokens": 3.0, "rows": 1.0}
    return losses | counts | {"grad_norm": float(step), "finite": 1.0, "skipped": 0}


class Later:
    """A number that the device has not computed yet."""

    def __init__(self, clock: Clock, ready: float, value: float):
        self._clock, self._ready, self._value = clock, ready, value

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        self._clock.now = max(self._clock.now, self._ready)
        return np.asarray(self._value, dtype)


@dataclasses.dataclass
class Clock:
    """The host's time, and that until which the device is busy."""

    now: float = 0.0
    busy: float = 0.0

    def monotonic(self) -> float:
        return self.now


class World:
    """All that a run needs, made of toys; notes what happened in `events`, `saves` and the metrics file."""

    def __init__(self, path, monkeypatch):
        self.clock, self.path = Clock(), path
        monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=self.clock.monotonic))
        self.events: list[str] = []
        self.saves: dict[int, tuple[dict, dict | None]] = {}
        self.bad: dict[int, dict[str, float]] = {}  # step -> the sums that are not finite
        self.signals: dict[str, int] = {}  # event -> the signal that arrives during it
        self.data_seconds = 0.0
        self.started_at: list[int] = []
        self._in_a_row = 0
        self.stop = StopSignal()
        self.scores: list[float] = []  # of the evaluations to come; ten times the step where there is none
        self.evaluations = Evaluations()
        self.profiled = range(0)
        self.batches_a_step = 1
        self.step = None

    def note(self, event: str) -> None:
        self.events.append(event)
        if event in self.signals:
            signal.raise_signal(self.signals[event])

    # What a compiled step offers: `step.lower(state, batch).compile()(state, batch)`.
    def lower(self, state, batch):
        return self

    def compile(self):
        self.clock.now += COMPILE_SECONDS
        return self.take

    def take(self, state, batch):
        step = int(state.step) + 1
        assert isinstance(batch, Batch) or len(batch) == self.batches_a_step
        self.note(f"step {step}")
        self._in_a_row = self._in_a_row + 1 if step in self.bad else 0
        sums = make_sums(step)
        if step in self.bad:
            sums |= {"finite": 0.0, "skipped": self._in_a_row, **self.bad[step]}
        clock = self.clock
        clock.busy = max(clock.now, clock.busy) + STEP_SECONDS
        later = {name: Later(clock, clock.busy, value) for name, value in sums.items()}
        return state.replace(step=np.int32(step)), later

    # What the folder of checkpoints offers.
    def save(self, step, state, *, meta, metrics=None):
        assert int(state.step) == step
        self.note(f"save {step}")
        self.saves[step] = (dict(meta), metrics)
        return True

    def poll(self):
        pass

    def wait(self):
        self.note("wait")

    def is_whole(self, step):
        return step in self.saves

    def batches(self, start):
        self.started_at.append(start)
        number = start
        try:
            while True:
                self.clock.now += self.data_seconds
                yield make_batch(number) if self.batches_a_step == 1 else (make_batch(number),) * self.batches_a_step
                number += 1
        finally:
            self.note("closed")

    def evaluate(self, state):
        self.note(f"evaluate {int(state.step)}")
        self.clock.now += EVALUATE_SECONDS
        self.stop.check("during an evaluation")
        return {"bleu": self.scores.pop(0) if self.scores else 10.0 * int(state.step)}

    def fit(self, steps, *, first=0, **cadences):
        """Trains with cadences that never come, except the given ones."""
        shown = io.StringIO()
        every = {"save_every": 1000, "evaluate_every": 1000, "log_every": 1000, "max_skipped": 3} | cadences
        state = TrainState(step=np.int32(first), skipped=np.int32(0), params={}, opt_state=())
        run = Run(
            step=self.step or CompiledStep(self, shapes=1, tell=lambda line: None),
            batches=self.batches,
            example_ids=lambda n: np.array([10 * n, -1]),
            place=lambda batch: batch,
            evaluate=self.evaluate,
            meta=lambda step: {"examples": 100 * step},
            learning_rate=lambda count: 0.1 * count,
            flops=lambda sums: 7.0 * (sums["source_tokens"] + sums["target_tokens"]),
            peak_flops=98.0,
            steps=steps,
            evaluations=self.evaluations,
            profile=Profile(self.profiled, self.path.parent / "profile", self.note),
            **every,
        )
        with MetricsFile(self.path) as metrics, Progress(steps, stream=shown) as progress, self.stop as stop:
            return fit(run, state, checkpoints=self, metrics=metrics, progress=progress, stop=stop)

    def records(self, event: str | None = None) -> list[dict]:
        """The records of the metrics file: the log lines, or those of an event."""
        records = [json.loads(line) for line in self.path.read_text().splitlines()]
        return [record for record in records if record.get("event") == event]


@pytest.fixture
def world(tmp_path, monkeypatch):
    return World(tmp_path / "metrics.jsonl", monkeypatch)


# --- cadences and numbers ------------------------------------------------------------------------


def test_it_logs_saves_and_evaluates_when_it_is_time_to_and_at_the_end(world):
    state = world.fit(7, log_every=3, save_every=2, evaluate_every=4)
    assert int(state.step) == 7
    assert [record["step"] for record in world.records()] == [3, 6, 7]
    assert world.records("dev") == [{"step": n, "event": "dev", "dev_bleu": 10.0 * n} for n in (4, 7)]
    assert world.saves == {
        2: ({"examples": 200, "evaluated": False}, None),
        4: ({"examples": 400, "evaluated": True}, {"bleu": 40.0}),
        6: ({"examples": 600, "evaluated": False}, None),
        7: ({"examples": 700, "evaluated": True}, {"bleu": 70.0}),
    }
    assert world.events[-4:] == ["step 7", "evaluate 7", "save 7", "closed"]


def test_a_resumed_run_goes_on_where_it_was(world):
    world.fit(6, first=4, log_every=1)
    assert world.started_at == [4]
    assert [event for event in world.events if "step" in event] == ["step 5", "step 6"]
    assert [record["step"] for record in world.records()] == [5, 6]


def test_a_finished_run_takes_no_step(world):
    assert int(world.fit(4, first=4).step) == 4
    assert not world.saves and not any("step" in event for event in world.events)


def test_means_are_sums_over_the_window_divided_once(world):
    world.fit(5, log_every=3)
    for record, steps in zip(world.records(), ([1, 2, 3], [4, 5]), strict=True):
        sums = [make_sums(step) for step in steps]
        weight = sum(s["weight"] for s in sums)
        assert record["loss"] == pytest.approx(sum(s["loss"] for s in sums) / weight)
        assert record["nll"] == pytest.approx(sum(s["nll"] for s in sums) / weight)
        assert record["accuracy"] == pytest.approx(0.5)
        assert record["gradient_norm"] == pytest.approx(np.mean(steps))
        assert record["learning_rate"] == pytest.approx(0.1 * (steps[-1] - 1))  # the count before the step
        assert record["pad_share"] == pytest.approx(1 - 7 / SLOTS)
        assert record["skipped"] == 0


def test_the_time_of_a_step_has_no_compilation_and_no_evaluation_in_it(world):
    world.fit(8, log_every=2, evaluate_every=2)
    for record in world.records():
        assert record["step_seconds"] == pytest.approx(STEP_SECONDS)
        assert record["source_tokens_per_second"] == pytest.approx(4.0)
        assert record["target_tokens_per_second"] == pytest.approx(3.0)
        assert record["mfu"] == pytest.approx(7.0 * 7.0 / 98.0)
    assert world.clock.now == COMPILE_SECONDS + 4 * EVALUATE_SECONDS + 8 * STEP_SECONDS


def test_the_time_of_a_step_does_not_depend_on_how_often_it_is_saved(world):
    world.fit(6, log_every=6, save_every=2)
    assert world.records()[0]["step_seconds"] == pytest.approx(STEP_SECONDS)


def test_the_host_reads_behind_the_device(world):
    """Batches that come quickly cost nothing; slow ones are told as the wait for data."""
    world.data_seconds = 0.5
    world.fit(6, log_every=6)
    assert world.records()[0]["data_wait_share"] == pytest.approx(
        6 * 0.5 / 6.5
    )  # the first batch finds no step at work
    world.clock.now, world.data_seconds = 1000.0, 4.0
    world.fit(12, first=6, log_every=6)
    assert world.records()[1]["step_seconds"] == pytest.approx((6 * 4 + STEP_SECONDS) / 6)
    assert world.records()[1]["data_wait_share"] == pytest.approx(24 / 25)


def test_between_log_lines_the_host_reads_no_array_that_the_device_may_still_compute(world, monkeypatch):
    """Only the sums of the step two behind the last one that was sent; of the state, nothing."""
    numbers = {"finite": 1.0, "skipped": 0, "source_tokens": 4.0, "target_tokens": 3.0}

    class Jitted:
        seconds = 0.0

        def __init__(self):
            self.sums: list[dict[str, jax.Array]] = []
            self.step = jax.jit(lambda s: (s.replace(step=s.step + 1), jax.tree.map(jnp.array, numbers)))

        def __call__(self, state, batch):
            del batch
            state, sums = self.step(state)
            self.sums.append(sums)
            return state, sums

    world.step, reads = Jitted(), []
    kind = type(jnp.zeros(1))
    read = kind._value  # where every array arrives on the host

    def note(array):
        of = [n for n, sums in enumerate(world.step.sums, 1) if any(array is each for each in sums.values())]
        reads.append((len(world.step.sums), of))
        return read.fget(array)

    monkeypatch.setattr(kind, "_value", property(note))
    world.fit(9, log_every=9)
    early = [(sent, of) for sent, of in reads if sent < 9]
    assert {sent for sent, _ in early} == {3, 4, 5, 6, 7, 8}  # it was seen reading
    assert all(of == [sent - 2] for sent, of in early)


def test_any_object_may_take_the_steps_and_from_several_batches(world):
    """All that the loop asks of it: to be called, and how long it has been compiling."""

    class Slow:
        seconds = 0.0

        def __call__(self, state, batches):
            if not self.seconds:
                self.seconds += COMPILE_SECONDS
                world.clock.now += COMPILE_SECONDS
            return world.take(state, batches)

    world.step, world.batches_a_step = Slow(), 3
    world.fit(4, log_every=2)
    for record in world.records():
        assert record["step_seconds"] == pytest.approx(STEP_SECONDS)
        assert record["pad_share"] == pytest.approx(1 - 7 / (3 * SLOTS))


# --- early stopping and profiles -----------------------------------------------------------------


def test_it_stops_once_the_scores_do_not_get_better_and_what_is_left_is_logged(world):
    world.scores, world.evaluations = [3.0, 5.0, 4.0, 5.0], Evaluations(patience=2)
    state = world.fit(100, evaluate_every=2, save_every=50, log_every=5)
    assert int(state.step) == 8 and world.evaluations.best() == (4, 5.0)
    assert world.events[-3:] == ["evaluate 8", "save 8", "closed"]
    assert [record["step"] for record in world.records()] == [5, 8]
    assert world.records()[1]["step_seconds"] == pytest.approx(STEP_SECONDS)
    world.events.clear()
    world.evaluations = Evaluations(patience=2, past=world.evaluations.record())
    assert int(world.fit(100, first=8).step) == 8 and not world.events  # resumed: no further


def test_a_signal_during_the_last_evaluation_leaves_the_end_to_the_resumed_run(world):
    world.scores, world.evaluations = [3.0, 2.0], Evaluations(patience=1)
    world.signals["evaluate 4"] = signal.SIGTERM
    with pytest.raises(Terminated):
        world.fit(100, evaluate_every=2)
    assert not world.evaluations.is_over() and world.saves[4][0]["evaluated"] is False


def test_a_profile_s_seconds_are_no_part_of_a_step(world, monkeypatch):
    def spend(*_):
        world.clock.now += 30.0

    monkeypatch.setattr(jax.profiler, "start_trace", spend)
    monkeypatch.setattr(jax.profiler, "stop_trace", spend)
    monkeypatch.setattr(profiling, "time", SimpleNamespace(monotonic=world.clock.monotonic))
    world.profiled = range(3, 5)
    world.fit(6, log_every=6)
    assert world.records()[0]["step_seconds"] == pytest.approx(STEP_SECONDS)
    assert sum("profiled the steps 3 to 4" in event for event in world.events) == 1


# --- signals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_run_after_saving_without_an_evaluation(world, number, code):
    world.signals["step 4"] = number
    with pytest.raises(Terminated, match="at step 4, which is saved") as ended:
        world.fit(8, evaluate_every=4)
    assert ended.value.exit_code == code
    assert world.events == ["step 1", "step 2", "step 3", "step 4", "save 4", "wait", "closed"]
    assert world.saves[4] == ({"examples": 400, "evaluated": False}, None)


def test_a_step_that_could_not_be_saved_is_not_said_to_be(world, monkeypatch):
    monkeypatch.setattr(world, "is_whole", lambda step: False)
    world.signals["step 4"] = signal.SIGTERM
    with pytest.raises(Terminated, match="at step 4, which could not be saved"):
        world.fit(8, evaluate_every=4)


def test_a_signal_during_an_evaluation_saves_the_step_as_not_evaluated(world):
    world.signals["evaluate 2"] = signal.SIGTERM
    with pytest.raises(Terminated, match="at step 2, which is saved"):
        world.fit(8, evaluate_every=2)
    assert world.saves == {2: ({"examples": 200, "evaluated": False}, None)}
    assert world.records("dev") == []
    assert world.events[-3:] == ["save 2", "wait", "closed"]


def test_a_signal_during_a_save_ends_the_run_once_it_is_written(world):
    world.signals["save 2"] = signal.SIGTERM
    with pytest.raises(Terminated, match="at step 2, which is saved"):
        world.fit(8, save_every=2)
    assert world.events[-3:] == ["save 2", "wait", "closed"]


# --- steps that are not finite -------------------------------------------------------------------

NAN = {"loss": np.nan, "nll": np.nan, "grad_norm": np.nan}


def test_a_skipped_step_is_told_with_its_examples_and_is_no_part_of_the_means(world):
    world.bad = {2: NAN | {"correct": np.nan}}
    world.fit(3, log_every=3)
    assert world.records("skipped") == [{"step": 2, "event": "skipped", "in_a_row": 1, "example_ids": [10]}]
    record = world.records()[0]
    assert record["loss"] == pytest.approx((3 * 1 + 3 * 9) / (1 + 3))  # steps 1 and 3 alone
    assert record["nll"] == pytest.approx((2 * 1 + 2 * 9) / (1 + 3))
    assert record["accuracy"] == pytest.approx(0.5)
    assert record["skipped"] == 1


@pytest.mark.parametrize("norm", [np.nan, 1e30])
def test_a_skipped_step_is_no_part_of_the_mean_norm_of_the_gradient(world, norm):
    world.bad = {2: NAN | {"grad_norm": norm}}
    world.fit(3, log_every=3)
    assert world.records()[0]["gradient_norm"] == pytest.approx((1 + 3) / 2)


def test_a_window_of_skipped_steps_alone_has_numbers_all_the_same(world):
    world.bad = {3: NAN, 4: NAN}
    world.fit(5, log_every=2)
    record = world.records()[1]
    assert (record["step"], record["skipped"], record["loss"]) == (4, 2, 0.0)


def test_too_many_skipped_steps_in_a_row_end_the_run_and_nothing_more_is_saved(world):
    world.bad = {2: NAN, 4: NAN, 5: NAN, 6: NAN}  # one alone, then three in a row
    with pytest.raises(DivergedError, match=r"step 6: 3 steps in a row .*\[50\]") as ended:
        world.fit(100, save_every=3)
    assert ended.value.exit_code == 3
    assert list(world.saves) == [3]
    skipped = [(r["step"], r["in_a_row"], r["example_ids"]) for r in world.records("skipped")]
    assert skipped == [(2, 1, [10]), (4, 1, [30]), (5, 2, [40]), (6, 3, [50])]
    assert world.events[-1] == "closed" and "save 6" not in world.events


def test_divergence_is_seen_a_few_steps_later_where_nothing_is_saved_or_logged(world):
    world.bad = {step: NAN for step in range(4, 100)}
    with pytest.raises(DivergedError, match="step 6"):
        world.fit(100)
    assert f"step {6 + loop.LAG}" in world.events and f"step {7 + loop.LAG}" not in world.events
    assert not world.saves


def test_a_signal_after_divergence_does_not_save(world):
    world.bad = {3: NAN, 4: NAN, 5: NAN}
    world.signals["step 5"] = signal.SIGTERM
    with pytest.raises(DivergedError):
        world.fit(100)
    assert not world.saves


def test_an_error_closes_the_reader_of_the_batches(world):
    def fail():
        raise RuntimeError("the disk is full")

    world.poll = fail
    with pytest.raises(RuntimeError, match="the disk is full"):
        world.fit(5)
    assert world.events == ["step 1", "closed"]


# --- the compiled step ---------------------------------------------------------------------------


def test_the_step_is_compiled_and_told_once_for_each_shape():
    traced, told = [], []

    @jax.jit
    def step(state, batch):
        traced.append(batch.source.shape)
        return state.replace(step=state.step + 1), {"weight": jnp.float32(batch.source.size)}

    compiled = CompiledStep(step, shapes=2, tell=told.append)
    state = TrainState(step=jnp.int32(0), skipped=jnp.int32(0), params={}, opt_state=())
    weights = []
    for number, source in enumerate((3, 5, 3, 5, 3)):
        state, sums = compiled(state, jax.device_put(make_batch(number, source=source)))
        weights.append(float(sums["weight"]))
    assert weights == [6, 10, 6, 10, 6] and int(state.step) == 5
    assert traced == [(2, 3), (2, 5)]
    assert len(told) == 2
    assert "2 rows of 3 + 4 tokens" in told[0] and told[0].endswith("(1 of at most 2)")
    assert "2 rows of 5 + 4 tokens" in told[1] and told[1].endswith("(2 of at most 2)")
    assert compiled.seconds > 0
