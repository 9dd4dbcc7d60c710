"""The command line's flags, and one clear line for what is wrong with them. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from seq2seq_jax.config import default_config, explain_unknown, flatten
from seq2seq_jax.errors import UserError
from seq2seq_jax.suggestions import find_nearest, suggest

MODES = (
    "train", "evaluate", "translate", "transcribe", "describe", "plan",
    "score", "vectors", "rescore", "average", "compare", "export", "backtranslate", "prepare", "doctor",
)  # fmt: skip

OWN = {
    "config": "Config file, with a preset: configs/gnmt.py:multi30k.",
    "workdir": "The run's folder. Default: runs/<config>-<preset>. Alone, it goes on with the run saved there.",
    "mode": f"What to do: {', '.join(MODES)}.",
    "input": "translate, vectors: lines to read (standard input). score: PREFIX or .tsv (data.test). "
    "transcribe: audio files, folders or manifests, separated by commas. "
    "compare: translations. rescore: n-best lists.",
    "output": "translate, transcribe: file to write (of several recordings, a folder). Default: standard output. "
    "vectors: .npz. compare: HTML report. "
    "average, export: new folder.",
    "nbest": "translate: print so many candidates a line, in Moses's format.",
    "json": "What reports, reports one JSON object on standard output, nothing else.",
    "topology": "plan: a TPU slice by its shape in chips, such as v5p:4x4x8. Default: the devices at hand.",
    "members": "train: so many runs with the seeds train.seed, + 1, ... in WORKDIR/member-N, and the ensemble of all.",
    "init_from": "train: start from the parameters of another run (fine-tuning); says what was taken.",
    "last": "average: the newest so many checkpoints. Default: 5 (train with keep_last=5).",
    "best": "average: the best so many by dev score.",
    "steps": "average: the checkpoints of these steps, such as 8000,9000.",
    "format": "transcribe: text (default), json (with times), srt or vtt. export: folder (weights as safetensors, "
    "vocabularies, card).",
    "licence": "export: what the card says of the licence, such as cc-by-4.0. Default: unknown.",
    "reverse": "backtranslate: a run of the other direction. Default: one is trained in WORKDIR/reverse.",
    "against": "compare: another run, or another file of translations.",
    "reference": "compare, rescore: file of references, with --input.",
    "source": "compare, rescore: file of source sentences, with --input.",
    "constraints": "translate: a JSON object for every line of the input: prefix, must, must_not.",
    "models": "rescore: runs whose log-probabilities become features, separated by commas. Default: --workdir.",
    "channel": "rescore: runs of the other direction, whose log-probabilities of the source are features, too.",
    "weights": "rescore: JSON file of weights, as tuning writes it; or average: half the lists' total, half "
    "the models' mean log-probability. Without: tuned on --reference.",
    "metric": "rescore: what is tuned: bleu (default), chrf, wer or cer.",
    "workers": "prepare: processes that tokenise. Default (0): one a core.",
    "fresh": "train: move an old run in the folder aside and start anew.",
    "debug": "Show the traceback of a user's error too.",
    "coordinator": "Several hosts: HOST:PORT of the first. Slurm and TPU pods need none of these.",
    "hosts": "Several hosts: how many there are.",
    "host": "Several hosts: which this is, from 0.",
    "host_timeout": "Several hosts: seconds after which a silent one counts as lost and ends the others.",
}
"""The flags and their help."""

GOES_WITH = {
    "input": ("translate", "transcribe", "score", "vectors", "compare", "rescore"),
    "output": ("translate", "transcribe", "score", "vectors", "average", "compare", "export", "rescore"),
    "nbest": ("translate",),
    "json": ("evaluate", "describe", "plan", "average", "backtranslate", "compare", "prepare", "rescore", "doctor"),
    "topology": ("plan",),
    "members": ("train",),
    "init_from": ("train", "prepare", "backtranslate"),
    "last": ("average",),
    "best": ("average",),
    "steps": ("average",),
    "format": ("export", "transcribe"),
    "licence": ("export",),
    "reverse": ("backtranslate",),
    "against": ("compare",),
    "reference": ("compare", "rescore"),
    "source": ("compare", "rescore"),
    "constraints": ("translate",),
    "models": ("rescore",),
    "channel": ("rescore",),
    "weights": ("rescore",),
    "metric": ("rescore",),
    "workers": ("prepare",),
    "fresh": ("train",),
    "coordinator": ("train", "evaluate"),
    "hosts": ("train", "evaluate", "prepare"),
    "host": ("train", "evaluate", "prepare"),
    "host_timeout": ("train", "evaluate"),
}
"""Flags that only some modes read."""

WHOLE = {  # flag → what it is at least and at most
    "workers": (0, 1000), "members": (2, 1000), "last": (2, 10**6), "best": (2, 10**6), "nbest": (0, 10_000),
    "hosts": (1, 10**6), "host": (0, 10**6),
}  # fmt: skip
"""Flags that are whole numbers."""

MAY_BE_EMPTY = ("models", "channel", "licence")
"""Flags whose empty text says something: none."""

HELP = """seq2seq_jax: train, evaluate and use sequence-to-sequence models.

  python -m seq2seq_jax.main --config=configs/gnmt.py[:preset] [--workdir=DIR] [--mode=MODE]
      [--config.section.key=value ...]

modes:
  train      (default) trains or resumes, then evaluates on the test split; --members=N an ensemble of N seeds
  prepare    tokenises large corpora to a disk, for training with little memory: --workers, --hosts, --host
  evaluate   scores a trained run on the test split
  translate  lines in, lines out: --input, --output, --nbest
  transcribe  audio in, text or subtitles out: --input=my.wav, --output, --format=text, json, srt or vtt
  score      log-probabilities of given pairs, one JSON object a line: --input=PREFIX or .tsv, --output
  vectors    one vector for each line, of the encoder: --input, --output=vectors.npz
  rescore    n-best lists of any system (Moses's format), with log-probabilities of models as features; tunes weights
             (--config.decode.ngram=FILE: an n-gram model of the pieces of the run in --workdir, too)
  describe   parameters, memory, steps and compilations of a config; runs nothing
  plan       compiles a config for hardware that need not be there (--topology): memory, time, what is sent
  average    one model from several checkpoints: --last, --best or --steps, --output=DIR
  export     the best checkpoint as a folder to give away: --output=DIR, --licence
  compare    two runs (--against), or files of translations (--input, --against, --reference): --output=report.html
  doctor     versions, devices, memory, disk, the run in --workdir, and what is wrong with any of it; needs no config
  backtranslate  text in the target language (--config.data.monolingual=FILE) becomes training data

flags:
"""


def _define_flags(argv: list[str]) -> flags.FlagValues:
    """Flags of one command line, apart from absl's global ones, so that `main` can be called again."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, OWN["config"], flag_values=values, sys_argv=argv)
    for name in ("workdir", "input", "output", "topology", "reverse", "init_from"):
        flags.DEFINE_string(name, None, OWN[name], flag_values=values)
    flags.DEFINE_string("mode", "train", OWN["mode"], flag_values=values)
    for name in ("steps", "format", "licence", "against", "reference", "source", "constraints"):
        flags.DEFINE_string(name, None, OWN[name], flag_values=values)
    for name in ("models", "channel", "weights", "metric"):
        flags.DEFINE_string(name, None, OWN[name], flag_values=values)
    for name in WHOLE:
        flags.DEFINE_integer(name, {"workers": 0, "nbest": 0}.get(name), OWN[name], flag_values=values)
    flags.DEFINE_string("coordinator", None, OWN["coordinator"], flag_values=values)
    flags.DEFINE_float("host_timeout", 60.0, OWN["host_timeout"], flag_values=values)
    for name in ("json", "fresh", "debug"):
        flags.DEFINE_boolean(name, False, OWN[name], flag_values=values)
    return values


def parse(argv: list[str]) -> flags.FlagValues:
    """Lets absl parse, with one clear line for everything it would answer with a traceback.

    Raises:
        UserError: something on the command line is wrong.
    """
    argv = [argv[0], *map(_write_out, argv[1:])]
    for arg in argv[1:]:
        if (name := arg.removeprefix("--").partition("=")[0]) in ("flagfile", "undefok") and arg.startswith("--"):
            raise UserError(_explain_flag(name))  # absl has them, and would let others pass that are none
    argv = _put_config_first(argv)
    values = _define_flags(argv)
    sys.modules.pop("config_config", None)  # of an earlier call: a file is executed over what is there of that name
    try:
        rest = values(argv)
    except UserError:
        raise
    except flags.UnrecognizedFlagError as error:
        raise UserError(_explain_flag(error.flagname, argv)) from error
    except (Exception, SystemExit) as error:  # a config file is a program, which may raise anything
        raise UserError(_explain(error, argv)) from error
    if len(rest) > 1:
        raise UserError(f"{rest[1]!r} is no flag: every argument starts with --{_guess_flag(rest[1])}")
    if values.mode not in MODES:
        raise UserError(
            f"--mode must be one of {', '.join(MODES)}, but is {values.mode!r} instead{suggest(values.mode, MODES)}"
        )
    if not isinstance(values.config, ConfigDict) and not _needs_no_config(argv):
        raise UserError(_explain(TypeError(), argv))
    _check_flags(values)
    if values.init_from:
        values.config.train.init_from = values.init_from
    return values


def _write_out(arg: str) -> str:
    """A flag with two dashes, where absl would take it with one."""
    name = arg.removeprefix("-").partition("=")[0]
    single = arg.startswith("-") and not arg.startswith("--")
    return f"-{arg}" if single and (name in OWN or name.startswith("config.")) else arg


def _guess_flag(stray: str) -> str:
    """The end of a message about an argument that is no flag: which it may have been meant to be."""
    name = stray.partition("=")[0]
    if "=" in stray and (name in OWN or name.startswith("config.")):
        return f"; did you mean --{stray}?"
    if stray in MODES:
        return f"; did you mean --mode={stray}?"
    return f"; did you mean --config={stray}?" if ".py" in stray else "."


def _check_flags(values: flags.FlagValues) -> None:
    """Refuses flags of another mode, empty ones, and numbers out of range.

    Raises:
        UserError: names the flag, the rule and the value.
    """
    for name in OWN:
        value = values[name].value
        given = values[name].present and value is not False
        modes = GOES_WITH.get(name, MODES)
        if given and values.mode not in modes:
            raise UserError(f"--{name} goes with --mode={' or '.join(modes)}, but the mode is {values.mode!r}.")
        if given and value == "" and name not in MAY_BE_EMPTY:
            raise UserError(f"--{name} must not be empty; leave it out, or give it a value.")
        if name in WHOLE and value is not None:
            least, most = WHOLE[name]
            if not least <= value <= most:
                rule = f"at least {least}" if value < least else f"at most {most:,}"
                raise UserError(f"--{name} must be {rule}, but is {value} instead.")
    if not 1 <= values.host_timeout <= 10**6:
        raise UserError(
            f"--host_timeout must be at least 1 second and at most 1,000,000, but is {values.host_timeout} instead."
        )


def _put_config_first(argv: list[str]) -> list[str]:
    """The command line with --config before its overrides; without one, the config saved in --workdir.

    Raises:
        UserError: there is neither, or the file does not exist.
    """
    config, workdir = _value_of(argv, "config"), _value_of(argv, "workdir")
    if config is not None:
        _check_config_file(config)
    elif _needs_no_config(argv) and (workdir is None or _value_of(argv, "mode") in ("compare", "doctor")):
        return argv
    elif workdir is None:
        for name in (arg.lstrip("-").partition("=")[0] for arg in argv[1:] if arg.startswith("-")):
            if not {name, name.removeprefix("no")} & set(OWN) and find_nearest(name, OWN):
                raise UserError(_explain_flag(name))
        named = next((arg for arg in argv[1:] if arg.endswith(".py") and not arg.startswith("-")), "")
        if named:
            raise UserError(f"{named!r} is no flag; name a config file by --config={named}.")
        raise UserError("--config is missing: name a config file (--config=configs/gnmt.py) or a run (--workdir=DIR).")
    else:
        saved = Path(workdir).expanduser() / "config.json"
        if not workdir or not saved.is_file():
            starts = _value_of(argv, "mode") in (None, "train", "prepare")
            cure = "give --config=configs/NAME.py to start one." if starts else "name the folder of a trained one."
            raise UserError(f"--workdir={workdir}: there is no run in this folder (no config.json); {cure}")
        config = f"{Path(__file__).with_name('saved_config.py')}:{saved}"
    rest = [arg for n, arg in enumerate(argv) if not _gives_config(argv, n)]
    return [rest[0], f"--config={config}", *rest[1:]]


def _needs_no_config(argv: Sequence[str]) -> bool:
    """Whether files or other runs are all that is worked on, or the machine."""
    mode = _value_of(argv, "mode") or ""
    needed = {"compare": "input", "rescore": "models"}.get(mode)
    return mode == "doctor" or needed is not None and _value_of(argv, needed) is not None


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
    if value and path.is_file():
        return
    folder = path.parent if path.parent.is_dir() else Path("configs")
    known = {found.name: str(found) for found in sorted(folder.glob("*.py"))} if folder.is_dir() else {}
    near = known.get(find_nearest(path.name, known), "")
    hint = f"did you mean {near}?" if near else "give a Python file with a function get_config()."
    raise UserError(f"--config={value}: {'' if value in ('', '.') else path} is no file; {hint}")


def _explain_flag(name: str, argv: Sequence[str] = ()) -> str:
    """What is to be said of a flag that there is not."""
    if not name.startswith("config."):
        keys = [f"config.{key}" for key in flatten(default_config())] if "." in name else []
        near = find_nearest(name, OWN) or find_nearest(f"config.{name}", keys)
        return f"--{name} is no flag; {f'did you mean --{near}?' if near else 'see --help.'}"
    key, model = name.removeprefix("config."), "gnmt"
    if any(_gives_config(argv, n) for n in range(1, len(argv))):
        try:
            section = _read_config(argv).get("model", {})
        except (Exception, SystemExit) as error:  # there is no key of a config that cannot be read
            return _explain_file(error, argv)
        model = str(section.get("name", model)) if isinstance(section, ConfigDict) else model
    elif key in flatten(default_config()):
        return f"--{name} needs a config: name a config file (--config=configs/gnmt.py) or a run (--workdir=DIR)."
    return f"--{name} {explain_unknown(key, model)}"


def _read_config(argv: Sequence[str]) -> ConfigDict:
    """The config by itself, without what the command line changes of it; whatever its file raises comes through."""
    alone = [argv[0], *(arg for arg in argv[1:] if arg.startswith("--config="))]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=values, sys_argv=alone)
    values(alone)
    if isinstance(values.config, ConfigDict):
        return values.config
    with contextlib.suppress(AttributeError):
        values.config.to_dict()  # ml_collections keeps back an OSError, which comes at any use
    raise UserError(f"--config={_value_of(argv, 'config')}: its get_config() must return a ConfigDict.")


def _explain(error: BaseException, argv: Sequence[str]) -> str:
    """Turns the words of absl and ml_collections, or of the config's file, into the command line's own."""
    try:
        config = _read_config(argv)
    except (Exception, SystemExit) as own:
        return _explain_file(own, argv)
    defaults = flatten(config)
    given = [arg.removeprefix("--").partition("=") for arg in argv[1:] if arg.startswith(("--config.", "--noconfig."))]
    for name, _, _ in given:  # unknown keys first: the problem may only name a part of one
        if name.removeprefix("no").removeprefix("config.") not in defaults:
            return _explain_flag(name.removeprefix("no"), argv)
    for name, _, value in given:
        default = defaults[name.removeprefix("no").removeprefix("config.")]
        if not _fits(value, default):
            return f"--{name} must be of type {type(default).__name__} (like {default!r}), but is {value!r} instead."
    for name in [name for name in OWN if name != "config"]:
        text = _value_of(argv, name)
        if text is None:
            continue
        if name in WHOLE and not _fits(text, 0):
            return f"--{name} must be a whole number, but is {text!r} instead."
        if name == "host_timeout" and not _fits(text, 0.0):
            return f"--{name} must be a number of seconds, but is {text!r} instead."
        if name in ("json", "fresh", "debug") and f"--{name}={text}" in argv and not _fits(text, False):
            return f"--{name} stands alone, or must be true or false, but is {text!r} instead."
    return f"the command line: {error}"


def _explain_file(error: BaseException, argv: Sequence[str]) -> str:
    """What is wrong with a config's file, and where in it."""
    while "whilst parsing config file" in str(error) and error.__context__ is not None:
        error = error.__context__  # ml_collections and absl raise it anew, with a traceback for its words
    if isinstance(error, UserError):
        return str(error)
    value = _value_of(argv, "config") or ""
    path = value.partition(":")[0]
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == Path(path)]
    if isinstance(error, SyntaxError):
        lines = [error.lineno]
    where = f"{path}:{lines[-1]}" if lines and lines[-1] else path
    told = f"{type(error).__name__}: {error}".removesuffix(": ")
    return f"--config={value}: must be a Python file with a function get_config(), but fails at {where} ({told})."


def _fits(value: str, default: Any) -> bool:
    """Whether the text of a flag can be read as what the default is; of lists and the like anything may be."""
    if isinstance(default, bool):
        return value.lower() in ("true", "false", "t", "f", "0", "1", "yes", "no", "y", "n")
    if not isinstance(default, int | float):
        return True
    for read in (type(default), lambda text: int(text, 0)):  # absl takes 0x10, too
        with contextlib.suppress(ValueError):
            read(value)
            return True
    return False


def find_root(given: flags.FlagValues, argv: Sequence[str]) -> Path:
    """The run's folder, absolute."""
    if given.workdir:
        return Path(given.workdir).expanduser().absolute()
    file, _, preset = (_value_of(argv, "config") or "").partition(":")
    name = Path(file).stem
    return (Path("runs") / (f"{name}-{preset}" if preset else name)).absolute()
