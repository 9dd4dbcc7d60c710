"""What was said and when, as plain text, JSON, SubRip (.srt) or WebVTT (.vtt)."""

from __future__ import annotations

import bisect
import dataclasses
import html
import json
import math
import os
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence

from seq2seq_jax.errors import UserError

FORMATS = ("text", "json", "srt", "vtt")
CUE_LETTERS, LINE_LETTERS = 84, 42
"""Most letters that a subtitle shows at once, and those of a line: two lines."""
CUE_SECONDS = 7.0
"""How long a subtitle stays at most, where words have times."""
ARROW = re.compile("-{2,}>")
"""What readers of subtitles take for the middle of a line of times."""


@dataclasses.dataclass(frozen=True)
class Word:
    """A word and when it was said, in seconds."""

    text: str
    start: float
    end: float


@dataclasses.dataclass(frozen=True)
class Segment:
    """A stretch of a recording and what was said in it.

    Attributes:
        text: what was said.
        start, end: of the stretch, in seconds.
        words: with their times; empty where they are not known.
        score: what the search ranked the text by.
    """

    text: str
    start: float
    end: float
    words: tuple[Word, ...] = ()
    score: float = 0.0

    def move(self, seconds: float) -> Segment:
        """The same, so much later."""
        words = tuple(Word(word.text, word.start + seconds, word.end + seconds) for word in self.words)
        return dataclasses.replace(self, start=self.start + seconds, end=self.end + seconds, words=words)


def join_words(
    tokens: Sequence[int], times: Sequence[tuple[float, float]], *, decode: Callable[[list[int]], str]
) -> tuple[Word, ...]:
    """Words with their times, from the tokens' times; a word lasts from its first token to its last.

    Which token brought which letters is read from `decode` of the tokens up to it, so any vocabulary will do:
    subwords, characters, bytes.

    Args:
      tokens: ids, without special ones.
      times: of each token its start and end in seconds.
      decode: ids to text, as of `Vocab.decode`.
    """
    if len(tokens) != len(times):
        raise ValueError(f"`times` must be as many as `tokens`, {len(tokens)}, but are {len(times)} instead.")
    ids = [int(token) for token in tokens]
    text = decode(ids)
    begun, settled = [0], [0]  # letters that are there after so many tokens, and those that stay as they are
    for n in range(1, len(ids) + 1):
        prefix = text if n == len(ids) else decode(ids[:n])
        begun.append(max(begun[-1], len(prefix)))
        settled.append(max(settled[-1], len(os.path.commonprefix([prefix, text]))))
    words, at = [], 0
    for word in text.split():
        at = text.index(word, at)
        first = bisect.bisect_right(begun, at) - 1
        last = bisect.bisect_right(settled, at + len(word) - 1) - 1
        words.append(Word(word, float(times[first][0]), float(max(times[first][1], times[last][1]))))
        at += len(word)
    return tuple(words)


def render(segments: Sequence[Segment], form: str, *, duration: float | None = None) -> str:
    """A whole file of one of the `FORMATS`, ending with a line's end.

    Args:
      segments: in order.
      form: "text" is a line for each segment. "json" has the fields of OpenAI's `verbose_json` that we know: `task`,
        `duration`, `text`, and `segments` with `id`, `start`, `end`, `text`, `score`, and `words` with `word`,
        `start`, `end`. "srt" and "vtt" are subtitles: long segments become several where words have times.
      duration: seconds of the recording; without it the end of the last segment.

    Raises:
      UserError: there is no such format.
    """
    if form == "text":
        return "\n".join(" ".join(segment.text.split()) for segment in segments) + "\n"
    if form == "json":
        return _render_json(segments, duration)
    if form not in FORMATS:
        raise UserError(f"a transcript's format must be one of {', '.join(FORMATS)}, but is {form!r} instead.")
    cues = [cue for segment in segments for cue in cut_cues(segment) if cue.text]
    blocks = []
    for n, (cue, (start, end)) in enumerate(zip(cues, _time_cues(cues), strict=True), start=1):
        comma = "," if form == "srt" else "."
        text = ARROW.sub("->", cue.text)
        lines = textwrap.wrap(text, LINE_LETTERS, break_long_words=False, break_on_hyphens=False)
        shown = "\n".join(html.escape(line, quote=False) if form == "vtt" else line for line in lines)
        head = f"{n}\n" if form == "srt" else ""
        blocks.append(f"{head}{_tell_time(start, comma)} --> {_tell_time(end, comma)}\n{shown}\n")
    return "\n".join((["WEBVTT\n"] if form == "vtt" else []) + blocks)


def _time_cues(cues: Sequence[Segment]) -> list[tuple[int, int]]:
    """First and last millisecond of each: one ends where the next begins, and none ends when it begins.

    Players refuse what has no length, and show what overlaps in two places.
    """
    times: list[tuple[int, int]] = []
    for cue in cues:
        start = max(0, round(1000 * cue.start))
        if times:
            begun, ended = times[-1]
            start = max(start, begun + 1)
            times[-1] = (begun, min(ended, start))
        times.append((start, max(start + 1, round(1000 * cue.end))))
    return times


def cut_cues(segment: Segment) -> Iterator[Segment]:
    """A segment in pieces that can be read at a glance, where its words have times."""
    begun: list[Word] = []
    for word in segment.words:
        letters = sum(len(one.text) + 1 for one in begun) + len(word.text)
        if begun and (letters > CUE_LETTERS or word.end - begun[0].start > CUE_SECONDS):
            yield _make_cue(begun)
            begun = []
        begun.append(word)
    if begun:
        yield _make_cue(begun)
    else:
        yield dataclasses.replace(segment, text=" ".join(segment.text.split()))


def _make_cue(words: Iterable[Word]) -> Segment:
    words = tuple(words)
    return Segment(" ".join(word.text for word in words), words[0].start, words[-1].end, words)


def _render_json(segments: Sequence[Segment], duration: float | None) -> str:
    rows = []
    for n, segment in enumerate(segments):
        row = {"id": n, "start": round(segment.start, 3), "end": round(segment.end, 3), "text": segment.text}
        words = [{"word": w.text, "start": round(w.start, 3), "end": round(w.end, 3)} for w in segment.words]
        score = round(segment.score, 6) if math.isfinite(segment.score) else None  # JSON has no infinity
        rows.append({**row, "score": score, "words": words})
    last = max((segment.end for segment in segments), default=0.0)
    whole = {
        "task": "transcribe",
        "duration": round(last if duration is None else duration, 3),
        "text": " ".join(" ".join(segment.text.split()) for segment in segments),
        "segments": rows,
    }
    return json.dumps(whole, ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def _tell_time(milliseconds: int, comma: str) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{comma}{rest:03d}"
