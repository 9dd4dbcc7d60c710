"""Translation data sets of TensorFlow Datasets, by random access and without TensorFlow.

    data.train = "tfds:wmt14_translate/fr-en"              the split "train"; dev: "validation", test: "test"
    data.train = "tfds:wmt14_translate/fr-en:train[:1%]"   a split, or a part of it

The data set must be prepared as array_record, in the folder that TFDS_DATA_DIR names or in ~/tensorflow_datasets.
Measured on one core: 16,000 pairs a second.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seq2seq_jax.errors import UserError

PREFIX = "tfds:"
_SPLITS = {"train": "train", "dev": "validation", "test": "test"}
_AT_ONCE = 1000


class TfdsText:
    """One split of a translation data set.

    Attributes:
        name: as the config gives it, with the split.
    """

    def __init__(self, spec: str, *, split: str, source: str, target: str) -> None:
        """Opens it.

        Args:
            spec: "tfds:NAME/CONFIG" or "tfds:NAME/CONFIG:SPLIT".
            split: "train", "dev" or "test", where `spec` has none.
            source, target: language codes, in any order of those that the data set has.

        Raises:
            UserError: there is no such data set, split or language, or it is not prepared.
        """
        dataset, _, part = spec.removeprefix(PREFIX).partition(":")
        part = part or _SPLITS[split]
        self.name = f"{PREFIX}{dataset}:{part}"
        self._languages = source, target
        builder = _make_builder(dataset, spec)
        self._inside = _find_languages(builder, self._languages, spec)
        self._records = _open_split(builder, dataset, part, spec)

    def __len__(self) -> int:
        return len(self._records)

    def read(self, numbers: Sequence[int]) -> tuple[list[str], list[str]]:
        """Sources and targets of these pairs, without blanks at their ends and without line ends."""
        sides: tuple[list[str], list[str]] = ([], [])
        for begin in range(0, len(numbers), _AT_ONCE):
            for record in _get(self._records, list(numbers[begin : begin + _AT_ONCE])):
                record = record[self._inside] if self._inside else record
                for lines, language in zip(sides, self._languages, strict=True):
                    lines.append(_clean(record[language]))
        return sides


def _get(records: Any, numbers: list[int]) -> Sequence[Any]:
    try:
        return records.__getitems__(numbers)
    except TypeError:  # the stand-in of tfds.testing.mock_data reads one by one
        return [records[number] for number in numbers]


def _clean(text: bytes | str) -> str:
    line = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    return line.replace("\n", " ").strip()


def _make_builder(dataset: str, spec: str) -> Any:
    import tensorflow_datasets as tfds
    import tensorflow_datasets.translate  # the data sets of WMT are known from here on

    try:
        return tfds.builder(dataset, data_dir=os.environ.get("TFDS_DATA_DIR"))
    except tfds.core.DatasetNotFoundError as error:
        raise UserError(
            f"{spec}: TFDS knows no data set {dataset.partition('/')[0]!r}, and none of this name is in {_folder()}."
        ) from error
    except (ValueError, AttributeError, RuntimeError) as error:
        known = sorted(getattr(_find_class(dataset), "builder_configs", {}))
        hint = f"it has {', '.join(known[:12])}{', ...' if len(known) > 12 else ''}." if known else str(error)
        raise UserError(f"{spec}: no configuration of the data set has this name; {hint}") from error


def _find_class(dataset: str) -> Any:
    import tensorflow_datasets as tfds

    try:
        return tfds.builder_cls(dataset.partition("/")[0])
    except (ValueError, tfds.core.DatasetNotFoundError):
        return None


def _find_languages(builder: Any, languages: tuple[str, str], spec: str) -> str:
    """The key under which a record has its sentences; "" where they are at the top."""
    features = builder.info.features or {}
    for key in ("", "translation"):
        level = features[key] if key and key in features else {} if key else features
        if all(language in level for language in languages):
            return key
    raise UserError(
        f"{spec}: has {', '.join(sorted(features)) or 'nothing'}, not {' and '.join(languages)}; set "
        "config.data.source and config.data.target to its languages, in any order."
    )


def _open_split(builder: Any, dataset: str, part: str, spec: str) -> Any:
    try:
        return builder.as_data_source(part)
    except ValueError as error:
        known = ", ".join(builder.info.splits) or "none"
        raise UserError(f"{spec}: no split {part!r} ({_first_line(error)}); there are {known}.") from error
    except (NotImplementedError, AssertionError, OSError) as error:
        command = (
            'python -c "import tensorflow_datasets as tfds, tensorflow_datasets.translate; '
            f"tfds.builder('{dataset}', data_dir={os.environ.get('TFDS_DATA_DIR')!r}, file_format='array_record')"
            '.download_and_prepare()"'
        )
        raise UserError(
            f"{spec}: not prepared as array_record in {_folder()}; run pip install importlib_resources "
            f"(TFDS asks for it) and {command}"
        ) from error


def _folder() -> str:
    return os.environ.get("TFDS_DATA_DIR") or str(Path.home() / "tensorflow_datasets")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
