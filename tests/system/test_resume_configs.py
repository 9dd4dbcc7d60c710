"""A run that was left and gone on with equals one that ran straight through: the same log, to the last digit.

`tests/nightly/run resume` does the same for every file of `configs/`, over more steps.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

NIGHTLY = Path(__file__).resolve().parents[1] / "nightly"


@pytest.fixture(scope="module")
def resume():
    """The module that the nightly check does it with."""
    sys.path.insert(0, str(NIGHTLY))
    try:
        return importlib.import_module("resume")
    finally:
        sys.path.remove(str(NIGHTLY))


@pytest.fixture(scope="module")
def corpora(resume, tmp_path_factory):
    return resume.write_corpora(tmp_path_factory.mktemp("corpora"))


def test_every_config_file_has_a_recipe(resume):
    assert {path.stem for path in (resume.ROOT / "configs").glob("*.py")} == set(resume.RECIPES)


@pytest.mark.slow
def test_a_run_in_two_parts_is_the_run_in_one(resume, corpora, tmp_path):
    found, results = resume.resume_straight("language_model", tmp_path, corpora, until=20, steps=70, every=10)
    assert found == []
    assert results["stopped_early"]  # patience was what it would have been, too
    straight, broken = (tmp_path / f"language_model-{part}" for part in ("straight", "broken"))
    change(broken / "metrics.jsonl", '"loss": ', '"loss": 1')
    change(broken / "results.json", '"parameters_sha256": "', '"parameters_sha256": "0')
    newest = max((broken / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    change(newest / "manifest.json", '"since": ', '"since": 1')
    found = resume.find_differences(straight, broken)
    for what in ("step 1: loss", "results: parameters_sha256", "evaluations"):
        assert any(what in one for one in found), found


def change(path: Path, old: str, new: str) -> None:
    """The same file but for one place."""
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
