"""Words and their times from tokens, and the files that tell them: fields, times, letters that mean something."""

from __future__ import annotations

import json
import re

import pytest

from seq2seq_jax.errors import UserError
from seq2seq_jax.serve.subtitles import CUE_LETTERS, CUE_SECONDS, Segment, Word, cut_cues, join_words, render

WORDS = (Word("hello", 0.0, 0.5), Word("world", 0.6, 1.0))
SEGMENTS = [Segment("hello world", 0.0, 1.2, WORDS, -0.5), Segment("R&D <b> --> 5", 3661.0, 3662.9996)]
STAMP = re.compile(r"^(\d\d):([0-5]\d):([0-5]\d)([.,])(\d{3}) --> (\d\d):([0-5]\d):([0-5]\d)\4(\d{3})$")


def join_pieces(pieces: list[str]) -> tuple[Word, ...]:
    """As a vocabulary of subwords decodes them: "▁" is a blank, and the first one is dropped."""
    times = [(float(n), n + 0.5) for n in range(len(pieces))]
    return join_words(
        range(len(pieces)),
        times,
        decode=lambda ids: "".join(pieces[n] for n in ids).replace("▁", " ").removeprefix(" "),
    )


@pytest.mark.parametrize(
    "pieces",
    [
        ["▁hel", "lo", "▁", "wor", "ld"],
        ["hel", "lo", "▁", "wor", "ld"],
        ["▁", "hello", "▁w", "orl", "d"],
        ["hello▁w", "or", "ld", "▁", "▁"],
    ],
)
def test_words_last_from_their_first_token_to_their_last(pieces):
    words = join_pieces(pieces)
    assert [word.text for word in words] == ["hello", "world"]
    for word in words:
        mine = [
            n for n in range(len(pieces)) if shares(pieces, n, at="hello world".index(word.text), size=len(word.text))
        ]
        assert (word.start, word.end) == (mine[0], mine[-1] + 0.5)


def shares(pieces: list[str], n: int, *, at: int, size: int) -> bool:
    """Whether piece n wrote one of `size` letters from `at` on; counted letter by letter."""
    owners = [m for m, piece in enumerate(pieces) for _ in piece]
    if pieces[0].startswith("▁"):
        owners = owners[1:]
    return n in owners[at : at + size]


def test_bytes_that_are_no_letter_yet():
    data = "да нет".encode()
    words = join_words(
        list(data),
        [(n / 10, (n + 1) / 10) for n in range(len(data))],
        decode=lambda ids: bytes(ids).decode("utf-8", errors="replace"),
    )
    assert [word.text for word in words] == ["да", "нет"]
    assert words[0].start == 0.0 and (words[1].start, words[1].end) == pytest.approx((0.5, 1.1))
    assert words[0].end == pytest.approx(0.4)


def test_no_tokens_no_words():
    assert join_pieces([]) == () == join_pieces(["▁"])
    with pytest.raises(ValueError, match="as many as `tokens`, 1, but are 0"):
        join_words([5], [], decode=str)


def test_plain_text_is_a_line_for_each_segment():
    assert render(SEGMENTS, "text") == "hello world\nR&D <b> --> 5\n"
    assert render([Segment("a\nb ", 0, 1)], "text") == "a b\n"
    assert render([], "text") == "\n"


def test_json_has_the_fields_of_verbose_json():
    told = json.loads(render(SEGMENTS, "json", duration=4000.0))
    assert (told["task"], told["duration"], told["text"]) == ("transcribe", 4000.0, "hello world R&D <b> --> 5")
    first, second = told["segments"]
    assert first == {
        "id": 0, "start": 0.0, "end": 1.2, "text": "hello world", "score": -0.5,
        "words": [{"word": "hello", "start": 0.0, "end": 0.5}, {"word": "world", "start": 0.6, "end": 1.0}],
    }  # fmt: skip
    assert (second["id"], second["words"]) == (1, [])
    endless = json.loads(render([Segment("", 0.0, 1.0, score=float("-inf"))], "json"))
    assert endless["segments"][0]["score"] is None
    assert json.loads(render([], "json")) == {"task": "transcribe", "duration": 0.0, "text": "", "segments": []}


def test_subrip():
    assert render(SEGMENTS, "srt") == (
        "1\n00:00:00,000 --> 00:00:01,000\nhello world\n\n2\n01:01:01,000 --> 01:01:03,000\nR&D <b> -> 5\n"
    )
    assert render([], "srt") == ""


def test_webvtt():
    assert render(SEGMENTS, "vtt") == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\nhello world\n\n"
        "01:01:01.000 --> 01:01:03.000\nR&amp;D &lt;b&gt; -&gt; 5\n"
    )
    assert render([], "vtt") == "WEBVTT\n"


@pytest.mark.parametrize("form", ["srt", "vtt"])
def test_every_subtitle_lasts_and_has_text(form):
    segments = [Segment("", 0.0, 1.0), Segment("x", 2.0, 2.0), Segment(" y\n\nz ", -0.001, 0.5)]
    blocks = [block for block in render(segments, form).removeprefix("WEBVTT\n\n").split("\n\n") if block]
    assert len(blocks) == 2
    for block in blocks:
        lines = block.strip().split("\n")
        match = STAMP.match(lines[form == "srt"])
        assert match and match[4] == ("," if form == "srt" else ".")
        start, end = (int(h) * 3600000 + int(m) * 60000 + int(s) * 1000 + int(ms) for h, m, s, ms in
                      (match.group(1, 2, 3, 5), match.group(6, 7, 8, 9)))  # fmt: skip
        assert 0 <= start < end
        assert lines[(form == "srt") + 1 :] in (["x"], ["y z"])


def test_long_segments_become_subtitles_that_can_be_read():
    words = tuple(Word(f"word{n}", 0.5 * n, 0.5 * n + 0.4) for n in range(60))
    cues = list(cut_cues(Segment(" ".join(word.text for word in words), 0.0, 30.0, words)))
    assert [word for cue in cues for word in cue.words] == list(words)
    assert len(cues) > 3
    for cue in cues:
        assert len(cue.text) <= CUE_LETTERS and cue.end - cue.start <= CUE_SECONDS
        assert (cue.start, cue.end) == (cue.words[0].start, cue.words[-1].end)
    one = Word("x" * 200, 0.0, 20.0)
    assert [cue.text for cue in cut_cues(Segment(one.text, 0.0, 20.0, (one,)))] == [one.text]


def test_moving_moves_all_times():
    moved = SEGMENTS[0].move(10.0)
    assert (moved.start, moved.end) == (10.0, 11.2)
    assert [(word.start, word.end) for word in moved.words] == [(10.0, 10.5), (10.6, 11.0)]


def test_an_unknown_format_is_told():
    with pytest.raises(UserError, match="one of text, json, srt, vtt, but is 'xml'"):
        render(SEGMENTS, "xml")
