"""More command lines that are wrong: values that contradict each other, flags of another mode, files that are none.

Whether numbers that are drawn contradict each other is worked out here, from what the papers and the docs say.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any

from wrong_cases import EDITS, Case, file_of, misspell, tell

from seq2seq_jax.command_line import OWN

# From --help: the modes that read a flag; those that are not here are for all.
GOES = {
    "input": "translate transcribe score vectors compare rescore",
    "output": "translate transcribe score vectors average compare export rescore",
    "nbest": "translate",
    "json": "evaluate describe plan average backtranslate compare prepare rescore doctor",
    "topology": "plan",
    "members": "train",
    "init_from": "train prepare backtranslate",
    "last": "average",
    "best": "average",
    "steps": "average",
    "format": "export transcribe",
    "licence": "export",
    "reverse": "backtranslate",
    "against": "compare",
    "reference": "compare rescore",
    "source": "compare rescore",
    "constraints": "translate",
    "models": "rescore",
    "channel": "rescore",
    "weights": "rescore",
    "metric": "rescore",
    "workers": "prepare",
    "fresh": "train",
    "coordinator": "train evaluate",
    "hosts": "train evaluate prepare",
    "host": "train evaluate prepare",
    "host_timeout": "train evaluate",
}
NUMBERS = {"workers": 3, "members": 2, "last": 3, "best": 3, "nbest": 2, "hosts": 2, "host": 1, "host_timeout": 70}
SWITCHES = ("json", "fresh", "debug")
TEXTS = tuple(name for name in OWN if name not in (*NUMBERS, *SWITCHES, "mode", "config"))
OF_TEXT = "train evaluate translate describe plan score vectors average export backtranslate prepare compare".split()


def set_flags(rng: random.Random) -> Iterator[Case]:
    """Flags that are misspelt, of another mode, empty, or no numbers."""
    gnmt = file_of("gnmt")
    for name in OWN:
        for edit in EDITS:
            wrong = misspell(name, edit, rng)
            value = "" if name in SWITCHES else "=1"
            if wrong in (*OWN, "noconfig") or wrong.startswith("config."):
                continue
            yield Case("misspelt flag", (gnmt, f"--{wrong}{value}"), (f"--{wrong}",), f"--{name}")
    for name, modes in GOES.items():
        for mode in OF_TEXT:
            if mode not in modes.split():
                value = "" if name in SWITCHES else f"={NUMBERS.get(name, 'x')}"
                args = (gnmt, f"--mode={mode}", f"--{name}{value}")
                yield Case("flag of another mode", args, (f"--{name}", mode), runner="stub")
    for name in NUMBERS:
        mode = GOES[name].split()[0]
        low = [] if name in ("workers", "nbest", "host") else ["0"]
        for value in ("x", "", "None", "nan", "-3", str(-(10**30)), str(10**30), "[2]", "1,5", *low):
            args = (gnmt, f"--mode={mode}", f"--{name}={value}")
            yield Case("wrong flag value", args, (f"--{name}", *([tell(value)] if value else [])), runner="stub")
    for name in TEXTS:
        if name not in ("models", "channel", "licence"):
            mode = GOES.get(name, "train").split()[0]
            yield Case("empty flag", (gnmt, f"--mode={mode}", f"--{name}="), (f"--{name}",), runner="stub")
    for name in SWITCHES:
        for value in ("x", "2", "None", "truee"):
            yield Case("wrong flag value", (gnmt, "--mode=train", f"--{name}={value}"), (f"--{name}", value))


def garble(rng: random.Random) -> Iterator[Case]:
    """Arguments that are no flags, and flags that are given in odd ways."""
    word = "".join(rng.choice("abcxyz0189_") for _ in range(rng.randint(1, 9)))
    good = (file_of(rng.choice(["gnmt", "lstm", "transformer"])),)
    for stray in (
        word,
        "train",
        "configs/gnmt.py",
        f"{word}={word}",
        "config.train.steps=5",
        "mode=train",
        "\u2014mode=train",
    ):
        yield Case("positional", (*good, stray), (stray,))
        yield Case("positional", (stray, *good), (stray,))
        yield Case("positional", (*good, "--", stray), (stray,))
    for flag in (f"-{word}", f"--{word}", f"--{word}={word}", f"---{word}", "--=5", "---mode=train", "--flagfile=x",
                 "--undefok=x", "--config.train.steps:5", "--config.train.steps =5", "--MODE=train", "-5", "--5",
                 " --mode=train", "--config.train.steps=5=6", "--config.train.steps=\n5x", "--mode= train",
                 f"--config.train.steps={'9' * 300}"):  # fmt: skip
        yield Case("garbled", (*good, flag), ("error",))
    for flags in (("--mode",), ("--workdir",), ("--config.train.steps",), ("--config.train.steps", "x"), ("--nbest",)):
        yield Case("garbled", (*good, *flags), (flags[0],))
    yield Case("garbled", ("--config",), ("--config",))
    yield Case("garbled", ("--config", "--mode=train"), ("--config",))
    yield Case("garbled", (), ("--config is missing",))
    yield Case("repeated", (*good, "--mode=train", "--mode=describe"), wrong=False, runner="stub")
    yield Case("repeated", (*good, "--config.train.steps=5", "--config.train.steps=6"), wrong=False)
    yield Case("repeated", (*good, "--config.train.steps=5", "--config.train.steps=x"), ("config.train.steps", "'x'"))
    yield Case("repeated", (*good, "--config.train.steps=x", "--config.train.steps=5"), ("config.train.steps", "'x'"))
    yield Case("repeated", (*good, "--mode=trian", "--mode=train"), wrong=False)
    yield Case("repeated", (*good, "--config=configs/nothing.py"), ("--config", "nothing"))
    yield Case("odd but right", (*good, "--config.train.steps", "7"), wrong=False)
    yield Case("odd but right", (*good, "-config.train.steps=7", "--nojson"), wrong=False)
    yield Case("odd but right", ("--config", good[0].partition("=")[2], "--config.train.seed=0x10"), wrong=False)


GOOD_CONFIG = "from seq2seq_jax.config import default_config\ndef get_config():\n    c = default_config('gnmt')\n    "
BAD_CONFIGS = (
    "", "# nothing", "def get_config(:\n  pass", "\tx\n y", "x = (", "'''", "import nothing_like_it", "1/0",
    "raise KeyError('x')",
    "raise SystemExit(3)", "def get_config():\n  raise RuntimeError('no\\nluck')", "def get_config():\n  return None",
    "def get_config():\n  return {'a': 1}", "def get_config():\n  return 5", "get_config = 5",
    "def get_config(a, b): pass",
    "def get_config():\n  return get_config()", "def config(): pass", "def get_config():\n  assert False",
    "def get_config():\n  import sys; sys.exit('bye')", "def get_config():\n  open('/nonexistent/x')",
    GOOD_CONFIG + "c.train.stepz = 5\n    return c", GOOD_CONFIG + "c.train.steps = 'x'\n    return c",
    GOOD_CONFIG + "c.train.steps = None\n    return c", GOOD_CONFIG + "c.train.steps = [1]\n    return c",
    GOOD_CONFIG + "c.train = 5\n    return c", GOOD_CONFIG + "c.model.name = 'x'\n    return c",
    GOOD_CONFIG + "c.train.steps = -1\n    return c", GOOD_CONFIG + "del c.train\n    return c",
    GOOD_CONFIG + "c.unlock(); c.more = 5\n    return c", GOOD_CONFIG + "c.unlock(); c.model = 5\n    return c",
    GOOD_CONFIG + "c.unlock(); c.model.name = ['x']\n    return c",
    "from ml_collections import ConfigDict\ndef get_config():\n  return ConfigDict()",
    "raise UnicodeDecodeError('utf-8', b'x', 0, 1, 'no')", "def get_config():\n  raise OSError(28, 'no space')",
    "x = '\ud800'",
)  # fmt: skip
BAD_SAVED = (
    "", "{", "[]", "null", "5", '"x"', "{}", '{"model": {}}', '{"model": {"name": "nope"}}',
    '{"model": {"name": ["x"]}}',
    '{"model": 5}', '{"model": {"name": "gnmt"}, "train": 5}', '{"model": {"name": "gnmt"}, "train": null}',
    '{"model": {"name": "gnmt"}, "more": {"a": 1}}', "[" * 100_000, '{"a":' * 50_000, "\ud800", "\0",
    '{"model": {"name": "gnmt"}, "train": [["steps", 5]]}', '{"model": {"name": "gnmt"}, "decode": {"beam_size": []}}',
)  # fmt: skip


def break_files(rng: random.Random) -> Iterator[Case]:
    """Config files and saved configs that are none."""
    for content in BAD_CONFIGS:
        yield Case("config file", ("--config={folder}/bad.py",), ("config",), files=(("bad.py", content),))
        if rng.random() < 0.3:
            args = ("--config={folder}/bad.py", "--config.train.steps=5")
            yield Case("config file", args, ("config",), files=(("bad.py", content),))
    for content in BAD_SAVED:
        yield Case("saved config", ("--workdir={folder}/run",), ("config",), files=(("run/config.json", content),))
        args = ("--workdir={folder}/run", "--mode=translate")
        yield Case("saved config", args, ("config",), files=(("run/config.json", content),))
    for value in (
        "",
        ".",
        "configs",
        "/nonexistent.py",
        "configs/",
        ":",
        "configs/gnmt.py:x:y",
        "configs/gnmt.py:\u00e9",
    ):
        yield Case("config file", (f"--config={value}",), ("config",))
    no_presets = GOOD_CONFIG + "return c"
    yield Case("config file", ("--config={folder}/a.py:small",), ("a.py",), files=(("a.py", no_presets),))
    yield Case("config file", ("--config={folder}/a.py",), wrong=False, files=(("a.py", no_presets),))
    yield Case("config file", ("--workdir={folder}/none",), ("--workdir",))


def contradict(rng: random.Random) -> Iterator[Case]:
    """Values that go with each other, and that do not."""
    yield from _contradict_sizes(rng)
    yield from _contradict_training(rng)
    yield from _contradict_search(rng)
    yield from _contradict_speech(rng)
    yield from _contradict_devices(rng)


def _case(model: str, names: str, wrong: bool, **keys: Any) -> Case:
    """One of several keys (`model__heads=3`); `names` are those of which the error must name one."""
    args = [file_of(model), *(f"--config.{key.replace('__', '.')}={value}" for key, value in keys.items())]
    if model in ("bert", "gpt", "transformer"):
        args.insert(1, "--config.data.pack=False")
    return Case("contradiction" if wrong else "goes together", tuple(args), (names,) if wrong else (), wrong=wrong)


def _contradict_sizes(rng: random.Random) -> Iterator[Case]:
    for model in ("transformer", "bert", "gpt"):
        for positions in ("sinusoidal", "learned", "relative", "rotary"):
            features, heads = rng.randint(1, 48), rng.randint(1, 8)
            step = {"sinusoidal": 2, "rotary": 2 * heads}.get(positions, 1)
            wrong = bool(features % heads or features % step)
            how = {"model__features": features, "model__heads": heads, "model__positions": positions}
            yield _case(model, "model.heads|model.features", wrong, **how)
    for model in ("transformer", "bert"):
        rank, room = rng.randint(1, 400), rng.choice([100, 200, 300])
        how = {"model__linformer": rank, "model__max_positions": room, "model__positions": "sinusoidal"}
        yield _case(model, "model.linformer", rank > room, **how)
        positions = rng.choice(["relative", "rotary", "learned"])
        how = {"model__linformer": 8, "model__positions": positions}
        yield _case(model, "model.positions", positions != "learned", **how)
    texts = rng.randint(40, 120)
    yield _case("bert", "max_positions", texts > 80, model__max_positions=80, data__max_source_len=texts)
    yield _case(
        "gpt",
        "max_positions",
        texts > 60,
        model__max_positions=120,
        data__max_source_len=60,
        data__max_target_len=texts,
    )
    layers = rng.choice([1, 2])
    yield _case("gnmt", "model.decoder_layers", layers == 1, model__decoder_layers=layers)
    asks = rng.choice(["current_step", "previous_step"])
    yield _case("gnmt", "model.layer_norm", asks == "previous_step", model__attention_from=asks, model__layer_norm=True)
    cells = rng.choice([0, 64])
    for model in ("gnmt", "lstm", "language_model", "rnnsearch"):
        yield _case(model, "cells|cell", cells > 0, model__cell="gru", model__cells=cells)
    for model in ("gnmt", "transformer"):
        share = rng.choice(["all", "target", "none"])
        how = {"vocab__joint": False, "model__share_embeddings": share}
        yield _case(model, "share_embeddings", share == "all", **how)
    size, joint = rng.randint(1, 9), rng.random() < 0.5
    how = {"vocab__target_size": size, "vocab__joint": joint, "model__share_embeddings": "none"}
    yield _case("gnmt", "vocab.target_size", joint or size < 5, **how)
    model = rng.choice(["gnmt", "lstm"])
    other = rng.choice(["transformer", "bert", "ctc"])
    yield Case("contradiction", (file_of(model), f"--config.model.name={other}"), ("config.model",))


def _contradict_training(rng: random.Random) -> Iterator[Case]:
    warm, down = rng.randint(0, 400), rng.randint(1, 400)
    for schedule in ("cosine", "linear", "exponential"):
        how = {"train__schedule": schedule, "train__warmup_steps": warm, "train__decay_steps": down}
        yield _case("gnmt", "train.decay_steps", down <= warm, **how)
    begin = rng.randint(0, 400)
    how = {
        "train__schedule": "stable",
        "train__warmup_steps": 100,
        "train__decay_steps": 300,
        "train__decay_start": begin,
    }
    yield _case("lstm", "train.decay_start", not 100 <= begin < 300, **how)
    yield _case("gnmt", "decay_floor", True, train__schedule="exponential", train__decay_floor=0.0)
    every = rng.choice([0, 5])
    yield _case("gnmt", "decay_every", every == 0, train__schedule="gnmt", train__decay_every=every)
    yield _case("gnmt", "halve_every", every == 0, train__schedule="halving", train__halve_every_epochs=every / 10)
    optimizer = rng.choice(["adam", "sgd", "rmsprop", "lion"])
    yield _case("gnmt", "momentum", optimizer in ("adam", "lion"), train__optimizer=optimizer, train__momentum=0.5)
    yield _case(
        "gnmt",
        "weight_decay",
        optimizer in ("adam", "sgd", "rmsprop"),
        train__optimizer=optimizer,
        train__weight_decay=0.1,
    )
    yield _case(
        "gnmt",
        "adam_learning_rate",
        every == 0,
        train__optimizer="adam_then_sgd",
        train__adam_learning_rate=every / 1000,
    )
    rows, multiple = rng.randint(1, 40), rng.randint(1, 9)
    how = {"data__sentences_per_batch": rows, "data__rows_multiple": multiple}
    yield _case("gnmt", "sentences_per_batch", rows % multiple != 0, **how)
    yield _case("gnmt", "data.pack", True, data__pack=True)
    for key, value in (("data.sentences_per_batch", 8), ("data.curriculum_epochs", 1), ("data.subword_sampling", 0.1)):
        yield Case(
            "contradiction", (file_of("transformer"), "--config.data.pack=True", f"--config.{key}={value}"), (key,)
        )
    language = rng.choice(["en", "de", "fr"])
    yield _case("gnmt", "data.target", language == "en", data__target=language)
    chosen = rng.choice(["none", "minimum_risk", "reinforce"])
    on = chosen != "none"
    yield _case("gnmt", "proposals", chosen == "reinforce", sequence__objective=chosen, sequence__proposals="nbest")
    yield _case("gnmt", "own_tokens", on, sequence__objective=chosen, train__own_tokens=0.1)
    yield _case("gnmt", "loss_per", on, sequence__objective=chosen, train__loss_per="sentence")
    metric = rng.choice(["wer", "bleu", "loss"])
    yield _case("gnmt", "patience_metric", metric == "wer", train__patience_metric=metric)
    yield _case("bert", "patience_metric", metric != "loss", train__patience_metric=metric)
    first, last = rng.randint(-2, 30), rng.randint(-2, 30)
    how = {"train__profile_steps": f"{first}:{last}", "train__steps": 20}
    yield _case("gnmt", "profile_steps", not 1 <= first <= last <= 20, **how)
    for text in ("x", "1", "1:", ":", "1:2:3", "1-2", "0x1:2"):
        yield _case("gnmt", "profile_steps", True, train__profile_steps=text)
    for text in ("(", "nothing_like_it", ".", "[", "*"):
        yield _case("gnmt", "freeze", True, train__freeze=text)
    for seed in (2**31 - 1, 2**31, 2**40):
        yield _case("gnmt", "train.seed", seed >= 2**31, train__seed=seed)
    for line in ("?weight=2", "x?wt=2", "x?weight=-1", "x?weight=nan", "x?tag=", ",", "x,,y", "x?source"):
        yield _case("gnmt", "data.train", True, data__train=line)
    for key in ("train__init_from", "decode__ensemble", "decode__language_model", "decode__ngram"):
        yield _case("gnmt", "nothing_here", True, **{key: "/nonexistent/nothing_here"})
    yield Case("contradiction", (file_of("gnmt"), "--init_from=/nonexistent/run"), ("--init_from", "/nonexistent/run"))


def _contradict_search(rng: random.Random) -> Iterator[Case]:
    size, groups = rng.randint(1, 12), rng.randint(1, 5)
    yield _case("gnmt", "decode.groups", size % groups != 0, decode__beam_size=size, decode__groups=groups)
    method = rng.choice(["greedy", "sampling"])
    yield _case("lstm", "decode.groups", groups > 1, decode__method=method, decode__groups=groups)
    risk = {"decode__method": "minimum_bayes_risk"}
    yield _case("gnmt", "decode.temperature", True, decode__temperature=0.0, **risk)
    draws = rng.choice([0, 1, 2])
    yield _case("gnmt", "decode.top_k", draws == 1, decode__top_k=draws, **risk)
    yield _case("gnmt", "decode.method", True, decode__method="prefix_beam")
    least, most = rng.randint(0, 30), rng.randint(1, 30)
    how = {"decode__min_length_factor": least / 10, "decode__length_factor": most / 10}
    yield _case("gnmt", "min_length_factor", least > most, **how)
    how = {"decode__length_factor": 0.0, "decode__min_length_extra": least, "decode__length_extra": most}
    yield _case("gnmt", "min_length_extra", least > most, **how)
    for key in ("coverage_penalty", "prune"):
        value = rng.choice([-2.0, -0.5, -1.0, 0.5])
        yield _case("gnmt", key, value in (-2.0, -0.5), **{f"decode__{key}": value})
    yield _case("gnmt", "ctc_weight", True, decode__ctc_weight=0.3)
    many = rng.randint(2, 12)
    how = {"sequence__objective": "minimum_risk", "sequence__proposals": "nbest", "sequence__candidates": many}
    yield _case("gnmt", "groups", many % 5 != 0, decode__groups=5, **how)
    hidden, mask = rng.choice([0.0, 0.5, 1.0]), rng.choice([0.5, 0.95])
    yield _case("bert", "masked.share", hidden != 0.5, masked__share=hidden)
    yield _case("bert", "masked.random", mask + 0.1 > 1, masked__mask=mask)
    yield _case("bert", "ensemble", True, decode__ensemble="x")


def _contradict_speech(rng: random.Random) -> Iterator[Case]:
    model = rng.choice(["las", "ctc"])
    conformer = {"model__listener": "conformer"}
    features, heads = 2 * rng.randint(1, 24), rng.randint(1, 6)
    how = {"model__listener_features": features, "model__heads": heads}
    yield _case(model, "listener_features", features % heads != 0, **how, **conformer)
    kernel = rng.randint(1, 12)
    yield _case(model, "model.kernel", kernel % 2 == 0, model__kernel=kernel, **conformer)
    subsample = rng.choice(["pyramid", "conv", "vgg"])
    yield _case(model, "model.subsample", subsample == "pyramid", model__subsample=subsample, **conformer)
    reduction = rng.randint(1, 16)
    two = math.log2(reduction).is_integer()
    yield _case(model, "model.reduction", not two, model__reduction=reduction, model__subsample="conv")
    layers = rng.randint(1, 4)
    how = {"model__subsample": "pyramid", "model__reduction": 4, "model__listener_layers": layers}
    yield _case(model, "listener_layers", layers <= 2, **how)
    width = rng.randint(2, 30)
    yield _case(model, "listener_features", width % 2 == 1, model__listener_features=width, model__listener="lstm")
    yield _case("las", "location_width", width % 2 == 0, model__location_width=width)
    window = rng.randint(100, 600)
    yield _case(model, "audio.window", not 160 <= window <= 512, audio__window=window)
    high = rng.choice([10.0, 4000.0, 8000.0, 8001.0])
    yield _case(model, "audio.high", high in (10.0, 8001.0), audio__high=high)
    yield _case(model, "audio.low", high >= 8000, audio__low=high)
    mels = rng.choice([40, 400])
    yield _case(model, "audio.mels", mels == 400, audio__mels=mels)
    for text in ("fast", "0.9,", "0.1", "0.9;1.1", "nan", "3"):
        yield _case(model, "audio.speeds", True, audio__speeds=text)
    for key, value in (("data.pack", True), ("decode.must", "a"), ("clean.copies", True), ("vocab.joint", False)):
        yield Case("contradiction", (file_of(model), f"--config.{key}={value}"), (key,))
    yield _case("gnmt", "audio.", True, audio__augment="LB")
    weight = rng.choice([0.5, 1.0, 1.5])
    yield _case("las", "audio.ctc_weight", weight >= 1, audio__ctc_weight=weight, model__ctc_head=True)


def _contradict_devices(rng: random.Random) -> Iterator[Case]:
    """There is one device."""
    sizes = [rng.choice([-1, 1, 1, 2, 4]) for _ in range(4)]
    axes = ("data", "fsdp", "stage", "tensor")
    wrong = sizes.count(-1) > 1 or max(sizes) > 1
    how = {f"parallel__{axis}": size for axis, size in zip(axes, sizes, strict=True)}
    yield _case("transformer", "parallel", wrong, **how)
    strategy = rng.choice(["exact", "balanced", "fsdp", "data_parallel", "auto"])
    yield _case("lstm", "parallel", strategy == "exact", parallel__strategy=strategy)
    for model in ("gnmt", "transformer"):
        recurrent = model == "gnmt"
        layers = rng.choice(["auto", "in_order", "scanned", "wavefront"])
        wrong = layers == ("scanned" if recurrent else "wavefront")
        yield _case(model, "parallel.layers", wrong, parallel__layers=layers)
        remat = rng.choice(["none", "dots", "full"])
        yield _case(model, "parallel.remat", recurrent and remat != "none", parallel__remat=remat)
