"""`--mode=train`: trains or resumes a run, then evaluates its best checkpoint."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from seq2seq_jax.config import check_resume, hash_config, load_config, with_absolute_prefixes
from seq2seq_jax.corpora import DEV_SHAPES, Corpus, Splits, obtain_vocabs, open_splits
from seq2seq_jax.data.pipeline import batches, build_batch
from seq2seq_jax.data.sources import ParallelText
from seq2seq_jax.errors import NoUsableCheckpointError, UserError
from seq2seq_jax.evaluate.text import corpus_scores
from seq2seq_jax.experiment import (
    Experiment,
    build,
    count_parameters,
    hash_parameters,
    versions,
)
from seq2seq_jax.modes.scoring import evaluate_test, get_references, say, warn
from seq2seq_jax.parallel.hosts import ALONE, Hosts
from seq2seq_jax.parallel.shard import place_batch, rows_here
from seq2seq_jax.train.checkpoints import Checkpoints, Restored
from seq2seq_jax.train.loop import CompiledStep, Run, evaluate_and_log, fit
from seq2seq_jax.train.signals import StopSignal
from seq2seq_jax.train.step import TrainState
from seq2seq_jax.train.writers import MetricsFile, Progress, format_duration, write_json
from seq2seq_jax.workdir import Folder


def train(config: ConfigDict, root: Path, hosts: Hosts = ALONE) -> dict[str, Any]:
    """Trains or resumes the run in `root`, then evaluates the best checkpoint on the test split.

    With several hosts all of them do all of this together, but only the first one writes.
    """
    started = time.monotonic()
    folder = Folder(root)
    config = with_absolute_prefixes(config)
    begun = hosts.share("begun", lambda: any(folder.checkpoints.glob("[0-9]*")))
    if begun:
        check_resume(config, load_config(folder.config), folder.config)
    splits = open_splits(config)
    hosts.check_same("data", {f"{name} corpus with digest": digest for name, digest in splits.digests.items()})
    vocabs = hosts.primary_first("vocab", lambda: obtain_vocabs(config, folder.vocab, splits.train, keep=begun))
    devices = [device.device_kind for device in jax.local_devices()]
    hosts.check_same("devices", {"devices": devices, "vocabulary with digest": vocabs.digest})
    experiment = build(config, vocabs)
    corpus = Corpus.make(config, vocabs, splits)  # refuses what cannot be planned, before anything is written down
    if hosts.is_primary:
        write_json(folder.config, config.to_dict())
    say(f"data: {splits.train.name}: {corpus.plan.describe()}; vocabulary of {len(vocabs.source)} {config.vocab.kind}")
    with (
        StopSignal(hosts.look) as stop,
        Checkpoints(folder.checkpoints, keep_last=config.train.keep_last, best_metric="bleu", warn=warn) as checkpoints,
        MetricsFile(folder.metrics if hosts.is_primary else os.devnull) as metrics,
        open(os.devnull, "w") as nowhere,
    ):
        hosts.saved_step = checkpoints.latest_step
        state, meta = _start(experiment, checkpoints, corpus, splits)
        first = int(state.step)
        metrics.truncate_after(first)
        _tell_start(experiment, state, first, time.monotonic() - started)
        screen = None if hosts.is_primary else nowhere
        with Progress(config.train.steps, start=first, stream=screen) as progress:
            clock = Clock(meta["seconds"] if meta else 0.0, started)
            run = _make_run(experiment, corpus, splits, stop, progress, clock, hosts)
            if meta and not meta["evaluated"] and _is_evaluated(config, first):
                _evaluate_late(run, state, meta, checkpoints, metrics, progress, stop)
            state = fit(run, state, checkpoints=checkpoints, metrics=metrics, progress=progress, stop=stop)
        checkpoints.wait()
        trained = {"parameters_sha256": hash_parameters(state.params), "steps": int(state.step)}
        chosen = _choose(experiment, checkpoints, state)
        scores = evaluate_test(experiment, chosen, splits.test, folder, stop, hosts)
        totals = _sum_up(folder.metrics)
    results = {
        "test": scores,
        "parameters": count_parameters(state.params),
        **trained,
        **totals,
        "wall_seconds": round(clock.seconds(), 1),
        "corpus_sha256": splits.digests,
        "vocab_sha256": vocabs.digest,
        "versions": versions(),
        "devices": [device.device_kind for device in experiment.training.mesh.devices.flat],
        "config": config.to_dict(),
    }
    if hosts.is_primary:
        write_json(folder.results, results)
    return results


def _start(
    experiment: Experiment, checkpoints: Checkpoints, corpus: Corpus, splits: Splits
) -> tuple[TrainState, Mapping[str, Any] | None]:
    """The newest usable state, or a new one; and what its checkpoint says of itself."""
    restored = checkpoints.restore(experiment.training.abstract_state())
    if restored is None:
        return experiment.training.init(), None
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
    if position != restored.step:
        raise UserError(
            f"{checkpoints.directory}: step {restored.step} had read {restored.meta['examples']} examples, "
            f"which is batch {position} of this plan; the config of the data is not what it was."
        )
    return restored.state, restored.meta


def _tell_start(experiment: Experiment, state: TrainState, first: int, seconds: float) -> None:
    devices = experiment.training.mesh.devices
    where = f" on {jax.process_count()} hosts" if jax.process_count() > 1 else ""
    kind = f"{devices.size} x {devices.flat[0].device_kind}{where}"
    begin = f"resuming at step {first}" if first else "starting"
    count = count_parameters(state.params)
    say(f"{experiment.config.model.name}: {count:,} parameters on {kind}; {begin} after {format_duration(seconds)}")
    if first >= experiment.config.train.steps:
        say(f"step {first} is the last one (config.train.steps): nothing left to train, evaluating")


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
) -> Run:
    keys, plan, mesh = experiment.config.train, corpus.plan, experiment.training.mesh
    ahead = {"prefetch": experiment.config.data.prefetch, "rows_of": functools.cache(lambda n: rows_here(mesh, n))}

    def meet() -> None:
        hosts.gather("compiled")

    def read(start: int) -> Iterator[Any]:
        return batches(corpus.pairs, plan, start=start, stop=keys.steps, **ahead)

    def meta(step: int) -> dict[str, Any]:
        digests = {"vocab_sha256": experiment.vocabs.digest, "train_sha256": splits.train.digest}
        place = {"examples": plan.examples_before(step), "seconds": round(clock.seconds(), 1)}
        return {**place, **digests, "config_sha256": hash_config(experiment.config), "versions": versions()}

    return Run(
        step=CompiledStep(experiment.training.train_step(), shapes=len(plan.shapes), tell=progress.message, meet=meet),
        batches=read,
        example_ids=lambda n: plan.batch(n).example_ids,
        place=lambda batch: place_batch(batch, mesh),
        evaluate=_make_dev_evaluation(experiment, corpus, splits.dev, stop, hosts),
        meta=meta,
        learning_rate=experiment.training.schedule,
        flops=experiment.training.step_flops,
        peak_flops=experiment.training.peak_flops(),
        steps=keys.steps,
        save_every=keys.save_every,
        evaluate_every=keys.evaluate_every,
        log_every=keys.log_every,
        max_skipped=keys.max_skipped,
    )


def _make_dev_evaluation(
    experiment: Experiment, corpus: Corpus, dev: ParallelText, stop: StopSignal, hosts: Hosts
) -> Callable[[TrainState], dict[str, float]]:
    """Builds `evaluate(state) -> {"loss", "perplexity", "bleu"}` on dev."""
    config = experiment.config
    translator = experiment.translator(beam_size=config.evaluate.dev_beam_size)
    count = config.evaluate.dev_sentences or len(dev)
    sums_of = CompiledStep(
        experiment.training.dev_sums(), shapes=DEV_SHAPES, tell=lambda line: None, meet=lambda: hosts.gather("dev")
    )
    plan, mesh = corpus.dev_plan, experiment.training.mesh

    def poll() -> None:
        stop.check("during an evaluation")

    def score(texts: list[str], references: list[str]) -> float:
        return float(corpus_scores(texts, references, target=config.data.target, lowercase_tokenized=False)["bleu"])

    def evaluate(state: TrainState) -> dict[str, float]:
        nll = weight = 0.0
        for n in range(plan.batches_per_epoch):
            poll()
            planned = plan.batch(n)
            batch = build_batch(corpus.dev, planned, rows=rows_here(mesh, planned.shape.rows))
            sums = jax.device_get(sums_of(state.params, place_batch(batch, mesh)))
            nll, weight = nll + float(sums["nll"]), weight + float(sums["weight"])
        hosts.gather("dev")
        found = translator.translate(state.params, dev.source[:count], poll=poll)
        texts, references = [item.text for item in found], get_references(dev)[:count]
        mean = nll / max(weight, 1.0)
        return {
            "loss": mean,
            "perplexity": float(min(2.718281828459045 ** min(mean, 50.0), 1e9)),
            "bleu": hosts.share("bleu", lambda: score(texts, references)),
        }

    return evaluate


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
    checkpoints.record_metrics(step, meta={**meta, "evaluated": True}, metrics=scores)


def _choose(experiment: Experiment, checkpoints: Checkpoints, state: TrainState) -> Restored:
    """The best checkpoint by dev BLEU that can be read, or the last state where none was scored."""
    while (best := checkpoints.best_step()) is not None and best != int(state.step):
        try:
            restored = checkpoints.restore(experiment.training.abstract_state(), step=best)
        except NoUsableCheckpointError:  # it was damaged and is in the quarantine now: the next best one
            continue
        if restored is not None:
            return restored
    return Restored(int(state.step), state, {})


def _sum_up(path: Path) -> dict[str, Any]:
    """Training speed over the whole run, from its log lines; a run in several parts counts as one."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    lines = [record for record in records if "source_tokens_per_second" in record]
    last = lines[-1] if lines else {}
    rates = [record["source_tokens_per_second"] + record["target_tokens_per_second"] for record in lines]
    ordered = sorted(rates)
    return {
        "tokens_per_second": round(ordered[len(ordered) // 2], 1) if ordered else 0.0,
        "pad_share": last.get("pad_share"),
        "data_wait_share": last.get("data_wait_share"),
        "train_loss": last.get("loss"),
        "skipped_steps": sum(1 for record in records if record.get("event") == "skipped"),
    }
