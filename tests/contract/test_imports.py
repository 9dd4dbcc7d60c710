"""The house rules that a program can hold: who imports whom, what is never imported, how long things get.

Everything is read from the syntax trees, so that an import inside a function counts as well.
"""

from __future__ import annotations

import ast
import configparser
import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "seq2seq_jax"
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

ANYTHING = {"*"}  # but what stands above: main and modes compose, experiment is composed
ABOVE = {
    "main": set(),
    "modes": {"main", "command_line"},
    "experiment": {"main", "command_line", "modes"},
    "corpora": {"main", "command_line", "modes", "experiment"},
    "speech_corpora": {"main", "command_line", "modes", "experiment", "corpora"},
    "vocabularies": {"main", "command_line", "modes", "experiment"},
    "speech_experiment": {"main", "command_line", "modes", "experiment"},
}
FOR_EVERYONE = {"interfaces", "errors", "failpoints"}
# Which parts of the package a folder or file may import, besides itself and what is for everyone.
MAY_IMPORT: dict[str, set[str]] = {
    "__init__": {"loaded_model"},
    "__main__": {"main"},
    "main": ANYTHING,
    "experiment": ANYTHING,
    "corpora": ANYTHING,
    "speech_corpora": ANYTHING,
    "vocabularies": ANYTHING,
    "speech_experiment": ANYTHING,
    "provenance": set(),
    "modes": ANYTHING,
    "command_line": {"config", "suggestions"},
    "loaded_model": {"config", "data.audio", "experiment", "modes.ensemble", "modes.evaluate", "modes.transcribe"}
    | {"provenance", "serve", "speech_checks", "tasks", "train", "workdir"},
    "workdir": {"parallel.hosts"},
    "saved_config": {"config"},
    "arithmetic": {"config", "speech_checks", "train.freezing"},
    "config": {"keys", "model_keys", "data.spec", "data.whole_file", "search_checks", "speech_checks"}
    | {"suggestions", "value_checks"},
    "value_checks": {"keys", "suggestions"},
    "suggestions": set(),
    "search_checks": set(),
    "speech_checks": set(),
    "keys": set(),
    "model_keys": set(),
    "configs": {"config"},
    "tasks": {"data", "decode", "evaluate", "parallel"},
    "models": {"layers", "parallel"},
    "layers": set(),
    "data": set(),
    "decode": {"parallel"},
    "evaluate": {"parallel"},
    "train": {"memory", "parallel"},
    "serve": {"data", "decode", "parallel"},
    "compress": {"parallel"},
    "parallel": set(),
    "interfaces": set(),
    "errors": set(),
    "failpoints": {"errors"},
    "compilations": set(),
    "memory": set(),
}
INTERFACES_MAY_IMPORT = {"jax", "flax"} | set(sys.stdlib_module_names)
CONFIG_READERS = {"command_line", "config", "corpora", "experiment", "main", "modes", "saved_config", "configs"}
CONFIG_READERS |= {"vocabularies"}
CONFIG_READERS |= {"speech_experiment", "arithmetic", "search_checks", "speech_checks", "speech_corpora"}
PICKLES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
HEAVY = ("jax", "flax", "optax", "orbax", "grain", "tensorflow_datasets", "matplotlib")

SOURCES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for folder in (PACKAGE, ROOT / "configs")
    for path in sorted(folder.rglob("*.py"))
}
SCRIPTS = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for folder in ("experiments", "benchmarks", "tests/nightly")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path != ROOT / "tests" / "nightly" / "run_folders.py"  # it makes pickles in disguise, to see them refused
}
PACKAGE_SOURCES = {name: source for name, source in SOURCES.items() if name.startswith("seq2seq_jax/")}

Check = Callable[[str, str], Iterator[str]]


def part_of(name: str) -> str:
    """The row of the table for a file: `seq2seq_jax/data/vocab.py` is of `data`, `configs/x.py` of `configs`."""
    parts = Path(name).with_suffix("").parts
    return parts[1] if parts[0] == "seq2seq_jax" else parts[0]


def find_imports(name: str, source: str) -> Iterator[tuple[int, str]]:
    """Yields line and full dotted name of everything imported, at the top or nested, relative or by string."""
    package = Path(name).parent.parts
    for node in ast.walk(ast.parse(source, filename=name)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*above, *([node.module] if node.module else [])))
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in {"import_module", "__import__"}:
            if node.args and isinstance(node.args[0], ast.Constant):
                yield node.lineno, str(node.args[0].value)


def is_allowed(target: str, *, part: str, allowed: set[str]) -> bool:
    """Whether `part` may import `target`, a dotted name below the package such as `parallel.hosts.watch`."""
    if target.startswith("__"):
        return True
    if allowed == ANYTHING:
        return target.split(".")[0] not in ABOVE[part]
    if part not in FOR_EVERYONE:
        allowed = allowed | FOR_EVERYONE
    return any(target == name or target.startswith(f"{name}.") for name in allowed | {part})


def check_table(name: str, source: str) -> Iterator[str]:
    """Imports go one way: the table above."""
    part = part_of(name)
    if part not in MAY_IMPORT:
        yield f"{name}: give `{part}` a row in MAY_IMPORT of tests/contract/test_imports.py, as short as it can be"
        return
    for line, module in find_imports(name, source):
        root, _, target = module.partition(".")
        if root == "seq2seq_jax" and not is_allowed(target, part=part, allowed=MAY_IMPORT[part]):
            allowed = ", ".join(sorted(MAY_IMPORT[part] | FOR_EVERYONE | {part}))
            yield (
                f"{name}:{line}: `{part}` must import from {allowed} only, but imports `{module}`: pass what is "
                "needed as an argument, or move the code to tasks/ or experiment.py, which know several parts"
            )
        elif part == "interfaces" and root not in INTERFACES_MAY_IMPORT:
            yield f"{name}:{line}: interfaces.py must import jax and flax only: move what needs `{module}` out"


def check_config(name: str, source: str) -> Iterator[str]:
    """The run's config stays where the run is put together."""
    if part_of(name) in CONFIG_READERS:
        return
    for line, module in find_imports(name, source):
        if module.split(".")[0] == "ml_collections":
            yield f"{name}:{line}: take plain arguments: only {', '.join(sorted(CONFIG_READERS))} know ConfigDict"


def check_pickle(name: str, source: str) -> Iterator[str]:
    """Unpickling a file runs whatever its author wrote into it."""
    for line, module in find_imports(name, source):
        if module.split(".")[0] in PICKLES:
            yield f"{name}:{line}: never import `{module}`: store arrays as safetensors or Orbax, the rest as JSON"
    for node in ast.walk(ast.parse(source, filename=name)):
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
            yield f"{name}:{node.value.lineno}: never allow_pickle: store arrays without objects in them"
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in {"read_pickle", "to_pickle"}:
            yield f"{name}:{node.lineno}: never pickle tables: write CSV or JSON"
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"torch.load", "torch.hub.load", "torch.jit.load"}:
            yield f"{name}:{node.lineno}: never `{ast.unparse(node.func)}`, which unpickles: read safetensors"


def check_asserts(name: str, source: str) -> Iterator[str]:
    """`python -O` drops asserts, and their messages tell a user nothing."""
    for node in ast.walk(ast.parse(source, filename=name)):
        if isinstance(node, ast.Assert):
            yield f"{name}:{node.lineno}: no assert outside tests: raise ValueError, or UserError if a user can mend it"


def count_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The lines of a function from its `def` on. Its docstring is free: explaining is never too long."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        lines -= (docstring.end_lineno or docstring.lineno) - docstring.lineno + 1
    return lines


def check_length(name: str, source: str) -> Iterator[str]:
    """What is read in one sitting gets read."""
    lines = len(source.splitlines())
    if lines > MAX_FILE_LINES:
        yield f"{name}: {lines} lines, at most {MAX_FILE_LINES}: split it by noun, one thing a file"
    for node in ast.walk(ast.parse(source, filename=name)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = count_lines(node)
            if lines > MAX_FUNCTION_LINES:
                yield (
                    f"{name}:{node.lineno}: `{node.name}` has {lines} lines without its docstring, at most "
                    f"{MAX_FUNCTION_LINES}: name its steps and make each a function"
                )


def find_problems(check: Check, sources: dict[str, str]) -> str:
    """Every problem that a check finds, one a line; empty if all is well."""
    return "\n".join(problem for name, source in sources.items() for problem in check(name, source))


@pytest.mark.parametrize("check", [check_table, check_config], ids=lambda check: check.__name__)
def test_package_and_configs_keep_the_import_rules(check: Check) -> None:
    assert not (problems := find_problems(check, SOURCES)), f"\n{problems}"


@pytest.mark.parametrize("check", [check_pickle, check_asserts, check_length], ids=lambda check: check.__name__)
def test_package_keeps_the_house_rules(check: Check) -> None:
    assert not (problems := find_problems(check, PACKAGE_SOURCES)), f"\n{problems}"


def test_nothing_is_unpickled_anywhere() -> None:
    """Nor in configs and scripts, which people run as well."""
    assert len(SCRIPTS) > 10 and not (problems := find_problems(check_pickle, SOURCES | SCRIPTS)), f"\n{problems}"


def test_sentencepiece_is_one_that_a_model_file_cannot_crash() -> None:
    """Before 0.2.3 a model's file could end the process."""
    cfg = configparser.ConfigParser()
    cfg.read(ROOT / "setup.cfg")
    (line,) = [line for line in cfg["options"]["install_requires"].split("\n") if line.startswith("sentencepiece")]
    (pinned,) = [
        line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("sentencepiece=")
    ]
    asked, tested = (tuple(map(int, text.split("=")[-1].split("."))) for text in (line, pinned))
    assert line.startswith("sentencepiece>=") and tested >= asked >= (0, 2, 3)


def test_every_folder_is_a_package() -> None:
    """Without `__init__.py` an installed seq2seq_jax lacks the folder, though a checkout works."""
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    missing = sorted(str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").exists())
    assert not missing, f"add an __init__.py with a docstring to {missing}"


def test_main_starts_without_the_heavy_packages() -> None:
    """`--help` and a mistyped flag should answer at once: import jax and its like inside functions."""
    program = f"import sys, seq2seq_jax.main; print(*[m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not done.stdout.split(), (
        f"import seq2seq_jax.main also imports {done.stdout.split()}: move those imports into the functions that use "
        "them (`python -X importtime -m seq2seq_jax.main --help` shows who asks for them)"
    )


@pytest.mark.parametrize("folder", ["benchmarks", "experiments", "configs"])
def test_scripts_import_names_that_exist(folder: str) -> None:
    """They are started rarely, mostly by hand: a name that moved in the package must not be found out there."""
    missing = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "seq2seq_jax":
                module = importlib.import_module(str(node.module))
                for name in (alias.name for alias in node.names):
                    below = hasattr(module, "__path__") and importlib.util.find_spec(f"{node.module}.{name}")
                    if not hasattr(module, name) and not below:
                        missing.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.module} has no {name}")
    assert not missing, "\n" + "\n".join(missing)


PLANTED = [
    (check_table, "models/a.py", "from seq2seq_jax.data.vocab import Vocab"),
    (check_table, "models/a.py", "from seq2seq_jax import data"),
    (check_table, "models/a.py", "from ..data import vocab"),
    (check_table, "models/a.py", "from .. import data"),
    (check_table, "models/a.py", "def f():\n    import seq2seq_jax.train.step"),
    (check_table, "models/a.py", "importlib.import_module('seq2seq_jax.serve')"),
    (check_table, "models/deep/a.py", "from ...data import vocab"),
    (check_table, "data/a.py", "from seq2seq_jax.parallel import mesh"),
    (check_table, "data/a.py", "from seq2seq_jax.database import x"),
    (check_table, "layers/a.py", "from seq2seq_jax.config import default_config"),
    (check_table, "tasks/a.py", "from seq2seq_jax.train import step"),
    (check_table, "workdir.py", "from seq2seq_jax.parallel.hosts_more import x"),
    (check_table, "experiment.py", "from seq2seq_jax import main"),
    (check_table, "interfaces.py", "import numpy as np"),
    (check_table, "interfaces.py", "from seq2seq_jax.errors import UserError"),
    (check_table, "novelties/a.py", ""),
    (check_config, "train/a.py", "from ml_collections import ConfigDict"),
    (check_pickle, "train/a.py", "def f():\n    import pickle"),
    (check_pickle, "train/a.py", "from joblib import load"),
    (check_pickle, "data/a.py", "x = np.load(path, allow_pickle=True)"),
    (check_pickle, "data/a.py", "x = np.load(path, allow_pickle=flag)"),
    (check_pickle, "data/a.py", "x = torch.load(path, weights_only=True)"),
    (check_pickle, "data/a.py", "x = pandas.read_pickle(path)"),
    (check_asserts, "data/a.py", "def f(x):\n    assert x"),
    (check_length, "data/a.py", "x = 1\n" * (MAX_FILE_LINES + 1)),
    (check_length, "data/a.py", "class A:\n    def f(self):\n" + "        x = 1\n" * MAX_FUNCTION_LINES),
]
FINE = [
    (check_table, "models/a.py", "from seq2seq_jax.interfaces import Batch\nfrom seq2seq_jax.layers import attention"),
    (check_table, "models/a.py", "from ..errors import UserError\nfrom .b import C\nimport numpy\nimport data"),
    (check_table, "workdir.py", "from seq2seq_jax.parallel import hosts\nfrom seq2seq_jax.parallel.hosts import x"),
    (check_table, "experiment.py", "import seq2seq_jax.models.lstm\nfrom seq2seq_jax import serve, __version__"),
    (check_table, "main.py", "from seq2seq_jax import experiment"),
    (check_config, "config.py", "from ml_collections import ConfigDict"),
    (check_pickle, "data/a.py", "import json\nx = np.load(path, allow_pickle=False)"),
    (check_length, "data/a.py", 'def f():\n    """A.\n\n    B."""\n' + "    x = 1\n" * (MAX_FUNCTION_LINES - 1)),
    (check_length, "data/a.py", "def f(self):\n" + "    x = 1\n" * (MAX_FUNCTION_LINES - 1)),
]


@pytest.mark.parametrize(("check", "name", "source"), PLANTED)
def test_a_planted_violation_is_found_once(check: Check, name: str, source: str) -> None:
    assert len(list(check(f"seq2seq_jax/{name}", source))) == 1


@pytest.mark.parametrize(("check", "name", "source"), FINE)
def test_what_is_allowed_passes(check: Check, name: str, source: str) -> None:
    assert list(check(f"seq2seq_jax/{name}", source)) == []
