"""The command line: every mode is one function here, which calls its file in `modes/`.

    python -m seq2seq_jax.main --config=configs/gnmt.py[:preset] [--workdir=DIR] [--mode=MODE]
        [--config.section.key=value ...]

Imports nothing heavy before it knows what to do, so that `--help` and refusals are quick.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import sys
import traceback
from collections.abc import Callable, Sequence
from logging import getLogger
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from seq2seq_jax.command_line import HELP, OWN, find_root, parse
from seq2seq_jax.config import check_config, flatten, require_search
from seq2seq_jax.errors import (
    EXIT_INTERRUPTED,
    EXIT_USER,
    DivergedError,
    NoUsableCheckpointError,
    Terminated,
    UserError,
    is_out_of_memory,
)
from seq2seq_jax.failpoints import check_environment
from seq2seq_jax.memory import explain_memory, limit_memory_pools
from seq2seq_jax.speech_checks import require_mode

MOST_TOLD = 2000
"""Characters of an error's line: it may quote a file."""


def run() -> None:
    """The console command: exits with the codes of `seq2seq_jax.errors`."""
    limit_memory_pools()
    code = main(sys.argv)
    if code == EXIT_INTERRUPTED:  # perhaps in the middle of a compilation, whose threads Python's end would trip over
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def main(argv: Sequence[str]) -> int:
    """Runs a command line and returns the exit code."""
    try:
        return _run(list(argv))
    except (UserError, DivergedError, NoUsableCheckpointError) as error:
        return _tell(str(error), error.exit_code, argv)
    except Terminated as error:
        print(f"seq2seq_jax: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone: nothing more to say to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        cure = "look at its permissions and at the space on its disk"
        return _tell(f"{error.filename or 'a file of this run'}: {error.strerror}; {cure}.", EXIT_USER, argv)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return _tell(explain_memory(error), EXIT_USER, argv)


def _tell(problem: str, code: int, argv: Sequence[str]) -> int:
    """One line about what is wrong; with --debug where it was found, too."""
    if any(arg in ("--debug", "--debug=true", "--debug=1") for arg in argv):
        traceback.print_exc()
    words = " ".join(problem.split())
    words = words if len(words) <= MOST_TOLD else f"{words[: MOST_TOLD // 2]} ... {words[-MOST_TOLD // 2 :]}"
    # What a file holds may stand in it: nothing that moves a terminal's cursor gets there.
    shown = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in words)
    print(f"seq2seq_jax: error: {shown}", file=sys.stderr)
    return code


def _run(argv: list[str]) -> int:
    if any(arg in ("--help", "-h", "-help", "--helpfull", "--helpshort") for arg in argv[1:]):
        print(HELP + "\n".join(f"  --{name:12s} {text}" for name, text in OWN.items()))
        return 0
    check_environment()
    given = parse(argv)
    root = find_root(given, argv)
    if given.config is not None:  # compare and rescore need none
        check_config(given.config)
        if given.mode in OF_A_SEARCH:
            require_search(given.config, f"--mode={given.mode}")
        require_mode(given.config, given.mode)
    _refuse_ensembles(given, root)
    return RUNNERS[given.mode](given, given.config, root)


def _refuse_ensembles(given: flags.FlagValues, root: Path) -> None:
    """Refuses the folder of an ensemble (`--members`) where one run is meant."""
    flagged = {name: given[name].value for name in ("init_from", "reverse")}
    named = {name: Path(value).expanduser() for name, value in flagged.items() if value}
    if given.mode in OF_ONE_RUN:
        named["workdir"] = root
    if not named:
        return
    from seq2seq_jax.workdir import list_members, refuse_foreign

    for name, path in named.items():
        refuse_foreign(path, f"--{name}")
        if members := list_members(path):
            raise UserError(
                f"--{name}={path}: must be one run with --mode={given.mode}, but is an ensemble of {len(members)} "
                f"instead; name a member, such as {members[0]}."
            )


def _run_on_hosts(given: flags.FlagValues, config: ConfigDict, root: Path) -> int:
    """Trains or evaluates, with other hosts where there are any; the first one reports."""
    from seq2seq_jax.parallel.hosts import join

    _set_up_jax()
    where = {"coordinator": given.coordinator, "count": given.hosts, "index": given.host}
    with join(**where, timeout=given.host_timeout) as hosts:
        # Only now: nothing may ask for devices before the hosts have found each other.
        from seq2seq_jax.modes.evaluate import evaluate
        from seq2seq_jax.modes.members import join_members, train_members
        from seq2seq_jax.modes.start_checks import check_start
        from seq2seq_jax.modes.train import train
        from seq2seq_jax.provenance import versions
        from seq2seq_jax.workdir import Folder, claim, list_members

        keys = {f"config.{key}": value for key, value in flatten(config).items()}
        members = len(list_members(root)) if given.members is None else given.members  # 0: a single run
        keys |= {"--mode": given.mode, "--members": members}
        hosts.check_same("start", {"Python": platform.python_version(), **versions(), **keys})
        if given.mode == "evaluate":
            place = Folder(root).evaluation
            results = evaluate(*join_members(config, root), hosts, place=place)
        else:
            check_start(config, root)  # before the folder is made
            with claim(root, fresh=given.fresh, hosts=hosts):
                single = given.members is None and not members
                results = train(config, root, hosts) if single else train_members(config, root, members, hosts)
                place = root
        return _report(results, place, as_json=given.json) if hosts.is_primary else 0


def _set_up_jax() -> None:
    """The persistent compilation cache, so that a second start does not compile again; and quiet libraries."""
    import jax
    from absl import logging

    from seq2seq_jax.compilations import heal_cache
    from seq2seq_jax.workdir import find_compiled

    logging.set_verbosity(logging.ERROR)  # Orbax warns of its own defaults at every start
    getLogger("seq2seq_jax").setLevel("WARNING")
    jax.config.update("jax_compilation_cache_dir", find_compiled())
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    heal_cache()


def _describe(given: flags.FlagValues, config: ConfigDict, root: Path) -> int:
    from seq2seq_jax.modes.describe import describe, render
    from seq2seq_jax.workdir import list_members

    report = describe(config, (list_members(root) or [root])[0])  # of an ensemble: one member
    print(json.dumps(report) if given.json else render(report))
    return 0


def _plan(given: flags.FlagValues, config: ConfigDict, root: Path) -> int:
    """Prints the plan, whole even where the config does not fit, which is then the user's error."""
    import jax

    _set_up_jax()
    if given.topology and not os.environ.get("JAX_PLATFORMS"):
        jax.config.update("jax_platforms", "cpu")  # nobody shall look for a TPU to run on
    from seq2seq_jax.modes.plan import plan, render
    from seq2seq_jax.workdir import list_members

    report = plan(config, (list_members(root) or [root])[0], given.topology)
    print(json.dumps(report) if given.json else render(report), flush=True)
    if report["cure"]:
        raise UserError(f"{given.topology or 'the devices at hand'}: {report['cure']}")
    return 0


def _prepare(given: flags.FlagValues, config: ConfigDict, root: Path) -> int:
    from seq2seq_jax.modes.prepare import prepare
    from seq2seq_jax.modes.start_checks import check_start

    check_start(config, root, trains=False)
    where = {"host": given.host or 0, "hosts": given.hosts or 1}
    report = prepare(config, root, workers=given.workers, **where)
    if given.json:
        print(json.dumps(report))
    return 0


def _report(results: dict[str, Any], root: Path, *, as_json: bool) -> int:
    """Prints what a run came to."""
    if as_json:
        print(json.dumps(results))
        return 0
    scores = results["test"]
    for sample in scores["samples"]:
        print(f"\n  source     {sample['source']}\n  hypothesis {sample['hypothesis']}")
        print(f"  reference  {sample['reference']}")
        if "attention" in sample:
            print(f"  attention  {root / sample['attention']}")
    print(f"\ntest ({scores['sentences']} sentences, step {scores['step']}, {scores['search']}):")
    for name in ("wer", "cer") if "wer" in scores else ():
        print(f"  {name:26s}{scores[name]:6.2f}   {scores['signature']}")
    if "wer" in scores:
        counts = ("substitutions", "deletions", "insertions", "words")
        print("  " + ", ".join(f"{scores[name]} {name}" for name in counts))
        for group, found in scores.get("groups", {}).items():
            print(f"  {group}: wer {found['wer']:.2f}, cer {found['cer']:.2f}")
        print(f"  report: {root / scores['report']}")
    for name in ("bleu", "chrf", "bleu_tokenized_lowercase"):
        if name in scores:
            print(f"  {name:26s}{scores[name]:6.2f}   {scores[f'{name}_signature']}")
    for name in ("loss", "perplexity", "accuracy"):  # of a model without a search
        if name in scores:
            print(f"  {name:26s}{scores[name]:8.4f}")
    if "members" in results:
        from seq2seq_jax.modes.members import render

        print(render(results))
    print(f"run: {root}")
    return 0


def _translate(given: flags.FlagValues, config: ConfigDict, root: Path) -> int:
    _set_up_jax()
    from seq2seq_jax.modes.lines import count_lines, open_output, read_input
    from seq2seq_jax.modes.members import join_members
    from seq2seq_jax.modes.translate import translate

    config, root = join_members(config, root)
    lines, total = read_input(given.input), count_lines(given.input)
    with contextlib.closing(lines), open_output(given.output, apart_from=(given.input, given.constraints)) as output:
        translate(config, root, lines, output, nbest=given.nbest, total=total, constraints=given.constraints)
    return 0


def _transcribe(given: flags.FlagValues, config: ConfigDict, root: Path) -> int:
    if not given.input:
        raise UserError("--input is missing: name a recording, a folder, a pattern or a manifest to transcribe.")
    _set_up_jax()
    from seq2seq_jax.modes.members import join_members
    from seq2seq_jax.modes.transcribe import transcribe

    config, root = join_members(config, root)
    transcribe(config, root, given.input, given.output, form=given.format or "text")
    return 0


def _backtranslate(given: flags.FlagValues, config: ConfigDict, root: Path) -> int:
    _set_up_jax()
    from seq2seq_jax.modes.backtranslate import backtranslate
    from seq2seq_jax.modes.start_checks import check_start
    from seq2seq_jax.workdir import claim

    check_start(config, root)
    with claim(root, fresh=False):
        results = backtranslate(config, root, reverse=given.reverse)
    return _report(results, root, as_json=given.json)


def _average(given: flags.FlagValues, config: ConfigDict, root: Path) -> int:
    _set_up_jax()
    from seq2seq_jax.modes.average import average, read_choice

    note = average(config, root, read_choice(given.last, given.best, given.steps), given.output)
    if given.json:
        print(json.dumps(note))
    return 0


def _export(given: flags.FlagValues, config: ConfigDict, root: Path) -> int:
    _set_up_jax()
    from seq2seq_jax.modes.export import export

    export(config, root, given.output, licence=given.licence or "", format=given.format or "folder")
    return 0


def _compare(given: flags.FlagValues, config: ConfigDict | None, root: Path) -> int:
    """Two runs, one run, or files of translations; what came of it, in words or as JSON, and as a page."""
    from seq2seq_jax.modes.compare import compare_files, compare_runs, render
    from seq2seq_jax.modes.lines import open_output

    if given.input and given.workdir:
        raise UserError("--input and --workdir exclude each other: compare either files or runs.")
    if not given.input and (given.reference or given.source):
        raise UserError("--reference and --source go with --input; runs have their own test sets.")
    read = (given.input, given.against, given.reference, given.source)
    with open_output(given.output, apart_from=read) if given.output else contextlib.nullcontext() as page:
        if given.input:
            found = compare_files(given.input, given.against, given.reference, given.source)
        else:
            found = compare_runs(root, Path(given.against).expanduser().absolute() if given.against else None)
        if page is not None:
            page.write(found.make_page())
    print(json.dumps(found.report) if given.json else render(found.report))
    return 0


def _score(given: flags.FlagValues, config: ConfigDict, root: Path) -> int:
    _set_up_jax()
    from seq2seq_jax.modes.lines import open_output
    from seq2seq_jax.modes.score import score

    corpora = [part.strip() for part in (given.input or config.data.test).split(",")]
    sides = [f"{part}.{side}" for part in corpora for side in (config.data.source, config.data.target)]
    with open_output(given.output, apart_from=[*corpora, *sides]) as output:
        score(config, root, output, pairs=given.input)
    return 0


def _vectors(given: flags.FlagValues, config: ConfigDict, root: Path) -> int:
    _set_up_jax()
    from seq2seq_jax.modes.lines import read_input
    from seq2seq_jax.modes.vectors import write_vectors

    lines = read_input(None if given.input == "-" else given.input)
    with contextlib.closing(lines):
        write_vectors(config, root, lines, given.output, apart_from=given.input)
    return 0


def _rescore(given: flags.FlagValues, config: ConfigDict | None, root: Path) -> int:
    """N-best lists with new features, totals and weights; what came of it, in words or as JSON."""
    _set_up_jax()
    from seq2seq_jax.modes.rescore import render, rescore
    from seq2seq_jax.modes.rescore_request import read_request

    names = ("input", "output", "source", "reference", "models", "channel", "weights", "metric")
    request = read_request(config, root, {name: given[name].value for name in names})
    report = rescore(config, request)
    print(json.dumps(report) if given.json else render(report))
    return 0


def _doctor(given: flags.FlagValues, config: ConfigDict | None, root: Path) -> int:
    """What this machine and the run in --workdir are like; exit code 2 where something is wrong with either."""
    from seq2seq_jax.modes.doctor import examine, render

    report = examine(root if given.workdir else None)
    print(json.dumps(report) if given.json else render(report), flush=True)
    if problems := report["problems"]:
        first = f"{problems[0]['what']}; {problems[0]['cure']}"
        raise UserError(f"--mode=doctor found {len(problems)} that is wrong, first: {first}.")
    return 0


RUNNERS: dict[str, Callable[[flags.FlagValues, ConfigDict, Path], int]] = {
    "train": _run_on_hosts,
    "evaluate": _run_on_hosts,
    "translate": _translate,
    "transcribe": _transcribe,
    "score": _score,
    "vectors": _vectors,
    "rescore": _rescore,
    "describe": _describe,
    "plan": _plan,
    "prepare": _prepare,
    "backtranslate": _backtranslate,
    "average": _average,
    "export": _export,
    "compare": _compare,
    "doctor": _doctor,
}


OF_A_SEARCH = ("translate", "score", "rescore", "backtranslate", "export")
"""Modes that need a model with a decoder."""

OF_ONE_RUN = ("score", "vectors", "average", "export", "backtranslate")
"""Modes that an ensemble of several cannot stand for a run in."""


if __name__ == "__main__":
    run()
