"""Mutants of the package: small changes of its source, by the operators of cosmic-ray, and a random sample of them."""

from __future__ import annotations

import ast
import collections
import dataclasses
import hashlib
import itertools
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

PARTS = ("data/plan.py", "decode", "layers", "parallel", "train")

ARITHMETIC = ("Add", "Sub", "Mul", "Div", "FloorDiv", "Mod", "Pow")
BITS = ("RShift", "LShift", "BitOr", "BitAnd", "BitXor")
ORDERS = ("Eq", "NotEq", "Lt", "LtE", "Gt", "GtE")
# What is left out would flatter the figure or say nothing. Arithmetic for bits and bits for arithmetic: a TypeError at
# the first call. Values compared by identity: a SyntaxWarning. `+x` for `-x` is what deleting the minus does already.
LEFT_OUT = {
    *(f"ReplaceBinaryOperator_{old}_{new}" for old in ARITHMETIC for new in BITS),
    *(f"ReplaceBinaryOperator_{old}_{new}" for old in BITS for new in ARITHMETIC),
    *(f"ReplaceComparisonOperator_{old}_{new}" for old in ORDERS for new in ("Is", "IsNot")),
    *(f"ReplaceUnaryOperator_{old}_UAdd" for old in ("USub", "Invert")),
}
# Of two words, which comes first in the alphabet: nobody writes that for `==`, and between three names it is often the
# same.
ORDERED = re.compile("_(Eq|NotEq)_(Lt|LtE|Gt|GtE)$")

Span = tuple[tuple[int, int], tuple[int, int]]  # first and end, each a line from 1 and a byte in it


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One change of one file.

    Attributes:
        path: of the file, from the tree's root.
        operator: cosmic-ray's name of the kind of change.
        occurrence: which of the places in this file where it can be made.
        line: where it is, from 1.
        place: what stays when other lines of the file change: the line's text, the column in it, and how many mutants
            of the same kind stand there before.
        digest: of the file's text, so that a result is not taken for that of another text.
    """

    path: str
    operator: str
    occurrence: int
    line: int
    place: str
    digest: str

    @property
    def name(self) -> str:
        return f"{self.path}:{self.line} {self.operator.removeprefix('core/')} #{self.occurrence} {self.digest}"

    def rank(self, seed: int) -> str:
        """A number at random: the mutants with the lowest are drawn. A change elsewhere leaves it as it is."""
        return hashlib.sha256(f"{seed} {self.path} {self.operator} {self.place}".encode()).hexdigest()


def list_files(root: Path) -> list[Path]:
    """The files that mutants are made of, sorted."""
    folders = [root / "seq2seq_jax" / part for part in PARTS]
    files = [path for folder in folders for path in ([folder] if folder.suffix else folder.rglob("*.py"))]
    return sorted(path for path in files if path.name != "__init__.py")


def list_mutants(root: Path) -> list[Mutant]:
    """All mutants of the files below `root`, always in the same order."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    operators = {}
    for name in sorted(operator_names()):
        kind = get_operator(name)
        if not kind.arguments() and name.removeprefix("core/") not in LEFT_OUT:
            operators[name] = kind()
    mutants = []
    for path in list_files(root):
        text = path.read_text()
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        inert, named = list(find_inert(text)), list(find_names(text))
        nodes = list(ast_nodes(get_ast(text)))
        lines = text.splitlines()
        for name, operator in operators.items():
            places = [place for node in nodes for place in operator.mutation_positions(node)]
            seen: collections.Counter[str] = collections.Counter()
            for occurrence, ((line, column), _) in enumerate(places):
                at = f"{lines[line - 1].strip()} {column}"
                seen[at] += 1
                place = (line, len(lines[line - 1][:column].encode()))
                left_out = [*inert, *named] if ORDERED.search(name) else inert
                if not any(start <= place < end for start, end in left_out):
                    known = f"{at} {seen[at]}"
                    mutants.append(Mutant(str(path.relative_to(root)), name, occurrence, line, known, digest))
    return mutants


def find_names(text: str) -> Iterator[Span]:
    """Where something is compared with a word, from the end of the left to the start of the right."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Compare):
            both = [node.left, *node.comparators]
            for left, right in itertools.pairwise(both):
                if any(isinstance(side, ast.Constant) and isinstance(side.value, str) for side in (left, right)):
                    yield (left.end_lineno or 0, left.end_col_offset or 0), (right.lineno, right.col_offset)


def find_inert(text: str) -> Iterator[Span]:
    """Where a change does nothing, or changes only words: annotations, which are never evaluated, aliases of types,
    `__all__`, imports for types and texts with values in them."""

    def span(node: ast.expr | ast.stmt) -> Span:
        return (node.lineno, node.col_offset), (node.end_lineno or 0, node.end_col_offset or 0)

    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None:
            yield span(node.annotation)
        if isinstance(node, ast.FunctionDef) and node.returns is not None:
            yield span(node.returns)
        if isinstance(node, ast.JoinedStr):
            yield span(node)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            yield span(node)
    for node in tree.body:
        if isinstance(node, ast.Assign):
            named = isinstance(node.targets[0], ast.Name) and node.targets[0].id
            union = isinstance(node.value, ast.BinOp) and isinstance(node.value.op, ast.BitOr)
            if named == "__all__" or union:
                yield span(node)


def mutate(text: str, mutant: Mutant) -> str | None:
    """The file's text with the change, or None where that is no Python or the same program."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    changed = mutate_code(text, get_operator(mutant.operator)(), mutant.occurrence)
    if changed is None:
        return None
    # cosmic-ray names an exception that the file does not know; one that nothing raises does the same.
    changed = re.sub(r"\bCosmicRayTestingException\b", "ZeroDivisionError", changed)
    try:
        compile(changed, mutant.path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return None
    return None if ast.dump(ast.parse(changed)) == ast.dump(ast.parse(text)) else changed


def draw(root: Path, *, count: int, seed: int) -> tuple[list[Mutant], int]:
    """Draws mutants at random, each with the same probability.

    Returns:
        `count` mutants in the order drawn (the first n are the draw of n), and how many there were to draw from.
    """
    mutants = list_mutants(root)
    drawn: list[Mutant] = []
    for mutant in sorted(mutants, key=lambda mutant: mutant.rank(seed)):
        if mutate((root / mutant.path).read_text(), mutant) is not None:
            drawn.append(mutant)
        if len(drawn) == count:
            break
    return drawn, len(mutants)


def describe(old: str, new: str) -> tuple[str, str]:
    """What stood there and what stands there now: the lines that differ, without indentation."""
    before, after = old.splitlines(), new.splitlines()
    while before and after and before[0] == after[0]:
        before, after = before[1:], after[1:]
    while before and after and before[-1] == after[-1]:
        before, after = before[:-1], after[:-1]
    return textwrap.dedent("\n".join(before)).strip(), textwrap.dedent("\n".join(after)).strip()
