"""Back-translation as one command: its three stages, what is left out, a kill in the middle, and wrong inputs."""

import gzip
import json
import os
import signal
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from seq2seq_jax.config import default_config, load_config
from seq2seq_jax.decode.sample import Draws
from seq2seq_jax.errors import UserError
from seq2seq_jax.main import main
from seq2seq_jax.modes import backtranslate as mode
from seq2seq_jax.tasks.methods import IDS, make_method
from seq2seq_jax.tasks.translation import Candidate, Translation

TINY = (
    "--config=configs/gnmt.py",
    "--mode=backtranslate",
    "--config.data.max_shapes=1",
    "--config.data.max_source_len=40",
    "--config.data.max_target_len=40",
    "--config.data.monolingual_search=sampling",
    "--config.vocab.kind=word",
    "--config.model.features=8",
    "--config.model.attention_features=8",
    "--config.decode.beam_size=1",
    "--config.decode.length_extra=120",  # the model knows nothing yet: its samples end by chance
    "--config.decode.max_source_len=12",
    "--config.decode.rows=8",
    "--config.evaluate.dev_sentences=2",
    "--config.evaluate.samples=0",
    "--config.train.steps=2",
    "--config.train.warmup_steps=2",
    "--config.train.decay_steps=15",
    "--config.parallel.data=1",
)
MONO = [f"Haus {n} ist rot" for n in range(20)]
MONO[3], MONO[10] = "  ", "lang " * 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pairs for all splits, and monolingual text."""
    folder = tmp_path_factory.mktemp("text")
    for name, count in (("train", 40), ("dev", 4), ("test", 4)):
        (folder / f"{name}.en").write_text("".join(f"house {n} is red\n" for n in range(count)))
        (folder / f"{name}.de").write_text("".join(f"Haus {n} ist rot\n" for n in range(count)))
    with gzip.open(folder / "mono.de.gz", "wt", encoding="utf-8") as file:
        file.write("".join(line + "\n" for line in MONO))
    return folder


def command(folder, *more):
    data = [f"--config.data.{name}={folder / name}" for name in ("train", "dev", "test")]
    text = f"--config.data.monolingual={folder / 'mono.de.gz'}?weight=0.5"
    return ["seq2seq_jax.main", *TINY, *data, text, f"--workdir={folder / 'run'}", *more]


@pytest.fixture(scope="module")
def done(folder):
    """A run that was stopped by a signal after its first part, then came to its end with the same command."""
    said, write, patch = [], mode._write_part, pytest.MonkeyPatch()
    with patch.context() as patched:
        patched.setattr(mode, "PART_LINES", 8)
        patched.setattr(mode, "say", said.append)

        def write_and_stop(folder, part, *rest):
            write(folder, part, *rest)
            os.kill(os.getpid(), signal.SIGTERM)

        patched.setattr(mode, "_write_part", write_and_stop)
        assert main(command(folder)) == 143
        parts = sorted(path.name for path in (folder / "run" / "synthetic").glob("part-*"))
        assert parts == ["part-00000.de", "part-00000.en", "part-00000.json"]
        assert not (folder / "run" / "synthetic.de").exists() and not (folder / "run" / "config.json").exists()
        stamp = (folder / "run" / "synthetic" / "part-00000.en").stat().st_mtime_ns
        patched.setattr(mode, "_write_part", write)
        said.clear()
        assert main(command(folder)) == 0
        assert (folder / "run" / "synthetic" / "part-00000.en").stat().st_mtime_ns == stamp
    return folder / "run", said


def test_the_stages_follow_each_other_and_go_on_where_they_were(done):
    root, said = done
    told = "\n".join(said)
    assert "it is trained already" in told and "translated 16 of 20 lines" in told and "sentences/s" in told
    reverse = load_config(root / "reverse" / "config.json")
    assert (reverse.data.source, reverse.data.target, reverse.data.reversed) == ("de", "en", True)
    assert reverse.data.monolingual == "" and "synthetic" not in reverse.data.train
    saved = load_config(root / "config.json")
    assert saved.data.train == f"{root.parent / 'train'}, {root / 'synthetic'}?tag=bt&weight=0.5"
    assert json.loads((root / "vocab" / "vocab.json").read_text())["tags"] == ["bt"]
    assert json.loads((root / "results.json").read_text())["steps"] == 2
    assert not (root / "reverse" / "vocab" / "vocab.json").read_text().count('"bt"')


def test_lines_are_counted_and_stay_in_step(done):
    root, said = done
    counts = json.loads((root / "synthetic" / "report.json").read_text())
    assert counts["blank"] == counts["too long"] == 1 and sum(counts.values()) == 20 and counts["kept"] > 5
    assert f"20 lines translated by {root / 'reverse'} ({counts['kept']} kept, 1 blank, 1 too long" in said[-1]
    source, target = ((root / f"synthetic.{code}").read_text().splitlines() for code in ("en", "de"))
    assert len(source) == len(target) == counts["kept"]
    assert all(line in MONO for line in target) and target == sorted(target, key=MONO.index)
    assert not {MONO[3], MONO[10]} & set(target) and all(line.strip() for line in source)


def test_a_part_that_is_made_again_comes_out_the_same(done, monkeypatch):
    root, _ = done
    monkeypatch.setattr(mode, "PART_LINES", 8)
    monkeypatch.setattr(mode, "train", lambda config, root: {"train": config.data.train})
    before = {path.name: path.read_bytes() for path in root.glob("synthetic*.*")}
    for name in ("report.json", "part-00001.json"):
        (root / "synthetic" / name).unlink()
    (root / "synthetic" / "part-00001.en").write_text("torn")
    saved = load_config(root / "config.json")  # which names the synthetic corpus already
    results = mode.backtranslate(saved, root)
    assert {path.name: path.read_bytes() for path in root.glob("synthetic*.*")} == before
    assert results["train"] == saved.data.train and results["synthetic"]["kept"] > 5


def test_a_changed_text_or_search_is_noticed(done, folder, monkeypatch, capsys):
    monkeypatch.setattr(mode, "PART_LINES", 8)
    (folder / "other.de").write_text("".join(line + "\n" for line in MONO[:19]))
    assert main(command(folder, f"--config.data.monolingual={folder / 'other.de'}")) == 2
    said = capsys.readouterr().err
    assert f"{done[0] / 'synthetic'}: was made with another monolingual text; put it back, or remove" in said
    assert main(command(folder, "--config.decode.beam_size=3", "--config.data.monolingual_search=beam")) == 2
    assert "was made with another search; put it back" in capsys.readouterr().err


def test_a_recipe_of_an_earlier_version_is_that_of_its_defaults_spelled_out(tmp_path):
    earlier = {"beam_size": 5, "length_penalty": 0.6, "coverage_penalty": 0.2, "length_factor": 2.0, "seed": 7}
    earlier |= {"length_extra": 10, "rows": 64, "max_source_len": 256, "kind": "beam"}  # `seed` was that of training
    (tmp_path / "recipe.json").write_text(json.dumps({"lines": 1, "search": earlier}))

    def check(kind="beam", **other):
        keys = ConfigDict({**default_config().decode.to_dict(), **other})
        found = mode.search_keys(keys, kind, seed=7).to_dict()
        mode._check_recipe(tmp_path, {"lines": 1, "search": {**found, "kind": kind}})

    check()
    check(preset="default", prefix="Der", ensemble="runs/b")
    for other in ({"preset": "fairseq"}, {"length_penalty": 1.0}, {"method": "greedy"}, {"no_repeat_ngram": 3}):
        with pytest.raises(UserError, match="was made with another search"):
            check(**other)
    (tmp_path / "recipe.json").write_text(json.dumps({"lines": 1, "search": {**earlier, "kind": "sampling"}}))
    check("sampling", beam_size=3, min_length_extra=2, top_k=4)
    with pytest.raises(UserError, match="was made with another search"):
        check("sampling", length_extra=20)


def test_the_reverse_model_searches_alone_and_samples_draw_from_the_whole_distribution():
    config = default_config()
    config.decode.update(method="minimum_bayes_risk", candidates=4, ensemble="runs/b", language_model="runs/c")
    config.decode.update(prefix="a", must="b", must_not="c", min_length_extra=3, no_repeat_ngram=2, max_loop=1)
    config.decode.update(temperature=0.5, top_k=3, top_p=0.5, length_extra=7, preset="fairseq")
    none = dict.fromkeys(("ensemble", "language_model", "prefix", "must", "must_not"), "")
    beam, drawn = (mode.search_keys(config.decode, kind, seed=9) for kind in ("beam", "sampling"))
    assert beam.to_dict() == {**config.decode.to_dict(), **none}
    assert mode.reverse_config(config).decode.to_dict() == beam.to_dict() and config.decode.prefix == "a"
    assert make_method(drawn) == Draws(samples=1, **IDS)
    changed = {key for key, value in drawn.items() if value != default_config().decode[key]}
    assert changed == {"method", "seed", "length_extra"} and (drawn.seed, drawn.length_extra) == (9, 7)


def test_a_given_model_must_be_of_the_other_direction(done, folder, monkeypatch, tmp_path):
    root, _ = done
    config = load_config(root / "config.json")
    with pytest.raises(UserError, match=r"--reverse=.*: translates en-de, but de-en is needed"):
        mode.backtranslate(config, tmp_path, reverse=str(root))
    monkeypatch.setattr(mode, "train", lambda config, root: {"train": config.data.train})
    monkeypatch.setattr(mode, "_make_translate", lambda *_: lambda part, lines, poll: [found_of(x) for x in lines])
    config.data.monolingual = f"{folder / 'mono.de.gz'}?tag=bt+2de"
    results = mode.backtranslate(config, tmp_path, reverse=str(root / "reverse"))
    assert not (tmp_path / "reverse").exists()
    assert results["synthetic"] == {"kept": 19, "blank": 1, "too long": 0, "empty": 0, "unfinished": 0, "copy": 0}
    assert results["train"].endswith(f", {tmp_path / 'synthetic'}?tag=bt+2de")
    assert (tmp_path / "synthetic.en").read_text().splitlines()[0] == "EN Haus 0 ist rot"
    monkeypatch.setattr(mode, "_make_translate", lambda *_: lambda part, lines, poll: [found_of("") for x in lines])
    with pytest.raises(UserError, match="of 20 lines none is left .* the reverse model is too weak"):
        mode.backtranslate(config, make(tmp_path / "weak"), reverse=str(root / "reverse"))


def make(path):
    path.mkdir()
    return path


def found_of(line, text=None, *, finished=True, cut=False):
    """A translation as the search gives it."""
    text = f"EN {line}" if text is None else text
    candidates = [Candidate(text, [5], 0.0, 0.0, finished)] if line.strip() else []
    return Translation([], candidates, cut)


@pytest.mark.parametrize(
    ("line", "found", "reason"),
    [
        ("Ein Haus", found_of("Ein Haus"), "kept"),
        (" \t", found_of(" "), "blank"),
        ("Ein Haus", found_of("Ein Haus", cut=True), "too long"),
        ("Ein Haus", found_of(""), "empty"),
        ("Ein Haus", found_of("Ein Haus", " "), "empty"),
        ("Ein Haus", found_of("Ein Haus", "a a a", finished=False), "unfinished"),
        ("Ein  Haus", found_of("Ein Haus", "Ein Haus"), "copy"),
        ("Ein ﬁnes Haus", found_of("Ein Haus", "Ein fines Haus"), "copy"),
    ],
)
def test_degenerate_translations_are_told_apart(line, found, reason):
    assert mode.judge(line, found, line.replace("ﬁ", "fi")) == reason


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, "config.data.monolingual is empty: give text in 'de'"),
        ({"monolingual": "missing.de"}, "missing.de: cannot be read (No such file or directory)."),
        ({"monolingual": "a.de, b.de"}, "names one file, with weight and tag"),
        ({"monolingual": "a.de?target=fr"}, "names one file, with weight and tag"),
        ({"monolingual": "empty.de"}, "empty.de: is empty: give text in 'de'"),
        ({"prepared": "x"}, "config.data.prepared = 'x': one folder cannot be that of both directions"),
        ({"monolingual": "mono.de", "init_from": "x"}, "the reverse model cannot start from it"),
    ],
)
def test_wrong_inputs_are_refused_before_any_work(keys, said, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("empty.de").touch()
    Path("mono.de").write_text("Haus\n")
    config = default_config()
    config.data.monolingual = keys.get("monolingual", "")
    config.data.prepared = keys.get("prepared", "auto")
    config.train.init_from = keys.get("init_from", "")
    with pytest.raises(UserError) as caught:
        mode.backtranslate(config, tmp_path / "run")
    assert said in str(caught.value).replace(f"{tmp_path}/", "") and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_the_name_of_a_corpus_is_refused(tmp_path):
    with pytest.raises(UserError, match="may have no comma and question mark"):
        mode.backtranslate(default_config(), tmp_path / "a,b")


def test_the_flag_goes_with_its_mode_alone(capsys):
    assert main(["seq2seq_jax.main", "--config=configs/gnmt.py", "--reverse=x"]) == 2
    assert "--reverse goes with --mode=backtranslate" in capsys.readouterr().err
