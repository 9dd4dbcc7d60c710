"""Lists of utterances: every form gives the same corpus, and what is wrong is told in one line."""

import gzip
import json

import numpy as np
import pytest
import soundfile

from seq2seq_jax.data.utterances import index_durations, list_audio, read_utterances
from seq2seq_jax.errors import UserError

TEXTS = ["hello there", "good morning"]


@pytest.fixture
def folder(tmp_path):
    """Two clips of one and of two seconds, one of them in a folder of its own."""
    return fill(tmp_path / "corpus")


def fill(folder):
    (folder / "clips").mkdir(parents=True)
    for seconds, name in enumerate(("a.wav", "clips/b.flac"), 1):
        soundfile.write(folder / name, np.full(8000 * seconds, 0.1), 8000)
    return folder


LISTS = {
    "plain.tsv": "a.wav\thello there\nclips/b.flac\tgood morning\n",
    "header.tsv": "id\tpath\tsentence\n1\ta.wav\thello there\n2\tclips/b.flac\tgood morning\n",
    "windows.tsv": "\ufeffAudio\tText\r\na.wav\t hello  there \r\n\r\nclips/b.flac\tgood morning\r\n",
    "lines.jsonl": '{"audio": "a.wav", "text": "hello there"}\n{"path": "clips/b.flac", "text": "good morning"}\n',
    "nemo.json": '{"audio_filepath": "a.wav", "duration": 1.0, "text": "hello there"}\n'
    '{"audio_filepath": "clips/b.flac", "duration": 2.0, "text": "good morning"}\n',
}


@pytest.mark.parametrize("name", LISTS)
def test_forms_of_manifests_give_the_same_corpus(folder, name):
    (folder / name).write_text(LISTS[name], newline="")
    text = read_utterances(folder / name)
    assert text.source == [str(folder / "a.wav"), str(folder / "clips/b.flac")]
    assert text.target == TEXTS
    (folder / "other.tsv").write_text(LISTS["plain.tsv"])
    assert text.digest == read_utterances(folder / "other.tsv").digest
    assert index_durations(text, cache=None, strict=True).tolist() == [1.0, 2.0]


def test_a_gzipped_manifest_and_absolute_paths_are_read(folder):
    (folder / "list.tsv.gz").write_bytes(gzip.compress(f"{folder / 'a.wav'}\thello there\n".encode()))
    assert read_utterances(folder / "list.tsv.gz").source == [str(folder / "a.wav")]


PARTS = {
    "plain.tsv": "clips/b.flac\thello there\t0.5\t1.25\n",
    "header.tsv": "audio\ttext\tstart\tend\nclips/b.flac\thello there\t0.5\t1.25\n",
    "lines.jsonl": '{"audio": "clips/b.flac", "text": "hello there", "start": 0.5, "end": 1.25}\n',
    "nemo.json": '{"audio_filepath": "clips/b.flac", "text": "hello there", "offset": 0.5, "duration": 0.75}\n',
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_of_files_have_names_of_their_own(folder, name):
    (folder / name).write_text(PARTS[name])
    text = read_utterances(folder / name)
    assert text.source == [f"{folder}/clips/b.flac#0.5-1.25"]
    assert index_durations(text, cache=None, strict=True).tolist() == [0.75]


def test_a_folder_in_librispeechs_layout_is_read(tmp_path):
    expected = []
    for speaker, chapter in ((19, 198), (103, 1240)):
        home = tmp_path / "dev-clean" / str(speaker) / str(chapter)
        home.mkdir(parents=True)
        lines = []
        for number in range(2):
            name = f"{speaker}-{chapter}-{number:04}"
            soundfile.write(home / f"{name}.flac", np.full(1600, 0.1), 16_000)
            lines.append(f"{name} WORDS OF {name}\n")
            expected.append((str(home / f"{name}.flac"), f"WORDS OF {name}"))
        (home / f"{speaker}-{chapter}.trans.txt").write_text("".join(lines))
    text = read_utterances(tmp_path)
    assert list(zip(text.source, text.target, strict=True)) == sorted(expected)


def test_all_audio_below_a_folder_is_listed_whatever_its_transcripts_name(folder):
    (folder / "clips" / "1-2.trans.txt").write_text("b GOOD MORNING\n")
    for name in ("clips/c.OGG", "d.m4a", "notes.txt"):
        (folder / name).write_bytes(b"anything")
    assert list_audio(folder) == [folder / name for name in ("a.wav", "clips/b.flac", "clips/c.OGG", "d.m4a")]
    assert read_utterances(folder).source == [str(folder / "clips/b.flac")]


def test_a_transcript_is_of_the_file_that_can_be_read(folder):
    (folder / "clips" / "1-2.trans.txt").write_text("b GOOD MORNING\n")
    (folder / "clips" / "b.aac").write_bytes(b"anything")
    assert read_utterances(folder).source == [str(folder / "clips/b.flac")]


def test_a_folder_of_audio_alone_has_no_transcripts(folder):
    with pytest.raises(UserError, match=r"no \*\.trans\.txt"):
        read_utterances(folder)


def test_transcripts_may_be_missing_where_they_are_not_needed(folder):
    (folder / "list.tsv").write_text("a.wav\thello there\nclips/b.flac\t\n")
    assert read_utterances(folder / "list.tsv", need_text=False).target == ["hello there", ""]
    (folder / "names.tsv").write_text("a.wav\nclips/b.flac\n")
    assert read_utterances(folder / "names.tsv", need_text=False).target is None


def test_the_digest_stays_when_all_is_moved_and_changes_with_its_parts(folder, tmp_path):
    (folder / "list.tsv").write_text(LISTS["plain.tsv"])
    digest = read_utterances(folder / "list.tsv").digest
    moved = fill(tmp_path / "moved")
    (moved / "list.tsv").write_text(LISTS["plain.tsv"])
    assert read_utterances(moved / "list.tsv").digest == digest
    (moved / "list.tsv").write_text(LISTS["plain.tsv"].replace("hello", "hallo"))
    assert read_utterances(moved / "list.tsv").digest != digest
    soundfile.write(folder / "a.wav", np.full(8001, 0.1), 8000)
    assert read_utterances(folder / "list.tsv").digest != digest


BAD = {
    "missing.tsv": ("a.wav\thello\nc.wav\thello\n", r"missing\.tsv: line 2: .*c\.wav: no such file"),
    "blank.tsv": ("a.wav\t \n", r"blank\.tsv: line 1: a\.wav has no transcript"),
    "tabs.tsv": ("a.wav\thello\tthere\n", r"tabs\.tsv: line 1 has 3 columns"),
    "ragged.tsv": ("audio\ttext\na.wav\thello\tthere\n", r"ragged\.tsv: line 2 has 3 columns"),
    "nothing.tsv": ("", r"nothing\.tsv: is empty"),
    "header.tsv": ("audio\ttext\n", r"header\.tsv: is empty"),
    "broken.jsonl": ('{"audio": \n', r"broken\.jsonl: line 1 is no JSON"),
    "array.jsonl": ("[1]\n", r"array\.jsonl: line 1 must be an object"),
    "nameless.jsonl": ('{"text": "hello"}\n', r"nameless\.jsonl: line 1 names no audio file"),
    "number.jsonl": ('{"audio": "a.wav", "text": 3}\n', r"number\.jsonl: line 1: the text must be a string, but is 3"),
    "start.tsv": ("a.wav\thello\tx\t2\n", r"start\.tsv: line 1: start must be a number of seconds, but is 'x'"),
    "nan.jsonl": ('{"audio": "a.wav", "text": "b", "end": NaN}\n', r"nan\.jsonl: line 1: end must be a number"),
    "order.tsv": ("a.wav\thello\t2\t1\n", r"order\.tsv: line 1: must end after its start"),
    "short.tsv": ("a.wav\thello\t0\t1\na.wav\tb\t1.0\t1.0001\n", r"short\.tsv: line 2: must be at least 0\.01 s long"),
    "short.json": (
        '{"audio": "a.wav", "text": "b", "offset": 0.5, "duration": 1e-9}\n',
        r"json: line 1: must be at",
    ),
    "half.jsonl": ('{"audio": "a.wav", "text": "b\\ud800"}\n', r"half\.jsonl: line 1: the text must be Unicode"),
    "path.jsonl": ('{"audio": "\\udcff.wav", "text": "b"}\n', r"path\.jsonl: line 1: the path of the audio must be"),
    "list.csv": ("a.wav,hello\n", r"list\.csv: a list of utterances must be a \.tsv or \.jsonl"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_list_gives_one_line_with_its_place(folder, name):
    content, told = BAD[name]
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=told) as caught:
        read_utterances(folder / name)
    assert "\n" not in str(caught.value) and str(caught.value).isascii()


def test_whole_characters_and_parts_of_a_frame_are_taken(folder):
    row = {"audio": "a.wav", "text": "\U0001f600", "start": 0.5, "end": 0.51}
    (folder / "list.jsonl").write_text(json.dumps(row) + "\n")  # as a pair of surrogates
    text = read_utterances(folder / "list.jsonl")
    assert (text.source, text.target) == ([f"{folder}/a.wav#0.5-0.51"], ["\U0001f600"])
    assert index_durations(text, cache=None, strict=True) == pytest.approx([0.01])


def test_a_folder_without_audio_and_a_missing_list_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match="holds no audio"):
        list_audio(tmp_path)
    with pytest.raises(UserError, match="holds no audio"):
        read_utterances(tmp_path)
    with pytest.raises(UserError, match=r"list\.tsv: no such file"):
        read_utterances(tmp_path / "list.tsv")


def test_unreadable_clips_are_named_in_one_line_or_refused(folder):
    (folder / "bad.wav").write_bytes(b"hello " * 100)
    (folder / "list.tsv").write_text("a.wav\thello\nbad.wav\thello\nclips/b.flac\thello\n")
    text, told = read_utterances(folder / "list.tsv"), []
    seconds = index_durations(text, cache=None, strict=False, tell=told.append)
    np.testing.assert_array_equal(seconds, [1.0, np.nan, 2.0])
    assert len(told) == 1 and "1 of 3 clips" in told[0] and "bad.wav" in told[0] and "\n" not in told[0]
    with pytest.raises(UserError, match=r"bad\.wav: cannot be read as audio"):
        index_durations(text, cache=None, strict=True, tell=told.append)
    (folder / "all.jsonl").write_text(json.dumps({"audio": "bad.wav", "text": "a"}))
    with pytest.raises(UserError, match=r"bad\.wav"):
        index_durations(read_utterances(folder / "all.jsonl"), cache=None, strict=False, tell=told.append)


def test_lengths_are_found_once(folder, tmp_path, monkeypatch):
    (folder / "list.tsv").write_text(LISTS["plain.tsv"])
    text = read_utterances(folder / "list.tsv")
    cache = tmp_path / "cache"
    seconds = index_durations(text, cache=cache, strict=True)
    monkeypatch.setattr("seq2seq_jax.data.utterances.probe_clip", None)
    np.testing.assert_array_equal(index_durations(text, cache=cache, strict=True), seconds)
    next(cache.iterdir()).write_bytes(b"torn")
    monkeypatch.undo()
    np.testing.assert_array_equal(index_durations(text, cache=cache, strict=True), seconds)


def test_what_was_unreadable_is_looked_at_again(folder, tmp_path):
    (folder / "list.tsv").write_text("a.wav\thello\nbad.wav\thello\n")
    soundfile.write(folder / "bad.wav", np.full(400, 0.1), 8000)
    good = (folder / "bad.wav").read_bytes()
    (folder / "bad.wav").write_bytes(b"x" * len(good))
    text, cache = read_utterances(folder / "list.tsv"), tmp_path / "cache"
    assert np.isnan(index_durations(text, cache=cache, strict=False, tell=str)[1])
    (folder / "bad.wav").write_bytes(good)
    assert index_durations(text, cache=cache, strict=True).tolist() == [1.0, 0.05]
