"""From finished points to curves: which points a law is fitted to, and how efficient more devices are."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fit import PowerLaw, find_frontier, fit_power_law

Row = Mapping[str, Any]
"""A finished point, flat: the fields of `Point`, its measurements, and those of its machine that the report names."""


@dataclasses.dataclass(frozen=True)
class Law:
    """A power law of the loss and what it was fitted to.

    Attributes:
        of: "parameters", "compute" or "data".
        chosen: in words, which points.
        x, loss: these points, in order of x.
        fitted: the law, or the sentence that says why there is none.
    """

    of: str
    chosen: str
    x: tuple[float, ...]
    loss: tuple[float, ...]
    fitted: PowerLaw | str


@dataclasses.dataclass(frozen=True)
class Speed:
    """One mesh of a scaling curve.

    Attributes:
        mesh, devices, rows: as of the point; rows of the global batch.
        tokens_per_second: real tokens, source and target.
        efficiency: speed over (speed of the reference x devices / its devices); the reference has the fewest devices.
    """

    mesh: str
    devices: int
    rows: int
    tokens_per_second: float
    efficiency: float


def flatten(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One flat row a point, trainings before speeds, from small to large."""
    rows = []
    for result in results:
        machine = result["machine"]
        rest = {name: value for name, value in result.items() if name not in ("point", "machine")}
        kept = {name: machine[name] for name in ("platform", "device_kind", "cores")}
        rows.append({**result["point"], "devices": _count_devices(result["point"]["mesh"]), **rest, **kept})
    return sorted(rows, key=lambda row: (row["kind"] == "speed", row["rows"], row["devices"], _size(row), row["seed"]))


def write_csv(rows: Sequence[Row]) -> str:
    """All rows as CSV; every column that any row has, empty where it has no value."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if value is None else value for name, value in row.items()} for row in rows)
    return text.getvalue()


def fit_laws(rows: Sequence[Row], *, resamples: int = 200) -> list[Law]:
    """The three laws; each is fitted to trainings that differ in nothing else, but for compute."""
    trained = [row for row in rows if row["kind"] == "train"]
    if not trained:
        return []
    longest, most = max(row["steps"] for row in trained), max(row["pairs"] for row in trained)
    widths = sorted({row["features"] for row in trained if row["pairs"] < most})
    wide = [row for row in trained if row["pairs"] == most]
    by_size = [row for row in wide if row["steps"] == longest]
    by_data = [row for row in trained if row["steps"] == longest and row["features"] in widths]
    frontier = [wide[i] for i in find_frontier([row["flops"] for row in wide], [row["dev_loss"] for row in wide])]
    said = f"all widths, {longest} steps, {most:,} pairs"
    laws = [
        _fit("parameters", said, by_size, lambda row: row["parameters"], resamples),
        _fit("compute", "the points that no cheaper one beats", frontier, lambda row: row["flops"], resamples),
    ]
    if by_data:
        said = f"width {', '.join(map(str, widths))}, {longest} steps, all corpus sizes"
        laws.append(_fit("data", said, by_data, lambda row: row["pairs"], resamples))
    return laws


def _fit(of: str, chosen: str, rows: Sequence[Row], size: Callable[[Row], float], resamples: int) -> Law:
    points = sorted((float(size(row)), float(row["dev_loss"])) for row in rows)
    x, loss = (tuple(column) for column in zip(*points, strict=True))
    return Law(of, chosen, x, loss, fit_power_law(x, loss, resamples=resamples))


def find_strong(rows: Sequence[Row]) -> list[Speed]:
    """The same global batch on every mesh: the largest batch that more than one mesh ran."""
    speeds = [row for row in rows if row["kind"] == "speed"]
    by_rows = defaultdict(list)
    for row in speeds:
        by_rows[row["rows"]].append(row)
    shared = [rows for rows, group in by_rows.items() if len({row["mesh"] for row in group}) > 1]
    return _compare(by_rows[max(shared)]) if shared else []


def find_weak(rows: Sequence[Row]) -> list[Speed]:
    """The same rows a device on every mesh: the fewest rows a device that more than one mesh ran."""
    by_share = defaultdict(list)
    for row in rows:
        if row["kind"] == "speed":
            by_share[row["rows"] / row["devices"]].append(row)
    shared = [share for share, group in by_share.items() if len({row["devices"] for row in group}) > 1]
    return _compare(by_share[min(shared)]) if shared else []


def _compare(rows: Sequence[Row]) -> list[Speed]:
    ordered = sorted(rows, key=lambda row: (row["devices"], row["mesh"]))
    first = ordered[0]
    one = first["tokens_per_second"] / first["devices"]
    return [
        Speed(
            row["mesh"],
            row["devices"],
            row["rows"],
            row["tokens_per_second"],
            row["tokens_per_second"] / (one * row["devices"]),
        )
        for row in ordered
    ]


def _size(row: Row) -> tuple[int, int, int]:
    return row["pairs"], row["steps"], row["features"]


def _count_devices(mesh: str) -> int:
    count = 1
    for part in mesh.split(","):
        count *= int(part.partition("=")[2])
    return count
