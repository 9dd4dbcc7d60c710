"""Charts of planes and of curves with spreads: what is where, and that labels keep out of each other's way."""

import re
import xml.etree.ElementTree as ET

import pytest

from seq2seq_jax.evaluate import charts
from seq2seq_jax.evaluate.charts import Curve, Point, draw_curves, draw_plane
from seq2seq_jax.evaluate.report_style import STYLE

NEAR = [Point(0.001 * n, 0.001 * n, f"a man is watching woman number {n} .", n % 2) for n in range(6)]
FAR = [Point(5, 5, "<far> & away", 1), Point(-3, 4, "left", 0)]


def draw(points):
    drawn = draw_plane(points, ["men", "women"], title="A plane", x_label="first", y_label="second")
    return ET.fromstring(drawn)


def read_labels(figure, points):
    """Label → where it begins, where it ends, its height."""
    wanted, found = {point.label for point in points}, {}
    for text in figure.iter("text"):
        if text.text in wanted:
            x, y = float(text.get("x")), float(text.get("y"))
            wide = charts.LETTER * len(text.text)
            found[text.text] = (x, x + wide, y) if text.get("text-anchor") == "start" else (x - wide, x, y)
    return found


def test_every_point_has_its_colour_and_a_label_that_no_other_covers():
    points = [*NEAR, *FAR]
    figure = draw(points)
    dots = [dot.get("class") for dot in figure.iter("circle")]
    assert dots == [f"dot s{point.group}" for point in points]
    labels = list(read_labels(figure, points).values())
    assert len(labels) == len(points)
    for n, (start, end, y) in enumerate(labels):
        assert start >= 0 and end <= charts.PLANE_WIDTH + 20 and 0 < y < charts.PLANE_HEIGHT - charts.BOTTOM
        for other_start, other_end, other in labels[n + 1 :]:
            assert end <= other_start or other_end <= start or abs(y - other) >= charts.LINE - 0.11


def test_points_lie_as_their_numbers_do():
    points = [Point(0, 0, "a"), Point(4, 1, "b"), Point(2, 3, "c")]
    a, b, c = ((float(dot.get("cx")), float(dot.get("cy"))) for dot in draw(points).iter("circle"))
    assert a[0] < c[0] < b[0] and a[1] > b[1] > c[1]
    assert c[0] - a[0] == pytest.approx(b[0] - c[0], abs=0.11)
    assert draw_plane([], [], title="t", x_label="x", y_label="y") is None


def test_a_single_point_and_equal_ones_are_drawn():
    assert len(list(draw([Point(1, 1, "x")]).iter("circle"))) == 1
    assert len(list(draw([Point(1, 1, "x"), Point(1, 1, "y")]).iter("circle"))) == 2


def test_spreads_are_lines_around_their_points_within_the_chart():
    curve = Curve("a", [1, 2, 3], [10, 20, 30], [0, 5, 40])
    figure = ET.fromstring(draw_curves([curve, Curve("b", [1], [2])], title="t", x_label="x", y_label="y"))
    lines = [line for line in figure.iter("line") if line.get("class") == "spread s0"]
    dots = [(float(dot.get("cx")), float(dot.get("cy"))) for dot in figure.iter("circle") if "s0" in dot.get("class")]
    assert len(lines) == len(dots) == 3 and not [
        line for line in figure.iter("line") if "spread s1" in line.get("class")
    ]
    for line, (x, y), wide in zip(lines, dots, curve.spread, strict=True):
        low, high = float(line.get("y1")), float(line.get("y2"))
        assert float(line.get("x1")) == float(line.get("x2")) == x
        assert low - y == pytest.approx(y - high, abs=0.21) and (low - high > 1) == (wide > 0)
        assert charts.TOP <= high and low <= charts.HEIGHT - charts.BOTTOM


def test_six_series_have_colours_in_light_and_dark():
    for n in range(6):
        assert len(re.findall(rf"--s{n}: #[0-9a-f]{{6}};", STYLE)) == 2
        for kind in ("line", "dot", "bar", "key", "spread"):
            assert f".{kind}.s{n}" in STYLE
