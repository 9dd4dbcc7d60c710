"""Groups of devices in XLA's four ways of writing them, mesh axes and routes, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from seq2seq_jax.parallel.collectives import Route, estimate_seconds, find_distance, find_route, name_axes, read_groups
from seq2seq_jax.parallel.work import Call, group_size

MESH = {"data": 2, "fsdp": 1, "tensor": 2, "stage": 2}
GROUPS = {
    "replica_groups={{0,2},{1,3},{4,6},{5,7}}, use": [[0, 2], [1, 3], [4, 6], [5, 7]],
    "replica_groups=[2,4]<=[8], use": [[0, 1, 2, 3], [4, 5, 6, 7]],
    "replica_groups=[2,4]<=[4,2]T(1,0), use": [[0, 2, 4, 6], [1, 3, 5, 7]],
    "replica_groups=[4,2]<=[2,2,2]T(0,2,1), use": [[0, 2], [1, 3], [4, 6], [5, 7]],
    "replica_groups=mesh['axis_0'=8] {'axis_0'}, use": [[0, 1, 2, 3, 4, 5, 6, 7]],
    "replica_groups=mesh['a'=2,'b'=4] {'a'}, use": [[0, 4], [1, 5], [2, 6], [3, 7]],
    "replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}, use": [[0, 1, 4, 5], [2, 3, 6, 7]],
    "replica_groups=mesh['a'=2,'b'=4] {'b':(2)2}, use": [[0, 1], [2, 3], [4, 5], [6, 7]],
    "replica_groups=mesh['a'=2,'b'=4] {'b':(1)2}, use": [[0, 2], [1, 3], [4, 6], [5, 7]],
    "replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}, use": [[0, 4], [1, 5], [2, 6], [3, 7]],
    "channel_id=1, metadata={}": [[0, 1, 2, 3, 4, 5, 6, 7]],
}
AXES = ["tensor", "tensor+stage", "data+tensor", "tensor", "data+tensor+stage", "data", "data+stage", "stage", "tensor",
        "data", "data+tensor+stage"]  # fmt: skip


@pytest.mark.parametrize(("attributes", "axis"), list(zip(GROUPS, AXES, strict=True)))
def test_groups_are_read_and_named_by_their_axes(attributes: str, axis: str) -> None:
    groups = read_groups(attributes, 8)
    assert sorted(sorted(int(n) for n in group) for group in groups) == GROUPS[attributes]
    assert name_axes(groups, MESH) == axis
    if "replica_groups" in attributes:
        assert group_size(attributes) == len(GROUPS[attributes][0])


def test_pairs_of_a_permute_are_read_and_named() -> None:
    pairs = read_groups("channel_id=1, source_target_pairs={{0,1},{2,3},{4,5},{6,7}}, metadata", 8)
    assert name_axes(pairs, MESH) == "stage"


def test_groups_that_do_not_span_an_axis_are_part_of_it() -> None:
    assert name_axes([[0, 1], [2, 3], [4, 5], [6, 7]], {"data": 1, "stage": 8}) == "part of stage"
    assert name_axes([[0], [1], [2], [3]], {"data": 4}) == "none"


COORDS = np.array([[x, y, z] for z in range(8) for y in range(4) for x in range(4)])
TORUS, WRAPS = (4, 4, 8), (True, True, True)


def places(**fixed: int) -> list[int]:
    """Devices of a 4 x 4 x 8 torus, x fastest, with some coordinates fixed."""
    names = ("x", "y", "z")
    return [n for n, at in enumerate(COORDS) if all(at[names.index(axis)] == value for axis, value in fixed.items())]


def test_a_ring_of_the_torus_has_two_lanes_and_the_whole_torus_six() -> None:
    assert find_route(places(y=0, z=0), COORDS, TORUS, WRAPS) == Route(4, 2.0, 2, ((2.0, 4),))
    assert find_route(places(z=0), COORDS, TORUS, WRAPS) == Route(16, 4.0, 4, ((2.0, 4), (2.0, 4)))
    assert find_route(places(), COORDS, TORUS, WRAPS).lanes == 6.0
    assert find_route(places(), COORDS, TORUS, WRAPS).hops == 2 + 2 + 4


def test_a_line_has_one_lane_and_groups_that_share_links_share_their_bandwidth() -> None:
    line = find_route(places(y=0, z=0), COORDS, TORUS, (False,) * 3)
    assert (line.lanes, line.hops) == (1.0, 3)
    every_other = [n for n in places(x=0, y=0) if COORDS[n][2] % 2 == 0]
    assert find_route(every_other, COORDS, TORUS, WRAPS).lanes == 1.0  # two lanes, shared by two such groups


def test_a_permute_goes_the_short_way_round() -> None:
    ring = places(y=0, z=0)
    pairs = [[ring[n], ring[(n + 1) % 4]] for n in range(4)]
    assert find_distance(pairs, COORDS, TORUS, WRAPS) == 1
    assert find_distance(pairs, COORDS, TORUS, (False,) * 3) == 3


@pytest.mark.parametrize(
    ("kind", "seconds"),
    [
        # 4 devices in a ring, payload 1000 bytes, 100 bytes a second each way round, a second a hop, 2 hops
        ("all-gather", 750 / 200 + 2),
        ("reduce-scatter", 750 / 200 + 2),
        ("all-reduce", 2 * (750 / 200 + 2)),
        ("all-to-all", 1000 * 4 / 4 / 200 + 2),
        ("collective-permute", 1000 * 2 / 100 + 2),
    ],
)
def test_seconds_follow_the_ring(kind: str, seconds: float) -> None:
    call = Call(kind, 1.0, 1000.0, "", False)
    route = Route(4, 2.0, 2, ((2.0, 4),))
    assert estimate_seconds(call, route, link_bandwidth=100.0, hop_seconds=1.0) == pytest.approx(seconds)


def test_one_device_alone_sends_nothing() -> None:
    assert estimate_seconds(Call("all-reduce", 1, 1e9, "", False), Route(1, 1, 1), link_bandwidth=1, hop_seconds=1) == 0
