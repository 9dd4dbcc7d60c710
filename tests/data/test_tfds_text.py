"""Translation data sets of TFDS, read without TensorFlow: a stand-in for WMT, and a small real one on the disk."""

import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from seq2seq_jax.data.sources import open_split
from seq2seq_jax.data.tfds_text import TfdsText
from seq2seq_jax.errors import UserError

LINES = [(f"ein Satz {i} mit Wörtern", f"a sentence {i} with words") for i in range(40)]


class SmallPairs(tfds.core.GeneratorBasedBuilder):
    """Forty pairs, two of them with a blank side."""

    __module__ = "__main__"  # for one of another package TFDS asks for importlib_resources, which it does not install

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="de-en")]

    def _info(self):
        features = tfds.features.Translation(languages=("de", "en"))
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, manager):
        return {"train": self._generate_examples(40), "validation": self._generate_examples(5)}

    def _generate_examples(self, count):
        for i, (german, english) in enumerate(LINES[:count]):
            yield i, {"de": german, "en": "" if i in (7, 9) else english + "\n"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    SmallPairs(data_dir=root, config="de-en", file_format="array_record").download_and_prepare()
    return root


@pytest.fixture
def home(folder, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
    return folder


@pytest.mark.parametrize(("source", "target"), [("de", "en"), ("en", "de")])
def test_both_directions_of_a_data_set_on_the_disk(home, source, target):
    text = TfdsText("tfds:small_pairs/de-en", split="train", source=source, target=target)
    pairs = set(zip(*text.read(range(len(text))), strict=True))
    wanted = {(german, "" if i in (7, 9) else english) for i, (german, english) in enumerate(LINES)}
    assert pairs == ({(b, a) for a, b in wanted} if source == "en" else wanted)


def test_a_corpus_of_a_config_leaves_out_blank_pairs_and_takes_the_split_of_its_name(home):
    train = open_split("tfds:small_pairs/de-en", split="train", source="de", target="en")
    dev = open_split("tfds:small_pairs/de-en", split="dev", source="de", target="en")
    part = open_split("tfds:small_pairs/de-en:train[:25%]", split="test", source="de", target="en")
    assert (len(train), len(dev), len(part)) == (38, 5, 10)
    assert part.name == "tfds:small_pairs/de-en:train[:25%]"


def test_reads_by_number(home):
    text = TfdsText("tfds:small_pairs/de-en", split="train", source="de", target="en")
    whole = text.read(range(40))
    assert text.read([3, 39, 3]) == tuple([side[3], side[39], side[3]] for side in whole)


def test_wmt_in_either_order_without_tensorflow():
    """In a process of its own: nothing else may have imported TensorFlow."""
    program = (
        "import sys, tensorflow_datasets as tfds\n"
        "from seq2seq_jax.data.tfds_text import TfdsText\n"
        "with tfds.testing.mock_data(num_examples=5):\n"
        "    for pair in (('en', 'fr'), ('fr', 'en')):\n"
        "        text = TfdsText('tfds:wmt14_translate/fr-en', split='train', source=pair[0], target=pair[1])\n"
        "        print(len(text), [len(side) for side in text.read(range(5))])\n"
        "print('tensorflow' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:3] == ["5 [5, 5]", "5 [5, 5]", "False"]


@pytest.mark.parametrize(
    ("spec", "languages", "told"),
    [
        ("tfds:small_pairs/de-en", ("de", "fr"), "has de, en, not de and fr"),
        ("tfds:small_pairs/de-en:nights", ("de", "en"), "there are train, validation"),
        ("tfds:wmt14_translate/xx-en", ("xx", "en"), "it has cs-en, de-en"),
        ("tfds:wmt14_translate/fr-en", ("fr", "en"), "file_format='array_record').download_and_prepare()"),
        ("tfds:no_such_pairs/de-en", ("de", "en"), "knows no data set 'no_such_pairs'"),
    ],
)
def test_what_is_not_there_is_told_in_one_line(home, spec, languages, told):
    with pytest.raises(UserError) as caught:
        TfdsText(spec, split="train", source=languages[0], target=languages[1])
    assert told in str(caught.value) and "\n" not in str(caught.value)
