"""`--members=N`: one config trained from N seeds, and all of them evaluated together as an ensemble.

    WORKDIR/member-0, member-1, ...   runs' folders like any other; the seed of member n is train.seed + n
    WORKDIR/config.json, members.json the config without a member's seed, and how many members count
    WORKDIR/results.json, outputs/    scores of every member and of the ensemble, and the ensemble's translations

The members are trained one after the other, each on all devices. Each has its own initial parameters, order of the data
and draws. Corpora and vocabulary are those of member 0: it trains the vocabulary, the others take it, and digests are
compared before a step is taken. The same command goes on wherever it was stopped; a larger N adds members.

Sutskever et al. 2014 (arXiv:1409.3215), section 3.6: five of them, which differ in their random initialisation and the
order of their batches.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from seq2seq_jax.config import (
    check_config,
    check_resume,
    load_config,
    require_search,
    takes_source,
    with_absolute_prefixes,
)
from seq2seq_jax.data.sources import read_lines
from seq2seq_jax.data.vocab import Vocabs
from seq2seq_jax.errors import UserError
from seq2seq_jax.evaluate.compare import System, judge_scores
from seq2seq_jax.evaluate.text import make_bleu
from seq2seq_jax.modes.evaluate import evaluate_into
from seq2seq_jax.modes.scoring import say
from seq2seq_jax.modes.train import Check, train
from seq2seq_jax.parallel.hosts import ALONE, Hosts
from seq2seq_jax.speech_checks import reads_speech
from seq2seq_jax.train.writers import format_duration, write_json
from seq2seq_jax.workdir import Folder, claim, list_members, member_folder

METRICS = ("bleu", "chrf", "bleu_tokenized_lowercase", "wer", "cer")
HYPOTHESES = "test.hypotheses.txt"


def train_members(config: ConfigDict, root: Path, count: int, hosts: Hosts = ALONE) -> dict[str, Any]:
    """Trains what is left to train of an ensemble, evaluates all of it on test, and writes WORKDIR/results.json.

    Args:
        config: of every member, but for the seed; its `decode` is how the ensemble searches.
        root: the ensemble's folder, which the caller has claimed.
        count: how many members.
        hosts: which train every member together.

    Returns:
        The results: those of a run under `test`, of the ensemble; `members`, a row each; `mean`, their mean; and
        `against_best`, the ensemble's scores against the best member's (paired bootstrap).

    Raises:
        UserError: there cannot be such an ensemble, or what is in the folder is of another.
    """
    config = with_absolute_prefixes(config)
    hosts.share("ensemble", functools.partial(_set_up, config, root, count))
    found: list[dict[str, Any]] = []
    for n in range(count):
        own, folder = member_config(config, root, n), Folder(member_folder(root, n))
        check = functools.partial(_check_same, folder.root, _list_digests(found[0])) if found else None
        done = hosts.share("member", functools.partial(_read_finished, own, folder, check))
        if done is None:
            say(f"member {n + 1} of {count} (seed {own.train.seed}) in {folder.root}{_tell_time(found, folder, count)}")
            done = _train_member(own, folder, check, hosts)
        test = done["test"]
        scores = ", ".join(f"{name} {test[name]:.2f}" for name in METRICS if name in test)
        say(f"member {n + 1} of {count} is trained: {scores}")
        found.append(done)
    say(f"the ensemble of {count}, {format_duration(sum(each['wall_seconds'] for each in found))} of training")
    together, first = join_members(config, root)
    evaluated = evaluate_into(root, together, first, hosts)
    _check_same(root, {"test": found[0]["corpus_sha256"]["test"]}, {"test": evaluated["test_sha256"]})
    return hosts.share("results", functools.partial(_sum_up, config, root, found, evaluated))


def member_config(config: ConfigDict, root: Path, n: int) -> ConfigDict:
    """The config of member n: another seed, and a prepared corpus that all members share."""
    own, prepared = ConfigDict(config.to_dict()), Folder(root).prepared
    own.train.seed += n
    if own.data.prepared == "auto" and prepared.exists():
        own.data.prepared = str(prepared)
    return own


def join_members(config: ConfigDict, root: Path) -> tuple[ConfigDict, Path]:
    """The run that searches in a folder: of an ensemble member 0, whose config names the others beside it.

    Args:
        config: of the run or ensemble; other models that it names search besides.
        root: its folder.

    Returns:
        The config, and the run's folder; as they were where the folder is no ensemble's.

    Raises:
        UserError: not all members are trained.
    """
    members = list_members(root)
    if not members:
        return config, root
    _check_path(root)
    missing = [path.name for path in members if not Folder(path).results.is_file()]
    if missing:
        raise UserError(
            f"{root}: {len(missing)} of {len(members)} members are not trained yet ({', '.join(missing)}); go on with "
            f"--workdir={root}, or use those that are: --workdir=RUN --config.decode.ensemble=RUN,RUN."
        )
    joined = member_config(config, root, 0)
    own = [name for name in config.decode.ensemble.split(",") if name.strip()]
    joined.decode.ensemble = ",".join([*map(str, members[1:]), *own])
    return joined, members[0]


def _check_path(root: Path) -> None:
    if "," in str(root):
        raise UserError(f"--workdir={root}: must have no comma where it holds an ensemble; rename the folder.")


def _set_up(config: ConfigDict, root: Path, count: int) -> None:
    """Refuses what cannot become an ensemble, and writes down what it is."""
    folder = Folder(root)
    _check_path(root)
    if count < 2:
        raise UserError(f"--members must be at least 2, but is {count} instead: one alone is a run without --members.")
    if config.decode.ensemble:
        raise UserError(
            f"config.decode.ensemble must be empty with --members, but is {config.decode.ensemble!r} instead: the "
            "members are the ensemble; others may join them in --mode=evaluate and translate."
        )
    require_search(config, "--members")
    if not takes_source(config.model):
        raise UserError("--members is for models that translate: language models cannot search as an ensemble.")
    check_config(member_config(config, root, count - 1))  # the seed of the last one
    if any(folder.checkpoints.glob("[0-9]*")):
        raise UserError(
            f"--workdir={root}: holds a single run; name another folder for an ensemble, or move the run aside "
            "with --fresh."
        )
    there = [path for path in root.glob("member-[0-9]*") if any(Folder(path).checkpoints.glob("[0-9]*"))]
    if there and folder.config.is_file():
        check_resume(config, load_config(folder.config), folder.config)
    members = [member_folder(root, n) for n in range(count)]
    for n, path in enumerate(members):
        _read_finished(member_config(config, root, n), Folder(path), None)  # refuses before anything is written
    unused = sorted(path.name for path in there if path not in members)
    if unused:
        say(f"{', '.join(unused)}: left as they are, and out of this ensemble of {count} (--members)")
    write_json(folder.config, config.to_dict())
    write_json(folder.members, {"members": count})


def _read_finished(config: ConfigDict, folder: Folder, check: Check | None) -> dict[str, Any] | None:
    """The results of a member that has come to its end, or None; refuses one that is not like the first."""
    try:
        results = json.loads(folder.results.read_bytes())
        length = "epochs" if config.train.epochs else "steps"
        wanted, taken = config.train[length], results["config"]["train"].get(length, 0)
        texts = all(isinstance(digest, str) for digest in _list_digests(results).values())
        if not texts or type(taken) not in (int, float):
            return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None  # there are none, or they are damaged: they will be made again
    if not (folder.outputs / HYPOTHESES).is_file():
        return None
    check_resume(config, load_config(folder.config), folder.config)
    if taken > wanted:
        raise UserError(
            f"{folder.root}: was trained for {taken} {length}, but config.train.{length} is {wanted}: all members take "
            f"as many; give --config.train.{length}={taken}, or start in another --workdir."
        )
    if check is not None:
        check(_list_digests(results))
    return results if taken == wanted else None


def _list_digests(results: Mapping[str, Any]) -> dict[str, str]:
    """sha256 of what all members have in common, by its name."""
    return {**results["corpus_sha256"], "vocabulary": results["vocab_sha256"]}


def _check_same(root: Path, wanted: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Refuses corpora and a vocabulary that are not those of the first member."""
    for name, digest in wanted.items():
        if found[name] != digest:
            what = name if name == "vocabulary" else f"{name} corpus"
            raise UserError(
                f"{root}: its {what} is not that of the first member (digests {found[name][:12]} and {digest[:12]}); "
                "put it back, or start a new ensemble in another --workdir."
            )


def _tell_time(found: Sequence[Mapping[str, Any]], folder: Folder, count: int) -> str:
    """How long the rest takes, by the time of the members that are trained; nothing before the first one is."""
    if not found:
        return ""
    steps = [int(path.name) for path in folder.checkpoints.glob("[0-9]*") if path.name.isdecimal()]
    done = min(max(steps, default=0) / max(found[0]["steps"], 1), 1.0)
    mean = sum(each["wall_seconds"] for each in found) / len(found)
    return f"; {format_duration(mean * (count - len(found) - done))} left for all, by the time of those that are done"


def _train_member(config: ConfigDict, folder: Folder, check: Check | None, hosts: Hosts) -> dict[str, Any]:
    """Trains or resumes one member; all but the first with the first one's vocabulary."""
    with claim(folder.root, fresh=False, hosts=hosts):
        if check is not None and hosts.is_primary and not any(folder.checkpoints.glob("[0-9]*")):
            Vocabs.load(Folder(member_folder(folder.root.parent, 0)).vocab).save(folder.vocab)
        return train(config, folder.root, hosts, check=check)


def _sum_up(
    config: ConfigDict, root: Path, found: Sequence[Mapping[str, Any]], evaluated: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes and returns the results of the ensemble and of its members."""
    names = [name for name in METRICS if name in evaluated["test"]]
    rows = [
        {
            "folder": member_folder(root, n).name,
            "seed": config.train.seed + n,
            "step": each["test"]["step"],
            **{name: each["test"][name] for name in names},
            "parameters_sha256": each["parameters_sha256"],
        }
        for n, each in enumerate(found)
    ]
    best = max(rows, key=lambda row: -row["wer"] if "wer" in row else row[names[0]])
    results = {
        **evaluated,
        "parameters": sum(each["parameters"] for each in found),
        "members": rows,
        "mean": {name: sum(row[name] for row in rows) / len(rows) for name in names},
        "against_best": {"folder": best["folder"], "scores": _compare(config, root, root / best["folder"])},
        "corpus_sha256": found[0]["corpus_sha256"],
        "corpus_pairs": found[0]["corpus_pairs"],
        "wall_seconds": round(sum(each["wall_seconds"] for each in found) + evaluated["test"]["seconds"], 1),
        "devices": found[0]["devices"],
        "config": config.to_dict(),
    }
    write_json(Folder(root).results, results)
    return results


def _compare(config: ConfigDict, root: Path, best: Path) -> list[dict[str, Any]]:
    """The ensemble's translations of test against a member's, by sacreBLEU's paired bootstrap; of speech nothing."""
    if reads_speech(config.model):
        return []
    systems = [System(path.name, list(read_lines(Folder(path).outputs / HYPOTHESES))) for path in (best, root)]
    references = list(read_lines(Folder(root).outputs / "test.references.txt"))
    return judge_scores(systems, references, bleu=make_bleu(config.data.target))


def render(results: Mapping[str, Any]) -> str:
    """Scores of the members and of the ensemble, a line each, for people."""
    names = list(results["mean"])
    rows = [(f"{row['folder']} (seed {row['seed']})", row) for row in results["members"]]
    rows += [("mean of the members", results["mean"]), ("ensemble", results["test"])]
    lines = ["members" + " " * 19 + "".join(f"{name:>26s}" for name in names)]
    lines += [f"  {name:24s}" + "".join(f"{row[key]:26.2f}" for key in names) for name, row in rows]
    against = results["against_best"]
    tests = ", ".join(f"{row['name']} p = {row['p_value']:.4f}" for row in against["scores"])
    if not tests:
        return "\n".join([*lines, f"the best of them: {against['folder']}"])
    return "\n".join([*lines, f"ensemble against {against['folder']}, the best of them (paired bootstrap): {tests}"])
