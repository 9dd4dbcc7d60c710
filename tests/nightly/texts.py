"""Spoiled texts, vocabularies and n-gram models: F1, F2 and F3 of the catalogue."""

from __future__ import annotations

import io
import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from boundary import Case, require
from spoiling import PLACES, STREAMED, make_wav, spoil_bytes, spoil_gzip, spoil_json, spoil_lines, spoil_place

from seq2seq_jax.config import default_config
from seq2seq_jax.data import phrasebook
from seq2seq_jax.data.nbest import group_segments, list_columns, make_matrix, parse_line, read_nbest, render_line
from seq2seq_jax.data.sources import open_split, read_parallel
from seq2seq_jax.data.spec import CorpusSpec
from seq2seq_jax.data.streams import find_corpus, read_piece, stream
from seq2seq_jax.data.utterances import index_durations, read_utterances
from seq2seq_jax.data.vocab import Vocab, Vocabs
from seq2seq_jax.data.vocab_files import read_vocab
from seq2seq_jax.data.vocab_training import train_vocabs
from seq2seq_jax.decode.arpa import read_arpa
from seq2seq_jax.decode.witten_bell import estimate_arpa
from seq2seq_jax.modes.backtranslate import _look_at_text
from seq2seq_jax.modes.compare import compare_files
from seq2seq_jax.modes.lines import count_lines, read_input
from seq2seq_jax.modes.rescore import _read_texts
from seq2seq_jax.modes.rescore_request import Request
from seq2seq_jax.modes.translate import _read_wishes

PAIRS = 40
TRIED = ("the cat sleeps.", "", "  \t", "für \u2028 \x0b", "a" * 300, "日本語 \U0001f600", "\0")


def _rows(lines: list[str]) -> bytes:
    return "".join(line + "\n" for line in lines).encode()


def _use_vocab(vocab: Vocab) -> None:
    """Cuts and joins a few texts."""
    require(vocab.size >= 4 + len(vocab.tags), f"{vocab.size} pieces")
    for ids in vocab.encode_many(list(TRIED)):
        require(not len(ids) or 0 <= ids.min() <= ids.max() < vocab.size, "ids outside of the vocabulary")
        require(isinstance(vocab.decode(ids), str), "no text")
    require(all(isinstance(piece, str) for piece in vocab.pieces(range(vocab.size))), "pieces that are no text")


class Texts:
    """F1: parallel text, TSV, manifests, monolingual text, n-best lists, constraints, lines to translate."""

    def __init__(self, folder: Path) -> None:
        source, target = phrasebook.pairs("train", source="en", target="de", size=PAIRS, seed=3)
        self.source, self.target = source, target
        self.vocab = train_vocabs(source, target, joint=True, kind="word", size=200).source
        self.nbest = [
            f"{n // 2} ||| {line} ||| LM0= -{n}.5 WordPenalty0= -3 TM= 0.5 {n % 7} ||| -{n}.25"
            for n, line in enumerate(target)
        ]
        wish = {"prefix": "der", "must": ["Katze"], "must_not": ["Hund", "Maus"]}
        self.wishes = [json.dumps(wish) if n % 3 else "" for n in range(PAIRS)]
        self.readers: tuple[Callable[[random.Random, Path], Case], ...] = (
            self._sides, self._sides, self._table, self._piecewise, self._manifest, self._manifest, self._monolingual,
            self._lists, self._constraints, self._lines,
        )  # fmt: skip

    def draw(self, draw: random.Random, place: Path) -> Case:
        """A spoiled text, by one of its readers."""
        if draw.random() < 0.01:
            return self._compared(draw, place)
        return draw.choice(self.readers)(draw, place)

    def _spoil(self, path: Path, data: bytes, draw: random.Random, *, pipes: bool = True) -> tuple[str, bool]:
        """Writes the file in some wrong way; what was done, and whether it must be refused."""
        if path.suffix == ".gz":
            kind, data, refused = spoil_gzip(data, draw)
            path.write_bytes(data)
            return f"gzip: {kind}", refused
        if draw.random() < 0.12:
            return spoil_place(path, draw, PLACES if pipes else STREAMED)
        if draw.random() < 0.003:
            at = data.index(b"\n")
            path.write_bytes(data[:at] + b"y " * (5 << 20) + data[at:])
            return "line of 10 MiB", False
        kind, data = spoil_lines(data, draw)
        path.write_bytes(data)
        return kind, kind in ("lone surrogate", "invalid UTF-8", "empty", "only a BOM") and pipes

    def _sides(self, draw: random.Random, place: Path) -> Case:
        ending = draw.choice(("", "", "", ".gz"))
        goods = {"en": _rows(self.source), "de": _rows(self.target)}
        spoiled = draw.choice(("en", "de"))
        other = "de" if spoiled == "en" else "en"
        (place / f"corpus.{other}").write_bytes(goods[other])
        path = place / f"corpus.{spoiled}{ending}"
        kind, refused = self._spoil(path, goods[spoiled], draw)
        refused = refused or kind in ("line more", "blank line more", "line less")

        def read() -> None:
            text = open_split(str(place / "corpus"), split="train", source="en", target="de")
            require(len(text.source) == len(text.target or []) > 0, "sides of different lengths")
            self._use(text.source)
            self._use(text.target or [])

        return Case(f"sides: {kind}", read, ["corpus.", "corpus.{"], refused)

    def _use(self, lines: list[str]) -> None:
        for ids in self.vocab.encode_many(lines, threads=1):
            require(not len(ids) or int(ids.max()) < self.vocab.size, "ids outside of the vocabulary")
        require(not any("\n" in line for line in lines), "ends of lines within lines")

    def _table(self, draw: random.Random, place: Path) -> Case:
        rows = _rows([f"{a}\t{b}" for a, b in zip(self.source, self.target, strict=True)])
        path = place / draw.choice(("corpus.tsv", "corpus.tsv", "corpus.tsv.gz"))
        kind, refused = self._spoil(path, rows, draw)

        def read() -> None:
            text = read_parallel(str(path), source="en", target="de")
            self._use(text.source)
            self._use(text.target or [])

        return Case(f"tsv: {kind}", read, [path.name], refused)

    def _piecewise(self, draw: random.Random, place: Path) -> Case:
        """As --mode=prepare reads."""
        ending = draw.choice(("", "", ".gz"))
        (place / "corpus.en").write_bytes(_rows(self.source))
        path = place / f"corpus.de{ending}"
        kind, refused = self._spoil(path, _rows(self.target), draw)

        def read() -> None:
            spec = CorpusSpec(str(place / "corpus"), "en", "de")
            corpus, count = find_corpus(spec, phrasebook_pairs=0), 0
            for piece in stream((corpus,), 7, {}):
                source, target = read_piece(piece, corpus)
                require(len(source) == len(target) == piece.count, "a piece with sides of different lengths")
                count += len(source)
                self._use(target)
            require(count > 0, "nothing")

        return Case(f"piecewise: {kind}", read, ["corpus."], refused or kind in ("line more", "line less"))

    def _manifest(self, draw: random.Random, place: Path) -> Case:
        """Three clips with transcripts, as TSV or JSON lines."""
        for n in range(3):
            (place / f"{n}.wav").write_bytes(make_wav(bytes(3200 * (n + 1))))
        if draw.random() < 0.5:
            path = place / draw.choice(("list.tsv", "list.tsv.gz"))
            data = b"audio\ttext\tstart\tend\n" + _rows([f"{n}.wav\thello {n}\t0.01\t0.{n}9" for n in range(3)])
            kind, refused = self._spoil(path, data, draw)
        else:
            path = place / "list.jsonl"
            rows: list[dict[str, Any]] = [{"audio": f"{n}.wav", "text": f"hi {n}", "start": 0.01} for n in range(3)]
            rows[1] = {"audio_filepath": "1.wav", "text": "x", "offset": 0.05, "duration": 0.1}
            if draw.random() < 0.7:
                kind, data = spoil_json(rows[1], draw)
                lines = [json.dumps(rows[0]).encode(), b" ".join(data.split(b"\n")), json.dumps(rows[2]).encode()]
                path.write_bytes(b"\n".join(lines) + b"\n")
                refused = False
            else:
                kind, refused = self._spoil(path, _rows([json.dumps(row) for row in rows]), draw)

        def read() -> None:
            text = read_utterances(path)
            seconds = index_durations(text, cache=None, strict=True)
            require(bool(np.isfinite(seconds).all() and (seconds > 0).all()), "no lengths")
            self._use(text.target or [])

        return Case(f"manifest: {kind}", read, [path.name, ".wav"], refused)

    def _monolingual(self, draw: random.Random, place: Path) -> Case:
        path = place / draw.choice(("mono.txt", "mono.txt.gz"))
        kind, refused = self._spoil(path, _rows(self.target), draw)
        config = default_config()
        config.data.monolingual = str(path)
        return Case(f"monolingual: {kind}", lambda: _look_at_text(config), [path.name], refused)

    def _lists(self, draw: random.Random, place: Path) -> Case:
        """N-best lists, with a source and references."""
        path, sides = place / "lists.txt", {name: place / name for name in ("source.txt", "reference.txt")}
        for side in sides.values():
            side.write_bytes(_rows(self.source))
        which = draw.choice((path, path, path, *sides.values()))
        if which != path:
            path.write_bytes(_rows(self.nbest))
        kind, refused = self._spoil(which, _rows(self.nbest if which == path else self.source), draw)
        refused = refused and (which == path or kind not in ("only a BOM", "empty"))
        named = [str(side) if draw.random() < 0.7 or side == which else None for side in sides.values()]

        def read() -> None:
            items, _, _ = _read_texts(Request(str(path), "x", *named, (), None, "bleu"))
            require(len(group_segments(items)) <= len(items) > 0, "no lists")
            require(max(group_segments(items)) < 10**8, "a segment of too high a number")
            matrix = make_matrix(items, list_columns(items))
            require(bool(np.isfinite(matrix).all()), "features that are no numbers")
            require(all(parse_line(render_line(item)) == item for item in read_nbest(path)), "lists change")

        return Case(f"n-best: {kind}", read, [which.name, path.name], refused)

    def _constraints(self, draw: random.Random, place: Path) -> Case:
        path, keys = place / "wishes.jsonl", default_config().decode
        if draw.random() < 0.5:
            kind, data = spoil_json(json.loads(self.wishes[1]), draw)
            lines = [line.encode() for line in self.wishes]
            lines[2] = b" ".join(data.split(b"\n"))
            path.write_bytes(b"\n".join(lines) + b"\n")
            refused = False
        else:
            kind, refused = self._spoil(path, _rows(self.wishes), draw, pipes=False)

        def read() -> None:
            require(len(_read_wishes(str(path), keys, PAIRS)) == PAIRS, "not a wish for each line")

        return Case(f"constraints: {kind}", read, [path.name], refused)

    def _lines(self, draw: random.Random, place: Path) -> Case:
        """As --mode=translate reads."""
        path = place / "input.txt"
        kind, refused = self._spoil(path, _rows(self.source), draw, pipes=False)

        def read() -> None:
            lines, total = list(read_input(str(path))), count_lines(str(path))
            require(len(lines) == total, f"{len(lines)} lines, counted as {total}")
            require(not any("\ufeff" in line[:1] for line in lines[:1]), "a BOM in the first line")
            self._use(lines)

        return Case(f"lines: {kind}", read, [path.name], refused)

    def _compared(self, draw: random.Random, place: Path) -> Case:
        paths = [place / name for name in ("one.txt", "two.txt", "reference.txt")]
        for path in paths:
            path.write_bytes(_rows(self.target[:10]))
        which = draw.choice(paths)
        kind, refused = self._spoil(which, _rows(self.target[:10]), draw, pipes=False)
        return Case(f"compare: {kind}", lambda: compare_files(*map(str, paths), None), [which.name, "one.txt"], refused)


class Models:
    """F2: SentencePiece models, of our own and of others."""

    def __init__(self, folder: Path) -> None:
        source, target = phrasebook.pairs("train", source="en", target="de", size=1500, seed=3)
        self.models = []
        for kind, ids in (("unigram", {}), ("bpe", {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1})):
            made = io.BytesIO()
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(source + target), model_writer=made, vocab_size=400, model_type=kind,
                byte_fallback=kind == "bpe", hard_vocab_limit=False, minloglevel=2, **ids,
            )  # fmt: skip
            self.models.append(made.getvalue())
        self.saved = folder / "vocab"
        for kind in ("unigram", "bpe"):
            keys = {"joint": kind == "bpe", "kind": "sentencepiece", "size": 400, "model": kind}
            train_vocabs(source, target, **keys).save(self.saved / kind)

    def draw(self, draw: random.Random, place: Path) -> Case:
        """A spoiled model, given by the user or kept by a run."""
        path = place / "their.model"
        if draw.random() < 0.15:
            shutil.copytree(self.saved / "unigram", place / "vocab")
            path = place / "vocab" / "vocab_target.model"
            kind, data = spoil_bytes(path.read_bytes(), draw)
            path.write_bytes(data)
            return Case(f"run: {kind}", lambda: _use_vocab(Vocabs.load(path.parent).target), ["vocab_target"])
        if draw.random() < 0.02:
            kind, refused = spoil_place(path, draw)
        else:
            kind, data = spoil_bytes(draw.choice(self.models), draw)
            path.write_bytes(data)
            refused = False
        tags = draw.choice(((), (), ("2de",)))
        return Case(
            f"given: {kind}",
            lambda: _use_vocab(read_vocab(path, kind="sentencepiece", tags=tags)),
            [path.name],
            refused,
        )


class Words:
    """F2, F3: lists of words and characters, and what a run keeps of its vocabulary."""

    def __init__(self, folder: Path) -> None:
        source, target = phrasebook.pairs("train", source="en", target="de", size=300, seed=3)
        self.folder = folder
        for kind in ("word", "char", "byte"):
            train_vocabs(source, target, joint=kind == "char", kind=kind, size=120).save(folder / kind)
        words = list(dict.fromkeys(word for line in source for word in line.split()))[:80]
        self.lists = {
            "word": _rows(words),
            "char": _rows(list("abcdefgh äöü")),
            "counted": _rows([f"{word}\t{900 - n}" for n, word in enumerate(words)]),
        }

    def draw(self, draw: random.Random, place: Path) -> Case:
        """A spoiled list, or a spoiled page or table of a run."""
        if draw.random() < 0.5:
            kind = draw.choice(list(self.lists))
            path = place / draw.choice(("words.txt", "words.txt.gz"))
            refused = False
            if path.suffix == ".gz":
                how, data, refused = spoil_gzip(self.lists[kind], draw)
                path.write_bytes(data)
            elif draw.random() < 0.08:
                how, refused = spoil_place(path, draw)
            else:
                how, data = spoil_lines(self.lists[kind], draw)
                path.write_bytes(data)
            of = "word" if kind == "counted" else kind
            return Case(f"{kind}: {how}", lambda: _use_vocab(read_vocab(path, kind=of)), [path.name], refused)
        kind = draw.choice(("word", "char", "byte"))
        shutil.copytree(self.folder / kind, place / "vocab")
        path = draw.choice(sorted((place / "vocab").iterdir()))
        if path.suffix == ".json":
            how, data = spoil_json(json.loads(path.read_bytes()), draw)
        else:
            how, data = spoil_lines(path.read_bytes() or b"\n", draw)
        path.write_bytes(data)
        if path.stem != "vocabs" and draw.random() < 0.3:
            page = path.with_suffix(".json")
            return Case(f"taken: {how}", lambda: _use_vocab(read_vocab(page, kind=kind)), [path.stem])

        def read() -> None:
            vocabs = Vocabs.load(place / "vocab")
            _use_vocab(vocabs.source)
            _use_vocab(vocabs.target)

        return Case(f"kept: {how}", read, ["vocab"])


class Ngrams:
    """F3: n-gram models in ARPA files."""

    def __init__(self, folder: Path) -> None:
        source, _ = phrasebook.pairs("train", source="en", target="de", size=60, seed=3)
        self.data = estimate_arpa((line.split() for line in source), 3).encode()
        self.words = [line.split() for line in source[:5]]

    def draw(self, draw: random.Random, place: Path) -> Case:
        """A spoiled model."""
        path, refused = place / draw.choice(("lm.arpa", "lm.arpa", "lm.arpa.gz")), False
        if path.suffix == ".gz":
            kind, data, refused = spoil_gzip(self.data, draw)
            path.write_bytes(data)
        elif draw.random() < 0.08:
            kind, refused = spoil_place(path, draw)
        elif draw.random() < 0.3:
            kind, data = self._spoil_counts(draw)
            path.write_bytes(data)
        else:
            kind, data = spoil_lines(self.data, draw)
            path.write_bytes(data)

        def read() -> None:
            arpa = read_arpa(path)
            require(1 <= arpa.order <= 3, f"order {arpa.order}")
            require(all(math.isfinite(arpa.score_words(words)) for words in (*self.words, ["?"], [])), "no numbers")
            require(all(log_prob <= 0 for grams in arpa.grams for log_prob, _ in grams.values()), "more than certain")

        return Case(kind, read, [path.name], refused)

    def _spoil_counts(self, draw: random.Random) -> tuple[str, bytes]:
        """The head, a section's name or a line, with another number or word."""
        lines = self.data.split(b"\n")
        at = draw.randrange(6) if draw.random() < 0.3 else draw.randrange(len(lines))
        fields = lines[at].replace(b"=", b"\t=\t").split(b"\t")
        values = (
            b"9" * 30,
            b"9" * 5000,
            b"-1",
            b"0",
            b"nan",
            b"inf",
            b"-inf",
            b"1e999",
            b"",
            b"x",
            b"\xd9\xa3",
            b"1_0",
        )
        fields[draw.randrange(len(fields))] = draw.choice(values)
        lines[at] = b"\t".join(fields).replace(b"\t=\t", b"=")
        return "fields", b"\n".join(lines)
