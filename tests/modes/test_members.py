"""Ensembles of seeds by one command: what is trained, skipped, gone on with, compared and refused."""

import functools
import json
import shutil

import numpy as np
import pytest

import seq2seq_jax
from seq2seq_jax.config import default_config, load_config
from seq2seq_jax.data.vocab import Vocab, Vocabs
from seq2seq_jax.errors import Terminated, UserError
from seq2seq_jax.evaluate.compare import judge_scores
from seq2seq_jax.main import main
from seq2seq_jax.modes import members as mode
from seq2seq_jax.modes.evaluate import load_run
from seq2seq_jax.train.writers import write_json
from seq2seq_jax.workdir import Folder, list_members

REFERENCES = [f"the {n} cats sat on the mat" for n in range(20)]
RIGHT = {0: 8, 1: 12, 2: 10, "ensemble": 19}
"""How many of the translations are right, by seed."""


class Trainer:
    """Stands in for training and evaluation; writes what they leave, and knows what was asked of it."""

    def __init__(self):
        self.trained, self.evaluated, self.stop_at = [], [], None
        self.digests = {"train": "a" * 64, "dev": "b" * 64, "test": "c" * 64}

    def train(self, config, root, hosts, *, check=None):
        folder = Folder(root)
        vocabs = Vocabs.load(folder.vocab) if check else Vocabs(*[Vocab("byte", b"")] * 2, joint=True)
        vocabs.save(folder.vocab)
        if check:
            check({**self.digests, "vocabulary": vocabs.digest})
        self.trained.append((root.name, config.train.seed))
        write_json(folder.config, config.to_dict())
        (folder.checkpoints / str(config.train.steps // 2)).mkdir(parents=True, exist_ok=True)
        if self.stop_at == root.name:
            raise Terminated("stopped")
        results = {
            "test": self._translate(folder.root, config.train.seed),
            "steps": config.train.steps,
            "wall_seconds": 60.0,
            "parameters": 5,
            "parameters_sha256": root.name,
            "corpus_sha256": self.digests,
            "corpus_pairs": {},
            "vocab_sha256": vocabs.digest,
            "devices": ["cpu"],
            "config": config.to_dict(),
        }
        write_json(folder.results, results)
        return results

    def evaluate(self, place, config, root, hosts):
        self.evaluated.append((root.name, config.decode.ensemble))
        return {"test": self._translate(place, "ensemble"), "test_sha256": self.digests["test"]}

    def _translate(self, root, key):
        lines = [line if n < RIGHT[key] else "a b c d e f" for n, line in enumerate(REFERENCES)]
        Folder(root).outputs.mkdir(exist_ok=True)
        for name, text in (("hypotheses", lines), ("references", REFERENCES)):
            (Folder(root).outputs / f"test.{name}.txt").write_text("".join(line + "\n" for line in text))
        return {"bleu": 5.0 * RIGHT[key], "step": 3, "seconds": 2.0}


@pytest.fixture
def trainer(monkeypatch):
    found = Trainer()
    monkeypatch.setattr(mode, "train", found.train)
    monkeypatch.setattr(mode, "evaluate_into", found.evaluate)
    monkeypatch.setattr(mode, "judge_scores", functools.partial(judge_scores, resamples=100))
    return found


def make_config(**train):
    config = default_config("lstm")
    config.train.update(steps=100, **train)
    return config


def test_members_differ_in_their_seeds_and_share_the_vocabulary(trainer, tmp_path, capsys):
    root = tmp_path / "three"
    root.mkdir()
    results = mode.train_members(make_config(), root, 3)
    assert trainer.trained == [("member-0", 0), ("member-1", 1), ("member-2", 2)]
    assert trainer.evaluated == [("member-0", f"{root / 'member-1'},{root / 'member-2'}")]
    assert len({(root / f"member-{n}" / "vocab" / "vocabs.json").read_bytes() for n in range(3)}) == 1
    assert json.loads((root / "results.json").read_text()) == results
    assert [(row["folder"], row["seed"], row["bleu"]) for row in results["members"]] == [
        ("member-0", 0, 40.0),
        ("member-1", 1, 60.0),
        ("member-2", 2, 50.0),
    ]
    assert results["mean"] == {"bleu": 50.0} and results["test"]["bleu"] == 95.0 and results["parameters"] == 15
    assert results["against_best"]["folder"] == "member-1"
    bleu = results["against_best"]["scores"][0]
    assert bleu["p_value"] < 0.05 and bleu["systems"][1]["score"] > bleu["systems"][0]["score"] + 20
    assert load_config(root / "config.json").train.seed == 0 and len(list_members(root)) == 3
    said = capsys.readouterr().err
    assert "member 1 of 3 (seed 0) in" in said and f"{root / 'member-1'}; 2m00s left for all" in said
    assert f"{root / 'member-2'}; 1m00s left for all" in said
    words = mode.render(results)
    assert "mean of the members" in words and "ensemble against member-1, the best of them" in words


def test_the_same_command_goes_on_where_it_was_stopped(trainer, tmp_path, capsys):
    root, trainer.stop_at = tmp_path, "member-1"
    with pytest.raises(Terminated):
        mode.train_members(make_config(), root, 3)
    assert not (root / "results.json").exists()
    with pytest.raises(UserError, match=r"2 of 3 members are not trained yet \(member-1, member-2\)"):
        mode.join_members(load_config(root / "config.json"), root)
    trainer.stop_at, trainer.trained = None, []
    capsys.readouterr()
    mode.train_members(load_config(root / "config.json"), root, 3)
    assert trainer.trained == [("member-1", 1), ("member-2", 2)]
    said = capsys.readouterr().err
    assert "member 1 of 3 is trained: bleu 40.00" in said and "1m30s left for all" in said  # one and a half members
    trainer.trained = []
    mode.train_members(make_config(), root, 3)
    assert trainer.trained == [] and len(trainer.evaluated) == 2


def test_members_may_be_added_and_left_out(trainer, tmp_path, capsys):
    mode.train_members(make_config(), tmp_path, 2)
    trainer.trained = []
    assert len(mode.train_members(make_config(), tmp_path, 3)["members"]) == 3
    assert trainer.trained == [("member-2", 2)]
    capsys.readouterr()
    assert len(mode.train_members(make_config(), tmp_path, 2)["members"]) == 2
    assert "member-2: left as they are, and out of this ensemble of 2" in capsys.readouterr().err
    assert trainer.trained == [("member-2", 2)] and trainer.evaluated[-1] == ("member-0", str(tmp_path / "member-1"))


def test_more_steps_go_on_with_all_members(trainer, tmp_path):
    mode.train_members(make_config(), tmp_path, 2)
    config = make_config()
    config.train.steps = 200
    mode.train_members(config, tmp_path, 2)
    assert [name for name, _ in trainer.trained] == ["member-0", "member-1"] * 2
    with pytest.raises(UserError, match=r"member-0: was trained for 200 steps, but config.train.steps is 100: all"):
        mode.train_members(make_config(), tmp_path, 2)
    assert load_config(tmp_path / "config.json").train.steps == 200


@pytest.mark.parametrize("damage", ["results", "outputs"])
def test_a_member_whose_results_are_damaged_is_evaluated_again(trainer, tmp_path, damage):
    mode.train_members(make_config(), tmp_path, 2)
    trainer.trained = []
    path = tmp_path / "member-1" / "results.json"
    path.write_text("{") if damage == "results" else shutil.rmtree(tmp_path / "member-1" / "outputs")
    mode.train_members(make_config(), tmp_path, 2)
    assert trainer.trained == [("member-1", 1)]


def test_members_of_other_texts_or_vocabularies_are_refused(trainer, tmp_path):
    trainer.stop_at = "member-1"
    with pytest.raises(Terminated):
        mode.train_members(make_config(), tmp_path, 2)
    trainer.stop_at, trainer.trained = None, []
    trainer.digests = {**trainer.digests, "train": "d" * 64}
    told = r"member-1: its train corpus is not that of the first member \(digests dddddddddddd and aaaaaaaaaaaa\)"
    with pytest.raises(UserError, match=told):
        mode.train_members(make_config(), tmp_path, 2)
    assert trainer.trained == []  # told before a step is taken
    Vocabs(*[Vocab("byte", b"", tags=("x",))] * 2, joint=True).save(tmp_path / "member-1" / "vocab")
    with pytest.raises(UserError, match="its vocabulary is not|its train corpus is not"):
        mode.train_members(make_config(), tmp_path, 2)


def test_a_test_set_that_has_changed_is_refused(trainer, tmp_path):
    mode.train_members(make_config(), tmp_path, 2)
    trainer.digests = {**trainer.digests, "test": "e" * 64}
    with pytest.raises(UserError, match="its test corpus is not that of the first member"):
        mode.train_members(make_config(), tmp_path, 2)


def test_another_config_is_refused_as_for_a_run(trainer, tmp_path):
    mode.train_members(make_config(), tmp_path, 2)
    for key in ("seed", "learning_rate"):
        with pytest.raises(UserError, match=rf"started with another config: config.train.{key} \(saved"):
            mode.train_members(make_config(**{key: 1}), tmp_path, 2)


@pytest.mark.parametrize(
    ("count", "change", "told"),
    [
        (1, {}, "--members must be at least 2, but is 1 instead"),
        (0, {}, "--members must be at least 2, but is 0 instead"),
        (2, {"decode.ensemble": "runs/b"}, "config.decode.ensemble must be empty with --members"),
        (2, {"train.seed": 2**31 - 1}, "config.train.seed must be at most 2,147,483,647"),
        (2, {"model.name": "language_model"}, "language models cannot search as an ensemble"),
    ],
)
def test_what_cannot_become_an_ensemble_is_refused(trainer, tmp_path, count, change, told):
    config = default_config("language_model" if "model.name" in change else "lstm")
    config.update_from_flattened_dict(change)
    with pytest.raises(UserError, match=told):
        mode.train_members(config, tmp_path, count)
    assert not list(tmp_path.iterdir()) and not trainer.trained


def test_folders_that_cannot_hold_an_ensemble_are_refused(trainer, tmp_path):
    with pytest.raises(UserError, match="must have no comma where it holds an ensemble"):
        mode.train_members(make_config(), tmp_path / "a,b", 2)
    (tmp_path / "checkpoints" / "8").mkdir(parents=True)
    with pytest.raises(UserError, match="holds a single run; name another folder"):
        mode.train_members(make_config(), tmp_path, 2)


def test_members_share_a_prepared_corpus(tmp_path):
    config = make_config()
    assert mode.member_config(config, tmp_path, 1).data.prepared == "auto"
    (tmp_path / "prepared").mkdir()
    assert mode.member_config(config, tmp_path, 1).data.prepared == str(tmp_path / "prepared")
    config.data.prepared = ""
    assert mode.member_config(config, tmp_path, 1).data.prepared == ""


def test_modes_of_one_run_refuse_an_ensemble_in_one_line(trainer, tmp_path, capsys):
    mode.train_members(make_config(), tmp_path, 2)
    member, more = tmp_path / "member-0", {"backtranslate": [], "train": [f"--init_from={tmp_path}"]}
    for name in ("score", "average", "export", "backtranslate", "train"):
        given = more.get(name, [f"--output={tmp_path / 'x'}"])
        workdir = tmp_path / "other" if name == "train" else tmp_path
        code = main(["seq2seq_jax.main", "--config=configs/lstm.py", f"--mode={name}", f"--workdir={workdir}", *given])
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert code == 2 and f"--mode={name}, but is an ensemble of 2 instead; name a member, such as {member}" in error
    with pytest.raises(UserError, match="is an ensemble of 2 runs, and one is needed here"):
        load_run(make_config(), Folder(tmp_path))
    assert main(["seq2seq_jax.main", "--mode=evaluate", f"--workdir={tmp_path}", "--members=2"]) == 2
    assert "--members goes with --mode=train" in capsys.readouterr().err
    (tmp_path / "members.json").write_text("[]")
    assert main(["seq2seq_jax.main", "--mode=translate", f"--workdir={tmp_path}"]) == 2
    assert "does not say how many members there are; train with --members=N again" in capsys.readouterr().err


@pytest.fixture(scope="module")
def ensemble(tiny_run, tmp_path_factory):
    """Of the tiny run, which is its member 0, and of a second one, trained here."""
    root = tmp_path_factory.mktemp("ensemble")
    shutil.copytree(tiny_run, root / "member-0")
    config = root / "config.json"
    shutil.copy(tiny_run / "config.json", config)
    assert main(["seq2seq_jax.main", f"--workdir={root}", "--members=2"]) == 0
    return root


def test_an_ensemble_of_real_runs_searches_in_the_modes_that_people_call(ensemble, tiny_run, tmp_path, capsys):
    results = json.loads((ensemble / "results.json").read_text())
    first, second = (json.loads((ensemble / f"member-{n}" / "results.json").read_text()) for n in range(2))
    assert first["parameters_sha256"] != second["parameters_sha256"]
    assert first["vocab_sha256"] == second["vocab_sha256"] and first["corpus_sha256"] == second["corpus_sha256"]
    assert second["config"]["train"]["seed"] == 1 and results["test"]["search"] == "beam 2 (ensemble with member-1)"
    assert [row["bleu"] for row in results["members"]] == [each["test"]["bleu"] for each in (first, second)]
    assert results["mean"]["chrf"] == pytest.approx(np.mean([each["test"]["chrf"] for each in (first, second)]))
    outputs, translated = ensemble / "outputs", tmp_path / "out"
    args = [f"--workdir={ensemble}", "--mode=translate", f"--input={outputs / 'test.source.txt'}"]
    assert main(["seq2seq_jax.main", *args, f"--output={translated}"]) == 0
    assert translated.read_bytes() == (outputs / "test.hypotheses.txt").read_bytes()
    sources = (outputs / "test.source.txt").read_text().splitlines()[:2]
    assert seq2seq_jax.load(ensemble).translate(sources) == translated.read_text().splitlines()[:2]
    assert main(["seq2seq_jax.main", f"--workdir={ensemble}", "--mode=evaluate", "--json"]) == 0
    evaluated = json.loads((ensemble / "evaluation" / "results.json").read_text())
    assert evaluated["test"]["bleu"] == results["test"]["bleu"]
    assert not (ensemble / "member-0" / "evaluation").exists()
    capsys.readouterr()
    assert main(["seq2seq_jax.main", f"--workdir={ensemble}", "--mode=compare", f"--against={tiny_run}"]) == 0
    assert "24 sentences" in capsys.readouterr().out
