"""Every section and key of a run's config, once, with what it means.

A file in `configs/` starts from `default_config()` and sets only what differs. On the command line:
`--config.train.steps=2000`. No key is None: each default has the type that its values have.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from seq2seq_jax.errors import UserError

RESUMABLE = (
    "parallel.",
    "train.steps",
    "train.save_every",
    "train.evaluate_every",
    "train.log_every",
)
"""Keys (or sections, ending in a dot) that may differ from the saved config when a run is resumed."""

MODEL_KEYS: dict[str, dict[str, Any]] = {
    "gnmt": {
        "name": "gnmt",
        "features": 128,  # width of embeddings, layers and attention values
        "encoder_layers": 2,  # the bottom one runs in both directions
        "decoder_layers": 2,
        "attention_features": 128,  # width of the hidden layer of the attention
        "attention_from": "current_step",  # or "previous_step", as the paper has it
        "share_embeddings": "all",  # one table; or "target" (target embedding = softmax), or "none" (three tables)
        "dropout": 0.1,
        "init_scale": 0.0,  # parameters are drawn uniformly from [-init_scale, init_scale]; 0: scaled by their inputs
        "dtype": "float32",  # of the products; or "bfloat16". Parameters and states are float32
    },
    "lstm": {
        "name": "lstm",
        "features": 128,
        "layers": 2,
        "reverse_source": True,
        "dropout": 0.1,
        "init_scale": 0.0,
        "dtype": "float32",
    },
}
"""The keys of `config.model`, by its `name`."""


_DEFAULTS: dict[str, dict[str, Any]] = {
    "data": {
        "train": "phrasebook",  # built-in corpus; or PREFIX of PREFIX.en and PREFIX.de (.gz too), or a .tsv
        "dev": "auto",  # a prefix; "auto" is the phrasebook's own split, or held out of train
        "test": "auto",  # likewise
        "source": "en",  # language codes: the endings of the files
        "target": "de",
        "phrasebook_pairs": 30000,  # training pairs that the built-in corpus makes
        "held_out_pairs": 1000,  # pairs in each of dev and test where "auto" holds them out, 5 % at most
        "tokens_per_batch": 2048,  # source plus target slots in a global batch, padding included
        "rows_multiple": 8,  # rows of every batch are multiples of it; the number of devices must divide it
        "max_shapes": 6,  # most shapes of a batch, and so most compilations of the step
        "max_source_len": 80,  # tokens with eos; longer training pairs are left out and counted
        "max_target_len": 80,
        "prefetch": 4,  # batches read ahead of the device
    },
    "vocab": {
        "kind": "sentencepiece",  # or "word", "char", "byte"
        "model": "unigram",  # or "bpe"; sentencepiece only
        "size": 1500,  # the four special ids included; an upper bound for small corpora
        "joint": True,  # one vocabulary for both sides
        "normalization": "nmt_nfkc",  # sentencepiece's rule, stored with the vocabulary
        "character_coverage": 1.0,
        "byte_fallback": False,  # spell unknown characters in bytes
    },
    "train": {
        "steps": 2000,  # global batches
        "seed": 0,
        "label_smoothing": 0.1,
        "optimizer": "adam",  # or "adamw", "sgd", "adam_then_sgd"
        "learning_rate": 0.003,  # the schedule's peak
        "schedule": "cosine",  # or "constant", "inverse_sqrt", "gnmt"
        "warmup_steps": 200,  # linear
        "decay_steps": 2000,  # "cosine": step at which the rate is at its floor; of its own, so that `steps` may change
        "decay_floor": 0.05,  # "cosine": share of the peak that stays
        "decay_start": 0,  # "gnmt": first halving
        "decay_every": 0,  # "gnmt": steps between halvings
        "decay_times": 0,  # "gnmt": most halvings
        "adam_steps": 0,  # "adam_then_sgd": steps before the change
        "adam_learning_rate": 0.0,  # "adam_then_sgd": constant rate until the change
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "weight_decay": 0.0,  # "adamw", on matrices
        "clip_norm": 5.0,  # global norm of the mean gradient; 0 is off
        "log_every": 50,
        "save_every": 500,  # steps between checkpoints
        "evaluate_every": 500,  # steps between evaluations on dev, each with a checkpoint
        "keep_last": 2,  # newest checkpoints kept besides the best one; at least 2, so that one may rot
        "max_skipped": 10,  # non-finite steps in a row before the run stops with exit code 3
    },
    "decode": {
        "beam_size": 5,
        "length_penalty": 0.6,  # GNMT's alpha; 0 is none
        "coverage_penalty": 0.2,  # GNMT's beta; 0 is none
        "length_factor": 2.0,  # longest output: factor x source tokens + extra
        "length_extra": 10,
        "rows": 64,  # sentences decoded at a time
        "max_source_len": 256,  # tokens; a longer input is cut there, with a warning
    },
    "evaluate": {
        "dev_beam_size": 1,  # beam for dev BLEU while training; 1 is greedy
        "dev_sentences": 500,  # the first ones of dev that are translated; 0 is all
        "samples": 5,  # translations shown at the end, each with a picture of its attention
    },
    "parallel": {  # sizes of the mesh; one of them may be -1, what is left of the devices
        "data": -1,  # devices that share a batch, each with all parameters
        "fsdp": 1,  # devices that share a batch and split parameters and optimizer state at rest
        "stage": 1,  # devices that the layers are spread over
        "tensor": 1,  # devices that split the vocabulary besides
        "strategy": "auto",  # rule table: "data_parallel", "fsdp", "balanced", "exact"; "auto" follows from the sizes
        "step": "auto",  # "shard_map" sends what it says, "jit" leaves that to the compiler; "auto": jit on one device
        "layers": "auto",  # how a stack runs: "in_order", or "wavefront"; "auto": wavefront over stages, else in order
        "chunks": 0,  # pieces that a wavefront cuts sequences into; 0 is four for every stage
    },
}
"""Every key but those of the model; `default_config` puts both together."""


def default_config(model: str = "gnmt") -> ConfigDict:
    """The default of every key.

    Args:
        model: whose keys `config.model` has; one of `MODEL_KEYS`.
    """
    return ConfigDict({**_DEFAULTS, "model": MODEL_KEYS[model]})


def load_config(path: Path) -> ConfigDict:
    """Reads a run's saved config.

    Raises:
        UserError: there is none, or it is not a config.
    """
    try:
        return ConfigDict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no run here yet; give --config=configs/NAME.py to start one.") from error
    except (ValueError, TypeError, AttributeError, OSError) as error:
        raise UserError(f"{path}: not a saved config ({error}); restore it, or start in another --workdir.") from error


def with_absolute_prefixes(config: ConfigDict) -> ConfigDict:
    """The config with the corpora's prefixes absolute, so that the run can be gone on with from any folder."""
    config = ConfigDict(config.to_dict())
    for split in ("train", "dev", "test"):
        if config.data[split] not in ("phrasebook", "auto", ""):
            config.data[split] = str(Path(config.data[split]).expanduser().absolute())
    return config


def hash_config(config: ConfigDict) -> str:
    """sha256 over the keys that must stay as they are on resume."""
    kept = {key: value for key, value in sorted(flatten(config).items()) if not key.startswith(RESUMABLE)}
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
    if config.data.source == config.data.target:
        raise UserError(f"config.data.source and config.data.target must differ, but both are {config.data.source!r}.")


_CHOICES = {
    "vocab.kind": ("sentencepiece", "word", "char", "byte"),
    "vocab.model": ("unigram", "bpe"),
    "vocab.normalization": ("nmt_nfkc", "nmt_nfkc_cf", "nfkc", "nfkc_cf", "identity"),
    "model.attention_from": ("previous_step", "current_step"),
    "model.share_embeddings": ("none", "target", "all"),
    "model.dtype": ("float32", "bfloat16"),
    "train.optimizer": ("adam", "adamw", "sgd", "adam_then_sgd"),
    "parallel.strategy": ("auto", "data_parallel", "fsdp", "balanced", "exact"),
    "parallel.step": ("auto", "jit", "shard_map"),
    "parallel.layers": ("auto", "in_order", "wavefront"),
    "train.schedule": ("constant", "inverse_sqrt", "cosine", "gnmt"),
}
_AT_LEAST = {
    "data.phrasebook_pairs": 100, "data.tokens_per_batch": 1, "data.rows_multiple": 1, "data.max_shapes": 1,
    "parallel.chunks": 0, "data.max_source_len": 2,
    "data.max_target_len": 2, "data.prefetch": 1, "data.held_out_pairs": 1, "vocab.size": 5, "model.features": 1,
    "model.encoder_layers": 1, "model.decoder_layers": 1, "model.layers": 1, "model.init_scale": 0,
    "model.attention_features": 1, "train.steps": 1, "train.seed": 0, "train.warmup_steps": 0, "train.clip_norm": 0,
    "train.log_every": 1, "train.save_every": 1, "train.evaluate_every": 1, "train.keep_last": 2,
    "train.max_skipped": 1, "train.weight_decay": 0, "decode.beam_size": 1, "decode.length_penalty": 0,
    "decode.coverage_penalty": 0, "decode.length_factor": 0, "decode.length_extra": 1, "decode.rows": 1,
    "decode.max_source_len": 2,
    "evaluate.dev_beam_size": 1, "evaluate.dev_sentences": 0, "evaluate.samples": 0,
}  # fmt: skip
_SHARES = ("train.decay_floor", "train.label_smoothing", "train.b1", "train.b2", "model.dropout")


def _check_value(key: str, value: Any, default: Any) -> None:
    numbers = isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool)
    if type(value) is not type(default) and not numbers:
        kind = type(default).__name__
        raise UserError(f"config.{key} must be of type {kind} (like {default!r}), but is {value!r} instead.")
    if key in _CHOICES and value not in _CHOICES[key]:
        near = difflib.get_close_matches(value, _CHOICES[key], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise UserError(f"config.{key} must be one of {', '.join(_CHOICES[key])}, but is {value!r} instead{hint}")
    if key in _AT_LEAST and not value >= _AT_LEAST[key]:
        raise UserError(f"config.{key} must be at least {_AT_LEAST[key]}, but is {value} instead.")
    if key == "train.seed" and value >= 2**31:
        raise UserError(f"config.{key} must be less than 2**31, but is {value} instead.")
    if key == "vocab.character_coverage" and not 0.9 <= value <= 1:
        raise UserError(f"config.{key} must be between 0.9 and 1, but is {value} instead.")
    if key in _SHARES and not 0 <= value < 1:
        raise UserError(f"config.{key} must be at least 0 and less than 1, but is {value} instead.")
    if key == "train.learning_rate" and not 0 < value < float("inf"):
        raise UserError(f"config.{key} must be more than 0, but is {value} instead.")


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
        if new.get(key) != old.get(key) and not key.startswith(free)
    ]
    if changed:
        raise UserError(
            f"{path}: this run was started with another config: {'; '.join(changed)}. "
            "Set them back, or start a new run with another --workdir."
        )
