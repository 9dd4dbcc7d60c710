"""The batch that takes most memory, and how it fits a number of devices; without any corpus."""

from __future__ import annotations

import math

from ml_collections import ConfigDict

from seq2seq_jax.config import has_search
from seq2seq_jax.errors import UserError
from seq2seq_jax.parallel.layout import fill_sizes


def longest_shape(config: ConfigDict) -> tuple[int, int, int]:
    """Rows, source and target length of the batch that takes most memory.

    Raises:
        UserError: the token budget holds not even the least rows of it.
    """
    data = config.data
    length = data.max_source_len + data.max_target_len
    if data.sentences_per_batch:
        return data.sentences_per_batch, data.max_source_len, data.max_target_len
    rows = data.tokens_per_batch // length // data.rows_multiple * data.rows_multiple
    if rows == 0:
        raise UserError(
            f"config.data.tokens_per_batch = {data.tokens_per_batch} is too small: {data.rows_multiple} rows of the "
            f"longest shape need {data.rows_multiple * length}; raise it, or lower config.data.max_source_len and "
            "config.data.max_target_len."
        )
    if data.pack:  # as many rows share all of the budget, split by the corpus' tokens: here by the limits
        source_len = round(data.tokens_per_batch // rows * data.max_source_len / length)
        return rows, source_len, data.tokens_per_batch // rows - source_len
    return rows, data.max_source_len, data.max_target_len


def most_slots(config: ConfigDict) -> int:
    """Slots that a batch has at most, of source and target; of the source alone where the model reads nothing else."""
    data, reads_target = config.data, has_search(config.model)
    if not data.sentences_per_batch and (reads_target or not data.pack):
        return data.tokens_per_batch
    return count_slots(config, *longest_shape(config))


def count_slots(config: ConfigDict, rows: int, source_len: int, target_len: int) -> int:
    """Slots of a batch of this shape that the model reads."""
    return rows * (source_len + (target_len if has_search(config.model) else 0))


def spread_batch(config: ConfigDict, devices: int) -> tuple[ConfigDict, str]:
    """The config with a batch for so many devices, and what was changed.

    A batch that already divides among the devices of the mesh stays; where only `rows_multiple` is in the way of a
    `sentences_per_batch`, that alone is set. Else `tokens_per_batch`, or `sentences_per_batch` where it counts, is
    taken for one device's.
    """
    wanted, data = _count_devices(config, devices), config.data
    if data.rows_multiple % wanted == 0:
        return config, ""
    config = ConfigDict(config.to_dict())
    if data.sentences_per_batch and data.sentences_per_batch % wanted == 0:
        config.data.rows_multiple = wanted
        return config, (
            f"the config's batch of {data.sentences_per_batch:,} sentences, in rows of multiples of "
            f"{data.rows_multiple}, planned in multiples of {wanted:,}; to train so, "
            f"--config.data.rows_multiple={wanted}"
        )
    key, unit = ("sentences_per_batch", "sentences") if data.sentences_per_batch else ("tokens_per_batch", "slots")
    size, multiple = data[key], data.rows_multiple
    config.data.update({"rows_multiple": wanted, key: size * wanted})
    return config, (
        f"the config's batch of {size:,} {unit}, rows in multiples of {multiple}, does not divide among {wanted:,} "
        f"devices: planned with {size:,} {unit} a device; to train so, --config.data.rows_multiple={wanted} "
        f"--config.data.{key}={size * wanted}"
    )


def _count_devices(config: ConfigDict, devices: int) -> int:
    """The size of the mesh that the config asks for."""
    keys = config.parallel
    sizes = [keys.data, keys.fsdp, *fill_sizes(keys.strategy, stage=keys.stage, tensor=keys.tensor)]
    fixed = math.prod(size for size in sizes if size > 0)
    return devices // fixed * fixed if -1 in sizes and fixed <= devices else fixed


def suggest_smaller(config: ConfigDict) -> str:
    """Keys that halve the batch, or shorten its sentences where it is as small as it can be."""
    data = config.data
    given = f"--config.data.rows_multiple={data.rows_multiple} " if data.rows_multiple != 8 else ""
    rows, tokens = data.sentences_per_batch // 2, data.tokens_per_batch // 2
    if rows and rows % data.rows_multiple == 0:
        return f"fewer sentences ({given}--config.data.sentences_per_batch={rows})"
    if not data.sentences_per_batch and tokens >= data.rows_multiple * (data.max_source_len + data.max_target_len):
        return f"fewer tokens ({given}--config.data.tokens_per_batch={tokens})"
    return "shorter sentences (--config.data.max_source_len, --config.data.max_target_len)"
