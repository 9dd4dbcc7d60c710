"""`--mode=prepare` as people use it, and training from what it made: the same batches as with the text in memory."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from seq2seq_jax.config import default_config
from seq2seq_jax.corpora import Corpus, find_prepared, open_splits, open_test
from seq2seq_jax.data.pipeline import batches
from seq2seq_jax.errors import UserError
from seq2seq_jax.main import main
from seq2seq_jax.modes.prepare import prepare
from seq2seq_jax.vocabularies import obtain_vocabs

ROOT = Path(__file__).parents[2]
TINY = (
    "--config=configs/gnmt.py",
    "--config.data.max_shapes=1",
    "--config.data.tokens_per_batch=512",
    "--config.data.max_source_len=24",
    "--config.data.max_target_len=24",
    "--config.decode.max_source_len=24",
    "--config.decode.rows=16",
    "--config.vocab.kind=char",
    "--config.vocab.size=60",
    "--config.model.features=8",
    "--config.model.attention_features=8",
    "--config.decode.beam_size=1",
    "--config.decode.length_factor=0.1",
    "--config.decode.length_extra=4",
    "--config.evaluate.dev_sentences=4",
    "--config.evaluate.samples=0",
    "--config.train.log_every=2",
    "--config.parallel.data=1",
)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Two corpora of files, with blank and repeated lines."""
    root, draw = tmp_path_factory.mktemp("texts"), random.Random(0)
    for name, count in (("news", 300), ("talks", 120)):
        lines = ["".join(draw.choices("abcdef ", k=draw.randint(3, 20))) for _ in range(count)]
        lines[10], lines[20] = "", lines[21]
        (root / f"{name}.en").write_text("\n".join(lines))
        (root / f"{name}.de").write_text("\n".join(lines).upper())
    return root


def make_config(texts, **changes):
    config = default_config()
    config.data.train = f"{texts / 'news'}?tag=x, {texts / 'talks'}?weight=3&tag=bt"
    config.data.shard_pairs, config.data.tokens_per_batch, config.data.max_shapes = 90, 512, 2
    config.vocab.kind, config.vocab.size = "char", 60
    config.clean.duplicates = True
    for key, value in changes.items():
        section, _, name = key.partition("_")
        config[section][name] = value
    return config


@pytest.fixture(scope="module")
def prepared(texts, tmp_path_factory):
    """A prepared run's folder."""
    root = tmp_path_factory.mktemp("runs") / "prepared"
    report = prepare(make_config(texts), root, workers=1)
    assert report["finished"] and report["folder"] == str(root / "prepared")
    return root


def open_corpus(config, root, vocab):
    """What a training opens."""
    splits = open_splits(config, prepared=find_prepared(config, root))
    vocabs = obtain_vocabs(config, vocab, splits.train, keep=False)
    return splits, vocabs, Corpus.make(config, vocabs, splits)


@pytest.mark.parametrize(
    "changes", [{}, {"data_curriculum_epochs": 1, "data_temperature": 2.0}, {"data_sentences_per_batch": 16}], ids=str
)
def test_batches_are_those_of_the_text_in_memory(prepared, texts, tmp_path, changes):
    config, in_memory = make_config(texts, **changes), make_config(texts, data_prepared="", **changes)
    splits, vocabs, corpus = open_corpus(config, prepared, tmp_path / "a")
    wanted_splits, wanted_vocabs, wanted = open_corpus(in_memory, prepared, tmp_path / "b")
    assert splits.texts == () and len(wanted_splits.texts) == 2  # one of disk, one of memory
    assert vocabs.digest == wanted_vocabs.digest and splits.parts == wanted_splits.parts
    for name in ("dev", "test"):
        assert getattr(splits, name).digest == getattr(wanted_splits, name).digest
        assert getattr(splits, name).tags == ("x",)
    stop = 2 * wanted.plan.batches_per_epoch
    assert corpus.plan.batches_per_epoch == wanted.plan.batches_per_epoch > 10
    with (
        batches(corpus.pairs, corpus.plan, start=0, stop=stop, threads=2) as found,
        batches(wanted.pairs, wanted.plan, start=0, stop=stop) as memory,
    ):
        for a, b in zip(found, memory, strict=True):
            for leaf in ("source", "source_mask", "target_in", "target_out", "target_mask", "example_ids", "row_mask"):
                np.testing.assert_array_equal(getattr(a, leaf), getattr(b, leaf))
    assert open_test(config, prepared / "prepared").digest == splits.test.digest


def test_weights_and_shares_are_those_of_the_training(prepared, texts):
    config = make_config(texts)
    config.data.train = config.data.train.replace("weight=3", "weight=30")
    splits = open_splits(config, prepared=find_prepared(config, prepared))
    assert splits.parts[1].share > 0.8


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"data_source": "fr"}, r"corpora\.0\.source \(there 'en', now 'fr'\)"),
        ({"clean_duplicates": False}, r"clean\.duplicates \(there True, now False\)"),
        ({"data_dev": "phrasebook"}, r"held_out\.dev"),
    ],
)
def test_a_training_of_another_config_is_refused(prepared, texts, change, told):
    with pytest.raises(UserError, match=told):
        find_prepared(make_config(texts, **change), prepared)


def test_a_folder_that_is_named_must_be_there(texts, tmp_path):
    assert find_prepared(make_config(texts), tmp_path) is None
    with pytest.raises(UserError, match="run --mode=prepare"):
        find_prepared(make_config(texts, data_prepared=str(tmp_path / "nowhere")), tmp_path)
    (tmp_path / "prepared").mkdir()
    with pytest.raises(UserError, match="not finished; run --mode=prepare again"):
        find_prepared(make_config(texts), tmp_path)
    assert find_prepared(make_config(texts, data_prepared=""), tmp_path) is None


def test_another_vocabulary_is_refused(prepared, texts, tmp_path):
    config = make_config(texts, vocab_size=10)
    in_memory = make_config(texts, vocab_size=10, data_prepared="")
    obtain_vocabs(config, tmp_path, open_splits(in_memory).train)
    with pytest.raises(UserError, match="another vocabulary"):
        obtain_vocabs(config, tmp_path, find_prepared(make_config(texts), prepared), keep=True)


def test_a_test_set_that_is_named_is_read_and_not_the_held_out_one(prepared, texts):
    named = open_test(make_config(texts, data_test=str(texts / "talks")), prepared / "prepared")
    assert named.source == (texts / "talks.en").read_text().split("\n")


def test_what_was_not_held_out_is_not_made_up(texts, tmp_path):
    prepare(make_config(texts, data_test=str(texts / "talks")), tmp_path, workers=1)
    with pytest.raises(UserError, match="no test sentences were held out"):
        open_test(make_config(texts), tmp_path / "prepared")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"vocab_kind": "byte"}, r"vocab\.kind \(there 'char', now 'byte'\)"),
        ({"vocab_size": 50}, r"vocab\.size \(there 60, now 50\)"),
        ({"vocab_tags": "more"}, r"vocab\.tags \(there 'x, bt', now 'x, bt, more'\)"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_another_vocabulary_config_is_refused(prepared, texts, tmp_path, change, told, finished):
    config, root = make_config(texts, **change), tmp_path / "run"
    shutil.copytree(prepared, root)
    if finished:
        with pytest.raises(UserError, match=told):
            find_prepared(config, root)
    else:
        (root / "prepared" / "index.json").unlink()
    with pytest.raises(UserError, match=told):
        prepare(config, root, workers=1)


def test_a_vocabulary_of_files_is_known_by_its_content(prepared, texts, tmp_path):
    words, moved = tmp_path / "a.txt", tmp_path / "b.txt"
    words.write_text("\n".join("abcdefABCDEF"))
    prepare(make_config(texts, vocab_file=str(words)), tmp_path, workers=1)
    words.rename(moved)
    assert find_prepared(make_config(texts, vocab_file=str(moved)), tmp_path)
    assert find_prepared(make_config(texts, vocab_file=str(words)), tmp_path)  # gone: nothing to compare
    moved.write_text("\n".join("abcdef"))
    with pytest.raises(UserError, match=r"vocab\.file\.0"):
        find_prepared(make_config(texts, vocab_file=str(moved)), tmp_path)


def test_the_vocabulary_of_the_run_to_start_from_is_compared(prepared, texts, tmp_path):
    start = tmp_path / "start"
    shutil.copytree(prepared / "prepared" / "vocab", start / "vocab")
    (start / "config.json").write_text("{}")
    config = make_config(texts, train_init_from=str(start))
    prepare(config, tmp_path, workers=1)
    assert find_prepared(config, tmp_path)
    with pytest.raises(UserError, match=r"vocab\.init_from"):
        find_prepared(make_config(texts), tmp_path)


def test_another_text_of_the_same_name_is_refused(prepared, texts, tmp_path):
    shutil.copytree(texts, tmp_path / "texts")
    config = make_config(tmp_path / "texts")
    assert find_prepared(config, prepared)  # the same bytes in another folder
    path = tmp_path / "texts" / "talks.de"
    path.write_text(path.read_text().replace("A", "B", 1))
    with pytest.raises(UserError, match=r"texts/talks\.de: is not the text of"):
        find_prepared(config, prepared)
    shutil.rmtree(tmp_path / "texts")
    assert find_prepared(config, prepared)  # gone: the names are the same


def test_seeds_share_a_prepared_corpus(prepared, texts):
    assert find_prepared(make_config(texts, train_seed=5), prepared)


def test_a_torn_recipe_of_the_vocabulary_counts_as_another(prepared, texts, tmp_path):
    config = make_config(texts, data_prepared="")
    text = open_splits(config).train
    digest = obtain_vocabs(config, tmp_path, text).digest
    (tmp_path / "recipe.json").write_bytes(b'{"kind": "ch')
    assert obtain_vocabs(config, tmp_path, text, keep=False).digest == digest
    assert json.loads((tmp_path / "recipe.json").read_bytes())["kind"] == "char"


@pytest.mark.slow
def test_prepares_and_trains_by_the_command_line(texts, tmp_path, capsys):
    words = [*TINY, f"--config.data.train={texts / 'news'}", f"--workdir={tmp_path / 'run'}"]
    assert main(["x", *words, "--mode=prepare", "--json", "--config.data.shard_pairs=100", "--workers=1"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["shards"] == 3 and report["pairs"] + sum(report["left_out"].values()) == 300
    assert main(["x", *words, "--config.train.steps=2", "--config.data.shard_pairs=100"]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["steps"] == 2 and results["corpus_sha256"]["train"] == report["sha256"]
    assert results["vocab_sha256"] == report["vocab_sha256"]
    shard = tmp_path / "run" / "prepared" / "shards" / "00001.array_record"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert main(["x", *words, "--config.train.steps=4", "--config.data.shard_pairs=100"]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert str(shard) in told and "run --mode=prepare again" in told


@pytest.mark.parametrize(
    ("flags", "told"), [(["--hosts=2", "--host=2"], "--host from 0"), (["--workers=-1"], "--work")]
)
def test_impossible_numbers_are_refused(texts, tmp_path, capsys, flags, told):
    words = [*TINY, f"--config.data.train={texts / 'news'}", f"--workdir={tmp_path}", "--mode=prepare"]
    assert main(["x", *words, *flags]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_preparation_leaves_no_worker_and_goes_on(texts, tmp_path):
    """SIGKILL reaches only the first process; its workers end by themselves."""
    words = [sys.executable, "-m", "seq2seq_jax.main", *TINY, f"--config.data.train={texts / 'news'}"]
    words += [f"--workdir={tmp_path}", "--mode=prepare", "--config.data.shard_pairs=6", "--workers=1"]
    process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True)
    shards, until = tmp_path / "prepared" / "shards", time.monotonic() + 60
    while len(list(shards.glob("[0-9]*.json"))) < 5 and process.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while time.monotonic() < until:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.05)
    else:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail("a worker outlived the process that started it")
    kept = {path: path.stat().st_mtime_ns for path in shards.glob("[0-9]*.json")}
    assert 5 <= len(kept) < 50
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"{50 - len(kept)} of 50 shards made now" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
