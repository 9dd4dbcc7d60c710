"""A run's config: made, read back, checked and compared. The keys themselves stand in `keys.py`.

A file in `configs/` starts from `default_config()` and sets only what differs. On the command line:
`--config.train.steps=2000`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from seq2seq_jax.data.spec import change_names
from seq2seq_jax.data.whole_file import read_whole
from seq2seq_jax.errors import UserError
from seq2seq_jax.keys import DEFAULTS, RESUMABLE
from seq2seq_jax.model_keys import MODEL_KEYS
from seq2seq_jax.search_checks import check_search
from seq2seq_jax.speech_checks import check_speech, reads_speech, refuse_audio, require_only
from seq2seq_jax.suggestions import find_nearest, suggest
from seq2seq_jax.value_checks import check_value


def default_config(model: str = "gnmt") -> ConfigDict:
    """The default of every key.

    Args:
        model: whose keys `config.model` has; one of `MODEL_KEYS`.
    """
    return ConfigDict({**DEFAULTS, "model": MODEL_KEYS[model]})


def check_preset(preset: str, known: Sequence[str], file: str) -> None:
    """Refuses a preset that a config's file does not have.

    Args:
        preset: as it was asked for.
        known: what the file has, "" included.
        file: its name.

    Raises:
        UserError: names the preset that was meant, or all of them.
    """
    if preset not in known:
        named = ", ".join(filter(None, known))
        has = f"it has {named}, or none at all" if named else "it has none; leave it out"
        raise UserError(f"{file} has no preset {preset!r}; {has}{suggest(preset, known, form='{!r}')}")


def load_config(path: Path) -> ConfigDict:
    """Reads a run's saved config; keys that came after it was saved have their defaults, which change nothing.

    Raises:
        UserError: there is none, or it is not a config.
    """
    try:
        saved = _name_presets(json.loads(read_whole(path)))
        sections = default_config(saved["model"]["name"]).to_dict() if saved["model"]["name"] in MODEL_KEYS else {}
        given = {**sections, **{name: {**sections.get(name, {}), **keys} for name, keys in saved.items()}}
        for key, like in flatten(sections).items():
            section, _, name = key.rpartition(".")
            value = given[section][name]
            if type(value) is not type(like) and not (isinstance(like, float) and type(value) is int):
                raise ValueError(f"{key} must be of type {type(like).__name__}, but is {value!r}")
        return ConfigDict(given)
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no run here yet; give --config=configs/NAME.py to start one.") from error
    except (ValueError, TypeError, KeyError, AttributeError, OSError, RecursionError) as error:
        raise UserError(f"{path}: not a saved config ({error}); restore it, or start in another --workdir.") from error


def _name_presets(saved: dict[str, Any]) -> dict[str, Any]:
    """A saved config in today's terms: what it has of the numbers of "default" is that preset's."""
    decode = saved.get("decode", {})
    if "preset" in decode:
        return saved
    # Before there were presets, 0.6 and 0.2 were the defaults, saved as numbers. They are the preset's now, whose keys
    # stand at -1: left as they are, they would be a change of the config, and the run could not be gone on with.
    once = {"length_penalty": 0.6, "coverage_penalty": 0.2}
    return {**saved, "decode": decode | {key: -1.0 for key, number in once.items() if decode.get(key) == number}}


def takes_source(model: ConfigDict) -> bool:
    """Whether the model of these keys (`config.model`) reads a source; a language model does not."""
    return model.name != "language_model" and model.get("source", True)


def is_transformer(model: Mapping[str, Any]) -> bool:
    """Whether the model of these keys is a Transformer or of its kin, which attends to itself."""
    return "heads" in model and not reads_speech(model)


def has_search(model: ConfigDict) -> bool:
    """Whether the model of these keys has a decoder, which a search can run; a masked language model has none."""
    return model.name != "bert"


def require_search(config: ConfigDict, where: str) -> None:
    """Refuses a masked language model where something is to be searched for, or scored step by step.

    Args:
        config: of the run.
        where: what named it, such as "--mode=translate".

    Raises:
        UserError: its model has no decoder.
    """
    if not has_search(config.model):
        raise UserError(
            f"{where}: needs a model with a decoder, but this one is a {config.model.name!r}, a masked language model; "
            "it is trained, evaluated (--mode=evaluate) and the start of an encoder (--init_from)."
        )


def with_absolute_prefixes(config: ConfigDict) -> ConfigDict:
    """The config with the paths of its files absolute, so that the run can be gone on with from any folder."""
    config = ConfigDict(config.to_dict())
    for key in ("train", "dev", "test", "monolingual"):
        config.data[key] = change_names(config.data[key], _make_absolute)
    config.data.prepared = _make_absolute(config.data.prepared)
    for key in ("ensemble", "language_model"):
        config.decode[key] = ",".join(_make_absolute(name.strip()) for name in config.decode[key].split(","))
    config.vocab.file = ",".join(_make_absolute(name.strip()) for name in config.vocab.file.split(","))
    if config.decode.ngram:
        config.decode.ngram = _make_absolute(config.decode.ngram.strip())
    if config.train.init_from:
        config.train.init_from = str(Path(config.train.init_from).expanduser().absolute())
    return config


def _make_absolute(name: str) -> str:
    """A path made absolute; a name that is none ("auto", a data set of TFDS) as it is."""
    if name in ("phrasebook", "auto", "") or name.startswith("tfds:"):
        return name
    return str(Path(name).expanduser().absolute())


def hash_config(config: ConfigDict) -> str:
    """sha256 over the keys that must stay as they are on resume, those left out that have their default.

    A key that is new in a later version has a default that changes nothing: it does not change the hash, either.
    """
    defaults = flatten(default_config(config.model.name))
    kept = {
        key: value
        for key, value in sorted(flatten(config).items())
        if not is_free(key, RESUMABLE) and value != defaults.get(key)
    }
    kept["model.name"] = config.model.name
    return hashlib.sha256(json.dumps(kept).encode()).hexdigest()


def flatten(config: ConfigDict | Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key → value."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict | Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def vocab_sizes(config: ConfigDict) -> tuple[int, int]:
    """The sizes that are asked for, of the source's and the target's vocabulary; small corpora may give fewer."""
    keys = config.vocab
    return keys.size, keys.target_size or keys.size


def explain_unknown(key: str, model: str) -> str:
    """What is to be said of a key that a config does not have, behind its name: what may have been meant.

    Args:
        key: `section.key`, as it was written.
        model: the config's `model.name`.
    """
    defaults = default_config(model if model in MODEL_KEYS else "gnmt")
    known, (section, _, last) = list(flatten(defaults)), key.partition(".")
    others = [name for name, keys in MODEL_KEYS.items() if section == "model" and last in keys]
    if others:
        return f"is no key of the model {model!r}, only of {', '.join(others)}; leave it out."
    if key in defaults:
        first = next(iter(defaults[key]))
        return f"is a section, whose keys have values of their own; name one, such as config.{key}.{first}."
    # The right name in a wrong section, or in none, is what was meant, however far that is by its letters.
    tails = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]
    near = find_nearest(key, tails or known) or next(iter(tails), "")
    return f"is no key of a config; did you mean config.{near}?" if near else "is no key of a config."


def check_config(config: ConfigDict) -> None:
    """Refuses what can be seen to be wrong before anything is read or compiled.

    Raises:
        UserError: names the key, the rule, the value and the cure.
    """
    section = config.get("model")
    name = section.get("name") if isinstance(section, ConfigDict | Mapping) else None
    if not isinstance(name, str) or name not in MODEL_KEYS:
        hint = suggest(str(name), MODEL_KEYS, form="{!r}")
        raise UserError(f"config.model.name must be one of {', '.join(MODEL_KEYS)}, but is {name!r} instead{hint}")
    known, given = flatten(default_config(name)), flatten(config)
    for key in given:
        if key not in known:
            raise UserError(f"config.{key} {explain_unknown(key, name)}")
    for key, default in known.items():
        if key not in given:
            raise UserError(f"config.{key} is missing; its default is {default!r}.")
        check_value(key, given[key], default)
    if config.model.get("share_embeddings") == "all" and not config.vocab.joint:
        raise UserError(
            "config.model.share_embeddings must be 'target' or 'none' with config.vocab.joint=False, but is 'all' "
            "instead: one table cannot hold two vocabularies."
        )
    if config.sequence.objective == "reinforce" and config.sequence.proposals != "sample":
        raise UserError(
            "config.sequence.proposals must be 'sample' with config.sequence.objective='reinforce', but is "
            f"{config.sequence.proposals!r} instead: its gradient is that of samples; 'minimum_risk' takes both."
        )
    if config.sequence.objective != "none" and config.train.own_tokens:
        raise UserError(
            f"config.train.own_tokens must be 0 with config.sequence.objective={config.sequence.objective!r}, but is "
            f"{config.train.own_tokens} instead: scheduled sampling is for the likelihood alone."
        )
    if config.sequence.objective != "none" and config.sequence.proposals == "nbest":
        if config.sequence.candidates % config.decode.groups:
            raise UserError(
                f"config.decode.groups must divide config.sequence.candidates={config.sequence.candidates} with "
                f"config.sequence.proposals='nbest', but is {config.decode.groups} instead."
            )
    _check_batches(config)
    _check_layers(config)
    _check_positions(config)
    check_search(config.decode)
    check_speech(config)
    refuse_audio(config, DEFAULTS["audio"])
    if not has_search(config.model):
        _check_masked(config)
    elif config.data.source == config.data.target and takes_source(config.model) and not reads_speech(config.model):
        raise UserError(f"config.data.source and config.data.target must differ, but both are {config.data.source!r}.")


def _check_batches(config: ConfigDict) -> None:
    """Refuses keys of batches, their losses and epochs that contradict others."""
    data, keys, vocab = config.data, config.train, config.vocab
    if data.sentences_per_batch % data.rows_multiple:
        raise UserError(
            f"config.data.sentences_per_batch must be a multiple of config.data.rows_multiple={data.rows_multiple}, "
            f"but is {data.sentences_per_batch} instead: rows divide among devices."
        )
    if data.pack:
        _check_packing(config)
    if keys.loss_per != "token" and config.sequence.objective != "none":
        raise UserError(
            f"config.train.loss_per must be 'token' with config.sequence.objective={config.sequence.objective!r}, but "
            f"is {keys.loss_per!r} instead: sequence-level losses are means over sentences as they are."
        )
    if keys.schedule == "halving" and not keys.halve_every_epochs > 0:
        raise UserError(
            "config.train.halve_every_epochs must be more than 0 with config.train.schedule='halving', but is "
            f"{keys.halve_every_epochs} instead."
        )
    if vocab.target_size and (vocab.joint or vocab.target_size < 5):
        rule = "be 0 with config.vocab.joint=True" if vocab.joint else "be 0 or at least 5"
        raise UserError(f"config.vocab.target_size must {rule}, but is {vocab.target_size} instead.")


def _check_packing(config: ConfigDict) -> None:
    """Refuses what rows of several pairs cannot have."""
    others = {
        "data.sentences_per_batch": (0, "how many pairs a batch has follows from their lengths"),
        "data.curriculum_epochs": (0, "every row has long and short pairs"),
        "data.subword_sampling": (0.0, "a drawn segmentation is longer than the room that was planned for it"),
        "sequence.objective": ("none", "its candidates have a row each"),
    }
    require_only(config, others, beside="config.data.pack")
    model = config.model
    if not is_transformer(model):
        able = ", ".join(name for name, keys in MODEL_KEYS.items() if is_transformer(keys))
        raise UserError(
            f"config.data.pack must be False with config.model.name={model.name!r}, but is True instead: the pairs of "
            f"a row are kept apart by attention; models that can have it: {able}."
        )
    if model.get("linformer"):
        raise UserError(
            f"config.model.linformer must be 0 with config.data.pack, but is {model.linformer} instead: it mixes all "
            "of a row."
        )


def _check_layers(config: ConfigDict) -> None:
    """Refuses ways to run layers that the layers of the model do not have."""
    name, keys = config.model.name, config.parallel
    others: dict[str, tuple[str, ...]] = {
        "layers": ("wavefront",),
        "recurrence": ("kernel",),
    }  # of a Transformer and its kin; and of the others
    if reads_speech(config.model):
        others = {"layers": ("wavefront",), "recurrence": ("kernel",), "remat": ("dots",)}
    others = others if "heads" in config.model else {"layers": ("scanned",), "remat": ("dots", "full")}
    for key, values in others.items():
        if keys[key] in values:
            default = default_config(name).parallel[key]
            raise UserError(
                f"config.parallel.{key} must be {default!r} with config.model.name={name!r}, but is {keys[key]!r} "
                "instead: its layers know no such way."
            )


def _check_positions(config: ConfigDict) -> None:
    """Refuses texts that are longer than what is learned for every place."""
    model, data = config.model, config.data
    sides = {"max_source_len": data.max_source_len} if takes_source(model) else {}
    if has_search(model) and not model.get("linformer"):  # which is the encoder's alone
        sides["max_target_len"] = data.max_target_len
    longest = sum(sides.values()) if model.name == "gpt" else max(sides.values())  # GPT: one text after the other
    learned = model.get("positions") == "learned" or model.get("linformer")
    if learned and model.max_positions < longest:
        named = " + ".join(sides) if model.name == "gpt" else ", ".join(sides)
        raise UserError(
            f"config.model.max_positions must be at least {longest}, so long as texts may be (config.data: {named}), "
            f"but is {model.max_positions} instead; learn more places, or leave out long texts."
        )


def _check_masked(config: ConfigDict) -> None:
    """Refuses what a masked language model cannot have: it has no decoder."""
    others = {
        "train.patience_metric": ("loss", "it translates nothing that has a BLEU"),
        "train.own_tokens": (0.0, "it has no decoder's inputs"),
        "sequence.objective": ("none", "it has no outputs to reward"),
        "decode.ensemble": ("", "it searches for nothing"),
        "decode.language_model": ("", "it searches for nothing"),
    }
    require_only(config, others, beside=f"config.model.name={config.model.name!r}")
    keys = config.masked
    if not 0 < keys.share < 1:
        raise UserError(f"config.masked.share must be more than 0 and less than 1, but is {keys.share} instead.")
    if keys.mask + keys.random > 1:
        raise UserError(
            f"config.masked.random must be at most 1 - config.masked.mask={keys.mask}, but is {keys.random} instead: "
            "both are shares of the same tokens."
        )


def is_free(key: str, free: tuple[str, ...]) -> bool:
    """Whether a key is among `free`, or in a section that is: one that ends in a dot."""
    return any(key == name or (name.endswith(".") and key.startswith(name)) for name in free)


def check_resume(config: ConfigDict, saved: ConfigDict, path: Path, *, free: tuple[str, ...] = RESUMABLE) -> None:
    """Refuses a config that does not fit the saved one, naming every changed key.

    Args:
        config: the config now.
        saved: the config the run was started with.
        path: where that was saved, for the message.
        free: keys, or sections ending in a dot, that may differ.

    Raises:
        UserError: a key outside `free` differs.
    """
    new, old = flatten(config), flatten(saved)
    changed = [
        f"config.{key} (saved {old.get(key)!r}, now {new.get(key)!r})"
        for key in sorted(new.keys() | old.keys())
        if new.get(key) != old.get(key) and not is_free(key, free)
    ]
    if changed:
        raise UserError(
            f"{path}: this run was started with another config: {'; '.join(changed)}. "
            "Set them back, or start a new run with another --workdir."
        )
