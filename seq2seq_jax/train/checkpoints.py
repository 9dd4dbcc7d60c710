"""Checkpoints that survive: saved in the background, verified before use, never lost to a bad disk.

Orbax writes the arrays and commits a step by renaming its folder. Around it:

    <directory>/<step>/               committed by Orbax ...
    <directory>/<step>/manifest.json  ... and verifiable: sizes and digests of all its files
    <directory>/quarantine/<step>     a step that was damaged; moved here, never deleted

A step without a manifest comes of a crash between the two; it is usable, with a warning. Old steps are rotated by this
module and not by Orbax, which removes the old step once the new one is committed: here one is removed only after a
newer one has its manifest. Metrics travel in the step's record, and the best step is chosen from them.

Folders must be local or mounted, and the same for all hosts: files are renamed, synced and hashed in place.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import orbax.checkpoint as ocp

from seq2seq_jax.errors import NoUsableCheckpointError, UserError
from seq2seq_jax.interfaces import PyTree
from seq2seq_jax.train.checkpoint_folder import (
    QUARANTINE,
    agree_on,
    describe_error,
    drop_orbax_error,
    hear_all,
    is_primary,
    list_steps,
    prepare_folder,
    quarantine_step,
    remove_steps,
    remove_unfinished,
)
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
    write_manifest,
)

MAX_FAILED_SAVES = 3


class Restored(NamedTuple):
    """A checkpoint that was read back."""

    step: int
    state: PyTree
    meta: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run in one folder.

    Use it as a context manager, or call `close`: a save in the background is only certain then.

    Args:
      directory: the folder, made if need be. A relative path is fixed to the current directory now.
      keep_last: how many of the newest verified steps to keep.
      keep_best: how many of the best steps by `best_metric` to keep besides.
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
        best_metric: str = "bleu",
        best_mode: Literal["max", "min"] = "max",
        asynchronous: bool = True,
        read_only: bool = False,
        warn: Callable[[str], None],
    ):
        if keep_last < 1:
            raise UserError(f"keep_last must be at least 1, but is {keep_last}: a run could not resume")
        self.directory = prepare_folder(directory, read_only=read_only)
        self._keep_last = keep_last
        self._keep_best = keep_best
        self._best_metric = best_metric
        self._sign = 1.0 if best_mode == "max" else -1.0
        self._asynchronous, self._read_only, self._warn = asynchronous, read_only, warn
        self._saving: int | None = None  # the step that Orbax is writing
        self._hashing: tuple[int, Future[None]] | None = None  # the step whose manifest is being made
        self._records: dict[int, dict[str, Any]] = {}  # what was saved with each step: meta, metrics
        self._failed_saves = 0
        self._closed = False
        self._hasher = ThreadPoolExecutor(1, thread_name_prefix="manifest")
        logging.getLogger("absl").addFilter(drop_orbax_error)  # adding it again does nothing
        self._manager = self._open_manager()

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
        try:
            self._manager.save(step, args=items, force=True)
        except Exception as error:
            self._note_failure(step, error)
            return False
        self._saving = step
        self._records[step] = record
        if not self._asynchronous:
            self.wait()
            return step in self.steps()
        return True

    def record_metrics(self, step: int, *, meta: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Gives a saved step the scores that were not known yet when it was saved; they stand in its manifest."""
        self.wait()
        self._records[step] = make_record(meta, metrics)
        if is_primary():
            write_manifest(self._folder(step), step=step, record=self._records[step])

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
        """Reads back the newest usable checkpoint, or that of `step`.

        A damaged step is moved to the quarantine with one warning, and the next older one is tried.

        Args:
          abstract_state: `jax.ShapeDtypeStruct` leaves with the sharding to restore to, on any number of devices.
          step: restore this step and no other.

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
        quarantine = self.directory / QUARANTINE
        reasons = [f"{path.name} is in {QUARANTINE}" for path in sorted(quarantine.glob("*"))]
        if not steps and not reasons:
            return None
        for candidate in reversed(steps) if step is None else [step]:
            verdict = self._verify(candidate)
            if verdict.standing is not Standing.BAD:
                try:
                    return self._read(candidate, abstract_state, verdict)
                except _UnreadableError as error:
                    verdict = Verdict(Standing.BAD, str(error))
            reasons.append(f"step {candidate}: {verdict.reason}")
            self._set_aside(candidate, verdict.reason)
        raise NoUsableCheckpointError(
            f"no checkpoint in {self.directory} is usable ({'; '.join(reasons)}). Put back a good copy, "
            "or start anew in another folder; training never restarts from step 0 by itself"
        )

    def steps(self) -> list[int]:
        """The committed steps, oldest first; read from the disk."""
        return list_steps(self.directory)

    def latest_step(self) -> int | None:
        """The newest committed step, or None."""
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """The committed step with the best `best_metric` (the newer one of equals), or None."""
        return next(iter(agree_on(self._rank()[:1])), None)

    def metrics(self, step: int) -> dict[str, float]:
        """The scores that were saved with a step; empty if none were or they cannot be read."""
        return self._record(step).get("metrics", {})

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

    def _open_manager(self) -> ocp.CheckpointManager:
        """Orbax as the writer alone: no rotation, no reading of old steps (damaged ones would raise here)."""
        options = ocp.CheckpointManagerOptions(
            create=False,
            lightweight_initialize=True,
            enable_async_checkpointing=self._asynchronous,
            read_only=self._read_only,
        )
        handlers = {"state": ocp.StandardCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
        return ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)

    def _finish_save(self) -> None:
        step, self._saving = self._saving, None
        if step is None:
            return
        try:
            self._manager.wait_until_finished()
            if not self._folder(step).is_dir():
                raise RuntimeError("Orbax did not commit the step")
        except Exception as error:
            self._note_failure(step, error)
            return
        self._failed_saves = 0
        if is_primary():
            folder, record = self._folder(step), self._records[step]
            self._hashing = step, self._hasher.submit(write_manifest, folder, step=step, record=record)

    def _finish_manifest(self) -> None:
        if self._hashing is None:
            return
        (step, future), self._hashing = self._hashing, None
        try:
            future.result()
        except Exception as error:
            self._warn(f"checkpoint of step {step} is saved, but has no manifest: {describe_error(error)}")
            return
        self._rotate()

    def _note_failure(self, step: int, error: Exception) -> None:
        self._failed_saves += 1
        self._records.pop(step, None)
        remove_unfinished(self.directory, step)
        self._manager.reload()  # it counts a step as saved once it is begun
        reason = describe_error(error)
        if self._failed_saves < MAX_FAILED_SAVES:
            self._warn(f"checkpoint of step {step} was not saved, the next one is tried as usual: {reason}")
            return
        raise UserError(
            f"{self._failed_saves} checkpoints in a row could not be saved in {self.directory}: {reason}. Free disk "
            f"space or mend the folder's permissions, then start again: step {self.latest_step()} is the newest there"
        )

    def _rotate(self) -> None:
        """Removes steps older than the newest `keep_last` verified ones, except the best."""
        steps = self.steps()
        verified = [step for step in steps if (self._folder(step) / MANIFEST).exists()]
        if len(verified) < self._keep_last:
            return
        best = self._rank()[: self._keep_best]
        old = [step for step in steps if step < verified[-self._keep_last] and step not in best]
        remove_steps(self.directory, old)
        for step in old:
            self._records.pop(step, None)

    def _rank(self) -> list[int]:
        """The steps that have a finite `best_metric`, best first."""
        scores = {step: self.metrics(step).get(self._best_metric, math.nan) for step in self.steps()}
        finite = [step for step, score in scores.items() if math.isfinite(score)]
        return sorted(finite, key=lambda step: (self._sign * scores[step], step), reverse=True)

    def _record(self, step: int) -> dict[str, Any]:
        """What was saved beside the arrays of a step: memory, else manifest, else Orbax's own copy."""
        if step not in self._records:
            try:
                self._records[step] = read_manifest(self._folder(step))
            except (OSError, ValueError):
                try:  # not through Orbax, which would wait for all hosts to ask
                    self._records[step] = json.loads((self._folder(step) / "meta" / "metadata").read_text())
                except (OSError, ValueError):  # damaged or gone: it has no scores, and restore will say why
                    return {}
        return self._records[step]

    def _verify(self, step: int) -> Verdict:
        """Every host reads its share of the files; the worst that one finds goes for all."""
        own = verify_manifest(self._folder(step), step=step, share=(jax.process_index(), jax.process_count()))
        verdicts = [Verdict(Standing(int(said[0])), said[1:]) for said in hear_all(f"{own.standing:d}{own.reason}")]
        return max(verdicts, key=lambda verdict: verdict.standing)

    def _read(self, step: int, abstract_state: PyTree, verdict: Verdict) -> Restored:
        """Reads one step.

        Raises:
          UserError: it is of another model.
          _UnreadableError: it has no manifest and Orbax cannot read it. (A verified step is what was written:
            if that fails to load, the fault is elsewhere, and the error goes up as it is.)
        """
        wanted = name_fields(abstract_state)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(wanted), meta=ocp.args.JsonRestore())
        try:
            stored = self._manager.item_metadata(step)["state"].tree
            check_leaves(stored, abstract_state, folder=self._folder(step))
            found = self._manager.restore(step, args=items)
            told = read_manifest(self._folder(step)) if verdict.standing is Standing.VERIFIED else found["meta"]
            record = {"meta": told["meta"], "metrics": told["metrics"]}
        except UserError:
            raise
        except Exception as error:
            if verdict.standing is Standing.VERIFIED:
                raise
            raise _UnreadableError(f"{verdict.reason}, and it cannot be read: {describe_error(error)}") from error
        self._records[step] = record
        if verdict.standing is Standing.UNVERIFIED and is_primary():
            self._warn(f"checkpoint of step {step} was read but could not be verified: {verdict.reason}")
            if not self._read_only:
                self._hashing = step, self._hasher.submit(write_manifest, self._folder(step), step=step, record=record)
        return Restored(step, take_fields(abstract_state, found["state"]), record["meta"])

    def _set_aside(self, step: int, reason: str) -> None:
        """Moves a damaged step to the quarantine under a name of its own."""
        done = "skipped"
        if not self._read_only:
            done = f"moved to {quarantine_step(self.directory, step)}, an older one is tried"
            self._records.pop(step, None)
            self._manager.reload()
        if is_primary():
            self._warn(f"checkpoint of step {step} in {self.directory} is damaged ({reason}): {done}")


class _UnreadableError(Exception):
    """A step without a manifest that Orbax cannot read."""
