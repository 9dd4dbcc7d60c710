"""The command line's flags, and one clear line for what is wrong with them. Imports nothing heavy."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from seq2seq_jax.config import default_config, flatten, suggest_key
from seq2seq_jax.errors import UserError

MODES = (
    "train", "evaluate", "translate", "transcribe", "describe", "plan",
    "score", "vectors", "rescore", "average", "compare", "export", "backtranslate", "prepare",
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
    "json": ("evaluate", "describe", "plan", "average", "backtranslate", "compare", "prepare", "rescore"),
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
}
"""Flags that only some modes read."""

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
    flags.DEFINE_integer("workers", 0, OWN["workers"], flag_values=values)
    flags.DEFINE_integer("members", None, OWN["members"], flag_values=values)
    for name in ("last", "best"):
        flags.DEFINE_integer(name, None, OWN[name], flag_values=values)
    flags.DEFINE_integer("nbest", 0, OWN["nbest"], flag_values=values)
    flags.DEFINE_string("coordinator", None, OWN["coordinator"], flag_values=values)
    for name in ("hosts", "host"):
        flags.DEFINE_integer(name, None, OWN[name], flag_values=values)
    flags.DEFINE_float("host_timeout", 60.0, OWN["host_timeout"], flag_values=values)
    for name in ("json", "fresh", "debug"):
        flags.DEFINE_boolean(name, False, OWN[name], flag_values=values)
    return values


def parse(argv: list[str]) -> flags.FlagValues:
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
    if not isinstance(values.config, ConfigDict) and not _needs_no_config(argv):
        raise UserError("--config must name a file whose get_config() returns a ConfigDict.")
    for name, modes in GOES_WITH.items():
        if values[name].value and values.mode not in modes:
            raise UserError(f"--{name} goes with --mode={' or '.join(modes)}, but the mode is {values.mode!r}.")
    if values.init_from:
        values.config.train.init_from = values.init_from
    return values


def _put_config_first(argv: list[str]) -> list[str]:
    """The command line with --config before its overrides; without one, the config saved in --workdir.

    Raises:
        UserError: there is neither, or the file does not exist.
    """
    config, workdir = _value_of(argv, "config"), _value_of(argv, "workdir")
    if config is not None:
        _check_config_file(config)
    elif _needs_no_config(argv) and (workdir is None or _value_of(argv, "mode") == "compare"):
        return argv
    elif workdir is None:
        raise UserError("--config is missing: name a config file (--config=configs/gnmt.py) or a run (--workdir=DIR).")
    else:
        saved = Path(workdir).expanduser() / "config.json"
        if not saved.exists():
            starts = _value_of(argv, "mode") in (None, "train", "prepare")
            cure = "give --config=configs/NAME.py to start one." if starts else "name the folder of a trained one."
            raise UserError(f"{saved}: there is no run in this --workdir; {cure}")
        config = f"{Path(__file__).with_name('saved_config.py')}:{saved}"
    rest = [arg for n, arg in enumerate(argv) if not _gives_config(argv, n)]
    return [rest[0], f"--config={config}", *rest[1:]]


def _needs_no_config(argv: Sequence[str]) -> bool:
    """Whether files or other runs are all that is worked on."""
    needed = {"compare": "input", "rescore": "models"}.get(_value_of(argv, "mode") or "")
    return needed is not None and _value_of(argv, needed) is not None


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
        key = name.removeprefix("config.")
        if key in flatten(default_config()):
            return f"--{name} needs a config: name a config file (--config=configs/gnmt.py) or a run (--workdir=DIR)."
        near = suggest_key(key, default_config())
        return f"--{name} is no key of this config" + (f"; did you mean --config.{near}?" if near else ".")
    near_flags = difflib.get_close_matches(name, OWN, n=1)
    return f"--{name} is no flag" + (f"; did you mean --{near_flags[0]}?" if near_flags else "; see --help.")


def _explain(problem: str, argv: Sequence[str]) -> str:
    """Turns the words of absl and ml_collections into the command line's own."""
    given = [arg.removeprefix("--").partition("=") for arg in argv[1:] if arg.startswith("--config.")]
    defaults = flatten(default_config()) | flatten(default_config("lstm"))
    for name, _, _ in given:  # unknown keys first: the problem may only name a part of one
        if name.removeprefix("config.") not in defaults:
            return _explain_unknown(name)
    for name, _, value in given:
        default = defaults[name.removeprefix("config.")]
        if not _fits(value, default):
            return f"--{name} must be of type {type(default).__name__} (like {default!r}), but is {value!r} instead."
    return f"the command line: {problem}"


def _fits(value: str, default: Any) -> bool:
    """Whether the text of a flag can be read as what the default is; of lists and the like anything may be."""
    if isinstance(default, bool):
        return value.lower() in ("", "true", "false", "t", "f", "0", "1", "yes", "no")
    if not isinstance(default, int | float):
        return True
    try:
        type(default)(value)
    except ValueError:
        return False
    return True


def find_root(given: flags.FlagValues, argv: Sequence[str]) -> Path:
    """The run's folder, absolute."""
    if given.workdir:
        return Path(given.workdir).expanduser().absolute()
    file, _, preset = (_value_of(argv, "config") or "").partition(":")
    name = Path(file).stem
    return (Path("runs") / (f"{name}-{preset}" if preset else name)).absolute()
