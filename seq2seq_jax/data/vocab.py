"""Turns text into token ids and back; the one home of the special ids.

Four kinds of vocabulary share one class:

- `sentencepiece`: subwords (unigram, Kudo 2018, arXiv:1804.10959; or BPE, Sennrich 2016, arXiv:1508.07909)
- `word`: the most frequent words between blanks, the rest is `<unk>`
- `char`: the most frequent characters, the rest is `<unk>`
- `byte`: the 256 bytes of UTF-8, nothing is unknown

Text is normalised first, by one of SentencePiece's rules, the same for all kinds; the rule is stored
with the vocabulary. `decode(encode(text)) == normalise(text)` wherever no piece was unknown.

Ids: the four special ones, then the tags, then the pieces. A tag (`<2de>`, `<bt>`) says something about a
sentence and stands before it; no text can spell it. `vocab_training` makes vocabularies, `vocab_files` reads
those made elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import sentencepiece

from seq2seq_jax.data.whole_file import read_whole, write_whole
from seq2seq_jax.errors import UserError

PAD_ID, UNK_ID, BOS_ID, EOS_ID = 0, 1, 2, 3
SPECIALS = ("<pad>", "<unk>", "<s>", "</s>")
KINDS = ("sentencepiece", "word", "char", "byte")
MODELS = ("unigram", "bpe")
NORMALIZATIONS = ("nmt_nfkc", "nmt_nfkc_cf", "nfkc", "nfkc_cf", "identity")
OWN_NORMALIZATION = "model"  # the rule inside a SentencePiece model that was made elsewhere
UNKNOWN = "⁇"  # what an unknown piece reads like, as in SentencePiece


@dataclass(frozen=True)
class Vocab:
    """A vocabulary with its normalisation; immutable, picklable, equal when its bytes are equal.

    Attributes:
        kind: "sentencepiece", "word", "char" or "byte".
        model: the SentencePiece model as bytes; for word and char the pieces in order of id as UTF-8
            lines of JSON; empty for byte.
        normalization: name of SentencePiece's rule applied before splitting; "model" for the one inside `model`.
        algorithm: "unigram" or "bpe" for SentencePiece (a model made elsewhere may have "word" or "char"), else "".
        tags: names of the tags without brackets, in order of id from 4 on.
    """

    kind: str
    model: bytes
    normalization: str = "nmt_nfkc"
    algorithm: str = ""
    tags: tuple[str, ...] = ()

    pad_id = PAD_ID
    unk_id = UNK_ID
    bos_id = BOS_ID
    eos_id = EOS_ID

    def __len__(self) -> int:
        return self.size

    def __repr__(self) -> str:
        return f"Vocab({self.kind}, size={self.size}, normalization={self.normalization}, digest={self.digest[:12]})"

    def __getstate__(self) -> dict:
        """The fields alone: processors and tables are made again where they are needed."""
        names = ("kind", "model", "normalization", "algorithm", *(["tags"] if self.tags else []))
        return {name: getattr(self, name) for name in names}

    @cached_property
    def size(self) -> int:
        """How many ids there are, the four special ones and the tags included."""
        return self._processor.get_piece_size() if self.kind == "sentencepiece" else len(self._table)

    @cached_property
    def digest(self) -> str:
        """sha256 of everything that decides which ids a text gets."""
        head = f"{self.kind}\0{self.algorithm}\0{self.normalization}\0".encode()
        if self.tags:
            head += " ".join(self.tags).encode() + b"\0"
        return hashlib.sha256(head + self.model).hexdigest()

    @cached_property
    def _processor(self) -> sentencepiece.SentencePieceProcessor:
        return sentencepiece.SentencePieceProcessor(model_proto=self.model)

    @cached_property
    def _normalizer(self) -> sentencepiece.SentencePieceNormalizer:
        return make_normalizer(self.normalization, self.model)

    @cached_property
    def _table(self) -> tuple[str, ...]:
        """The piece of every id, for kinds other than SentencePiece."""
        first = SPECIALS + tuple(f"<{tag}>" for tag in self.tags)
        if self.kind == "byte":
            return first + tuple(f"<0x{byte:02X}>" for byte in range(256))
        return first + tuple(json.loads(line) for line in self.model.split(b"\n") if line)

    @cached_property
    def _ids(self) -> dict[str, int]:
        # Specials and tags are left out: a text that says "<pad>" does not get to pad.
        return {piece: i for i, piece in enumerate(self._table) if i >= self.first_id}

    @property
    def first_id(self) -> int:
        """The first id of a piece of text, after the special ones and the tags."""
        return len(SPECIALS) + len(self.tags)

    def tag_ids(self, names: Sequence[str]) -> np.ndarray:
        """Ids of tags by their names without brackets, `[len(names)]` int32.

        Raises:
            UserError: the vocabulary has no such tag.
        """
        for name in names:
            if name not in self.tags:
                has = ", ".join(f"<{tag}>" for tag in self.tags) or "none"
                raise UserError(
                    f"the vocabulary has no tag <{name}> (it has {has}); tags are made with the vocabulary: "
                    f"add {name} to config.vocab.tags and start in a new --workdir."
                )
        return np.array([len(SPECIALS) + self.tags.index(name) for name in names], np.int32)

    def normalise(self, text: str) -> str:
        """The text as the vocabulary sees it, e.g. with ligatures and doubled blanks resolved."""
        return self._normalizer.normalize(make_encodable(text))

    def encode(self, text: str) -> list[int]:
        """Token ids of one text, without bos and eos; `[]` for a blank one."""
        return self.encode_many([text])[0].tolist()

    def encode_many(self, lines: Sequence[str], *, threads: int = -1) -> list[np.ndarray]:
        """Token ids of each line, int32, without bos and eos; SentencePiece in so many threads, -1: one a core."""
        clean = [make_encodable(line) for line in lines]
        if not clean:
            return []
        if self.kind == "sentencepiece":
            encoded = self._processor.encode(clean, return_type="numpy", num_threads=threads)
            return [np.asarray(ids, np.int32) for ids in encoded]
        texts = self._normalizer.normalize(clean)
        if self.kind == "byte":
            return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) + self.first_id for text in texts]
        find = self._ids.get
        split = str.split if self.kind == "word" else list
        return [np.array([find(piece, UNK_ID) for piece in split(text)], np.int32) for text in texts]

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The piece of every id, special ones too; for pictures and tables.

        Raises:
            ValueError: an id is not of this vocabulary.
        """
        ids = self._check(ids)
        if self.kind == "sentencepiece":
            return [self._processor.id_to_piece(i) for i in ids]
        return [self._table[i] for i in ids]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; pad, bos, eos and tags are dropped, unknown pieces read "⁇".

        Raises:
            ValueError: an id is not of this vocabulary.
        """
        kept = [i for i in self._check(ids) if i == UNK_ID or i >= self.first_id]
        if self.kind == "sentencepiece":
            return self._processor.decode(kept)
        if self.kind == "byte":
            data = b"".join(UNKNOWN.encode() if i == UNK_ID else bytes([i - self.first_id]) for i in kept)
            return data.decode("utf-8", errors="replace")
        words = [UNKNOWN if i == UNK_ID else self._table[i] for i in kept]
        return (" " if self.kind == "word" else "").join(words)

    def _check(self, ids: Iterable[int]) -> list[int]:
        values = [int(i) for i in ids]
        if values and not 0 <= min(values) <= max(values) < self.size:
            wrong = next(i for i in values if not 0 <= i < self.size)
            raise ValueError(f"`ids` must lie between 0 and {self.size - 1}, but one is {wrong} instead.")
        return values

    def save(self, directory: str | os.PathLike, name: str) -> None:
        """Writes DIRECTORY/NAME.model and DIRECTORY/NAME.json (each appears whole or not at all)."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        fields: dict[str, object] = dict(self.__getstate__())
        del fields["model"]
        fields |= {"size": self.size, "digest": self.digest, "specials": list(SPECIALS)}
        write_whole(folder / f"{name}.model", self.model)
        write_whole(folder / f"{name}.json", (json.dumps(fields, indent=2) + "\n").encode())

    @classmethod
    def load(cls, directory: str | os.PathLike, name: str) -> Vocab:
        """Reads what `save` wrote.

        Raises:
            UserError: a file is missing, or is not what was saved.
        """
        page, model = Path(directory) / f"{name}.json", Path(directory) / f"{name}.model"
        fields = _read_json(page)
        try:
            kept = (fields["normalization"], fields["algorithm"], tuple(fields.get("tags", ())))
            vocab = cls(fields["kind"], read_whole(model), *kept)
            check_choice(f"{page}: kind", vocab.kind, KINDS)
            check_choice(f"{page}: normalization", vocab.normalization, (*NORMALIZATIONS, OWN_NORMALIZATION))
            check_tags(f"{page}: tags", vocab.tags)
            if vocab.digest != fields["digest"]:
                raise UserError(f"{model}: not the vocabulary that {page.name} describes (digests differ); {_CURE}.")
            if vocab.size != fields["size"]:
                raise UserError(f"{model}: has {vocab.size} pieces, {page.name} says {fields['size']}; {_CURE}.")
        except OSError as error:
            raise UserError(f"{model}: cannot be read ({error.strerror}); {_CURE}.") from error
        except (KeyError, TypeError, RuntimeError, ValueError, AttributeError) as error:
            raise UserError(f"{page}: not a vocabulary of seq2seq_jax ({_first_line(error)}); {_CURE}.") from error
        return vocab


@dataclass(frozen=True)
class Vocabs:
    """The vocabularies of both sides; with `joint` they are one and the same object."""

    source: Vocab
    target: Vocab
    joint: bool = False

    @cached_property
    def digest(self) -> str:
        """sha256 over both sides."""
        return hashlib.sha256(f"{self.source.digest} {self.target.digest} {self.joint}".encode()).hexdigest()

    def save(self, directory: str | os.PathLike) -> None:
        """Writes vocab.model and vocab.json if joint, else those of vocab_source and vocab_target; vocabs.json last."""
        names = ["vocab"] if self.joint else ["vocab_source", "vocab_target"]
        for name, vocab in zip(names, (self.source, self.target), strict=False):
            vocab.save(directory, name)
        page = json.dumps({"joint": self.joint, "digest": self.digest}, indent=2) + "\n"
        write_whole(Path(directory) / "vocabs.json", page.encode())

    @classmethod
    def load(cls, directory: str | os.PathLike) -> Vocabs:
        """Reads what `save` wrote.

        Raises:
            UserError: a file is missing, or is not what was saved.
        """
        page = Path(directory) / "vocabs.json"
        fields = _read_json(page)
        joint = fields.get("joint") is True
        source = Vocab.load(directory, "vocab" if joint else "vocab_source")
        vocabs = cls(source, source if joint else Vocab.load(directory, "vocab_target"), joint)
        if vocabs.digest != fields.get("digest"):
            raise UserError(f"{page}: the vocabularies beside it are not those it was written with; {_CURE}.")
        return vocabs


_CURE = "restore the folder from a copy, or remove its vocab files to build them again"


def make_normalizer(rule: str, model: bytes = b"") -> sentencepiece.SentencePieceNormalizer:
    """SentencePiece's normalisation alone, without its sign for a blank; "model" is the rule inside `model`."""
    if rule == OWN_NORMALIZATION:
        return sentencepiece.SentencePieceNormalizer(
            model_proto=model, add_dummy_prefix=False, escape_whitespaces=False
        )
    return sentencepiece.SentencePieceNormalizer(
        rule_name=rule, add_dummy_prefix=False, escape_whitespaces=False, remove_extra_whitespaces=True
    )


def make_encodable(text: str) -> str:
    """NUL becomes a blank and a lone surrogate "?": SentencePiece's C++ takes neither."""
    if "\0" in text:
        text = text.replace("\0", " ")
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def check_tags(key: str, tags: Sequence[str]) -> None:
    """Tags are words, each once, and none of the special pieces."""
    for i, tag in enumerate(tags):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", tag) or f"<{tag}>" in SPECIALS or tag in tags[:i]:
            raise UserError(
                f"{key}: a tag must be letters, digits, - and _, each tag once, not pad, unk or s, but one is {tag!r}."
            )


def check_choice(key: str, value: str, choices: Sequence[str]) -> None:
    """Refuses a value that is not among the choices, with the key's name."""
    if value not in choices:
        raise UserError(f"{key} must be one of {', '.join(choices)}, but is {value!r} instead.")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _read_json(path: Path) -> dict:
    try:
        fields = json.loads(read_whole(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {_CURE}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({_first_line(error)}); {_CURE}.") from error
    if not isinstance(fields, dict):
        raise UserError(f"{path}: not a JSON object; {_CURE}.")
    return fields
