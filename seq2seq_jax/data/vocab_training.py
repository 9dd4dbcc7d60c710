"""Builds vocabularies from text; the same lines and settings always give the same bytes."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Sequence

import sentencepiece

from seq2seq_jax.data.vocab import (
    BOS_ID,
    EOS_ID,
    KINDS,
    MODELS,
    NORMALIZATIONS,
    PAD_ID,
    SPECIALS,
    UNK_ID,
    Vocab,
    Vocabs,
    check_choice,
    check_tags,
    make_encodable,
    make_normalizer,
)
from seq2seq_jax.errors import UserError


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
    tags: Sequence[str] = (),
) -> Vocab:
    """Builds a vocabulary from text; the same lines and settings always give the same bytes.

    Args:
        lines: the text, one sentence each. Of more than `max_lines`, evenly spread ones are read.
        kind: "sentencepiece", "word", "char" or "byte".
        size: how many ids, the four special ones and the tags included. It is an upper bound: a small corpus
            may give fewer (see `Vocab.size`); "byte" always has 260 and the tags.
        model: "unigram" or "bpe", for SentencePiece.
        character_coverage: share of characters that get a piece, for SentencePiece.
        normalization: one of `NORMALIZATIONS`.
        byte_fallback: SentencePiece spells unknown characters in bytes instead of `<unk>`.
        seed: of SentencePiece's sampling.
        max_lines: see `lines`.
        tags: names of tags, without brackets; they follow the special ids.

    Raises:
        UserError: a choice is not offered, there is no text, or `size` is too small for it.
    """
    check_choice("config.vocab.kind", kind, KINDS)
    check_choice("config.vocab.model", model, MODELS)
    check_choice("config.vocab.normalization", normalization, NORMALIZATIONS)
    check_tags("config.vocab.tags", tags)
    tags = tuple(tags)
    if kind == "byte":
        return Vocab("byte", b"", normalization, tags=tags)
    step = -(-len(lines) // max_lines) or 1
    clean = [make_encodable(line) for line in lines[::step]]
    if not any(line.strip() for line in clean):
        raise UserError("data: cannot build a vocabulary, because every line of the training text is blank.")
    reserved = len(SPECIALS) + len(tags)
    if size <= reserved:
        raise UserError(f"config.vocab.size must be more than {reserved} (the special ids and tags), but is {size}.")
    if kind == "sentencepiece":
        proto = _train_sentencepiece(clean, size, model, character_coverage, normalization, byte_fallback, seed, tags)
        return Vocab("sentencepiece", proto, normalization, model, tags)
    normalizer, counts = make_normalizer(normalization), Counter[str]()
    for start in range(0, len(clean), 10_000):
        for text in normalizer.normalize(clean[start : start + 10_000]):
            counts.update(text.split() if kind == "word" else text)
    ranked = sorted(counts, key=lambda piece: (-counts[piece], piece))[: size - reserved]
    return Vocab(kind, b"\n".join(json.dumps(piece).encode() for piece in ranked), normalization, tags=tags)


def train_vocabs(
    source_lines: Sequence[str],
    target_lines: Sequence[str],
    *,
    joint: bool = True,
    kind: str = "sentencepiece",
    size: int = 8000,
    target_size: int = 0,
    model: str = "unigram",
    character_coverage: float = 1.0,
    normalization: str = "nmt_nfkc",
    byte_fallback: bool = False,
    seed: int = 0,
    tags: Sequence[str] = (),
) -> Vocabs:
    """Builds the vocabularies of a language pair; `joint` makes one of both sides' text. See `train_vocab`.

    Two vocabularies may have two sizes: `target_size`, where it is not 0, is the target's.
    """

    def train(lines: Sequence[str], size: int = size) -> Vocab:
        return train_vocab(
            lines,
            kind=kind,
            size=size,
            model=model,
            character_coverage=character_coverage,
            normalization=normalization,
            byte_fallback=byte_fallback,
            seed=seed,
            tags=tags,
        )

    if joint:
        vocab = train([*source_lines, *target_lines])
        return Vocabs(vocab, vocab, joint=True)
    return Vocabs(train(source_lines), train(target_lines, target_size or size))


def _train_sentencepiece(
    lines: list[str],
    size: int,
    model: str,
    coverage: float,
    normalization: str,
    byte_fallback: bool,
    seed: int,
    tags: tuple[str, ...],
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
            control_symbols=[f"<{tag}>" for tag in tags],
        )
    except RuntimeError as error:
        _, _, reason = str(error).rpartition("] ")
        cure = "raise config.vocab.size, or lower config.vocab.character_coverage, or set config.vocab.byte_fallback"
        raise UserError(f"config.vocab.size = {size} does not work: {reason or error} Cure: {cure}.") from error
    return writer.getvalue()
