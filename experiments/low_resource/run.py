"""What text of one language is worth where there are few pairs: an encoder that starts from BERT, on Multi30k.

2,000 pairs of English and German, and the English of all 29,000. For every seed three trainings, each resumable:

    bert      a masked language model of the English text, of the encoder's sizes (`configs/bert.py:multi30k_cpu`)
    scratch   a Transformer from the 2,000 pairs alone (`configs/transformer.py:multi30k_cpu`)
    started   the same from the same pairs, whose encoder and vectors start as what `bert` has learned

    python experiments/low_resource/run.py --tok=DIR [--out=runs/low_resource] [--seeds=1] [--pairs=2000]

`DIR` holds train, val and test_2016_flickr, tokenised and lower-cased (`train.lc.norm.tok.en` and so on). The
vocabulary is that of the pairs, for all runs. `scratch` and `started` differ in nothing but the start: as many updates,
the best of their checkpoints by BLEU on dev. BLEU is of tokenised lower-case text, without another tokenisation. Writes
results.csv.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
from pathlib import Path

import sacrebleu

from seq2seq_jax.data.vocab_training import train_vocabs

SPLITS = {"train": "train", "dev": "val", "test": "test_2016_flickr"}
VOCABULARY = 3000
COLUMNS = ("seed", "run", "bleu", "chrf", "dev_bleu", "step", "steps", "wall_seconds")


def read(tok: Path, split: str, language: str) -> list[str]:
    """The sentences of one side of a split."""
    path = tok / f"{SPLITS[split]}.lc.norm.tok.{language}"
    return path.read_text(encoding="utf-8").splitlines()


def write(path: Path, lines: list[str]) -> None:
    """One sentence a line."""
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def make_data(tok: Path, out: Path, pairs: int) -> None:
    """The files of all runs: pairs, dev, test, the English text, and the vocabulary of the pairs."""
    out.mkdir(parents=True, exist_ok=True)
    sides = {language: read(tok, "train", language) for language in ("en", "de")}
    for language, lines in sides.items():
        write(out / f"pairs.{language}", lines[:pairs])
        for split in ("dev", "test"):
            write(out / f"{split}.{language}", read(tok, split, language))
    write(out / "text.en", sides["en"])
    few = (sides["en"][:pairs], sides["de"][:pairs])
    if not (out / "vocab" / "vocab.json").exists():
        train_vocabs(*few, size=VOCABULARY, model="bpe", normalization="identity").save(out / "vocab")


def plan_runs(out: Path, seed: int, *, bert_steps: int, steps: int, more: list[str]) -> dict[str, list[str]]:
    """Name of every run of a seed → its arguments."""
    data, here = out / "data", out / f"seed-{seed}"
    common = [
        f"--config.data.dev={data}/dev",
        f"--config.data.test={data}/test",
        f"--config.vocab.file={data}/vocab/vocab.json",
        "--config.vocab.normalization=identity",
        "--config.data.max_source_len=48",
        "--config.data.max_target_len=48",
        f"--config.train.seed={seed}",
        *more,
    ]
    text = [
        "--config=configs/bert.py:multi30k_cpu",
        f"--config.data.train={data}/text",
        "--config.data.target=en",
        f"--config.train.steps={bert_steps}",
        f"--config.train.decay_steps={bert_steps}",
    ]
    translation = [
        "--config=configs/transformer.py:multi30k_cpu",
        f"--config.data.train={data}/pairs",
        "--config.data.tokens_per_batch=1024",
        "--config.model.dropout=0.2",
        f"--config.train.steps={steps}",
        f"--config.train.decay_steps={steps}",
        "--config.train.warmup_steps=200",
        "--config.train.evaluate_every=400",
        "--config.train.save_every=400",
        "--config.train.keep_last=2",
        "--config.evaluate.samples=0",
        "--config.evaluate.dev_sentences=300",
    ]
    return {
        "bert": [*text, *common],
        "scratch": [*translation, *common],
        "started": [*translation, *common, f"--init_from={here}/bert"],
    }


def train(folder: Path, arguments: list[str]) -> None:
    """Trains what is not trained yet."""
    if not (folder / "results.json").exists():
        command = [sys.executable, "-m", "seq2seq_jax.main", *arguments, f"--workdir={folder}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def score(folder: Path) -> dict[str, float]:
    """BLEU and chrF of a run's translations of test; of a masked language model its perplexity."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    found = {"step": results["test"]["step"], "steps": results["steps"], "wall_seconds": results["wall_seconds"]}
    if "perplexity" in results["test"]:
        print(f"{folder.name}: perplexity {results['test']['perplexity']:.2f} of hidden tokens", flush=True)
        return found
    sides = [
        (folder / "outputs" / f"test.{name}.txt").read_text(encoding="utf-8").splitlines()
        for name in ("hypotheses", "references")
    ]
    bleu = sacrebleu.corpus_bleu(sides[0], [sides[1]], tokenize="none").score
    chrf = sacrebleu.corpus_chrf(sides[0], [sides[1]]).score
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    dev = max(line["dev_bleu"] for line in lines if "dev_bleu" in line)
    return {**found, "bleu": round(bleu, 2), "chrf": round(chrf, 2), "dev_bleu": round(dev, 2)}


def main() -> None:
    """Trains what is not trained yet, writes results.csv and prints the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tok", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/low_resource"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--bert_steps", type=int, default=3000)
    parser.add_argument("--steps", type=int, default=2000)
    given, more = parser.parse_known_args()  # what is left goes to all runs: --config.parallel.data=1
    out = given.out.absolute()
    make_data(given.tok, out / "data", given.pairs)
    rows: list[dict[str, object]] = []
    for seed in range(given.seeds):
        for name, arguments in plan_runs(out, seed, bert_steps=given.bert_steps, steps=given.steps, more=more).items():
            train(out / f"seed-{seed}" / name, arguments)
            rows.append({"seed": seed, "run": name, **score(out / f"seed-{seed}" / name)})
            with (out / "results.csv").open("w", newline="", encoding="utf-8") as file:
                table = csv.DictWriter(file, COLUMNS)
                table.writeheader()
                table.writerows(rows)
    for name in ("scratch", "started"):
        values = [float(str(row["bleu"])) for row in rows if row["run"] == name]
        print(f"{name}: BLEU {statistics.mean(values):.2f} ({', '.join(f'{value:.2f}' for value in values)})")


if __name__ == "__main__":
    main()
