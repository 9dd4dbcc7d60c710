"""Draws what a recogniser heard and where it listened (Chan et al. 2016, figure 2; Chorowski et al. 2015, figure 3)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from seq2seq_jax.evaluate.attention_maps import find_fonts, make_printable, write_picture

Border = tuple[str, float, float]
"""A word or token, and its start and end in seconds."""

_SECOND_INCHES = 2.0
_ROW_INCHES = 0.16
_SPECTROGRAM_INCHES = 2.2
_LEAST_INCHES, _MOST_INCHES = 5.0, 40.0
_LETTER_INCHES = 0.08


def save_spectrogram(
    path: str | os.PathLike[str],
    features: np.ndarray,
    *,
    frame_s: float,
    attention: np.ndarray | None = None,
    pieces: Sequence[str] = (),
    reduction: int = 1,
    borders: Sequence[Border] = (),
    title: str = "",
) -> None:
    """Draws a log-mel spectrogram over time, below it the attention of each piece of output, and borders of words.

    The file appears whole or not at all. Uses no display and no pyplot state.

    Args:
      path: Where to write; the ending (.png, .pdf, .svg) says the format.
      features: `[S, M]`, without padding.
      frame_s: Seconds from one frame to the next.
      attention: `[T, S']`, the weights of each piece over the frames of the memory, `S' = ceil(S / reduction)`, without
        padding.
      pieces: T labels.
      reduction: Frames of the features for each of the memory's.
      borders: Words or tokens with their times, of an alignment; drawn over both pictures.
      title: Printed above.

    Raises:
      ValueError: if the shapes do not fit together, or a number is not finite.
    """
    features = np.asarray(features, dtype=np.float32)
    if features.ndim != 2 or features.size == 0:
        raise ValueError(f"`features` must have the shape [S, M], at least [1, 1], but have {features.shape} instead.")
    weights = None if attention is None else np.asarray(attention, dtype=np.float32)
    if weights is not None:
        expected = (len(pieces), -(-len(features) // reduction))
        if weights.shape != expected or weights.size == 0:
            raise ValueError(
                f"`attention` must have the shape (pieces, frames / reduction) = {expected}, at least (1, 1), "
                f"but has {weights.shape} instead."
            )
    if not np.isfinite(features).all() or (weights is not None and not np.isfinite(weights).all()):
        raise ValueError("`features` and `attention` must be finite, but hold NaN or infinity instead.")
    figure = _draw(features, frame_s, weights, pieces, reduction * frame_s, borders, title)
    write_picture(figure, Path(path))


def _draw(
    features: np.ndarray,
    frame_s: float,
    weights: np.ndarray | None,
    pieces: Sequence[str],
    column_s: float,
    borders: Sequence[Border],
    title: str,
) -> Figure:
    seconds = len(features) * frame_s
    letters = max((len(piece) for piece in pieces), default=0)
    width = min(max(_SECOND_INCHES * seconds, _LEAST_INCHES) + _LETTER_INCHES * letters, _MOST_INCHES)
    heights = [_SPECTROGRAM_INCHES]
    if weights is not None:
        heights.append(min(max(_ROW_INCHES * len(weights), 1.0), _MOST_INCHES - 10.0))
    figure = Figure(figsize=(width, sum(heights) + 1.2), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)
    rows: list[Axes] = list(grid[:, 0])
    fonts = find_fonts()
    _show(rows[0], features.T, frame_s, "magma", low=None)
    rows[0].invert_yaxis()
    rows[0].set_ylabel("mel bin", fontsize=9)
    if weights is not None:
        _show(rows[1], weights, column_s, "gray", low=0.0)
        rows[1].set_yticks(range(len(pieces)), [make_printable(piece) for piece in pieces])
        for text in rows[1].get_yticklabels():
            text.set_parse_math(False)
            text.set_fontfamily(fonts)
            text.set_fontsize(8)
    _mark(rows, borders, fonts)
    rows[-1].set_xlim(0.0, seconds)
    rows[-1].set_xlabel("seconds", fontsize=9)
    for axes in rows:
        axes.tick_params(labelsize=8)
    if title:
        figure.suptitle(make_printable(title), family=fonts, fontsize=10, parse_math=False)
    return figure


def _show(axes: Axes, values: np.ndarray, column_s: float, colours: str, *, low: float | None) -> None:
    """`[rows, columns]`, the first row above; columns lie along the time."""
    extent = (0.0, values.shape[1] * column_s, len(values) - 0.5, -0.5)
    high = None if low is None else max(float(values.max()), 1e-6)
    axes.imshow(values, cmap=colours, vmin=low, vmax=high, aspect="auto", interpolation="nearest", extent=extent)


def _mark(rows: Sequence[Axes], borders: Sequence[Border], fonts: list[str]) -> None:
    """Lines where words begin and end, their text above the first picture."""
    for text, start, end in borders:
        for axes in rows:
            axes.axvline(start, color="#4fc3f7", linewidth=0.8)
            axes.axvline(end, color="#4fc3f7", linewidth=0.8, linestyle=":")
        rows[0].text(
            (start + end) / 2, 1.02, make_printable(text), transform=rows[0].get_xaxis_transform(), rotation=90,
            ha="center", va="bottom", fontsize=8, family=fonts, parse_math=False,
        )  # fmt: skip
