"""N-gram language models in ARPA files: read, checked, and asked for the score of a text.

    p(w | h) = p*(h w)                      where the file lists h w
               backoff(h) p(w | h')         elsewhere, h' being h without its first word; backoff is 1 if not listed

(Katz 1987; the format is SRILM's, as KenLM and others write it, with logarithms to the base 10.)
"""

from __future__ import annotations

import dataclasses
import gzip
import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from io import BufferedReader
from pathlib import Path

from seq2seq_jax.errors import UserError

BOS, EOS, UNKNOWN = "<s>", "</s>", "<unk>"
_SECTION = re.compile(r"\\([0-9]{1,9})-grams:")
_COUNT = re.compile(r"ngram\s+([0-9]{1,9})\s*=\s*([0-9]{1,15})")
_MOST_BYTES = 1 << 20  # of a line
_BOMB_BYTES, _BOMB_RATIO = 1 << 20, 100  # such a model is packed to a fifth; DEFLATE reaches a thousandth

Grams = dict[tuple[str, ...], tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Arpa:
    """A model as its file lists it.

    Attributes:
      name: Of the file.
      grams: For n = 1, 2, ...: of every n-gram the logarithms (natural) of its probability and of its backoff.
      unknown: Log-probability of a word that is not listed, where the file has no <unk>.
    """

    name: str
    grams: tuple[Grams, ...]
    unknown: float = -20.0

    @property
    def order(self) -> int:
        """The longest n."""
        return len(self.grams)

    @property
    def words(self) -> Mapping[tuple[str, ...], tuple[float, float]]:
        """The unigrams."""
        return self.grams[0]

    def score_words(self, words: Sequence[str]) -> float:
        """The log-probability (natural) of a text and its end: what a second pass adds to the score of an output."""
        known = [word if (word,) in self.words else UNKNOWN for word in words]
        history, total = [BOS], 0.0
        for word in (*known, EOS):
            total += self.score_word(tuple(history), word)
            history = [*history, word][-max(self.order - 1, 1) :]
        return total

    def score_word(self, history: tuple[str, ...], word: str) -> float:
        """The log-probability of a word after others; all are 1-grams, but for <unk>."""
        context, backoff = history[len(history) - min(len(history), self.order - 1) :], 0.0
        while True:
            found = self.grams[len(context)].get((*context, word))
            if found is not None:
                return backoff + found[0]
            if not context:
                return backoff + self.unknown
            backoff += self.grams[len(context) - 1].get(context, (0.0, 0.0))[1]
            context = context[1:]


def read_arpa(path: str | Path, *, unknown: float = -20.0) -> Arpa:
    """Reads an ARPA file, gzipped where its name ends with ".gz".

    Args:
      path: The file.
      unknown: As of `Arpa`.

    Raises:
      UserError: it cannot be read, or is no ARPA file; with the number of the line.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "not a regular file"
        raise UserError(f"{path}: is {kind}; give an ARPA file of an n-gram model.")
    try:
        opened = gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")
        with opened as file:
            if path.suffix != ".gz" and file.peek(4)[:4] == b"mmap":
                raise UserError(f"{path}: is a binary of KenLM; give the ARPA file that it was made of.")
            return Arpa(str(path), _Reader(path, _decode(path, file)).read(), unknown)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}); give an ARPA file of an n-gram model.") from error


def _decode(path: Path, file: gzip.GzipFile | BufferedReader) -> Iterator[tuple[int, str | None]]:
    """Numbers and texts of the lines that are not blank; at the end that of the last line, and None."""
    number = 0
    for number, line in enumerate(iter(lambda: file.readline(_MOST_BYTES), b""), 1):
        if len(line) == _MOST_BYTES:
            raise UserError(f"{path}:{number}: has more than {_MOST_BYTES:,} bytes; give an ARPA file.")
        if number % 4096 == 0 and isinstance(file, gzip.GzipFile):
            packed = file.fileobj.tell()  # type: ignore[union-attr]
            if file.tell() > max(_BOMB_BYTES, _BOMB_RATIO * packed):
                raise UserError(f"{path}: unpacks to more than {_BOMB_RATIO} times its size; make it again.")
        if line.isspace():
            continue
        try:
            yield number, line.decode("utf-8").strip(" \t\r\n")
        except UnicodeDecodeError:
            raise UserError(f"{path}:{number}: must be UTF-8, but is not; convert the file.") from None
    yield number, None


class _Reader:
    """Goes through the lines of a file."""

    def __init__(self, path: Path, lines: Iterator[tuple[int, str | None]]) -> None:
        self.path, self.lines, self.number = path, lines, 0

    def read(self) -> tuple[Grams, ...]:
        """All n-grams."""
        while (line := self._next("\\data\\")) != "\\data\\":
            pass
        counts: list[int] = []
        while not (line := self._next("\\1-grams:")).startswith("\\"):
            found = _COUNT.fullmatch(line)
            if found is None or int(found[1]) != len(counts) + 1:
                raise self._refuse(f"must be 'ngram {len(counts) + 1}=COUNT'", line)
            counts.append(int(found[2]))
        grams: list[Grams] = []
        for order, count in enumerate(counts, 1):
            section = _SECTION.fullmatch(line)
            if section is None or int(section[1]) != order:
                raise self._refuse(f"must be '\\{order}-grams:'", line)
            own, line = self._read_section(order, len(counts), grams[0] if grams else None)
            if len(own) != count:
                rule = f"ends {len(own)} {order}-grams, and the head of the file says {count}"
                raise UserError(f"{self.path}:{self.number}: {rule}; make the file again.")
            grams.append(own)
        if line != "\\end\\" or not grams:
            raise self._refuse("must be '\\end\\' after the longest n-grams", line)
        return tuple(grams)

    def _read_section(self, order: int, longest: int, words: Grams | None) -> tuple[Grams, str]:
        """The n-grams of a section, and the line after it."""
        grams: Grams = {}
        while not (line := self._next("\\end\\")).startswith("\\"):
            fields = re.split(r"[ \t]+", line)
            if len(fields) != order + 1 and (order == longest or len(fields) != order + 2):
                raise self._refuse(f"must be a log-probability, {order} words and at most one backoff", line)
            gram = tuple(fields[1 : order + 1])
            if words is not None and (missing := [word for word in gram if (word,) not in words]):
                raise self._refuse(f"has a word that is no 1-gram, {missing[0]!r}", line)
            if gram in grams:
                raise self._refuse("is there twice", line)
            log_prob = self._read_number(fields[0], line)
            if log_prob > 0:
                raise self._refuse("must have a log-probability of at most 0", line)
            grams[gram] = log_prob, self._read_number(fields[-1], line) if len(fields) > order + 1 else 0.0
        return grams, line

    def _read_number(self, field: str, line: str) -> float:
        try:
            value = float(field)
        except ValueError:
            value = math.nan
        if math.isnan(value) or value == math.inf:
            raise self._refuse(f"must have a number in the place of {field!r}", line)
        return max(value, -99.0) * math.log(10.0)

    def _next(self, wanted: str) -> str:
        self.number, line = next(self.lines)
        if line is None:
            raise UserError(f"{self.path}:{self.number}: the file ends before '{wanted}'; give a whole ARPA file.")
        return line

    def _refuse(self, rule: str, line: str) -> UserError:
        shown = line if len(line) <= 60 else f"{line[:60]}..."
        shown = shown.replace("\t", " ")
        quoted = f"'{shown}'" if shown.isprintable() else ascii(shown)
        return UserError(f"{self.path}:{self.number}: {rule}, but is {quoted}; give a whole ARPA file.")
