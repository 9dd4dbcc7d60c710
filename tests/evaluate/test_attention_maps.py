"""Attention maps: the picture shows the weights, whatever the labels hold, and arrives whole."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from seq2seq_jax.evaluate.attention_maps import save_attention_map


def find_square(picture: np.ndarray, size: int) -> np.ndarray:
    """Mean grey of each cell of the largest dark block: `[size, size]`."""
    grey = picture[..., :3].mean(-1)

    def longest_run(dark: np.ndarray) -> slice:
        ends = np.flatnonzero(np.diff(np.concatenate([[0], dark.astype(int), [0]]))).reshape(-1, 2)
        return slice(*max(ends, key=lambda run: run[1] - run[0]))

    inside = grey[longest_run((grey < 0.5).mean(1) > 0.3), longest_run((grey < 0.5).mean(0) > 0.3)]
    rows = np.array_split(inside, size, axis=0)
    return np.array([[cell.mean() for cell in np.array_split(row, size, axis=1)] for row in rows])


def test_brightness_shows_the_weights_target_down_source_across(tmp_path):
    size = 12
    weights = np.full((size, size), 0.02)
    np.fill_diagonal(weights, 0.8)
    weights[0, 5] = 0.5  # the first target piece looks at the sixth source piece too
    pieces = [f"▁p{i}" for i in range(size)]
    save_attention_map(tmp_path / "map.png", weights, source_pieces=pieces, target_pieces=pieces, title="A title")
    cells = find_square(imread(tmp_path / "map.png"), size)
    assert np.diag(cells).min() > 0.8
    assert 0.4 < cells[0, 5] < 0.8
    weights[0, 5] = 0.02
    assert cells[weights == 0.02].max() == cells[0, 5] and np.sort(cells[weights == 0.02])[-2] < 0.2
    assert [path.name for path in tmp_path.iterdir()] == ["map.png"]


@pytest.mark.parametrize("name", ["map.png", "map.svg"])
def test_any_label_can_be_drawn(tmp_path, name):
    pieces = ["$x_", "\\frac", "", " \n", "男が", "мужчина", "हिन्दी", "\x00"]
    weights = np.eye(8, dtype=np.float32)
    save_attention_map(tmp_path / name, weights, source_pieces=pieces, target_pieces=pieces, title="100 % of $5")
    assert (tmp_path / name).stat().st_size > 1000


def test_one_weight_and_many_weights_have_room(tmp_path):
    save_attention_map(
        tmp_path / "one.png", np.ones((1, 1)), source_pieces=["a"], target_pieces=["b"], title="Long " * 9
    )
    long = ["piece"] * 150
    save_attention_map(tmp_path / "many.png", np.zeros((2, 150)), source_pieces=long, target_pieces=["a", "b"])
    assert max(imread(tmp_path / "many.png").shape) < 7000


def test_an_old_picture_survives_a_failure(tmp_path, monkeypatch):
    path = tmp_path / "map.png"
    path.write_bytes(b"old")

    def fail(self, file, **_):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        save_attention_map(path, np.ones((1, 1)), source_pieces=["a"], target_pieces=["b"])
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("shape", [(2, 3), (3,), (0, 2)])
def test_weights_must_fit_the_labels(tmp_path, shape):
    with pytest.raises(ValueError, match=r"\(3, 2\)"):
        save_attention_map(tmp_path / "m.png", np.ones(shape), source_pieces=["a", "b"], target_pieces=["c", "d", "e"])


def test_weights_must_be_finite(tmp_path):
    with pytest.raises(ValueError, match="finite"):
        save_attention_map(tmp_path / "m.png", np.array([[np.nan]]), source_pieces=["a"], target_pieces=["b"])
    assert not list(tmp_path.iterdir())
