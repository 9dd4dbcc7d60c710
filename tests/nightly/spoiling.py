"""Ways to spoil a good file: its bytes, its lines, its JSON, and what lies at its path."""

from __future__ import annotations

import copy
import gzip
import json
import os
import random
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

EXTREMES = (b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80\x00\x00\x00")


def spoil_bytes(data: bytes, draw: random.Random) -> tuple[str, bytes]:
    """What was done to the bytes, and what became of them."""
    kind = draw.choice(("bits", "bytes", "cut", "insert", "delete", "repeat", "zeros", "extreme", "swap", "append"))
    spoiled, size = bytearray(data), len(data)
    at = draw.randrange(size) if draw.random() < 0.5 else min(draw.randrange(256), size - 1)  # headers more often
    length = draw.choice((1, 2, 7, 64, 500))
    if kind == "bits":
        for _ in range(draw.choice((1, 1, 4, 30))):
            spoiled[draw.randrange(size)] ^= 1 << draw.randrange(8)
    elif kind == "bytes":
        for n in range(at, min(at + length, size)):
            spoiled[n] = draw.randrange(256)
    elif kind == "cut":
        del spoiled[at:]
    elif kind == "insert":
        spoiled[at:at] = draw.randbytes(length)
    elif kind == "delete":
        del spoiled[at : at + length]
    elif kind == "repeat":
        spoiled[at:at] = spoiled[at : at + length] * draw.choice((1, 3, 50))
    elif kind == "zeros":
        spoiled[at : at + 4096] = bytes(len(spoiled[at : at + 4096]))
    elif kind == "extreme":
        spoiled[at : at + 4] = draw.choice(EXTREMES)
    elif kind == "swap":
        other = draw.randrange(size)
        spoiled[at : at + 16], spoiled[other : other + 16] = spoiled[other : other + 16], spoiled[at : at + 16]
    else:
        spoiled += draw.randbytes(length)
    return kind, bytes(spoiled)


def _insert_line(data: bytes, draw: random.Random, line: bytes) -> bytes:
    lines = data.split(b"\n")
    lines.insert(draw.randrange(len(lines)), line)
    return b"\n".join(lines)


def _put(data: bytes, draw: random.Random, what: bytes) -> bytes:
    at = draw.randrange(len(data) + 1)
    return data[:at] + what + data[at:]


LINES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "NUL": lambda data, draw: _put(data, draw, b"\0"),
    "BOM": lambda data, draw: b"\xef\xbb\xbf" + data,
    "CRLF": lambda data, draw: data.replace(b"\n", b"\r\n"),
    "CR": lambda data, draw: data.replace(b"\n", b"\r"),
    "lone surrogate": lambda data, draw: _put(data, draw, b"\xed\xa0\x80"),
    "invalid UTF-8": lambda data, draw: _put(data, draw, draw.choice((b"\xff", b"\xc3\x28", b"\xe2\x82", b"\xf8"))),
    "UTF-16": lambda data, draw: data.decode().encode("utf-16"),
    "Latin-1": lambda data, draw: _put(data, draw, "für".encode("latin-1")),
    "empty": lambda data, draw: b"",
    "only a BOM": lambda data, draw: b"\xef\xbb\xbf",
    "blank lines": lambda data, draw: b"\n" * data.count(b"\n"),
    "line more": lambda data, draw: _insert_line(data, draw, b"one more"),
    "blank line more": lambda data, draw: _insert_line(data, draw, b""),
    "line less": lambda data, draw: data.split(b"\n", 1)[1],
    "control signs": lambda data, draw: _put(data, draw, draw.choice(("\x1b[31m", "\x0b", "\u2028", "\x85")).encode()),
    "tabs": lambda data, draw: _put(data, draw, b"\t" * draw.randint(1, 4)),
    "bars": lambda data, draw: _put(data, draw, b" ||| "),
    "long line": lambda data, draw: _put(data, draw, b"x" * 100_000),
    "huge number": lambda data, draw: _put(data, draw, b"9" * draw.choice((25, 400, 5000))),
    "nan": lambda data, draw: _put(data, draw, draw.choice((b" nan ", b" inf ", b" -inf ", b" 1e999 ", b" 1_0 "))),
    "no last end": lambda data, draw: data.rstrip(b"\n"),
}


def spoil_lines(data: bytes, draw: random.Random) -> tuple[str, bytes]:
    """Bytes of text, spoiled as text is, or as any bytes."""
    if draw.random() < 0.4:
        return spoil_bytes(data, draw)
    kind = draw.choice(list(LINES))
    return kind, LINES[kind](data, draw)


STILL = ("missing", "folder", "loop", "dangling")
"""What can lie at the place of a run's own file, which nobody makes a pipe or a device of."""
STREAMED = (*STILL, "endless")
"""At that of a file for a reader that takes pipes: one without a writer would be waited for."""
PLACES = (*STREAMED, "pipe", "socket")


def spoil_place(path: Path, draw: random.Random, kinds: Sequence[str] = PLACES) -> tuple[str, bool]:
    """Puts something at the path of a file that is no such file; what, and that it must be refused."""
    kind = draw.choice(kinds)
    path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "dangling":
        path.symlink_to("nowhere")
    elif kind == "socket":
        os.mknod(path, 0o140644)
    return kind, True


def spoil_gzip(data: bytes, draw: random.Random) -> tuple[str, bytes, bool]:
    """What a .gz file may hold; whether it must be refused."""
    kind = draw.choice(("bomb of zeros", "bomb of lines", "cut", "garbled", "spoiled inside", "plain", "two members"))
    packed = gzip.compress(data, mtime=0)
    if kind.startswith("bomb"):
        return kind, _make_bomb(b"\0" if "zeros" in kind else b"\n"), True
    if kind == "cut":
        return kind, packed[: draw.randrange(1, len(packed))], True
    if kind == "garbled":
        return kind, spoil_bytes(packed, draw)[1], False
    if kind == "plain":
        return kind, data, True
    if kind == "two members":
        return kind, packed + packed, False
    return kind, gzip.compress(spoil_lines(data, draw)[1], mtime=0), False


_BOMBS: dict[bytes, bytes] = {}


def _make_bomb(sign: bytes) -> bytes:
    """A quarter of a GiB of one sign, packed into a quarter of a MiB."""
    if sign not in _BOMBS:
        block, packer = sign * (1 << 20), zlib.compressobj(9, zlib.DEFLATED, 31)
        _BOMBS[sign] = b"".join([*(packer.compress(block) for _ in range(256)), packer.flush()])
    return _BOMBS[sign]


VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 7, 10**30, -(10**9), 1e308, 0.5, float("nan"), float("inf"), "", "x", "\ud800", "\0",
    "../../../etc/passwd", "/etc/passwd", "x" * 5000, "5", [], {}, [[]], [1, 2], {"a": 1}, ["x", None], {"members": 3},
)  # fmt: skip


def _list_places(value: Any) -> list[tuple[Any, Any]]:
    """Every container with every key or index of it."""
    places = []
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            places += [(value, key), *_list_places(value[key])]
    return places


def spoil_json(value: Any, draw: random.Random) -> tuple[str, bytes]:
    """A JSON value with one or two of its parts replaced, removed or renamed; or the spoiled bytes of it."""
    text = json.dumps(value, indent=1).encode()
    kind = draw.choice(("value",) * 6 + ("remove", "rename", "twice", "bytes", "deep", "number", "whole", "add"))
    if kind == "bytes":
        how, data = spoil_lines(text, draw)
        return f"bytes: {how}", data
    if kind == "deep":
        return kind, draw.choice((b"[" * 100_000, b'{"a":' * 50_000, b"[" * 50_000 + b"]" * 50_000))
    if kind == "number":
        return kind, text.replace(b"1", b"1" * 5000, 1)
    if kind == "whole":
        return kind, json.dumps(draw.choice(VALUES)).encode()
    spoiled = copy.deepcopy(value)
    for _ in range(draw.choice((1, 1, 2))):
        places = _list_places(spoiled)
        if not places:
            break
        holder, key = draw.choice(places)
        if kind == "remove":
            del holder[key]
        elif kind == "rename" and isinstance(holder, dict):
            holder[draw.choice(("", "x", f"{key}s", str(key).upper(), "a.b", "__class__"))] = holder.pop(key)
        elif kind == "add" and isinstance(holder, dict):
            holder[draw.choice(("x", "steps", "__init__", "name"))] = copy.deepcopy(draw.choice(VALUES))
        elif kind == "twice" and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        else:
            holder[key] = copy.deepcopy(draw.choice(VALUES))
    return kind, json.dumps(spoiled, indent=1).encode()


def make_wav(
    samples: bytes, *, rate: int = 16_000, channels: int = 1, bits: int = 16, form: int = 1, claimed: int | None = None
) -> bytes:
    """A WAV file as its header says it, however wrong.

    Args:
        samples: as they lie in the file.
        rate, channels, bits, form: of the header; form 1 is whole numbers, 3 is floats.
        claimed: bytes of samples that the header tells of; by default as many as there are.
    """
    size = len(samples) if claimed is None else claimed
    width = channels * bits // 8
    fields = form, channels, rate, rate * width % 2**32, width % 2**16, bits
    head = b"fmt " + struct.pack("<IHHIIHH", 16, *fields) + b"data" + struct.pack("<I", size % 2**32)
    return b"RIFF" + struct.pack("<I", (36 + size) % 2**32) + b"WAVE" + head + samples
