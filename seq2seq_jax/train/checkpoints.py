"""Checkpoints that survive: saved in the background, verified before use, never lost to a bad disk.

Orbax writes the arrays and commits a step by renaming its folder. Around it:

    <directory>/<step>/               committed by Orbax ...
    <directory>/<step>/manifest.json  ... and verifiable: sizes and digests of all its files
    <directory>/quarantine/<step>     a step that was damaged; moved here, never deleted

Verified steps are used first, the newest first. A step without a manifest comes of a crash between the two, or its
manifest was lost, and then so may be more: it is used where no step can be verified, and set aside with the damaged
ones otherwise. Old steps are rotated by this module and not by Orbax, which removes the old step once the new one is
committed: here one is removed only after a newer one has its manifest. Metrics stand in the manifest, and the best step
is chosen from them.

Folders must be local or mounted, and the same for all hosts: files are renamed, synced and hashed in place.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import orbax.checkpoint as ocp

from seq2seq_jax.errors import UserError
from seq2seq_jax.failpoints import reach
from seq2seq_jax.interfaces import PyTree
from seq2seq_jax.memory import give_back_memory
from seq2seq_jax.train.checkpoint_folder import (
    agree_on,
    describe_error,
    is_primary,
    list_steps,
    prepare_folder,
    remove_steps,
    remove_unfinished,
    try_to_write,
)
from seq2seq_jax.train.checkpoint_reader import CheckpointReader, Restored
from seq2seq_jax.train.manifest import MANIFEST, make_record, name_fields, read_records, write_manifest
from seq2seq_jax.train.orbax_messages import silence_orbax
from seq2seq_jax.train.retention import Retention

MAX_FAILED_SAVES = 3
NOT_SAVED = "was not saved"


class Checkpoints:
    """The checkpoints of one run in one folder.

    Use it as a context manager, or call `close`: a save in the background is only certain then.

    Args:
      directory: the folder, made if need be. A relative path is fixed to the current directory now.
      keep_last: how many of the newest verified steps to keep.
      keep_best: how many of the best steps by `best_metric` to keep besides.
      keep_hours: keep the first step of every so many hours of training, too (`seconds` in `meta`); 0 is none.
      best_metric: the key in `metrics` that ranks steps.
      best_mode: whether a large ("max") or a small ("min") value is good.
      asynchronous: write in the background.
      read_only: leave the folder as it is (for a program that reads beside a running training):
        nothing is saved, cleaned, moved or adopted.
      warn: receives one line of text for everything that went wrong and was survived.

    Raises:
      UserError: the folder cannot be written to, or is a URL.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep_last: int = 2,
        keep_best: int = 1,
        keep_hours: float = 0.0,
        best_metric: str = "bleu",
        best_mode: Literal["max", "min"] = "max",
        asynchronous: bool = True,
        read_only: bool = False,
        warn: Callable[[str], None],
    ):
        self._retention = Retention(keep_last, keep_best, keep_hours, best_metric, best_mode)
        self.directory = prepare_folder(directory, read_only=read_only)
        self._asynchronous, self._read_only, self._warn = asynchronous, read_only, warn
        self._saving: tuple[int, dict[str, Any]] | None = None  # the step that Orbax is writing, and its record
        self._hashing: tuple[int, Future[None]] | None = None  # the step whose manifest is being made
        self._failed_saves = 0
        self._closed = False
        self._hasher = ThreadPoolExecutor(1, thread_name_prefix="manifest")
        silence_orbax()
        self._open_manager()

    def save(
        self, step: int, state: PyTree, *, meta: Mapping[str, Any], metrics: Mapping[str, float] | None = None
    ) -> bool:
        """Starts saving `state` and returns; buffers of `state` may be donated at once.

        Waits for an earlier save that is still under way.

        Args:
          step: the number of steps done; a step that exists already is not saved again.
          state: a pytree of jax arrays.
          meta: what else to remember, as JSON (examples consumed, digests, versions).
          metrics: scores of this state, for the choice of the best step.

        Returns:
          Whether a save was started (with `asynchronous` False: whether it was committed).

        Raises:
          UserError: this was the third save in a row that failed.
          TypeError: `meta` or `metrics` are not JSON.
        """
        if self._read_only or self._closed:
            raise ValueError(f"step {step} cannot be saved: {self.directory} is closed or was opened for reading only")
        record = make_record(meta, metrics or {})
        self.wait()
        if step in agree_on(self.steps()):
            return False
        items = ocp.args.Composite(state=ocp.args.StandardSave(name_fields(state)), meta=ocp.args.JsonSave(record))
        remove_unfinished(self.directory)  # writes that were still under way when one of them failed
        if problem := try_to_write(self.directory):  # Orbax leaves threads that wait for the folder it could not make
            self._note_failure(step, OSError(problem))
            return False
        try:
            reach("save", step)
            self._manager.save(step, args=items, force=True)
        except Exception as error:
            self._note_failure(step, error)
            return False
        reach("arrays", step)
        self._saving = step, record
        if not self._asynchronous:
            self.wait()
            return step in self.steps()
        return True

    def record_metrics(self, step: int, *, meta: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Gives a saved step the scores that were not known yet when it was saved; they stand in its manifest."""
        self.wait()
        if is_primary():
            try:
                reach("record", step)
                write_manifest(self._folder(step), step=step, record=make_record(meta, metrics))
            except OSError as error:
                self._warn(f"checkpoint of step {step} did not get its scores: {describe_error(error)}")

    def poll(self) -> None:
        """Looks after a save in the background; call it every step, it is cheap.

        A failed save is reported and cleaned away; a committed one gets its manifest; then old steps go.

        Raises:
          UserError: this was the third save in a row that failed.
        """
        if self._saving is not None and not self._manager.is_saving_in_progress():
            self._finish_save()
        if self._hashing is not None and self._hashing[1].done():
            self._finish_manifest()

    def wait(self) -> None:
        """Waits until a save under way is committed and has its manifest; raises as `poll` does."""
        if self._saving is not None:
            self._finish_save()
        if self._hashing is not None:
            self._finish_manifest()

    def restore(self, abstract_state: PyTree, *, step: int | None = None) -> Restored | None:
        """Reads back the newest verified checkpoint, or that of `step`.

        A step that is damaged, or newer than the one that is read and without a manifest, is moved to the quarantine
        with one warning. Where no step can be verified the newest that can be read is taken, with a warning.

        Args:
          abstract_state: `jax.ShapeDtypeStruct` leaves with the sharding to restore to, on any number of devices.
          step: restore this step and no other; it must be verified.

        Returns:
          The checkpoint, or None where there has never been one.

        Raises:
          UserError: the checkpoint is of another model (nothing is moved), or `step` does not exist.
          NoUsableCheckpointError: there are checkpoints, and all are damaged.
        """
        self.wait()
        steps = agree_on(self.steps())
        if step is not None and step not in steps:
            there = ", ".join(map(str, steps)) or "none"
            raise UserError(f"{self.directory} has no checkpoint of step {step}; it has those of {there}.")
        return self._restore(abstract_state, steps[::-1] if step is None else [step], unverified=step is None)

    def restore_best(self, abstract_state: PyTree) -> Restored | None:
        """Reads back the best verified checkpoint by `best_metric`; where none has a score, as `restore` does.

        Returns and raises what `restore` does; a damaged step is set aside, and the next best is tried.
        """
        self.wait()
        ranked = agree_on(self._rank())
        rest = [step for step in agree_on(self.steps())[::-1] if step not in ranked]
        return self._restore(abstract_state, ranked + rest, unverified=True)

    def _restore(self, abstract_state: PyTree, order: Sequence[int], *, unverified: bool) -> Restored | None:
        restored = self._reader.restore(abstract_state, order, unverified=unverified)
        if restored is not None and not restored.verified and not self._read_only:
            self._begin_manifest(restored.step, make_record(restored.meta, restored.metrics))
        return restored

    def steps(self) -> list[int]:
        """The committed steps, oldest first; read from the disk."""
        return list_steps(self.directory)

    def latest_step(self) -> int | None:
        """The newest committed step, or None."""
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """The step with the best `best_metric` (the newer one of equals) of those that have a manifest, or None."""
        return next(iter(agree_on(self._rank()[:1])), None)

    def is_whole(self, step: int) -> bool:
        """Whether a step is committed and has its manifest, as the first host sees it; all hosts must ask."""
        return bool(agree_on(list(read_records(self.directory, [step]))))

    def metrics(self, step: int) -> dict[str, float]:
        """The scores that were saved with a step; empty if none were or they cannot be read."""
        return read_records(self.directory, [step]).get(step, {}).get("metrics", {})

    def close(self) -> None:
        """Waits for the last save and its manifest; may be called twice, and after errors.

        Raises:
          UserError: this was the third save in a row that failed.
        """
        if self._closed:
            return
        self._closed = True
        try:
            self.wait()
        finally:
            self._hasher.shutdown()
            try:
                self._manager.close()
            except Exception as error:
                self._warn(f"closing the checkpoints in {self.directory} failed: {describe_error(error)}")
            if not self._read_only:
                remove_unfinished(self.directory)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            self.close()
        except UserError as error:
            if kind is None:
                raise
            self._warn(str(error))  # what ended the block is the news, not this

    def _folder(self, step: int) -> Path:
        return self.directory / str(step)

    def _open_manager(self) -> None:
        """Orbax as the writer alone: no rotation, no reading of old steps (damaged ones would raise here)."""
        options = ocp.CheckpointManagerOptions(
            create=False,
            lightweight_initialize=True,
            enable_async_checkpointing=self._asynchronous,
            read_only=self._read_only,
        )
        handlers = {"state": ocp.StandardCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)
        self._reader = CheckpointReader(self.directory, self._manager, read_only=self._read_only, warn=self._warn)

    def _reopen_manager(self) -> None:
        """Another Orbax after a failed save: the old one may still be writing, and would raise the same error again."""
        with contextlib.suppress(Exception):
            self._manager.close()
        self._open_manager()

    def _finish_save(self) -> None:
        if self._saving is None:
            return
        (step, record), self._saving = self._saving, None
        try:
            self._manager.wait_until_finished()
            if not self._folder(step).is_dir():
                raise RuntimeError("Orbax did not commit the step")
        except Exception as error:
            self._note_failure(step, error)
            return
        reach("commit", step)
        self._begin_manifest(step, record)

    def _begin_manifest(self, step: int, record: dict[str, Any]) -> None:
        if is_primary():
            self._hashing = step, self._hasher.submit(write_manifest, self._folder(step), step=step, record=record)
        else:
            self._failed_saves = 0
            give_back_memory()

    def _finish_manifest(self) -> None:
        if self._hashing is None:
            return
        (step, future), self._hashing = self._hashing, None
        try:
            future.result()
        except Exception as error:
            self._note_failure(step, error, "has no manifest")
            return
        self._failed_saves = 0
        give_back_memory()
        try:
            self._rotate()
        except OSError as error:
            self._warn(f"old checkpoints in {self.directory} cannot be removed: {describe_error(error)}")

    def _note_failure(self, step: int, error: Exception, what: str = NOT_SAVED) -> None:
        self._failed_saves += 1
        if what == NOT_SAVED:
            self._reopen_manager()
        remove_unfinished(self.directory)
        reason = describe_error(error)
        if self._failed_saves < MAX_FAILED_SAVES:
            self._warn(f"checkpoint of step {step} {what}, the next one is tried as usual: {reason}")
            return
        raise UserError(
            f"{self._failed_saves} checkpoints in a row could not be saved in {self.directory}: {reason}. Free disk "
            f"space or mend the folder's permissions, then start again: step {self.latest_step()} is the newest there"
        )

    def _rotate(self) -> None:
        """Removes the steps that need not be kept; not one whose manifest says nothing: it may be the best."""
        steps = self.steps()
        records = read_records(self.directory, steps)
        known = [step for step in steps if step in records or not (self._folder(step) / MANIFEST).exists()]
        remove_steps(self.directory, self._retention.find_old(known, records))

    def _rank(self) -> list[int]:
        """The steps that have a manifest and a finite `best_metric`, best first."""
        return self._retention.rank(read_records(self.directory, self.steps()))
