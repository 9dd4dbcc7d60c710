"""A noisy channel of Transformers (Yee et al. 2019, arXiv 1908.05731) on Multi30k, English to German.

Three trainings, each resumable: `direct` p(y|x), `channel` p(x|y) of the other direction, and `language` p(y), a GPT of
the German side with the vocabulary of `direct`. The lists that `direct` finds of dev and test are rescored by what the
others say, with weights tuned on dev; beside that, `language` takes part in the search itself (shallow fusion).

    python experiments/noisy_channel/run.py --train=PREFIX --dev=PREFIX --test=PREFIX [--out=runs/noisy_channel]

Files are PREFIX.en and PREFIX.de, lower-cased and tokenised for scores that compare with papers. A training takes about
an hour of one core; the scores are BLEU of words between blanks.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

LANGUAGE = {
    "data.tokens_per_batch": 2048,
    "model.layers": 4,
    "model.feed_forward": 256,
    "model.dropout": 0.2,
    "train.steps": 3000,
    "train.decay_steps": 3000,
    "train.evaluate_every": 500,
}
FEATURES = {
    "direct": ([], []),
    "direct and language": (["language"], []),
    "direct and channel": ([], ["channel"]),
    "noisy channel": (["language"], ["channel"]),
}
"""What is rescored with: models of --models, and of --channel."""

BEAM = 20
FUSION = (0.05, 0.1, 0.2, 0.3)


def call(*arguments: str) -> str:
    """Runs the toolkit's command; its standard output."""
    command = [sys.executable, "-m", "seq2seq_jax.main", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def spell(keys: dict[str, object]) -> list[str]:
    """Keys of a config as flags."""
    return [f"--config.{key}={value}" for key, value in keys.items()]


def plan_runs(given: argparse.Namespace) -> dict[str, list[str]]:
    """Name of every run → its arguments."""
    texts = [f"--config.data.{name}={getattr(given, name).absolute()}" for name in ("train", "dev", "test")]
    translation = ["--config=configs/transformer.py:multi30k_cpu", *texts]
    vocab = f"--config.vocab.file={given.out / 'direct' / 'vocab' / 'vocab.json'}"
    return {
        "direct": translation,
        "channel": [*translation, "--config.data.source=de", "--config.data.target=en"],
        "language": ["--config=configs/gpt.py:language_model", *texts, *spell(LANGUAGE), vocab],
    }


def train(given: argparse.Namespace) -> None:
    """Trains what is not trained yet."""
    for name, arguments in plan_runs(given).items():
        if not (given.out / name / "results.json").exists():
            print(f"== {name}", flush=True)
            call(*arguments, f"--workdir={given.out / name}")
        print(f"{name:10s} {tell(given.out / name)}", flush=True)


def tell(run: Path) -> str:
    """What a training came to: the step that is used, dev perplexity there, and BLEU of test."""
    test = json.loads((run / "results.json").read_text(encoding="utf-8"))["test"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    dev = {line["step"]: line["dev_perplexity"] for line in lines if "dev_perplexity" in line}
    bleu = f"  BLEU {test['bleu']:.2f}" if "bleu" in test else ""
    return f"step {test['step']}  dev perplexity {dev.get(test['step'], float('nan')):.3f}{bleu}"


def score(texts: Path, references: Path) -> float:
    """BLEU of words between blanks: what papers call tokenised."""
    import sacrebleu

    lines = [path.read_text(encoding="utf-8").split("\n")[:-1] for path in (texts, references)]
    return sacrebleu.corpus_bleu(lines[0], [lines[1]], tokenize="none", force=True).score


def search(given: argparse.Namespace, split: str, to: Path, *more: str) -> Path:
    """What `direct` finds of a split, written once."""
    if not to.exists():
        flags = [f"--input={getattr(given, split)}.en", f"--output={to}", *more]
        call(f"--workdir={given.out / 'direct'}", "--mode=translate", *flags)
    return to


def rescore(given: argparse.Namespace, name: str, models: list[str], channel: list[str]) -> dict[str, float]:
    """BLEU of dev (tuned on it) and of test under the features of one line of `FEATURES`."""
    lists = {
        split: search(
            given, split, given.out / f"{split}.nbest", f"--nbest={BEAM}", f"--config.decode.beam_size={BEAM}"
        )
        for split in ("dev", "test")
    }
    found = {}
    for split, path in lists.items():
        new = given.out / f"{split}.{name.replace(' ', '_')}"
        flags = [f"--input={path}", f"--output={new}", f"--source={getattr(given, split)}.en", "--json"]
        flags.append("--models=" + ",".join(str(given.out / model) for model in models))
        flags += [f"--channel={given.out / model}" for model in channel]
        flags.append(f"--reference={getattr(given, split)}.de")
        if split == "test":
            flags.append(f"--weights={given.out / 'dev'}.{name.replace(' ', '_')}.weights.json")
        report = json.loads(call("--mode=rescore", *flags))
        found[split] = score(Path(f"{new}.1best"), Path(f"{getattr(given, split)}.de"))
        found |= {f"{split} {key}": value for key, value in report["scores"].items()}
        found |= {f"weight {key}": value for key, value in report["weights"].items()}
    return found


def main() -> None:
    """Trains what is not trained yet and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("train", "dev", "test"):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="PREFIX")
    parser.add_argument("--out", type=Path, default=Path("runs/noisy_channel"))
    given = parser.parse_args()
    given.out = given.out.absolute()
    train(given)
    table: dict[str, dict] = {}
    for name, (models, channel) in FEATURES.items():
        table[name] = rescore(given, name, models, channel)
        print(f"{name:24s} dev {table[name]['dev']:5.2f}  test {table[name]['test']:5.2f}", flush=True)
    for weight in FUSION:
        name = f"fusion {weight}"
        keys = {"decode.language_model": given.out / "language", "decode.language_model_weight": weight}
        table[name] = {
            split: score(
                search(given, split, given.out / f"{split}.{name.replace(' ', '_')}", *spell(keys)),
                Path(f"{getattr(given, split)}.de"),
            )
            for split in ("dev", "test")
        }
        print(f"{name:24s} dev {table[name]['dev']:5.2f}  test {table[name]['test']:5.2f}", flush=True)
    (given.out / "table.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
