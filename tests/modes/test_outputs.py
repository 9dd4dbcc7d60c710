"""What is written appears whole or not at all, and never over what is read or what was not meant."""

import errno
import io
import os
import threading

import numpy as np
import pytest

import seq2seq_jax
from seq2seq_jax.config import default_config
from seq2seq_jax.data.sources import make_text
from seq2seq_jax.data.vocab_training import train_vocabs
from seq2seq_jax.data.whole_file import write_whole
from seq2seq_jax.errors import UserError
from seq2seq_jax.main import main
from seq2seq_jax.modes.lines import MOST_BYTES, count_lines, open_output, open_whole, read_input
from seq2seq_jax.modes.new_folder import make_folder
from seq2seq_jax.modes.transcribe import _check_output
from seq2seq_jax.vocabularies import obtain_ngram


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_keeps_its_old_content_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text("old\n")
    with open_output(str(path)) as output:
        output.write("nïw\n")
        output.flush()
        assert path.read_text() == "old\n"
    assert path.read_bytes() == "nïw\n".encode() and names(tmp_path) == ["out.txt"]
    with pytest.raises(RuntimeError), open_output(str(path)) as output:
        output.write("half")
        raise RuntimeError
    assert path.read_bytes() == "nïw\n".encode() and names(tmp_path) == ["out.txt"]


def test_a_neighbour_is_never_taken_for_the_part_that_is_written(tmp_path):
    (tmp_path / "out.txt.part").write_text("mine")
    with open_output(str(tmp_path / "out.txt")) as output:
        output.write("new")
    assert (tmp_path / "out.txt.part").read_text() == "mine"


def test_a_folder_is_refused_before_the_work(tmp_path):
    with pytest.raises(UserError, match="is a folder; name a file in it"), open_output(str(tmp_path)):
        pytest.fail("began to work")


def test_what_is_read_is_not_written_over(tmp_path):
    path, link = tmp_path / "in.txt", tmp_path / "link.txt"
    path.write_text("one\n")
    link.symlink_to(path)
    for name in (path, link):
        with pytest.raises(UserError, match="is read, too"), open_output(str(name), apart_from=(None, str(path))):
            pytest.fail("began to work")
    assert path.read_text() == "one\n"


@pytest.mark.parametrize("mode", ["translate", "vectors", "score"])
def test_modes_do_not_write_over_what_they_read(tiny_run, tmp_path, mode, capsys):
    for side in ("en", "es"):
        (tmp_path / f"text.{side}").write_text("one red cat\n")
    read = tmp_path / "text.en"
    given = tmp_path / "text" if mode == "score" else read
    args = [f"--workdir={tiny_run}", f"--mode={mode}", f"--input={given}", f"--output={read}"]
    assert main(["seq2seq_jax.main", *args]) == 2
    assert "is read, too" in capsys.readouterr().err and read.read_text() == "one red cat\n"


def test_a_transcript_is_not_written_over_its_recording(tmp_path):
    recording = tmp_path / "a.wav"
    recording.write_bytes(b"sound")
    with pytest.raises(UserError, match="is read, too"):
        _check_output(str(recording), [str(recording)], several=False)


def test_half_a_file_of_a_vocabulary_is_removed_when_the_disk_is_full(tmp_path, monkeypatch):
    def fail(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_whole(tmp_path / "source.model", b"model")
    assert names(tmp_path) == []


def test_a_pipe_is_written_to_and_stays_one(tmp_path):
    path, found = tmp_path / "pipe", []
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: found.append(path.read_bytes()))
    reader.start()
    with open_whole(str(path)) as output:
        output.write(b"through")
    reader.join(10)
    assert found == [b"through"] and path.is_fifo() and names(tmp_path) == ["pipe"]


def test_a_new_folder_is_never_made_over_an_old_one(tmp_path):
    goal = tmp_path / "model"
    goal.mkdir()
    for there in (goal, tmp_path / "file", tmp_path / "dangling"):
        if there.name == "file":
            there.write_text("x")
        elif there.name == "dangling":
            there.symlink_to("nowhere")
        with pytest.raises(UserError, match="is there already"), make_folder(str(there)):
            pytest.fail("began to work")
    with pytest.raises(RuntimeError), make_folder(str(tmp_path / "new")) as made:
        (made / "half").write_text("x")
        raise RuntimeError
    assert names(tmp_path) == ["dangling", "file", "model"]


def test_lines_come_without_a_mark_and_are_counted_alike(tmp_path):
    path = tmp_path / "in.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\xef\xbb\xbftwo")
    assert list(read_input(str(path))) == ["one", "\ufefftwo"] and count_lines(str(path)) == 2


def test_lines_from_standard_input_come_without_a_mark(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfone\ntwo\n")))
    assert list(read_input(None)) == ["one", "two"]


def test_the_line_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "in.txt"
    path.write_bytes(b"one\n" * 500 + b"tw\xff\n" + b"three\n" * 500)
    lines, found = read_input(str(path)), []
    with pytest.raises(UserError, match="line 501 is not UTF-8 .byte 0xff at position 3 of the line"):
        found.extend(lines)
    assert found == [] or len(found) == 500


def test_an_endless_line_is_refused():
    with pytest.raises(UserError, match=f"line 1 has {MOST_BYTES:,} bytes or more"):
        list(read_input("/dev/zero"))


@pytest.mark.parametrize("ending", [".pt", ".bin", ".pkl", ".npz", ".safetensors"])
def test_files_of_weights_of_others_are_refused_with_a_hint(tmp_path, ending, capsys):
    path = tmp_path / f"weights{ending}"
    np.savez(tmp_path / "x.npz", a=np.zeros(2))
    path.write_bytes((tmp_path / "x.npz").read_bytes())
    flags = ["--config=configs/gnmt.py", f"--workdir={tmp_path / 'run'}", f"--init_from={path}"]
    assert main(["seq2seq_jax.main", *flags]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and str(path) in line
    assert "model.safetensors" in line and "can run code" in line and "--init_from" in line
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="can run code"):
        seq2seq_jax.load(path)


def test_an_ngram_model_that_cannot_be_kept_is_a_users_error(tmp_path, monkeypatch):
    config = default_config()
    config.decode.ngram = "auto"
    lines = ["one two", "two one one"]
    vocabs = train_vocabs(lines, lines, kind="word", size=20)

    def refuse(path, text):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("seq2seq_jax.vocabularies.replace_text", refuse)
    with pytest.raises(UserError, match=r"ngram.arpa, which cannot be written \(Permission denied\)"):
        obtain_ngram(config, vocabs, tmp_path / "ngram.arpa", make_text(lines, lines, name="lines"))
