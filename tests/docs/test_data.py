"""The page on training data: every command is one that the program takes, and every key it names is one."""

import re
import shlex
from pathlib import Path

import pytest

from seq2seq_jax import command_line
from seq2seq_jax.config import check_config, default_config, flatten
from seq2seq_jax.corpora import list_specs
from seq2seq_jax.data.spec import parse_corpora
from seq2seq_jax.modes.backtranslate import PART_LINES, REASONS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(found[1].replace("\\\n", " "))
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    for found in re.finditer(r"-m seq2seq_jax\.main((?:\\\n|[^\n`])*)", block)
]
RUNS = {value for words in COMMANDS for value in words if value.startswith("--workdir=")}


@pytest.mark.parametrize("words", [words for words in COMMANDS if any("--config=" in word for word in words)])
def test_every_command_is_one_that_the_program_takes(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = command_line.parse(["seq2seq_jax.main", *words]).config
    check_config(config)
    assert list_specs(config, "train")


def test_runs_that_commands_go_on_with_were_started():
    assert len(COMMANDS) == 8 and len(RUNS) == 5
    started = {word for words in COMMANDS if "--config=" in " ".join(words) for word in words}
    assert RUNS <= started


def test_every_key_that_the_page_names_is_one():
    keys = flatten(default_config())
    named = re.findall(r"(?:config\.)?\b((?:data|vocab|clean|decode)\.\w+)", PAGE)
    assert len(named) > 20 and not [name for name in named if name not in keys]


def test_what_the_page_says_of_lines_and_parts_is_so():
    line = re.search(r'data\.train = "(.*?)"', PAGE)[1]
    specs = parse_corpora(line, source="en", target="de", key="data.train")
    assert [(spec.weight, spec.tags, spec.target) for spec in specs] == [
        (2, (), "de"),
        (1, ("bt",), "de"),
        (1, (), "fr"),
    ]
    assert f"parts of {PART_LINES:,} lines" in PAGE and len(REASONS) == 5
