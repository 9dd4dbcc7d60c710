"""N-best lists in every form that systems write: what is read, what is refused, and that nothing is lost on the way."""

import gzip
import tarfile

import numpy as np
import pytest

from seq2seq_jax.data.nbest import (
    Hypothesis,
    group_segments,
    list_columns,
    make_matrix,
    parse_line,
    read_nbest,
    render_line,
)
from seq2seq_jax.errors import UserError

FORMS = {
    "moses": (
        "0 ||| das ist . ||| LM0= -37.2141 TM0= -5.5 0 1e-3 ||| -1.80752",
        Hypothesis(0, "das ist .", {"LM0": (-37.2141,), "TM0": (-5.5, 0.0, 0.001)}, -1.80752),
    ),
    "without blanks": (
        "12|||mr president , we  |||d= 0 -3.3 lm= -47.2982|||-9.26049",
        Hypothesis(12, "mr president , we", {"d": (0.0, -3.3), "lm": (-47.2982,)}, -9.26049),
    ),
    "without names": ("3|||a b|||-1 2.5 7|||4", Hypothesis(3, "a b", {"": (-1.0, 2.5, 7.0)}, 4.0)),
    "first without, then with names": (
        "3 ||| a ||| -1 2 lm= 5 ||| 4",
        Hypothesis(3, "a", {"": (-1.0, 2.0), "lm": (5.0,)}, 4.0),
    ),
    "colons": ("0 ||| a ||| lm: -1 w: 2 3 ||| 0.5", Hypothesis(0, "a", {"lm": (-1.0,), "w": (2.0, 3.0)}, 0.5)),
    "name=value": ("0 ||| a ||| LM=-1.5 a=b=2 ||| 0", Hypothesis(0, "a", {"LM": (-1.5,), "a=b": (2.0,)}, 0.0)),
    "marian": ("5 ||| Nr@@ . ||| F0= -4.37517 ||| -2.18758", Hypothesis(5, "Nr@@ .", {"F0": (-4.37517,)}, -2.18758)),
    "total alone": ("4 ||| a ||| 0.2475", Hypothesis(4, "a", {"Total": (0.2475,)}, 0.2475)),
    "no features": ("4 ||| a ||| ||| -2", Hypothesis(4, "a", {"Total": (-2.0,)}, -2.0)),
    "alignment": ("0 ||| a b ||| lm= 1 ||| 2 ||| 0-0 1-1", Hypothesis(0, "a b", {"lm": (1.0,)}, 2.0, ("0-0 1-1",))),
    "blank text": ("0 |||  ||| lm= 1 ||| 2", Hypothesis(0, "", {"lm": (1.0,)}, 2.0)),
    "signs": ("7 ||| x = y : 3 ||| lm= 1 ||| 2", Hypothesis(7, "x = y : 3", {"lm": (1.0,)}, 2.0)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read_and_comes_back(form):
    line, wanted = FORMS[form]
    assert parse_line(line) == wanted
    assert list(parse_line(line).features) == list(wanted.features)
    assert parse_line(render_line(wanted).removesuffix("\n")) == wanted


def test_what_moses_wrote_is_written_as_it_was():
    for form in ("moses", "marian", "alignment"):
        line = FORMS[form][0]
        assert render_line(parse_line(line)) == line.replace("1e-3", "0.001") + "\n"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("", "it is blank"),
        ("just text", "1 fields"),
        ("0 ||| text", "2 fields"),
        ("x ||| a ||| lm= 1 ||| 2", "begins with 'x'"),
        ("-1 ||| a ||| lm= 1 ||| 2", "begins with '-1'"),
        ("0 ||| a ||| lm= one ||| 2", "a value of feature 'lm' must be a finite number, but is 'one'"),
        ("0 ||| a ||| lm= -inf ||| 2", "must be a finite number, but is '-inf'"),
        ("0 ||| a ||| lm= 1 ||| ", "the total must be a finite number, but is ''"),
        ("0 ||| a ||| lm= 1", "the total must be a finite number, but is 'lm= 1'"),
        ("0 ||| a ||| lm= 1 lm= 2 ||| 3", "'lm' is there twice"),
        ("0 ||| a ||| lm= w= 2 ||| 3", "'lm' has no value"),
        ("0 ||| a ||| = 2 ||| 3", "names no feature"),
        ("0 ||| a ||| lm= 1 2 ||| 3", "2 values of feature 'lm', but line 1 has 1"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, told):
    path = tmp_path / "lists.txt"
    path.write_text(f"0 ||| good ||| lm= 1 ||| 2\n{line}\n0 ||| good ||| lm= 1 ||| 2\n")
    with pytest.raises(UserError) as error:
        read_nbest(path)
    assert str(error.value).startswith(f"{path}: line 2 ") and told in str(error.value)
    assert "\n" not in str(error.value)


def test_an_empty_or_missing_file_is_refused(tmp_path):
    (tmp_path / "empty").write_text("")
    with pytest.raises(UserError, match="is empty"):
        read_nbest(tmp_path / "empty")
    with pytest.raises(UserError, match="cannot be read"):
        read_nbest(tmp_path / "missing")


def test_lists_and_their_columns(tmp_path):
    path = tmp_path / "lists.gz"
    lines = "2 ||| c ||| lm= 1 rare_1= 7 ||| 0\n0 ||| a ||| lm= 2 tm= 3 4 ||| 0\n2 ||| d ||| lm= 5 ||| 0\n"
    path.write_bytes(gzip.compress(lines.encode()))
    items = read_nbest(path)
    assert list(group_segments(items).items()) == [(0, [1]), (2, [0, 2])]
    columns = list_columns(items)
    assert columns == [("lm", 0), ("rare_1", 0), ("tm", 0), ("tm", 1)]
    np.testing.assert_array_equal(make_matrix(items, columns), [[1, 7, 0, 0], [2, 0, 3, 4], [5, 0, 0, 0]])


@pytest.fixture(scope="module")
def real_lists(data_folder, tmp_path_factory):
    """The folder of public n-best lists."""
    folder = tmp_path_factory.mktemp("nbest")
    with tarfile.open(data_folder / "archives" / "nbest.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "lines", "segments", "columns"),
    [
        ("csmtiser_emode/run1.nbest.0-999", 8347, 1000, 8),
        ("csmtiser_emode/run17.nbest.0-999", 8545, 1000, 8),
        ("moses_mert/nbest.1.gz", 1000, 10, 14),
        ("marian_scorer/nbest.expected", 100, 20, 2),
        ("marian_wmt16/nbest.expected", 500, 100, 1),
        ("marian_wmt17/nbest.nematus", 500, 100, 1),
    ],
)
def test_real_lists(real_lists, name, lines, segments, columns):
    items = read_nbest(real_lists / name)
    assert (len(items), len(group_segments(items)), len(list_columns(items))) == (lines, segments, columns)
    assert [parse_line(render_line(item).removesuffix("\n")) for item in items] == items
