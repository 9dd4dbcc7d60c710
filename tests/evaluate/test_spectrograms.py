"""Spectrograms: time runs right, high bins are above, attention and borders lie on the same axis."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from seq2seq_jax.evaluate import spectrograms
from seq2seq_jax.evaluate.spectrograms import save_spectrogram


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The figures that were about to be written."""
    figures: list[Figure] = []
    monkeypatch.setattr(spectrograms, "write_picture", lambda figure, path: figures.append(figure))
    return figures


def test_one_axis_of_seconds(drawn):
    features, weights = np.random.default_rng(0).normal(size=(99, 20)), np.eye(3, 25)
    words = [("one", 0.1, 0.3), ("two", 0.5, 0.75)]
    save_spectrogram(
        "x.png", features, frame_s=0.01, attention=weights, pieces=["a", "b", "c"], reduction=4, borders=words
    )
    above, below = drawn[0].axes
    assert above.get_xlim() == below.get_xlim() == pytest.approx((0.0, 0.99))
    # 99 frames of 10 ms; 25 columns of 40 ms, the last one reaching beyond the end.
    assert above.images[0].get_extent()[:2] == pytest.approx([0.0, 0.99])
    assert below.images[0].get_extent()[:2] == pytest.approx([0.0, 1.0])
    np.testing.assert_allclose(above.images[0].get_array(), features.T.astype(np.float32))
    np.testing.assert_allclose(below.images[0].get_array(), weights)
    assert above.get_ylim()[0] < above.get_ylim()[1] and below.get_ylim()[0] > below.get_ylim()[1]
    for axes in (above, below):
        assert [line.get_xdata()[0] for line in axes.lines] == [0.1, 0.3, 0.5, 0.75]
    assert [(text.get_text(), text.get_position()[0]) for text in above.texts] == [("one", 0.2), ("two", 0.625)]
    assert [text.get_text() for text in below.get_yticklabels()] == ["a", "b", "c"]


def test_a_spectrogram_alone(drawn):
    save_spectrogram("x.png", np.zeros((1, 1)), frame_s=0.01)
    assert len(drawn[0].axes) == 1


@pytest.mark.parametrize("name", ["map.png", "map.svg"])
def test_any_label_can_be_drawn(tmp_path, name):
    pieces = ["$x_", "\\frac", "", " \n", "男が", "\x00"]
    borders = [(piece, 0.01 * n, 0.01 * n + 0.01) for n, piece in enumerate(pieces)]
    path = tmp_path / name
    save_spectrogram(
        path, np.ones((8, 4)), frame_s=0.01, attention=np.eye(6, 8), pieces=pieces, borders=borders, title="$5"
    )
    assert path.stat().st_size > 1000 and [one.name for one in tmp_path.iterdir()] == [name]


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\), at least \(1, 1\), but has \(2, 4\)"):
        save_spectrogram("x", np.zeros((9, 4)), frame_s=0.01, attention=np.eye(2, 4), pieces=["a", "b"], reduction=4)
    with pytest.raises(ValueError, match="finite"):
        save_spectrogram("x", np.full((9, 4), np.nan), frame_s=0.01)
    with pytest.raises(ValueError, match=r"\[S, M\]"):
        save_spectrogram("x", np.zeros(9), frame_s=0.01)
