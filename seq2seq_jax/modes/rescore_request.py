"""What `--mode=rescore` is asked for: files, models and weights, refused before any work where they do not fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from seq2seq_jax.config import load_config, require_search, takes_source
from seq2seq_jax.errors import UserError
from seq2seq_jax.evaluate.corpus_metric import METRICS
from seq2seq_jax.speech_checks import reads_speech
from seq2seq_jax.vocabularies import AUTO
from seq2seq_jax.workdir import Folder, list_members

AVERAGE = "average"
"""The value of --weights that averages; a file of this name is `./average`."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What the command line asks for; files by their names.

    Attributes:
        lists: n-best lists, see `data.nbest`.
        output: receives the new lists; beside it come OUTPUT.1best and, where weights are tuned, OUTPUT.weights.json.
        source: the system's input, line N for segment N; what models read, except language models.
        reference: as many references; what weights are tuned and judged by.
        models: folders of runs.
        weights: a file of those of every feature, as tuning writes it; or `AVERAGE`; None tunes.
        metric: one of `METRICS`.
        channel: folders of runs of the other direction.
        ngrams: ARPA files of n-gram models, each with the run whose target vocabulary its words are of.
    """

    lists: str
    output: str
    source: str | None
    reference: str | None
    models: tuple[Path, ...]
    weights: str | None
    metric: str
    channel: tuple[Path, ...] = ()
    ngrams: Mapping[Path, Path] = dataclasses.field(default_factory=dict)

    def check(self) -> None:
        """Refuses what cannot work before anything is read or loaded."""
        if self.metric not in METRICS:
            raise UserError(f"--metric must be one of {', '.join(METRICS)}, but is {self.metric!r} instead.")
        if self.weights is None and self.reference is None:
            raise UserError(
                "--reference is missing: weights are tuned on references, or given by --weights=FILE.json or "
                "--weights=average."
            )
        if self.weights == AVERAGE and not self.models:
            raise UserError("--weights=average: there is no model to average with; name one by --models=RUN.")
        flagged = [("--models", model) for model in self.models] + [("--channel", model) for model in self.channel]
        for flag, model in flagged:
            if not (model / "config.json").is_file():
                raise UserError(f"{flag}: {model} has no model: name runs' folders, separated by commas.")
            if reads_speech(load_config(model / "config.json").model):
                raise UserError(
                    f"{flag}: {model} hears, and here texts are scored; name models of texts, or none by --models= "
                    "(the lists' own features, and config.decode.ngram)."
                )
            if self.source is None and (flag == "--channel" or reads_source(model)):
                raise UserError(f"--source is missing: {model} needs the sentences that the lists belong to.")
        if self.ngrams and self.weights == AVERAGE:
            raise UserError(
                "config.decode.ngram goes with weights that are tuned: an n-gram model has no share in an even "
                'average; leave out --weights=average, or set it to "".'
            )
        self._check_channel()

    def _check_channel(self) -> None:
        """Refuses models that are not of the other direction."""
        if self.channel and self.weights == AVERAGE:
            raise UserError(
                "--channel goes with weights that are tuned: a model of the other direction has no share in an even "
                "average; leave out --weights=average, or --channel."
            )
        spoken = {find_languages(model): model for model in self.models if reads_source(model)}
        written = {find_languages(model)[1]: model for model in self.models}
        for model in self.channel:
            if not reads_source(model):
                raise UserError(f"--channel: {model} is a language model, which reads no source; name it by --models.")
            if (languages := find_languages(model)) in spoken:
                raise UserError(
                    f"--channel: {model} must translate {languages[1]} to {languages[0]}, but is of "
                    f"{languages[0]} to {languages[1]} as {spoken[languages]} of --models is."
                )
            if written and languages[0] not in written:
                target, other = next(iter(written.items()))
                raise UserError(
                    f"--channel: {model} must read {target}, which {other} of --models writes, but reads "
                    f"{languages[0]} instead; name a model of the other direction."
                )


def read_request(config: ConfigDict | None, root: Path, flags: dict[str, str | None]) -> Request:
    """The flags `input`, `output`, `source`, `reference`, `models`, `channel`, `weights`, `metric` as a request.

    A config may name an n-gram model, too: `decode.ngram`, over the pieces of the run in `root`.

    Raises:
        UserError: one is missing or contradicts another.
    """
    lists, output, models = flags["input"], flags["output"], flags["models"]
    if not lists:
        raise UserError(
            "--input is missing: name a file of n-best lists, lines of `N ||| text ||| features ||| total`."
        )
    if not output:
        raise UserError("--output is missing: name the file that gets the new lists.")
    if flags["metric"] and flags["weights"] is not None and flags["reference"] is None:
        raise UserError("--metric goes with --reference: with --weights alone nothing is tuned or judged.")
    # An empty --models= is none at all: the lists' own features.
    paths = _find_runs([root.absolute()] if models is None else _read_paths(models))
    rest = (flags["source"], flags["reference"])
    channel = _find_runs(_read_paths(flags["channel"] or ""))
    request = Request(lists, output, *rest, paths, flags["weights"], flags["metric"] or "bleu", channel)
    if config is not None and (ngram := config.decode.ngram.strip()):
        run = _find_runs([root.absolute()])[0]  # of an ensemble the first, whose vocabulary is that of all
        file = Folder(run).ngram if ngram == AUTO else Path(ngram).expanduser().absolute()
        if ngram == AUTO and not file.is_file():
            cure = f"--mode=evaluate --config.decode.ngram={AUTO} makes it, or name an ARPA file"
            raise UserError(f"config.decode.ngram={AUTO}: {file} is not there; {cure}.")
        request = dataclasses.replace(request, ngrams={file: run})
    request.check()
    return request


def _read_paths(names: str) -> list[Path]:
    return [Path(name.strip()).expanduser().absolute() for name in names.split(",")] if names else []


def _find_runs(named: Sequence[Path]) -> tuple[Path, ...]:
    """The runs that are named; of an ensemble its members."""
    return tuple(one for path in named for one in (list_members(path) or [path]))


def reads_source(model: Path) -> bool:
    """Whether a run's model reads a source; a language model does not."""
    config = load_config(model / "config.json")
    require_search(config, str(model))
    return takes_source(config.model)


def find_languages(model: Path) -> tuple[str, str]:
    """What a run reads and what it writes."""
    keys = load_config(model / "config.json").data
    return keys.source, keys.target
