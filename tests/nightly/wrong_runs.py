"""A small run that modes can be pointed at, and command lines that lack what a mode needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from rows import environment
from wrong_cases import Case, file_of


def train_tiny(work: Path) -> Path:
    """A run of two steps on a few lines, whose folder modes can be pointed at."""
    root, text = work / "tiny", work.parent / "text"
    for language in ("en", "de"):
        lines = (f"line {number} of the {language} text\n" for number in range(60))
        text.with_suffix(f".{language}").write_text("".join(lines))
    keys = {"data.train": text, "data.max_shapes": 1, "vocab.kind": "char", "vocab.size": 40, "model.features": 8,
            "decode.length_factor": 0.1, "evaluate.dev_sentences": 2, "evaluate.samples": 0, "train.steps": 2,
            "decode.beam_size": 1, "decode.rows": 8, "parallel.data": 1, "decode.max_source_len": 32}  # fmt: skip
    args = [f"--config.{key}={value}" for key, value in keys.items()]
    command = [sys.executable, "-m", "seq2seq_jax.main", "--config=configs/lstm.py", f"--workdir={root}", *args]
    subprocess.run(command, cwd=work, env=environment(), check=True, capture_output=True, timeout=1800)
    return root


def need_flags(run: Path) -> list[Case]:
    """Modes without a flag that they need, or with files and runs that are not there; nothing is left out of them."""
    run_, no, here = f"--workdir={run}", "/nonexistent/x", "{folder}/x"
    needs = [
        (("--mode=average",), "--output"), (("--mode=export",), "--output"), (("--mode=vectors",), "--output"),
        (("--mode=transcribe",), "transcribe"), (("--mode=backtranslate",), "data.monolingual"),
        (("--mode=rescore",), "--input"), (("--mode=rescore", f"--input={no}"), "--output"),
        (("--mode=rescore", f"--input={no}", f"--output={here}"), "--reference"),
        (("--mode=rescore", f"--input={no}", f"--output={here}", f"--reference={no}"), "--source"),
        (("--mode=rescore", f"--input={no}", f"--output={here}", f"--reference={no}", f"--source={no}"), no),
        (("--mode=rescore", f"--input={no}", f"--output={here}", f"--reference={no}", f"--models={no}"), "--models"),
        (("--mode=rescore", f"--input={no}", f"--output={here}", f"--reference={no}", "--metric=bleux"), "--metric"),
        (("--mode=rescore", f"--input={no}", f"--output={here}", f"--weights={no}", f"--source={no}"), no),
        (("--mode=average", f"--output={run}"), "--output"), (("--mode=export", f"--output={run}"), "--output"),
        (("--mode=average", f"--output={here}", "--last=2", "--best=2"), "--last"),
        (("--mode=average", f"--output={here}", "--steps=1,x"), "--steps"),
        (("--mode=average", f"--output={here}", "--steps=1"), "--steps"),
        (("--mode=average", f"--output={here}", "--steps=77,78"), "77"),
        (("--mode=export", f"--output={here}", "--format=zip"), "--format"),
        (("--mode=translate", f"--input={no}"), "--input"), (("--mode=translate", f"--constraints={no}"), no),
        (("--mode=translate", "--nbest=3", "--config.decode.method=greedy"), "--nbest"),
        (("--mode=translate", f"--output={no}/y"), "--output"), (("--mode=score", f"--input={no}"), no),
        (("--mode=score", f"--output={no}/y"), "--output"), (("--mode=vectors", f"--output={no}/y"), "--output"),
        (("--mode=vectors", f"--output={here}", f"--input={no}"), "--input"),
        (("--mode=compare", f"--against={no}"), no),
        (("--mode=compare", f"--input={no}"), "compare"),
        (("--mode=compare", f"--reference={no}", f"--against={run}"), "--reference"),
        (("--mode=plan", "--topology=v5q:2x2"), "--topology"), (("--mode=plan", "--topology=x"), "--topology"),
        (("--mode=plan", "--topology=v5e:"), "--topology"),
        (("--mode=describe", "--config.parallel.data=64"), "devices"),
        (("--mode=train", "--config.train.seed=9"), "train.seed"),
        (("--mode=train", "--config.model.features=9"), "features"),
        (("--mode=train", "--members=2"), "--workdir"), (("--mode=evaluate", f"--config.data.test={no}"), no),
        (("--mode=train", f"--coordinator={no}", "--hosts=2"), "--host"),
        (("--mode=train", "--hosts=2"), "--coordinator"),
        (("--mode=train", "--hosts=2", "--host=2", "--coordinator=localhost:1234"), "--host"),
        (("--mode=train", "--coordinator=nonsense", "--hosts=2", "--host=0"), "--coordinator"),
        (("--mode=prepare", "--hosts=2", "--host=5"), "--host"),
        (("--mode=backtranslate", f"--config.data.monolingual={no}"), no),
        (("--mode=evaluate", f"--config.decode.ensemble={no}"), "ensemble"),
        (("--mode=translate", f"--config.decode.language_model={no}"), "language_model"),
        (("--mode=translate", f"--config.decode.ngram={no}"), no),
    ]  # fmt: skip
    cases = [Case("missing flag or file", (run_, *args), (name,), runner="real") for args, name in needs]
    for mode in ("evaluate", "translate", "score", "vectors", "average", "export", "describe"):
        cases.append(Case("no run", (f"--workdir={no}", f"--mode={mode}"), ("--workdir",), runner="real"))
    for mode in ("translate", "score", "export", "average", "evaluate"):
        more = ("--output={folder}/y",) if mode in ("export", "average") else ()
        args = (file_of("gnmt"), "--workdir={folder}/z", f"--mode={mode}", *more)
        cases.append(Case("no run", args, ("z",), runner="real"))
    cases.append(
        Case(
            "missing flag or file",
            ("--mode=compare", f"--input={no}"),
            ("--against|--input|--reference",),
            runner="real",
        )
    )
    return cases
