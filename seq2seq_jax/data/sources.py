"""Reads parallel text from files: PREFIX.en beside PREFIX.de, either one gzipped, or one TSV.

Only "\\n" ends a line (a "\\r" before it is taken off). Python's `splitlines` also cuts at U+2028,
"\\x0b" and others, which real corpora contain, and so puts the two sides out of step.
"""

from __future__ import annotations

import dataclasses
import difflib
import gzip
import hashlib
import logging
import os
import stat
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import numpy as np

from seq2seq_jax.errors import UserError

SPLITS = ("train", "dev", "test")
MAX_LINE_BYTES = 32 << 20  # a longer "line" is a file of another kind, or a gzip bomb
_BLOCK_BYTES = 4 << 20
_BOMB_BYTES, _BOMB_RATIO = 2 << 20, 200  # text is packed to a fifth; DEFLATE reaches a thousandth

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ParallelText:
    """Sentences and their translations, in step.

    Attributes:
        source: one sentence each; of speech, one clip each: a file's name, see `data.audio.parse_clip`.
        target: as many translations, or None where there are none (text to translate).
        name: where it came from, for messages.
        digest: sha256 over the sentences of both sides; the same for plain, gzipped and TSV files.
        tags: names of the tokens put before each source, such as "2de".
        languages: codes of source and target; "" where nobody said.
        groups: names and sizes of the parts that follow each other in it, where they are to be scored apart, too.
    """

    source: list[str]
    target: list[str] | None
    name: str
    digest: str
    tags: tuple[str, ...] = ()
    languages: tuple[str, str] = ("", "")
    groups: tuple[tuple[str, int], ...] = ()

    def __len__(self) -> int:
        return len(self.source)


def make_text(source: list[str], target: list[str] | None, *, name: str) -> ParallelText:
    """Sentences from memory as a `ParallelText`.

    Raises:
        UserError: the sides have different numbers of lines; says where they probably part.
    """
    if target is not None and len(source) != len(target):
        raise UserError(f"{name}: {_tell_mismatch(source, target)}")
    return ParallelText(source, target, name, _digest(source, target))


def read_parallel(prefix: str | os.PathLike, *, source: str, target: str | None) -> ParallelText:
    """Reads PREFIX.SOURCE and PREFIX.TARGET (or .gz of these), or PREFIX itself if it is a .tsv or .tsv.gz.

    A TSV row is source, tab, target. With `target` None only the source side is read.

    Raises:
        UserError: a file is missing, a folder, empty, not UTF-8, broken gzip, a TSV row has not exactly one
            tab, or the sides differ in length. One line that names file, line and cure.
    """
    prefix = os.fspath(prefix)
    if prefix.endswith((".tsv", ".tsv.gz")):
        return _read_tsv(prefix)
    paths = [find_side(prefix, language) for language in (source, target) if language is not None]
    sides = [list(read_lines(path)) for path in paths]
    for path, lines in zip(paths, sides, strict=True):
        if not lines:
            raise UserError(f"{path}: is empty; at least one sentence is needed.")
    name = prefix + ".{" + ",".join(path.name[len(os.path.basename(prefix)) + 1 :] for path in paths) + "}"
    return make_text(sides[0], sides[1] if target is not None else None, name=name)


def open_split(
    spec: str, *, split: str, source: str, target: str, phrasebook_pairs: int = 10_000, seed: int = 0
) -> ParallelText:
    """Opens a corpus by the name a config gives it.

    Args:
        spec: "phrasebook" for the built-in corpus, else a file prefix (see `read_parallel`).
        split: "train", "dev" or "test". Of a training split, pairs with a blank side are left out.
        source, target: language codes.
        phrasebook_pairs: how many pairs the built-in corpus makes.
        seed: of the built-in corpus.

    Raises:
        UserError: see `read_parallel`.
    """
    if split not in SPLITS:
        raise ValueError(f"`split` must be one of {', '.join(SPLITS)}, but is {split!r} instead.")
    if not spec:
        raise UserError(f'data.{split} is empty; give a file prefix, a .tsv file, or "phrasebook".')
    if spec == "phrasebook":
        from seq2seq_jax.data import phrasebook  # read only where it is asked for

        pairs = phrasebook.pairs(split, source=source, target=target, size=phrasebook_pairs, seed=seed)
        return make_text(*pairs, name=f"phrasebook {split}")
    if spec.startswith("tfds:"):
        from seq2seq_jax.data.tfds_text import TfdsText

        records = TfdsText(spec, split=split, source=source, target=target)
        text = make_text(*records.read(range(len(records))), name=records.name)
    else:
        text = read_parallel(spec, source=source, target=target)
    return drop_blank(text) if split == "train" else text


def drop_blank(text: ParallelText) -> ParallelText:
    """Leaves out the pairs with a blank side, and says in the log how many and where the first ones are."""
    target = text.target if text.target is not None else text.source
    blank = [i for i, (a, b) in enumerate(zip(text.source, target, strict=True)) if not a.strip() or not b.strip()]
    if not blank:
        return text
    if len(blank) == len(text):
        raise UserError(f"{text.name}: all {len(text)} pairs have a blank side; nothing is left to train on.")
    first = ", ".join(str(i + 1) for i in blank[:5]) + (", ..." if len(blank) > 5 else "")
    _log.warning(
        "%s: %d of %d pairs have a blank side and are skipped (lines %s).", text.name, len(blank), len(text), first
    )
    gone = set(blank)
    return select_pairs(text, [i for i in range(len(text)) if i not in gone], text.name)


def hold_out(text: ParallelText, *, dev: int, test: int) -> tuple[ParallelText, ParallelText, ParallelText]:
    """Splits one corpus into train, dev and test, for users who have no other.

    The choice is by a hash of the source sentence: the same on every machine, independent of the order
    of the lines, and pairs with the same source fall on the same side, so dev and test hold nothing
    that was trained on. Repeats make a side a few pairs larger than asked.

    Args:
        text: the whole corpus.
        dev, test: how many pairs to put aside.

    Raises:
        UserError: less than half of the corpus would be left.
    """
    if dev < 0 or test < 0 or 2 * (dev + test) > len(text):
        asked = f"{dev} dev and {test} test pairs"
        raise UserError(f"{text.name}: cannot hold out {asked} of {len(text)}: at least half must be left to train on.")
    hashes = hash_sentences(text.source)
    order = np.argsort(hashes, kind="stable")
    dev_end, test_end = find_borders(hashes[order], dev=dev, test=test)
    parts = {"train": order[test_end:], "dev": order[:dev_end], "test": order[dev_end:test_end]}
    for side, wanted in (("train", 1), ("dev", dev), ("test", test)):
        if wanted and not len(parts[side]):
            raise UserError(f"{text.name}: too few distinct source sentences to hold out dev and test; give files.")
    train, dev_text, test_text = (
        select_pairs(text, np.sort(ids).tolist(), f"{text.name} ({side})") for side, ids in parts.items()
    )
    return train, dev_text, test_text


def select_pairs(text: ParallelText, ids: list[int], name: str) -> ParallelText:
    """The pairs `ids` of a corpus, in that order, as a corpus of its own."""
    target = None if text.target is None else [text.target[i] for i in ids]
    selected = make_text([text.source[i] for i in ids], target, name=name)
    return dataclasses.replace(selected, tags=text.tags, languages=text.languages)


def hash_sentences(lines: Sequence[str]) -> np.ndarray:
    """64 bits of each sentence, `[N]` uint64, by which `hold_out` chooses."""
    blake = hashlib.blake2b
    return np.frombuffer(
        b"".join(blake(line.encode("utf-8", "replace"), digest_size=8).digest() for line in lines), "<u8"
    ).astype(np.uint64)


def find_borders(ranked: np.ndarray, *, dev: int, test: int) -> tuple[int, int]:
    """Where dev and test end among hashes in ascending order; dev comes first.

    Borders move right to the end of a run of equal sentences.
    """
    dev_end = int(np.searchsorted(ranked, ranked[dev - 1], side="right")) if dev else 0
    test_end = max(dev_end, dev + test) if test else dev_end
    if test_end > dev_end:
        test_end = int(np.searchsorted(ranked, ranked[test_end - 1], side="right"))
    return dev_end, test_end


def _digest(source: list[str], target: list[str] | None) -> str:
    digest = hashlib.sha256()
    for side in (source, target or []):
        digest.update(f"{len(side)}\n".encode())
        for start in range(0, len(side), 4096):
            block = "\n".join(side[start : start + 4096]) + "\n"
            digest.update(block.encode("utf-8", "replace"))
    return digest.hexdigest()


def find_side(prefix: str, language: str) -> Path:
    """PREFIX.LANGUAGE or PREFIX.LANGUAGE.gz, whichever is there."""
    plain = Path(f"{prefix}.{language}")
    for path in (plain, Path(f"{plain}.gz")):
        if path.exists():
            return path
    raise UserError(f"{plain}: no such file, nor {plain.name}.gz; {tell_neighbours(plain)}")


def tell_neighbours(path: Path) -> str:
    """For messages: which files there are that a person may have meant."""
    folder = path.parent
    if not folder.is_dir():
        return f"the folder {folder} does not exist."
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        return f"the folder {folder} cannot be listed ({error.strerror})."
    stem = path.name.partition(".")[0]
    near = [name for name in names if stem and name.startswith(stem + ".")]
    near += [name for name in difflib.get_close_matches(path.name, names, n=5) if name not in near]
    if near:
        return f"near it there are {', '.join(near[:6])}."
    return (
        f"the folder {folder} has {', '.join(names[:6])}{', ...' if len(names) > 6 else ''}."
        if names
        else (f"the folder {folder} is empty.")
    )


def _read_tsv(path: str) -> ParallelText:
    if not os.path.exists(path):
        raise UserError(f"{path}: no such file; {tell_neighbours(Path(path))}")
    source, target = [], []
    for number, line in enumerate(read_lines(Path(path)), 1):
        left, tab, right = line.partition("\t")
        if not tab or "\t" in right:
            raise UserError(
                f"{path}: line {number} has {line.count(chr(9))} tabs; every row must be source, one tab, target."
            )
        source.append(left)
        target.append(right)
    if not source:
        raise UserError(f"{path}: is empty; at least one sentence pair is needed.")
    return make_text(source, target, name=path)


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a plain or gzipped UTF-8 file, without BOM and line ends, read block by block."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
            raise UserError(f"{path}: is {kind}; a text file is needed.")
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            number = 1  # of the block's first line
            for block in _read_blocks(file, path):
                if number == 1:
                    block = block.removeprefix(b"\xef\xbb\xbf")
                text = decode_block(block, number, path)
                lines = text.split("\n")
                if not lines[-1]:
                    lines.pop()  # what stands after the last "\n" is no line, unless there is something
                number += len(lines)
                for line in lines:
                    yield line.removesuffix("\r")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a whole gzip file ({error}); make or copy it again.") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from error


def _read_blocks(file: gzip.GzipFile | BufferedReader, path: Path) -> Iterator[bytes]:
    """Blocks of whole lines of about `_BLOCK_BYTES`."""
    parts: list[bytes] = []
    held = unpacked = 0
    while data := file.read(_BLOCK_BYTES):
        unpacked += len(data)
        if isinstance(file, gzip.GzipFile):
            refuse_bomb(path, file.fileobj.tell(), unpacked)  # type: ignore[union-attr]
        end = data.rfind(b"\n") + 1
        if end:
            yield b"".join([*parts, data[:end]])
            parts, held = [], 0
        parts.append(data[end:])
        held += len(parts[-1])
        if held > MAX_LINE_BYTES:
            raise UserError(
                f"{path}: has a line of more than {MAX_LINE_BYTES >> 20} MiB; not a text with one sentence a line."
            )
    if held:
        yield b"".join(parts)


def refuse_bomb(path: str | os.PathLike, packed: int, unpacked: int) -> None:
    """Refuses a gzipped file whose first `packed` bytes have given so many that they are no text."""
    if unpacked > _BOMB_BYTES and unpacked > _BOMB_RATIO * packed:
        raise UserError(f"{path}: unpacks to more than {_BOMB_RATIO} times its size; no text does: make it again.")


def decode_block(block: bytes, number: int, path: Path) -> str:
    """Text of whole lines, the first of which is line `number` of the file; UserError where it is not UTF-8."""
    try:
        return block.decode("utf-8")
    except UnicodeDecodeError as error:
        line = number + block.count(b"\n", 0, error.start)
        column = error.start - block.rfind(b"\n", 0, error.start)
        hint = "it looks like UTF-16; " if number == line == 1 and block[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise UserError(
            f"{path}: line {line} is not UTF-8 (byte 0x{block[error.start]:02x} at position {column} of the line); "
            f"{hint}convert the file with iconv."
        ) from error


def _tell_mismatch(source: list[str], target: list[str]) -> str:
    """Says how many lines each side has, where one ends, and where they probably went out of step."""
    shorter, longer = sorted((len(source), len(target)))
    side = "source" if len(source) > len(target) else "target"
    told = f"source has {len(source)} lines, target has {len(target)}; from line {shorter + 1} on there is only {side}"
    slip = _find_slip(source, target)
    if slip is not None:
        told += f"; by their lengths they went out of step near line {slip + 1}"
    empty = next((i for i in range(shorter) if bool(source[i].strip()) != bool(target[i].strip())), None)
    if empty is not None:
        told += f"; line {empty + 1} is blank on one side only"
    return told + ". Both sides must have one line a pair."


def _find_slip(source: list[str], target: list[str]) -> int | None:
    """The line before which the lengths agree as they stand, and after which they agree when shifted.

    Translations have proportional lengths (Gale and Church 1993): the cost of a pair is the absolute
    log ratio of its lengths; the slip is where the cost of in-step before plus shifted after is least.
    None if in step to the end is best.
    """
    a, b = (np.log1p(np.array([len(line) for line in side])) for side in (source, target))
    long, short = (a, b) if len(a) > len(b) else (b, a)
    if len(short) == 0:
        return None
    shift = len(long) - len(short)
    in_step, shifted = long[: len(short)] - short, long[shift:] - short
    typical = np.median(np.concatenate([in_step, shifted]))
    before = np.concatenate([[0.0], np.cumsum(np.abs(in_step - typical))])
    after = np.concatenate([np.cumsum(np.abs(shifted - typical)[::-1])[::-1], [0.0]])
    slip = int(np.argmin(before + after))
    return None if slip == len(short) else slip
