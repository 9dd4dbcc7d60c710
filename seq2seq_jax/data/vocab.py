"""Turns text into token ids and back; the one home of the special ids.

Four kinds of vocabulary share one class:

- `sentencepiece`: subwords (unigram, Kudo 2018, arXiv:1804.10959; or BPE, Sennrich 2016, arXiv:1508.07909)
- `word`: the most frequent words between blanks, the rest is `<unk>`
- `char`: the most frequent characters, the rest is `<unk>`
- `byte`: the 256 bytes of UTF-8, nothing is unknown

Text is normalised first, by one of SentencePiece's rules, the same for all kinds; the rule is stored
with the vocabulary. `decode(encode(text)) == normalise(text)` wherever no piece was unknown.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import sentencepiece

from seq2seq_jax.errors import UserError

PAD_ID, UNK_ID, BOS_ID, EOS_ID = 0, 1, 2, 3
SPECIALS = ("<pad>", "<unk>", "<s>", "</s>")
KINDS = ("sentencepiece", "word", "char", "byte")
MODELS = ("unigram", "bpe")
NORMALIZATIONS = ("nmt_nfkc", "nmt_nfkc_cf", "nfkc", "nfkc_cf", "identity")
UNKNOWN = "⁇"  # what an unknown piece reads like, as in SentencePiece


@dataclass(frozen=True)
class Vocab:
    """A vocabulary with its normalisation; immutable, picklable, equal when its bytes are equal.

    Attributes:
        kind: "sentencepiece", "word", "char" or "byte".
        model: the SentencePiece model as bytes; for word and char the pieces in order of id as UTF-8
            lines of JSON; empty for byte.
        normalization: name of SentencePiece's rule applied before splitting.
        algorithm: "unigram" or "bpe" for SentencePiece, else "".
    """

    kind: str
    model: bytes
    normalization: str = "nmt_nfkc"
    algorithm: str = ""

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
        return {name: getattr(self, name) for name in ("kind", "model", "normalization", "algorithm")}

    @cached_property
    def size(self) -> int:
        """How many ids there are, the four special ones included."""
        return self._processor.get_piece_size() if self.kind == "sentencepiece" else len(self._table)

    @cached_property
    def digest(self) -> str:
        """sha256 of everything that decides which ids a text gets."""
        head = f"{self.kind}\0{self.algorithm}\0{self.normalization}\0".encode()
        return hashlib.sha256(head + self.model).hexdigest()

    @cached_property
    def _processor(self) -> sentencepiece.SentencePieceProcessor:
        return sentencepiece.SentencePieceProcessor(model_proto=self.model)

    @cached_property
    def _normalizer(self) -> sentencepiece.SentencePieceNormalizer:
        return _make_normalizer(self.normalization)

    @cached_property
    def _table(self) -> tuple[str, ...]:
        """The piece of every id, for kinds other than SentencePiece."""
        if self.kind == "byte":
            return SPECIALS + tuple(f"<0x{byte:02X}>" for byte in range(256))
        return SPECIALS + tuple(json.loads(line) for line in self.model.split(b"\n") if line)

    @cached_property
    def _ids(self) -> dict[str, int]:
        # The specials are left out: a text that says "<pad>" does not get to pad.
        return {piece: i for i, piece in enumerate(self._table) if i >= len(SPECIALS)}

    def normalise(self, text: str) -> str:
        """The text as the vocabulary sees it, e.g. with ligatures and doubled blanks resolved."""
        return self._normalizer.normalize(_make_encodable(text))

    def encode(self, text: str) -> list[int]:
        """Token ids of one text, without bos and eos; `[]` for a blank one."""
        return self.encode_many([text])[0].tolist()

    def encode_many(self, lines: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each line, int32, without bos and eos."""
        clean = [_make_encodable(line) for line in lines]
        if not clean:
            return []
        if self.kind == "sentencepiece":
            return [np.asarray(ids, np.int32) for ids in self._processor.encode(clean, return_type="numpy")]
        texts = self._normalizer.normalize(clean)
        if self.kind == "byte":
            return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) + len(SPECIALS) for text in texts]
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
        """The text of the ids; pad, bos and eos are dropped, unknown pieces read "⁇".

        Raises:
            ValueError: an id is not of this vocabulary.
        """
        kept = [i for i in self._check(ids) if i not in (PAD_ID, BOS_ID, EOS_ID)]
        if self.kind == "sentencepiece":
            return self._processor.decode(kept)
        if self.kind == "byte":
            data = b"".join(UNKNOWN.encode() if i == UNK_ID else bytes([i - len(SPECIALS)]) for i in kept)
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
        _write(folder / f"{name}.model", self.model)
        _write(folder / f"{name}.json", (json.dumps(fields, indent=2) + "\n").encode())

    @classmethod
    def load(cls, directory: str | os.PathLike, name: str) -> Vocab:
        """Reads what `save` wrote.

        Raises:
            UserError: a file is missing, or is not what was saved.
        """
        page, model = Path(directory) / f"{name}.json", Path(directory) / f"{name}.model"
        fields = _read_json(page)
        try:
            vocab = cls(fields["kind"], model.read_bytes(), fields["normalization"], fields["algorithm"])
            _check_choice("kind", vocab.kind, KINDS)
            _check_choice("normalization", vocab.normalization, NORMALIZATIONS)
            if vocab.digest != fields["digest"]:
                raise UserError(f"{model}: not the vocabulary that {page.name} describes (digests differ); {_CURE}.")
            if vocab.size != fields["size"]:
                raise UserError(f"{model}: has {vocab.size} pieces, {page.name} says {fields['size']}; {_CURE}.")
        except OSError as error:
            raise UserError(f"{model}: cannot be read ({error.strerror}); {_CURE}.") from error
        except (KeyError, TypeError, RuntimeError, ValueError) as error:
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
        _write(Path(directory) / "vocabs.json", page.encode())

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


def train_vocab(
    lines: Sequence[str],
    *,
    kind: str = "sentencepiece",
    size: int = 8000,
    model: str = "unigram",
    character_coverage: float = 1.0,
    normalization: str = "nmt_nfkc",
    byte_fallback: bool = False,
    seed: int = 0,
    max_lines: int = 2_000_000,
) -> Vocab:
    """Builds a vocabulary from text; the same lines and settings always give the same bytes.

    Args:
        lines: the text, one sentence each. Of more than `max_lines`, evenly spread ones are read.
        kind: "sentencepiece", "word", "char" or "byte".
        size: how many ids, the four special ones included. It is an upper bound: a small corpus may give
            fewer (see `Vocab.size`); "byte" always has 260.
        model: "unigram" or "bpe", for SentencePiece.
        character_coverage: share of characters that get a piece, for SentencePiece.
        normalization: one of `NORMALIZATIONS`.
        byte_fallback: SentencePiece spells unknown characters in bytes instead of `<unk>`.
        seed: of SentencePiece's sampling.

    Raises:
        UserError: a choice is not offered, there is no text, or `size` is too small for it.
    """
    _check_choice("config.vocab.kind", kind, KINDS)
    _check_choice("config.vocab.model", model, MODELS)
    _check_choice("config.vocab.normalization", normalization, NORMALIZATIONS)
    if kind == "byte":
        return Vocab("byte", b"", normalization)
    step = -(-len(lines) // max_lines) or 1
    clean = [_make_encodable(line) for line in lines[::step]]
    if not any(line.strip() for line in clean):
        raise UserError("data: cannot build a vocabulary, because every line of the training text is blank.")
    if size <= len(SPECIALS):
        raise UserError(f"config.vocab.size must be more than {len(SPECIALS)} (the special ids), but is {size}.")
    if kind == "sentencepiece":
        proto = _train_sentencepiece(clean, size, model, character_coverage, normalization, byte_fallback, seed)
        return Vocab("sentencepiece", proto, normalization, model)
    normalizer, counts = _make_normalizer(normalization), Counter[str]()
    for start in range(0, len(clean), 10_000):
        for text in normalizer.normalize(clean[start : start + 10_000]):
            counts.update(text.split() if kind == "word" else text)
    ranked = sorted(counts, key=lambda piece: (-counts[piece], piece))[: size - len(SPECIALS)]
    return Vocab(kind, b"\n".join(json.dumps(piece).encode() for piece in ranked), normalization)


def train_vocabs(
    source_lines: Sequence[str],
    target_lines: Sequence[str],
    *,
    joint: bool = True,
    kind: str = "sentencepiece",
    size: int = 8000,
    model: str = "unigram",
    character_coverage: float = 1.0,
    normalization: str = "nmt_nfkc",
    byte_fallback: bool = False,
    seed: int = 0,
) -> Vocabs:
    """Builds the vocabularies of a language pair; `joint` makes one of both sides' text. See `train_vocab`."""

    def train(lines: Sequence[str]) -> Vocab:
        return train_vocab(
            lines,
            kind=kind,
            size=size,
            model=model,
            character_coverage=character_coverage,
            normalization=normalization,
            byte_fallback=byte_fallback,
            seed=seed,
        )

    if joint:
        vocab = train([*source_lines, *target_lines])
        return Vocabs(vocab, vocab, joint=True)
    return Vocabs(train(source_lines), train(target_lines))


_CURE = "restore the folder from a copy, or remove its vocab files to build them again"


def _train_sentencepiece(
    lines: list[str], size: int, model: str, coverage: float, normalization: str, byte_fallback: bool, seed: int
) -> bytes:
    sentencepiece.set_random_generator_seed(seed)
    writer = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=writer,
            vocab_size=size,
            model_type=model,
            character_coverage=coverage,
            normalization_rule_name=normalization,
            byte_fallback=byte_fallback,
            hard_vocab_limit=False,  # a corpus may be too small for `size` pieces
            num_threads=1,  # the sums of several threads differ in their last bits, and so would the pieces
            minloglevel=2,
            pad_id=PAD_ID,
            unk_id=UNK_ID,
            bos_id=BOS_ID,
            eos_id=EOS_ID,
        )
    except RuntimeError as error:
        _, _, reason = str(error).rpartition("] ")
        cure = "raise config.vocab.size, or lower config.vocab.character_coverage, or set config.vocab.byte_fallback"
        raise UserError(f"config.vocab.size = {size} does not work: {reason or error} Cure: {cure}.") from error
    return writer.getvalue()


def _make_normalizer(rule: str) -> sentencepiece.SentencePieceNormalizer:
    return sentencepiece.SentencePieceNormalizer(
        rule_name=rule, add_dummy_prefix=False, escape_whitespaces=False, remove_extra_whitespaces=True
    )


def _make_encodable(text: str) -> str:
    """NUL becomes a blank and a lone surrogate "?": SentencePiece's C++ takes neither."""
    if "\0" in text:
        text = text.replace("\0", " ")
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _check_choice(key: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UserError(f"{key} must be one of {', '.join(choices)}, but is {value!r} instead.")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _write(path: Path, data: bytes) -> None:
    """Writes beside the file, then renames: readers see the old bytes or the new ones."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with open(beside, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def _read_json(path: Path) -> dict:
    try:
        fields = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {_CURE}.") from error
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({_first_line(error)}); {_CURE}.") from error
    if not isinstance(fields, dict):
        raise UserError(f"{path}: not a JSON object; {_CURE}.")
    return fields
