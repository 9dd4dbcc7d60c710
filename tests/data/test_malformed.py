"""Files that are not what they should be: each is refused in one line that names it, or read as what it is.

A sample of what `tests/nightly/malformed.py` does by the thousand, in this process.
"""

import random
import shutil
import sys
from pathlib import Path

import pytest

NIGHTLY = Path(__file__).resolve().parents[1] / "nightly"
sys.path.insert(0, str(NIGHTLY))  # its modules import each other plainly

from boundary import PREFIX, Case, judge, run_case  # noqa: E402
from run_folders import Folders, Pages, Shards  # noqa: E402
from sounds import FORGED, Sounds  # noqa: E402
from texts import Models, Ngrams, Texts, Words  # noqa: E402

from seq2seq_jax.errors import UserError  # noqa: E402

SEED = 5
COUNTS = {Texts: 90, Models: 40, Words: 50, Ngrams: 15, Sounds: 70, Folders: 15}


def run_sample(family, kind, count, folder):
    """The cases that are not as they should be."""
    found = []
    for number in range(count):
        place = folder / f"case-{number}"
        place.mkdir()
        told = run_case(family.draw(random.Random(f"{SEED}/{kind}/{number}"), place))
        shutil.rmtree(place, ignore_errors=True)
        if told["problem"]:
            found.append(f"{number}: {told['kind']}: {told['problem']}")
    return found


@pytest.mark.parametrize("kind", COUNTS, ids=lambda kind: kind.__name__)
def test_spoiled_files_are_refused_or_read(kind, tmp_path):
    stock = tmp_path / "stock"
    stock.mkdir()
    assert run_sample(kind(stock), kind.__name__, COUNTS[kind], tmp_path) == []


def test_spoiled_pages_and_shards_are_refused_or_read(tmp_path):
    stock = tmp_path / "stock"
    stock.mkdir()
    pages = Pages(stock)
    assert run_sample(pages, "Pages", 30, tmp_path) == []
    assert run_sample(Shards(stock, pages.prepared), "Shards", 15, tmp_path) == []


@pytest.mark.parametrize("name", FORGED)
def test_forged_headers_are_refused_or_read(name, tmp_path):
    data, refused = FORGED[name]
    path = tmp_path / "forged.wav"
    path.write_bytes(data())
    family = object.__new__(Sounds)
    case = Case(name, lambda: family._read(str(path), path.stat().st_size), [path.name], refused)
    assert run_case(case)["problem"] == ""


def refuse(text):
    def read():
        raise UserError(text)

    return read


def test_the_judge_notices_what_is_wrong():
    """Without this, the cases above could pass whatever is read."""

    def fail():
        raise KeyError("x")

    assert run_case(Case("good", refuse("a.txt: is empty."), ["a.txt"]))["problem"] == ""
    assert "KeyError" in run_case(Case("a traceback", fail, ["a.txt"]))["problem"]
    assert "names none" in run_case(Case("another file", refuse("b.txt: is empty."), ["a.txt"]))["problem"]
    assert "must not" in run_case(Case("read", lambda: None, ["a.txt"], refused=True))["problem"]
    assert "exit code 3" in judge(Case("code", None, ["a.txt"]), 3, "")
    assert "more lines" in judge(Case("two lines", None, ["a"]), 2, f"hm\n{PREFIX}a: is empty.\n")


def test_a_message_never_moves_the_cursor_nor_fills_the_screen():
    told = run_case(Case("signs", refuse("a.txt: has \x1b[2J\x07 and \u2028" + "x" * 10**6), ["a.txt"]))
    assert told["problem"] == "" and "\\x1b[2J\\x07" in told["said"] and len(told["said"]) < 3000
