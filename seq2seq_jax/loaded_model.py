"""A trained model in a program of your own: `seq2seq_jax.load`."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seq2seq_jax.config import check_config, default_config, load_config, require_search
from seq2seq_jax.errors import UserError
from seq2seq_jax.experiment import Experiment
from seq2seq_jax.modes.ensemble import join_models
from seq2seq_jax.modes.evaluate import load_run
from seq2seq_jax.provenance import count_parameters
from seq2seq_jax.serve.model_folder import read_card
from seq2seq_jax.speech_checks import require_mode
from seq2seq_jax.tasks.constraints import read_wish
from seq2seq_jax.tasks.engine import Engine
from seq2seq_jax.tasks.methods import check_count
from seq2seq_jax.tasks.translation import Candidate, Translation
from seq2seq_jax.tasks.vectors import SentenceEncoder
from seq2seq_jax.train.checkpoints import Restored
from seq2seq_jax.workdir import Folder, list_members, refuse_foreign


class LoadedModel:
    """A model that translates; made by `seq2seq_jax.load`.

    Searches are compiled when first needed, for every beam size and a few lengths and counts of sentences, and kept.
    A model of several target languages (trained with `config.data.target_tag`) uses the same ones for all of them.
    Runs on one device. May not be used by several threads at once.

    Attributes:
        path: the folder it was read from.
        config: its config, as nested dicts.
        card: the text of its README.md; empty for a run's folder, which has none.
        step: of training.
        targets: languages that it translates to; the tags `<2xx>` of its vocabulary where it was trained with them.
    """

    def __init__(self, path: Path, experiment: Experiment, restored: Restored):
        self.path = path
        self.config: dict[str, Any] = experiment.config.to_dict()
        self.card = read_card(path)
        self.step = restored.step
        self._experiment = experiment
        self._own_params = restored.state.averaged
        self._program, self._params = join_models(experiment, self._own_params, Folder(path))
        self._engines: dict[tuple[int | None, str], Engine] = {}
        self._recognise: Any = None
        data, tags = self.config["data"], experiment.vocabs.source.tags
        tagged = tuple(tag[1:] for tag in tags if tag.startswith("2"))
        self.targets: tuple[str, ...] = tagged if data["target_tag"] else (data["target"],)

    def __repr__(self) -> str:
        data = self.config["data"]
        return (
            f"LoadedModel({self.config['model']['name']}, {data['source']}-{data['target']}, "
            f"{count_parameters(self._params):,} parameters, step {self.step}, {str(self.path)!r})"
        )

    def translate(
        self,
        sentences: str | Sequence[str],
        beam_size: int | None = None,
        target: str | None = None,
        tags: Sequence[str] = (),
        wishes: Sequence[Mapping[str, Any] | None] | None = None,
    ) -> list[str]:
        """Translates one sentence or many.

            model.translate("The cat sleeps.", target="fr")  # a model of several target languages

        Args:
            sentences: plain text, one sentence each; a single string is one sentence.
            beam_size: of a beam search; by default the config's. 1 is greedy.
            target: the language to translate to, one of `targets`; by default the config's.
            tags: more tokens before every sentence, by their names without brackets, as `tag=` gave them to a corpus
                in training.
            wishes: what is asked of the output of each sentence, None for nothing of its own:
                `{"prefix": "Der", "must": ["Arzt"], "must_not": ["Doktor"]}`; see docs/search.md.

        Returns:
            As many translations, in their order; "" for a blank sentence.

        Raises:
            UserError: the model does not translate to this language, or its vocabulary has no such tag; or a wish
                cannot be met; or there is a `beam_size`, but `decode.method` is not "beam".
        """
        return [item.text for item in self._run(sentences, self._choose_size(beam_size), target, tags, wishes)]

    def transcribe(self, recordings: str | Sequence[str]) -> list[str]:
        """Writes down what is said in recordings, of a model that hears.

            model.transcribe(["a.wav", "b.flac"])

        Long recordings are cut at silences.

        Args:
            recordings: names of files; a single string is one file.

        Returns:
            As many transcripts, in their order; "" for one in which nobody speaks.

        Raises:
            UserError: the model reads text, or a file cannot be read.
        """
        from seq2seq_jax.data.audio import read_clip
        from seq2seq_jax.modes.transcribe import make_recognise
        from seq2seq_jax.serve.transcribe import transcribe_files

        rate, problems = self.config["audio"]["rate"], list[str]()
        require_mode(self._experiment.config, "transcribe")
        if self._recognise is None:
            self._recognise = make_recognise(self._experiment, self._program, self._params, self._own_params)
        recognise, longest = self._recognise
        found = transcribe_files(
            [recordings] if isinstance(recordings, str) else list(recordings),
            read=lambda name: read_clip(name, rate=rate),
            recognise=recognise,
            rate=rate,
            longest_s=longest,
            tell=problems.append,
            most=self.config["decode"]["rows"],
        )
        texts = [" ".join(segment.text for segment in item.segments) for item in found]
        if problems:
            raise UserError(problems[0])
        return texts

    def translate_nbest(
        self,
        sentences: str | Sequence[str],
        nbest: int,
        beam_size: int | None = None,
        target: str | None = None,
        tags: Sequence[str] = (),
        attention: bool = False,
        wishes: Sequence[Mapping[str, Any] | None] | None = None,
    ) -> list[list[Candidate]]:
        """The best so many candidates of each sentence, best first, with text, tokens, score and log-probability.

        Args:
            sentences: as for `translate`.
            nbest: how many; the search may find fewer.
            beam_size: of a beam search; at least `nbest`, and rounded up to a multiple of `decode.groups`.
            target, tags, wishes: as for `translate`.
            attention: also give the attention of each, `[T, S]`, and with it its alignment, where the model attends.

        Returns:
            A list for each sentence, in their order; empty for a blank one.
        """
        if nbest < 1:
            raise UserError(f"nbest must be at least 1, but is {nbest} instead.")
        size, of = self._choose_size(beam_size, nbest), "all" if attention else "none"
        found = self._run(sentences, size, target, tags, wishes, attention=of)
        return [item.candidates[:nbest] for item in found]

    def vectors(
        self, sentences: str | Sequence[str], target: str | None = None, tags: Sequence[str] = ()
    ) -> np.ndarray:
        """What the encoder makes of each sentence, `[N, D]` float32; of an ensemble the first model's.

        Without attention the last outputs of all layers, else the mean of the outputs: `tasks.vectors` says more.

        Args:
            sentences, target, tags: as for `translate`. A blank sentence gets the vector of its end.
        """
        require_mode(self._experiment.config, "vectors")
        lines = _list_sentences(sentences)
        return self._encoder.encode(self._own_params, lines, tags=self._list_tags(target, tags))[0]

    @functools.cached_property
    def _encoder(self) -> SentenceEncoder:
        training, decode = self._experiment.training, self.config["decode"]
        limits = {"rows": decode["rows"], "max_len": decode["max_source_len"]}
        return SentenceEncoder(training.program, training.model, self._experiment.vocabs, **limits)

    def _choose_size(self, beam_size: int | None, nbest: int = 1) -> int:
        """The beam, or how many outputs are drawn."""
        keys = self.config["decode"]
        check_count(keys, nbest, "nbest")
        if beam_size is not None and beam_size < 1:
            raise UserError(f"beam_size must be at least 1, but is {beam_size} instead.")
        if beam_size is not None and keys["method"] != "beam":
            raise UserError(
                f"beam_size must not be given to a model with decode.method={keys['method']!r}, but is {beam_size}: "
                "only 'beam' has one."
            )
        if keys["method"] == "beam":
            return max(nbest, beam_size or keys["beam_size"])
        return nbest if keys["method"] == "sampling" else 1

    def _list_tags(self, target: str | None, tags: Sequence[str]) -> tuple[str, ...]:
        """Names of the tokens before every sentence, in the order of training."""
        if isinstance(tags, str):
            raise UserError(f"tags must be a list of names, but is the string {tags!r} instead; write [{tags!r}].")
        if target is not None and target not in self.targets:
            raise UserError(f"target must be one of {', '.join(self.targets)}, but is {target!r} instead.")
        data = self.config["data"]
        return (*((f"2{target or data['target']}",) if data["target_tag"] else ()), *tags)

    def _run(
        self,
        sentences: str | Sequence[str],
        size: int,
        target: str | None,
        tags: Sequence[str],
        wishes: Sequence[Mapping[str, Any] | None] | None,
        attention: str = "none",
    ) -> list[Translation]:
        require_mode(self._experiment.config, "translate")
        lines = _list_sentences(sentences)
        if wishes is not None and len(wishes) != len(lines):
            raise UserError(f"wishes must be one for each of {len(lines)} sentences, but there are {len(wishes)}.")
        before = self._list_tags(target, tags)
        if (size, attention) not in self._engines:
            search = self._experiment.training.make_search(size)
            made = self._experiment.engine(search, attention=attention, program=self._program)
            self._engines[size, attention] = made
        translator = self._experiment.translator(tags=before, engine=self._engines[size, attention])
        asked = (
            None
            if wishes is None
            else [
                None if wish is None else read_wish(wish, where=f"wishes[{n}]", default=translator.wish)
                for n, wish in enumerate(wishes)
            ]
        )
        return translator.translate(self._params, lines, wishes=asked)


def _list_sentences(sentences: str | Sequence[str]) -> list[str]:
    lines = [sentences] if isinstance(sentences, str) else list(sentences)
    for line in lines:
        if not isinstance(line, str):
            raise UserError(f"sentences must be strings, but one is {line!r} instead.")
    return lines


def load_model(path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> LoadedModel:
    """Reads an exported model (`--mode=export`) or the best checkpoint of a run's folder, onto one device.

    Args:
        path: a folder; or several, of models with the same vocabularies, which search together as an ensemble: the
            first one's config says how. The folder of an ensemble (`--members`) stands for those of its members.

    Raises:
        UserError: there is neither, or it is damaged; or the vocabularies of several differ.
        NoUsableCheckpointError: all checkpoints of the run are damaged.
    """
    paths = [path] if isinstance(path, str | os.PathLike) else list(path)
    if not paths:
        raise UserError("paths must name at least one folder of a model, but there is none.")
    folders = [Path(each).expanduser().absolute() for each in paths]
    root, *others = [one for each in folders for one in (list_members(each) or [each])]
    refuse_foreign(root, "seq2seq_jax.load")
    if not (root / "config.json").is_file():
        raise UserError(f"{root}: there is no model here: name a folder made by --mode=export, or a run's folder.")
    config = load_config(root / "config.json")
    try:
        check_config(config)
    except UserError as error:
        raise UserError(f"{root / 'config.json'}: {error}") from error
    require_search(config, str(root))
    config.parallel = default_config().parallel
    config.parallel.data = 1
    if others:
        for other in others:
            if "," in str(other):
                raise UserError(f"{other}: a folder of an ensemble must have no comma in its path; rename or link it.")
        config.decode.ensemble = ",".join(map(str, others))
    return LoadedModel(root, *load_run(config, Folder(root)))
