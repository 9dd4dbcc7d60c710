"""What the keys of a model that hears must be, seen before anything is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from seq2seq_jax.errors import UserError


def reads_speech(model: Mapping[str, Any]) -> bool:
    """Whether the model of these keys (`config.model`) hears: its sources are audio."""
    return "listener" in model


OF_TEXT = ("translate", "score", "vectors", "backtranslate", "prepare", "compare")
"""Modes whose sources are text."""


def require_mode(config: ConfigDict, mode: str) -> None:
    """Refuses a model that hears where text is read, and the other way round.

    Raises:
        UserError: the model and the mode do not go together.
    """
    hears, name = reads_speech(config.model), config.model.name
    if hears and mode in OF_TEXT:
        cure = "use --mode=transcribe." if mode == "translate" else "it goes with models that read text."
        raise UserError(f"--mode={mode}: needs a model that reads text, but this one ({name!r}) hears; {cure}")
    if not hears and mode == "transcribe":
        raise UserError(f"--mode=transcribe: needs a model that hears (las, ctc), but this one is a {name!r}.")


def require_only(config: ConfigDict, wanted: Mapping[str, tuple[Any, str]], *, beside: str) -> None:
    """Refuses other values than the wanted ones of keys (dotted → value, reason) beside what a config has."""
    for key, (only, why) in wanted.items():
        section, _, name = key.partition(".")
        if (value := config[section][name]) != only:
            raise UserError(f"config.{key} must be {only!r} with {beside}, but is {value!r} instead: {why}.")


def refuse_audio(config: ConfigDict, defaults: Mapping[str, Any]) -> None:
    """Refuses keys `audio` beside a model that reads text, where they would change nothing.

    Args:
        config: the run's.
        defaults: of the keys `audio`.

    Raises:
        UserError: one has another value than its default.
    """
    if not reads_speech(config.model):
        why = "it is for models that hear (las, ctc)"
        wanted = {f"audio.{key}": (value, why) for key, value in defaults.items()}
        require_only(config, wanted, beside=f"config.model.name={config.model.name!r}")


def parse_speeds(line: str) -> tuple[float, ...]:
    """`audio.speeds` as numbers; none where it is "".

    Raises:
        UserError: they are no speeds.
    """
    try:
        speeds = tuple(float(word) for word in line.split(",")) if line.strip() else ()
    except ValueError:
        speeds = (0.0,)
    if not all(0.5 <= speed <= 2.0 for speed in speeds):
        raise UserError(
            f"config.audio.speeds must be numbers from 0.5 to 2 separated by commas, such as '0.9,1.0,1.1', or '', but "
            f"is {line!r} instead."
        )
    return speeds


def check_speech(config: ConfigDict) -> None:
    """Refuses searches and scores of speech where nothing is heard, and what a model that hears cannot have.

    Raises:
        UserError: names the key, the rule, the value and the cure.
    """
    hears, name = reads_speech(config.model), config.model.name
    weights = {"audio.ctc_weight": config.audio.ctc_weight, "decode.ctc_weight": config.decode.ctc_weight}
    for key, weight in weights.items():
        if weight > 1:
            raise UserError(f"config.{key} must be at most 1, but is {weight} instead: it is a share.")
        if weight and not config.model.get("ctc_head", False):
            cure = "set config.model.ctc_head=True" if name == "las" else "only las has two ways to spell"
            raise UserError(f"config.{key} must be 0 without config.model.ctc_head, but is {weight} instead; {cure}.")
    if config.decode.method == "prefix_beam" and name != "ctc":
        raise UserError(
            f"config.decode.method must be 'beam' or another with config.model.name={name!r}, but is 'prefix_beam' "
            "instead: that is a search for CTC alone."
        )
    metrics = ("wer", "loss") if hears else ("bleu", "loss")
    if config.train.patience_metric not in metrics:
        raise UserError(
            f"config.train.patience_metric must be {' or '.join(map(repr, metrics))} with config.model.name={name!r}, "
            f"but is {config.train.patience_metric!r} instead."
        )
    taught = config.audio.ctc_weight
    if name == "las" and taught >= 1:
        raise UserError("config.audio.ctc_weight must be less than 1, but is 1: use configs/ctc.py for CTC alone.")
    if name == "las" and config.decode.ctc_weight and not taught:
        raise UserError(
            "config.decode.ctc_weight must be 0 with config.audio.ctc_weight=0, but is "
            f"{config.decode.ctc_weight} instead: what CTC was not taught it cannot score."
        )
    if hears:
        _check_recipe(config)
        _check_front_end(config)


def _check_recipe(config: ConfigDict) -> None:
    """Refuses what is for text alone."""
    wanted: dict[str, tuple[Any, str]] = {
        "data.pack": (False, "every utterance has a row"),
        "data.subword_sampling": (0.0, "it is for texts"),
        "data.reversed": (False, "audio cannot be a target"),
        "data.target_tag": (False, "audio has no tag"),
        "data.temperature": (1.0, "corpora of speech are joined as they are"),
        "vocab.joint": (True, "there is one vocabulary, of the transcripts"),
        "sequence.objective": ("none", "sequence-level training is for texts"),
        "train.loss_per": ("token", "CTC and cross-entropy are weighed by tokens"),
        "data.monolingual": ("", "back-translation is for texts"),
        "decode.must": ("", "words cannot be asked of what was said"),
        "decode.must_not": ("", "words cannot be forbidden of what was said"),
        "decode.prefix": ("", "transcripts have no prefix"),
    }
    if config.model.name == "ctc":
        wanted["train.own_tokens"] = (0.0, "CTC reads no tokens")
        wanted["train.label_smoothing"] = (0.0, "CTC has no wrong token of its own to smooth over")
    require_only(config, wanted, beside=f"config.model.name={config.model.name!r}")
    if config.decode.method == "minimum_bayes_risk":
        raise UserError(
            "config.decode.method must be 'beam' or another with a model that hears, but is 'minimum_bayes_risk' "
            "instead: it compares translations."
        )
    for key, value in config.clean.items():
        if value:
            raise UserError(f"config.clean.{key} must be off with a model that hears, but is {value!r}: it reads text.")
    parse_speeds(config.audio.speeds)


def _check_front_end(config: ConfigDict) -> None:
    """Refuses sizes of windows and filters that contradict each other."""
    keys = config.audio
    if not keys.hop <= keys.window <= keys.fft:
        raise UserError(
            f"config.audio.window must be at least hop={keys.hop} and at most fft={keys.fft}, but is {keys.window} "
            "instead (samples)."
        )
    if not keys.high and keys.low >= keys.rate / 2:
        raise UserError(
            f"config.audio.low must be less than half of config.audio.rate={keys.rate}, but is {keys.low} instead "
            "(hertz)."
        )
    if keys.high and not keys.low < keys.high <= keys.rate / 2:
        raise UserError(
            f"config.audio.high must be more than low={keys.low} and at most half of rate={keys.rate}, or 0, but is "
            f"{keys.high} instead (hertz)."
        )
    if keys.preemphasis >= 1 or keys.time_share > 1:
        name = "preemphasis" if keys.preemphasis >= 1 else "time_share"
        raise UserError(f"config.audio.{name} must be at most 1 (preemphasis: less), but is {keys[name]} instead.")
