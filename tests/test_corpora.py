"""From the line data.train to what the model is fed: several corpora, their languages, tags and shares."""

import json
from pathlib import Path

import numpy as np
import pytest

from seq2seq_jax.config import default_config, with_absolute_prefixes
from seq2seq_jax.corpora import Corpus, describe_prepared, list_specs, list_tags, open_splits, open_test
from seq2seq_jax.data.pipeline import build_batch, tokenise
from seq2seq_jax.data.sources import make_text
from seq2seq_jax.data.vocab import EOS_ID, Vocabs
from seq2seq_jax.data.vocab_training import train_vocab
from seq2seq_jax.decode.arpa import read_arpa
from seq2seq_jax.errors import UserError
from seq2seq_jax.main import main
from seq2seq_jax.tasks.engine import Engine
from seq2seq_jax.vocabularies import find_ngram, measure_coverage, obtain_ngram, obtain_vocabs, spell_pieces
from seq2seq_jax.workdir import Folder

TINY = (
    "--config=configs/gnmt.py",
    "--config.data.max_shapes=2",
    "--config.data.max_source_len=60",
    "--config.data.max_target_len=60",
    "--config.vocab.kind=word",
    "--config.model.features=8",
    "--config.model.attention_features=8",
    "--config.decode.beam_size=1",
    "--config.decode.length_factor=0.1",
    "--config.decode.length_extra=4",
    "--config.decode.rows=256",
    "--config.evaluate.dev_sentences=8",
    "--config.evaluate.samples=0",
    "--config.train.warmup_steps=2",
    "--config.train.decay_steps=15",
    "--config.parallel.data=1",
)
NEWS = [(f"the news of day {n}", f"die Nachricht von Tag {n}") for n in range(60)]
TALKS = [(f"talk {n} is short", f"Rede {n} ist kurz") for n in range(30)]


def write_pairs(prefix, pairs, languages=("en", "de")):
    for language, side in zip(languages, zip(*pairs, strict=True), strict=True):
        Path(f"{prefix}.{language}").write_text("".join(line + "\n" for line in side), encoding="utf-8")


def config_of(**data):
    config = default_config()
    config.data.update(data)
    config.data.phrasebook_pairs = 200
    config.vocab.kind = "word"
    return config


@pytest.fixture
def folder(tmp_path):
    write_pairs(tmp_path / "news", NEWS)
    write_pairs(tmp_path / "talks", TALKS)
    write_pairs(tmp_path / "french", [(a, f"FR {b}") for a, b in TALKS], ("en", "fr"))
    return tmp_path


def test_corpora_follow_each_other_with_their_weights(folder):
    line = f"{folder / 'news'}, {folder / 'talks'}?weight=4&tag=spoken"
    config = config_of(train=line, dev=str(folder / "talks"), test=f"{folder / 'talks'}")
    splits = open_splits(config)
    assert list(zip(splits.train.source, splits.train.target, strict=True)) == NEWS + TALKS
    assert [text.tags for text in splits.texts] == [(), ("spoken",)] and list_tags(config) == ("spoken",)
    assert [part.size for part in splits.parts] == [60, 30]
    assert [part.share for part in splits.parts] == pytest.approx([60 / 180, 120 / 180])
    config.data.temperature = 2.0
    assert open_splits(config).parts[0].share == pytest.approx(60**0.5 / (60**0.5 + 120**0.5))
    turned = config_of(train=", ".join(reversed(line.split(", "))), dev=str(folder / "talks"), test="phrasebook")
    assert open_splits(turned).train.digest != splits.train.digest
    alone = open_splits(config_of(train=str(folder / "news"), dev="phrasebook", test="phrasebook")).train
    assert alone.digest == make_text(*map(list, zip(*NEWS, strict=True)), name="n").digest


def test_tags_stand_before_the_sources_that_ask_for_them(folder, tmp_path):
    line = f"{folder / 'news'}, {folder / 'talks'}?tag=spoken, {folder / 'french'}?target=fr"
    config = config_of(train=line, dev="phrasebook", test=f"{folder / 'french'}?target=fr", target_tag=True)
    assert list_tags(config) == ("2de", "spoken", "2fr")
    splits = open_splits(config)
    vocabs = obtain_vocabs(config, tmp_path / "vocab", splits.train, keep=False)
    corpus = Corpus.make(config, vocabs, splits)
    ids = {name: vocabs.source.tag_ids([name])[0] for name in ("2de", "spoken", "2fr")}
    for number, before in ((0, ["2de"]), (59, ["2de"]), (60, ["2de", "spoken"]), (90, ["2fr"]), (119, ["2fr"])):
        expected = [ids[name] for name in before] + vocabs.source.encode(splits.train.source[number]) + [EOS_ID]
        assert corpus.pairs.source[number].tolist() == expected
        assert corpus.pairs.target[number].tolist() == vocabs.target.encode(splits.train.target[number])
    assert corpus.dev.source[0][0] == ids["2de"] and splits.test.tags == ("2fr",)
    assert splits.test.languages == ("en", "fr") and open_test(config).tags == ("2fr",)
    blank = tokenise(make_text(["", "talk"], ["", "x"], name="n"), vocabs, ("2de",))
    assert blank.source.lengths.tolist() == [1, 3]  # a blank source stays blank, and is left out as such


def test_no_piece_has_a_blank_in_an_ngram_model():
    vocab = train_vocab(["a b\tc"], kind="char", size=20, normalization="identity")
    assert spell_pieces(vocab, vocab.encode("a b\tc")) == ["a", "\u2581", "b", "\u2581", "c"]


def test_the_run_s_own_ngrams_are_of_its_training_and_made_once(folder, tmp_path, monkeypatch):
    config = config_of(train=str(folder / "talks"), dev=str(folder / "talks"), test=str(folder / "talks"))
    text, run = open_splits(config).train, Folder(tmp_path)
    vocabs = obtain_vocabs(config, run.vocab, text, keep=False)
    assert obtain_ngram(config, vocabs, run.ngram, text) is None and not run.ngram.exists()
    config.decode.update(ngram="auto", ngram_order=3)
    assert obtain_ngram(config, vocabs, run.ngram, text) == find_ngram(config, vocabs, run) == run.ngram
    arpa, made = read_arpa(run.ngram), run.ngram.stat()
    assert arpa.order == 3 and ("Rede", "1", "ist") in arpa.grams[2] and ("news",) not in arpa.words
    assert arpa.score_word(("Rede", "1"), "ist") > -0.5 > arpa.score_word(("Rede", "1"), "kurz")
    obtain_ngram(config, vocabs, run.ngram, text)
    assert run.ngram.stat().st_ino == made.st_ino  # it was this one already
    config.decode.ngram_order = 2
    obtain_ngram(config, vocabs, run.ngram, text)
    assert read_arpa(run.ngram).order == 2
    run.ngram.unlink()
    assert find_ngram(config, vocabs, run) == run.ngram and read_arpa(run.ngram).order == 2
    run.ngram.unlink()
    with pytest.raises(UserError, match="config.decode.ngram=auto: .*ngram.arpa is not there; name an ARPA file"):
        config.data.train = ""
        find_ngram(config, vocabs, run)
    monkeypatch.setattr("seq2seq_jax.vocabularies.MAX_COUNTED", 100)
    config.decode.ngram_order = 4
    with pytest.raises(UserError, match="must not count more than 100 n-grams, but config.decode.ngram_order=4 makes"):
        obtain_ngram(config, vocabs, run.ngram, text)
    assert not run.ngram.exists()


def test_a_mixture_is_planned_by_its_shares(folder, tmp_path):
    config = config_of(train=f"{folder / 'news'}?weight=0.5, {folder / 'talks'}?weight=9", dev="phrasebook")
    config.data.test = "phrasebook"
    splits = open_splits(config)
    plan = Corpus.make(config, obtain_vocabs(config, tmp_path / "v", splits.train, keep=False), splits).plan
    ids = np.concatenate([plan.batch(n).example_ids for n in range(plan.batches_per_epoch)])
    assert np.bincount(ids[ids >= 0] >= 60).tolist() == [9, 81]
    assert f"{folder / 'talks'} 90.0%" in plan.describe()


def test_training_pairs_are_packed_and_dev_never_is(folder, tmp_path):
    line = f"{folder / 'news'}, {folder / 'talks'}"
    config = config_of(train=line, dev=str(folder / "talks"), test=str(folder / "talks"))
    config.data.update(pack=True, max_source_len=40, max_target_len=40, tokens_per_batch=640)
    splits = open_splits(config)
    vocabs = obtain_vocabs(config, tmp_path / "v", splits.train, keep=False)
    corpus = Corpus.make(config, vocabs, splits)
    ids = np.concatenate([corpus.plan.batch(n).example_ids.ravel() for n in range(corpus.plan.batches_per_epoch)])
    assert sorted(ids[ids >= 0]) == list(range(len(corpus.pairs)))
    assert build_batch(corpus.pairs, corpus.plan.batch(0)).target_segments.max() > 1
    assert build_batch(corpus.dev, corpus.dev_plan.batch(0)).packing is None
    config.data.train = line + "?weight=2"
    with pytest.raises(UserError, match=r"config\.data\.pack must be False with corpora that have weights"):
        Corpus.make(config, vocabs, open_splits(config))


def test_batches_have_so_many_sentences_of_similar_length(folder, tmp_path):
    """Whatever their lengths; only the last batch of a shape has rows that fill."""
    rng = np.random.default_rng(0)
    pairs = [(f"word {n} " * int(rng.integers(1, 30)), f"Wort {n} " * int(rng.integers(1, 30))) for n in range(400)]
    write_pairs(folder / "uneven", pairs)
    line = f"{folder / 'uneven'}, {folder / 'news'}?weight=2"
    config = config_of(train=line, dev=str(folder / "talks"), test=str(folder / "talks"))
    config.data.update(sentences_per_batch=24, max_shapes=4, tokens_per_batch=1, curriculum_epochs=1)
    splits = open_splits(config)
    corpus = Corpus.make(config, obtain_vocabs(config, tmp_path / "v", splits.train, keep=False), splits)
    plan = corpus.plan
    planned = [plan.batch(n) for n in range(2 * plan.batches_per_epoch)]
    assert {batch.shape.rows for batch in planned} == {24} and 1 < len(plan.shapes) <= 4
    for epoch in range(2):
        short = [batch.shape for batch in planned if batch.epoch == epoch and (batch.example_ids < 0).any()]
        assert len(short) == len(set(short))  # a shape has one at most
    assert sum((batch.example_ids >= 0).sum() for batch in planned) == 2 * plan.examples_per_epoch
    one = config_of(train=line, dev=str(folder / "talks"), test=str(folder / "talks"))
    one.data.update(sentences_per_batch=24, max_shapes=1)
    assert plan.pad_share < Corpus.make(one, Vocabs.load(tmp_path / "v"), splits).plan.pad_share - 0.1
    assert {corpus.dev_plan.batch(n).shape.rows for n in range(corpus.dev_plan.batches_per_epoch)} == {24}
    assert build_batch(corpus.pairs, planned[0]).source.shape[0] == 24


def test_the_size_of_a_second_vocabulary_is_in_a_prepared_corpus_recipe_where_it_is_set(folder):
    config = config_of(train=str(folder / "news"))
    config.vocab.joint = False
    assert "target_size" not in describe_prepared(config)["vocab"]  # recipes of before it was there stay good
    config.vocab.target_size = 50
    assert describe_prepared(config)["vocab"]["target_size"] == 50


def test_auto_is_held_out_of_the_first_corpus(folder):
    config = config_of(train=f"{folder / 'news'}, {folder / 'talks'}", held_out_pairs=2)
    splits = open_splits(config)
    assert len(splits.dev) == len(splits.test) == 2 and len(splits.train) == 86
    assert set(splits.dev.source + splits.test.source + splits.texts[0].source) == {pair[0] for pair in NEWS}
    assert splits.texts[1].source == [pair[0] for pair in TALKS]
    assert open_test(config).digest == splits.test.digest
    built_in = config_of(train=f"phrasebook?target=fr, {folder / 'talks'}")
    assert open_splits(config_of(train="phrasebook, phrasebook?target=fr")).parts[1].name == "phrasebook en-fr"
    assert open_splits(built_in).dev.languages == ("en", "fr") and len(open_test(built_in)) == 1000


def test_reversed_corpora_hold_out_the_same_pairs(folder):
    pairs = "\n".join("\t".join(pair) for pair in NEWS) + "\n"
    (folder / "news.tsv").write_text(pairs)
    for train in (f"{folder / 'news.tsv'}, {folder / 'talks'}?tag=spoken", "phrasebook"):
        config = config_of(train=train, target_tag=True)
        turned = config_of(train=train, target_tag=True, source="de", target="en", reversed=True)
        there, back = open_splits(config), open_splits(turned)
        for a, b in ((there.train, back.train), (there.dev, back.dev), (there.test, back.test)):
            assert (a.source, a.target) == (b.target, b.source) and a.digest != b.digest
        assert open_test(turned).source == there.test.target and open_test(turned).languages == ("de", "en")
        assert back.texts[0].tags == ("2en",) and list_tags(turned)[0] == "2en"


def test_paths_become_absolute_and_nothing_else_does(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = config_of(
        train="a/news?weight=2&tag=bt, phrasebook?target=fr,tfds:ted/en_de:train[:5%,shuffle], /b/talks.tsv",
        dev="auto", test="news", monolingual="mono.de.gz?weight=3", prepared="auto",
    )  # fmt: skip
    config.vocab.file = "x.model, y.model"
    found = with_absolute_prefixes(config)
    assert found.data.train == (
        f"{tmp_path}/a/news?weight=2&tag=bt, phrasebook?target=fr, tfds:ted/en_de:train[:5%,shuffle], /b/talks.tsv"
    )
    assert (found.data.dev, found.data.test) == ("auto", f"{tmp_path}/news")
    assert found.data.monolingual == f"{tmp_path}/mono.de.gz?weight=3" and found.data.prepared == "auto"
    assert found.vocab.file == f"{tmp_path}/x.model,{tmp_path}/y.model"
    assert with_absolute_prefixes(found).to_dict() == found.to_dict()
    assert with_absolute_prefixes(default_config()).to_dict() == default_config().to_dict()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"dev": "a, b"}, r"config\.data\.dev must name one corpus, but names 2: a, b"),
        ({"train": "a,,b"}, r"config\.data\.train = 'a,,b': a corpus has no name"),
        ({"train": "phrasebook?tags=bt"}, r"config\.data\.train: phrasebook\?tags=bt: after the question mark come"),
        ({"train": "phrasebook?weight=0"}, r"phrasebook\?weight=0: a weight must be a number more than 0"),
    ],
)
def test_wrong_lines_are_refused(data, said):
    with pytest.raises(UserError, match=said) as caught:
        [list_specs(config_of(**data), split) for split in ("train", "dev", "test")]
    assert "\n" not in str(caught.value)


def test_one_model_translates_into_two_languages_by_tag(folder, capsys, monkeypatch):
    """A few steps on German and French; what the model is fed is looked at."""
    fed, search = [], Engine.run

    def look(self, params, sources, **given):
        fed.extend(source.tolist() for source in sources)
        return search(self, params, sources, **given)

    monkeypatch.setattr(Engine, "run", look)
    root, talks, french = (folder / name for name in ("run", "talks", "french"))
    data = [f"--config.data.{name}={talks}" for name in ("dev", "test")]
    data += [f"--config.data.train={folder / 'news'}, {french}?target=fr", "--config.data.target_tag=true"]
    run = ["seq2seq_jax.main", *TINY, *data, f"--workdir={root}", "--config.train.steps=2"]
    assert main([*run, "--config.data.temperature=100.0"]) == 0
    assert json.loads((root / "vocab" / "vocab.json").read_text())["tags"] == ["2de", "2fr"]
    assert len(fed) == 8 + 30 and {ids[0] for ids in fed} == {4}
    assert f"shares: {folder / 'news'} 50.0%, {french} 50.0%" in capsys.readouterr().err
    (folder / "in").write_text("talk 7 is short\n")
    go_on = ["seq2seq_jax.main", f"--workdir={root}"]
    for target, tag in (("de", 4), ("fr", 5)):
        fed.clear()
        told = ["--mode=translate", f"--input={folder / 'in'}", f"--output={folder / 'out'}"]
        assert main([*go_on, *told, f"--config.data.target={target}"]) == 0
        assert len(fed) == 1 and fed[0][0] == tag and fed[0][-1] == EOS_ID and not {4, 5} & set(fed[0][1:])
    fed.clear()
    assert main([*go_on, "--mode=evaluate", "--config.data.target=fr", f"--config.data.test={french}"]) == 0
    assert {ids[0] for ids in fed} == {5}
    assert main([*go_on, "--mode=translate", "--config.data.target=es"]) == 2
    assert "has no tag <2es>" in capsys.readouterr().err


def test_training_corpora_are_cleaned_together_and_dev_is_not(folder):
    write_pairs(folder / "more", [*NEWS[:2], ("same", "same"), ("new", "neu")])
    write_pairs(folder / "dev", [("same", "same"), *NEWS[:2]])
    config = config_of(train=f"{folder / 'news'}, {folder / 'more'}?tag=bt", dev=str(folder / "dev"), test="phrasebook")
    whole = open_splits(config)
    config.clean.update(duplicates=True, copies=True)
    splits = open_splits(config, report_path=folder / "left_out.jsonl")
    assert [len(text) for text in splits.texts] == [60, 1] == [part.size for part in splits.parts]
    assert splits.texts[1].source == ["new"] and splits.texts[1].tags == ("bt",)
    assert splits.dev.digest == whole.dev.digest and splits.train.digest != whole.train.digest
    rows = [json.loads(line) for line in (folder / "left_out.jsonl").read_text().splitlines()]
    assert [(row["reason"], row["line"]) for row in rows] == [("copy", 3), ("duplicate", 1), ("duplicate", 2)]


def test_a_vocabulary_of_ones_own(folder, tmp_path):
    (tmp_path / "words").write_text("day\nnews\nthe\nof\nNachricht\n")
    config = config_of(train=f"{folder / 'news'}?tag=bt", dev="phrasebook", test="phrasebook")
    config.vocab.file, config.vocab.tags = str(tmp_path / "words"), "2fr"
    splits = open_splits(config)
    vocabs = obtain_vocabs(config, tmp_path / "vocab", splits.train, keep=False)
    assert vocabs.source.pieces(range(4, 8)) == ["<bt>", "<2fr>", "day", "news"] and vocabs.joint
    covered = measure_coverage(config, vocabs, splits)
    assert covered["source"]["train"].share == pytest.approx(4 / 5)  # all but the number of the day
    assert covered["target"]["train"].share == pytest.approx(1 / 5)
    with (tmp_path / "words").open("a") as file:
        file.write("more\n")
    for keep, size in ((True, 11), (False, 12)):  # a run that has begun keeps what it has
        assert obtain_vocabs(config, tmp_path / "vocab", splits.train, keep=keep).source.size == size
    config.vocab.file = ""
    assert obtain_vocabs(config, tmp_path / "vocab", splits.train, keep=False).source.size > 60


@pytest.mark.parametrize("model", ["unigram", "bpe"])
def test_sampled_subwords_have_a_plan_with_room(folder, tmp_path, model):
    config = config_of(train=f"{folder / 'news'}?tag=bt", dev="phrasebook", test="phrasebook")
    config.vocab.update(kind="sentencepiece", model=model, size=80)
    splits = open_splits(config)
    vocabs = obtain_vocabs(config, tmp_path / "vocab", splits.train, keep=False)
    plain = Corpus.make(config, vocabs, splits)
    config.data.subword_sampling = 0.3
    sampled = Corpus.make(config, vocabs, splits)
    assert plain.redraw is None and sampled.redraw is not None and measure_coverage(config, vocabs, splits) == {}
    assert sampled.plan.shapes[-1].source_len > plain.plan.shapes[-1].source_len
    assert sampled.plan.examples_per_epoch == plain.plan.examples_per_epoch
    planned = sampled.plan.batch(0)
    batch = build_batch(sampled.pairs, planned, redraw=sampled.redraw)
    for row, number in enumerate(planned.example_ids):
        assert number < 0 or vocabs.source.decode(batch.source[row]) == splits.train.source[number]
    config.vocab.kind = "word"
    words = obtain_vocabs(config, tmp_path / "words", splits.train, keep=False)
    with pytest.raises(UserError, match=r"config\.data\.subword_sampling"):
        Corpus.make(config, words, splits)
