"""What is seen to be wrong with a start before its folder is made and anything is read."""

from __future__ import annotations

import json
from pathlib import Path

from ml_collections import ConfigDict

from seq2seq_jax.config import has_search, takes_source
from seq2seq_jax.corpora import Corpus, Splits, list_specs
from seq2seq_jax.errors import NoUsableCheckpointError, UserError
from seq2seq_jax.experiment import Experiment, make_model, make_training
from seq2seq_jax.tasks.engine import SHORTEST_SOURCE
from seq2seq_jax.train.checkpoint_folder import list_steps
from seq2seq_jax.train.checkpoints import MAX_FAILED_SAVES
from seq2seq_jax.train.profiling import parse_profile_steps
from seq2seq_jax.train.tensorboard import check_tensorboard
from seq2seq_jax.vocabularies import AUTO
from seq2seq_jax.workdir import Folder, list_members


def check_start(config: ConfigDict, root: Path, *, trains: bool = True) -> None:
    """Refuses at once what would only be noticed later, when texts are read and a vocabulary is made.

    Args:
        config: of the run.
        root: its folder, where it may have begun.
        trains: on the devices that are here; False where corpora are prepared, for devices elsewhere.

    Raises:
        UserError: sizes, schedules or devices contradict each other, a corpus is not named as one is, there are not
            these steps to profile, or something that is named is not there.
    """
    if root.name == "checkpoints" and Folder(root.parent).config.is_file():
        raise UserError(f"--workdir={root}: is where a run keeps its checkpoints; name the run itself, {root.parent}.")
    sizes = (8, 8)  # what is checked is the same whatever the vocabulary's size
    for split in ("train", "dev", "test"):
        list_specs(config, split)
    _check_companions(config)
    begun = list_members(root) or Folder(root).has_begun()
    start = "" if begun else config.train.init_from  # which a run that has begun does not need any more
    if start and not Folder(Path(start).expanduser()).config.is_file():
        raise UserError(f"--init_from={start}: is no folder of a run, which has a config.json; name one.")
    if not trains:
        make_model(config, *sizes)
        return
    make_training(config, *sizes)
    if not config.train.epochs:
        check_profile(config)
    if config.train.tensorboard:
        check_tensorboard()


def check_steps(config: ConfigDict, folder: Folder) -> None:
    """Refuses fewer steps than the run has taken.

    Raises:
        UserError: names the key and the newest checkpoint.
    """
    newest = max(list_steps(folder.checkpoints), default=0) if folder.checkpoints.is_dir() else 0
    if config.train.steps < newest:
        raise UserError(
            f"config.train.steps must be at least {newest}, the step of the newest checkpoint in {folder.checkpoints}, "
            f"but is {config.train.steps} instead; raise it, or use another --workdir."
        )


def refuse_lost(config: ConfigDict, folder: Folder) -> None:
    """Refuses to start anew in a folder whose checkpoints have gone.

    Args:
        config: the run's.
        folder: where there is no checkpoint.

    Raises:
        NoUsableCheckpointError: the run has ended, or its log tells of more steps than it takes without any.
    """
    try:
        steps = [json.loads(line).get("step") or 0 for line in folder.metrics.read_bytes().splitlines()]
    except (OSError, ValueError, AttributeError, RecursionError):  # there is none, or it is refused in its turn
        steps = []
    last = max(steps, default=0)
    if folder.results.exists() or last > MAX_FAILED_SAVES * config.train.save_every:
        raise NoUsableCheckpointError(
            f"{folder.checkpoints} has no checkpoint, though this run has come to step {last}; put them back (is the "
            "disk there?), or start anew with --fresh, which moves this run aside."
        )


def check_profile(config: ConfigDict) -> None:
    """Refuses steps to profile that the run will not take.

    Raises:
        UserError: names the key.
    """
    try:
        parse_profile_steps(config.train.profile_steps, config.train.steps)
    except ValueError as error:
        raise UserError(str(error).replace("`train.profile_steps`", "config.train.profile_steps")) from error


def check_room(experiment: Experiment, corpus: Corpus, splits: Splits) -> None:
    """Refuses a model that learns a vector for every place, and has none for the places that dev and test will ask for.

    Raises:
        UserError: names the key, how many places it takes, and other ways out.
    """
    config, model, keys = experiment.config, experiment.config.model, experiment.config.decode
    linformer = bool(model.get("linformer"))
    if not (model.get("positions") == "learned" or linformer) or not has_search(model) or not takes_source(model):
        return
    counted = config.evaluate.dev_sentences or len(splits.dev)
    tested = max(map(len, experiment.vocabs.source.encode_many(splits.test.source)), default=0) + 1  # and eos
    most = min(max(tested, *corpus.dev.source_lengths[:counted].tolist(), 1), keys.max_source_len)
    padded = min(SHORTEST_SOURCE, keys.max_source_len)
    while padded < most:  # as `tasks.engine.make_table` has it
        padded = min(2 * padded, keys.max_source_len)
    room = experiment.training.make_search().longest(padded)
    longest = padded if linformer and model.positions != "learned" else max(padded, room)
    longest = padded + room if model.name == "gpt" else longest
    if longest > model.max_positions:
        raise UserError(
            f"config.model.max_positions must be at least {longest}, so that dev and test can be searched (sources of "
            f"up to {padded} tokens, outputs of up to {room}), but is {model.max_positions} instead; learn more "
            "places, or lower config.decode.max_source_len, length_factor or length_extra."
        )


def _check_companions(config: ConfigDict) -> None:
    """Refuses names of other runs and of an n-gram model that are not there."""
    decode = config.decode
    runs = [("decode.ensemble", name.strip()) for name in decode.ensemble.split(",")]
    for key, name in [*runs, ("decode.language_model", decode.language_model.strip())]:
        root = Path(name).expanduser().absolute()
        if name and not list_members(root) and not Folder(root).config.is_file():
            raise UserError(f"config.{key}: {root} has no model: name a run's folder, or one made by --mode=export.")
    ngram = decode.ngram.strip()
    if ngram not in ("", AUTO) and not Path(ngram).expanduser().is_file():
        raise UserError(f"config.decode.ngram: {ngram} is no file; name an ARPA file, or {AUTO!r}.")
