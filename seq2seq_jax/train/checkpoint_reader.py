"""Reading checkpoints back: which step can be trusted, and what becomes of those that cannot.

Verified steps come first. A step without a manifest comes of a crash between commit and manifest, or its manifest was
lost, and then so may be more of it: it is used where no step can be verified, and set aside with the damaged otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from seq2seq_jax.errors import NoUsableCheckpointError, UserError
from seq2seq_jax.interfaces import PyTree
from seq2seq_jax.train.checkpoint_folder import QUARANTINE, describe_error, hear_all, is_primary, quarantine_step
from seq2seq_jax.train.manifest import (
    MANIFEST,
    Standing,
    Verdict,
    check_leaves,
    make_record,
    name_fields,
    read_manifest,
    take_fields,
    verify_manifest,
)


class Restored(NamedTuple):
    """A checkpoint that was read back: its state, what it says of itself, and whether its files could be verified."""

    step: int
    state: PyTree
    meta: dict[str, Any]
    metrics: dict[str, float] = {}
    verified: bool = True


class CheckpointReader:
    """Reads the steps in one folder.

    Args:
      directory: the folder.
      manager: Orbax's, of this folder.
      read_only: leave the folder as it is: damaged steps are skipped, not moved.
      warn: receives one line of text for every step that could not be used.
    """

    def __init__(
        self, directory: Path, manager: ocp.CheckpointManager, *, read_only: bool, warn: Callable[[str], None]
    ):
        self._directory, self._manager, self._read_only, self._warn = directory, manager, read_only, warn

    def restore(self, abstract_state: PyTree, order: Sequence[int], *, unverified: bool) -> Restored | None:
        """Reads the first verified step of `order`.

        The damaged ones before it are set aside, and those without a manifest that are newer than it.

        Args:
          abstract_state: what to read; see `Checkpoints.restore`.
          order: steps, the most wanted first.
          unverified: take the first one without a manifest that can be read, where none is verified.

        Returns:
          What was read, or None where there is no step, and none in the quarantine.

        Raises:
          UserError: the checkpoint is of another model.
          NoUsableCheckpointError: none of them can be used.
        """
        quarantine = self._directory / QUARANTINE
        reasons = [f"{path.name} is in {QUARANTINE}" for path in sorted(quarantine.glob("*"))]
        if not order and not reasons:
            return None
        doubtful: dict[int, str] = {}
        for step in order:
            verdict = self._verify(step)
            if verdict.standing is Standing.VERIFIED:
                try:
                    restored = self._read(step, abstract_state)
                except _UnreadableError as error:
                    verdict = Verdict(Standing.BAD, str(error))
                else:
                    for newer in (other for other in doubtful if other > step):
                        self._set_aside(newer, doubtful[newer], "cannot be verified")
                    return restored
            reasons.append(f"step {step}: {verdict.reason}")
            if verdict.standing is Standing.UNVERIFIED:
                doubtful[step] = verdict.reason
            else:
                self._set_aside(step, verdict.reason)
        for step, reason in doubtful.items() if unverified else ():
            try:
                restored = self._read(step, abstract_state)
            except _UnreadableError as error:
                self._set_aside(step, f"{reason}, and it cannot be read: {error}")
                continue
            if is_primary():
                self._warn(f"checkpoint of step {step} was read but could not be verified: {reason}")
            return restored._replace(verified=False)
        raise NoUsableCheckpointError(
            f"no checkpoint in {self._directory} is usable ({'; '.join(reasons)}). Put back a good copy, "
            "or start anew in another folder; training never restarts from step 0 by itself"
        )

    def _verify(self, step: int) -> Verdict:
        """Every host reads its share of the files; the worst that one finds goes for all."""
        share = (jax.process_index(), jax.process_count())
        own = verify_manifest(self._directory / str(step), step=step, share=share)
        verdicts = [Verdict(Standing(int(said[0])), said[1:]) for said in hear_all(f"{own.standing:d}{own.reason}")]
        return max(verdicts, key=lambda verdict: verdict.standing)

    def _read(self, step: int, abstract_state: PyTree) -> Restored:
        """Reads one step.

        Raises:
          UserError: it is of another model.
          _UnreadableError: it has no manifest, or is gone by now, and Orbax cannot read it. (A verified step is what
            was written: if that fails to load, the fault is elsewhere, and the error goes up as it is.)
        """
        folder, wanted = self._directory / str(step), name_fields(abstract_state)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(wanted), meta=ocp.args.JsonRestore())
        try:
            stored = self._manager.item_metadata(step)["state"].tree
            check_leaves(stored, abstract_state, folder=folder)
            found = self._manager.restore(step, args=items)
            told = read_manifest(folder) if (folder / MANIFEST).exists() else found["meta"]
            record = make_record(told["meta"], told["metrics"])
            return Restored(step, take_fields(abstract_state, found["state"]), record["meta"], record["metrics"])
        except UserError:
            raise
        except Exception as error:
            if (folder / MANIFEST).exists():
                raise
            raise _UnreadableError(describe_error(error)) from error

    def _set_aside(self, step: int, reason: str, what: str = "is damaged") -> None:
        """Moves a step that cannot be trusted to the quarantine under a name of its own."""
        done = "skipped"
        if not self._read_only:
            done = f"moved to {quarantine_step(self._directory, step)}, an older one is tried"
            self._manager.reload()
        if is_primary():
            self._warn(f"checkpoint of step {step} in {self._directory} {what} ({reason}): {done}")


class _UnreadableError(Exception):
    """A step without a manifest that Orbax cannot read."""
