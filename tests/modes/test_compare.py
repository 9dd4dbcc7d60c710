"""Comparing runs and files from the command line: text, JSON and a page; and what is refused."""

import json
import re
import shutil

import pytest

from seq2seq_jax.evaluate.text import corpus_scores
from seq2seq_jax.main import main


def call(*args):
    """Runs a command line in this process; the exit code."""
    return main(["seq2seq_jax.main", "--mode=compare", *args])


@pytest.fixture
def files(tmp_path):
    """Three translations of three sentences, and their references."""
    texts = {
        "a.txt": "the cat sat here\na dog\nit rains today\n",
        "b.txt": "the cat sat here\nthe big dog\nit rains\n",
        "ref.txt": "the cat sat here\nthe big dog\nit rains today\n",
        "src.txt": "die Katze\nder Hund\nes regnet\n",
        "short.txt": "one\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_two_runs(tiny_run, averaged_run, tmp_path, capsys):
    page = tmp_path / "report.html"
    assert call(f"--workdir={tiny_run}", f"--against={averaged_run}", f"--output={page}", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["systems"] == ["run", "averaged"] and report["sentences"] == 24
    for n, path in enumerate((tiny_run / "results.json", averaged_run / "evaluation" / "results.json")):
        wanted = json.loads(path.read_text())["test"]
        found = {row["name"]: row["systems"][n]["score"] for row in report["scores"]}
        assert found["BLEU"] == pytest.approx(wanted["bleu"]) and found["chrF2"] == pytest.approx(wanted["chrf"])
    assert report["words"]["counted_in"] == "training text" and report["config"] == {}
    text = page.read_text()
    assert text.count("data:image/png;base64,") == 2 and text.count("<polyline") >= 3
    assert not re.search(r"(?:src|href)=\"(?!#|data:image/png)", text) and "seed:12345" in text


def test_one_run_in_words(tiny_run, tmp_path, capsys):
    assert call(f"--workdir={tiny_run}", f"--output={tmp_path / 'report.html'}") == 0
    out = capsys.readouterr().out
    assert "24 sentences: run" in out and "BLEU by length of the source in words:" in out
    assert "train.ema_decay: 0.5" in out and "p = " not in out
    assert "Keys that differ from their defaults" in (tmp_path / "report.html").read_text()


def test_the_newest_translations_of_the_same_test_set_are_compared(tiny_run, tmp_path, capsys):
    """An evaluation on another set since then does not hide those of the training."""
    copy = shutil.copytree(tiny_run, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoints"))
    (copy / "evaluation").mkdir(exist_ok=True)
    for name in ("results.json", "outputs"):
        move = shutil.copytree if (copy / name).is_dir() else shutil.copy
        if not (copy / "evaluation" / name).exists():
            move(copy / name, copy / "evaluation" / name)
    path = copy / "evaluation" / "outputs" / "test.references.txt"
    path.write_text(path.read_text().replace("rot", "grün"))
    (copy / "evaluation" / "results.json").touch()
    assert call(f"--workdir={tiny_run}", f"--against={copy}", "--json") == 0
    assert {row["p_value"] for row in json.loads(capsys.readouterr().out)["scores"]} == {1.0}


def test_another_test_set_is_refused(tiny_run, tmp_path, capsys):
    copy = shutil.copytree(tiny_run, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoints"))
    path = copy / "outputs" / "test.references.txt"
    path.write_text(path.read_text().replace("rot", "grün"))
    assert call(f"--workdir={tiny_run}", f"--against={copy}") == 2
    assert "another test set" in capsys.readouterr().err
    (copy / "results.json").unlink()
    (copy / "results.json").mkdir()
    assert call(f"--workdir={copy}") == 2
    assert "results.json: cannot be read" in capsys.readouterr().err
    shutil.rmtree(copy / "outputs")
    assert call(f"--workdir={copy}") == 2
    assert "no translations of a test set yet" in capsys.readouterr().err
    assert call(f"--workdir={tiny_run}", "--input=x") == call(f"--workdir={tiny_run}", "--reference=x") == 2
    assert "exclude each other" in (told := capsys.readouterr().err) and "go with --input" in told


def test_two_files_need_no_config(files, capsys, monkeypatch):
    monkeypatch.chdir(files)
    args = ("--input=a.txt", "--against=b.txt", "--reference=ref.txt")
    assert call(*args, "--source=src.txt", "--output=r.html", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["systems"] == ["a.txt", "b.txt"] and report["lengths"]["of"] == "source"
    references = (files / "ref.txt").read_text().splitlines()
    for n, name in enumerate(report["systems"]):
        wanted = corpus_scores((files / name).read_text().splitlines(), references, target="en")
        assert report["scores"][0]["systems"][n]["score"] == pytest.approx(wanted["bleu"])
    assert report["words"]["counted_in"] == "references"
    assert (files / "r.html").read_text().startswith("<!DOCTYPE html>")
    assert call(*args) == 0
    assert "3 sentences: a.txt against b.txt" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("--input=a.txt", "--against=b.txt"), "--reference is missing"),
        (("--input=a.txt", "--against=short.txt", "--reference=ref.txt"), "short.txt has 1"),
        (("--input=a.txt", "--against=none.txt", "--reference=ref.txt"), "cannot be read"),
        (("--against=b.txt",), "--config is missing"),
        (("--input=a.txt", "--reference=ref.txt", "--output=none/r.html"), "cannot be written"),
        (("--input=a.txt", "--reference=ref.txt", "--nbest=2"), "goes with"),
    ],
)
def test_wrong_files_are_one_line(files, monkeypatch, capsys, args, told):
    monkeypatch.chdir(files)
    assert call(*args) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


def test_runs_of_one_name_are_told_apart(tiny_run, tmp_path, capsys):
    copy = shutil.copytree(tiny_run, tmp_path / "copy" / "run", ignore=shutil.ignore_patterns("checkpoints"))
    assert call(f"--workdir={tiny_run}", f"--against={copy}", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["systems"] == [f"{tiny_run.parent.name}/run", "copy/run"]
    assert all(row["p_value"] == 1 for row in report["scores"])
