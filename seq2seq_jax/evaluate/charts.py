"""Charts as inline SVG: they take their colours from the page, light or dark, and ask for nothing from outside."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from seq2seq_jax.evaluate.markup import Markup, element

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 44, 14, 10, 54
TICKS = 4


PLANE_WIDTH, PLANE_HEIGHT = 560, 340
LETTER = 5.6  # mean width of a letter of a label
LINE = 13  # height of a line of labels


@dataclasses.dataclass(frozen=True)
class Curve:
    """A line of a chart.

    Attributes:
        name: what it is.
        x, y: its points.
        spread: of each y, drawn as a bar from y - spread to y + spread; none where it is empty.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] = ()


@dataclasses.dataclass(frozen=True)
class Point:
    """A labelled point of a plane; points of one group have one colour."""

    x: float
    y: float
    label: str
    group: int = 0


def draw_curves(curves: Sequence[Curve], *, title: str, x_label: str, y_label: str) -> Markup | None:
    """Lines over a common axis; None if there is not a single point. Lines differ by colour and by dashes."""
    points = [
        [(x, y) for x, y in zip(curve.x, curve.y, strict=True) if math.isfinite(x) and math.isfinite(y)]
        for curve in curves
    ]
    bars = [_find_bars(curve) for curve in curves]
    flat = [point for line in points for point in line]
    flat += [(x, y) for bar in bars for x, *ends in bar for y in ends]
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
        for x, low, high in bars[n]:
            (px, bottom), (_, top) = place(x, low), place(x, high)
            ends = {"x1": f"{px:.1f}", "x2": f"{px:.1f}", "y1": f"{bottom:.1f}", "y2": f"{top:.1f}"}
            parts.append(element("line", attributes={**ends, "class": f"spread s{n}"}))
    return _frame(parts, title=title, x_label=x_label, y_label=y_label, names=[curve.name for curve in curves])


def _find_bars(curve: Curve) -> list[tuple[float, float, float]]:
    """Where each bar stands, begins and ends."""
    if not curve.spread:
        return []
    whole = zip(curve.x, curve.y, curve.spread, strict=True)
    return [(x, y - wide, y + wide) for x, y, wide in whole if math.isfinite(x) and math.isfinite(y + wide)]


def draw_plane(
    points: Sequence[Point], names: Sequence[str], *, title: str, x_label: str, y_label: str
) -> Markup | None:
    """Labelled points in a plane, as of sentence vectors in two dimensions; None without points.

    A label stands right of its point, or left of it in the right half, and moves up or down where another one is.

    Args:
        points: what is drawn.
        names: of the groups.
        title: what is shown, read aloud by screen readers.
        x_label, y_label: of the axes.
    """
    if not points:
        return None
    spans = _span([point.x for point in points]), _span([point.y for point in points])
    places = [
        (
            LEFT + (PLANE_WIDTH - LEFT - RIGHT) * _share(point.x, spans[0]),
            PLANE_HEIGHT - BOTTOM - (PLANE_HEIGHT - TOP - BOTTOM) * _share(point.y, spans[1]),
        )
        for point in points
    ]
    frame = {"x": LEFT, "y": TOP, "width": PLANE_WIDTH - LEFT - RIGHT, "height": PLANE_HEIGHT - TOP - BOTTOM}
    parts = [element("rect", attributes={**frame, "class": "grid", "fill": "none"})]
    labels = _place_labels(points, places)
    for point, (px, py), (tx, ty, anchor) in zip(points, places, labels, strict=True):
        dot = {"cx": f"{px:.1f}", "cy": f"{py:.1f}", "r": 4, "class": f"dot s{point.group}"}
        parts.append(element("circle", element("title", point.label), attributes=dot))
        parts.append(_write(tx, ty + 4, point.label, anchor))
    size = (PLANE_WIDTH, PLANE_HEIGHT)
    return _frame(parts, title=title, x_label=x_label, y_label=y_label, names=names, size=size, key="key point")


def _span(values: Sequence[float]) -> tuple[float, float]:
    """A range with a little room around the values."""
    room = 0.06 * (max(values) - min(values)) or 1.0
    return min(values) - room, max(values) + room


def _place_labels(points: Sequence[Point], places: Sequence[tuple[float, float]]) -> list[tuple[float, float, str]]:
    """Where each label stands and which of its ends: the free line nearest to its point."""
    taken: list[tuple[float, float, float]] = []  # from x to x, at y
    found: dict[int, tuple[float, float, str]] = {}
    for n in sorted(range(len(points)), key=lambda n: places[n][1]):
        (px, py), wide = places[n], LETTER * len(points[n].label)
        right = px + 8 + wide < PLANE_WIDTH or px < PLANE_WIDTH / 2
        start = px + 8 if right else px - 8 - wide

        def is_free(y: float, start: float = start, wide: float = wide) -> bool:
            inside = TOP + 6 <= y <= PLANE_HEIGHT - BOTTOM - 6
            return inside and not any(a < start + wide and start < b and abs(y - at) < LINE for a, b, at in taken)

        tries = [py + side * step * LINE / 2 for step in range(2 * len(points) + 1) for side in (1, -1)]
        y = next((y for y in tries if is_free(y)), py)
        taken.append((start, start + wide, y))
        found[n] = (px + 8 if right else px - 8, y, "start" if right else "end")
    return [found[n] for n in range(len(points))]


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


def _frame(
    parts: Sequence[Markup],
    *,
    title: str,
    x_label: str,
    y_label: str,
    names: Sequence[str],
    size: tuple[int, int] = (WIDTH, HEIGHT),
    key: str = "key",
) -> Markup:
    """The drawing with its axes' labels, and below it what the lines, bars or points are."""
    width, height = size
    middle = (TOP + height - BOTTOM) / 2
    turned = {"x": 11, "y": middle, "text-anchor": "middle", "transform": f"rotate(-90 11 {middle})"}
    labels = [
        _write((LEFT + width - RIGHT) / 2, height - 8, x_label, "middle"),
        element("text", y_label, attributes=turned),
    ]
    view = {"viewBox": f"0 0 {width} {height}", "role": "img", "aria-label": title}
    drawing = element("svg", *parts, *labels, attributes=view)
    keys = [
        element("span", element("i", attributes={"class": f"{key} s{n}"}), name, attributes={"class": "entry"})
        for n, name in enumerate(names)
    ]
    caption = element("figcaption", element("strong", title), element("span", *keys, attributes={"class": "legend"}))
    return element("figure", caption, drawing)
