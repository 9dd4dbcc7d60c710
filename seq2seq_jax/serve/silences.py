"""Cuts long recordings where nobody speaks, by their loudness alone."""

from __future__ import annotations

import numpy as np

FRAME_S = 0.01
SMOOTH = 5
"""Frames over which loudness is averaged before it is compared: a single loud or quiet one decides nothing."""
QUIET = 20
"""Frames over which loudness is averaged to find the quietest place of speech without a pause."""
SILENCE_DB = -60.0
"""Below this, against full scale, is silence in any recording."""
STEADY_DB = -35.0
"""A sound that is always equally loud (a hum, noise, a single tone) counts as silence below this."""
STEADY_RANGE = 6.0
"""Decibels between the loudest and the quietest place, below which a sound counts as always equally loud."""
SHORT_PAUSE = 8
"""Frames of quiet at least, where speech that goes on beyond the limit is cut rather than anywhere else."""
CLICK_S = 0.08
"""What is loud for less, between two pauses, is no speech."""

Span = tuple[int, int]


def cut_at_silences(
    samples: np.ndarray,
    *,
    rate: int,
    longest_s: float,
    shortest_s: float = 2.0,
    pause_s: float = 0.3,
    margin_s: float = 0.15,
) -> list[Span]:
    """Where the pieces of a recording begin and end, in samples, in order.

    A recording is quiet where it is little louder than in its quietest tenth; `pause_s` of quiet make a pause. Pieces
    end at pauses; what would be shorter than `shortest_s` goes on over them, within the limit. Speech that goes on
    beyond the limit is cut in a shorter pause, and where there is none, at its quietest place. Silence alone gives no
    piece.

    Args:
      samples: `[W]`, full scale from -1 to 1.
      rate: samples a second.
      longest_s: no piece is longer, in seconds.
      shortest_s: pieces that are shorter are joined with a neighbour, unless they would get too long or the pause
        between them lasts as long itself.
      pause_s: seconds of quiet that make a pause.
      margin_s: seconds of the pause that stay before and after the speech, where there is room.

    Raises:
      ValueError: a length is not positive, or the samples are of several channels.
    """
    if min(rate, longest_s, shortest_s, pause_s) <= 0 or margin_s < 0:
        raise ValueError(
            f"`rate`, `longest_s`, `shortest_s` and `pause_s` must be positive and `margin_s` not negative, "
            f"but are {rate}, {longest_s}, {shortest_s}, {pause_s} and {margin_s} instead."
        )
    if np.ndim(samples) != 1:
        raise ValueError(f"`samples` must have the shape [W], but have {np.shape(samples)} instead.")
    hop = max(1, round(rate * FRAME_S))
    longest = int(longest_s * rate) // hop
    if longest < 1:
        raise ValueError(f"`longest_s` must be at least {FRAME_S} seconds, but is {longest_s} instead.")
    levels = measure_levels(samples, hop=hop)
    loud = _find_loud(levels)
    frames_a_second = rate / hop
    shortest = min(int(shortest_s * frames_a_second), longest // 2)
    spans = _find_speech(loud, pause=max(1, round(pause_s * frames_a_second)), click=CLICK_S * frames_a_second)
    pieces = _cut_long(_join_short(spans, shortest=shortest, longest=longest), levels, loud, shortest, longest)
    pieces = _widen(pieces, round(margin_s * frames_a_second), longest, len(levels))
    return [(start * hop, min(end * hop, len(samples))) for start, end in pieces]


def measure_levels(samples: np.ndarray, *, hop: int) -> np.ndarray:
    """`[W]` to `[ceil(W / hop)]`: the power of each stretch of `hop` samples in decibels against full scale.

    Its mean is taken off first: a recorder's constant offset is no sound.
    """
    samples = np.asarray(samples, dtype=np.float32)
    count = -(-len(samples) // hop)
    whole = len(samples) // hop
    power = np.zeros(count)
    frames = samples[: whole * hop].reshape(whole, hop)
    power[:whole] = np.einsum("sh,sh->s", frames, frames) / hop - frames.mean(-1, dtype=np.float64) ** 2
    if count > whole:
        power[whole] = float(samples[whole * hop :].var())
    return 10.0 * np.log10(np.maximum(power, 1e-10))


def _find_loud(levels: np.ndarray) -> np.ndarray:
    """`[S]`, True where somebody may speak."""
    if not len(levels):
        return np.zeros(0, dtype=bool)
    smooth = _average(levels, SMOOTH)
    floor, peak = float(np.quantile(smooth, 0.1)), float(smooth.max())
    if peak - floor < STEADY_RANGE:
        return np.full(len(levels), floor >= STEADY_DB)
    above = min(max(3.0, 0.3 * (peak - floor)), 12.0)
    return smooth > max(SILENCE_DB, floor + above)


def _average(levels: np.ndarray, width: int) -> np.ndarray:
    """The mean over `width` frames around each; at the ends over those that are there."""
    width = min(width, len(levels))
    sums = np.concatenate([[0.0], np.cumsum(levels)])
    middle = np.arange(len(levels))
    start = np.maximum(middle - width // 2, 0)
    end = np.minimum(middle - width // 2 + width, len(levels))
    return (sums[end] - sums[start]) / (end - start)


def _find_runs(flags: np.ndarray) -> list[Span]:
    """First frame and the one after the last of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]


def _find_speech(loud: np.ndarray, *, pause: int, click: float) -> list[Span]:
    """Speech between pauses; what is quiet for less than a pause belongs to it."""
    spans: list[Span] = []
    for start, end in _find_runs(loud):
        if spans and start - spans[-1][1] < pause:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
    return [(start, end) for start, end in spans if loud[start:end].sum() >= click]


def _join_short(spans: list[Span], *, shortest: int, longest: int) -> list[Span]:
    """What is too short goes together with what is before it, unless that is far away or both would get too long."""
    joined: list[Span] = []
    for start, end in spans:
        begun, ended = joined[-1] if joined else (start, start)
        is_short = min(ended - begun, end - start) < shortest and start - ended < shortest
        if joined and is_short and end - begun <= longest:
            joined[-1] = (begun, end)
        else:
            joined.append((start, end))
    return joined


def _cut_long(spans: list[Span], levels: np.ndarray, loud: np.ndarray, shortest: int, longest: int) -> list[Span]:
    """No span longer than the limit."""
    quietness = _average(levels, QUIET)
    pieces: list[Span] = []
    for start, end in spans:
        while end - start > longest:
            cut = _choose_cut(start, end, quietness, loud, shortest, longest)
            pieces.append((start, cut))
            start = cut
        pieces.append((start, end))
    return pieces


def _choose_cut(start: int, end: int, quietness: np.ndarray, loud: np.ndarray, shortest: int, longest: int) -> int:
    """The middle of the longest short pause in reach, a late one if there is one; else the quietest frame."""
    last = start + longest
    if end - shortest > start + longest // 2:
        last = min(last, end - shortest)  # what is left over is no crumb
    half = start + max(1, longest // 2)
    for first in (half, start + max(1, shortest), start + 1):
        runs = _find_runs(~loud[first : last + 1])
        if runs := [(a, b) for a, b in runs if b - a >= SHORT_PAUSE]:
            a, b = max(runs, key=lambda run: run[1] - run[0])
            return min(first + (a + b) // 2, last)
    return min(half + int(np.argmin(quietness[half : last + 1])), last)


def _widen(pieces: list[Span], margin: int, longest: int, count: int) -> list[Span]:
    """A margin around each, at most half of the gap to the next one, and within the limit."""
    wide: list[Span] = []
    for n, (start, end) in enumerate(pieces):
        before = start - pieces[n - 1][1] if n else 2 * start
        after = pieces[n + 1][0] - end if n + 1 < len(pieces) else 2 * (count - end)
        room = (longest - (end - start)) // 2
        wide.append((start - min(margin, before // 2, room), end + min(margin, after // 2, room)))
    return wide
