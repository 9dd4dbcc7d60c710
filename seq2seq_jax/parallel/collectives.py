"""Which mesh axis a collective of a compiled program runs over, and over which links of the machine.

A program numbers its devices by their place in the mesh (the first is 0, the last axis runs fastest),
whatever ids the devices themselves have. XLA writes groups of them in four ways:

    {{0,2},{1,3}}                               lists
    [2,4]<=[8]                                  2 groups of 4: the numbers below 8 in order
    [2,4]<=[4,2]T(1,0)                          the same of a transposed 4 x 2 table
    mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}   groups along axes (or 'b':(1)2, a part of one) of a table
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from seq2seq_jax.parallel.work import Call

_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? \{([^}]*)\}")
_IOTA = re.compile(r"replica_groups=(\[[\d,]+\])<=(\[[\d,]+\])(?:T\(([\d,]+)\))?")
_LISTS = re.compile(r"replica_groups=\{(\{[\d,{} ]*\})\}")
_PAIRS = re.compile(r"source_target_pairs=\{(\{[\d,{} ]*\})\}")


def read_groups(attributes: str, devices: int) -> np.ndarray | list[list[int]]:
    """The groups of places that take part together, one a row; of a permute the pairs (from, to).

    Args:
        attributes: the operation's line.
        devices: of the mesh; all of them are one group where the line names none.
    """
    if found := _PAIRS.search(attributes) or _LISTS.search(attributes):
        return [[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d, ]+)\}", found.group(1))]
    if found := _IOTA.search(attributes):
        shape, dims, order = found.groups()
        return _iota(dims, order).reshape(_numbers(shape))
    if found := _MESH.search(attributes):
        return _read_mesh_groups(*found.groups())
    return np.arange(devices).reshape(1, -1)


def _numbers(text: str | None) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text or "")]


def _iota(dims: str, order: str | None) -> np.ndarray:
    sizes = _numbers(dims)
    table = np.arange(math.prod(sizes)).reshape(sizes)
    return table.transpose(_numbers(order)) if order else table


def _read_mesh_groups(mesh: str, ids: str | None, axes: str) -> np.ndarray:
    names = re.findall(r"'?([\w.]+)'?=(\d+)", mesh)
    sizes = [int(size) for _, size in names]
    if ids is None:
        table = np.arange(math.prod(sizes))
    elif found := re.match(r"(\[[\d,]+\])(?:T\(([\d,]+)\))?$", ids):
        table = _iota(*found.groups())
    else:
        table = np.array(_numbers(ids))
    wanted = {name: _numbers(part) for name, part in re.findall(r"'?([\w.]+)'?((?::\(\d+\)\d+)?)(?:,|$)", axes)}
    split, inside = [], []
    for name, size in zip((name for name, _ in names), sizes, strict=True):
        before, part = wanted.get(name) or ((1, size) if name in wanted else (size, 1))
        split += [before, part, size // before // part]
        inside += [False, True, False]
    table = table.reshape(split)
    order = [n for n, own in enumerate(inside) if not own] + [n for n, own in enumerate(inside) if own]
    members = math.prod(size for size, own in zip(split, inside, strict=True) if own)
    return table.transpose(order).reshape(-1, members)


def name_axes(groups: np.ndarray | list[list[int]], mesh: Mapping[str, int]) -> str:
    """The mesh axes that groups run along, "data+stage"; "part of data" if they do not span them whole.

    Args:
        groups: places in the mesh, one group a row.
        mesh: axis name to size, in the order of the mesh.
    """
    sizes = list(mesh.values())
    varying, whole = np.zeros(len(sizes), bool), True
    spans = []
    for group in groups:
        places = np.array(np.unravel_index(np.array(group), sizes))
        spans.append((places != places[:, :1]).any(axis=1))
        varying |= spans[-1]
    reach = math.prod(size for size, own in zip(sizes, varying, strict=True) if own)
    whole = all(len(group) == reach for group in groups)
    name = "+".join(axis for axis, own in zip(mesh, varying, strict=True) if own)
    if not name:
        return "none"
    return name if whole else f"part of {name}"


@dataclasses.dataclass(frozen=True)
class Route:
    """The links of the machine that one group of devices can use.

    Attributes:
        size: devices in a group.
        lanes: links' worth of bandwidth that a ring collective over the group has at each device:
            two for every dimension of the torus that it closes around, one where it does not, divided by
            the number of groups that share the same links.
        hops: steps from link to link that the farthest message takes.
        dims: `lanes` of each dimension and its extent, for messages that do not go by rings.
    """

    size: int
    lanes: float
    hops: int
    dims: tuple[tuple[float, int], ...] = ()


def find_route(group: Sequence[int], coords: np.ndarray | None, torus: Sequence[int], wraps: Sequence[bool]) -> Route:
    """The route of one group.

    Args:
        group: places in the mesh.
        coords: `[devices, dimensions]` place in the torus of every device of the mesh, or None for devices
            that are all joined to each other (one host, one switch).
        torus: sizes of the torus.
        wraps: which of its dimensions close to a ring.
    """
    size = len(group)
    if coords is None:
        return Route(size, 1.0, 1, ((1.0, size),))
    places = coords[np.array(group)]
    dims, hops = [], 0
    for n, length in enumerate(torus):
        met = np.unique(places[:, n])
        if len(met) < 2:
            continue
        stride = max(1, (int(met[-1]) - int(met[0])) // (len(met) - 1))
        closed = bool(wraps[n]) and len(met) * stride == length and length > 2
        dims.append(((2.0 if closed else 1.0) / stride, len(met)))
        hops += length // 2 if closed else stride * (len(met) - 1)
    if not dims or math.prod(extent for _, extent in dims) != size:  # no box of the torus: one lane, the long way
        return Route(size, min([lane for lane, _ in dims], default=1.0), max(hops, 1), ((1.0, size),))
    return Route(size, sum(lane for lane, _ in dims), hops, tuple(dims))


def find_distance(
    pairs: Sequence[Sequence[int]], coords: np.ndarray | None, torus: Sequence[int], wraps: Sequence[bool]
) -> int:
    """Hops of the farthest pair of a permute, the short way round where a dimension wraps."""
    if coords is None or not len(pairs):
        return 1
    ends = np.array(pairs)
    apart = np.abs(coords[ends[:, 0]] - coords[ends[:, 1]])
    lengths, closed = np.array(torus), np.array(wraps)
    return max(1, int(np.where(closed, np.minimum(apart, lengths - apart), apart).sum(axis=1).max()))


def estimate_seconds(call: Call, route: Route, *, link_bandwidth: float, hop_seconds: float) -> float:
    """Seconds of one run of a collective, nothing else on the links.

    With payload P, n devices and bandwidth W = lanes x link: an all-gather and a reduce-scatter send
    P (n-1)/n through W by rings over all dimensions at once, an all-reduce twice that; an all-to-all sends
    n/4 of its P per ring direction, the mean way round a ring; a permute its P over one link to each
    hop. Every phase waits for its hops.

    Args:
        call: kind and payload.
        route: of its groups; of a permute, of its farthest pair (`find_distance` says its hops).
        link_bandwidth: bytes a second of one link in one direction.
        hop_seconds: from a device to its neighbour.
    """
    n, width = route.size, route.lanes * link_bandwidth
    if n < 2:
        return 0.0
    share = (n - 1) / n
    if call.kind == "all-reduce":
        return 2 * (call.bytes * share / width + route.hops * hop_seconds)
    if call.kind == "collective-permute":
        return call.bytes * max(1, route.hops) / link_bandwidth + route.hops * hop_seconds
    if call.kind in ("all-to-all", "ragged-all-to-all"):
        longest = max((extent / lane for lane, extent in route.dims), default=1.0)
        sent = max(call.bytes * longest / 4, call.bytes * share / route.lanes)
        return sent / link_bandwidth + route.hops * hop_seconds
    return call.bytes * share / width + route.hops * hop_seconds
