"""Source and target as one text, against plain loops over lists."""

import jax
import jax.numpy as jnp
import numpy as np

from seq2seq_jax.interfaces import Packing
from seq2seq_jax.layers.joined import join_packed, join_rows, move


def test_rows_are_joined_without_a_gap():
    lengths, room, target_length = [4, 2, 0, 1], 4, 3
    mask = np.arange(room) < np.array(lengths)[:, None]
    joining = join_rows(jnp.asarray(mask), target_length)
    for row, length in enumerate(lengths):
        wanted = [*range(length), *range(room, room + target_length), *range(length, room)]
        assert joining.order[row].tolist() == wanted
        assert joining.places[row].tolist() == np.argsort(wanted).tolist()
        assert joining.target_positions[row].tolist() == [length + t for t in range(target_length)]
    assert joining.segments is None and joining.order.dtype == joining.places.dtype == jnp.int32
    np.testing.assert_array_equal(joining.take_source(jnp.asarray(mask)).sum(axis=1), lengths)
    assert (np.diff(joining.take_source(jnp.asarray(mask)).astype(int), axis=1) <= 0).all()


def lay(rows: list[list[int]], room: int) -> tuple[np.ndarray, np.ndarray]:
    """Segments and positions of rows of segments of these lengths."""
    segments, positions = np.zeros((2, len(rows), room), np.int32)
    for n, row in enumerate(rows):
        filled = [(k, place) for k, length in enumerate(row, 1) for place in range(length)]
        segments[n, : len(filled)] = [k for k, _ in filled]
        positions[n, : len(filled)] = [place for _, place in filled]
    return segments, positions


def test_both_sides_of_packed_examples_come_together():
    sides = [([2, 3, 1], [1, 2, 2]), ([4], [3]), ([], [])]
    source, target = (lay([pair[side] for pair in sides], room) for side, room in ((0, 7), (1, 6)))
    joining = join_packed(Packing(*map(jnp.asarray, (*source, *target))))
    for row, (sources, targets) in enumerate(sides):
        wanted, segments, at, positions = [], [], [0, 7], []
        for k, pair in enumerate(zip(sources, targets, strict=True), 1):
            for side, length in enumerate(pair):
                wanted += range(at[side], at[side] + length)
                at[side] += length
            segments += [k] * sum(pair)
            positions += [pair[0] + place for place in range(pair[1])]
        assert joining.order[row, : len(wanted)].tolist() == wanted
        assert sorted(joining.order[row].tolist()) == list(range(13))
        assert joining.segments[row].tolist() == segments + [0] * (13 - len(segments))
        assert joining.target_positions[row].tolist() == positions + [0] * (6 - len(positions))
        np.testing.assert_array_equal(joining.places[row], np.argsort(joining.order[row]))


def test_columns_and_their_gradients_are_moved_back():
    rng = np.random.default_rng(0)
    order = np.stack([rng.permutation(6) for _ in range(3)]).astype(np.int32)
    places = np.argsort(order, axis=1).astype(np.int32)
    x, weight = jnp.asarray(rng.normal(size=(2, 3, 6, 2)), jnp.float32)
    order, places = jnp.asarray(order), jnp.asarray(places)
    moved, pull = jax.vjp(lambda x: move(x, order, places), x)
    np.testing.assert_array_equal(moved, np.stack([row[own] for row, own in zip(x, order, strict=True)]))
    np.testing.assert_array_equal(move(moved, places, order), x)
    (gradient,) = pull(weight)
    wanted = np.zeros(x.shape, np.float32)
    for row, own in enumerate(np.asarray(order)):
        np.add.at(wanted[row], own, weight[row])
    np.testing.assert_array_equal(gradient, wanted)
