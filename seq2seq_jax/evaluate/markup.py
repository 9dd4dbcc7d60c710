"""HTML in which text cannot act as markup: what is not made here is escaped."""

from __future__ import annotations

import html
from collections.abc import Mapping


class Markup(str):
    """HTML that may stand in a page as it is; made by `element` and `join` alone."""

    __slots__ = ()


Content = str | Markup | None

VOID = {"img", "meta", "br"}


def element(name: str, *content: Content, attributes: Mapping[str, object] | None = None) -> Markup:
    """One element; plain text in it and all values of attributes are escaped.

    >>> element("p", "1 < 2", attributes={"class": "note"})
    '<p class="note">1 &lt; 2</p>'
    """
    told = "".join(f' {key}="{html.escape(str(value))}"' for key, value in (attributes or {}).items())
    if name in VOID:
        return Markup(f"<{name}{told}>")
    return Markup(f"<{name}{told}>{join(*content)}</{name}>")


def join(*content: Content) -> Markup:
    """Several pieces one after the other; None is left out."""
    parts = (part if isinstance(part, Markup) else html.escape(part) for part in content if part is not None)
    return Markup("".join(parts))


def table(head: list[Content], rows: list[list[Content]], *, caption: str, numbers: int = 1) -> Markup:
    """A table that scrolls sideways in a frame of its own, also by the keyboard.

    Args:
        head: a cell for each column.
        rows: their cells; the first of a row is its heading.
        caption: what the table is.
        numbers: the column from which on cells are numbers, set to the right.
    """

    def align(n: int) -> dict[str, object]:
        return {"class": "number"} if n >= numbers else {}

    heads = join(*(element("th", cell, attributes={"scope": "col", **align(n)}) for n, cell in enumerate(head)))
    lines = []
    for first, *rest in rows:
        cells = [element("td", cell, attributes=align(n)) for n, cell in enumerate(rest, start=1)]
        lines.append(element("tr", element("th", first, attributes={"scope": "row"}), *cells))
    body = element("table", element("caption", caption), element("tr", heads), *lines)
    return element("div", body, attributes={"class": "scroll", "role": "region", "aria-label": caption, "tabindex": 0})
