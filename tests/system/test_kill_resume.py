"""Kills real processes at random moments; what comes of it must equal, bit for bit, a run that nobody disturbed.

SEQ2SEQ_JAX_KILLS=20 kills twenty times.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time

KILLS = int(os.environ.get("SEQ2SEQ_JAX_KILLS", "9"))
ARGS = (
    "--config=configs/gnmt.py",
    "--config.data.phrasebook_pairs=300",
    "--config.data.max_shapes=2",
    "--config.data.tokens_per_batch=2048",
    "--config.data.max_source_len=120",
    "--config.data.max_target_len=120",
    "--config.vocab.kind=char",
    "--config.vocab.size=100",
    "--config.model.features=8",
    "--config.model.attention_features=8",
    "--config.decode.beam_size=1",
    "--config.decode.length_factor=0.1",
    "--config.decode.length_extra=6",
    "--config.decode.rows=256",
    "--config.evaluate.dev_sentences=8",
    "--config.evaluate.samples=0",
    "--config.train.steps=240",
    "--config.train.save_every=8",
    "--config.train.evaluate_every=80",
    "--config.train.log_every=20",
    "--config.train.warmup_steps=10",
    "--config.train.decay_steps=240",
    "--config.train.learning_rate=0.02",
    "--config.parallel.data=1",
)


def start(root, log):
    return subprocess.Popen(
        [sys.executable, "-m", "seq2seq_jax.main", *ARGS, f"--workdir={root}"], stdout=log, stderr=log, env=os.environ
    )


def finish(root, log):
    process = start(root, log)
    assert process.wait(timeout=300) == 0, (root.parent / "log").read_text()[-3000:]
    return json.loads((root / "results.json").read_text())


def test_runs_killed_again_and_again_equal_one_left_alone(tmp_path):
    draw = random.Random(KILLS)
    with open(tmp_path / "log", "w") as log:
        finish(tmp_path / "warm", log)  # fills the compilation cache, so that the next one's time is a restart's
        began = time.monotonic()
        alone = finish(tmp_path / "alone", log)
        whole = time.monotonic() - began

        codes, saving, runs = [], 0, [tmp_path / "disturbed_0"]
        while len(codes) < KILLS:
            root, kill = runs[-1], len(codes)
            process = start(root, log)
            # Every third kill waits for a save to be under way; the others fall anywhere in the whole run.
            if kill % 3 == 2:
                saving += wait_for_save(process, root, seconds=whole)
            else:
                sleep_until_ended(process, draw.uniform(0.02, 1.0) * whole)
            before = newest_step(root)
            process.send_signal(signal.SIGTERM if kill % 2 else signal.SIGKILL)
            code = process.wait(timeout=120)
            assert newest_step(root) >= before, "a checkpoint was lost"
            if code == 0:  # it had come to its end before the signal: the next kills meet a new run
                runs.append(tmp_path / f"disturbed_{len(runs)}")
            else:
                codes.append(code)
        finish(runs[-1], log)

    assert set(codes) <= {143, -signal.SIGKILL, -signal.SIGTERM}, codes  # -SIGTERM: before the handler stood
    assert 143 in codes and -signal.SIGKILL in codes, codes
    assert saving >= KILLS // 9, "no kill fell into a save"
    for root in runs:
        results = json.loads((root / "results.json").read_text())
        assert results["parameters_sha256"] == alone["parameters_sha256"]
        assert results["state_sha256"] == alone["state_sha256"]  # the optimiser's state and the counters, too
        assert results["test"]["step"] == alone["test"]["step"]  # the same step was found to be the best
        outputs = [(folder / "outputs" / "test.nbest.txt").read_bytes() for folder in (tmp_path / "alone", root)]
        assert outputs[0] == outputs[1] and len(outputs[0]) > 1000
        assert dev_scores(root) == dev_scores(tmp_path / "alone")
        assert logged_steps(root) == logged_steps(tmp_path / "alone")
        assert not list((root / "checkpoints").glob("*orbax-checkpoint-tmp*"))
        set_aside = root.glob("checkpoints/quarantine/*")  # killed between the commit and the manifest, if any
        assert not [path for path in set_aside if (path / "manifest.json").exists()]
    print(f"{KILLS} kills ({codes.count(143)} saved and stopped, {saving} during a save), {len(runs)} runs bit-equal")


def newest_step(root):
    return max((int(p.name) for p in (root / "checkpoints").glob("*") if p.name.isdigit()), default=0)


def sleep_until_ended(process, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        time.sleep(0.01)


def logged_steps(root):
    records = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    return [record["step"] for record in records if "loss" in record]


def dev_scores(root):
    """The evaluations that count: the last one of each step."""
    records = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    return {r["step"]: (r["dev_loss"], r["dev_bleu"]) for r in records if r.get("event") == "dev"}


def wait_for_save(process, root, *, seconds):
    """Returns True as soon as an unfinished checkpoint can be seen, False after `seconds` or when the run has ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if any(root.glob("checkpoints/*orbax-checkpoint-tmp*")):
            return True
        time.sleep(0.002)
    return False
