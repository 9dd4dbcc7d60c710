"""Models that search together: other runs, and a language model, beside the run that translates."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from seq2seq_jax.config import load_config, require_search, takes_source
from seq2seq_jax.data.vocab import Vocab
from seq2seq_jax.decode.arpa import Arpa, read_arpa
from seq2seq_jax.decode.ngram import NGram, find_missing, make_ngram, ngram_decoder
from seq2seq_jax.decode.steps import Decoder, ensemble, fuse, language_model_decoder
from seq2seq_jax.errors import UserError
from seq2seq_jax.experiment import Experiment
from seq2seq_jax.interfaces import PyTree
from seq2seq_jax.modes.evaluate import load_run
from seq2seq_jax.modes.scoring import say
from seq2seq_jax.parallel.layout import Execution
from seq2seq_jax.provenance import hash_parameters
from seq2seq_jax.speech_checks import reads_speech
from seq2seq_jax.tasks.search import Program
from seq2seq_jax.vocabularies import AUTO, find_ngram, spell_pieces
from seq2seq_jax.workdir import Folder, list_members


def join_models(experiment: Experiment, params: PyTree, folder: Folder) -> tuple[Program, PyTree]:
    """What searches, and with which parameters: a run alone, or with those that its config names.

    Reads `config.decode.ensemble` (runs' folders or exported models, separated by commas; all count alike),
    `config.decode.language_model` and `config.decode.ngram`. They are laid out over the devices as the run itself is.

    Args:
        experiment: of the run.
        params: of its model.
        folder: of the run, where its own n-gram model is.

    Returns:
        The run's own program and `params`, where it names no others; else a program whose parameters are a tuple.

    Raises:
        UserError: a folder has no model, or one with other vocabularies.
    """
    program, keys = experiment.training.program, experiment.config.decode
    if names := list_ensemble(keys.ensemble):
        members = [load_member(name, experiment, "config.decode.ensemble") for name in names]
        for name, (member, _) in zip(names, members, strict=True):
            _check_member(name, member, experiment)
        programs = [program, *(member.training.program for member, _ in members)]
        program = _combine(programs, keys.ensemble_average)
        params = (params, *(own for _, own in members))
    if keys.language_model.strip():
        name, key = keys.language_model.strip(), "config.decode.language_model"
        member, own = load_member(name, experiment, key)
        if takes_source(member.config.model):
            raise UserError(
                f"{key}: {name} is a {member.config.model.name!r}, which reads a source; name a run of "
                "configs/language_model.py, or of configs/gpt.py:language_model."
            )
        _check_target(name, member, experiment, key)
        languages = (member.config.data.target, experiment.config.data.target)
        if len(set(languages)) > 1 and not experiment.vocabs.source.tags:  # one vocabulary may be of both
            raise UserError(
                f"{key}: {name} must be of {languages[1]}, which is searched for, but is of {languages[0]}."
            )
        program = _fuse(program, member, keys.language_model_weight)
        params = (params, own)
    if keys.ngram.strip():
        program, ngram = _fuse_ngram(program, experiment, folder)
        params = (params, ngram)
    return program, params


def list_ensemble(line: str) -> list[str]:
    """The folders that `decode.ensemble` names; an ensemble stands for its members."""
    given = [Path(name.strip()).expanduser() for name in line.split(",") if name.strip()]
    return [str(one) for path in given for one in (list_members(path) or [path])]


def digest_companions(experiment: Experiment, params: PyTree, folder: Folder) -> dict[str, Any]:
    """sha256 of what searched beside the run's own model, by the key that names it; {} where nothing did.

    Args:
        experiment, folder: the run's.
        params: those that searched, see `join_models`.
    """
    keys, found = experiment.config.decode, dict[str, Any]()
    if keys.ngram.strip():
        params, _ = params
        content = find_ngram(experiment.config, experiment.vocabs, folder).read_bytes()
        found["decode.ngram"] = hashlib.sha256(content).hexdigest()
    if keys.language_model.strip():
        params, own = params
        found["decode.language_model"] = hash_parameters(own)
    if names := list_ensemble(keys.ensemble):
        found["decode.ensemble"] = {name: hash_parameters(own) for name, own in zip(names, params[1:], strict=True)}
    return {"companions_sha256": found} if found else {}


def load_member(name: str, experiment: Experiment, key: str) -> tuple[Experiment, PyTree]:
    """Another run or exported model, on the devices of the first, and its parameters.

    Raises:
        UserError: there is none.
    """
    root = Path(name).expanduser().absolute()
    if not (root / "config.json").is_file():
        raise UserError(f"{key}: {root} has no model: name a run's folder, or one made by --mode=export.")
    config = load_config(root / "config.json")
    require_search(config, f"{key}: {root}")
    config.parallel, config.data.rows_multiple = experiment.config.parallel, experiment.config.data.rows_multiple
    found, restored = load_run(config, Folder(root))
    return found, restored.state.averaged


def _check_member(name: str, member: Experiment, first: Experiment) -> None:
    key = "config.decode.ensemble"
    if not takes_source(member.config.model):
        raise UserError(f"{key}: {name} is a language model: name it in config.decode.language_model instead.")
    _check_target(name, member, first, key)
    if reads_speech(member.config.model) != reads_speech(first.config.model):
        raise UserError(f"{key}: {name} reads another kind of source: models that search together read the same.")
    for audio in ("rate", "hop") if reads_speech(first.config.model) else ():
        if (own := member.config.audio[audio]) != (wanted := first.config.audio[audio]):
            raise UserError(f"{key}: {name} must have audio.{audio}={wanted}, as this model, but has {own} instead.")
    if member.vocabs.source.digest != first.vocabs.source.digest:
        raise UserError(f"{key}: {name} has another source vocabulary ({_tell(member, first, 'source')}); {_CURE}.")


def _check_target(name: str, member: Experiment, first: Experiment, key: str) -> None:
    if member.vocabs.target.digest != first.vocabs.target.digest:
        raise UserError(f"{key}: {name} has another target vocabulary ({_tell(member, first, 'target')}); {_CURE}.")


_CURE = "models that search together need the same one: train it with config.vocab.file=RUN/vocab/vocab.json"


def _tell(member: Experiment, first: Experiment, side: str) -> str:
    own, other = (getattr(each.vocabs, side) for each in (member, first))
    return f"{own.size} pieces, digest {own.digest[:12]}, not {other.size}, {other.digest[:12]}"


def _combine(programs: list[Program], average: str) -> Program:
    """The ensemble of programs on one mesh."""
    builds: list[Callable[[Execution], Decoder]] = [each.build for each in programs]

    def build(execution: Execution) -> Decoder:
        members = [each(execution) for each in builds]
        return ensemble(members, average=average, vocab_axes=execution.vocabulary.axes)

    return dataclasses.replace(programs[0], build=build, boxed=tuple(each.boxed for each in programs))


def _fuse(program: Program, member: Experiment, weight: float) -> Program:
    """A program with a language model beside it."""
    training, first = member.training, program.build

    def build(execution: Execution) -> Decoder:
        model, axes = training.model.clone(execution=execution), execution.vocabulary.axes
        size = model.config.target_vocab
        return fuse(first(execution), language_model_decoder(model, vocab_axes=axes, vocab_size=size), weight)

    return dataclasses.replace(program, build=build, boxed=(program.boxed, training.program.boxed))


def match_pieces(arpa: Arpa, vocab: Vocab) -> list[str]:
    """All pieces of a vocabulary as words of an n-gram model; says how many of them it does not list.

    Raises:
        UserError: it lists none.
    """
    pieces = spell_pieces(vocab, range(vocab.size))
    own = pieces[vocab.first_id :]
    missing = find_missing(arpa, own)
    if len(missing) == len(own):
        raise UserError(
            f"config.decode.ngram: {arpa.name} lists none of the vocabulary's {len(own)} pieces (such as {own[0]!r}); "
            "make it of text that is cut into these pieces."
        )
    if missing:
        say(f"config.decode.ngram: {arpa.name} lists {len(missing)} pieces not, such as {missing[0]!r}: they are <unk>")
    return pieces


def _fuse_ngram(program: Program, experiment: Experiment, folder: Folder) -> tuple[Program, NGram]:
    """A program with an n-gram model of the vocabulary's pieces beside it, and that model on all devices."""
    keys, vocab = experiment.config.decode, experiment.vocabs.target
    arpa = read_arpa(find_ngram(experiment.config, experiment.vocabs, folder))
    exported = not experiment.config.data.train  # whatever was named went along
    if keys.ngram.strip() == AUTO and arpa.order != keys.ngram_order and not exported:
        raise UserError(
            f"config.decode.ngram_order: must be {arpa.order}, as {folder.ngram} is, but is {keys.ngram_order}; or "
            "remove the file, and it is estimated again."
        )
    pieces = match_pieces(arpa, vocab)
    ngram = make_ngram(arpa, pieces, bos_id=vocab.bos_id, eos_id=vocab.eos_id, pad_id=vocab.pad_id)
    first, sizes = program.build, program.layout.mesh.shape

    def build(execution: Execution) -> Decoder:
        axes = execution.vocabulary.axes
        parts = math.prod(sizes[axis] for axis in axes)
        own = ngram_decoder(vocab_axes=axes, width=-(-vocab.size // parts) * parts)
        return fuse(first(execution), own, keys.ngram_weight)

    everywhere = jax.tree.map(lambda leaf: jax.device_put(leaf, program.place()), ngram)
    return dataclasses.replace(program, build=build, boxed=(program.boxed, jax.eval_shape(lambda: ngram))), everywhere
