"""The page of transcripts: all is in it, nothing in it acts, the worst comes first."""

from __future__ import annotations

import html.parser
import re

import pytest

from seq2seq_jax.evaluate.speech import align_words, speech_scores
from seq2seq_jax.evaluate.speech_report import render_speech_page

REFERENCES = ["and so my fellow americans", "all right", "i say", "b", ""]
HYPOTHESES = ["and so my fell americans", "all right", "", "x b", ""]
NAMES = ["a/<script>1.flac", "b.flac#0-2", "c.wav", "d.wav", "e.wav"]


class Outline(html.parser.HTMLParser):
    """Whether elements close in order, and the text and attributes of all."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: list[str] = []
        self.headings: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        """Opens an element."""
        self.names.append(tag)
        known = dict(attrs)
        self.links += [known[key] for key in ("src", "href") if key in known]
        self.anchors.add(known.get("id", ""))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        """Closes the newest."""
        assert self.open.pop() == tag

    def handle_data(self, data):
        """Notes headings of utterances."""
        if self.open and self.open[-1] == "h4":
            self.headings.append(data)


def render(**options) -> str:
    utterances = align_words(HYPOTHESES, REFERENCES)
    return render_speech_page(utterances, speech_scores(HYPOTHESES, REFERENCES), names=NAMES, **options)


def test_the_page_is_whole_and_asks_for_nothing():
    page = render(pictures=[("c.wav", b"PNG")], facts={"step": "<12>"}, made_by="seq2seq_jax 1")
    outline = Outline(page)
    assert "script" not in outline.names and "&lt;script&gt;" in page and "&lt;12&gt;" in page
    assert all(link.startswith(("#", "data:")) for link in outline.links)
    assert {link[1:] for link in outline.links if link.startswith("#")} <= outline.anchors
    assert {"scores", "lengths", "confusions", "utterances", "attention", "run"} <= outline.anchors


def test_utterances_are_sorted_by_errors_and_named():
    outline = Outline(render())
    assert outline.headings == ["c.wav", "d.wav", "a/<script>1.flac", "b.flac#0-2", "e.wav"]
    few = render(most=2)
    assert Outline(few).headings == ["c.wav", "d.wav"] and "The 2 of 5 with the most errors" in few


def test_each_error_shows_both_words():
    page = render()
    fellow = re.search(r'my <span class="step substitution"[^>]*>(.*?)</span></span> americans', page)
    assert fellow and fellow[1] == "<span>fellow</span><span>fell"
    assert '<span class="step insertion" title="insertion: ∗∗∗ → x"><span>∗∗∗</span><span>x</span></span> b' in page
    assert page.count('class="step deletion"') == 3  # two words, and the legend
    assert '<p class="aligned">all right</p>' in page and "<em>(empty)</em>" in page


def test_the_figures_are_those_of_the_scores():
    page, scores = render(), speech_scores(HYPOTHESES, REFERENCES)
    assert scores["wer"] == 40.0  # 4 of 10 words
    assert ">40.00 ± " in page and ">4</td>" in page and ">10</td>" in page
    assert scores["signature"] in page
    assert "1 errors in 5 words (1 substitutions, 0 deletions, 0 insertions), WER 20.0" in page


def test_a_perfect_corpus_has_no_confusions():
    page = render_speech_page(align_words(["a"], ["a"]), speech_scores(["a"], ["a"]), names=["a.wav"])
    assert "confusions" not in Outline(page).anchors and ">0.00 ± 0.00<" in page
    silent = render_speech_page(align_words(["", "x"], ["", ""]), speech_scores(["", "x"], ["", ""]), names=["a", "b"])
    assert "lengths" not in Outline(silent).anchors


def test_every_utterance_has_a_name():
    with pytest.raises(ValueError, match="as many as `utterances`, 1, but are 2"):
        render_speech_page(align_words(["a"], ["a"]), speech_scores(["a"], ["a"]), names=["a", "b"])
