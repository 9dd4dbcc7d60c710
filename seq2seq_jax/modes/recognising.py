"""A model that hears at work: what searches with it, and a test split recognised and scored."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seq2seq_jax.data.audio import read_clip, to_frames
from seq2seq_jax.data.pipeline import Ragged
from seq2seq_jax.data.sources import ParallelText
from seq2seq_jax.data.vocab import EOS_ID
from seq2seq_jax.decode.ctc import best_path
from seq2seq_jax.decode.ctc_beam import prefix_beam
from seq2seq_jax.errors import UserError
from seq2seq_jax.evaluate.speech import align_words, speech_scores
from seq2seq_jax.evaluate.speech_report import render_speech_page
from seq2seq_jax.experiment import Experiment
from seq2seq_jax.failpoints import reach
from seq2seq_jax.interfaces import FrameModel, PyTree, Seq2Seq
from seq2seq_jax.modes.speech_pictures import save_picture
from seq2seq_jax.parallel.hosts import Hosts
from seq2seq_jax.serve.translate import moses_nbest
from seq2seq_jax.speech_corpora import describe_lengths, find_too_short, tell_too_short
from seq2seq_jax.tasks.recogniser import Clock, FrameEngine, Recogniser, Recognition, Searches
from seq2seq_jax.tasks.search import Program
from seq2seq_jax.train.checkpoints import Restored
from seq2seq_jax.train.signals import StopSignal
from seq2seq_jax.train.writers import replace_text
from seq2seq_jax.workdir import Folder

GROUP = 256
"""Clips that are in memory at a time."""


def make_recogniser(
    experiment: Experiment,
    *,
    beam_size: int | None = None,
    method: str | None = None,
    attention: str = "none",
    program: Program | None = None,
    times: bool = False,
) -> Recogniser:
    """What recognises utterances by the config's search.

    A CTC model alone is searched frame by frame where a best path or a prefix beam is asked for; else token by token,
    as a speller is.

    Args:
        experiment: of the run.
        beam_size, method: others than the config's.
        attention: see `tasks.engine.Engine`.
        program: what searches in the place of the run's own model.
        times: also find the times of tokens, where frames are labelled.
    """
    training, keys, audio = experiment.training, experiment.config.decode, experiment.config.audio
    method, size = method or keys.method, beam_size or keys.beam_size
    alone = program is None or not (keys.ensemble or keys.language_model or keys.ngram)
    devices = training.mesh.size
    limits = {"rows": -(-keys.rows // devices) * devices, "max_source_len": keys.max_source_len}
    labels_frames = _labels_frames(experiment)
    engine: Searches
    if not isinstance(training.model, Seq2Seq) and (method in ("greedy", "prefix_beam") or size == 1) and alone:
        engine = FrameEngine(training.frame_search(_choose_frame_search(method, size)), **limits, multiple=devices)
    else:
        search = training.make_search(size, method="beam" if method == "prefix_beam" else method)
        engine = experiment.engine(search, attention=attention, program=program)
    reduction = experiment.config.model.reduction
    clock = None
    if times and labels_frames:
        seconds = reduction * audio.hop / audio.rate
        clock = Clock(training.frame_paths(), seconds=seconds, multiple=devices, **limits)
    return Recogniser(engine, experiment.vocabs.target, reduction, clock)


def _choose_frame_search(method: str, size: int) -> Callable[..., Any]:
    if method == "prefix_beam" and size > 1:
        return functools.partial(prefix_beam, size=size, eos_id=EOS_ID)
    return lambda log_probs, mask: best_path(log_probs, mask, eos_id=EOS_ID)[0]


def _labels_frames(experiment: Experiment) -> bool:
    """Whether the model labels frames, and was taught to."""
    config = experiment.config
    taught = config.model.name == "ctc" or config.audio.ctc_weight > 0
    return isinstance(experiment.training.model, FrameModel) and taught


def read_frames(names: Sequence[str], *, rate: int, hop: int, strict: bool) -> tuple[list[np.ndarray], list[str]]:
    """The frames `[S, W]` of clips, none for one that cannot be read, and what is wrong with those."""
    sources, problems = [], []
    for name in names:
        try:
            sources.append(to_frames(read_clip(name, rate=rate), hop=hop))
        except UserError as error:
            if strict:
                raise
            problems.append(str(error))
            sources.append(np.zeros((0, hop), np.float32))
    return sources, problems


def evaluate_speech(
    experiment: Experiment,
    chosen: Restored,
    test: ParallelText,
    folder: Folder,
    stop: StopSignal,
    hosts: Hosts,
    models: tuple[Program, PyTree],
    *,
    say: Callable[[str], None],
    search: str,
) -> dict[str, Any]:
    """Recognises the test split, scores it, and leaves outputs, a report and pictures in the folder."""
    config, (program, params) = experiment.config, models
    say(f"recognising {len(test)} test utterances by {search} from step {chosen.step}")
    hosts.gather("test")
    started = time.monotonic()
    recogniser = make_recogniser(experiment, attention="best", program=program, times=True)
    found: list[Recognition] = []
    lengths: list[int] = []
    for first in range(0, len(test), GROUP):
        names = test.source[first : first + GROUP]
        sources, problems = read_frames(names, rate=config.audio.rate, hop=config.audio.hop, strict=config.audio.strict)
        for problem in problems:
            say(problem)
        lengths += map(len, sources)
        hosts.check_same("clips", describe_lengths({"test": np.array(lengths[first:])}))
        found += recogniser.recognise(
            params,
            sources,
            own=chosen.state.averaged,
            first=first,
            poll=lambda: stop.check("during the evaluation on test"),
        )
    seconds = sum(lengths) * config.audio.hop / config.audio.rate
    tokens = Ragged.pack(experiment.vocabs.target.encode_many(test.target or []))
    tell_too_short(test, find_too_short(config, np.array(lengths), tokens))
    if cut := sum(item.cut for item in found):
        say(f"{cut} utterances are longer than config.decode.max_source_len frames; the rest of them was not heard")
    took = time.monotonic() - started

    def score() -> dict[str, Any]:
        scores = _score(experiment, found, test, folder)
        told = {"step": chosen.step, "seconds": round(took, 1), "audio_seconds": round(seconds, 1)}
        return {**scores, "search": search, **told, "real_time_factor": round(took / max(seconds, 1e-9), 4)}

    return hosts.share("test", score)


def _score(experiment: Experiment, found: list[Recognition], test: ParallelText, folder: Folder) -> dict[str, Any]:
    """The scores of what was recognised; what it is is left in the folder."""
    hypotheses, references = [item.text for item in found], test.target or []
    folder.outputs.mkdir(parents=True, exist_ok=True)
    for name, lines in (("hypotheses", hypotheses), ("references", references), ("clips", test.source)):
        replace_text(folder.outputs / f"test.{name}.txt", "".join(line + "\n" for line in lines))
    reach("test")
    nbest = (moses_nbest(n, item.candidates) for n, item in enumerate(found))
    replace_text(folder.outputs / "test.nbest.txt", "".join(nbest))
    scores: dict[str, Any] = dict(speech_scores(hypotheses, references))
    begin, groups = 0, {}
    for name, count in test.groups:
        part = slice(begin, begin + count)
        own = speech_scores(hypotheses[part], references[part])
        groups[name] = {key: own[key] for key in ("wer", "cer")}
        begin += count
    if groups:
        scores["groups"] = groups
    aligned = align_words(hypotheses, references)
    names = [Path(name).name for name in test.source]
    page = render_speech_page(
        aligned, _list_numbers(scores), names=names, title=f"Transcripts of {Path(test.name).name}"
    )
    replace_text(folder.outputs / "test.report.html", page)
    report = str((folder.outputs / "test.report.html").relative_to(folder.root))
    return scores | {"report": report, "samples": _show_samples(experiment, found, test, folder)}


def _list_numbers(scores: dict[str, Any]) -> dict[str, float | int | str]:
    return {name: value for name, value in scores.items() if not isinstance(value, dict)}


def _show_samples(
    experiment: Experiment, found: list[Recognition], test: ParallelText, folder: Folder
) -> list[dict[str, str]]:
    """A few utterances spread over the test split, each with a picture of what was heard, and when."""
    count = min(experiment.config.evaluate.samples, len(found))
    samples = []
    for place in range(count):
        n = place * len(found) // count
        sample = {"source": test.source[n], "hypothesis": found[n].text, "reference": (test.target or [])[n]}
        path = folder.outputs / f"spectrogram_{n:05d}.png"
        if save_picture(path, experiment, test.source[n], found[n]):
            sample["attention"] = str(path.relative_to(folder.root))
        samples.append(sample)
    return samples
