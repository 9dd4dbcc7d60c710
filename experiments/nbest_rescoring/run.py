"""What a sequence-to-sequence model adds to the n-best lists of a statistical system for normalising old spelling.

The system is a character-level Moses (csmtiser) that was tuned for 17 rounds on the development segments that its lists
are of; the model is a GNMT of characters, trained on the same 18,258 pairs. The lists of rounds 1, 9 and 17 are
rescored by tuning the system's own features again, by adding the model to them, and by the model beside the system's
total.

    python experiments/nbest_rescoring/run.py --data=DIR [--out=runs/nbest_rescoring] [--lists=run1,run17]

`DIR` is the folder csmtiser_emode with train.{orig,norm}, dev.{orig,norm}.0-999 and run{1,9,17}.nbest.0-999. There,
characters are words and `£` is a blank; here they become text again, so that WER counts words.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

TRAINING = {
    "data.held_out_pairs": 500,
    "data.max_source_len": 100,
    "data.max_target_len": 100,
    "data.tokens_per_batch": 4096,
    "data.max_shapes": 6,
    "data.source": "orig",
    "data.target": "norm",
    "vocab.kind": "char",
    "vocab.normalization": "identity",
    "vocab.size": 200,
    "model.dropout": 0.2,
    "train.label_smoothing": 0.0,
    "train.ema_decay": 0.998,
    "train.steps": 4000,
    "train.decay_steps": 4000,
    "train.warmup_steps": 300,
    "train.save_every": 500,
    "train.evaluate_every": 1000,
    "train.patience_metric": "loss",
    "evaluate.dev_sentences": 100,
}
MODEL = "gnmt"
SHOWN = ("before", "after", "cross_validated", "oracle")


def call(*arguments: str) -> str:
    """Runs the toolkit's command; its standard output."""
    command = [sys.executable, "-m", "seq2seq_jax.main", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def spell(line: str) -> str:
    """ "£ o r £ t h e £" to "or the"."""
    return " ".join("".join(line.split()).replace("£", " ").split())


def write_text(data: Path, out: Path) -> None:
    """Leaves train and dev as text, and the lists with their hypotheses as text, in `out`."""
    for split, ending in (("train", ""), ("dev", ".0-999")):
        for side in ("orig", "norm"):
            lines = (data / f"{split}.{side}{ending}").read_text(encoding="utf-8").split("\n")[:-1]
            (out / f"{split}.{side}").write_text("".join(spell(line) + "\n" for line in lines), encoding="utf-8")
    for path in sorted(data.glob("run*.nbest.0-999")):
        lines = []
        for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
            number, text, *rest = line.split("|||")
            lines.append("|||".join([number, f" {spell(text)} ", *rest]) + "\n")
        (out / path.name.removesuffix(".0-999")).write_text("".join(lines), encoding="utf-8")


def keep_totals(path: Path, to: Path) -> None:
    """The lists of `path` without features, so that their totals are the only one."""
    lines = []
    for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
        number, text, _, total = line.split("|||")
        lines.append("|||".join([number, text, " ", total]) + "\n")
    to.write_text("".join(lines), encoding="utf-8")


def rescore(lists: Path, out: Path, model: Path | None, name: str) -> dict:
    """The report of a rescoring."""
    source = [f"--source={out / 'dev.orig'}"] if model else []
    files = [f"--input={lists}", f"--reference={out / 'dev.norm'}", f"--output={out / name}"]
    told = call("--mode=rescore", f"--models={model or ''}", "--metric=wer", "--json", *files, *source)
    return json.loads(told)


def translate(model: Path, out: Path) -> dict[str, float]:
    """WER of the model's own translations, and of leaving the text as it is."""
    from seq2seq_jax.evaluate.corpus_metric import make_metric

    found = out / "dev.translated"
    if not found.exists():
        call(f"--workdir={model}", "--mode=translate", f"--input={out / 'dev.orig'}", f"--output={found}")
    metric, scores = make_metric("wer"), {}
    references = (out / "dev.norm").read_text(encoding="utf-8").split("\n")[:-1]
    for name, path in (("the text as it is", out / "dev.orig"), ("the model's own translations", found)):
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        scores[name] = float(metric.score(metric.count(lines, references).sum(axis=0)))
    return scores


def main() -> None:
    """Trains what is not trained yet and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/nbest_rescoring"))
    parser.add_argument("--lists", default="run1,run9,run17")
    given = parser.parse_args()
    out = given.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    write_text(given.data.absolute(), out)
    model = out / MODEL
    if not (model / "results.json").exists():
        keys = [f"--config.{key}={value}" for key, value in TRAINING.items()]
        call("--config=configs/gnmt.py", f"--workdir={model}", f"--config.data.train={out / 'train'}", *keys)
    for name, score in translate(model, out).items():
        print(f"{name:34s} WER {score:5.2f}", flush=True)
    table: dict[str, dict[str, dict]] = defaultdict(dict)
    for name in given.lists.split(","):
        lists = out / f"{name}.nbest"
        keep_totals(lists, out / f"{name}.totals")
        kinds = {
            "own features": (lists, None),
            "own features and the model": (lists, model),
            "total and the model": (out / f"{name}.totals", model),
        }
        for kind, (path, used) in kinds.items():
            found = rescore(path, out, used, f"{name}.{kind.replace(' ', '_')}")
            table[name][kind] = found
            scores = "  ".join(f"{key} {found['scores'][key]:5.2f}" for key in SHOWN)
            print(f"{name:6s} {kind:28s} {scores}", flush=True)
    (out / "table.json").write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
