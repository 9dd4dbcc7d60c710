"""A run's config: made, read back, checked and compared. The keys themselves stand in `keys.py`.

A file in `configs/` starts from `default_config()` and sets only what differs. On the command line:
`--config.train.steps=2000`.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from seq2seq_jax.data.spec import change_names
from seq2seq_jax.errors import UserError
from seq2seq_jax.keys import AT_LEAST, CHOICES, DEFAULTS, MODEL_KEYS, RESUMABLE, SHARES


def default_config(model: str = "gnmt") -> ConfigDict:
    """The default of every key.

    Args:
        model: whose keys `config.model` has; one of `MODEL_KEYS`.
    """
    return ConfigDict({**DEFAULTS, "model": MODEL_KEYS[model]})


def load_config(path: Path) -> ConfigDict:
    """Reads a run's saved config; keys that came after it was saved have their defaults, which change nothing.

    Raises:
        UserError: there is none, or it is not a config.
    """
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        sections = default_config(saved["model"]["name"]).to_dict() if saved["model"]["name"] in MODEL_KEYS else {}
        return ConfigDict({**sections, **{name: {**sections.get(name, {}), **keys} for name, keys in saved.items()}})
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no run here yet; give --config=configs/NAME.py to start one.") from error
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise UserError(f"{path}: not a saved config ({error}); restore it, or start in another --workdir.") from error


def with_absolute_prefixes(config: ConfigDict) -> ConfigDict:
    """The config with the paths of its files absolute, so that the run can be gone on with from any folder."""
    config = ConfigDict(config.to_dict())
    for key in ("train", "dev", "test", "monolingual"):
        config.data[key] = change_names(config.data[key], _make_absolute)
    config.data.prepared = _make_absolute(config.data.prepared)
    config.vocab.file = ",".join(_make_absolute(name.strip()) for name in config.vocab.file.split(","))
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


def suggest_key(key: str, config: ConfigDict) -> str:
    """The known key that is most like a wrong one, as `section.key`, or ""."""
    known = list(flatten(config))
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    tail = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]
    return (tail or close or [""])[0]


def check_config(config: ConfigDict) -> None:
    """Refuses what can be seen to be wrong before anything is read or compiled.

    Raises:
        UserError: names the key, the rule, the value and the cure.
    """
    name = config.get("model", {}).get("name")
    if name not in MODEL_KEYS:
        raise UserError(f"config.model.name must be one of {', '.join(MODEL_KEYS)}, but is {name!r} instead.")
    known, given = flatten(default_config(name)), flatten(config)
    for key in given:
        if key not in known:
            near = suggest_key(key, default_config(name))
            raise UserError(f"config.{key} is no key of a config" + (f"; did you mean config.{near}?" if near else "."))
    for key, default in known.items():
        if key not in given:
            raise UserError(f"config.{key} is missing; its default is {default!r}.")
        _check_value(key, given[key], default)
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
    if config.data.source == config.data.target:
        raise UserError(f"config.data.source and config.data.target must differ, but both are {config.data.source!r}.")


def _check_value(key: str, value: Any, default: Any) -> None:
    numbers = isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool)
    if type(value) is not type(default) and not numbers:
        kind = type(default).__name__
        raise UserError(f"config.{key} must be of type {kind} (like {default!r}), but is {value!r} instead.")
    if key in CHOICES and value not in CHOICES[key]:
        near = difflib.get_close_matches(value, CHOICES[key], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise UserError(f"config.{key} must be one of {', '.join(CHOICES[key])}, but is {value!r} instead{hint}")
    if key in AT_LEAST and not value >= AT_LEAST[key]:
        raise UserError(f"config.{key} must be at least {AT_LEAST[key]}, but is {value} instead.")
    if key == "train.seed" and value >= 2**31:
        raise UserError(f"config.{key} must be less than 2**31, but is {value} instead.")
    if key == "vocab.character_coverage" and not 0.9 <= value <= 1:
        raise UserError(f"config.{key} must be between 0.9 and 1, but is {value} instead.")
    if key in SHARES and not 0 <= value < 1:
        raise UserError(f"config.{key} must be at least 0 and less than 1, but is {value} instead.")
    if key == "train.learning_rate" and not 0 < value < float("inf"):
        raise UserError(f"config.{key} must be more than 0, but is {value} instead.")


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
