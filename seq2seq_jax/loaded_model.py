"""A trained model in a program of your own: `seq2seq_jax.load`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seq2seq_jax.config import default_config, load_config
from seq2seq_jax.errors import UserError
from seq2seq_jax.experiment import Experiment, count_parameters
from seq2seq_jax.modes.evaluate import load_run
from seq2seq_jax.serve.model_folder import CARD
from seq2seq_jax.tasks.search import Decode
from seq2seq_jax.tasks.translation import Candidate, Translation
from seq2seq_jax.train.checkpoints import Restored
from seq2seq_jax.workdir import Folder


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
        self.card = (path / CARD).read_text(encoding="utf-8") if (path / CARD).is_file() else ""
        self.step = restored.step
        self._experiment = experiment
        self._params = restored.state.averaged
        self._searches: dict[int, Decode] = {}
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
    ) -> list[str]:
        """Translates one sentence or many.

            model.translate("The cat sleeps.", target="fr")  # a model of several target languages

        Args:
            sentences: plain text, one sentence each; a single string is one sentence.
            beam_size: of the search; by default the config's. 1 is greedy.
            target: the language to translate to, one of `targets`; by default the config's.
            tags: more tokens before every sentence, by their names without brackets, as `tag=` gave them to a corpus
                in training.

        Returns:
            As many translations, in their order; "" for a blank sentence.

        Raises:
            UserError: the model does not translate to this language, or its vocabulary has no such tag.
        """
        return [item.text for item in self._run(sentences, self._choose_beam(beam_size), target, tags)]

    def translate_nbest(
        self,
        sentences: str | Sequence[str],
        nbest: int,
        beam_size: int | None = None,
        target: str | None = None,
        tags: Sequence[str] = (),
    ) -> list[list[Candidate]]:
        """The best so many candidates of each sentence, best first, with text, tokens, score and log-probability.

        Args:
            sentences: as for `translate`.
            nbest: how many; the search may find fewer.
            beam_size: of the search; at least `nbest`.
            target, tags: as for `translate`.

        Returns:
            A list for each sentence, in their order; empty for a blank one.
        """
        if nbest < 1:
            raise UserError(f"nbest must be at least 1, but is {nbest} instead.")
        found = self._run(sentences, max(nbest, self._choose_beam(beam_size)), target, tags)
        return [item.candidates[:nbest] for item in found]

    def _choose_beam(self, beam_size: int | None) -> int:
        if beam_size is None:
            return self.config["decode"]["beam_size"]
        if beam_size < 1:
            raise UserError(f"beam_size must be at least 1, but is {beam_size} instead.")
        return beam_size

    def _list_tags(self, target: str | None, tags: Sequence[str]) -> tuple[str, ...]:
        """Names of the tokens before every sentence, in the order of training."""
        if isinstance(tags, str):
            raise UserError(f"tags must be a list of names, but is the string {tags!r} instead; write [{tags!r}].")
        if target is not None and target not in self.targets:
            raise UserError(f"target must be one of {', '.join(self.targets)}, but is {target!r} instead.")
        data = self.config["data"]
        return (*((f"2{target or data['target']}",) if data["target_tag"] else ()), *tags)

    def _run(
        self, sentences: str | Sequence[str], beam_size: int, target: str | None, tags: Sequence[str]
    ) -> list[Translation]:
        lines = [sentences] if isinstance(sentences, str) else list(sentences)
        for line in lines:
            if not isinstance(line, str):
                raise UserError(f"sentences must be strings, but one is {line!r} instead.")
        before = self._list_tags(target, tags)
        if beam_size not in self._searches:
            self._searches[beam_size] = self._experiment.training.search(beam_size=beam_size)
        search = self._searches[beam_size]
        translator = self._experiment.translator(beam_size=beam_size, tags=before, decode=search)
        return translator.translate(self._params, lines)


def load_model(path: str | os.PathLike[str]) -> LoadedModel:
    """Reads an exported model (`--mode=export`) or the best checkpoint of a run's folder, onto one device.

    Raises:
        UserError: there is neither, or it is damaged.
        NoUsableCheckpointError: all checkpoints of the run are damaged.
    """
    root = Path(path).expanduser().absolute()
    if not (root / "config.json").is_file():
        raise UserError(f"{root}: there is no model here: name a folder made by --mode=export, or a run's folder.")
    config = load_config(root / "config.json")
    config.parallel = default_config().parallel
    config.parallel.data = 1
    return LoadedModel(root, *load_run(config, Folder(root)))
