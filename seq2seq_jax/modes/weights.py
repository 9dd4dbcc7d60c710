"""Weights of features from a file: read, and matched to models and to the values of n-best lists."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seq2seq_jax.data.whole_file import read_whole
from seq2seq_jax.errors import UserError
from seq2seq_jax.modes.scoring import say


def read_weights(path: Path) -> dict[str, Any]:
    """What tuning wrote: `weights` (name → list of numbers) and `models` (name → what was told of it).

    Raises:
        UserError: the file cannot be read, or is not that.
    """
    try:
        found = json.loads(read_whole(path))
    except OSError as error:
        raise UserError(f"--weights={path}: cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"--weights={path}: not valid JSON ({error}).") from error
    weights, models = (found.get("weights"), found.get("models", {})) if isinstance(found, dict) else (None, {})
    if not isinstance(weights, dict) or not weights:
        raise UserError(f'--weights={path}: must be a JSON object with "weights", an object of lists by feature.')
    for name, values in weights.items():
        if not isinstance(values, list) or not all(type(v) in (int, float) and abs(v) < 1e300 for v in values):
            raise UserError(f"--weights={path}: the weights of {name!r} must be a list of finite numbers.")
    if not isinstance(models, dict) or not all(isinstance(told, dict) for told in models.values()):
        raise UserError(f'--weights={path}: its "models" must be an object of objects by feature.')
    return found


def name_feature(model: Path, taken: set[str]) -> str:
    """A name for a model's feature: that of its folder, with a number where the lists have it already."""
    stem = re.sub(r"[^A-Za-z0-9_.-]", "_", model.name) or "model"
    return next(name for n in range(1, len(taken) + 2) if (name := stem if n == 1 else f"{stem}_{n}") not in taken)


def name_models(
    models: Sequence[Path], given: dict[str, Any] | None, taken: set[str], *, weights: str | None, lists: str
) -> dict[str, Path]:
    """The feature of every model in the order of `--models` and `--channel`.

    Where weights are given that say of which models they are, a model gets the weight that was tuned for its path: two
    runs may have folders of one name.

    Args:
        models: folders of runs.
        given: what the file of weights says, if there is one.
        taken: the lists' own features.
        weights, lists: names of these files, for the messages.

    Raises:
        UserError: the weights were tuned with other models, or the lists have the feature of one already.
    """
    found: dict[str, Path] = {}
    tuned = {name: str(told.get("path")) for name, told in (given or {}).get("models", {}).items()}
    for path in models:
        if not tuned:
            found[name_feature(path, taken | found.keys())] = path
            continue
        names = [name for name, other in tuned.items() if other == str(path) and name not in found]
        if not names:
            raise UserError(
                f"--weights={weights}: was not tuned with the model {path}, but with "
                f'{", ".join(tuned.values())}; name these folders, or correct the paths under "models" in the file '
                "(--config.decode.ngram= leaves an n-gram model out)."
            )
        if names[0] in taken:
            raise UserError(
                f"{lists}: has a feature {names[0]!r} already, which --weights={weights} has for the "
                f"model {path}; give lists without it, or --models without this model."
            )
        found[names[0]] = path
    return found


def match_weights(
    given: dict[str, Any], columns: Sequence[tuple[str, int]], *, file: str | None, lists: str
) -> np.ndarray:
    """The weight of every column.

    Args:
        given: what the file of weights says.
        columns: name and number of every value of the lists, those of models included.
        file, lists: names of these files, for the messages.

    Raises:
        UserError: a feature has fewer or more weights than values, or one is of a model that is not there.
    """
    weights, there = given["weights"], Counter(name for name, _ in columns)
    unused = sorted(weights.keys() - there.keys())
    for name in unused:
        if name in given.get("models", {}):
            raise UserError(
                f"--weights={file}: has a weight for the model {name!r}, which --models does not name; name "
                "the folders that the weights were tuned with."
            )
    for name, count in there.items():
        if len(weights.get(name, ())) > count:
            raise UserError(
                f"--weights={file}: has {len(weights[name])} weights for feature {name!r}, of which "
                f"{lists} has {count} values; weights must be tuned on lists with the same features."
            )
    for name, n in columns:
        if n >= len(weights.get(name, ())):
            told = f"weight {n + 1} of" if name in weights else "weight for"
            raise UserError(
                f"--weights={file}: has no {told} feature {name!r} of {lists} or --models; weights "
                "must be tuned on lists with the same features."
            )
    for name in unused:
        say(f"--weights={file}: no hypothesis has the feature {name!r}")
    return np.array([weights[name][n] for name, n in columns], np.float64)
