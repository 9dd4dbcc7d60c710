"""Reads lists of utterances: manifests (TSV, JSON lines) and folders in LibriSpeech's layout.

An utterance is a clip of audio (see `audio.parse_clip`) and its transcript. Paths of a manifest are absolute, or
relative to its folder:

    clips/a.flac<tab>hello there                                TSV, without a header
    audio<tab>text<tab>start<tab>end                            TSV, with one: other columns are passed over
    {"audio": "a.flac", "text": "hello", "start": 1, "end": 2}  JSON lines
    {"audio_filepath": "a.flac", "text": "hello", "duration": 2.0}           NeMo's manifests
    SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt beside SPEAKER-CHAPTER-0000.flac, ...    LibriSpeech

The audio is not opened here: a missing file is found at once, a broken one by `index_durations`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from seq2seq_jax.data.audio import FORMATS, MOST_SECONDS, name_clip, parse_clip, probe_clip
from seq2seq_jax.data.sources import ParallelText, read_lines, tell_neighbours
from seq2seq_jax.data.whole_file import write_whole
from seq2seq_jax.errors import UserError

AUDIO_COLUMNS = ("audio", "path", "audio_filepath", "audio_path", "file", "filename", "wav")
TEXT_COLUMNS = ("text", "transcript", "sentence", "transcription")
SUFFIXES = (".tsv", ".jsonl", ".json", ".tsv.gz", ".jsonl.gz", ".json.gz")
FOREIGN = (".aac", ".amr", ".ape", ".m4a", ".wma", ".wv")
"""Endings of audio that libsndfile does not read."""
LEAST_SECONDS = 0.01
"""The shortest part of a file that a list may name, about a frame: shorter ones are a slip of whoever wrote it."""
_PLAIN_COLUMNS = {1: ("audio",), 2: ("audio", "text"), 4: ("audio", "text", "start", "end")}
_HALVES = re.compile("[\ud800-\udfff]")  # JSON can write half of a pair of surrogates, which no file can hold
_THREADS = 16
_NAMED = 5  # files that a warning names

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Row:
    """One entry of a list; `place` says where it stands, for messages."""

    place: str
    path: Path
    text: str | None
    start: float
    end: float | None


def read_utterances(path: str | os.PathLike, *, need_text: bool = True) -> ParallelText:
    """Reads a manifest, or a folder in LibriSpeech's layout.

    Args:
        path: a .tsv, .jsonl or .json file, gzipped or not, or a folder that is searched for `*.trans.txt`.
        need_text: every utterance must have a transcript. Else a manifest may have none.

    Returns:
        Names of clips as `source`, transcripts as `target` (None where there is not one). The digest is over the
        names relative to the manifest, the transcripts and the sizes of the files: it stays when all is moved.

    Raises:
        UserError: something is missing, empty or malformed; one line with the manifest, the line and the file.
    """
    path = Path(path)
    if path.is_dir():
        base, rows = path, list(_read_folder(path))
    elif not path.exists():
        raise UserError(f"{path}: no such file; {tell_neighbours(path)}")
    elif path.name.lower().endswith(SUFFIXES):
        read = _read_tsv if path.name.lower().endswith((".tsv", ".tsv.gz")) else _read_json
        base, rows = path.parent, list(read(path))
    else:
        raise UserError(
            f"{path}: a list of utterances must be a .tsv or .jsonl file or a folder, but ends in "
            f"{path.suffix or 'nothing'} instead; see docs/speech.md for what they hold."
        )
    if not rows:
        raise UserError(f"{path}: is empty; at least one utterance is needed.")
    sizes = _check_rows(rows, need_text=need_text)
    names = [name_clip(str(row.path), row.start, row.end) for row in rows]
    told = any(row.text for row in rows)
    texts = [row.text or "" for row in rows] if told or need_text else None
    return ParallelText(names, texts, str(path), _digest(rows, base, sizes))


def index_durations(
    text: ParallelText, *, cache: Path | None, strict: bool, tell: Callable[[str], object] = _log.warning
) -> np.ndarray:
    """The length of every clip in seconds, `[N]` float64, by the headers of the files; NaN where one is unreadable.

    Args:
        text: see `read_utterances`.
        cache: a folder where the lengths are kept, by the clips' names and when their files were last changed, so that
            they are found once; None keeps none.
        strict: a clip that cannot be read is an error. Else all such clips are told of in one line.
        tell: what is called with that line.

    Raises:
        UserError: strict, and a clip cannot be read; or not one can be read.
    """
    kept = None if cache is None else Path(cache) / f"durations-{_hash_files(text)[:32]}.npy"
    seconds = _load_seconds(kept, len(text))
    found = seconds is not None
    if seconds is None:
        seconds = np.full(len(text), np.nan)
    todo = np.flatnonzero(np.isnan(seconds)).tolist()
    with ThreadPoolExecutor(_THREADS) as pool:
        told = pool.map(_probe, (text.source[i] for i in todo))
        bad: dict[int, str] = {}
        for i, length in zip(todo, told, strict=True):
            if isinstance(length, str):
                bad[i] = length
            else:
                seconds[i] = length
    if bad and (strict or len(bad) == len(text)):
        raise UserError(next(iter(bad.values())))
    if kept is not None and not (found and len(bad) == len(todo)):
        kept.parent.mkdir(parents=True, exist_ok=True)
        written = BytesIO()
        np.save(written, seconds, allow_pickle=False)
        write_whole(kept, written.getvalue())
    if bad:
        first = "; ".join(reason.rstrip(".") for reason in list(bad.values())[:_NAMED])
        more = "; ..." if len(bad) > _NAMED else "."
        tell(f"{text.name}: {len(bad)} of {len(text)} clips cannot be read and are left out: {first}{more}")
    return seconds


def _load_seconds(kept: Path | None, count: int) -> np.ndarray | None:
    """What an earlier run has found, if it is whole."""
    if kept is None or not kept.exists():
        return None
    try:
        seconds = np.load(kept, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return seconds if seconds.shape == (count,) and seconds.dtype == np.float64 else None


def _hash_files(text: ParallelText) -> str:
    """sha256 over the clips' names, and the sizes of their files and when they were last changed."""
    digest, known = hashlib.sha256(), dict[str, str]()
    for name in text.source:
        path = parse_clip(name).path
        if path not in known:
            try:
                found = os.stat(path)
                known[path] = f"{found.st_size} {found.st_mtime_ns}"
            except OSError:
                known[path] = "gone"
        digest.update(f"{name}\0{known[path]}\n".encode("utf-8", "replace"))
    return digest.hexdigest()


def _probe(name: str) -> float | str:
    """Seconds, or what is wrong."""
    try:
        return probe_clip(name)
    except UserError as error:
        return str(error)


def _list_files(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    """The files below a folder with one of these endings, large or small letters, in the order of their paths."""
    found = []
    for root, _, files in os.walk(folder, followlinks=True):
        found += [Path(root, name) for name in files if name.lower().endswith(endings)]
    return sorted(found)


def list_audio(folder: Path) -> list[Path]:
    """Every audio file below a folder, in the order of their paths; also of formats that can only be told about.

    Raises:
        UserError: there is none.
    """
    if not (found := _list_files(folder, (*FORMATS, *FOREIGN))):
        raise UserError(f"{folder}: holds no audio ({', '.join(sorted(FORMATS))}); give the folder that does.")
    return found


def _read_folder(folder: Path) -> Iterator[_Row]:
    """Every `*.trans.txt` below a folder, in the order of their paths; each line is the utterance and its words."""
    audio, lists = list_audio(folder), _list_files(folder, (".trans.txt",))
    audio = [path for path in audio if path.suffix.lower() in FORMATS]
    if not lists:
        raise UserError(
            f"{folder}: holds audio, but no *.trans.txt with the transcripts (LibriSpeech's layout); write a .tsv with "
            f"a path, a tab and a text on every line."
        )
    by_stem = {path.with_suffix(""): path for path in reversed(audio)}
    for path in lists:
        for number, line in enumerate(read_lines(path), 1):
            if line.strip():
                name, _, words = line.strip().partition(" ")
                stem = path.parent / name
                yield _Row(
                    f"{path}: line {number}", by_stem.get(stem, stem.with_name(f"{name}.flac")), words, 0.0, None
                )


def _read_tsv(path: Path) -> Iterator[_Row]:
    columns: Sequence[str] | None = None
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        place, cells = f"{path}: line {number}", line.split("\t")
        if columns is None:
            header = [cell.strip().lower() for cell in cells]
            if set(header) & set(AUDIO_COLUMNS):
                columns = header
                continue
            columns = _PLAIN_COLUMNS.get(len(cells), ())
        if len(cells) != len(columns):
            expected = f"the {len(columns)} columns of the first line" if columns else "path, text and maybe start, end"
            raise UserError(f"{place} has {len(cells)} columns between tabs; every row must have {expected}.")
        yield _make_row(place, path.parent, dict(zip(columns, cells, strict=True)))


def _read_json(path: Path) -> Iterator[_Row]:
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        place = f"{path}: line {number}"
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place} is no JSON ({error}); every line must be an object of its own.") from error
        if not isinstance(fields, dict):
            raise UserError(f'{place} must be an object such as {{"audio": "a.flac", "text": "..."}}.')
        yield _make_row(place, path.parent, fields)


def _make_row(place: str, folder: Path, fields: dict[str, Any]) -> _Row:
    """One row of a manifest."""
    audio = next((fields[key] for key in AUDIO_COLUMNS if fields.get(key) not in (None, "")), None)
    if not isinstance(audio, str) or not audio.strip():
        raise UserError(f"{place} names no audio file (one of {', '.join(AUDIO_COLUMNS)}); add it.")
    if "\0" in audio:
        raise UserError(f"{place}: the path of the audio holds a zero byte; mend it.")
    text = next((fields[key] for key in TEXT_COLUMNS if fields.get(key) is not None), None)
    if text is not None and not isinstance(text, str):
        raise UserError(f"{place}: the text must be a string, but is {text!r} instead.")
    for what, value in (("path of the audio", audio), ("text", text or "")):
        if found := _HALVES.search(value):
            raise UserError(f"{place}: the {what} must be Unicode, but has half a character, {found[0]!r}; mend it.")
    start, end = _read_seconds(place, fields, "start"), _read_seconds(place, fields, "end")
    offset = _read_seconds(place, fields, "offset")
    if offset is not None:  # NeMo: without it, `duration` is that of the whole file
        duration = _read_seconds(place, fields, "duration")
        start, end = offset, None if duration is None else offset + duration
    if end is not None and end <= (start or 0.0):
        raise UserError(
            f"{place}: must end after its start, but goes from {start or 0.0:g} to {end:g} seconds instead."
        )
    if end is not None and end - (start or 0.0) < LEAST_SECONDS - 1e-6:  # names of clips have microseconds
        raise UserError(
            f"{place}: must be at least {LEAST_SECONDS} s long, but goes from {start or 0.0:.6g} to {end:.6g} seconds "
            "instead; mend it, or leave the line out."
        )
    return _Row(place, folder / audio.strip(), None if text is None else " ".join(text.split()), start or 0.0, end)


def _read_seconds(place: str, fields: dict[str, Any], key: str) -> float | None:
    value = fields.get(key)
    if value is None or value == "":
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not 0 <= seconds < MOST_SECONDS or isinstance(value, bool):
        raise UserError(f"{place}: {key} must be a number of seconds, but is {value!r} instead.")
    return seconds


def _check_rows(rows: Iterable[_Row], *, need_text: bool) -> dict[Path, int]:
    """The sizes of the files, each looked at once; UserError where one is missing, or a transcript is blank."""
    sizes: dict[Path, int] = {}
    for row in rows:
        if need_text and not (row.text or "").strip():
            raise UserError(f"{row.place}: {row.path.name} has no transcript; write it, or leave the line out.")
        if row.path not in sizes:
            try:
                sizes[row.path] = row.path.stat().st_size
            except OSError as error:
                reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
                raise UserError(
                    f"{row.place}: {row.path}: {reason}; paths must be absolute or relative to the list's folder."
                ) from error
    return sizes


def _digest(rows: Iterable[_Row], base: Path, sizes: dict[Path, int]) -> str:
    digest = hashlib.sha256()
    relative = {path: os.path.relpath(path, base) for path in sizes}
    for row in rows:
        name = name_clip(relative[row.path], row.start, row.end)
        digest.update(f"{name}\t{sizes[row.path]}\t{row.text or ''}\n".encode("utf-8", "replace"))
    return digest.hexdigest()
