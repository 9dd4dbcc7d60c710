"""The mesh: its axes, sizes that are left open, and what is refused."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from seq2seq_jax.parallel.mesh import AXES, make_mesh


@pytest.fixture(autouse=True)
def _eight_devices():
    if len(jax.devices()) != 8:
        pytest.skip(f"needs 8 devices, and there are {len(jax.devices())}")


def sizes(**options) -> tuple[int, ...]:
    """In the order (data, fsdp, tensor, stage)."""
    mesh = make_mesh(**options)
    return tuple(mesh.shape[axis] for axis in AXES)


def test_a_mesh_has_four_axes_and_neighbouring_stages_are_neighbouring_devices():
    mesh = make_mesh(data=1, stage=4, tensor=2)
    assert mesh.axis_names == AXES == ("data", "fsdp", "tensor", "stage")
    assert set(mesh.axis_types) == {AxisType.Auto}
    np.testing.assert_array_equal([[d.id for d in row] for row in mesh.devices[0, 0]], [[0, 1, 2, 3], [4, 5, 6, 7]])


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ({}, (8, 1, 1, 1)),
        ({"data": 1}, (1, 1, 1, 1)),
        ({"data": 3, "rows_multiple": 12}, (3, 1, 1, 1)),
        ({"stage": 2}, (4, 1, 1, 2)),
        ({"data": 2, "stage": -1, "tensor": 2}, (2, 1, 2, 2)),
        ({"data": 1, "fsdp": -1}, (1, 8, 1, 1)),
        ({"stage": 4, "tensor": 2}, (1, 1, 2, 4)),
        # What is left is no more than the rows divide by: two of the eight devices are not used.
        ({"rows_multiple": 6}, (6, 1, 1, 1)),
        ({"stage": 2, "rows_multiple": 12}, (3, 1, 1, 2)),
        ({"rows_multiple": 7}, (7, 1, 1, 1)),
    ],
)
def test_sizes_and_what_is_left(options, want):
    assert sizes(**options) == want


def test_only_the_given_devices_are_used():
    three = jax.devices()[2:5]
    assert make_mesh(data=2, devices=three).devices.ravel().tolist() == three[:2]
    assert make_mesh(devices=three, rows_multiple=9).devices.ravel().tolist() == three


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"data": 0}, r"`parallel\.data` must be at least 1, or -1 for what is left, but is 0 instead"),
        ({"data": 1, "stage": -2}, r"`parallel\.stage` must be at least 1, or -1 .* but is -2 instead"),
        ({"data": -1, "tensor": -1}, r"`parallel\.tensor` must be a number where `parallel\.data` is -1"),
        (
            {"data": 9, "rows_multiple": 9},
            r"`parallel` asks for data=9: 9 devices .* there are 8; make a size smaller",
        ),
        ({"stage": 16, "rows_multiple": 16}, r"`parallel` asks for .*stage=16: 16 devices or more, but there are 8"),
        (
            {"data": 1, "stage": 3},
            r"stage=3 makes 3 devices, which must divide the rows of every batch, but those are multiples of 8; "
            r"set config\.data\.rows_multiple to a multiple of 3",
        ),
    ],
)
def test_what_cannot_be_is_refused_and_the_key_named(options, told):
    with pytest.raises(ValueError, match=told):
        make_mesh(**options)
