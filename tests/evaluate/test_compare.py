"""Two systems beside each other: against sacreBLEU's own command line, and against counts by hand."""

import html
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from seq2seq_jax.evaluate.charts import choose_ticks, draw_bars
from seq2seq_jax.evaluate.compare import System, compare_systems, count_ngrams, score_words
from seq2seq_jax.evaluate.markup import element
from seq2seq_jax.evaluate.report import RunFacts, mark_words, render_page, tell_verdict
from seq2seq_jax.evaluate.text import corpus_scores

SOURCES = [f"{'ein ' * (n % 9)}Satz Nummer {n}" for n in range(60)]
REFERENCES = [f"a {'very ' * (n % 9)}short sentence of number {n}." for n in range(60)]
GOOD = [line if n % 3 else line.replace("sentence", "phrase") for n, line in enumerate(REFERENCES)]
BAD = [line if n % 4 == 0 else line.replace("short", "long").replace("number", "digit") for n, line in enumerate(GOOD)]


@pytest.fixture(scope="module")
def compared():
    systems = [System("bad", BAD), System("good", GOOD)]
    return compare_systems(systems, REFERENCES, sources=SOURCES, target="en")


def test_scores_and_tests_are_those_of_the_command_line(compared, tmp_path):
    for name, lines in (("ref", REFERENCES), ("bad", BAD), ("good", GOOD)):
        (tmp_path / name).write_text("".join(line + "\n" for line in lines))
    files = [str(tmp_path / "ref"), "-i", str(tmp_path / "bad"), str(tmp_path / "good")]
    command = [sys.executable, "-m", "sacrebleu", *files, "-m", "bleu", "chrf", "--paired-bs", "-f", "text", "-w", "6"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    scores = [tuple(map(float, found)) for found in re.findall(r"([\d.]+) \(([\d.]+) ± ([\d.]+)\)", told)]
    chances = [float(found) for found in re.findall(r"\(p = ([\d.]+)\)", told)]
    assert len(scores) == 4 and len(chances) == 2
    for n, row in enumerate(compared["scores"]):  # the table has BLEU and chrF of bad, then of good
        for mine, theirs in zip(row["systems"], scores[n::2], strict=True):
            assert (mine["score"], mine["mean"], mine["interval"]) == pytest.approx(theirs, abs=1e-4)
        assert row["p_value"] == pytest.approx(chances[n], abs=1e-4)
        assert row["signature"] in told and "bs:1000|seed:12345" in row["signature"]
    assert tell_verdict(compared["scores"][0], compared["systems"]) == "good is better"


def test_a_system_against_itself_does_not_differ():
    found = compare_systems([System("a", GOOD), System("b", GOOD)], REFERENCES)
    assert all(row["p_value"] == 1 for row in found["scores"])
    assert tell_verdict(found["scores"][0], ["a", "b"]) == "no difference shown"
    assert found["differences"] == [[], []] and found["ngrams"]["better"] == [[], []]


def test_buckets_of_length_hold_every_sentence_once(compared):
    lengths = compared["lengths"]
    assert (lengths["of"], lengths["unit"]) == ("source", "words")
    assert {row["label"]: row["sentences"] for row in lengths["buckets"]} == {
        "0–4": sum(n % 9 < 2 for n in range(60)),
        "5–9": sum(2 <= n % 9 < 7 for n in range(60)),
        "10–14": sum(n % 9 >= 7 for n in range(60)),
    }
    ids = [n for n in range(60) if n % 9 < 2]
    wanted = corpus_scores([BAD[n] for n in ids], [REFERENCES[n] for n in ids], target="en")["bleu"]
    assert lengths["buckets"][0]["bleu"][0] == pytest.approx(wanted)


def test_lengths_without_blanks_are_characters():
    lines = ["我喜欢这本书。", "他昨天去了北京。"]
    found = compare_systems([System("a", lines)], lines, target="zh")
    assert (found["lengths"]["of"], found["lengths"]["unit"]) == ("reference", "characters")
    assert found["scores"][0]["p_value"] is None and "tok:zh" in found["scores"][0]["signature"]


def test_words_by_their_count_by_hand():
    references = ["the cat sat".split(), "the rare dog".split()]
    system = ["the cat cat".split(), "the the dog".split()]
    training = ["the cat the dog the".split()] * 2  # the 6, cat 2, dog 2, sat 0, rare 0
    found = score_words([system], references, training)
    assert found["counted_in"] == "training text"
    # 0: sat, rare wanted, nothing said. 2: cat, dog: right 2, wanted 2, said 3. 5-9: the: right 2, wanted 2, said 3.
    assert [(row["label"], row["words"]) for row in found["buckets"]] == [("0", 2), ("2", 2), ("5–9", 2)]
    assert [row["f1"][0] for row in found["buckets"]] == pytest.approx([0.0, 80.0, 80.0])
    assert [row["label"] for row in score_words([system], references, None)["buckets"]] == ["1", "2"]


def test_ngrams_by_hand():
    references = ["a b c".split(), "a b".split()]
    first, second = ["a b a b".split(), "a b".split()], ["c".split(), "b".split()]
    found = count_ngrams([first, second], references)
    assert {row["ngram"]: row["count"] for row in found["over"][0]} == {
        "a b a b": 1, "a b a": 1, "b a b": 1, "a b": 1, "b a": 1, "a": 1, "b": 1,
    }  # fmt: skip
    assert {row["ngram"]: row["count"] for row in found["under"][0]} == {"a b c": 1, "b c": 1, "c": 1}
    assert found["over"][1] == [] and found["under"][1][0] == {"ngram": "a b", "count": 2}
    assert found["better"][0][0] == {"ngram": "a b", "counts": [2, 0]}
    assert found["better"][1] == [{"ngram": "c", "counts": [0, 1]}]


def test_the_sentences_that_differ_most(compared):
    ahead_bad, ahead_good = compared["differences"]
    assert ahead_bad == [] and len(ahead_good) == 10
    gains = [row["chrf"][1] - row["chrf"][0] for row in ahead_good]
    assert gains == sorted(gains, reverse=True) and gains[-1] > 0
    row = ahead_good[0]
    n = row["number"] - 1
    assert row["source"] == SOURCES[n] and row["reference"] == REFERENCES[n] and row["hypotheses"] == [BAD[n], GOOD[n]]
    worst = [row["chrf"][0] for row in compared["worst"][0]]
    assert worst == sorted(worst) and len(worst) == 10


def test_wrong_counts_are_refused():
    with pytest.raises(ValueError, match="equally many"):
        compare_systems([System("a", ["x"])], ["x", "y"])
    with pytest.raises(ValueError, match="one or two"):
        compare_systems([], ["x"])


def test_words_that_differ_are_marked():
    assert mark_words("the <b> cat sat", "the cat sits") == "the <mark>&lt;b&gt;</mark> cat <mark>sat</mark>"
    assert mark_words("same words", "same words") == "same words"


def test_ticks_are_round_and_enclose():
    assert choose_ticks(0, 37) == [0, 10, 20, 30, 40]
    assert choose_ticks(3.2, 3.9) == [3.2, 3.4, 3.6, 3.8, 4.0]
    assert choose_ticks(5, 5)[0] <= 5 <= choose_ticks(5, 5)[-1]
    assert choose_ticks(0, 0)[-1] > 0


def test_bars_have_the_heights_of_their_values():
    chart = draw_bars(["x", "y"], [[10.0, 20.0], [0.0, 40.0]], ["a", "b"], title="t", x_label="l", y_label="r")
    heights = [float(found) for found in re.findall(r'<rect [^>]*height="([\d.]+)"', chart)]
    assert len(heights) == 4 and heights[2] == 0
    assert heights[1] / heights[0] == pytest.approx(2, rel=0.01)
    assert heights[3] / heights[0] == pytest.approx(4, rel=0.01)


class Page(HTMLParser):
    """Checks that elements close in order, and gathers what a test asks of a page."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.addresses, self.ids = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        attributes = dict(attrs)
        assert not any(name.startswith("on") for name in attributes)
        self.ids.append(attributes.get("id"))
        self.addresses += [attributes[name] for name in ("href", "src") if name in attributes]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_a_page_is_whole_escaped_and_asks_for_nothing_outside(compared):
    evil = "<script>alert(1)</script><img src=https://example.org/x.png>"
    systems = [System("bad <i>", [evil, *BAD[1:]]), System("good", GOOD)]
    found = compare_systems(systems, [evil + " b", *REFERENCES[1:]], sources=[evil, *SOURCES[1:]])
    curves = {"loss": ([1, 2, 3], [3.0, 2.0, float("nan")]), "dev_bleu": ([2], [7.5])}
    runs = [RunFacts("bad <i>", {"step": "3"}, curves, [(evil, b"\x89PNG")]), RunFacts("good", {}, {}, [])]
    text = render_page(found, runs, keys={"data.train": [evil, "x"]}, made_by="versions")
    page = Page(text)
    assert "script" not in page.tags and page.tags.count("img") == 1
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in page.addresses)
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= set(page.ids)
    assert "url(" not in text and "@import" not in text and "default-src 'none'" in html.unescape(text)
    assert html.escape(evil.split("<img")[0]) in text and "prefers-color-scheme: dark" in text
    assert page.tags.count("polyline") == 2 and "nan" not in re.findall(r'points="([^"]*)"', text)[0]
    assert 'name="viewport"' in text and '<html lang="en">' in text and 'tabindex="0"' in text


def test_elements_escape_text_and_attributes():
    assert element("a", "<&", element("b", "x"), attributes={"title": '"<'}) == (
        '<a title="&quot;&lt;">&lt;&amp;<b>x</b></a>'
    )
