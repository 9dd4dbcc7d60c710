"""An n-gram model of characters, as an ARPA file for `decode.ngram`, from the transcripts of a manifest.

    python experiments/speech/ngram.py MANIFEST.tsv MODEL.arpa [--order 6]
    python -m seq2seq_jax.main --workdir=RUN --mode=evaluate --config.decode.method=beam \
        --config.decode.ngram=MODEL.arpa --config.decode.ngram_weight=0.5

Probabilities are Witten and Bell's (1991), each order interpolated with the one below:

    p(w | h) = (c(h w) + T(h) p(w | h')) / (c(h) + T(h))         T(h): how many different characters followed h

which a file with back-off says exactly: what h does not list gets T(h) / (c(h) + T(h)) of what h' gives it. Blanks
are written as U+2581. For words, or large corpora, use KenLM or SRILM.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from pathlib import Path

BLANK = "\u2581"
Gram = tuple[str, ...]


def read_transcripts(path: Path) -> list[str]:
    """The second column of a manifest, lower-case."""
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    begin = 1 if rows and rows[0][:2] == ["audio", "text"] else 0
    return [" ".join(row[1].lower().split()) for row in rows[begin:] if len(row) > 1]


def count(lines: list[str], order: int) -> list[Counter[Gram]]:
    """How often every n-gram occurs, of each order."""
    counts: list[Counter[Gram]] = [Counter() for _ in range(order)]
    for line in lines:
        tokens = ["<s>", *line.replace(" ", BLANK), "</s>"]
        for end in range(1, len(tokens)):
            for length in range(1, min(order, end + 1) + 1):
                counts[length - 1][tuple(tokens[end - length + 1 : end + 1])] += 1
    return counts


def estimate(counts: list[Counter[Gram]]) -> tuple[list[dict[Gram, float]], dict[Gram, float]]:
    """Probabilities of the n-grams of each order, and what every history leaves to the order below."""
    types = len(counts[0])
    probs: list[dict[Gram, float]] = [{}]
    total = sum(counts[0].values())
    for gram, number in counts[0].items():
        probs[0][gram] = (number + types / (types + 1)) / (total + types)
    left: dict[Gram, float] = {}
    for order in range(1, len(counts)):
        seen, kinds = Counter[Gram](), Counter[Gram]()
        for gram, number in counts[order].items():
            seen[gram[:-1]] += number
            kinds[gram[:-1]] += 1
        left |= {history: kinds[history] / (seen[history] + kinds[history]) for history in seen}
        below = probs[order - 1]
        probs.append(
            {
                gram: number / (seen[gram[:-1]] + kinds[gram[:-1]]) + left[gram[:-1]] * below[gram[1:]]
                for gram, number in counts[order].items()
            }
        )
    return probs, left


def write_arpa(path: Path, probs: list[dict[Gram, float]], left: dict[Gram, float]) -> None:
    """Writes the model; <s> is listed for its back-off alone, <unk> with what the characters leave."""
    unknown = max(1e-7, 1.0 - sum(probs[0].values()))
    tables = [{("<unk>",): unknown, ("<s>",): 1e-99, **probs[0]}, *probs[1:]]
    lines = ["\\data\\", *(f"ngram {n}={len(table)}" for n, table in enumerate(tables, 1)), ""]
    for n, table in enumerate(tables, 1):
        lines.append(f"\\{n}-grams:")
        for gram, prob in sorted(table.items()):
            row = f"{max(-99.0, math.log10(prob)):.6f}\t{' '.join(gram)}"
            lines.append(f"{row}\t{math.log10(left[gram]):.6f}" if gram in left else row)
        lines.append("")
    path.write_text("\n".join([*lines, "\\end\\", ""]), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--order", type=int, default=6)
    args = parser.parse_args()
    if not args.manifest.is_file():
        print(f"{args.manifest}: no such file; name a manifest.", file=sys.stderr)
        return 2
    probs, left = estimate(count(read_transcripts(args.manifest), args.order))
    write_arpa(args.model, probs, left)
    print(f"{args.model}: {', '.join(f'{len(table)} {n}-grams' for n, table in enumerate(probs, 1))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
