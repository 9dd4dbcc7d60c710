"""The entry point as people use it: train, resume, evaluate, translate, describe, and what is refused."""

import io
import json
import math
import sys
from pathlib import Path

import pytest

from seq2seq_jax import command_line
from seq2seq_jax.config import hash_config, load_config
from seq2seq_jax.main import main

TINY = (
    "--config=configs/gnmt.py",
    "--config.data.phrasebook_pairs=300",
    "--config.data.max_shapes=2",
    "--config.data.tokens_per_batch=2048",
    "--config.vocab.kind=char",
    "--config.vocab.size=100",
    "--config.data.max_source_len=120",
    "--config.data.max_target_len=120",
    "--config.model.features=8",
    "--config.model.attention_features=8",
    "--config.decode.beam_size=2",
    "--config.decode.length_factor=0.1",
    "--config.decode.length_extra=6",
    "--config.decode.rows=256",
    "--config.evaluate.dev_sentences=8",
    "--config.evaluate.samples=2",
    "--config.train.log_every=5",
    "--config.train.warmup_steps=2",
    "--config.train.decay_steps=15",
    "--config.parallel.data=1",
)


def call(*args):
    """Runs a command line in this process; the exit code."""
    return main(["seq2seq_jax.main", *args])


def config_of(preset=""):
    """The config of a preset of configs/gnmt.py."""
    from configs import gnmt

    return gnmt.get_config(preset)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of twelve steps, and the folder it is in."""
    root = tmp_path_factory.mktemp("runs") / "tiny"
    assert call(*TINY, f"--workdir={root}", "--config.train.steps=12", "--config.train.save_every=4") == 0
    return root


def test_a_run_leaves_everything_it_promises(trained):
    results = json.loads((trained / "results.json").read_text())
    assert {"bleu", "chrf", "bleu_signature", "chrf_signature", "bleu_tokenized_lowercase"} <= set(results["test"])
    assert "version:" in results["test"]["bleu_signature"]
    assert results["steps"] == 12 and results["parameters"] > 0
    assert len(results["parameters_sha256"]) == len(results["vocab_sha256"]) == 64
    assert results["config_sha256"] == hash_config(load_config(trained / "config.json"))
    assert set(results["corpus_sha256"]) == {"train", "dev", "test"}
    assert results["tokens_per_second"] > 0 and results["wall_seconds"] > 0 and "jax" in results["versions"]
    assert json.loads((trained / "config.json").read_text())["train"]["steps"] == 12
    assert (trained / "vocab" / "vocabs.json").exists() and (trained / "checkpoints" / "12").is_dir()
    pictures = sorted((trained / "outputs").glob("attention_*.png"))
    assert len(pictures) == 2 and all(path.read_bytes()[:4] == b"\x89PNG" for path in pictures)
    for name in ("hypotheses", "source", "references"):
        assert len((trained / "outputs" / f"test.{name}.txt").read_text().split("\n")) == 1001


def test_metrics_are_whole_and_say_what_they_should(trained):
    records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if "loss" in record]
    assert [record["step"] for record in steps] == [5, 10, 12]
    wanted = {"loss", "learning_rate", "gradient_norm", "source_tokens_per_second", "target_tokens_per_second"}
    assert wanted | {"pad_share", "data_wait_share"} <= set(steps[0])
    assert all(math.isfinite(record["loss"]) for record in steps)
    assert records[-1]["event"] == "dev" and "dev_bleu" in records[-1]


def losses_of(root):
    """Step → loss of a run's log."""
    records = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    return {record["step"]: record["loss"] for record in records if "loss" in record}


def test_more_steps_resume_and_equal_a_straight_run(trained, tmp_path, capsys):
    more = ("--config.train.steps=20", "--config.train.save_every=4", "--config.train.evaluate_every=500")
    assert call(f"--workdir={trained}", "--config.train.steps=20") == 0  # the saved config alone
    assert "resuming at step 12" in capsys.readouterr().err
    straight = tmp_path / "straight"
    assert call(*TINY, *more, f"--workdir={straight}") == 0
    resumed, whole = (json.loads((root / "results.json").read_text()) for root in (trained, straight))
    assert resumed["parameters_sha256"] == whole["parameters_sha256"]
    logged = [
        [
            (r["step"], r["loss"])
            for r in map(json.loads, (root / "metrics.jsonl").read_text().splitlines())
            if "loss" in r
        ]
        for root in (trained, straight)
    ]
    assert dict(logged[0])[20] == dict(logged[1])[20] and dict(logged[0])[10] == dict(logged[1])[10]


def test_nothing_left_to_train_says_so(trained, capsys):
    steps = json.loads((trained / "config.json").read_text())["train"]["steps"]
    before = json.loads((trained / "results.json").read_text())["parameters_sha256"]
    assert call(f"--workdir={trained}") == 0
    assert f"step {steps} is the last one" in capsys.readouterr().err
    assert json.loads((trained / "results.json").read_text())["parameters_sha256"] == before


def test_evaluate_prints_one_json_object(trained, capsys):
    assert call(f"--workdir={trained}", "--mode=evaluate", "--json") == 0
    out = json.loads(capsys.readouterr().out)
    trained_scores = json.loads((trained / "results.json").read_text())["test"]
    assert out["test"]["bleu"] == trained_scores["bleu"] and out["test"]["chrf"] == trained_scores["chrf"]


def test_evaluate_names_pictures_that_are_there(trained, capsys):
    assert call(f"--workdir={trained}", "--mode=evaluate") == 0
    named = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("  attention")]
    assert len(named) == 2 and all(Path(name).is_file() and "evaluation" in name for name in named)


def translate(trained, monkeypatch, capsys, text, *args):
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    assert call(f"--workdir={trained}", "--mode=translate", *args) == 0
    return capsys.readouterr().out


def test_translate_keeps_lines_and_order(trained, monkeypatch, capsys):
    lines = ["The cat sleeps.", "", "  ", "A" * 3000, "Will we live in Ilville?\r", "tab\there"]
    out = translate(trained, monkeypatch, capsys, "\n".join(lines))
    answers = out.split("\n")
    assert len(answers) == 7 and answers[-1] == ""
    assert answers[1] == answers[2] == ""
    alone = translate(trained, monkeypatch, capsys, "The cat sleeps.\n")
    assert alone == answers[0] + "\n"


def test_nbest_is_moses_format(trained, monkeypatch, capsys):
    out = translate(trained, monkeypatch, capsys, "The cat sleeps.\n\nHe reads.\n", "--nbest=3")
    rows = [line.split(" ||| ") for line in out.splitlines()]
    assert [row[0] for row in rows] == ["0"] * 3 + ["2"] * 3
    scores = [float(row[3]) for row in rows if row[0] == "0"]
    assert scores == sorted(scores, reverse=True) and all(row[2].startswith("LogProb= ") for row in rows)


def test_translate_files(trained, tmp_path):
    (tmp_path / "in.txt").write_text("He reads.\nShe sleeps.\n")
    args = (f"--workdir={trained}", "--mode=translate", f"--input={tmp_path / 'in.txt'}")
    assert call(*args, f"--output={tmp_path / 'out.txt'}") == 0
    assert len((tmp_path / "out.txt").read_text().splitlines()) == 2
    assert not list(tmp_path.glob("*.part"))


def test_describe_counts_the_paper(capsys):
    assert call("--config=configs/gnmt.py:paper", "--mode=describe", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["parameters"] == 280_859_904
    assert sum(report["parameters_by_module"].values()) == report["parameters"]
    assert report["memory_bytes"]["parameters"] == 4 * report["parameters"]


def test_describe_knows_a_recipe_by_epochs_and_sentences(capsys):
    config = "--config=configs/lstm.py:paper"
    assert call(config, "--mode=describe", "--json", "--config.parallel.data=1") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["parameters"] == 384_112_000 and report["vocabulary"]["target"] == 80_000
    assert (report["epochs"], report["slots_per_step"]) == (7.5, 128 * (100 + 100))
    assert call(config, "--mode=describe", "--config.parallel.data=1") == 0
    assert "training: 7.5 epochs (703,125 steps by config.train.steps" in capsys.readouterr().out


def test_describe_in_words(capsys):
    assert call("--config=configs/gnmt.py", "--mode=describe") == 0
    assert "parameters" in capsys.readouterr().out


def test_help_needs_no_config(capsys):
    assert call("--help") == 0
    out = capsys.readouterr().out
    assert all(f"--{name}" in out for name in command_line.OWN) and all(mode in out for mode in command_line.MODES)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ((), "--config is missing"),
        (("--config=configs/gnm.py",), "did you mean configs/gnmt.py?"),
        (("--config=configs/gnmt.py:multi",), "multi30k"),
        (("--config=configs/gnmt.py", "--config.train.stepz=4"), "config.train.steps"),
        (("--config=configs/gnmt.py", "--config.modle.features=4"), "config.model.features"),
        (("--config=configs/gnmt.py", "--config.train.steps=x"), "type int"),
        (("--config=configs/gnmt.py", "--config.train.steps=0"), "at least 1"),
        (("--config=configs/gnmt.py", "--config.model.dropout=1.5"), "less than 1"),
        (("--config=configs/gnmt.py", "--config.model.attention_from=current"), "current_step"),
        (("--config=configs/gnmt.py", "--config.train.schedule=gnmt"), "decay_every"),
        (("--config=configs/gnmt.py", "--config.parallel.data=1000"), "devices"),
        (("--config=configs/gnmt.py", "--config.data.target=en"), "must differ"),
        (("--config=configs/gnmt.py", "--mode=trian"), "did you mean train?"),
        (("--config=configs/gnmt.py", "stray"), "'stray' is no flag"),
        (("--config=configs/gnmt.py", "--wrkdir=x"), "did you mean --workdir?"),
        (("--config=configs/gnmt.py", "--nbest=3"), "goes with --mode=translate"),
        (("--config=configs/gnmt.py", "--data=x"), "is no flag"),
        (("--workdir=/nonexistent/run",), "there is no run"),
    ],
)
def test_wrong_use_is_one_line_and_code_2(args, told, tmp_path, capsys):
    workdir = () if any(arg.startswith("--workdir") for arg in args) or not args else (f"--workdir={tmp_path}",)
    assert call(*args, *workdir) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and captured.err.startswith("seq2seq_jax: error: ") and told in captured.err
    assert captured.out == ""
    assert not (tmp_path / "checkpoints").exists()


def write_pairs(folder, source, target):
    folder.mkdir(exist_ok=True)
    (folder / "text.en").write_bytes(source)
    (folder / "text.de").write_bytes(target)
    return f"--config.data.train={folder / 'text'}"


GOOD = b"".join(f"line {n} of the text\n".encode() for n in range(200))


@pytest.mark.parametrize(
    ("source", "target", "told"),
    [
        (GOOD, b"", "is empty"),
        (GOOD, GOOD + b"one more\n", "from line 201 on"),
        (GOOD.replace(b"line 7 ", b"line \xff ", 1), GOOD, "line 8 is not UTF-8"),
        (b"\n" * 200, GOOD, "blank side"),
        (GOOD, b"word " * 100_000 + b"\n", "200 lines, target has 1"),
    ],
)
def test_bad_corpora_are_refused_before_training(source, target, told, tmp_path, capsys):
    assert call(*TINY, write_pairs(tmp_path / "data", source, target), f"--workdir={tmp_path / 'run'}") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and told in error
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_own_text_with_blank_and_endless_lines(tmp_path, capsys):
    source = GOOD + b"\n" + b"word " * 100_000 + b"\n"
    target = GOOD + b"not blank\n" + b"word " * 100_000 + b"\n"
    data = write_pairs(tmp_path / "data", source, target)
    run = f"--workdir={tmp_path / 'run'}"
    assert call(*TINY, data, run, "--config.train.steps=3", "--config.data.held_out_pairs=5") == 0
    told = capsys.readouterr().err
    assert "too long" in told
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["test"]["sentences"] == 5


def test_a_changed_config_is_refused_on_resume_and_named(trained, capsys):
    assert call(f"--workdir={trained}", "--config.train.learning_rate=0.5", "--config.model.features=9") == 2
    error = capsys.readouterr().err
    assert "config.model.features (saved 8, now 9)" in error and "config.train.learning_rate" in error


def test_the_vocabulary_of_another_run_is_refused(trained, tmp_path, capsys):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    other = tmp_path / "other"
    assert call(*TINY, f"--workdir={other}", "--config.train.steps=1", "--config.vocab.size=40") == 0
    shutil.rmtree(copy / "vocab")
    shutil.copytree(other / "vocab", copy / "vocab")
    capsys.readouterr()
    assert call(f"--workdir={copy}", "--config.train.steps=30") == 2
    assert call(f"--workdir={copy}", "--mode=evaluate") == 2
    assert (copy / "checkpoints").is_dir() and (copy / "results.json").exists()


def test_fresh_moves_the_old_run_aside(trained, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    assert call(*TINY, f"--workdir={copy}", "--fresh", "--config.train.steps=2") == 0
    (old,) = tmp_path.glob("copy.old-*")
    assert (old / "results.json").exists() and json.loads((copy / "results.json").read_text())["steps"] == 2


def test_two_trainings_in_one_folder(tmp_path, capsys):
    from seq2seq_jax.workdir import claim

    with claim(tmp_path, fresh=False):
        assert call(*TINY, f"--workdir={tmp_path}") == 2
    assert "another training is running" in capsys.readouterr().err


def test_divergence_is_code_3_and_names_examples(tmp_path, capsys):
    run = (f"--workdir={tmp_path}", "--config.train.steps=40", "--config.train.max_skipped=3")
    blow_up = ("--config.train.optimizer=sgd", "--config.train.learning_rate=1e38", "--config.train.clip_norm=0.0")
    assert call(*TINY, *run, *blow_up, "--config.train.warmup_steps=0", "--config.train.schedule=constant") == 3
    assert "examples [" in capsys.readouterr().err
    skipped = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert any(record.get("event") == "skipped" and record["example_ids"] for record in skipped)


def test_damaged_checkpoints_are_code_4(trained, tmp_path, capsys):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    for step in (copy / "checkpoints").iterdir():
        for path in step.rglob("*"):
            if path.is_file() and path.stat().st_size > 1000:
                data = bytearray(path.read_bytes())
                data[len(data) // 2] ^= 1
                path.write_bytes(bytes(data))
    assert call(f"--workdir={copy}", "--config.train.steps=90") == 4
    assert "no checkpoint" in capsys.readouterr().err
