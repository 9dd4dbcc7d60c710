"""Spoken digits of speakers that nothing was trained on: CTC beside MFCCs with a library's SVM and nearest neighbours.

    python experiments/speech/manifests.py digits FSDD DIGITS --speakers george,jackson,lucas,nicolas
    python experiments/speech/manifests.py heard FSDD DIGITS --speakers george,jackson,lucas,nicolas
    python experiments/speech/manifests.py spoken DIGITS 4000
    python experiments/speech/digits.py DIGITS OUT [--speakers george,lucas] [--config.train.steps=1000 ...]

For every speaker of the Free Spoken Digit Dataset in turn: a small listener with the ten words as its labels, with
`configs/ctc.py:an4`'s front end, SpecAugment and more speeds, is trained on the other speakers' recordings and, where
their lists have been made, on the same as another microphone may have heard them (heard.tsv) and on digits of a
synthesiser in many voices (spoken.tsv). It recognises his 500 recordings after the last step: nothing is chosen by
them. 60 recordings of the training are scored besides, to see that it learns. An answer counts where the text is the
digit's name.

The baseline is given the same recordings: the mean and deviation over time of 20 MFCCs and their deltas (librosa),
standardised, and scikit-learn's SVC (RBF kernel, the best of C = 1, 10 and 100 on a held-out speaker of the training)
and 1- or 5-nearest neighbours, whichever is better there. `svm_more` and `nearest_more` are given both lists, too.

Needs `pip install 'seq2seq_jax[speech]'`; for the baseline, scikit-learn and librosa (without them it is left out).
Writes OUT/results.json; what is there already is not made again.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
RECIPE = (
    "--config=configs/ctc.py:an4", "--config.audio.augment=own", "--config.audio.rate=8000", "--config.audio.hop=80",
    "--config.audio.window=200", "--config.audio.fft=256", "--config.audio.mels=40", "--config.audio.freq_width=10",
    "--config.audio.time_width=10",
    "--config.audio.speeds=0.8,0.84,0.88,0.92,0.96,1.0,1.05,1.1,1.15,1.2,1.25,1.3", "--config.model.listener_layers=2",
    "--config.model.listener_features=128", "--config.model.channels=16", "--config.model.dropout=0.3",
    "--config.data.tokens_per_batch=3072", "--config.data.max_source_len=110", "--config.data.max_shapes=3",
    "--config.train.steps=2000", "--config.train.decay_steps=2000", "--config.train.warmup_steps=100",
    "--config.train.learning_rate=0.003", "--config.train.evaluate_every=2000", "--config.train.save_every=1000",
    "--config.evaluate.samples=0", "--config.decode.method=greedy", "--config.vocab.kind=word",
)  # fmt: skip
WATCHED = 60
MFCCS = 20


def read_manifest(path: Path) -> tuple[list[Path], list[str]]:
    """Audio files and texts of a manifest that `manifests.py` wrote."""
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    return [(path.parent / row[0]).resolve() for row in rows], [row[1] for row in rows]


def read_more(folder: Path, speaker: str) -> tuple[list[Path], list[str]]:
    """What is trained on besides, where it has been made: the others' recordings as heard elsewhere, and the spoken."""
    lists = [read_manifest(path) for name in ("heard", "spoken") if (path := folder / f"{name}.tsv").exists()]
    rows = [row for each in lists for row in zip(*each, strict=True) if f"_{speaker}_" not in row[0].name]
    return [row[0] for row in rows], [row[1] for row in rows]


def write_training(folder: Path, out: Path, speaker: str) -> list[str]:
    """Writes what a model of the other speakers is trained on, and some of it to watch; returns the flags for them."""
    recordings, more = read_manifest(folder / f"{speaker}.train.tsv"), read_more(folder, speaker)
    rows = [f"{audio}\t{text}\n" for part in (recordings, more) for audio, text in zip(*part, strict=True)]
    watched = rows[: len(recordings[0]) : max(1, len(recordings[0]) // WATCHED)]
    flags = []
    for split, chosen in (("train", rows), ("dev", watched)):
        path = out.resolve() / f"{speaker}.{split}.tsv"
        path.write_text("audio\ttext\n" + "".join(chosen), encoding="utf-8")
        flags.append(f"--config.data.{split}={path}")
    return flags


def recognise(folder: Path, out: Path, speaker: str, more: list[str]) -> float:
    """The share of the speaker's recordings, in percent, that a model of the others recognises."""
    root = out.resolve() / speaker
    if not (root / "results.json").exists():
        data = write_training(folder, out, speaker)
        data += [f"--config.data.test={folder.resolve() / f'{speaker}.test.tsv'}", f"--workdir={root}"]
        subprocess.run([sys.executable, "-m", "seq2seq_jax.main", *RECIPE, *data, *more], check=True, cwd=ROOT)
    told, wanted = (
        (root / "outputs" / f"test.{name}.txt").read_text(encoding="utf-8").splitlines()
        for name in ("hypotheses", "references")
    )
    return 100.0 * float(np.mean([a == b for a, b in zip(told, wanted, strict=True)]))


def measure_baseline(
    train: tuple[list[Path], list[str]], test: tuple[list[Path], list[str]], held_out: str
) -> dict[str, float]:
    """The same of MFCCs with an SVM and with nearest neighbours, chosen on a speaker of the training."""
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    x, y = np.stack([describe(path) for path in train[0]]), np.array(train[1])
    held = np.array([f"_{held_out}_" in path.name for path in train[0]])
    found = {}
    for kind, makers in {
        "svm": [lambda c=c: SVC(C=c) for c in (1.0, 10.0, 100.0)],
        "nearest": [lambda k=k: KNeighborsClassifier(k) for k in (1, 5)],
    }.items():
        scores = [
            make_pipeline(StandardScaler(), make()).fit(x[~held], y[~held]).score(x[held], y[held]) for make in makers
        ]
        best = make_pipeline(StandardScaler(), makers[int(np.argmax(scores))]()).fit(x, y)
        found[kind] = 100.0 * float(best.score(np.stack([describe(path) for path in test[0]]), np.array(test[1])))
    return found


def measure_baselines(folder: Path, speaker: str, speakers: list[str], own: dict[str, float]) -> dict[str, float]:
    """Of the baselines without and with what is made besides, those that `own` has not."""
    train, test = (read_manifest(folder / f"{speaker}.{part}.tsv") for part in ("train", "test"))
    extra = read_more(folder, speaker)
    held_out = next(name for name in speakers if name != speaker)
    found = {} if "svm" in own else measure_baseline(train, test, held_out)
    if extra[0] and "svm_more" not in own:
        more = measure_baseline((train[0] + extra[0], train[1] + extra[1]), test, held_out)
        found |= {f"{kind}_more": score for kind, score in more.items()}
    return found


@functools.cache
def describe(path: Path) -> np.ndarray:
    """Mean and deviation over time of MFCCs and their deltas, `[4 * MFCCS]`."""
    import librosa

    samples, rate = librosa.load(path, sr=None)
    samples = np.pad(samples, (0, max(0, rate // 4 - len(samples))))
    mfcc = librosa.feature.mfcc(y=samples, sr=rate, n_mfcc=MFCCS, n_fft=256, hop_length=80, n_mels=40)
    both = np.concatenate([mfcc, librosa.feature.delta(mfcc)])
    return np.concatenate([both.mean(axis=1), both.std(axis=1)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the manifests")
    parser.add_argument("out", type=Path, help="of the runs and results.json")
    parser.add_argument("--speakers", default="", help="separated by commas; all by default")
    parser.add_argument("--baseline_only", action="store_true")
    args, more = parser.parse_known_args()
    everyone = sorted(path.name.split(".")[0] for path in args.folder.glob("*.test.tsv"))
    if not everyone:
        print(f"{args.folder}: has no SPEAKER.test.tsv; make them by manifests.py digits.", file=sys.stderr)
        return 2
    place = args.out / "results.json"
    args.out.mkdir(parents=True, exist_ok=True)
    results = json.loads(place.read_text()) if place.exists() else {}
    for speaker in args.speakers.split(",") if args.speakers else everyone:
        own = results.setdefault(speaker, {})
        try:
            own |= measure_baselines(args.folder, speaker, everyone, own)
        except ImportError as error:
            print(f"no baseline: {error}", file=sys.stderr)
        if not args.baseline_only and "ctc" not in own:
            own["ctc"] = recognise(args.folder, args.out, speaker, more)
        place.write_text(json.dumps(results, indent=1) + "\n")
    for name in ("ctc", "svm", "nearest", "svm_more", "nearest_more"):
        scores = {speaker: own[name] for speaker, own in results.items() if name in own}
        if scores:
            told = "  ".join(f"{speaker} {score:.1f}" for speaker, score in scores.items())
            print(f"{name:14s} {told}  mean {np.mean(list(scores.values())):.1f}  worst {min(scores.values()):.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
