"""What `--input` names to transcribe, before a model is loaded."""

import numpy as np
import pytest
import soundfile

from seq2seq_jax.errors import UserError
from seq2seq_jax.modes.transcribe import list_recordings


@pytest.fixture
def folder(tmp_path):
    """Three recordings, of which a list of transcripts names one, and one of a format that cannot be read."""
    (tmp_path / "talks" / "more").mkdir(parents=True)
    for name in ("1-2-0000.flac", "other.wav", "more/third.wav"):
        soundfile.write(tmp_path / "talks" / name, np.full(800, 0.1), 8000)
    (tmp_path / "talks" / "1-2.trans.txt").write_text("1-2-0000 HELLO\n")
    (tmp_path / "talks" / "phone.m4a").write_bytes(b"anything")
    return tmp_path


def test_a_folder_is_all_of_its_audio(folder):
    names, several = list_recordings(str(folder / "talks"))
    assert names == [str(folder / "talks" / n) for n in ("1-2-0000.flac", "more/third.wav", "other.wav", "phone.m4a")]
    assert several


def test_files_parts_patterns_and_manifests_come_in_their_order(folder):
    wav = folder / "talks" / "other.wav"
    assert list_recordings(str(wav)) == ([str(wav)], False)
    assert list_recordings(f"{wav}#0.02-0.05") == ([f"{wav}#0.02-0.05"], False)
    (folder / "list.tsv").write_text("talks/other.wav\n")
    names, several = list_recordings(f"{folder}/talks/*.flac, {folder}/list.tsv,{wav}")
    assert names == [str(folder / "talks" / "1-2-0000.flac"), str(wav), str(wav)] and several


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("talks/othr.wav", r"--input=.*othr\.wav: no such audio file or folder; near it there are other\.wav"),
        ("talk", "--input=.*talk: no such audio file or folder; near it there are talks"),
        ("gone.wav#1-2", r"--input=.*gone\.wav#1-2: no such audio file or folder"),
        ("gone.tsv", r"--input=.*gone\.tsv: no such manifest of audio files"),
        ("empty", "empty: holds no audio"),
        ("*.mp3", r"--input=.*mp3: no file is named so"),
        (",", "--input must name a recording, a folder, a pattern or a manifest"),
    ],
)
def test_what_is_not_there_is_refused_in_words_of_audio(folder, given, told):
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match=told) as caught:
        list_recordings(given if given == "," else str(folder / given))
    assert "list of utterances" not in str(caught.value) and "\n" not in str(caught.value)
