"""What another corpus, and training on the reward itself, are worth on Multi30k English to German.

Six trainings of one model (`configs/gnmt.py:multi30k`), each resumable, and paired bootstrap tests between them:

    tatoeba        Tatoeba's short sentences, other than the test's; the start of `tuned`
    alone          Multi30k alone
    tuned          Multi30k from the parameters and vocabulary of `tatoeba`, the same steps as `alone`
    long           Multi30k alone, 4,000 steps: the trained start of the next two
    likelihood     600 more steps of likelihood: what `minimum_risk` is compared with
    minimum_risk   600 more steps of minimum risk training on sentence BLEU, all else alike

    python experiments/fine_tuning/run.py --multi30k=DIR --tatoeba=FILE.tsv [--out=runs/fine_tuning] [--only=NAME,...]

`DIR` holds train, val and test_2016_flickr (.en and .de); `FILE.tsv` has English, tab, German, such as the first two
columns of deu.txt of manythings.org/anki.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

STEPS = {"tatoeba": 2000, "alone": 1000, "tuned": 1000, "long": 4000, "likelihood": 600, "minimum_risk": 600}
PAIRS = (("alone", "tuned"), ("long", "minimum_risk"), ("likelihood", "minimum_risk"))


def plan_stages(multi30k: Path, tatoeba: Path, out: Path) -> dict[str, list[str]]:
    """Name of every stage → its arguments."""
    common = [
        "--config=configs/gnmt.py:multi30k",
        f"--config.data.dev={multi30k}/val",
        f"--config.data.test={multi30k}/test_2016_flickr",
        "--config.train.evaluate_every=500",
        "--config.evaluate.dev_sentences=300",
    ]
    here = [*common, f"--config.data.train={multi30k}/train"]
    alone = [*here, "--config.train.decay_steps=1000", "--config.train.warmup_steps=200"]
    more = [
        *here,
        f"--init_from={out}/long",
        "--config.data.tokens_per_batch=1024",
        "--config.data.max_shapes=4",
        "--config.data.max_source_len=40",
        "--config.data.max_target_len=40",
        "--config.model.dropout=0.1",
        "--config.train.learning_rate=0.0004",
        "--config.train.schedule=constant",
        "--config.train.warmup_steps=20",
        "--config.train.save_every=100",
        "--config.train.evaluate_every=100",
        "--config.evaluate.dev_sentences=0",
    ]
    risk = [
        "--config.sequence.objective=minimum_risk",
        "--config.sequence.reward=bleu",
        "--config.sequence.proposals=nbest",
        "--config.sequence.candidates=6",
        "--config.sequence.sharpness=1.0",
        "--config.sequence.reference=False",
        "--config.sequence.likelihood=0.002",
    ]
    first = ["--config.train.decay_steps=2400", "--config.train.warmup_steps=200", "--config.model.dropout=0.2"]
    return {
        "tatoeba": [*common, f"--config.data.train={tatoeba}", *first],
        "alone": alone,
        "tuned": [*alone, f"--init_from={out}/tatoeba"],
        "long": here,
        "likelihood": more,
        "minimum_risk": [*more, *risk],
    }


def call(*arguments: str) -> str:
    """Runs the toolkit's command; its standard output."""
    command = [sys.executable, "-m", "seq2seq_jax.main", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def compare(out: Path, first: str, second: str) -> dict:
    """Scores of two runs and the paired bootstrap between them."""
    report = out / f"{first}-{second}.html"
    runs = [f"--workdir={out / first}", f"--against={out / second}"]
    told = call("--mode=compare", *runs, f"--output={report}", "--json")
    return json.loads(told)


def main() -> None:
    """Trains what is not trained yet and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--multi30k", type=Path, required=True)
    parser.add_argument("--tatoeba", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/fine_tuning"))
    parser.add_argument("--only", default=",".join(STEPS))
    given = parser.parse_args()
    out = given.out.absolute()
    stages = plan_stages(given.multi30k.absolute(), given.tatoeba.absolute(), out)
    for name in given.only.split(","):
        if not (out / name / "results.json").exists():
            print(f"== {name}", flush=True)
            call(*stages[name], f"--workdir={out / name}", f"--config.train.steps={STEPS[name]}")
        scores = json.loads((out / name / "results.json").read_text())["test"]
        print(f"{name:14s} BLEU {scores['bleu']:5.2f}  chrF {scores['chrf']:5.2f}  step {scores['step']}", flush=True)
    for first, second in PAIRS:
        if all((out / name / "results.json").exists() for name in (first, second)):
            for row in compare(out, first, second)["scores"]:
                told = " and ".join(f"{system['score']:.2f} ± {system['interval']:.2f}" for system in row["systems"])
                print(f"{first} and {second}: {row['name']} {told}, p = {row['p_value']:.4f}", flush=True)


if __name__ == "__main__":
    main()
