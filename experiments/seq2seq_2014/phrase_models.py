"""What a phrase-based system is made of: word alignments, phrases with their counts, and a language model, for thot.

Dyer et al. 2013 (fast_align), Koehn et al. 2003 (phrases), Chen and Goodman 1999 (modified Kneser-Ney).
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seq2seq_jax.errors import UserError
from seq2seq_jax.train.writers import format_duration, write_json

END = "\N{PILCROW SIGN}"
"""Stands behind every sentence, see `add_end`."""
RESERVED = frozenset({"|||", "({", "})", "<s>", "</s>", "<unk>", "NULL", END})
LEVELS = 2000
"""Interpolation weights that a language model's file can tell apart."""
MAX_PHRASE = 7
"""Words of the longest phrases."""
PAUSE = 10.0
"""Seconds between lines about how far the work is."""

Pairs = tuple[list[list[str]], list[list[str]]]


def say(text: str) -> None:
    """A line about the work, with the time, on standard error."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def watch(items: Sequence[Any], what: str) -> Iterator[Any]:
    """The items, with a line now and then: how many are done, and when the rest will be."""
    begun = told = time.monotonic()
    for number, item in enumerate(items):
        now = time.monotonic()
        if number and now - told > PAUSE:
            told, left = now, (now - begun) / number * (len(items) - number)
            say(f"{what}: {number} of {len(items)}, eta {format_duration(left)}")
        yield item


def import_thot() -> Any:
    """The engine, with its parts loaded."""
    try:
        import thot.alignment
        import thot.common
        import thot.translation
    except ImportError as error:
        raise UserError(
            f'the phrase-based system needs thot ({error}): run `pip install "seq2seq_jax[smt]"`, or copy lists that '
            "were made elsewhere to --out."
        ) from error
    return thot


def read_pairs(data: Path, split: str, languages: tuple[str, str]) -> Pairs:
    """The words of both sides of a split.

    Raises:
        UserError: a file is missing, the sides differ in length, or a word has a meaning in the engine's files.
    """
    sides = []
    for language in languages:
        path = data / f"{split}.{language}"
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeError) as error:
            raise UserError(
                f"--data={data}: {path.name} must be a text in UTF-8, but cannot be read ({error}); name the folder "
                "that holds it, or save it in UTF-8."
            ) from error
        sides.append([line.split() for line in (lines[:-1] if lines[-1] == "" else lines)])
        for number, words in enumerate(sides[-1], start=1):
            if not words or RESERVED.intersection(words):
                found = "blank" if not words else f"with {sorted(RESERVED.intersection(words))[0]!r}"
                raise UserError(
                    f"{path}: line {number} must have words, none of them reserved, but is {found}; mend it."
                )
    if len(sides[0]) != len(sides[1]) or not sides[0]:
        raise UserError(
            f"--data={data}: both sides of {split} must have as many lines, at least one, but have {len(sides[0])} "
            f"and {len(sides[1])} instead."
        )
    return sides[0], sides[1]


class Stages:
    """Files and folders that are made once: each appears whole or not at all, and its seconds of CPU are kept.

    Attributes:
        folder: where they are.
        seconds: of CPU that each took, by name.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._log = folder, folder / "seconds.json"
        self.seconds: dict[str, float] = json.loads(self._log.read_text()) if self._log.exists() else {}

    def make(self, name: str, work: Callable[[Path], None]) -> Path:
        """The path of a stage; calls `work` with the path of a file or folder to be made where it is not there yet."""
        path = self.folder / name
        if path.exists():
            say(f"{name}: is there")
            return path
        part = path.with_name(path.name + ".part")
        if part.is_dir():
            shutil.rmtree(part)
        part.unlink(missing_ok=True)
        part.parent.mkdir(parents=True, exist_ok=True)
        begun = time.process_time()
        say(f"{name} ...")
        work(part)
        part.replace(path)
        self.seconds[name] = round(time.process_time() - begun, 1)
        write_json(self._log, self.seconds)
        say(f"{name}: {format_duration(self.seconds[name])} of CPU")
        return path


def align(thot: Any, pairs: Pairs, folder: Path) -> None:
    """Leaves the models of both directions in a folder, and the joined links: a line a pair, `source-target` from 0."""
    folder.mkdir()
    found = []
    for name, first, second in (("tm_swm", *pairs), ("tm_invswm", *reversed(pairs))):
        model = thot.alignment.FastAlignModel()
        for one, other in zip(first, second, strict=True):
            model.add_sentence_pair(one, other)
        model.start_training()
        for _ in watch(range(5), f"alignment {name}"):
            model.train()
        model.end_training()
        model.print(str(folder / name))
        found.append([matrix.to_list() for _, matrix in model.get_best_alignments(first, second)])
    with (folder / "links").open("w", encoding="utf-8") as file:
        for source, target, there, back in watch([*zip(*pairs, *found, strict=True)], "links"):
            links = join_links(thot, (len(source), len(target)), there, back)
            file.write(" ".join(f"{one}-{other}" for one, other in links) + "\n")


def join_links(thot: Any, sizes: tuple[int, int], there: list[int], back: list[int]) -> list[tuple[int, int]]:
    """Links of both directions by grow-diag-final-and.

    Args:
        thot: the engine.
        sizes: words of source and target.
        there: for every target word the place of its source word, from 1; 0 has none.
        back: for every source word that of its target word.
    """
    matrix = thot.common.WordAlignmentMatrix(*sizes)
    matrix.put_list(there)
    other = thot.common.WordAlignmentMatrix(*sizes[::-1])
    other.put_list(back)
    other.transpose()
    matrix.grow_diag_final_and(other)
    return [(int(one), int(other)) for one, other in np.argwhere(matrix.to_numpy())]


def render_alignment(source: Sequence[str], target: Sequence[str], links: Iterable[tuple[int, int]]) -> str:
    """A pair in the format of GIZA++: each target word with the places of its source words, from 1."""
    places: dict[int, list[int]] = defaultdict(list)
    for one, other in sorted(links):
        places[other].append(one + 1)
    free = sorted(set(range(1, len(source) + 1)) - {place for some in places.values() for place in some})
    words = [("NULL", free), *((word, places[number]) for number, word in enumerate(target))]
    shown = " ".join(f"{word} ({{ {' '.join(map(str, some))} }})" for word, some in words)
    return f"# 1\n{' '.join(source)}\n{shown}\n"


def write_phrases(thot: Any, pairs: Pairs, links: Path, path: Path) -> None:
    """Counts of phrase pairs, lines of `target ||| source ||| target's count count`; the 20 best of a source phrase."""
    giza = path.with_name("giza.part")
    with giza.open("w", encoding="utf-8") as file:
        for source, target, line in zip(*pairs, links.read_text().split("\n")[:-1], strict=True):
            made = [tuple(map(int, link.split("-"))) for link in line.split()]
            file.write(render_alignment(source, target, made))
    limits = thot.translation.PhraseExtractParameters()
    limits.max_target_phrase_length = MAX_PHRASE
    model = thot.translation.PhraseModel()
    model.build(str(giza), limits, False)
    model.print_phrase_table(str(path), 20)
    model.clear()
    giza.unlink()


def filter_phrases(path: Path, sentences: Iterable[Sequence[str]], to: Path) -> None:
    """The lines of a table whose source phrase is in one of the sentences; counts stay those of all of training."""
    wanted = {
        " ".join(words[begin:end])
        for words in sentences
        for begin in range(len(words))
        for end in range(begin + 1, min(begin + MAX_PHRASE, len(words)) + 1)
    }
    with path.open(encoding="utf-8") as lines, to.open("w", encoding="utf-8") as kept:
        kept.writelines(line for line in lines if line.split(" ||| ")[1] in wanted)


def write_translation_model(
    alignments: Path, phrases: Path, sentences: Iterable[Sequence[str]], order: int, folder: Path
) -> None:
    """What thot loads by the prefix `folder/tm`."""
    shutil.copytree(alignments, folder)
    filter_phrases(phrases, sentences, folder / "tm.ttable")
    end = " ".join(add_end([], order))
    with (folder / "tm.ttable").open("a", encoding="utf-8") as file:
        file.write(f"{end} ||| {end} ||| 1 1\n")
    # A phrase's probability is 0.7 times its relative frequency and 0.3 times its words' probability; long phrases
    # and jumps cost geometrically.
    parts = {"lambda": "0.7 0.7", "srcsegmlentable": "Uniform", "trgcutstable": "0.5", "trgsegmlentable": "Geometric"}
    for ending, text in parts.items():
        (folder / f"tm.{ending}").write_text(text + "\n")


def add_end(words: Sequence[str], order: int) -> list[str]:
    """A sentence with its end as words, as many as a language model looks back.

    thot's word graph has only those last steps that led to the best translation so far, or to a state that such a
    one had reached. With the end as one phrase of its own, which every translation takes last, all of them reach one
    state: then the graph has all that the search has kept, and n-best lists are several times as long.
    """
    return [*words, *[END] * (order - 1)]


def count_ngrams(sentences: Iterable[Sequence[str]], order: int) -> list[Counter[tuple[str, ...]]]:
    """Counts for Kneser-Ney by length of the n-gram: those of the longest, and of how many words stand before others.

    Nothing stands before `<s>`, so n-grams that begin with it keep their counts.
    """
    raw: list[Counter[tuple[str, ...]]] = [Counter() for _ in range(order)]
    for words in sentences:
        padded = ("<s>", *words, "</s>")
        for n, counts in enumerate(raw, start=1):
            counts.update(padded[begin : begin + n] for begin in range(len(padded) - n + 1))
    found = [Counter(ngram[1:] for ngram in longer) for longer in raw[1:]]
    for n in range(1, order - 1):
        found[n].update({ngram: count for ngram, count in raw[n].items() if ngram[0] == "<s>"})
    return [*found, raw[-1]]


def find_discounts(counts: Counter[tuple[str, ...]]) -> list[float]:
    """What is taken from counts of 0, 1, 2, and 3 or more (Chen and Goodman 1999, equation 26)."""
    sizes = Counter(counts.values())
    if not all(sizes[n] for n in (1, 2, 3, 4)):
        return [0.0, 0.5, 0.5, 0.5]  # a tiny corpus
    share = sizes[1] / (sizes[1] + 2 * sizes[2])
    return [0.0, *(n - (n + 1) * share * sizes[n + 1] / sizes[n] for n in (1, 2, 3))]


def write_language_model(sentences: Iterable[Sequence[str]], order: int, folder: Path) -> None:
    """Interpolated modified Kneser-Ney as a model of thot's, which loads it by the prefix `folder/lm`.

    thot interpolates relative frequencies, `w f(word | history) + (1 - w) p(word | shorter history)`, and looks `w` up
    by the history's count. Only ratios of counts matter for f: so each history gets the count under which its
    own `w` (what its discounts leave, to 1 / LEVELS) stands in the table, and its n-grams theirs in proportion.
    """
    folder.mkdir()
    with (folder / "lm").open("w", encoding="utf-8") as file:
        for counts in count_ngrams(sentences, order):
            discounts = find_discounts(counts)
            groups: dict[tuple[str, ...], list[tuple[str, int, float]]] = defaultdict(list)
            for ngram, count in counts.items():
                groups[ngram[:-1]].append((" ".join(ngram), count, count - discounts[min(count, 3)]))
            for items in groups.values():
                left = sum(kept for _, _, kept in items)
                level = round(LEVELS * left / sum(count for _, count, _ in items))
                total = min(max(level, 1), LEVELS - 1) + 0.5
                file.writelines(f"{text} {total} {total * kept / left:.9g}\n" for text, _, kept in items)
    weights = [str(level / LEVELS) for level in range(LEVELS)] * order
    (folder / "lm.weights").write_text(" ".join([str(order), str(LEVELS), "1", *weights]) + "\n")
