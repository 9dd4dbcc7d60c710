"""Spoken digits of speakers that nothing was trained on: CTC beside MFCCs with a library's SVM and nearest neighbours.

    python experiments/speech/manifests.py digits FSDD DIGITS
    python experiments/speech/digits.py DIGITS OUT [--speakers george,lucas] [--config.train.steps=600 ...]

For every speaker of the Free Spoken Digit Dataset in turn: `configs/ctc.py:an4`'s front end, SpecAugment and speeds,
smaller, with the ten words as its labels, is trained on the other speakers (60 of whose recordings choose the
checkpoint), and recognises his 500 recordings. An answer counts where the text is the digit's name. The baseline is
given the same recordings: the mean and deviation over time of 20 MFCCs and their deltas (librosa), standardised, and
scikit-learn's SVC (RBF kernel, the best of C = 1, 10 and 100 on a held-out speaker of the training) and 1- or 5-nearest
neighbours, whichever is better there.

Needs `pip install 'seq2seq_jax[speech]'`; for the baseline, scikit-learn and librosa (without them it is left out).
Writes OUT/results.json; what is there already is not made again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
RECIPE = (
    "--config=configs/ctc.py:an4", "--config.audio.rate=8000", "--config.audio.hop=80", "--config.audio.window=200",
    "--config.audio.fft=256", "--config.audio.mels=40", "--config.audio.freq_width=10", "--config.audio.time_width=10",
    "--config.model.listener_layers=2", "--config.model.listener_features=192", "--config.model.dropout=0.3",
    "--config.data.max_source_len=250", "--config.train.steps=600", "--config.train.decay_steps=600",
    "--config.train.warmup_steps=100", "--config.train.evaluate_every=100", "--config.train.save_every=100",
    "--config.data.held_out_pairs=60", "--config.evaluate.samples=0", "--config.decode.method=greedy",
    "--config.vocab.kind=word", "--config.audio.speeds=0.85,0.9,0.95,1.0,1.05,1.1,1.15",
)  # fmt: skip
MFCCS = 20


def read_manifest(path: Path) -> tuple[list[Path], list[str]]:
    """Audio files and texts of a manifest that `manifests.py` wrote."""
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    return [(path.parent / row[0]).resolve() for row in rows], [row[1] for row in rows]


def recognise(folder: Path, out: Path, speaker: str, more: list[str]) -> float:
    """The share of the speaker's recordings, in percent, that a model of the others recognises."""
    root = out / speaker
    data = [f"--config.data.train={folder / f'{speaker}.train.tsv'}", "--config.data.dev=auto"]
    data += [f"--config.data.test={folder / f'{speaker}.test.tsv'}", f"--workdir={root}"]
    if not (root / "results.json").exists():
        subprocess.run([sys.executable, "-m", "seq2seq_jax.main", *RECIPE, *data, *more], check=True, cwd=ROOT)
    told, wanted = (
        (root / "outputs" / f"test.{name}.txt").read_text(encoding="utf-8").splitlines()
        for name in ("hypotheses", "references")
    )
    return 100.0 * float(np.mean([a == b for a, b in zip(told, wanted, strict=True)]))


def measure_baseline(folder: Path, speaker: str, speakers: list[str]) -> dict[str, float]:
    """The same of MFCCs with an SVM and with nearest neighbours, chosen on one of the other speakers."""
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    train, test = (read_manifest(folder / f"{speaker}.{part}.tsv") for part in ("train", "test"))
    x, y = np.stack([describe(path) for path in train[0]]), np.array(train[1])
    held = np.array([next(name for name in speakers if name != speaker) in path.name for path in train[0]])
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
            if "svm" not in own:
                own |= measure_baseline(args.folder, speaker, everyone)
        except ImportError as error:
            print(f"no baseline: {error}", file=sys.stderr)
        if not args.baseline_only and "ctc" not in own:
            own["ctc"] = recognise(args.folder, args.out, speaker, more)
        place.write_text(json.dumps(results, indent=1) + "\n")
    for name in ("ctc", "svm", "nearest"):
        scores = {speaker: own[name] for speaker, own in results.items() if name in own}
        if scores:
            told = "  ".join(f"{speaker} {score:.1f}" for speaker, score in scores.items())
            print(f"{name:8s} {told}  mean {np.mean(list(scores.values())):.1f}  worst {min(scores.values()):.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
