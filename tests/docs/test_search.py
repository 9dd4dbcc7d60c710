"""The page on search: the keys that it names are keys, and its table of presets is the program's."""

import re
from pathlib import Path

import pytest

from seq2seq_jax.decode.ranking import PRESETS
from seq2seq_jax.keys import CHOICES, DEFAULTS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "search.md").read_text(encoding="utf-8")
FIELDS = {"length_normalisation": "length", "length_penalty": "length_penalty", "coverage_penalty": "coverage_penalty"}
FIELDS |= {name: name for name in ("prune", "stop", "unfinished")}


def rows_of(heading):
    """The cells of the first table under a heading."""
    lines = PAGE.partition(f"\n{heading}\n")[2].split("\n")
    start = next(n for n, line in enumerate(lines) if line.startswith("|"))
    table = lines[start : next(n for n in range(start, len(lines)) if not lines[n].startswith("|"))]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in table if "---" not in line]


def test_the_presets_are_those_of_the_program():
    head, *rows = rows_of("### Presets")
    assert sorted(head[1:]) == sorted(PRESETS) == sorted(CHOICES["decode.preset"])
    told = {name: dict(zip(head[1:], cells, strict=True)) for name, *cells in rows}
    for key, field in FIELDS.items():
        assert key in DEFAULTS["decode"]
        for name, ranking in PRESETS.items():
            value = getattr(ranking, field)
            assert told[key][name] == value if isinstance(value, str) else float(told[key][name]) == value
    ends = next(cells for name, cells in told.items() if name.startswith("eos ends"))
    assert {name: cell for name, cell in ends.items() if cell != "K"} == {"tensor2tensor": "2K"}
    assert {name for name, ranking in PRESETS.items() if ranking.end_among != 1} == {"tensor2tensor"}


@pytest.mark.parametrize("key", sorted(set(re.findall(r"--config\.decode\.(\w+)", PAGE))))
def test_every_key_of_a_command_is_one(key):
    assert key in DEFAULTS["decode"]


def test_every_choice_is_told():
    methods = " ".join(cells[0] for cells in rows_of("## Methods"))
    assert all(name in methods for name in CHOICES["decode.method"])
    for key in ("decode.stop", "decode.unfinished", "decode.length_normalisation"):
        assert all(f"`{choice}`" in PAGE for choice in CHOICES[key] if choice != "preset")
