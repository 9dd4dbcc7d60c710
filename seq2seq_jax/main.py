"""The command line: flags, modes, and one clear line for what is wrong.

    python -m seq2seq_jax.main --config=configs/gnmt.py[:preset] [--workdir=DIR] [--mode=MODE]
        [--config.section.key=value ...]

Imports nothing heavy before it knows what to do, so that `--help` and refusals are quick.
"""

from __future__ import annotations

import difflib
import io
import json
import os
import platform
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from absl import flags
from ml_collections import ConfigDict, config_flags

from seq2seq_jax.config import check_config, default_config, flatten, suggest_key
from seq2seq_jax.errors import EXIT_USER, DivergedError, NoUsableCheckpointError, Terminated, UserError

MODES = ("train", "evaluate", "translate", "describe", "plan")

OWN = {
    "config": "Config file, with a preset: configs/gnmt.py:multi30k.",
    "workdir": "The run's folder. Default: runs/<config>-<preset>. Alone, it goes on with the run saved there.",
    "mode": f"What to do: {', '.join(MODES)}.",
    "input": "translate: file to read, a sentence a line. Default: standard input.",
    "output": "translate: file to write. Default: standard output.",
    "nbest": "translate: print so many candidates a line, in Moses's format.",
    "json": "evaluate, describe, plan: one JSON object on standard output, nothing else.",
    "topology": "plan: a TPU slice by its shape in chips, such as v5p:4x4x8. Default: the devices at hand.",
    "fresh": "train: move an old run in the folder aside and start anew.",
    "debug": "Show the traceback of a user's error too.",
    "coordinator": "Several hosts: HOST:PORT of the first. Slurm and TPU pods need none of these.",
    "hosts": "Several hosts: how many there are.",
    "host": "Several hosts: which this is, from 0.",
    "host_timeout": "Several hosts: seconds after which a silent one counts as lost and ends the others.",
}
"""The flags and their help."""

GOES_WITH = {
    "input": ("translate",),
    "output": ("translate",),
    "nbest": ("translate",),
    "json": ("evaluate", "describe", "plan"),
    "topology": ("plan",),
    "fresh": ("train",),
    "coordinator": ("train", "evaluate"),
    "hosts": ("train", "evaluate"),
}
"""Flags that only some modes read."""

HELP = """seq2seq_jax: train, evaluate and use sequence-to-sequence models.

  python -m seq2seq_jax.main --config=configs/gnmt.py[:preset] [--workdir=DIR] [--mode=MODE]
      [--config.section.key=value ...]

modes:
  train      (default) trains or resumes, then evaluates on the test split
  evaluate   scores a trained run on the test split
  translate  lines in, lines out: --input, --output, --nbest
  describe   parameters, memory, steps and compilations of a config; runs nothing
  plan       compiles a config for hardware that need not be there (--topology): memory, time, what is sent

flags:
"""


def run() -> None:
    """The console command: exits with the codes of `seq2seq_jax.errors`."""
    sys.exit(main(sys.argv))


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
        return 130
    except BrokenPipeError:  # the reader of our output has gone: nothing more to say to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is None:
            raise
        cure = "look at its permissions and at the space on its disk"
        return _tell(f"{error.filename}: {error.strerror}; {cure}.", EXIT_USER, argv)


def _tell(problem: str, code: int, argv: Sequence[str]) -> int:
    """One line about what is wrong; with --debug where it was found, too."""
    if any(arg in ("--debug", "--debug=true", "--debug=1") for arg in argv):
        traceback.print_exc()
    print(f"seq2seq_jax: error: {' '.join(problem.split())}", file=sys.stderr)
    return code


def _run(argv: list[str]) -> int:
    if any(arg in ("--help", "-h", "-help", "--helpfull", "--helpshort") for arg in argv[1:]):
        print(HELP + "\n".join(f"  --{name:12s} {text}" for name, text in OWN.items()))
        return 0
    given = _parse(argv)
    config, root = given.config, _find_root(given, argv)
    check_config(config)
    if given.mode == "describe":
        return _describe(config, root, as_json=given.json)
    _set_up_jax()
    if given.mode == "plan":
        return _plan(config, root, given.topology, as_json=given.json)
    if given.mode == "translate":
        return _translate(config, root, source=given.input, target=given.output, nbest=given.nbest)
    return _run_on_hosts(given, config, root)


def _run_on_hosts(given: flags.FlagValues, config: ConfigDict, root: Path) -> int:
    """Trains or evaluates, with other hosts where there are any; the first one reports."""
    from seq2seq_jax.parallel.hosts import join

    where = {"coordinator": given.coordinator, "count": given.hosts, "index": given.host}
    with join(**where, timeout=given.host_timeout) as hosts:
        from seq2seq_jax import modes  # only now: nothing may ask for devices before the hosts have found each other
        from seq2seq_jax.experiment import versions
        from seq2seq_jax.workdir import Folder, claim

        keys = {f"config.{key}": value for key, value in flatten(config).items()}
        hosts.check_same("start", {"--mode": given.mode, "Python": platform.python_version(), **versions(), **keys})
        if given.mode == "evaluate":
            results, place = modes.evaluate(config, root, hosts), Folder(root).evaluation
        else:
            with claim(root, fresh=given.fresh, hosts=hosts):
                results, place = modes.train(config, root, hosts), root
        return _report(results, place, as_json=given.json) if hosts.is_primary else 0


def _define_flags(argv: list[str]) -> flags.FlagValues:
    """Flags of one command line, apart from absl's global ones, so that `main` can be called again."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, OWN["config"], flag_values=values, sys_argv=argv)
    for name in ("workdir", "input", "output", "topology"):
        flags.DEFINE_string(name, None, OWN[name], flag_values=values)
    flags.DEFINE_string("mode", "train", OWN["mode"], flag_values=values)
    flags.DEFINE_integer("nbest", 0, OWN["nbest"], flag_values=values)
    flags.DEFINE_string("coordinator", None, OWN["coordinator"], flag_values=values)
    for name in ("hosts", "host"):
        flags.DEFINE_integer(name, None, OWN[name], flag_values=values)
    flags.DEFINE_float("host_timeout", 60.0, OWN["host_timeout"], flag_values=values)
    for name in ("json", "fresh", "debug"):
        flags.DEFINE_boolean(name, False, OWN[name], flag_values=values)
    return values


def _parse(argv: list[str]) -> flags.FlagValues:
    """Lets absl parse, with one clear line for everything it would answer with a traceback.

    Raises:
        UserError: something on the command line is wrong.
    """
    argv = _put_config_first(argv)
    values = _define_flags(argv)
    try:
        rest = values(argv)
    except flags.UnrecognizedFlagError as error:
        raise UserError(_explain_unknown(error.flagname)) from error
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, SyntaxError, ImportError) as error:
        raise UserError(_explain(str(error), argv)) from error
    if len(rest) > 1:
        raise UserError(f"{rest[1]!r} is no flag: every argument starts with --; did you mean --config={rest[1]}?")
    if values.mode not in MODES:
        near = difflib.get_close_matches(values.mode, MODES, n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise UserError(f"--mode must be one of {', '.join(MODES)}, but is {values.mode!r} instead{hint}")
    if not isinstance(values.config, ConfigDict):
        raise UserError("--config must name a file whose get_config() returns a ConfigDict.")
    for name, modes in GOES_WITH.items():
        if values[name].value and values.mode not in modes:
            raise UserError(f"--{name} goes with --mode={' or '.join(modes)}, but the mode is {values.mode!r}.")
    return values


def _put_config_first(argv: list[str]) -> list[str]:
    """The command line with --config before its overrides; without one, the config saved in --workdir.

    Raises:
        UserError: there is neither, or the file does not exist.
    """
    config, workdir = _value_of(argv, "config"), _value_of(argv, "workdir")
    if config is not None:
        _check_config_file(config)
    elif workdir is None:
        raise UserError("--config is missing: name a config file (--config=configs/gnmt.py) or a run (--workdir=DIR).")
    else:
        saved = Path(workdir).expanduser() / "config.json"
        if not saved.exists():
            raise UserError(f"{saved}: there is no run in this --workdir; give --config=configs/NAME.py to start one.")
        config = f"{Path(__file__).with_name('saved_config.py')}:{saved}"
    rest = [arg for n, arg in enumerate(argv) if not _gives_config(argv, n)]
    return [rest[0], f"--config={config}", *rest[1:]]


def _gives_config(argv: Sequence[str], n: int) -> bool:
    before = argv[n - 1] if n else ""
    return argv[n].startswith("--config=") or argv[n] == "--config" or before == "--config"


def _value_of(argv: Sequence[str], name: str) -> str | None:
    """The value of a string flag before absl has parsed; the last one counts."""
    value = None
    for n, arg in enumerate(argv):
        if arg.startswith(f"--{name}="):
            value = arg.partition("=")[2]
        elif arg == f"--{name}" and n + 1 < len(argv):
            value = argv[n + 1]
    return value


def _check_config_file(value: str) -> None:
    path = Path(value.partition(":")[0])
    if path.is_file():
        return
    folder = path.parent if path.parent.is_dir() else Path("configs")
    known = sorted(str(found) for found in folder.glob("*.py")) if folder.is_dir() else []
    near = difflib.get_close_matches(str(path), known, n=1, cutoff=0.3)
    hint = f"did you mean {near[0]}?" if near else "give a Python file with a function get_config()."
    raise UserError(f"--config={value}: {path} is no file; {hint}")


def _explain_unknown(name: str) -> str:
    if name.startswith("config."):
        near = suggest_key(name.removeprefix("config."), default_config())
        return f"--{name} is no key of this config" + (f"; did you mean --config.{near}?" if near else ".")
    near_flags = difflib.get_close_matches(name, OWN, n=1)
    return f"--{name} is no flag" + (f"; did you mean --{near_flags[0]}?" if near_flags else "; see --help.")


def _explain(problem: str, argv: Sequence[str]) -> str:
    """Turns the words of absl and ml_collections into the command line's own."""
    for arg in argv[1:]:
        name = arg.partition("=")[0].removeprefix("--")
        if name.startswith("config."):
            key = name.removeprefix("config.")
            defaults = flatten(default_config()) | flatten(default_config("lstm"))
            if key not in defaults and _names(problem, key):
                return _explain_unknown(name)
            if key in defaults and _names(problem, key):
                kind, value = type(defaults[key]).__name__, arg.partition("=")[2]
                return f"--{name} must be of type {kind} (like {defaults[key]!r}), but is {value!r} instead."
    return f"the command line: {problem}"


def _names(problem: str, key: str) -> bool:
    return any(part and part in problem for part in (key, key.rpartition(".")[2], key.partition(".")[0]))


def _find_root(given: flags.FlagValues, argv: Sequence[str]) -> Path:
    """The run's folder, absolute."""
    if given.workdir:
        return Path(given.workdir).expanduser().absolute()
    file, _, preset = (_value_of(argv, "config") or "").partition(":")
    name = Path(file).stem
    return (Path("runs") / (f"{name}-{preset}" if preset else name)).absolute()


def _set_up_jax() -> None:
    """The persistent compilation cache, so that a second start does not compile again; and quiet libraries."""
    import jax
    from absl import logging

    logging.set_verbosity(logging.ERROR)  # Orbax warns of its own defaults at every start
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "seq2seq_jax" / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _describe(config: ConfigDict, root: Path, *, as_json: bool) -> int:
    from seq2seq_jax.describe import describe, render

    report = describe(config, root)
    print(json.dumps(report) if as_json else render(report))
    return 0


def _plan(config: ConfigDict, root: Path, topology: str | None, *, as_json: bool) -> int:
    """Prints the plan, whole even where the config does not fit, which is then the user's error."""
    import jax

    if topology and not os.environ.get("JAX_PLATFORMS"):
        jax.config.update("jax_platforms", "cpu")  # nobody shall look for a TPU to run on
    from seq2seq_jax.plan import plan, render

    report = plan(config, root, topology)
    print(json.dumps(report) if as_json else render(report), flush=True)
    if report["cure"]:
        raise UserError(f"{topology or 'the devices at hand'}: {report['cure']}")
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
    print(f"\ntest ({scores['sentences']} sentences, step {scores['step']}, beam {scores['beam_size']}):")
    for name in ("bleu", "chrf", "bleu_tokenized_lowercase"):
        if name in scores:
            print(f"  {name:26s}{scores[name]:6.2f}   {scores[f'{name}_signature']}")
    print(f"run: {root}")
    return 0


def _translate(config: ConfigDict, root: Path, *, source: str | None, target: str | None, nbest: int) -> int:
    from seq2seq_jax import modes

    lines = _read_input(source)
    if target is None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8", newline="\n")
        modes.translate(config, root, lines, sys.stdout, nbest=nbest)
        return 0
    path = Path(target)
    part = path.with_name(path.name + ".part")
    try:
        output = part.open("w", encoding="utf-8", newline="\n")
    except OSError as error:
        raise UserError(f"--output={target}: cannot be written ({error.strerror}); choose another place.") from error
    try:
        with output:
            modes.translate(config, root, lines, output, nbest=nbest)
        part.replace(path)  # only whole output gets the name that was asked for
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return 0


def _read_input(path: str | None) -> Iterator[str]:
    """Lines without their ends, from a file or standard input; only "\\n" ends a line."""
    if path is None:
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(encoding="utf-8", newline="\n")
        return _lines(sys.stdin, "standard input")
    try:
        file = open(path, encoding="utf-8", newline="\n")  # now: what cannot be read is told before a model is loaded
    except OSError as error:
        raise UserError(f"--input={path}: cannot be read ({error.strerror}).") from error
    return _file_lines(file, path)


def _file_lines(file: TextIO, name: str) -> Iterator[str]:
    with file:
        yield from _lines(file, name)


def _lines(stream: TextIO, name: str) -> Iterator[str]:
    number = 0
    try:
        for line in stream:
            number += 1
            yield line.removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name}: line {number + 1} or one soon after it is not UTF-8 (byte 0x{error.object[error.start]:02x}); "
            "convert the text with iconv."
        ) from error


if __name__ == "__main__":
    run()
