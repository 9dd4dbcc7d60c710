"""Which corpora a run trains on, as one line of a config.

    data.train = "my/news?weight=2, my/synthetic?tag=bt, my/talks?source=en&target=fr"

Corpora are separated by commas. After a question mark a corpus may say, joined by "&": `source`, `target` (its
languages, where they are not those of the config), `weight` (how often it is seen for its size), `tag` (a token
before each of its sources, `<bt>` for tag=bt; several with "+").
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable

from seq2seq_jax.errors import UserError

_KEYS = ("source", "target", "weight", "tag")


@dataclasses.dataclass(frozen=True)
class CorpusSpec:
    """One corpus of a mixture.

    Attributes:
        name: "phrasebook", a prefix, a .tsv, or "tfds:NAME/CONFIG[:SPLIT]".
        source, target: language codes.
        weight: what its size is multiplied with before shares are taken.
        tags: names of the tokens put before each source, without brackets.
    """

    name: str
    source: str
    target: str
    weight: float = 1.0
    tags: tuple[str, ...] = ()


def parse_corpora(line: str, *, source: str, target: str, target_tag: bool = False, key: str) -> tuple[CorpusSpec, ...]:
    """Reads the line of a config.

    Args:
        line: see above.
        source, target: languages where a corpus names none.
        target_tag: every corpus gets the tag of its target language, `2de`, before its own.
        key: of the config, for messages.

    Raises:
        UserError: the line is empty, or a corpus says something that is not known.
    """
    specs = []
    for entry in _split(line):
        name, _, options = entry.partition("?")
        if not name:
            raise UserError(f'config.{key} = {line!r}: a corpus has no name; give "phrasebook" or a prefix.')
        told: dict[str, str] = {}
        for option in filter(None, options.split("&")):
            word, _, value = option.partition("=")
            if word not in _KEYS or not value or word in told:
                raise UserError(
                    f"config.{key}: {name}?{option}: after the question mark come {', '.join(_KEYS)}, each once and "
                    "with a value, joined by &, such as my/news?weight=2&tag=bt."
                )
            told[word] = value
        languages = (told.get("source", source), told.get("target", target))
        tags: tuple[str, ...] = (name_target(languages[1]),) if target_tag else ()
        tags += tuple(filter(None, told.get("tag", "").split("+")))
        specs.append(CorpusSpec(name, *languages, _read_weight(told.get("weight", "1"), name, key), tags))
    return tuple(specs)


def name_target(language: str) -> str:
    """The tag that asks for a target language: `2de`."""
    return f"2{language}"


def change_names(line: str, change: Callable[[str], str]) -> str:
    """The line with every corpus' name changed, and all else as it is."""
    return ", ".join("?".join([change(name), *rest]) for name, *rest in (e.split("?", 1) for e in _split(line)))


def without_name(line: str, name: str) -> str:
    """The line without the corpora of a name."""
    return ", ".join(entry for entry in _split(line) if entry.partition("?")[0] != name)


def _split(line: str) -> list[str]:
    """The corpora; a comma inside [...] belongs to a TFDS split."""
    return [entry.strip() for entry in re.split(r",(?![^\[]*\])", line)]


def _read_weight(text: str, name: str, key: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise UserError(f"config.{key}: {name}?weight={text}: a weight must be a number more than 0.")
    return weight
