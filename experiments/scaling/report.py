"""Writes what a study found: `points.csv`, `plots/*.png` and `report.html`, one file that holds everything."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from curves import Law, Row, Speed, find_strong, find_weak, fit_laws, flatten, write_csv
from fit import Interval, PowerLaw
from plots import draw_costs, draw_law, draw_scaling

from seq2seq_jax.train.writers import replace_text

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
code, pre { font: 0.9em ui-monospace, monospace; background: #f1f5f9; border-radius: 4px; padding: 0.1em 0.3em; }
pre { padding: 0.8em; overflow-x: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.6rem; text-align: right; border-bottom: 1px solid #e2e8f0; white-space: nowrap; }
th { border-bottom-color: #64748b; } td:first-child, th:first-child { text-align: left; }
img { max-width: 100%; height: auto; }
.note { background: #fef3c7; border-left: 4px solid #d97706; padding: 0.5rem 1rem; }
"""

_COLUMNS = {
    "kind": "kind",
    "features": "width",
    "parameters": "parameters",
    "pairs": "pairs",
    "steps": "steps",
    "mesh": "mesh",
    "rows": "rows",
    "seed": "seed",
    "epochs": "epochs",
    "flops": "FLOP",
    "dev_loss": "dev loss",
    "train_loss": "train loss",
    "tokens_per_second": "tokens/s",
    "step_bytes_per_device": "step MiB/device",
    "device_peak_bytes": "device peak MiB",
    "peak_rss_bytes": "process peak MiB",
    "compile_seconds": "compile s",
    "compilations": "shapes",
    "seconds": "all s",
}


def write_report(
    results: Sequence[Mapping[str, Any]], out: Path, *, command: str, left_out: Sequence[str] = (), resamples: int = 200
) -> Path:
    """Writes all three into `out`, from finished points as `load_results` gives them; returns the HTML's path."""
    rows = flatten(results)
    laws = fit_laws(rows, resamples=resamples)
    strong, weak = find_strong(rows), find_weak(rows)
    plots = {f"loss_{law.of}": draw_law(law, rows) for law in laws}
    plots |= {"strong_scaling": draw_scaling(strong, weak=False)} if strong else {}
    plots |= {"weak_scaling": draw_scaling(weak, weak=True)} if weak else {}
    plots |= {"costs": draw_costs(rows)} if laws else {}
    (out / "plots").mkdir(parents=True, exist_ok=True)
    for name, picture in plots.items():
        (out / "plots" / f"{name}.png").write_bytes(picture)
    replace_text(out / "points.csv", write_csv(rows))
    text = _render(rows, laws, strong, weak, plots, results, command, left_out)
    replace_text(out / "report.html", text)
    return out / "report.html"


def _render(
    rows: Sequence[Row],
    laws: Sequence[Law],
    strong: Sequence[Speed],
    weak: Sequence[Speed],
    plots: Mapping[str, bytes],
    results: Sequence[Mapping[str, Any]],
    command: str,
    left_out: Sequence[str],
) -> str:
    notes = [*_find_notes(rows, results), *(f"Left out: {reason}" for reason in left_out)]
    parts = ["<h1>Scaling study</h1>", f"<pre>{html.escape(command)}</pre>", _render_machines(results)]
    parts += [f'<p class="note">{html.escape(note)}</p>' for note in notes]
    if laws:
        parts += ["<h2>Loss</h2>", _LAW, _render_laws(laws)]
        parts += [_render_picture(name, plots[name]) for name in plots if name.startswith("loss_")]
    for name, title, speeds in (("strong", "Strong scaling", strong), ("weak", "Weak scaling", weak)):
        if speeds:
            parts += [f"<h2>{title}</h2>", _render_picture(f"{name}_scaling", plots[f"{name}_scaling"])]
            parts.append(_render_speeds(speeds))
    if "costs" in plots:
        parts += ["<h2>Speed, memory, compilation</h2>", _render_picture("costs", plots["costs"]), _COSTS]
    parts += ["<h2>All points</h2>", _render_rows(rows)]
    body = "\n".join(parts)
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}<title>Scaling study</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


_LAW = (
    "<p>L(x) = E + A x<sup>-&alpha;</sup>, fitted to the logarithms with a Huber loss (Hoffmann et al. 2022). "
    "Intervals: 5th to 95th percentile of fits to points drawn with replacement. Loss: cross-entropy on the dev split "
    "in nats a token, without dropout and label smoothing. Parameters count embeddings. Compute: 6 FLOP for every "
    "weight that meets a token, look-ups and attention scores left out.</p>"
)
_COSTS = (
    "<p>Tokens are real ones, of both sides; compilation and evaluation are no part of the speed, which is the median "
    "over ten windows but the first. Memory of a step: arguments, results and temporaries of the compiled program on "
    "one device. Compilation: without any cache, the mean of a shape. All of it is in points.csv.</p>"
)


def _find_notes(rows: Sequence[Row], results: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader must know before believing a number."""
    notes = []
    crowded = [row for row in rows if row["platform"] == "cpu" and row["devices"] > row["cores"]]
    shared = [row for row in rows if row["platform"] == "cpu" and row["devices"] > 1]
    if crowded:
        most, cores = max(row["devices"] for row in crowded), crowded[0]["cores"]
        notes.append(
            f"Up to {most} devices here are threads of one CPU with {cores} cores: they share these cores, so that "
            "more devices cannot be faster. The curves below show what partitioning and collectives cost here; they "
            "say nothing about scaling on real devices."
        )
    elif shared:
        notes.append(
            "The devices here are threads of one CPU that share its memory and caches, and one device alone already "
            "uses several cores: the curves below say little about scaling on real devices."
        )
    kinds = {(result["machine"]["device_kind"], result["machine"]["processor"]) for result in results}
    if len(kinds) > 1:
        notes.append("The points were measured on different machines; speeds must not be compared between them.")
    repeated = max((row["epochs"] for row in rows if row["kind"] == "train"), default=0)
    if repeated > 4:
        notes.append(
            f"The smallest corpus was read {repeated:.0f} times: losses on little data are those of repeated data."
        )
    return notes


def _render_machines(results: Sequence[Mapping[str, Any]]) -> str:
    machines = []
    for result in results:
        machine = result["machine"]
        versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
        told = (
            f"{machine['device_kind']} ({machine['platform']}); {machine['processor']}, {machine['cores']} cores, "
            f"{machine['memory_bytes'] / 2**30:.0f} GiB; Python {machine['python']}; {versions}"
        )
        if told not in machines:
            machines.append(told)
    return "".join(f"<p>Machine: {html.escape(told)}.</p>" for told in machines)


def _render_laws(laws: Sequence[Law]) -> str:
    lines = [["law of", "points", "E", "A", "exponent", "fitted to"]]
    remarks = []
    for law in laws:
        if isinstance(law.fitted, PowerLaw):
            found = law.fitted
            numbers = [_show(found.floor), _show(found.scale), _show(found.exponent)]
            remarks += [f"{law.of}: {warning}." for warning in found.warnings]
        else:
            numbers = ["-", "-", "-"]
            remarks.append(f"{law.of}: {law.fitted}.")
        lines.append([law.of, str(len(law.x)), *numbers, law.chosen])
    return _render_table(lines) + "".join(f'<p class="note">{html.escape(remark)}</p>' for remark in remarks)


def _show(interval: Interval) -> str:
    return f"{interval.value:.3g} [{interval.low:.3g}, {interval.high:.3g}]"


def _render_speeds(speeds: Sequence[Speed]) -> str:
    lines = [["mesh", "devices", "rows", "tokens/s", "efficiency"]]
    for speed in speeds:
        rate = f"{speed.tokens_per_second:,.0f}"
        lines.append([speed.mesh, str(speed.devices), str(speed.rows), rate, f"{speed.efficiency:.2f}"])
    return _render_table(lines)


def _render_rows(rows: Sequence[Row]) -> str:
    shown = {name: title for name, title in _COLUMNS.items() if any(row.get(name) is not None for row in rows)}
    return _render_table([list(shown.values()), *([_show_cell(name, row.get(name)) for name in shown] for row in rows)])


def _show_cell(name: str, value: Any) -> str:
    if value is None or (name == "rows" and value == 0):
        return ""
    if name.endswith("_bytes") or name.endswith("_bytes_per_device"):
        return f"{value / 2**20:,.1f}"
    if name == "flops":
        return f"{value:.3g}"
    if name.endswith("_loss"):
        return f"{value:.4f}"
    if isinstance(value, float):
        return f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _render_table(lines: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in lines[0])
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>\n" for line in lines[1:])
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _render_picture(name: str, picture: bytes) -> str:
    data = base64.b64encode(picture).decode()
    return f'<p><img alt="{name.replace("_", " ")}" src="data:image/png;base64,{data}"></p>'
