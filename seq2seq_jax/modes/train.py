"""`--mode=train`: trains or resumes a run, then evaluates its best checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from seq2seq_jax.config import check_resume, hash_config, load_config, with_absolute_prefixes
from seq2seq_jax.corpora import Corpus, Splits, find_prepared, open_splits
from seq2seq_jax.data.pipeline import batches
from seq2seq_jax.errors import NoUsableCheckpointError, UserError
from seq2seq_jax.experiment import Experiment, build
from seq2seq_jax.failpoints import reach
from seq2seq_jax.modes.dev_scores import make_dev_evaluation
from seq2seq_jax.modes.ensemble import join_models
from seq2seq_jax.modes.evaluate import best_by
from seq2seq_jax.modes.measure_features import measure_features
from seq2seq_jax.modes.scoring import evaluate_test, say, warn
from seq2seq_jax.modes.sequence_step import make_sequence_step
from seq2seq_jax.modes.start_checks import check_profile, check_room, check_steps, refuse_lost
from seq2seq_jax.modes.summary import describe_origin, sum_up, tell_coverage, tell_skipped, tell_start
from seq2seq_jax.modes.warm_start import warm_start
from seq2seq_jax.parallel.hosts import ALONE, Hosts
from seq2seq_jax.parallel.shard import place_batch, rows_here
from seq2seq_jax.provenance import count_parameters, hash_parameters, versions
from seq2seq_jax.speech_checks import reads_speech
from seq2seq_jax.speech_corpora import describe_clips
from seq2seq_jax.train.accumulation import AccumulatedStep, Groups
from seq2seq_jax.train.checkpoints import Checkpoints, Restored
from seq2seq_jax.train.loop import CompiledStep, Run, Step, evaluate_and_log, fit
from seq2seq_jax.train.profiling import Profile, parse_profile_steps
from seq2seq_jax.train.signals import StopSignal
from seq2seq_jax.train.step import TrainState
from seq2seq_jax.train.stopping import Evaluations
from seq2seq_jax.train.tensorboard import TensorBoard
from seq2seq_jax.train.writers import MetricsFile, Progress, write_json
from seq2seq_jax.vocabularies import measure_coverage, obtain_ngram, obtain_vocabs
from seq2seq_jax.workdir import Folder

Check = Callable[[Mapping[str, str]], None]


def train(config: ConfigDict, root: Path, hosts: Hosts = ALONE, *, check: Check | None = None) -> dict[str, Any]:
    """Trains or resumes the run in `root`, then evaluates the best checkpoint on the test split.

    With several hosts all of them do all of this together, but only the first one writes.

    Args:
        config, root: the run's, and its folder.
        hosts: of this training.
        check: receives sha256 of "train", "dev", "test" and "vocabulary" and refuses what it must; the vocabulary is
            then the one in the run's folder as it is.
    """
    started = time.monotonic()
    reach("start")
    folder = Folder(root)
    if hosts.is_primary:
        folder.remove_unfinished()
    config = with_absolute_prefixes(config)
    experiment, corpus, splits, covered = _set_up(config, folder, hosts, check)
    config = experiment.config  # its steps are counted
    with (
        StopSignal(hosts.look) as stop,
        Checkpoints(folder.checkpoints, **_keep(config), warn=warn, **best_by(config)) as checkpoints,
        MetricsFile(folder.metrics if hosts.is_primary else os.devnull, warn=warn) as metrics,
        open(os.devnull, "w") as nowhere,
        contextlib.ExitStack() as closing,
    ):
        hosts.saved_step = checkpoints.latest_step
        state, meta = _start(experiment, checkpoints, corpus, splits)
        first = int(state.step)
        metrics.truncate_after(first)
        if config.train.tensorboard and hosts.is_primary:
            board = closing.enter_context(contextlib.closing(TensorBoard(folder.tensorboard)))
            metrics.follow(board.add)
        evaluations = _remember(config, meta, first)
        tell_start(experiment, state, first, time.monotonic() - started)
        screen = None if hosts.is_primary else nowhere
        with Progress(config.train.steps, start=first, stream=screen) as progress:
            clock = Clock(meta["seconds"] if meta else 0.0, started)
            run = _make_run(experiment, corpus, splits, stop, progress, clock, hosts, evaluations)
            run = dataclasses.replace(run, profile=_make_profile(config, folder, progress, hosts))
            if meta and not meta["evaluated"] and _is_evaluated(config, first):
                _evaluate_late(run, state, meta, checkpoints, metrics, progress, stop)
            state = fit(run, state, checkpoints=checkpoints, metrics=metrics, progress=progress, stop=stop)
        checkpoints.wait()
        if evaluations.is_over():
            say(f"stopped early at step {int(state.step)}: {evaluations.describe()}")
        trained = {"steps": int(state.step), "state_sha256": hash_parameters(state)}
        chosen = _choose(experiment, checkpoints, state)
        models = join_models(experiment, chosen.state.averaged, folder)
        scores = evaluate_test(experiment, chosen, splits.test, folder, stop, hosts, models)
        totals = sum_up(folder.metrics) if hosts.is_primary else {}
    results = {
        "test": scores,
        "parameters": count_parameters(state.params),
        "parameters_sha256": hash_parameters(state.averaged),
        **trained,
        "stopped_early": evaluations.is_over(),
        **totals,
        **tell_skipped(corpus),
        "wall_seconds": round(clock.seconds(), 1),
        **({"coverage": covered} if covered else {}),
        **describe_origin(experiment, splits, folder, models[1]),
    }
    if hosts.is_primary:
        reach("results")
        write_json(folder.results, results)
    reach("close")
    return results


def _set_up(
    config: ConfigDict, folder: Folder, hosts: Hosts, check: Check | None
) -> tuple[Experiment, Corpus, Splits, dict[str, Any]]:
    """The experiment, its data, and what its vocabularies cover of them; writes the config once all of it fits."""
    begun = hosts.share("begun", folder.has_begun)
    if begun:
        if not folder.config.is_file():
            raise UserError(
                f"{folder.config}: is missing, though {folder.checkpoints} has checkpoints; put it back, or start anew "
                "with --fresh, which moves this run aside."
            )
        check_resume(config, load_config(folder.config), folder.config)
    prepared = find_prepared(config, folder.root, check=hosts.is_primary)
    splits = open_splits(config, prepared=prepared, report_path=folder.left_out if hosts.is_primary else None)
    hosts.check_same("data", {f"{name} corpus with digest": digest for name, digest in splits.digests.items()})
    keep = begun or check is not None
    vocabs = hosts.primary_first("vocab", lambda: obtain_vocabs(config, folder.vocab, splits.train, keep=keep))
    if check is not None:
        check({**splits.digests, "vocabulary": vocabs.digest})
    devices = [device.device_kind for device in jax.local_devices()]
    hosts.check_same("devices", {"devices": devices, "vocabulary with digest": vocabs.digest})
    experiment = build(config, vocabs)
    hosts.primary_first("ngram", lambda: obtain_ngram(config, vocabs, folder.ngram, splits.train))
    join_models(experiment, None, folder)  # refuses now what the test at the end could not search with
    corpus = Corpus.make(config, vocabs, splits)  # refuses what cannot be planned, before anything is written down
    check_room(experiment, corpus, splits)
    hosts.check_same("clips", describe_clips({"train": corpus.pairs, "dev": corpus.dev}))
    experiment = _count_epochs(experiment, corpus)
    check_steps(experiment.config, folder)
    if hosts.is_primary:
        reach("config")
        write_json(folder.config, experiment.config.to_dict())
    say(f"data: {splits.train.name}: {corpus.plan.describe()}; vocabulary of {len(vocabs.source)} {config.vocab.kind}")
    covered = tell_coverage(measure_coverage(config, vocabs, splits), vocabs)
    return experiment, corpus, splits, covered


def _count_epochs(experiment: Experiment, corpus: Corpus) -> Experiment:
    """The experiment with what goes by epochs: `train.steps` where `train.epochs` counts, and the schedule's rates."""
    config = ConfigDict(experiment.config.to_dict())
    keys, updates = config.train, corpus.plan.batches_per_epoch / config.train.accumulate
    if keys.epochs:
        keys.steps = max(1, math.ceil(keys.epochs * updates - 1e-6))  # whole epochs are not made longer by rounding
        say(f"epochs: config.train.epochs={keys.epochs:g} of {updates:,.6g} updates: {keys.steps:,} steps")
        check_profile(config)
    return build(config, experiment.vocabs, updates_per_epoch=updates)


def _start(
    experiment: Experiment, checkpoints: Checkpoints, corpus: Corpus, splits: Splits
) -> tuple[TrainState, Mapping[str, Any] | None]:
    """The newest usable state, or a new one; and what its checkpoint says of itself."""
    restored = checkpoints.restore(experiment.training.abstract_state())
    if restored is None:
        refuse_lost(experiment.config, Folder(checkpoints.directory.parent))
        return _begin(experiment, checkpoints.directory.parent, corpus), None
    reach("restore", restored.step)
    expected = {
        "vocab_sha256": ("vocabulary", experiment.vocabs.digest),
        "train_sha256": ("training corpus", splits.train.digest),
        "config_sha256": ("config", hash_config(experiment.config)),
    }
    for key, (what, value) in expected.items():
        if restored.meta.get(key) != value:
            raise UserError(
                f"{checkpoints.directory}: the checkpoints were made with another {what} ({key} "
                f"{str(restored.meta.get(key))[:12]}, now {value[:12]}); put it back, or use another --workdir."
            )
    try:
        position = corpus.plan.batch_index(restored.meta["examples"])
    except ValueError as error:
        raise UserError(f"{checkpoints.directory}: the place in the data cannot be found again: {error}") from error
    if position != restored.step * experiment.config.train.accumulate:
        raise UserError(
            f"{checkpoints.directory}: step {restored.step} had read {restored.meta['examples']} examples, "
            f"which is batch {position} of this plan; the config of the data is not what it was."
        )
    return restored.state, restored.meta


def _begin(experiment: Experiment, root: Path, corpus: Corpus) -> TrainState:
    """The state before the first step, from another run's parameters where the config names one."""
    state, source = experiment.training.init(), experiment.config.train.init_from
    if reads_speech(experiment.config.model) and experiment.config.audio.normalisation == "global":
        state = measure_features(experiment, corpus, state)
    if not source:
        if experiment.training.objective is not None:
            warn("config.sequence.objective from a fresh start: its candidates will be noise; give --init_from=RUN")
        return state
    state, taken = warm_start(experiment, state, Path(source))
    say(taken.describe())
    if jax.process_index() == 0:
        write_json(Folder(root).started, dataclasses.asdict(taken))
    return state


def _keep(config: ConfigDict) -> dict[str, Any]:
    """How many checkpoints to keep."""
    return {"keep_last": config.train.keep_last, "keep_hours": config.train.keep_hours}


def _remember(config: ConfigDict, meta: Mapping[str, Any] | None, step: int) -> Evaluations:
    """The evaluations before `step`; a run that stopped early goes on where it is now to take more steps."""
    keys, told = config.train, meta or {}
    past = told.get("evaluations")
    evaluations = Evaluations(keys.patience_metric, patience=keys.patience, past=past)
    if evaluations.is_over() and keys.steps > told.get("steps", keys.steps):
        evaluations.be_patient_again(step)
    return evaluations


@dataclasses.dataclass(frozen=True)
class Clock:
    """Seconds of a run, the parts before it was interrupted included."""

    before: float
    started: float

    def seconds(self) -> float:
        """Until now."""
        return self.before + time.monotonic() - self.started


def _make_run(
    experiment: Experiment,
    corpus: Corpus,
    splits: Splits,
    stop: StopSignal,
    progress: Progress,
    clock: Clock,
    hosts: Hosts,
    evaluations: Evaluations,
) -> Run:
    keys, plan, mesh = experiment.config.train, corpus.plan, experiment.training.mesh
    each = keys.accumulate
    ahead = {"prefetch": experiment.config.data.prefetch, "rows_of": functools.cache(lambda n: rows_here(mesh, n))}

    def meet() -> None:
        hosts.gather("compiled")

    def read(start: int) -> Iterator[Any]:
        found = batches(corpus.pairs, plan, start=start * each, stop=keys.steps * each, redraw=corpus.redraw, **ahead)
        return found if each == 1 else Groups(found, each)

    def list_ids(step: int) -> np.ndarray:
        return np.concatenate([plan.batch(n).example_ids.ravel() for n in range(step * each, (step + 1) * each)])

    def place(given: Any) -> Any:
        return place_batch(given, mesh) if each == 1 else tuple(place_batch(batch, mesh) for batch in given)

    def meta(step: int) -> dict[str, Any]:
        digests = {"vocab_sha256": experiment.vocabs.digest, "train_sha256": splits.train.digest}
        place: dict[str, Any] = {"examples": plan.examples_before(step * each), "seconds": round(clock.seconds(), 1)}
        place |= {"evaluations": evaluations.record(), "steps": keys.steps}
        return {**place, **digests, "config_sha256": hash_config(experiment.config), "versions": versions()}

    return Run(
        step=_make_step(experiment, shapes=len(plan.shapes), tell=progress.message, meet=meet),
        batches=read,
        example_ids=list_ids,
        place=place,
        evaluate=make_dev_evaluation(experiment, corpus, splits.dev, stop, hosts),
        meta=meta,
        learning_rate=experiment.training.schedule,
        flops=experiment.training.step_flops,
        peak_flops=experiment.training.peak_flops(),
        steps=keys.steps,
        save_every=keys.save_every,
        evaluate_every=keys.evaluate_every,
        log_every=keys.log_every,
        max_skipped=keys.max_skipped,
        evaluations=evaluations,
    )


def _make_profile(config: ConfigDict, folder: Folder, progress: Progress, hosts: Hosts) -> Profile:
    """Of the first host's devices; the other hosts trace nothing."""
    steps = parse_profile_steps(config.train.profile_steps, config.train.steps)
    return Profile(steps if hosts.is_primary else range(0), folder.profile, progress.message)


def _make_step(experiment: Experiment, *, shapes: int, tell: Callable[[str], None], meet: Callable[[], object]) -> Step:
    """What takes the steps: from a batch, or from several."""
    told: dict[str, Any] = {"shapes": shapes, "tell": tell, "meet": meet}
    if experiment.config.train.accumulate > 1:
        step: Step = AccumulatedStep(*experiment.training.accumulated_step(), **told)
    else:
        step = CompiledStep(experiment.training.train_step(), **told)
    return step if experiment.training.objective is None else make_sequence_step(experiment, step, **told)


def _is_evaluated(config: ConfigDict, step: int) -> bool:
    return step > 0 and (step % config.train.evaluate_every == 0 or step == config.train.steps)


def _evaluate_late(
    run: Run,
    state: TrainState,
    meta: Mapping[str, Any],
    checkpoints: Checkpoints,
    metrics: MetricsFile,
    progress: Progress,
    stop: StopSignal,
) -> None:
    """The evaluation that a signal cut short, so that the choice of the best step is that of an unbroken run."""
    step = int(state.step)
    scores = evaluate_and_log(run, state, step, metrics, progress, stop)
    if scores is None:
        stop.check(f"during the evaluation of step {step}, which is saved")
        return
    known = {"evaluated": True, "evaluations": run.evaluations.record()}
    checkpoints.record_metrics(step, meta={**meta, **known}, metrics=scores)


def _choose(experiment: Experiment, checkpoints: Checkpoints, state: TrainState) -> Restored:
    """The best checkpoint by its dev score that can be read, or the last state where none was scored."""
    while (best := checkpoints.best_step()) is not None and best != int(state.step):
        try:
            restored = checkpoints.restore(experiment.training.abstract_state(), step=best)
        except NoUsableCheckpointError:  # it was damaged and is in the quarantine now: the next best one
            continue
        if restored is not None:
            return restored
    return Restored(int(state.step), state, {})
