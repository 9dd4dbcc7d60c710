"""How many small changes of the source the tests notice.

Each mutant is written into a copy of the tree and tested there: first by the test file of its module, then, where that
passes, by the others that import the module, then by those that reach it. It needs `pip install '.[mutation]'` and git.
What came out is kept in `RESULTS`, so that a run that was stopped goes on where it was, and a mutant is tested again
only where it lived and tests have changed.

`EXPLAINED` says why a mutant that lives does no harm; one that is neither killed nor explained is a row that fails.
"""

from __future__ import annotations

import ast
import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mutants
from rows import ROOT, Job, Row

RESULTS = ROOT / "runs" / "nightly" / "mutants.jsonl"
EXPLAINED = Path(__file__).resolve().with_name("harmless_mutants.json")
TO_REACH = 0.85
STAGES = 3
# What a test may take, in seconds of the processor: several times what the slowest takes without a mutant.
LIMITS = {"not slow": 60, "slow": 300}
QUIET = ("-p", "no:cacheprovider", "-p", "no:xdist", "--assert=plain", "-q", "--no-header", "--tb=line")
PASSED, NOTHING_TO_RUN = 0, 5


Reasons = dict[tuple[str, str, str], str]  # by file, what stood there and what stands there now
Known = dict[str, list[dict[str, Any]]]  # records of each mutant, in the order in which they were found out


# Where the first look is, for files that have no test file of their own name.
NEAREST = {
    "decode/arpa.py": "decode/test_ngram.py",
    "decode/guards.py": "decode/test_constraints.py",
    "decode/loop.py": "decode/test_beam.py",
    "decode/method.py": "decode/test_rolling.py",
    "decode/trail.py": "decode/test_beam.py",
    "layers/activations.py": "models/test_transformer.py",
    "layers/dense.py": "models/test_ctc.py",
    "layers/kernels/gpu_program.py": "layers/kernels/test_lstm_gpu.py",
    "layers/normalisation.py": "models/test_transformer.py",
    "layers/parameters.py": "layers/test_recurrent.py",
    "layers/projections.py": "models/test_transformer.py",
    "layers/runs.py": "layers/test_recurrent.py",
    "layers/transformer.py": "models/test_transformer.py",
    "parallel/draws.py": "decode/test_sample.py",
    "parallel/rules.py": "parallel/test_shard.py",
    "parallel/spread.py": "parallel/test_shard.py",
    "parallel/varying.py": "parallel/test_pipeline.py",
    "parallel/watch.py": "parallel/test_hosts.py",
    "train/checkpoint_folder.py": "train/test_checkpoints.py",
    "train/checkpoint_reader.py": "train/test_damage.py",
    "train/manifest.py": "train/test_checkpoints.py",
    "train/orbax_messages.py": "train/test_full_disk.py",
}


class Tests:
    """Which tests come near a module, by who imports whom."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._modules = {name_module(path.relative_to(root)): path for path in root.glob("seq2seq_jax/**/*.py")}
        self._imports = {name: self._read_imports(path) for name, path in self._modules.items()}
        files = sorted(root.glob("tests/**/test_*.py"))
        self._tests = {str(path.relative_to(root)): self._read_imports(path) for path in files}

    def _read_imports(self, path: Path) -> set[str]:
        found: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            if isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        return found & set(self._modules)

    def list_stages(self, path: str) -> list[list[str]]:
        """Test files for a file of the package, nearest first; each stage has what those before it have not.

        1. The test file of its name, or the one that `NEAREST` names.
        2. Those that import the module.
        3. The contract tests, and those that import its importers.
        """
        module = name_module(Path(path))
        users = {name for name, imported in self._imports.items() if module in imported}
        direct = sorted(test for test, imported in self._tests.items() if module in imported)
        near = sorted(test for test, imported in self._tests.items() if users & imported)
        within = str(Path(path).relative_to("seq2seq_jax"))
        mirror = Path("tests", within).with_name(f"test_{Path(path).stem}.py")
        first = [f"tests/{NEAREST.get(within)}" if within in NEAREST else str(mirror)]
        contract = [test for test in self._tests if test.startswith("tests/contract/") and "imports" not in test]
        stages: list[list[str]] = []
        for stage in (first, direct, [*contract, *near]):
            known = {test for earlier in stages for test in earlier}
            stages.append([test for test in dict.fromkeys(stage) if test not in known])
        return stages

    def digest(self, files: list[str]) -> str:
        text = b"".join((self._root / name).read_bytes() for name in files)
        return hashlib.sha256(text).hexdigest()[:12]


def name_module(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a stage of tests said of a mutant: how it ended, by which test, and how long it took."""

    ended: str
    test: str
    seconds: float


class Runner:
    """Tests mutants in a copy of the tree, each in a fork of a process that has imported jax."""

    def __init__(self, folder: Path) -> None:
        self.tree = folder / "tree"
        self._output = folder / "output"
        self._temporary = folder / "temporary"
        self._written = 0
        copy_tree(self.tree)
        known = {key: value for key, value in os.environ.items() if key != "SEQ2SEQ_JAX_FAILPOINT"}
        extra = {
            "PYTHONPATH": str(self.tree),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
            "PJRT_NPROC": "16",
            "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".pytest_cache" / "mutants_compilations"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
            "MPLBACKEND": "agg",
        }
        command = [sys.executable, str(Path(__file__).resolve().with_name("fork_server.py"))]
        pipe = subprocess.PIPE
        self._server = subprocess.Popen(command, cwd=self.tree, env=known | extra, stdin=pipe, stdout=pipe, text=True)

    def close(self) -> None:
        self._server.terminate()
        self._server.wait()

    def test(self, files: list[str]) -> Outcome:
        """Runs these files' tests, the quick ones first."""
        took = 0.0
        slow = [name for name in files if "mark.slow" in (self.tree / name).read_text()]
        for mark, chosen in (("not slow", files), ("slow", slow)):
            if not chosen:
                continue
            answer = self._ask([*QUIET, "-x", "-m", mark, *chosen], LIMITS[mark])
            took = round(took + answer["seconds"], 1)
            if answer["code"] not in (PASSED, NOTHING_TO_RUN):
                return Outcome(*self._read_end(answer), took)
        return Outcome("passed", "", took)

    def find_failing(self, tests: list[str]) -> list[str]:
        """Those of these tests that fail."""
        answer = self._ask([*QUIET, *tests], max(LIMITS.values()))
        failed = self._read_failed()
        return failed if answer["code"] in (PASSED, 1) else [*failed, answer["test"]]

    def _ask(self, arguments: list[str], limit: float) -> dict[str, Any]:
        given = [*arguments, f"--basetemp={self._temporary}"]
        asked = {"arguments": given, "seconds": limit, "output": str(self._output)}
        if self._server.stdin is None or self._server.stdout is None:
            raise RuntimeError("the server of forks has no pipes")
        self._server.stdin.write(json.dumps(asked) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def _read_end(self, answer: dict[str, Any]) -> tuple[str, str]:
        """How tests ended, and by which: the last that was begun, or the file that could not be read."""
        ends = {None: "too long or too much memory", 1: "failed"}
        return ends.get(answer["code"], f"exit code {answer['code']}"), answer["test"] or (self._read_failed() or [""])[
            0
        ]

    def _read_failed(self) -> list[str]:
        lines = self._output.read_text(errors="replace").splitlines()
        return [line.split(" - ")[0].split(" ", 1)[1] for line in lines if line.startswith(("FAILED ", "ERROR "))]

    @contextlib.contextmanager
    def mutated(self, path: str, text: str) -> Iterator[None]:
        """The tree with another text in one file. Python takes compiled code by the file's time in whole seconds and
        its length: every text has a time of its own."""
        file = self.tree / path
        before, stamp = file.read_bytes(), file.stat()
        file.write_text(text)
        self._written += 1
        os.utime(file, (stamp.st_atime, stamp.st_mtime + 1_000_000 + self._written))
        try:
            yield
        finally:
            file.write_bytes(before)
            os.utime(file, (stamp.st_atime, stamp.st_mtime))


def copy_tree(target: Path) -> None:
    """What git knows or would add, as it lies on the disk."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def read_results() -> Known:
    """What is known of each mutant, in the order in which it was found out."""
    known: Known = collections.defaultdict(list)
    if RESULTS.exists():
        for line in RESULTS.read_text().splitlines():
            record = json.loads(line)
            known[record["name"]].append(record)
    return known


def keep_result(record: dict[str, Any], known: Known) -> None:
    known[record["name"]].append(record)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def settle(runner: Runner, tests: Tests, mutant: mutants.Mutant, *, stage: int, known: Known) -> None:
    """Tests one mutant by one stage, unless that is known already, and keeps the result."""
    if is_killed(known[mutant.name]):
        return
    files = tests.list_stages(mutant.path)[stage]
    digest = tests.digest(files)
    if any(record["stage"] == stage and record["tests"] == digest for record in known[mutant.name]):
        return
    original = (runner.tree / mutant.path).read_text()
    text = mutants.mutate(original, mutant)
    assert text is not None, mutant
    with runner.mutated(mutant.path, text):
        outcome = runner.test(files) if files else Outcome("passed", "", 0.0)
    before, after = mutants.describe(original, text)
    record = {
        "name": mutant.name,
        "path": mutant.path,
        "line": mutant.line,
        "operator": mutant.operator.removeprefix("core/").partition("_")[0],
        "before": before,
        "after": after,
        "stage": stage,
        "tests": digest,
        "killed": outcome.ended != "passed",
        **dataclasses.asdict(outcome),
    }
    keep_result(record, known)


def check_killers(runner: Runner, settled: list[list[dict[str, Any]]], known: Known) -> list[str]:
    """The tests that killed mutants and fail without one, too; what is known to pass is not run again."""
    killers = {record["test"] for records in settled for record in records if record["killed"]}
    by_file: dict[str, list[str]] = collections.defaultdict(list)
    for test in sorted(killers):
        if not any(record["passed"] for record in known[f"unchanged {test}"]):
            by_file[test.partition("::")[0]].append(test)
    wrong: list[str] = []
    for asked in by_file.values():
        failing = runner.find_failing(asked)
        wrong += failing
        for test in asked:
            keep_result({"name": f"unchanged {test}", "passed": not failing or test not in failing}, known)
    return wrong


def mutate(job: Job) -> list[Row]:
    """Tests `job.count` mutants, drawn by `job.seed`; tables by operator and by folder are in the rows' details."""
    drawn, places = mutants.draw(ROOT, count=job.count, seed=job.seed)
    known, explained = read_results(), read_explained()
    tests = Tests(ROOT)
    runner = Runner(job.folder)
    settled = [known[mutant.name] for mutant in drawn]
    try:
        for stage in range(STAGES):
            for number, mutant in enumerate(drawn, start=1):
                if stage and find_reason(known[mutant.name], explained):
                    continue  # its own module's tests let it live, and it is known why: no other can notice it
                settle(runner, tests, mutant, stage=stage, known=known)
                killed = sum(is_killed(records) for records in settled)
                job.tell(f"stage {stage + 1}, {number} of {len(drawn)}: {killed} killed")
        wrong = check_killers(runner, settled, known)
    finally:
        runner.close()
    if wrong:
        raise RuntimeError(f"tests that fail without a mutant kill none: {', '.join(wrong)}")
    return make_rows(settled, places)


def is_killed(records: list[dict[str, Any]]) -> bool:
    return any(record["killed"] for record in records)


def count_by(key: Callable[[dict[str, Any]], str], settled: list[list[dict[str, Any]]]) -> dict[str, str]:
    """For every value of `key`: how many of its mutants were killed."""
    groups: dict[str, list[bool]] = collections.defaultdict(list)
    for records in settled:
        groups[key(records[0])].append(is_killed(records))
    return {name: f"{sum(killed)} of {len(killed)}" for name, killed in sorted(groups.items())}


def make_rows(settled: list[list[dict[str, Any]]], places: int) -> list[Row]:
    """The figures of mutants, each given as its records in the order in which they were found out."""
    explained = read_explained()
    alive = [records[0] for records in settled if not is_killed(records)]
    for mutant in alive:
        mutant["why"] = find_reason([mutant], explained)
    unknown = [f"{mutant['path']}:{mutant['line']}: {mutant['after']}" for mutant in alive if not mutant["why"]]
    killed = len(settled) - len(alive)
    share = killed / len(settled)
    details = {
        "drawn from": places,
        "by operator": count_by(lambda mutant: mutant["operator"], settled),
        "by folder": count_by(lambda mutant: str(Path(mutant["path"]).parent), settled),
        "alive": [{key: mutant[key] for key in ("path", "line", "before", "after", "why")} for mutant in alive],
    }
    got = f"{killed} of {len(settled)} ({share:.1%})"
    return [
        Row("mutants that the tests notice", f"{TO_REACH:.0%}", got, share >= TO_REACH, details),
        Row("mutants that live and are not explained", "0", str(len(unknown)), not unknown, {"unexplained": unknown}),
    ]


def read_explained() -> Reasons:
    listed = json.loads(EXPLAINED.read_text())
    return {(entry["path"], entry["before"], entry["after"]): entry["why"] for entry in listed}


def find_reason(records: list[dict[str, Any]], explained: Reasons) -> str:
    """Why a mutant with these records does no harm; empty where that is not known."""
    mutant = records[0]
    return explained.get((mutant["path"], mutant["before"], mutant["after"]), "")
