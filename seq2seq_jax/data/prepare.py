"""Makes a prepared corpus (`store`): text of any size, read piece by piece, cleaned, tokenised by many processes.

    files ── stream ──▶ pieces ──▶ workers: judge, encode, write ──▶ shards ──▶ index.json
                           │
                           ├── scan, where sentences are held out or duplicates left out: hashes of all pairs
                           └── sample, where there is no vocabulary yet: evenly spread pairs

A finished shard stays: a preparation that was killed goes on after it. Several hosts share the work by the number of
the shard; who finds all of them done writes the index.

What is checked: a file's size and time of change, and its sha256 where the time or the path differ and it is known,
that is, once the corpus is finished; the digest of every finished shard when a preparation goes on.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from seq2seq_jax.data.clean import SAMPLED
from seq2seq_jax.data.recipe import check_files, hash_recipe, refuse_other_recipe, stat_file
from seq2seq_jax.data.shard_worker import ALL_REASONS, Work, make_shard
from seq2seq_jax.data.sources import ParallelText, make_text
from seq2seq_jax.data.store import INDEX, Index, Part, Shard, choose_dtype, find_damage, is_complete, shard_files
from seq2seq_jax.data.streams import stream
from seq2seq_jax.data.survey import Findings, Order, sample, scan
from seq2seq_jax.data.vocab import Vocabs
from seq2seq_jax.data.whole_file import read_whole, write_whole
from seq2seq_jax.data.worker_pool import Call, PoolProgress, WorkerPool
from seq2seq_jax.errors import UserError

_STAT = ("path", "size", "mtime_ns")


def prepare(order: Order, content: dict[str, Any], obtain: Callable[[ParallelText | None], Vocabs]) -> Index | None:
    """Makes what is not there yet of a prepared corpus.

    Args:
        order: what to prepare.
        content: what a training compares with its own config, see `corpora.describe_prepared`.
        obtain: makes the vocabularies of sampled training text and leaves them in FOLDER/vocab; called with None
            where a shard shows that they are there already.

    Returns:
        The index, or None where other hosts have shards to make yet.

    Raises:
        UserError: a text cannot be read, the folder has a corpus of another recipe, a file was changed.
    """
    folder = order.folder
    recipe = {**content, "shard_pairs": order.shard_pairs}
    (folder / "shards").mkdir(parents=True, exist_ok=True)
    with _claim(folder, order.host):
        files = [stat_file(path) for corpus in order.corpora for path in corpus.paths]
        paths = [entry["path"] for entry in files]
        if is_complete(folder) and (index := _check_complete(order, recipe, paths)) is not None:
            return index
        recipe = _begin(folder, recipe, files)
        _remove_leavings(order)
        with WorkerPool(order.workers, Work(folder, order.corpora, order.rules, order.turned)) as pool:
            findings = scan(order, hash_recipe(recipe), pool)
            begun = any((folder / "shards").glob("[0-9]*.json"))
            if order.needs_sample or begun:
                vocabs = obtain(None if begun else sample(order, findings, pool))
            else:
                vocabs = obtain(make_text([], [], name="no text"))
            recipe["vocab_sha256"] = vocabs.digest
            shards = _Shards(order, hash_recipe(recipe), findings)
            if not shards.make(pool):
                return None
        for entry in files:
            entry["sha256"] = shards.digests[entry["path"]]
        return _finish(order, recipe, vocabs, shards.notes, files)


@contextlib.contextmanager
def _claim(folder: Path, host: int) -> Iterator[None]:
    """One preparation a host number at a time."""
    with open(folder / f".host-{host}.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"{folder}: another --mode=prepare with --host={host} is at work here; wait for it, or stop it."
            ) from error
        yield


def _check_complete(order: Order, recipe: dict[str, Any], paths: Sequence[str]) -> Index | None:
    """The index, if the corpus is finished, whole, and of this recipe; a damaged shard is to be made again."""
    folder, index = order.folder, Index.load(order.folder)
    known = {key: value for key, value in index.recipe.items() if key != "vocab_sha256"}
    refuse_other_recipe(folder, known, recipe)
    check_files(folder / INDEX, index.files, paths)
    problems = (find_damage(folder, number, shard) for number, shard in enumerate(index.shards))
    problem = next(filter(None, problems), "")
    if not problem:
        return index
    order.tell(f"prepare: {problem}; it is made again")
    (folder / INDEX).unlink()
    return None


def _begin(folder: Path, recipe: dict[str, Any], files: list[dict[str, Any]]) -> dict[str, Any]:
    """Writes down what is prepared here, or compares; returns the recipe that it was begun with.

    Raises:
        UserError: it was begun with another one, or what was written down cannot be read.
    """
    path = folder / "recipe.json"
    if not path.exists():
        write_whole(path, json.dumps({"recipe": recipe, "files": files}, indent=1, ensure_ascii=False).encode())
        return recipe
    try:
        begun = json.loads(path.read_bytes())
        known, entries = dict(begun["recipe"]), [{key: entry[key] for key in _STAT} for entry in begun["files"]]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error}); remove {folder} and run --mode=prepare again.") from error
    refuse_other_recipe(folder, known, recipe)
    check_files(path, entries, [entry["path"] for entry in files])
    return known  # files that have moved since must not change the digest of the recipe


def _remove_leavings(order: Order) -> None:
    """Files that a kill left unfinished, of this host's shards."""
    for path in (order.folder / "shards").glob(".[0-9]*"):
        if int(path.name[1:].partition(".")[0]) % order.hosts == order.host:
            path.unlink(missing_ok=True)


class _Shards:
    """The shards of a corpus: finds those that are done, has the others made.

    Attributes:
        notes: of every shard, in order.
        digests: path → sha256 of the files that were read.
    """

    def __init__(self, order: Order, recipe_sha256: str, findings: Findings) -> None:
        self._order, self._recipe, self._findings = order, recipe_sha256, findings
        self.notes: list[dict[str, Any]] = []
        self.digests: dict[str, str] = {}

    def make(self, pool: WorkerPool) -> bool:
        """Makes this host's shards; True where those of all hosts are done then."""
        order, made, count = self._order, 0, 0
        progress = PoolProgress("shards", order.corpora, order.tell)

        def call() -> Iterator[Call]:
            nonlocal count
            for piece in stream(order.corpora, order.shard_pairs, self.digests):
                count += 1
                if piece.number % order.hosts != order.host or self._read_note(piece.number) is not None:
                    progress.skip(piece)
                else:
                    yield make_shard, (piece, self._findings.marks(piece.number), self._recipe)

        for piece, _ in pool.run(call()):
            progress.finish(piece)
            made += 1
        notes = [self._read_note(number, check=False) for number in range(count)]
        self.notes = [note for note in notes if note is not None]
        missing = count - len(self.notes)
        order.tell(
            f"prepare: {made} of {count} shards made now, {len(self.notes) - made} were there"
            + (f", {missing} are left to other hosts" if missing else "")
        )
        return not missing

    def _read_note(self, number: int, *, check: bool = True) -> dict[str, Any] | None:
        """The note of a shard that is finished and whole; None where it is to be made."""
        folder = self._order.folder
        path = shard_files(folder, number)[2]
        try:
            note = json.loads(path.read_bytes())
            made, shard = note["recipe_sha256"], _describe(note)
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return None
        if made != self._recipe:
            raise UserError(
                f"{path}: this shard was made with another vocabulary or config; remove the folder {folder}, or name "
                "another one in config.data.prepared."
            )
        problem = find_damage(folder, number, shard, check)
        if problem:
            self._order.tell(f"prepare: {problem}; it is made again")
        return None if problem else note


def _describe(note: dict[str, Any]) -> Shard:
    return Shard(note["part"], note["pairs"], note["bytes"], note["sha256"], note["lengths_sha256"])


def _finish(
    order: Order, recipe: dict[str, Any], vocabs: Vocabs, notes: list[dict[str, Any]], files: list[dict[str, Any]]
) -> Index:
    """Writes dropped.jsonl, dev.json, test.json and, last, index.json."""
    folder = order.folder
    left_out: dict[str, int] = {}
    for note in notes:
        for reason, count in note["left_out"].items():
            left_out[reason] = left_out.get(reason, 0) + count
    sizes = [sum(note["pairs"] for note in notes if note["part"] == part) for part in range(len(order.corpora))]
    for corpus, size in zip(order.corpora, sizes, strict=True):
        if not size:
            told = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items())
            raise UserError(f"{corpus.spec.name}: nothing is left to train on ({told}); loosen config.clean.")
    _write_dropped(folder / "dropped.jsonl", notes)
    index = Index(
        recipe=recipe,
        recipe_sha256=hash_recipe(recipe),
        vocab_sha256=vocabs.digest,
        dtype=choose_dtype(len(vocabs.source), len(vocabs.target)),
        parts=tuple(
            Part(corpus.spec.name, corpus.spec.source, corpus.spec.target, corpus.spec.tags, size)
            for corpus, size in zip(order.corpora, sizes, strict=True)
        ),
        shards=tuple(map(_describe, notes)),
        files=tuple(files),
        left_out={reason: left_out[reason] for reason in ALL_REASONS if reason in left_out},
        held_out={
            name: _write_held_out(folder, name, notes)
            for name, held in (("dev", order.hold_dev), ("test", order.hold_test))
            if held
        },
    )
    index.save(folder)
    return index


def _write_dropped(path: Path, notes: list[dict[str, Any]]) -> None:
    """The first pairs that were left out for each reason."""
    rows: dict[str, list[dict[str, Any]]] = {reason: [] for reason in ALL_REASONS}
    for note in notes:
        for row in note["dropped"]:
            if len(rows[row["reason"]]) < SAMPLED:
                rows[row["reason"]].append(row)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for of_reason in rows.values() for row in of_reason]
    write_whole(path, "".join(lines).encode("utf-8", "replace"))


def _write_held_out(folder: Path, name: str, notes: list[dict[str, Any]]) -> str:
    """The sentences of dev or test, as JSON because a text may hold any character; returns their digest."""
    pairs = [pair for note in notes for pair in note["held_out"][name]]
    source, target = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    page = json.dumps({"source": source, "target": target}, indent=0, ensure_ascii=False)
    write_whole(folder / f"{name}.json", page.encode("utf-8", "surrogatepass"))
    return make_text(source, target, name=name).digest


def read_held_out(folder: Path, name: str, index: Index) -> ParallelText:
    """Dev or test as it was held out.

    Raises:
        UserError: it is not what was written.
    """
    path = folder / f"{name}.json"
    try:
        page = json.loads(read_whole(path))
        source, target = list(page["source"]), list(page["target"])
        if len(source) != len(target) or not all(isinstance(line, str) for line in source + target):
            raise ValueError("its sides are no sentences, or differ in length")
        text = make_text(source, target, name=f"{index.parts[0].name} ({name})")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error}); remove {folder} and run --mode=prepare again.") from error
    if text.digest != index.held_out.get(name):
        raise UserError(f"{path}: its digest is not that in {INDEX}; remove {folder} and run --mode=prepare again.")
    return text
