"""Command lines that are wrong, drawn from a seed: misspelt words, values that cannot be, flags of another mode.

Nothing here asks the package whether a case is wrong: what a key may be is written down from its comment in `keys.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from seq2seq_jax.command_line import MODES
from seq2seq_jax.config import default_config, flatten
from seq2seq_jax.keys import CHOICES
from seq2seq_jax.model_keys import MODEL_KEYS

LETTERS = "abcdefghijklmnopqrstuvwxyz_"
EDITS = ("deletion", "insertion", "substitution", "transposition")
HUGE = 10**30


@dataclasses.dataclass(frozen=True)
class Case:
    """One command line.

    Attributes:
        kind: the group it is counted in.
        args: the arguments; "{folder}" is the case's own.
        names: each must stand in the error; "a|b" is either.
        meant: what was misspelt and should be suggested; "" where nothing was.
        wrong: False where it is right, by accident or to see that not everything is refused.
        files: path in the case's folder → content.
        saved: a model and what of its config is changed in run/config.json; None: there is none.
        runner: "stub": what follows the parsing is left out; "start": but for what a training checks at its start;
            "real": nothing is left out.
    """

    kind: str
    args: tuple[str, ...]
    names: tuple[str, ...] = ()
    meant: str = ""
    wrong: bool = True
    files: tuple[tuple[str, str], ...] = ()
    saved: tuple[str, dict[str, Any]] | None = None
    runner: str = "start"


def misspell(word: str, edit: str, rng: random.Random) -> str:
    """The word with one edit in it."""
    at = rng.randrange(len(word))
    if edit == "deletion" and len(word) > 1:
        return word[:at] + word[at + 1 :]
    if edit == "insertion":
        return word[:at] + rng.choice(LETTERS) + word[at:]
    if edit == "transposition" and len(word) > 1:
        at = min(at, len(word) - 2)
        swapped = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        return swapped if swapped != word else misspell(word, "substitution", rng)
    other = rng.choice([letter for letter in LETTERS if letter != word[at].lower()])
    return word[:at] + other + word[at + 1 :]


def file_of(model: str) -> str:
    """The argument that names a model's config."""
    return f"--config=configs/{model}.py"


@functools.cache
def keys_of(model: str) -> dict[str, Any]:
    """Every key of a model's config, and its default."""
    return flatten(default_config(model))


def misspell_keys(rng: random.Random) -> Iterator[Case]:
    """Every key of every model with an edit in its name, and sections with one."""
    others = {f"model.{name}" for keys in MODEL_KEYS.values() for name in keys}
    for model in MODEL_KEYS:
        known = keys_of(model)
        for key, default in known.items():
            section, _, last = key.partition(".")
            in_section = rng.random() < 0.15
            edit = rng.choice(EDITS)
            wrong = f"{misspell(section, edit, rng)}.{last}" if in_section else f"{section}.{misspell(last, edit, rng)}"
            meant = "" if wrong in others | set(known) or wrong.endswith(".") else f"config.{key}"
            right = wrong in known and type(known[wrong]) is type(default) and known[wrong] == default
            if wrong in known and not right:
                continue  # the value of one key need not be one of the other
            if not right and rng.random() < 0.2:
                yield save_config(model, {wrong: default}, "misspelt key, saved", names=(wrong,), meant=meant)
                continue
            args = (file_of(model), f"--config.{wrong}={default}")
            yield Case("misspelt key", args, (f"config.{wrong}",), meant, wrong=not right)
        for key in ("", "x", "train", "model.name.x", "train.steps.steps", ".steps", "nothing.like.it", "Train.steps"):
            args = (file_of(model), f"--config.{key}=1")
            yield Case("unknown key", args, (f"config.{key}",))


def save_config(
    model: str, changes: dict[str, Any], kind: str, *, names: tuple[str, ...], meant: str = "", wrong: bool = True
) -> Case:
    """A case whose config is read back from a run's folder, where JSON can hold what no flag can."""
    return Case(kind, ("--workdir={folder}/run",), names, meant, wrong, saved=(model, changes))


def write_saved(model: str, changes: dict[str, Any]) -> str:
    """A saved config with changes: `section.key` → value."""
    config = default_config(model).to_dict()
    if model == "bert":  # its defaults are those of a translation; a masked model is scored by its loss
        config["train"] |= {"patience_metric": "loss"}
    if model in ("las", "ctc"):
        config["train"] |= {"patience_metric": "wer", "label_smoothing": 0.0}
    for key, value in changes.items():
        section, _, name = key.partition(".")
        config.setdefault(section, {})
        if not name:
            config[section] = value
        elif isinstance(config[section], dict):
            config[section][name] = value
    return json.dumps(config)


# Keys for which 0 is no number: there is no such size, rate or cadence.
ABOVE_ZERO = (
    "data.tokens_per_batch", "data.rows_multiple", "data.max_shapes", "data.max_source_len", "data.max_target_len",
    "data.prefetch", "data.held_out_pairs", "data.phrasebook_pairs", "data.shard_pairs", "data.temperature",
    "vocab.size", "vocab.character_coverage", "train.steps", "train.learning_rate", "train.accumulate",
    "train.own_tokens_steps", "train.own_tokens_passes", "train.log_every", "train.save_every", "train.evaluate_every",
    "train.keep_last", "train.max_skipped", "sequence.candidates", "audio.rate", "audio.hop", "audio.window",
    "audio.fft", "audio.mels", "audio.spoken_hours", "decode.beam_size", "decode.length_extra", "decode.groups",
    "decode.top_p", "decode.candidates", "decode.rows", "decode.max_source_len", "decode.ngram_order",
    "evaluate.dev_beam_size", "model.features", "model.encoder_layers", "model.decoder_layers", "model.layers",
    "model.embedding_features", "model.attention_features", "model.readout_features", "model.heads",
    "model.feed_forward", "model.max_positions", "model.reduction", "model.listener_layers", "model.listener_features",
    "model.kernel", "model.channels", "model.speller_layers", "model.location_filters", "model.location_width",
    "parallel.data", "parallel.fsdp", "parallel.stage", "parallel.tensor",
)  # fmt: skip
MAY_BE_NEGATIVE = ("decode.length_penalty", "decode.word_bonus")
# Shares, probabilities and factors: 1.5 cannot be.
SHARES = (
    "train.label_smoothing", "train.b1", "train.b2", "train.rho", "train.ema_decay", "train.own_tokens",
    "train.momentum", "train.decay_floor", "data.subword_sampling", "clean.letters", "clean.language", "model.dropout",
    "model.recurrent_dropout", "vocab.character_coverage", "decode.top_p", "masked.share", "masked.mask",
    "masked.random", "audio.preemphasis", "audio.time_share", "audio.ctc_weight", "decode.ctc_weight",
)  # fmt: skip
CODES = ("data.source", "data.target")
# What is named must be there.
PATHS = ("train.init_from", "decode.ensemble", "decode.language_model", "decode.ngram")


def wrong_values(key: str, default: Any, rng: random.Random) -> list[Any]:
    """What a key cannot be: text is as on the command line, all else as in JSON."""
    if isinstance(default, bool):
        return ["maybe", "2", "None", "", "[True]", "tru", "1.0", None, 1, 0.5, [], {}]
    if isinstance(default, int | float):
        number: list[Any] = ["x", "", "None", "nan", "[3]", "1,5", "1 2", "--5", None, [3], {"a": 1}, "text", True]
        number += [str(-HUGE), str(HUGE), HUGE, -HUGE, float("nan"), float("inf"), "inf", "-inf", "True"]
        number += [] if key in MAY_BE_NEGATIVE else [str(-rng.randint(2, 999)), -rng.randint(2, 10**9)]
        number += ["0", 0] if key in ABOVE_ZERO else []
        if isinstance(default, int):
            return [*number, "1.5", "1e3", "0.0", 1.5, str(2**31), str(2**63), "½"]
        return [*number, "1e39", "0.1.2", "-1e39", "1/2", *(["1.5", 1.5] if key in SHARES else [])]
    if key in CHOICES:
        choice = rng.choice(CHOICES[key])
        return ["", "None", choice.upper() + "!", f"{choice},{choice}", f" {choice}", "0", None, 3, [choice], True]
    if key == "model.name":
        return ["", "None", "rnn", None, 3, ["gnmt"], {}]
    texts: list[Any] = [None, 3, 1.5, True, ["x"], {"a": "b"}, "a\0b", "\ud800"]
    if key in CODES:
        return [*texts, "", "e n", "en,de", "en/de"]
    return [*texts, *(["/nonexistent/x", "None"] if key in PATHS else [])]


def set_wrong_values(rng: random.Random) -> Iterator[Case]:
    """Every key of every model with values that it cannot have, by flag or in a saved config."""
    for model in MODEL_KEYS:
        for key, default in keys_of(model).items():
            values = wrong_values(key, default, rng)
            for value in values:
                kind = f"wrong value, {type(default).__name__}"
                if isinstance(value, str) and not set(value) & {"\0", "\ud800"}:
                    args = (file_of(model), f"--config.{key}={value}")
                    yield Case(kind, args, (f"config.{key}", tell(value)))
                else:
                    names = (f"config.{key}|not a saved config", *(() if isinstance(value, dict) else [tell(value)]))
                    yield save_config(model, {key: value}, f"{kind}, saved", names=names)


def tell(value: Any) -> str:
    """How an error may write a value: as it was given, or as the number that it is."""
    ways = [repr(value), str(value)] if value != "" else ["''", "empty"]
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        number = float(value)
        ways += [str(number), f"{number:g}"]
        ways.append(str(int(value)))
    return "|".join(" ".join(way.split()) for way in ways if "|" not in way)


def misspell_choices(rng: random.Random) -> Iterator[Case]:
    """Values of keys that have a few, modes, presets and config files with an edit in them."""
    for key, known in CHOICES.items():
        models = [model for model in MODEL_KEYS if key in keys_of(model)]
        for choice in known:
            if key == "audio.augment" or len(choice) < 3:  # of two letters each: nothing is near
                continue
            wrong = misspell(choice, rng.choice(EDITS), rng)
            if wrong not in known:
                args = (file_of(rng.choice(models)), f"--config.{key}={wrong}")
                yield Case("misspelt value", args, (f"config.{key}", wrong), choice)
    for model in MODEL_KEYS:
        wrong = misspell(model, rng.choice(EDITS), rng)
        yield Case("misspelt config", (f"--config=configs/{wrong}.py",), ("--config", wrong), f"configs/{model}.py")
        yield Case("misspelt value", (file_of("gnmt"), f"--config.model.name={wrong}"), ("config.model.name",), model)
    for mode in MODES:
        wrong = misspell(mode, rng.choice(EDITS), rng)
        yield Case("misspelt value", (file_of("gnmt"), f"--mode={wrong}"), ("--mode", wrong), mode)
    for model, presets in PRESETS.items():
        for preset in presets:
            wrong = misspell(preset, rng.choice(EDITS), rng)
            if wrong not in presets:
                yield Case("misspelt preset", (f"{file_of(model)}:{wrong}",), (f"configs/{model}.py", wrong), preset)


# From the docstrings of configs/.
PRESETS = {
    "bert": ("multi30k", "multi30k_cpu", "base"), "ctc": ("an4", "conformer"), "gnmt": ("multi30k", "paper"),
    "gpt": ("multi30k", "language_model", "gpt2"), "las": ("an4", "paper", "librispeech"),
    "lstm": ("small", "paper", "paper_eight"), "rnnsearch": ("small", "paper"),
    "transformer": ("small", "multi30k", "multi30k_cpu", "base", "big", "deep_shallow"),
}  # fmt: skip


def draw(parts: Sequence[tuple[int, Callable[[random.Random], Iterator[Case]]]], count: int, seed: int) -> list[Case]:
    """So many cases: each part is gone through again and again, each time drawn anew, and gives its share.

    Args:
        parts: share and part.
        count: of cases.
        seed: of the draws.
    """
    rng, found, shares = random.Random(seed), list[Case](), sum(share for share, _ in parts)
    for number, (_, part) in enumerate(parts):
        before = round(count * sum(share for share, _ in parts[:number]) / shares)
        wanted = round(count * sum(share for share, _ in parts[: number + 1]) / shares) - before
        own = list[Case]()
        while len(own) < wanted:
            fresh = list(part(rng))
            rng.shuffle(fresh)
            own += fresh
        found += own[:wanted]
    return found
