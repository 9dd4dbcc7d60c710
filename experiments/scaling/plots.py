"""The pictures of a scaling study, each as PNG bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from curves import Law, Row, Speed
from fit import PowerLaw
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

INK, FAINT, ACCENT, SECOND = "#1f2933", "#9aa5b1", "#0b6e99", "#c2410c"
AXIS_OF = {
    "parameters": "parameters",
    "compute": "compute of the training, FLOP",
    "data": "sentence pairs in the corpus",
}


def draw_law(law: Law, rows: Sequence[Row]) -> bytes:
    """Loss against what it is a law of: the points that were fitted, all others faint, and the fitted curve."""
    figure, (ax,) = _start(1)
    if law.of == "compute":
        _draw_trainings(ax, rows)
    ax.plot(law.x, law.loss, "o", color=ACCENT, label="fitted points", zorder=3)
    if isinstance(law.fitted, PowerLaw):
        x = np.geomspace(min(law.x), max(law.x), 100)
        found = law.fitted
        told = f"{found.floor.value:.2f} + (x / x0)^-{found.exponent.value:.3f}, x0 = {_find_unit(found):.3g}"
        ax.plot(x, found.predict(x), color=SECOND, label=told)
    ax.set(xscale="log", yscale="log", xlabel=AXIS_OF[law.of], ylabel="dev loss, nats a token")
    _label_sizes(ax)
    ax.yaxis.set_major_formatter("{x:.2g}")
    ax.yaxis.set_minor_formatter("{x:.2g}")
    ax.legend(frameon=False)
    return _finish(figure)


def _find_unit(law: PowerLaw) -> float:
    """x0 of A x^-alpha = (x / x0)^-alpha."""
    return float(law.scale.value ** (1 / law.exponent.value)) if law.exponent.value > 1e-3 else float("nan")


def _draw_trainings(ax: Axes, rows: Sequence[Row]) -> None:
    """One faint line a width, over the lengths of training on all data."""
    trained = [row for row in rows if row["kind"] == "train"]
    most = max(row["pairs"] for row in trained)
    for width in sorted({row["features"] for row in trained}):
        own = sorted((r["flops"], r["dev_loss"]) for r in trained if r["features"] == width and r["pairs"] == most)
        if own:
            ax.plot(*zip(*own, strict=True), ".-", color=FAINT, lw=1)
            ax.annotate(f" {width}", own[-1], color=FAINT, fontsize=8)


def draw_scaling(speeds: Sequence[Speed], *, weak: bool) -> bytes:
    """Speed and efficiency against devices; the dashed line is what perfect scaling would be."""
    figure, (left, right) = _start(2)
    devices = [speed.devices for speed in speeds]
    ends = np.array([min(devices), max(devices)])
    left.plot(ends, ends / speeds[0].devices * speeds[0].tokens_per_second, "--", color=FAINT, label="perfect")
    right.plot(ends, [1, 1], "--", color=FAINT)
    only_data = [speed for speed in speeds if all(part.startswith("data=") for part in speed.mesh.split(","))]
    others = [speed for speed in speeds if speed not in only_data]
    for group, style, label in ((only_data, "o-", "data"), (others, "s", "other meshes")):
        if group:
            x = [speed.devices for speed in group]
            color = ACCENT if group is only_data else SECOND
            left.plot(x, [speed.tokens_per_second for speed in group], style, color=color, label=label)
            right.plot(x, [speed.efficiency for speed in group], style, color=color)
    for speed in others:
        right.annotate(f" {speed.mesh}", (speed.devices, speed.efficiency), fontsize=8, color=SECOND)
    kind = "weak scaling: rows a device fixed" if weak else "strong scaling: global batch fixed"
    left.set(xscale="log", yscale="log", xlabel="devices", ylabel="tokens / s", title=kind)
    right.set(xscale="log", xlabel="devices", ylabel="efficiency", ylim=(0, None))
    for ax in (left, right):
        ax.set_xticks(sorted(set(devices)), [str(n) for n in sorted(set(devices))])
        ax.minorticks_off()
    left.legend(frameon=False)
    return _finish(figure)


def draw_costs(rows: Sequence[Row]) -> bytes:
    """Speed, memory and compilation against parameters, for the longest trainings on all data."""
    trained = [row for row in rows if row["kind"] == "train"]
    most, longest = max(row["pairs"] for row in trained), max(row["steps"] for row in trained)
    chosen = sorted(
        (row for row in trained if row["pairs"] == most and row["steps"] == longest), key=lambda row: row["parameters"]
    )
    figure, axes = _start(3)
    x = [row["parameters"] for row in chosen]
    panels = {
        "tokens / s": [row["tokens_per_second"] for row in chosen],
        "step's memory a device, MiB": [(row["step_bytes_per_device"] or 0) / 2**20 for row in chosen],
        "compilation of the step, s": [row["compile_seconds"] / row["compilations"] for row in chosen],
    }
    for ax, (label, values) in zip(axes, panels.items(), strict=True):
        ax.plot(x, values, "o-", color=ACCENT)
        ax.set(xscale="log", xlabel="parameters", ylabel=label, ylim=(0, None))
        _label_sizes(ax)
    return _finish(figure)


def _label_sizes(ax: Axes) -> None:
    """20k, 50k, 100k, ... below a logarithmic axis."""
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.xaxis.set_minor_formatter(NullFormatter())


def _start(count: int) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(5.2 * count if count < 3 else 12, 3.8), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(True, alpha=0.25)
        ax.tick_params(colors=INK)
    return figure, axes


def _finish(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
