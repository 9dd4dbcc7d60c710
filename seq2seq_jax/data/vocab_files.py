"""Reads vocabularies that were made elsewhere: SentencePiece models, lists of words, those of another run.

A model keeps its pieces, scores and rules; only the ids change, so that ours come first:

    theirs:  <unk> <s> </s> ▁the ▁a ...          (the default), or  <pad> </s> <unk> ▁the ... (T5)
    ours:    <pad> <unk> <s> </s> <2de> ▁the ▁a ...

The segmentation of every text is that of the original file: neither unigram nor BPE looks at ids. The vocabulary of
another run (RUN/vocab/vocab.json, or vocab_target.json) is taken as it is, ids and tags too: what models that search
together must have.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seq2seq_jax.data.model_proto import ALGORITHMS, CONTROL, UNKNOWN, parse_model
from seq2seq_jax.data.sources import read_lines
from seq2seq_jax.data.vocab import (
    BOS_ID,
    EOS_ID,
    OWN_NORMALIZATION,
    PAD_ID,
    SPECIALS,
    UNK_ID,
    Vocab,
    Vocabs,
    check_tags,
    make_encodable,
    make_normalizer,
)
from seq2seq_jax.data.whole_file import read_whole
from seq2seq_jax.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

_KEY = "config.vocab.file"

_log = logging.getLogger(__name__)


def split_files(files: str) -> tuple[Path, ...]:
    """The paths in config.vocab.file, none, one or two."""
    return tuple(Path(name.strip()).expanduser() for name in files.split(",") if name.strip())


def digest_files(files: str) -> list[str]:
    """sha256 of each file in config.vocab.file, [] for none; of one that cannot be read an empty string."""
    return [hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "" for path in split_files(files)]


def read_vocabs(
    files: str, *, kind: str, joint: bool, normalization: str = "nmt_nfkc", tags: Sequence[str] = ()
) -> Vocabs:
    """Reads one file for both sides, or "SOURCE,TARGET".

    Args:
        files: paths.
        kind: "sentencepiece" for models, "word" or "char" for lists.
        joint: both sides are one vocabulary; False where there are two files.
        normalization: of the text, for lists; a model has its own.
        tags: names of tags to add.

    Raises:
        UserError: a file is not what it should be, or does not go with the other settings.
    """
    paths = split_files(files)
    if not 1 <= len(paths) <= 2 or (len(paths) == 2 and joint):
        raise UserError(f"{_KEY} must be one path, or with config.vocab.joint=False two, but is {files!r}.")
    read = {path: read_vocab(path, kind=kind, normalization=normalization, tags=tags) for path in paths}
    return Vocabs(read[paths[0]], read[paths[-1]], joint)


def read_vocab(path: Path, *, kind: str, normalization: str = "nmt_nfkc", tags: Sequence[str] = ()) -> Vocab:
    """Reads one file; see `read_vocabs`."""
    check_tags("config.vocab.tags", tags)
    if path.suffix == ".json":
        return _take_vocab(path, kind, tags)
    if kind == "sentencepiece":
        return read_model(path, tags)
    if kind == "byte":
        raise UserError(f'{_KEY}: config.vocab.kind="byte" has no file; set the kind that {path} has.')
    return read_words(path, kind, normalization, tags)


def _take_vocab(path: Path, kind: str, tags: Sequence[str]) -> Vocab:
    """A vocabulary that a run has saved, equal to that run's.

    Raises:
        UserError: it is none, of another kind, or has not all tags.
    """
    vocab = Vocab.load(path.parent, path.stem)
    if vocab.kind != kind:
        raise UserError(
            f"{_KEY}: {path} is of kind {vocab.kind!r}: set config.vocab.kind={vocab.kind} (it is {kind!r})."
        )
    missing = [tag for tag in tags if tag not in vocab.tags]
    if missing:
        raise UserError(f"{_KEY}: {path} has no tag <{missing[0]}>, and takes none: tags are made with a vocabulary.")
    return vocab


def read_model(path: Path, tags: Sequence[str] = ()) -> Vocab:
    """Reads a SentencePiece model, with any ids of its own for pad, unk, bos and eos, or none.

    Raises:
        UserError: the file is no model, or a text could spell one of `tags`.
    """
    try:
        proto = parse_model(read_whole(path))
        _reorder(proto, path, tags)  # looks at texts for the first time, which may be none
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{_KEY}: {path} cannot be read ({error.strerror}).") from error
    except Exception as error:  # protobuf's DecodeError, which has no stable home
        raise UserError(f"{_KEY}: {path} is not a SentencePiece model ({error}).") from error
    algorithm = ALGORITHMS.get(proto.trainer_spec.model_type, "unigram")
    vocab = Vocab("sentencepiece", proto.SerializeToString(deterministic=True), OWN_NORMALIZATION, algorithm, (*tags,))
    try:
        first = vocab.pieces(range(len(SPECIALS) + len(tags)))
        vocab.decode(vocab.encode("a"))
    except (RuntimeError, OSError, ValueError) as error:
        raise UserError(f"{_KEY}: {path} is not a SentencePiece model that works ({error}).") from error
    if first != [*SPECIALS, *(f"<{tag}>" for tag in tags)]:
        raise UserError(f"{_KEY}: {path} is not a SentencePiece model that works (its first pieces are {first}).")
    return vocab


def _reorder(proto: Any, path: Path, tags: Sequence[str]) -> None:
    """Puts our special pieces and tags first and leaves the others in their order."""
    unknown = [piece for piece in proto.pieces if piece.type == UNKNOWN]
    if len(unknown) != 1:
        raise UserError(f"{_KEY}: {path} is not a SentencePiece model (it has no piece for what is unknown).")
    spec = proto.trainer_spec
    theirs = {unknown[0].piece}
    theirs |= {piece.piece for piece in proto.pieces if piece.type == CONTROL} & {
        spec.pad_piece, spec.bos_piece, spec.eos_piece
    }  # fmt: skip
    names = [f"<{tag}>" for tag in tags]
    for piece in proto.pieces:
        if piece.piece in names and piece.type != CONTROL:
            raise UserError(f"{_KEY}: {path} has a piece {piece.piece} of text; name the tag in another way.")
    gone = theirs | set(names) | set(SPECIALS)
    rest = [(piece.piece, piece.score, piece.type) for piece in proto.pieces if piece.piece not in gone]
    if not rest:
        raise UserError(f"{_KEY}: {path} is a SentencePiece model without pieces.")
    if not all(math.isfinite(score) for _, score, _ in rest):
        raise UserError(f"{_KEY}: {path} is a SentencePiece model with scores that are no numbers; make it again.")
    del proto.pieces[:]
    for name in SPECIALS:
        proto.pieces.add(piece=name, score=0.0, type=UNKNOWN if name == SPECIALS[UNK_ID] else CONTROL)
    for name in names:
        proto.pieces.add(piece=name, score=0.0, type=CONTROL)
    for name, score, kind in rest:
        proto.pieces.add(piece=name, score=score, type=kind)
    spec.pad_piece, spec.unk_piece, spec.bos_piece, spec.eos_piece = SPECIALS
    spec.pad_id, spec.unk_id, spec.bos_id, spec.eos_id = PAD_ID, UNK_ID, BOS_ID, EOS_ID
    spec.vocab_size = len(proto.pieces)


def read_words(path: Path, kind: str, normalization: str = "nmt_nfkc", tags: Sequence[str] = ()) -> Vocab:
    """Reads a list of words, one a line, most frequent first; ids follow the order of the list.

    Where every line has a second column of whole numbers, these are counts and are ignored. `<unk>`, `<pad>`,
    `<s>` and `</s>` are ours and keep our ids. Words are normalised as the text will be; one that then equals an
    earlier one is skipped.

    Raises:
        UserError: the file is no such list: a line is blank, has several words, or repeats a word.
    """
    lines = list(read_lines(path))
    counted = all(len(parts := line.split()) == 2 and parts[1].isdecimal() for line in lines)
    words = [line.split()[0] if counted else line for line in lines]
    seen: dict[str, int] = {}
    for number, word in enumerate(words, start=1):
        if kind == "word" and len(word.split()) != 1 or not word:
            raise UserError(
                f"{_KEY}: {path}: line {number} has {len(word.split())} words; a list has one word a line, "
                "with its count after it on every line or on none."
            )
        if word in seen:
            raise UserError(f"{_KEY}: {path}: line {number} repeats the word {word!r} of line {seen[word]}.")
        if kind == "char" and len(word) != 1 and word.lower() not in SPECIALS:
            raise UserError(
                f'{_KEY}: {path}: line {number} must be one character (config.vocab.kind="char"): {word!r}.'
            )
        seen[word] = number
    normalizer = make_normalizer(normalization)
    kept = [word if kind == "char" else word.strip() for word in words if word.lower().strip() not in SPECIALS]
    pieces = dict.fromkeys(
        word if kind == "char" else normalizer.normalize(make_encodable(word)) or word for word in kept
    )
    if not pieces:
        raise UserError(f"{_KEY}: {path} has no words.")
    if len(pieces) < len(kept):
        equal = len(kept) - len(pieces)
        _log.warning("%s: %d words equal an earlier one after normalisation (%s).", path, equal, normalization)
    return Vocab(kind, b"\n".join(json.dumps(piece).encode() for piece in pieces), normalization, tags=(*tags,))
