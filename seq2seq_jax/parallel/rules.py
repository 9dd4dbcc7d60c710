"""Logical axis → mesh axis, one table per strategy."""

from __future__ import annotations

RULES: dict[str, tuple[tuple[str, str | None], ...]] = {
    # Every device holds all parameters and a part of the batch; gradients are summed over `data`.
    "data_parallel": (
        ("batch", "data"),
        ("vocab", None),
        ("embed", None),
        ("hidden", None),
        ("gates", None),
        ("attention", None),
    ),
}
