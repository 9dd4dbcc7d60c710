"""`--mode=transcribe`: recordings in; text, JSON with times, or subtitles out."""

from __future__ import annotations

import contextlib
import glob
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from seq2seq_jax.data.audio import parse_clip, probe_clip, read_clip, to_frames
from seq2seq_jax.data.sources import tell_neighbours
from seq2seq_jax.data.utterances import SUFFIXES, list_audio, read_utterances
from seq2seq_jax.data.vocab import EOS_ID
from seq2seq_jax.errors import UserError
from seq2seq_jax.experiment import Experiment
from seq2seq_jax.interfaces import PyTree
from seq2seq_jax.modes.ensemble import join_models
from seq2seq_jax.modes.evaluate import load_run
from seq2seq_jax.modes.lines import keep_apart, open_output
from seq2seq_jax.modes.recognising import make_recogniser
from seq2seq_jax.modes.scoring import say
from seq2seq_jax.serve.progress import Progress
from seq2seq_jax.serve.subtitles import FORMATS, Segment, join_words, render
from seq2seq_jax.serve.transcribe import Tally, Transcript, transcribe_files
from seq2seq_jax.tasks.search import Program
from seq2seq_jax.workdir import Folder

ENDINGS = {"text": ".txt", "json": ".json", "srt": ".srt", "vtt": ".vtt"}


def transcribe(config: ConfigDict, root: Path, inputs: str, output: str | None, *, form: str) -> int:
    """Transcribes recordings with the run in `root`. Returns how many could not be read.

    One recording goes to `output`, or to standard output; of several each to a file of its own in the folder `output`,
    or all to standard output, as text with the names before the lines.

    Args:
        config: the run's.
        root: its folder.
        inputs: files, folders, patterns or manifests, separated by commas.
        output: file, or folder for several recordings; None is standard output.
        form: one of `serve.subtitles.FORMATS`.

    Raises:
        UserError: what is asked for cannot be.
    """
    if form not in FORMATS:
        raise UserError(f"--format must be one of {', '.join(FORMATS)} to transcribe, but is {form!r} instead.")
    names, several = list_recordings(inputs)
    if several and output is None and form != "text":
        raise UserError(f"--output must name a folder for {len(names)} recordings as {form}; standard output has one.")
    _check_output(output, names, several=several)
    experiment, chosen = load_run(config, Folder(root))
    program, params = join_models(experiment, chosen.state.averaged, Folder(root))
    recognise, longest = make_recognise(experiment, program, params, chosen.state.averaged)
    audio, tally = config.audio, Tally()
    with Progress(round(_count_seconds(names)), stream=sys.stderr, tell=say, unit="s of audio") as progress:
        found = transcribe_files(
            names,
            read=lambda name: read_clip(name, rate=audio.rate),
            recognise=recognise,
            rate=audio.rate,
            longest_s=longest,
            tell=say,
            progress=progress,
            most=config.decode.rows,
            tally=tally,
        )
        write_transcripts(found, output, form=form, several=several)
    say(f"{tally.summarise()} (step {chosen.step})")
    tally.check()
    return tally.failed


def _check_output(output: str | None, names: Sequence[str], *, several: bool) -> None:
    """Refuses a folder for one transcript, a file for many, and one that is read, before anything is recognised."""
    if output is not None:
        keep_apart(output, (parse_clip(name).path for name in names))
    if output is not None and not several and Path(output).is_dir():
        raise UserError(f"--output={output}: must be a file for one recording, but is a folder; name a file in it.")
    if output is not None and several and Path(output).exists() and not Path(output).is_dir():
        raise UserError(f"--output={output}: must be a folder for several recordings, but is a file; name another.")


def make_recognise(
    experiment: Experiment, program: Program, params: PyTree, own: PyTree
) -> tuple[Callable[[list[np.ndarray]], list[Segment]], float]:
    """What turns waveforms into segments, and how many seconds it hears at a time.

    Args:
        experiment: of the run.
        program, params: what searches; see `modes.ensemble.join_models`.
        own: parameters of the run's model alone.
    """
    recogniser = make_recogniser(experiment, program=program, times=True)
    config, vocab = experiment.config, experiment.vocabs.target
    audio = config.audio
    # No longer than what it was taught with: a speller gets lost in longer pieces.
    longest = min(recogniser.engine.max_source_len, config.data.max_source_len) * audio.hop / audio.rate

    heard = 0

    def recognise(waveforms: list[np.ndarray]) -> list[Segment]:
        nonlocal heard
        sources = [to_frames(samples, hop=audio.hop) for samples in waveforms]
        found, segments = recogniser.recognise(params, sources, own=own, first=heard), []
        heard += len(sources)
        for samples, item in zip(waveforms, found, strict=True):
            tokens = [token for token in item.candidates[0].tokens if token != EOS_ID] if item.candidates else []
            words = () if item.times is None else join_words(tokens, item.times.tolist(), decode=vocab.decode)
            score = item.candidates[0].score if item.candidates else 0.0
            segments.append(Segment(item.text, 0.0, len(samples) / audio.rate, words, score))
        return segments

    return recognise, longest


def list_recordings(inputs: str) -> tuple[list[str], bool]:
    """The files that `--input` names, in order, and whether they may be several.

    Raises:
        UserError: there are none, or what is named is not there.
    """
    names: list[str] = []
    parts = [part.strip() for part in inputs.split(",") if part.strip()]
    several = len(parts) > 1
    for part in parts:
        path = Path(part).expanduser()
        if path.is_dir():
            names, several = names + [str(found) for found in list_audio(path)], True
        elif part.lower().endswith(SUFFIXES):  # which are no audio, so a manifest
            if not path.exists():
                raise UserError(f"--input={part}: no such manifest of audio files; {tell_neighbours(path)}")
            names, several = names + read_utterances(path, need_text=False).source, True
        elif any(mark in part for mark in "*?[") and not path.exists():
            found = sorted(glob.glob(str(path)))
            if not found:
                raise UserError(f"--input={part}: no file is named so.")
            names, several = names + found, True
        elif path.exists() or Path(parse_clip(str(path)).path).exists():
            names.append(str(path))
        else:
            raise UserError(f"--input={part}: no such audio file or folder; {tell_neighbours(path)}")
    if not names:
        raise UserError("--input must name a recording, a folder, a pattern or a manifest with --mode=transcribe.")
    return names, several


def _count_seconds(names: Sequence[str]) -> float:
    """Of all recordings by their headers; those that cannot be read are told later."""
    total = 0.0
    for name in names:
        with contextlib.suppress(UserError):
            total += probe_clip(name)
    return total


def write_transcripts(found: Iterator[Transcript], output: str | None, *, form: str, several: bool) -> None:
    """Writes transcripts as they come; a file appears whole or not at all."""
    if not several:
        for item in found:
            if not item.error:  # of which people are told
                with open_output(output) as file:
                    file.write(render(item.segments, form, duration=item.duration))
        return
    if output is None:
        with open_output(None) as file:
            for item in found:
                if not item.error:
                    file.write(f"{item.name}\t{' '.join(segment.text for segment in item.segments)}\n")
                    file.flush()
        return
    folder, taken = Path(output), set[str]()
    folder.mkdir(parents=True, exist_ok=True)
    for item in found:
        if item.error:
            continue
        stem = Path(parse_clip(item.name).path).stem
        name, count = stem, 1
        while name in taken:
            count += 1
            name = f"{stem}-{count}"
        taken.add(name)
        with open_output(str(folder / f"{name}{ENDINGS[form]}")) as file:
            file.write(render(item.segments, form, duration=item.duration))
