"""Draws which source pieces a model looked at for each target piece (Bahdanau et al. 2015, figure 3)."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_CELL_INCHES = 0.3
_MAX_INCHES = 40.0  # a page of long sentences stays below 6,000 pixels a side
_DOTS_PER_INCH = 150

# Fonts for scripts that DejaVu lacks; those that are installed serve as fallbacks, in this order.
_FALLBACK_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans SC", "Noto Sans JP", "Noto Sans KR",
    "Source Han Sans", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "IPAGothic", "TakaoGothic", "NanumGothic",
    "Unifont", "Noto Sans Devanagari", "Noto Sans Thai", "Noto Sans Arabic", "Noto Sans Hebrew", "FreeSans",
    "Hiragino Sans", "PingFang SC", "Apple SD Gothic Neo", "Arial Unicode MS", "Microsoft YaHei", "Yu Gothic",
    "Malgun Gothic",
)  # fmt: skip


def save_attention_map(
    path: str | os.PathLike[str],
    weights: np.ndarray,
    *,
    source_pieces: Sequence[str],
    target_pieces: Sequence[str],
    title: str = "",
) -> None:
    """Draws attention weights as a picture: source across, target down, the brighter the more weight.

    The file appears whole or not at all. Uses no display and no pyplot state.

    Args:
      path: Where to write; the ending (.png, .pdf, .svg) says the format.
      weights: `[T, S]`, the weights of each target piece over the source pieces.
      source_pieces: S labels.
      target_pieces: T labels.
      title: Printed above.

    Raises:
      ValueError: if the shape does not fit the labels, or a weight is not finite.
    """
    weights = np.asarray(weights, dtype=np.float32)
    if weights.shape != (len(target_pieces), len(source_pieces)) or weights.size == 0:
        raise ValueError(
            f"`weights` must have the shape (target pieces, source pieces) = "
            f"({len(target_pieces)}, {len(source_pieces)}), at least (1, 1), but has {weights.shape} instead."
        )
    if not np.isfinite(weights).all():
        raise ValueError("`weights` must be finite, but hold NaN or infinity instead.")
    figure = _draw(weights, source_pieces, target_pieces, title)
    write_picture(figure, Path(path))


def _draw(weights: np.ndarray, source_pieces: Sequence[str], target_pieces: Sequence[str], title: str) -> Figure:
    rows, columns = weights.shape
    # Room for the labels (the longest decides) and the colour bar.
    width = _CELL_INCHES * columns + 0.09 * _longest(target_pieces) + 1.6
    height = _CELL_INCHES * rows + 0.09 * _longest(source_pieces) + (1.0 if title else 0.6)
    figure = Figure(figsize=(min(width, _MAX_INCHES), min(height, _MAX_INCHES)))
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(weights, cmap="gray", vmin=0.0, vmax=max(float(weights.max()), 1e-6), interpolation="nearest")
    axes.set_aspect("auto" if width > _MAX_INCHES or height > _MAX_INCHES else "equal")
    fonts = find_fonts()
    _label(axes, source_pieces, target_pieces, fonts)
    if title:
        axes.set_title(make_printable(title), family=fonts, fontsize=10, parse_math=False)
    figure.colorbar(image, ax=axes, shrink=min(1.0, 6.0 / rows), pad=0.02).ax.tick_params(labelsize=8)
    return figure


def _label(axes: Axes, source_pieces: Sequence[str], target_pieces: Sequence[str], fonts: list[str]) -> None:
    axes.xaxis.tick_top()
    axes.set_xticks(range(len(source_pieces)), [make_printable(p) for p in source_pieces], rotation=90)
    axes.set_yticks(range(len(target_pieces)), [make_printable(p) for p in target_pieces])
    axes.tick_params(length=0)
    for text in axes.get_xticklabels() + axes.get_yticklabels():
        text.set_parse_math(False)  # "$" is a price, not mathematics
        text.set_fontfamily(fonts)
        text.set_fontsize(9)


def _longest(pieces: Sequence[str]) -> int:
    return max(len(piece) for piece in pieces)


def make_printable(text: str) -> str:
    """Line breaks and other control characters would tear a label apart."""
    return "".join(c if c.isprintable() else "␣" if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text)


def find_fonts() -> list[str]:
    """Families that together have the letters of most scripts, those that are installed."""
    installed = set(font_manager.get_font_names())
    return ["DejaVu Sans"] + [name for name in _FALLBACK_FONTS if name in installed]


def write_picture(figure: Figure, path: Path) -> None:
    """Writes beside the goal and renames, so that no reader meets half a picture."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix or ".png")
    try:
        with os.fdopen(handle, "wb") as file, warnings.catch_warnings():
            # Without a font for a script its letters are boxes: no reason to lose the picture.
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            figure.savefig(file, format=path.suffix.lstrip(".") or "png", dpi=_DOTS_PER_INCH, bbox_inches="tight")
        os.chmod(name, 0o644)  # mkstemp makes files that only their owner can read
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
