"""Charts as inline SVG: they take their colours from the page, light or dark, and ask for nothing from outside."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from seq2seq_jax.evaluate.markup import Markup, element

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 44, 14, 10, 54
TICKS = 4


@dataclasses.dataclass(frozen=True)
class Curve:
    """A line of a chart."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def draw_curves(curves: Sequence[Curve], *, title: str, x_label: str, y_label: str) -> Markup | None:
    """Lines over a common axis; None if there is not a single point. Lines differ by colour and by dashes."""
    points = [
        [(x, y) for x, y in zip(curve.x, curve.y, strict=True) if math.isfinite(x) and math.isfinite(y)]
        for curve in curves
    ]
    flat = [point for line in points for point in line]
    if not flat:
        return None
    x_ticks = choose_ticks(min(x for x, _ in flat), max(x for x, _ in flat))
    y_ticks = choose_ticks(min(y for _, y in flat), max(y for _, y in flat))
    spans = (min(x_ticks[0], min(x for x, _ in flat)), x_ticks[-1]), (y_ticks[0], y_ticks[-1])

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (WIDTH - LEFT - RIGHT) * _share(x, spans[0]),
            HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * _share(y, spans[1]),
        )

    parts = [_draw_grid(y_ticks, lambda y: place(spans[0][0], y)[1])]
    for x in x_ticks:
        parts.append(_write(place(x, 0)[0], HEIGHT - BOTTOM + 14, format_tick(x), "middle"))
    for n, line in enumerate(points):
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in (place(*point) for point in line))
        parts.append(element("polyline", attributes={"points": path, "class": f"line s{n}"}))
        if len(line) <= 40:
            for point in line:
                px, py = place(*point)
                dot = {"cx": f"{px:.1f}", "cy": f"{py:.1f}", "r": 2.5, "class": f"dot s{n}"}
                parts.append(element("circle", attributes=dot))
    return _frame(parts, title=title, x_label=x_label, y_label=y_label, names=[curve.name for curve in curves])


def draw_bars(
    labels: Sequence[str],
    groups: Sequence[Sequence[float]],
    names: Sequence[str],
    *,
    title: str,
    x_label: str,
    y_label: str,
) -> Markup | None:
    """Bars side by side for each label, one for each name, from 0 up; None without labels.

    Args:
        labels: what stands below each group.
        groups: for each label the values of all names.
        names: of the bars in a group.
        title: what is shown, read aloud by screen readers.
        x_label, y_label: of the axes.
    """
    if not labels:
        return None
    y_ticks = choose_ticks(0.0, max(max(group) for group in groups) or 1.0)
    top, room = y_ticks[-1], (WIDTH - LEFT - RIGHT) / len(labels)
    wide = min(26.0, 0.8 * room / len(names))

    def height(value: float) -> float:
        return (HEIGHT - TOP - BOTTOM) * value / top

    parts = [_draw_grid(y_ticks, lambda y: HEIGHT - BOTTOM - height(y))]
    for n, (label, group) in enumerate(zip(labels, groups, strict=True)):
        middle = LEFT + room * (n + 0.5)
        parts.append(_write_slanted(middle + 4, HEIGHT - BOTTOM + 12, label))
        for k, value in enumerate(group):
            bar = {
                "x": f"{middle + (k - len(group) / 2) * wide:.1f}",
                "y": f"{HEIGHT - BOTTOM - height(value):.1f}",
                "width": f"{wide - 1:.1f}",
                "height": f"{height(value):.1f}",
                "class": f"bar s{k}",
            }
            told = element("title", f"{names[k]}, {label}: {value:.1f}")
            parts.append(element("rect", told, attributes=bar))
    return _frame(parts, title=title, x_label=x_label, y_label=y_label, names=names)


def choose_ticks(low: float, high: float) -> list[float]:
    """A few round numbers that enclose a range.

    >>> choose_ticks(0, 37)
    [0.0, 10.0, 20.0, 30.0, 40.0]
    """
    if high <= low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / TICKS
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(n * step, 10) for n in range(first, last + 1)]


def format_tick(value: float) -> str:
    """Thousands as k.

    >>> format_tick(4000), format_tick(0.5)
    ('4k', '0.5')
    """
    return f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:g}"


def _share(value: float, span: tuple[float, float]) -> float:
    return (value - span[0]) / ((span[1] - span[0]) or 1.0)


def _draw_grid(ticks: Sequence[float], height: Callable[[float], float]) -> Markup:
    parts = []
    for tick in ticks:
        y = height(tick)
        line = {"x1": LEFT, "x2": WIDTH - RIGHT, "y1": f"{y:.1f}", "y2": f"{y:.1f}", "class": "grid"}
        parts += [element("line", attributes=line), _write(LEFT - 5, y + 4, format_tick(tick), "end")]
    return element("g", *parts)


def _write(x: float, y: float, text: str, anchor: str) -> Markup:
    return element("text", text, attributes={"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor})


def _write_slanted(x: float, y: float, text: str) -> Markup:
    """A label that has room beside its neighbours however long it is."""
    turn = {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": "end", "transform": f"rotate(-35 {x:.1f} {y:.1f})"}
    return element("text", text, attributes=turn)


def _frame(parts: Sequence[Markup], *, title: str, x_label: str, y_label: str, names: Sequence[str]) -> Markup:
    """The drawing with its axes' labels, and below it what the lines or bars are."""
    middle = (TOP + HEIGHT - BOTTOM) / 2
    turned = {"x": 11, "y": middle, "text-anchor": "middle", "transform": f"rotate(-90 11 {middle})"}
    labels = [
        _write((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_label, "middle"),
        element("text", y_label, attributes=turned),
    ]
    view = {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "role": "img", "aria-label": title}
    drawing = element("svg", *parts, *labels, attributes=view)
    keys = [
        element("span", element("i", attributes={"class": f"key s{n}"}), name, attributes={"class": "entry"})
        for n, name in enumerate(names)
    ]
    caption = element("figcaption", element("strong", title), element("span", *keys, attributes={"class": "legend"}))
    return element("figure", caption, drawing)
