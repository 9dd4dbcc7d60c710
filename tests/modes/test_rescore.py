"""Rescoring from the command line: what a model adds, what tuning makes of it, and what is refused."""

import json
import random
import shutil
import tarfile

import numpy as np
import pytest

from seq2seq_jax.config import default_config, load_config
from seq2seq_jax.data.nbest import Hypothesis, list_columns, make_matrix, read_nbest
from seq2seq_jax.data.vocab import Vocabs
from seq2seq_jax.data.vocab_training import train_vocab
from seq2seq_jax.errors import UserError
from seq2seq_jax.evaluate.corpus_metric import make_metric
from seq2seq_jax.evaluate.tuning import Lists, fit_totals
from seq2seq_jax.main import main
from seq2seq_jax.modes.rescore import name_total
from seq2seq_jax.modes.rescore_request import read_request, reads_source
from seq2seq_jax.modes.weights import name_feature, name_models
from seq2seq_jax.workdir import Folder

WORDS = {"one": "eins", "two": "zwei", "three": "drei", "four": "vier", "red": "rot", "blue": "blau", "cat": "Katze"}


def call(*args):
    """Runs a command line in this process; the exit code."""
    return main(["seq2seq_jax.main", "--mode=rescore", *map(str, args)])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Lists of another system, the sentences it translated, and references; segment 3 has no list.

    The feature `good` tells the right translation, but the system ranked by `bad`.
    """
    folder, draw = tmp_path_factory.mktemp("lists"), random.Random(3)
    sources = [draw.choices(list(WORDS), k=draw.randint(2, 5)) for _ in range(12)]
    references, lists = [], []
    for n, words in enumerate(sources):
        right = [WORDS[word] for word in words]
        references.append(" ".join(right))
        wrong = [" ".join(right[:1] * k) for k in range(1, 4)]
        bad = sorted((draw.uniform(-9, 0) for _ in wrong), reverse=True)
        entries = [(text, draw.uniform(-2, -1), value) for text, value in zip(wrong, bad, strict=True)]
        entries.append((references[-1], draw.uniform(-0.9, 0), bad[-1] - 1))
        if n != 3:
            lists += [f"{n} ||| {t} ||| good= {g} bad= {b} 1 ||| {2 * b}\n" for t, g, b in entries]
    lists.append("11 |||  ||| good= -5 bad= -20 1 ||| -40\n")  # blank: no model scores it
    (folder / "lists").write_text("".join(lists))
    (folder / "source").write_text("".join(" ".join(words) + "\n" for words in sources))
    (folder / "reference").write_text("".join(line + "\n" for line in references))
    return folder


@pytest.fixture(scope="module")
def rescored(files, tiny_run, tmp_path_factory):
    """What tuning with a model has written, and its report."""
    output = tmp_path_factory.mktemp("rescored") / "new"
    args = [f"--input={files / 'lists'}", f"--source={files / 'source'}", f"--output={output}", "--json"]
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr("builtins.print", lambda *words, **_: printed.append(" ".join(map(str, words))))
        code = call(f"--workdir={tiny_run}", f"--reference={files / 'reference'}", "--metric=wer", *args)
    assert code == 0, printed
    return output, json.loads(next(line for line in printed if line.startswith("{"))), printed


def test_tuning_finds_what_the_system_did_not_rank_by(files, rescored):
    output, report, printed = rescored
    metric, references = make_metric("wer"), (files / "reference").read_text().splitlines()
    best = (output.parent / "new.1best").read_text().splitlines()
    assert len(best) == 12 and best[3] == ""
    assert best[:3] + best[4:] == references[:3] + references[4:]
    words, missed = sum(len(line.split()) for line in references), len(references[3].split())
    found = float(metric.score(metric.count(best, references).sum(axis=0)))
    assert report["scores"]["after"] == pytest.approx(found) == pytest.approx(100 * missed / words)
    assert report["scores"]["oracle"] == pytest.approx(found) and report["scores"]["before"] > found + 20
    assert any("1 of 12 segments have no list and count as blank (the first: 3)" in line for line in printed)


def test_new_lists_have_the_feature_and_totals_of_the_weights(files, rescored):
    output, report, _ = rescored
    before, after = read_nbest(files / "lists"), read_nbest(output)
    assert {(item.segment, item.text) for item in before} == {(item.segment, item.text) for item in after}
    columns = list_columns(after)
    assert columns == [("good", 0), ("bad", 0), ("bad", 1), ("run", 0)]
    weights = np.array([report["weights"][name][n] for name, n in columns])
    assert np.abs(weights).sum() == pytest.approx(1.0)
    np.testing.assert_allclose([item.total for item in after], make_matrix(after, columns) @ weights, atol=1e-6)
    for one, other in zip(after[:-1], after[1:], strict=True):
        assert (one.segment, -one.total) <= (other.segment, -other.total)
    saved = json.loads((output.parent / "new.weights.json").read_text())
    assert saved["weights"] == report["weights"] and saved["metric"] == "wer"


def test_the_feature_is_what_the_model_scores(files, rescored, tiny_run, tmp_path):
    output, report, printed = rescored
    after, sources = read_nbest(output), (files / "source").read_text().splitlines()
    pairs = [(sources[item.segment], item.text) for item in after]
    (tmp_path / "pairs.tsv").write_text("".join("\t".join(pair) + "\n" for pair in pairs))
    scores = tmp_path / "scores.jsonl"
    args = ["--mode=score", f"--workdir={tiny_run}", f"--input={tmp_path / 'pairs.tsv'}", f"--output={scores}"]
    assert main(["seq2seq_jax.main", *args]) == 0
    wanted = [json.loads(line)["log_prob"] for line in scores.read_text().splitlines()]
    assert wanted.count(None) == 1 and wanted.index(None) == [item.text for item in after].index("")
    floor = min(value for value in wanted if value is not None)
    found = [item.features["run"][0] for item in after]
    np.testing.assert_allclose(found, [floor if value is None else value for value in wanted], atol=2e-4)
    assert report["models"]["run"]["unscored"] == 1
    assert report["models"]["run"]["pairs"] == len(set(pairs)) < len(pairs) + 1
    assert any("pairs without a score: 1 (the first: blank target) get the lowest" in line for line in printed)


@pytest.fixture(scope="module")
def backwards(tiny_run, tmp_path_factory):
    """A run that says to be of the other direction."""
    folder = tmp_path_factory.mktemp("backwards") / "back"
    shutil.copytree(tiny_run, folder)
    config = json.loads((folder / "config.json").read_text())
    config["data"] |= {"source": config["data"]["target"], "target": config["data"]["source"]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_channels_feature_is_what_it_makes_of_the_source(files, backwards, tiny_run, tmp_path):
    lists = tmp_path / "lists"
    lists.write_text("".join((files / "lists").read_text().splitlines(keepends=True)[:4]))
    given = [f"--{name}={files / name}" for name in ("source", "reference")]
    given += [f"--models={tiny_run}", f"--channel={backwards}", f"--input={lists}", f"--output={tmp_path / 'new'}"]
    assert call(*given, "--metric=wer") == 0
    after, sources = read_nbest(tmp_path / "new"), (files / "source").read_text().splitlines()
    (tmp_path / "pairs.tsv").write_text("".join(f"{item.text}\t{sources[item.segment]}\n" for item in after))
    args = ["--mode=score", f"--workdir={backwards}", f"--input={tmp_path / 'pairs.tsv'}"]
    assert main(["seq2seq_jax.main", *args, f"--output={tmp_path / 'scores'}"]) == 0
    wanted = [json.loads(line)["log_prob"] for line in (tmp_path / "scores").read_text().splitlines()]
    np.testing.assert_allclose([item.features["back"][0] for item in after], wanted, atol=2e-4)
    assert not np.allclose([item.features["run"][0] for item in after], wanted, atol=0.1)
    applied = [arg for arg in given if not arg.startswith("--reference")]
    assert call(*applied, f"--weights={tmp_path / 'new.weights.json'}") == 0


def test_a_channel_is_of_the_other_direction(files, backwards, tiny_run, tmp_path, capsys):
    (tmp_path / "lm").mkdir()
    (tmp_path / "lm" / "config.json").write_text(json.dumps(default_config("language_model").to_dict()))
    given = [f"--{name}={files / name}" for name in ("source", "reference")] + [f"--input={files / 'lists'}"]
    given += [f"--models={tiny_run}", f"--output={tmp_path / 'new'}"]
    for more, told in (
        ((f"--channel={tiny_run}",), "must translate de to en, but is of en to de as"),
        ((f"--channel={tmp_path / 'lm'}",), "is a language model, which reads no source; name it by --models"),
        ((f"--channel={tmp_path}",), "--channel: "),
        ((f"--channel={backwards}", "--weights=average"), "--channel goes with weights that are tuned"),
    ):
        assert call(*given, *more) == 2
        assert told in capsys.readouterr().err.strip().splitlines()[-1]
    ours, others = default_config("language_model").data.target, load_config(backwards / "config.json").data.target
    language = json.loads((tmp_path / "lm" / "config.json").read_text())
    language["data"]["target"] = others
    (tmp_path / "lm" / "config.json").write_text(json.dumps(language))
    assert call(*given[:3], f"--models={tmp_path / 'lm'}", given[-1], f"--channel={backwards}") == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"must read {others}, which {tmp_path / 'lm'} of --models writes, but reads {ours} instead" in told
    assert not (tmp_path / "new").exists()


def test_weights_are_applied_and_judged(files, rescored, tiny_run, tmp_path, capsys):
    output, report, _ = rescored
    args = [f"--weights={output}.weights.json", f"--input={files / 'lists'}", f"--output={tmp_path / 'again'}"]
    args += [f"--source={files / 'source'}", f"--models={tiny_run}"]
    assert call(*args) == 0
    assert (tmp_path / "again").read_text() == output.read_text()
    assert not (tmp_path / "again.weights.json").exists()
    out = capsys.readouterr().out
    assert "weights:" in out and "oracle" not in out
    assert call(*args, f"--reference={files / 'reference'}", "--metric=wer") == 0
    out = capsys.readouterr().out
    assert f"{report['scores']['before']:7.2f}" in out and f"{report['scores']['after']:7.2f}" in out


@pytest.fixture(scope="module")
def averaged(files, tiny_run, tmp_path_factory):
    """What `--weights=average` makes of the lists with the same model twice, and its report."""
    output = tmp_path_factory.mktemp("averaged") / "new"
    args = [f"--input={files / 'lists'}", f"--source={files / 'source'}", f"--output={output}", "--json"]
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr("builtins.print", lambda *words, **_: printed.append(" ".join(map(str, words))))
        models = f"--models={tiny_run},{tiny_run}"
        assert call(models, "--weights=average", f"--reference={files / 'reference'}", "--metric=wer", *args) == 0
    return output, json.loads(next(line for line in printed if line.startswith("{")))


def test_an_even_average_is_half_the_total_and_half_the_models(files, rescored, averaged):
    output, report = averaged
    known = {(item.segment, item.text): item for item in read_nbest(rescored[0])}
    totals = {(item.segment, item.text): item.total for item in read_nbest(files / "lists")}
    after = read_nbest(output)
    wanted = [0.5 * totals[item.segment, item.text] for item in after]  # what the system said
    wanted += 0.5 * np.array([known[item.segment, item.text].features["run"][0] for item in after])
    np.testing.assert_allclose([item.total for item in after], wanted, atol=1e-4)
    assert len(after) == len(totals)
    for one, other in zip(after[:-1], after[1:], strict=True):
        assert (one.segment, -one.total) <= (other.segment, -other.total)
    assert [item.features["Total"][0] for item in after] == [totals[item.segment, item.text] for item in after]
    assert report["weights"] == {"good": [0.0], "bad": [0.0, 0.0], "Total": [0.5], "run": [0.25], "run_2": [0.25]}
    assert not output.with_name("new.weights.json").exists()
    before = rescored[1]["scores"]
    assert sorted(report["scores"]) == ["after", "before", "oracle"]
    assert report["scores"]["before"] == before["before"] and report["scores"]["oracle"] == before["oracle"]
    best = {item.segment: item.text for item in reversed(after)}
    metric, references = make_metric("wer"), (files / "reference").read_text().splitlines()
    counted = metric.count([best.get(n, "") for n in range(12)], references).sum(axis=0)
    assert report["scores"]["after"] == pytest.approx(float(metric.score(counted)))


def test_lists_with_totals_alone_are_averaged_without_references(averaged, files, tiny_run, tmp_path, capsys):
    items = read_nbest(files / "lists")
    bare = "".join(f"{item.segment} ||| {item.text} ||| {item.total}\n" for item in items)
    (tmp_path / "bare").write_text(bare)
    args = [f"--input={tmp_path / 'bare'}", f"--source={files / 'source'}", f"--output={tmp_path / 'new'}"]
    assert call(f"--workdir={tiny_run}", "--weights=average", *args) == 0
    found, wanted = (
        {(i.segment, i.text): i.total for i in read_nbest(path)} for path in (tmp_path / "new", averaged[0])
    )
    assert found == pytest.approx(wanted, abs=1e-4)
    assert "oracle" not in capsys.readouterr().out


def test_the_total_gets_a_name_that_is_free():
    with_total = [Hypothesis(0, "a", {"Total": (-1.0,)}, -2.0)]
    items, name = name_total(with_total)
    assert name == "Total_2" and items[0].features == {"Total": (-1.0,), "Total_2": (-2.0,)}
    assert name_total([Hypothesis(0, "a", {"Total": (-2.0,)}, -2.0)])[1] == "Total"


def test_an_ensembles_folder_stands_for_its_members(tmp_path):
    for n in range(3):
        (tmp_path / f"member-{n}").mkdir()
        (tmp_path / f"member-{n}" / "config.json").write_text(json.dumps(default_config("lstm").to_dict()))
    (tmp_path / "members.json").write_text('{"members": 3}')
    flags = dict.fromkeys(("reference", "metric", "models", "channel")) | {"input": "a", "output": "b", "source": "c"}
    request = read_request(None, tmp_path, flags | {"weights": "average"})
    assert request.models == tuple(tmp_path / f"member-{n}" for n in range(3))


def test_without_a_model_the_lists_own_features_are_tuned(files, tmp_path, capsys):
    args = [f"--input={files / 'lists'}", f"--reference={files / 'reference'}", f"--output={tmp_path / 'new'}"]
    assert call("--models=", *args, "--metric=chrf") == 0
    out = capsys.readouterr().out
    assert "chrf of the 1-best (nrefs:1|" in out and "after, weights of the other half" in out
    assert [line.split()[0] for line in out.splitlines()[-3:-1]] == ["good", "bad"]


def test_one_model_twice_has_two_names(tmp_path):
    assert name_feature(tmp_path / "my run", set()) == "my_run"
    assert name_feature(tmp_path / "lm", {"lm", "lm_2"}) == "lm_3"


def test_weights_go_to_the_model_that_they_were_tuned_for(tmp_path):
    one, other = tmp_path / "a" / "model", tmp_path / "b" / "model"
    files = {"weights": "w.json", "lists": "lists"}
    tuned = name_models([one, other], None, {"lm"}, **files)
    assert tuned == {"model": one, "model_2": other}
    given = {"models": {name: {"path": str(path)} for name, path in tuned.items()}}
    assert name_models([other, one], given, {"lm"}, **files) == tuned
    with pytest.raises(UserError, match=f"w.json: was not tuned with the model {tmp_path}/c/model, but with {one}, "):
        name_models([one, tmp_path / "c" / "model"], given, {"lm"}, **files)
    with pytest.raises(UserError, match="lists: has a feature 'model_2' already"):
        name_models([other], given, {"model_2"}, **files)


def test_only_a_language_model_needs_no_source(tiny_run, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(default_config("language_model").to_dict()))
    assert not reads_source(tmp_path) and reads_source(tiny_run)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"input": None}, "--input is missing"),
        ({"output": None}, "--output is missing"),
        ({"reference": None}, "--reference is missing"),
        ({"source": None, "models": "run"}, "--source is missing"),
        ({"models": "nowhere"}, "nowhere has no model"),
        ({"metric": "ter"}, "--metric must be one of bleu, chrf, wer, cer"),
        ({"reference": "short"}, "has 2 lines, but"),
        ({"input": "short"}, "line 1 is not of an n-best list"),
        ({"weights": "short"}, "not valid JSON"),
        ({"weights": "list.json"}, 'must be a JSON object with "weights"'),
        ({"weights": "words.json"}, "the weights of 'good' must be a list of finite numbers"),
        ({"weights": "few.json"}, "has no weight 2 of feature 'bad'"),
        ({"weights": "many.json"}, "has 3 weights for feature 'bad', of which"),
        ({"weights": "sick.json"}, 'its "models" must be an object of objects'),
        ({"weights": "few.json", "metric": "wer", "reference": None}, "--metric goes with --reference"),
        ({"weights": "average"}, "--weights=average: there is no model to average with; name one by --models=RUN"),
        ({"weights": "average", "models": "run", "source": None}, "--source is missing"),
        ({"weights": "average", "models": "run", "ngram": "x"}, "config.decode.ngram goes with weights that are tuned"),
        ({"weights": "averaged"}, "--weights=averaged: cannot be read"),
        ({"weights": "other.json"}, "has no weight for feature 'bad'"),
        ({"weights": "model.json"}, "has a weight for the model 'lm', which --models does not name"),
    ],
)
def test_wrong_input_is_refused_in_one_line(files, tiny_run, tmp_path, capsys, change, told):
    texts = {
        "short": "one\ntwo\n",
        "list.json": "[1]",
        "words.json": '{"weights": {"good": ["a"]}}',
        "few.json": '{"weights": {"good": [1], "bad": [1]}}',
        "many.json": '{"weights": {"good": [1], "bad": [1, 2, 3]}}',
        "sick.json": '{"weights": {"good": [1], "bad": [1, 2]}, "models": {"lm": 1}}',
        "other.json": '{"weights": {"good": [1], "worse": [1, 2]}}',
        "model.json": '{"weights": {"good": [1], "bad": [1, 2], "lm": [1]}, "models": {"lm": {}}}',
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    given = {"input": files / "lists", "reference": files / "reference", "source": files / "source", "models": ""}
    given |= {"output": tmp_path / "new"}
    given |= {name: tmp_path / value if value in texts or name == "models" else value for name, value in change.items()}
    if change.get("models") == "run":
        given["models"] = tiny_run
    if ngram := given.pop("ngram", ""):
        given |= {"workdir": tiny_run, "config.decode.ngram": ngram}
    assert call(*(f"--{name}={value}" for name, value in given.items() if value is not None)) == 2
    said = capsys.readouterr().err.strip()
    error = said.splitlines()[-1]
    assert told in error and error.startswith("seq2seq_jax: error: ") and "no hypothesis has" not in said
    assert not (tmp_path / "new").exists()


GRAMS = {  # log10 of a probability, and of a backoff
    ("<s>",): (-99.0, -0.3),
    ("</s>",): (-0.9, 0.0),
    ("<unk>",): (-2.5, -0.1),
    **{(word,): (-0.7 - 0.1 * n, -0.2 * n) for n, word in enumerate(sorted(set(WORDS.values()) - {"Katze"}))},
    ("<s>", "rot"): (-0.2, 0.0),
    ("eins", "zwei"): (-0.4, 0.0),
    ("blau", "</s>"): (-0.15, 0.0),
    ("eins", "eins"): (-1.7, 0.0),
}
"""A model of pairs of words, which does not know Katze."""


def write_arpa(path, grams):
    lines = ["\\data\\"]
    orders = [[gram for gram in grams if len(gram) == n] for n in (1, 2)]
    lines += [f"ngram {n}={len(own)}" for n, own in enumerate(orders, 1)]
    for n, own in enumerate(orders, 1):
        lines += [f"\\{n}-grams:", *(f"{grams[g][0]}\t{' '.join(g)}" + f"\t{grams[g][1]}" * (n == 1) for g in own)]
    path.write_text("\n".join([*lines, "\\end\\", ""]), encoding="utf-8")
    return path


def back_off(words, grams):
    """The log-probability of a text by the definition (Katz 1987)."""
    total, before = 0.0, "<s>"
    for word in [*(word if (word,) in grams else "<unk>" for word in words), "</s>"]:
        pair = (before, word)
        total += grams[pair][0] if pair in grams else grams[before,][1] + grams[word,][0]
        before = word
    return total * np.log(10)


def test_an_n_gram_model_is_a_feature_beside_the_models(files, rescored, tiny_run, tmp_path):
    ngram = write_arpa(tmp_path / "pairs.arpa", GRAMS)
    args = [f"--workdir={tiny_run}", f"--input={files / 'lists'}", f"--source={files / 'source'}", "--metric=wer"]
    args += [f"--config.decode.ngram={ngram}", f"--reference={files / 'reference'}"]
    assert call(*args, f"--output={tmp_path / 'new'}") == 0
    after = read_nbest(tmp_path / "new")
    assert list_columns(after) == [("good", 0), ("bad", 0), ("bad", 1), ("pairs.arpa", 0), ("run", 0)]
    found = [item.features["pairs.arpa"][0] for item in after]
    np.testing.assert_allclose(found, [back_off(item.text.split(), GRAMS) for item in after], atol=1e-5)
    known = {(item.segment, item.text): item.features["run"] for item in read_nbest(rescored[0])}
    assert {(item.segment, item.text): item.features["run"] for item in after} == known
    again = [*args, f"--weights={tmp_path / 'new.weights.json'}", f"--output={tmp_path / 'again'}"]
    assert call(*again) == 0 and (tmp_path / "again").read_text() == (tmp_path / "new").read_text()


@pytest.fixture
def hearing_run(tmp_path):
    """What of a run that hears its transcripts are spelled with."""
    folder, vocab = tmp_path / "hears", train_vocab(["ab a", "b b"], size=10, kind="char")
    config = default_config("ctc")
    config.train.update(patience_metric="wer", label_smoothing=0.0)
    Vocabs(vocab, vocab, True).save(folder / "vocab")
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    return folder


def test_transcripts_have_a_second_pass_by_an_n_gram_model(hearing_run, tmp_path, capsys):
    grams = {("<s>",): (-99.0, -0.2), ("</s>",): (-1.0, 0.0), ("<unk>",): (-3.0, 0.0)}
    grams |= {("a",): (-0.5, -0.4), ("b",): (-0.8, -0.1), ("\u2581",): (-0.6, -0.3), ("\u2581", "a"): (-0.1, 0.0)}
    ngram = write_arpa(tmp_path / "letters.arpa", grams)
    (tmp_path / "lists").write_text("0 ||| ab a ||| Score= -1 ||| -1\n0 ||| ab b ||| Score= -0.9 ||| -0.9\n")
    (tmp_path / "weights").write_text('{"weights": {"Score": [1], "letters.arpa": [0.5]}}')
    args = [f"--workdir={hearing_run}", f"--input={tmp_path / 'lists'}", f"--weights={tmp_path / 'weights'}"]
    args += [f"--config.decode.ngram={ngram}", f"--output={tmp_path / 'new'}"]
    assert call(*args, "--models=") == 0
    after = read_nbest(tmp_path / "new")
    wanted = [back_off([letter.replace(" ", "\u2581") for letter in item.text], grams) for item in after]
    np.testing.assert_allclose([item.features["letters.arpa"][0] for item in after], wanted, atol=1e-5)
    np.testing.assert_allclose([item.total for item in after], [-1 + wanted[0] / 2, -0.9 + wanted[1] / 2], atol=1e-5)
    assert [item.text for item in after] == ["ab a", "ab b"]  # now the second one first
    Folder(hearing_run).ngram.write_bytes(ngram.read_bytes())
    (tmp_path / "weights").write_text('{"weights": {"Score": [1], "ngram.arpa": [0.5]}}')
    assert call(*args, "--models=", "--config.decode.ngram=auto") == 0  # the run's own
    assert [item.total for item in read_nbest(tmp_path / "new")] == [item.total for item in after]
    capsys.readouterr()
    for more, told in (
        ((), "hears, and here texts are scored; name models of texts, or none by --models="),
        (("--models=", "--config.decode.ngram=gone.arpa"), "gone.arpa: cannot be read"),
    ):
        assert call(*args, *more) == 2
        assert told in capsys.readouterr().err
    write_arpa(ngram, {gram: both for gram, both in grams.items() if gram[0].startswith("<")})
    assert call(*args, "--models=") == 2
    assert "letters.arpa lists none of the vocabulary's 3 pieces" in capsys.readouterr().err


@pytest.mark.data
def test_mosess_own_weights_are_found_behind_its_totals(data_folder, tmp_path):
    """Its totals are made of the features in its lists by the weights in its moses.ini, normalised to sum to 1."""
    with tarfile.open(data_folder / "archives" / "nbest.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    items = read_nbest(tmp_path / "csmtiser_emode" / "run17.nbest.0-999")
    sizes = np.bincount([item.segment for item in items])
    lists = Lists(make_matrix(items, list_columns(items)), np.zeros((len(items), 1)), sizes)
    found = fit_totals(lists, np.array([item.total for item in items]))
    lines = [
        line for line in (tmp_path / "csmtiser_emode" / "run17.moses.ini").read_text().splitlines() if "= " in line
    ]
    rows = {line.split("= ")[0]: line.split("= ")[1].split() for line in lines}
    wanted = [float(value) for name in ("LM0", "LM1", "WordPenalty0", "PhrasePenalty0") for value in rows[name]]
    wanted += [float(value) for value in rows["TranslationModel0"]]
    np.testing.assert_allclose(found, wanted, atol=1e-4)
