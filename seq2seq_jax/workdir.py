"""A run's folder: what lies where, and how one training claims it for itself."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from seq2seq_jax.errors import UserError
from seq2seq_jax.parallel.hosts import ALONE, Hosts

LOCK = ".lock"
MOST_MEMBERS = 1000
SHARED_WITHIN = 30.0
"""Seconds in which a shared disk shows to one host what another has written."""


@dataclasses.dataclass(frozen=True)
class Folder:
    """Where a run keeps its things."""

    root: Path

    @property
    def config(self) -> Path:
        """The config the run was started with."""
        return self.root / "config.json"

    @property
    def vocab(self) -> Path:
        """Folder of the vocabularies."""
        return self.root / "vocab"

    @property
    def ngram(self) -> Path:
        """The n-gram model of the training's target text, where `decode.ngram` is "auto"."""
        return self.root / "ngram.arpa"

    @property
    def prepared(self) -> Path:
        """Folder of the prepared training corpus, where --mode=prepare made one."""
        return self.root / "prepared"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.root / "checkpoints"

    @property
    def left_out(self) -> Path:
        """A sample of the training pairs that cleaning left out, JSON Lines."""
        return self.root / "left_out.jsonl"

    @property
    def metrics(self) -> Path:
        """Numbers of the training, JSON Lines."""
        return self.root / "metrics.jsonl"

    @property
    def profile(self) -> Path:
        """Traces of the steps that `train.profile_steps` names."""
        return self.root / "profile"

    @property
    def tensorboard(self) -> Path:
        """The numbers of the training as TensorBoard reads them."""
        return self.root / "tensorboard"

    @property
    def started(self) -> Path:
        """What was taken of another run, where this one started from it."""
        return self.root / "init_from.json"

    @property
    def results(self) -> Path:
        """What the run came to."""
        return self.root / "results.json"

    @property
    def evaluation(self) -> Path:
        """What `--mode=evaluate` leaves: results.json and outputs of its own."""
        return self.root / "evaluation"

    @property
    def outputs(self) -> Path:
        """Decoded outputs and pictures."""
        return self.root / "outputs"

    @property
    def members(self) -> Path:
        """How many members an ensemble has; only in the folder of one."""
        return self.root / "members.json"

    def has_begun(self) -> bool:
        """Whether there is a checkpoint, be it in the quarantine."""
        return any(any(self.checkpoints.glob(name)) for name in ("[0-9]*", "quarantine/*"))

    def remove_unfinished(self) -> None:
        """Removes the halves of files that a killed training was about to write; only for who has claimed the folder.

        Not those of other modes, which may be at work: they write to folders of their own.
        """
        for place in (self.root, self.vocab, self.outputs, *self.checkpoints.glob("[0-9]*")):
            for path in place.glob(".*.tmp"):
                path.unlink(missing_ok=True)


def find_compiled() -> str:
    """Where compiled programs are kept, so that a second start does not compile again: a folder, or a URL."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(home / "seq2seq_jax" / "compiled")


def list_members(root: Path) -> list[Path]:
    """The folders of an ensemble's members, in order; none where the folder is a run's or nothing yet.

    Raises:
        UserError: its members.json is damaged.
    """
    note = Folder(root).members
    if not note.is_file():
        return []
    try:
        count = json.loads(note.read_bytes())["members"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{note}: does not say how many members there are; train with --members=N again.") from error
    if type(count) is not int or not 2 <= count <= MOST_MEMBERS:
        rule = f"must say that there are 2 to {MOST_MEMBERS} members, but says {str(count)[:40]!r}"
        raise UserError(f"{note}: {rule}; train with --members=N again.")
    return [member_folder(root, n) for n in range(count)]


def refuse_foreign(path: Path, flag: str) -> None:
    """Refuses a file where the folder of a run is meant, such as the weights of another program.

    A pickle (.pt, .bin, .pkl, some .npz) can run any code when it is read, so none is.

    Args:
        path: what was named.
        flag: what named it, for the message.

    Raises:
        UserError: it is a file.
    """
    if path.exists() and not path.is_dir():
        raise UserError(
            f"{flag}: {path} is a file, and a folder is needed: that of a run, or one made by --mode=export, whose "
            "weights are model.safetensors. Files of other programs (.pt, .bin, .pkl, .npz) are not read: they can run "
            "code."
        )


def member_folder(root: Path, n: int) -> Path:
    """The folder of an ensemble's member n, which is a run's like any other."""
    return root / f"member-{n}"


@contextlib.contextmanager
def claim(root: Path, *, fresh: bool, hosts: Hosts = ALONE) -> Iterator[None]:
    """Holds the folder while a training uses it, on the first host for all; makes it if need be.

    Args:
        root: the folder, absolute.
        fresh: move what is in it to `<root>.old-<time>` and start anew.
        hosts: of this training.

    Raises:
        UserError: it cannot be written to, another training holds it, or not all hosts see it.
    """
    with _hold(root, fresh=fresh) if hosts.is_primary else contextlib.nullcontext():
        if hosts.count > 1:
            _check_shared(root, hosts)
        yield


def _check_shared(root: Path, hosts: Hosts) -> None:
    """The lock file holds a word that every host must be able to read."""

    def write_word() -> str:
        word = secrets.token_hex(8)
        (root / LOCK).write_text(word)
        return word

    word, until = hosts.share("word", write_word), time.monotonic() + SHARED_WITHIN
    while not (seen := _read_word(root) == word) and time.monotonic() < until:
        time.sleep(0.5)
    answers = hosts.gather("seen", str(seen))
    if "False" in answers:
        raise UserError(
            f"--workdir={root}: host {answers.index('False')} does not find there what host 0 has written; name a "
            "folder on a disk that all hosts share."
        )


def _read_word(root: Path) -> str:
    try:
        return (root / LOCK).read_text()
    except OSError:
        return ""


@contextlib.contextmanager
def hold_lock(folder: Path, *, flag: str, busy: str, name: str = LOCK) -> Iterator[int]:
    """Keeps a folder, which is made where there is none, for one process; gives the descriptor of its lock.

    Args:
        folder: what is kept.
        flag: how the user named it.
        busy: told, behind the folder, where another process has it.
        name: of the lock's file in it.

    Raises:
        UserError: the folder is held by another process, or cannot be written to.
    """
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(
                f"{flag}={folder}: cannot be written to ({error.strerror}); choose another folder."
            ) from error
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UserError(f"{flag}={folder}: {busy}") from error
            if _is_there(folder / name, handle):
                yield handle
                return
        finally:
            os.close(handle)


def _is_there(path: Path, handle: int) -> bool:
    """Whether an open file still has its name: a process that was refused may have removed it, with its folder."""
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _hold(root: Path, *, fresh: bool) -> Iterator[None]:
    busy = "another training is running in this folder; wait for it, stop it, or use another."
    new = [path for path in (root, *root.parents) if not path.exists()]
    with hold_lock(root, flag="--workdir", busy=busy):
        if fresh and any(path.name != LOCK for path in root.iterdir()):
            _move_aside(root)
        try:
            yield
        except UserError:
            if new and not Folder(root).config.exists():
                _remove_new(new)
            raise


def _remove_new(folders: Sequence[Path]) -> None:
    """Removes the folder of a run that was refused before it began, with its lock, which is still held.

    Args:
        folders: that the run made: its own, and those above.
    """
    mine = Folder(folders[0])
    shutil.rmtree(mine.vocab, ignore_errors=True)
    for path in (mine.left_out, mine.ngram, mine.root / LOCK):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # somebody put something there meanwhile
        for path in folders:
            path.rmdir()


def _move_aside(root: Path) -> None:
    """Moves the contents, not the folder: it may be a mount point, and the lock stays where it is."""
    old = root.with_name(f"{root.name}.old-{time.strftime('%Y%m%d-%H%M%S')}")
    old.mkdir()
    # Checkpoints first and the config last: a kill in between must not leave checkpoints without their config.
    for path in sorted(root.iterdir(), key=lambda path: (path.name == "config.json", path.name != "checkpoints")):
        if path.name != LOCK:
            path.rename(old / path.name)
