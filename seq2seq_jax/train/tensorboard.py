"""The numbers of a run as TensorBoard reads them, beside metrics.jsonl."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seq2seq_jax.errors import UserError


def check_tensorboard() -> None:
    """Refuses where the package that writes the events is missing.

    Raises:
        UserError: it is.
    """
    if importlib.util.find_spec("tensorboardX") is None:
        raise UserError(
            "config.train.tensorboard=True needs the package tensorboardX, which is missing; "
            "install it: pip install 'seq2seq_jax[tensorboard]', or set the key to False."
        )


class TensorBoard:
    """Events in a folder; what was there is written anew, so that a resumed run shows no step twice.

    Args:
        folder: of the events of this one run.
    """

    def __init__(self, folder: Path):
        check_tensorboard()
        from tensorboardX import SummaryWriter

        if folder.is_dir():
            for path in folder.glob("events.out.tfevents.*"):
                path.unlink()
        self._writer = SummaryWriter(str(folder))

    def add(self, record: Mapping[str, Any]) -> None:
        """Writes the numbers of a record of metrics.jsonl: `train/loss`, `dev/bleu`, `skipped/in_a_row`."""
        if "step" not in record:
            return
        group = record.get("event", "train")
        for key, value in record.items():
            if key in ("step", "event") or value is None or isinstance(value, bool | list | Mapping):
                continue
            name = key.removeprefix(f"{group}_")
            self._writer.add_scalar(f"{group}/{name}", float(value), int(record["step"]))

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()
