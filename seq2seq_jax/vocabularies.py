"""The vocabularies of a run: read from its folder, taken from another one or from files, or trained on its text.

And the n-gram model of their pieces that goes with them, where one is asked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from seq2seq_jax.corpora import Splits, list_tags, open_splits, takes_vocabulary
from seq2seq_jax.data.coverage import Coverage, coverage
from seq2seq_jax.data.sources import ParallelText
from seq2seq_jax.data.store import PreparedPairs
from seq2seq_jax.data.vocab import Vocab, Vocabs
from seq2seq_jax.data.vocab_files import digest_files, read_vocabs
from seq2seq_jax.data.vocab_training import train_vocabs
from seq2seq_jax.decode.witten_bell import estimate_arpa
from seq2seq_jax.errors import UserError
from seq2seq_jax.failpoints import reach
from seq2seq_jax.speech_checks import reads_speech
from seq2seq_jax.train.writers import replace_text, write_json
from seq2seq_jax.workdir import Folder, refuse_foreign

AUTO = "auto"
"""The value of `decode.ngram` for the run's own model."""

_BLANKS = re.compile(r"[ \t\r\n]")

MAX_COUNTED = 10_000_000
"""N-grams, the same ones included, that are counted for a run's own model: some gigabytes at worst, and a minute."""


def obtain_vocabs(
    config: ConfigDict, folder: Path, text: ParallelText | PreparedPairs | None, *, keep: bool = True
) -> Vocabs:
    """The run's vocabularies: read from `folder`, or from the user's files or trained on `text`, and kept there.

    Args:
        config: its keys `vocab` and seed say how to train them.
        folder: theirs.
        text: the training corpus; None where they must be there. A prepared one has its own.
        keep: take those in the folder as they are. Without, they are trained again where they come of
            another recipe or text: a start that was refused or killed leaves nothing that binds the next.

    Raises:
        UserError: there are none and no text to train them on, or they are damaged.
    """
    if isinstance(text, PreparedPairs):
        return _take_vocabs(folder, text, keep=keep)
    recipe = {**config.vocab.to_dict(), "seed": config.train.seed, "text": text.digest if text else ""}
    taken = config.train.init_from if takes_vocabulary(config) else ""
    recipe |= {"init_from": taken, "tags": list(list_tags(config)), "files": digest_files(config.vocab.file)}
    note = folder / "recipe.json"
    if (folder / "vocabs.json").exists() and (keep or _read_note(note) == recipe):
        return Vocabs.load(folder)
    if text is None or text.target is None:
        raise UserError(f"{folder}: there is no vocabulary here; train a model in this --workdir first.")
    note.unlink(missing_ok=True)
    if taken:
        refuse_foreign(Path(taken), "--init_from")
        if not Folder(Path(taken)).config.is_file():
            raise UserError(f"--init_from={taken}: is no folder of a run, which has a config.json; name one.")
        vocabs = Vocabs.load(Folder(Path(taken)).vocab)
    else:
        vocabs = _read_vocabs(config) if config.vocab.file else _train_vocabs(config, text)
    reach("vocab")
    vocabs.save(folder)
    write_json(note, recipe)
    return vocabs


def _read_note(path: Path) -> Any:
    """What a JSON file holds; None where it is missing or damaged, which is no recipe."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def _take_vocabs(folder: Path, prepared: PreparedPairs, *, keep: bool) -> Vocabs:
    """The vocabularies that a corpus was prepared with, kept in the run's folder as well."""
    own = prepared.folder / "vocab"
    at = folder if keep and (folder / "vocabs.json").exists() else own
    vocabs = Vocabs.load(at)
    if vocabs.digest != prepared.index.vocab_sha256:
        raise UserError(
            f"{prepared.folder}: was prepared with another vocabulary ({prepared.index.vocab_sha256[:12]}) than that "
            f"in {at} ({vocabs.digest[:12]}); use another --workdir, or remove that one and run --mode=prepare again."
        )
    if at == own:
        vocabs.save(folder)
    return vocabs


def obtain_ngram(config: ConfigDict, vocabs: Vocabs, path: Path, text: ParallelText | PreparedPairs) -> Path | None:
    """The n-gram model of the training's target text, where `decode.ngram` is "auto": estimated unless it is there.

    Args:
        config: its `decode.ngram` and `decode.ngram_order` say whether, and how long.
        vocabs: whose pieces are counted.
        path: of the ARPA file.
        text: the training corpus.

    Returns:
        `path`; None where no such model is asked for.

    Raises:
        UserError: the corpus is prepared, or too large for this.
    """
    keys, vocab = config.decode, vocabs.target
    if keys.ngram.strip() != AUTO:
        return None
    cure = "name an ARPA file over the vocabulary's pieces (KenLM makes one), or do without: --config.decode.ngram="
    if isinstance(text, PreparedPairs) or text.target is None:
        raise UserError(f"config.decode.ngram={AUTO}: needs the training's text, but has a prepared corpus; {cure}.")
    note = f"seq2seq_jax: n-grams of vocabulary {vocab.digest} in text {text.digest}, to order {keys.ngram_order}\n"
    if path.exists():
        with path.open(encoding="utf-8") as file:
            if file.readline() == note:
                return path
    encoded = vocab.encode_many(text.target)
    if (counted := sum(map(len, encoded)) * keys.ngram_order) > MAX_COUNTED:
        rule = f"must not count more than {MAX_COUNTED:,} n-grams, but config.decode.ngram_order={keys.ngram_order}"
        raise UserError(f"config.decode.ngram={AUTO}: {rule} makes {counted:,} of {text.name}; lower it, {cure}.")
    estimated = note + estimate_arpa((spell_pieces(vocab, ids) for ids in encoded), keys.ngram_order)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, estimated)
    except OSError as error:
        why = f"the model is kept in {path}, which cannot be written ({error.strerror})"
        raise UserError(f"config.decode.ngram={AUTO}: {why}; make it where the folder can be, or {cure}.") from error
    return path


def find_ngram(config: ConfigDict, vocabs: Vocabs, folder: Folder) -> Path:
    """The file that `decode.ngram` names: "auto" is the one in the run's folder, estimated now if it is not there.

    Raises:
        UserError: it can only be estimated, and the training corpus is not there, prepared, or too large.
    """
    name = config.decode.ngram.strip()
    if name != AUTO:
        return Path(name).expanduser()
    if not folder.ngram.is_file():
        if not config.data.train:
            raise UserError(f"config.decode.ngram={AUTO}: {folder.ngram} is not there; name an ARPA file.")
        obtain_ngram(config, vocabs, folder.ngram, open_splits(config).train)
    return folder.ngram


def spell_pieces(vocab: Vocab, ids: Iterable[int]) -> list[str]:
    """Pieces as the words of an ARPA file, which have no blanks in them."""
    return [_BLANKS.sub("\u2581", piece) for piece in vocab.pieces(ids)]


def measure_coverage(config: ConfigDict, vocabs: Vocabs, splits: Splits) -> dict[str, dict[str, Coverage]]:
    """Side → split → what the vocabulary knows of it; {} for a SentencePiece vocabulary of our own."""
    if config.vocab.kind not in ("word", "char") and not config.vocab.file:
        return {}
    sides = {"source": vocabs.source, "target": vocabs.target}
    if reads_speech(config.model):
        del sides["source"]
    texts = {"train": splits.train, "dev": splits.dev}
    if isinstance(splits.train, PreparedPairs):  # its text is not read again
        del texts["train"]
    return {
        side: {name: coverage(vocab, getattr(text, side) or []) for name, text in texts.items()}
        for side, vocab in sides.items()
    }


def _read_vocabs(config: ConfigDict) -> Vocabs:
    """The user's own, with the tags that the config needs."""
    keys = config.vocab
    return read_vocabs(
        keys.file, kind=keys.kind, joint=keys.joint, normalization=keys.normalization, tags=list_tags(config)
    )


def _train_vocabs(config: ConfigDict, text: ParallelText) -> Vocabs:
    names = ("joint", "kind", "size", "target_size", "model", "character_coverage", "normalization", "byte_fallback")
    keys = {name: config.vocab[name] for name in names}
    # Audio has no pieces: a model that hears has one vocabulary, of the transcripts.
    source = [] if reads_speech(config.model) else text.source
    return train_vocabs(source, text.target or [], seed=config.train.seed, tags=list_tags(config), **keys)
