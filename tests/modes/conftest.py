"""A tiny run, trained once through the command line, for the tests of what is done with runs."""

import random

import pytest

from seq2seq_jax.main import main

WORDS = {"one": "eins", "two": "zwei", "three": "drei", "four": "vier", "red": "rot", "blue": "blau", "cat": "Katze"}


def write_corpus(prefix, *, pairs, seed):
    """PREFIX.en and PREFIX.de: words, and each word's translation."""
    draw = random.Random(seed)
    sources = [draw.choices(list(WORDS), k=draw.randint(1, 7)) for _ in range(pairs)]
    prefix.with_suffix(".en").write_text("".join(" ".join(words) + "\n" for words in sources))
    prefix.with_suffix(".de").write_text("".join(" ".join(WORDS[w] for w in words) + "\n" for words in sources))


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """The folder of a run with checkpoints of steps 4, 6 and 8 and a moving average; read it, do not write to it."""
    root = tmp_path_factory.mktemp("tiny")
    for number, (name, pairs) in enumerate((("train", 120), ("dev", 8), ("test", 24))):
        write_corpus(root / name, pairs=pairs, seed=number)
    config = {
        **{f"data.{name}": root / name for name in ("train", "dev", "test")},
        "data.tokens_per_batch": 256,
        "data.max_shapes": 1,
        "vocab.kind": "word",
        "vocab.size": 30,
        "model.features": 8,
        "model.attention_features": 8,
        "model.encoder_layers": 1,
        "model.attention_from": "previous_step",
        "model.decoder_layers": 1,
        "decode.beam_size": 2,
        "decode.rows": 8,
        "decode.length_factor": 1.0,
        "decode.length_extra": 2,
        "evaluate.samples": 1,
        "evaluate.dev_beam_size": 2,
        "parallel.data": 1,
        "train.steps": 8,
        "train.warmup_steps": 2,
        "train.learning_rate": 0.02,
        "train.ema_decay": 0.5,
        "train.save_every": 2,
        "train.evaluate_every": 4,
        "train.keep_last": 3,
        "train.log_every": 2,
    }
    given = [f"--config.{key}={value}" for key, value in config.items()]
    run = root / "run"
    assert main(["seq2seq_jax.main", "--config=configs/gnmt.py", f"--workdir={run}", *given]) == 0
    return run


@pytest.fixture(scope="session")
def averaged_run(tiny_run):
    """The mean of its last three checkpoints, evaluated on the same test set."""
    goal = tiny_run.parent / "averaged"
    call = ["seq2seq_jax.main", "--workdir", str(tiny_run), "--mode=average", "--last=3", f"--output={goal}"]
    assert main(call) == 0
    assert main(["seq2seq_jax.main", f"--workdir={goal}", "--mode=evaluate"]) == 0
    return goal
