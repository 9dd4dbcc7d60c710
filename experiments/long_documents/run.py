"""Does a masked language model gain by reading whole documents, and what does Linformer's attention lose there?

Documents are consecutive sentences of news (newstest of WMT), so many as fit into --length pieces, one a line. One
small BERT (`models/bert.py`) is trained a few times, all else alike, by as many steps of as many slots:

    sentences        full attention, every sentence a text of its own
    documents        full attention over whole documents
    linformer_64 ... the same with keys and values mixed down to 64 (128, 256), Wang et al. 2020 (2006.04768)

Each is measured on the same held-out text (newstest2013), as documents and cut into its sentences.

    python experiments/long_documents/run.py --news=DIR [--out=runs/long_documents] [--only=NAME,...]
    python experiments/long_documents/run.py --news=DIR --length=4096 --steps=20000 --config.model.features=512 ...

`DIR` holds newstest2008 to newstest2018 in English, in folders of any names (`newstest2008.en`); flags of a config go
to every training. What is trained already is not trained again, what was interrupted goes on. Rows go to results.csv
beside this file (or --results) as they are made.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

HELD_OUT = "newstest2013"
TRAINED_ON = tuple(f"newstest{year}" for year in (2008, 2009, 2010, 2011, 2012, 2015, 2016, 2017, 2018))
RANKS = (64, 128, 256)
NAMES = ("sentences", "documents", *(f"linformer_{rank}" for rank in RANKS))
COLUMNS = (
    "name", "length", "steps", "source_slots", "parameters", "documents_loss", "documents_perplexity",
    "documents_accuracy", "sentences_loss", "sentences_perplexity", "sentences_accuracy", "cpu_seconds",
)  # fmt: skip


def read_news(folder: Path, name: str) -> list[str]:
    """The English sentences of one test set, in their order."""
    found = sorted(folder.rglob(f"{name}.en"))
    if not found:
        sys.exit(f"error: {folder}: has no {name}.en, in no folder of it; --news must be where WMT's news tests are")
    lines = found[0].read_text(encoding="utf-8").split("\n")
    return [line.strip() for line in lines if line.strip()]


def join_sentences(sentences: Sequence[str], sizes: Sequence[int], room: int) -> Iterator[str]:
    """Documents, a line each: consecutive sentences as long as they fit.

    Args:
        sentences: in their order.
        sizes: pieces of each.
        room: pieces of a document, at most; a longer sentence stands alone.

    >>> list(join_sentences(["a b", "c", "d e f", "g"], [2, 1, 3, 1], 4))
    ['a b c', 'd e f g']
    """
    document, used = [], 0
    for sentence, size in zip(sentences, sizes, strict=True):
        if document and used + size > room:
            yield " ".join(document)
            document, used = [], 0
        document.append(sentence)
        used += size
    if document:
        yield " ".join(document)


def write_texts(news: Path, out: Path, *, length: int, vocab_size: int) -> None:
    """Writes the vocabulary and the texts as sentences and as documents, where they are not there yet."""
    from seq2seq_jax.data.vocab import Vocab
    from seq2seq_jax.data.vocab_training import train_vocab

    if (out / "texts" / "dev_documents.en").exists():
        return
    train = {name: read_news(news, name) for name in TRAINED_ON}
    held_out = {HELD_OUT: read_news(news, HELD_OUT)}
    texts = out / "texts"
    if not (texts / "vocab.json").exists():
        train_vocab([line for lines in train.values() for line in lines], size=vocab_size).save(texts, "vocab")
    vocab = Vocab.load(texts, "vocab")
    for split, parts in (("train", train), ("dev", held_out)):
        documents: list[str] = []
        for lines in parts.values():  # no document goes from one year into the next
            sizes = [len(ids) for ids in vocab.encode_many(lines)]
            documents += join_sentences(lines, sizes, length - 2)  # eos, and one in case pieces meet another way
        write_lines(texts / f"{split}_sentences.en", (line for lines in parts.values() for line in lines))
        write_lines(texts / f"{split}_documents.en", documents)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Writes a file that is there whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    part.rename(path)


def list_flags(name: str, out: Path, args: argparse.Namespace) -> list[str]:
    """The command line of one training."""
    texts, kind = out / "texts", "sentences" if name == "sentences" else "documents"
    other = "documents" if name == "sentences" else "sentences"
    flags = {
        "data.source": "en",
        "data.target": "en",
        "data.train": texts / f"train_{kind}",
        "data.dev": texts / f"dev_{kind}",
        "data.test": texts / f"dev_{other}",  # the same text in the other form
        "data.max_source_len": args.length,
        "data.max_target_len": args.length,
        "data.tokens_per_batch": 2 * args.batch * args.length,
        "data.rows_multiple": min(8, args.batch),
        "data.max_shapes": 1 if kind == "documents" else 6,  # documents are of about one length
        "data.pack": False,
        "vocab.file": texts / "vocab.json",
        "model.features": args.features,
        "model.layers": args.layers,
        "model.heads": args.heads,
        "model.feed_forward": 4 * args.features,
        "model.norm": "pre",
        "model.positions": "sinusoidal",
        "model.max_positions": args.length,
        "model.linformer": int(name.rpartition("_")[2]) if name.startswith("linformer") else 0,
        "model.linformer_share": "kv",
        "model.dropout": 0.0,
        "model.init_scale": 0.0,
        "train.steps": args.steps,
        "train.decay_steps": args.steps,
        "train.warmup_steps": min(400, max(1, args.steps // 10)),
        "train.learning_rate": args.learning_rate,
        "train.label_smoothing": 0.0,
        "train.patience_metric": "loss",
        "train.log_every": max(1, args.steps // 20),
        "train.save_every": max(1, args.steps // 4),
        "train.evaluate_every": args.steps,
    }
    given = [f"--config.{key}={value}" for key, value in flags.items()]
    return [f"--config={ROOT}/configs/bert.py", f"--workdir={out / name}", *given, *args.more]


def train(name: str, out: Path, args: argparse.Namespace) -> dict[str, object]:
    """Trains one, unless it is trained; its row of the table."""
    done = out / name / "results.json"
    if not done.exists():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "seq2seq_jax.main", *list_flags(name, out, args)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        if subprocess.run(command, check=False, stdout=subprocess.DEVNULL, env=environment).returncode:
            sys.exit(f"error: the training of {name} failed; its message stands above")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        (out / name / "cpu_seconds.json").write_text(json.dumps(seconds), encoding="utf-8")
    return read_row(name, out, args)


def read_row(name: str, out: Path, args: argparse.Namespace) -> dict[str, object]:
    """What a finished training comes to. Both forms of the text are measured with the parameters of the last step."""
    results = json.loads((out / name / "results.json").read_text(encoding="utf-8"))
    lines = (out / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    logged = [json.loads(line) for line in lines]
    dev = [line for line in logged if line.get("event") == "dev"][-1]
    as_trained = {key: dev[f"dev_{key}"] for key in ("loss", "perplexity", "accuracy")}
    forms = {"sentences": as_trained, "documents": results["test"]}
    if name != "sentences":
        forms = {"documents": as_trained, "sentences": results["test"]}
    spent = out / name / "cpu_seconds.json"
    row: dict[str, object] = {"name": name, "length": args.length, "steps": results["steps"]}
    row |= {"parameters": results["parameters"], "source_slots": args.steps * args.batch * args.length}
    row["cpu_seconds"] = f"{json.loads(spent.read_text(encoding='utf-8')):.0f}" if spent.exists() else ""
    for form, figures in forms.items():
        row |= {f"{form}_{key}": f"{figures[key]:.4f}" for key in ("loss", "perplexity", "accuracy")}
    return row


def record(path: Path, row: dict[str, object]) -> None:
    """Puts a row into the table, in the place of one of the same name, length and steps, and prints it."""
    known: dict[tuple[str, ...], dict[str, object]] = {}
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            known = {(each["name"], each["length"], each["steps"]): dict(each) for each in csv.DictReader(file)}
    known[str(row["name"]), str(row["length"]), str(row["steps"])] = row
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(known.values())
    print(
        f"{row['name']:14s} masked perplexity over documents {float(str(row['documents_perplexity'])):8.1f}, "
        f"over sentences {float(str(row['sentences_perplexity'])):8.1f}  ({row['cpu_seconds'] or '?'} s of CPU)",
        flush=True,
    )


def main() -> None:
    """Trains what is not trained yet and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--news", type=Path, required=True, help="folder of WMT's news tests")
    parser.add_argument("--out", type=Path, default=Path("runs/long_documents"))
    parser.add_argument("--results", type=Path, default=HERE / "results.csv")
    parser.add_argument("--only", default=",".join(NAMES), help=f"some of {', '.join(NAMES)}")
    parser.add_argument("--length", type=int, default=2048, help="pieces of a document, at most")
    parser.add_argument("--batch", type=int, default=1, help="documents in a batch; of sentences as many slots")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--learning_rate", type=float, default=0.002)
    parser.add_argument("--vocab_size", type=int, default=4000)
    parser.add_argument("--features", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=2)
    args, args.more = parser.parse_known_args()
    if wrong := [flag for flag in args.more if not flag.startswith("--config.")]:
        parser.error(f"flags must be those above or of a config (--config.SECTION.KEY=VALUE), but one is {wrong[0]!r}")
    if wrong := [name for name in args.only.split(",") if name not in NAMES]:
        parser.error(f"--only must be of {', '.join(NAMES)}, but has {wrong[0]!r}")
    out = args.out.absolute()
    write_texts(args.news, out, length=args.length, vocab_size=args.vocab_size)
    for name in args.only.split(","):
        record(args.results, train(name, out, args))


if __name__ == "__main__":
    main()
