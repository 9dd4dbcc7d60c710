"""K7: a run that began on n devices goes on with m, or on another mesh.

The run is a real one, of the command line, in a process of its own with so many simulated devices. What it is fed with,
what it saves and what it reads back is written down beside it: this file is also the program of these processes.

    python tests/nightly/devices.py     reads command lines NOTES ARGUMENTS...; the folder NOTES is what is written to
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from nursery import Nursery, serve
from rows import Job, Row

SAVED, AFTER, STEPS = 50, 60, 200
"""Steps at which a run is left, at which its parameters are compared, and at which it ends."""
COUNTS = (1, 2, 4, 8)
B1 = 0.9
COMMON = {
    "data.phrasebook_pairs": 400,
    "data.max_shapes": 1,
    "data.tokens_per_batch": 1024,
    "data.max_source_len": 32,
    "data.max_target_len": 32,
    "vocab.size": 300,
    "model.features": 16,
    "model.dropout": 0.2,
    "train.optimizer": "adam",
    "train.clip_norm": 0.0,
    "train.b1": B1,
    "train.steps": 10 * STEPS,
    "train.save_every": AFTER - SAVED,
    "train.evaluate_every": 10 * STEPS,
    "train.keep_last": STEPS,
    "train.log_every": 50,
    "train.warmup_steps": 20,
    "train.decay_steps": STEPS,
    "train.learning_rate": 0.005,
}
MODELS = {
    "transformer": {"encoder_layers": 1, "decoder_layers": 1, "feed_forward": 32, "heads": 2},
    "gnmt": {"encoder_layers": 2, "decoder_layers": 2, "attention_features": 16},
}
EIGHT, FSDP = {"data": 8}, {"data": 1, "fsdp": 8}
SPLIT, ALL = {"data": 1, "stage": 4, "tensor": 2}, {"data": 2, "fsdp": 2, "tensor": 2}
ELSEWHERE = [
    ("gnmt", EIGHT, SPLIT),
    ("gnmt", EIGHT, FSDP),
    ("gnmt", SPLIT, EIGHT),
    ("gnmt", SPLIT, FSDP),
    ("transformer", EIGHT, ALL),
    ("transformer", ALL, {"data": 1}),
]
"""Model, the mesh that it began on, and the one that it goes on with."""
GRADIENT, PARAMETERS, LOSS = 1e-5, 1e-3, 0.02
"""Most that may differ, relative: L2 of the next gradient and of parameters ten steps later, the loss at the end."""


@dataclasses.dataclass(frozen=True)
class Notes:
    """What a process wrote down.

    Attributes:
        examples: step → digest of the examples that it was fed with.
        saved, restored: leaf → digest, of the state at step `SAVED` as it was saved, and as it was read back.
        gradient, parameters: of step `SAVED`, and after step `AFTER`; all leaves in one array.
        loss: of the last log line.
    """

    examples: dict[str, str]
    saved: dict[str, str]
    restored: dict[str, str]
    gradient: np.ndarray
    parameters: np.ndarray
    loss: float

    @classmethod
    def read(cls, folder: Path) -> Notes:
        """Reads what `observe` wrote."""
        told, arrays = json.loads((folder / "notes.json").read_text()), np.load(folder / "arrays.npz")
        return cls(**told, gradient=arrays["gradient"], parameters=arrays["parameters"])


def name_mesh(mesh: dict[str, int]) -> str:
    """Such as "data=8"."""
    return ",".join(f"{name}={size}" for name, size in mesh.items() if size > 1) or "one device"


def run(job: Job, nursery: Nursery, root: Path, model: str, mesh: dict[str, int]) -> Notes:
    """Starts or goes on with a run in `root`, on as many devices as the mesh has."""
    notes, count = root.with_name(f"{root.name}.notes"), int(np.prod(list(mesh.values())))
    notes.mkdir()
    keys = COMMON | {f"model.{key}": value for key, value in MODELS[model].items()} | {"train.seed": job.seed}
    keys |= {f"parallel.{key}": value for key, value in mesh.items()}
    command = [str(notes), f"--config=configs/{model}.py", f"--workdir={root}"]
    command += [f"--config.{key}={value}" for key, value in keys.items()]
    # Compiling would be nearly all the time: a step over eight devices takes minutes with all of LLVM's passes.
    flags = f"--xla_force_host_platform_device_count={count} --xla_backend_optimization_level=0"
    code = nursery.start(command, notes / "log", XLA_FLAGS=flags).wait(timeout=1800)
    if code:
        raise RuntimeError(f"{root.name} ended with {code}: {(notes / 'log').read_text()[-2000:]}")
    return Notes.read(notes)


def copy_until_saved(straight: Path, goal: Path) -> Path:
    """The folder of a run as it was when step `SAVED` was its newest."""
    shutil.copytree(straight, goal)
    for step in (goal / "checkpoints").iterdir():
        if step.name.isdigit() and int(step.name) > SAVED:
            shutil.rmtree(step)
    return goal


def tell_difference(got: np.ndarray, wanted: np.ndarray) -> float:
    """Relative, in the L2 norm."""
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


def compare(straight: Notes, resumed: Notes) -> dict[str, Any]:
    """What became of a run elsewhere, against the one that was left alone."""
    later = {step: digest for step, digest in straight.examples.items() if int(step) >= SAVED}
    if len(later) != STEPS - SAVED or not straight.saved:
        raise RuntimeError("the run that was left alone did not write down what it did")
    return {
        "same_order": resumed.examples == later,
        "same_arrays": resumed.restored == straight.saved,
        "gradient": tell_difference(resumed.gradient, straight.gradient),
        "parameters": tell_difference(resumed.parameters, straight.parameters),
        "loss": abs(resumed.loss / straight.loss - 1.0),
        "bit_equal": bool(np.array_equal(resumed.parameters, straight.parameters)),
    }


def resume_on_others(job: Job) -> list[Row]:
    """Every number of devices with every other, then other meshes (as many as `job.count` leaves in both)."""
    among = [("transformer", {"data": n}, {"data": m}) for n in COUNTS for m in COUNTS][: job.count]
    cases = among + ELSEWHERE[: job.count]
    with Nursery(program=__file__) as nursery:
        found = take_cases(job, nursery, cases)
    names = " x ".join(["n", "m"]) + " of 1, 2, 4, 8 devices that share a batch"
    return make_rows(names, found[: len(among)]) + make_rows("other meshes", found[len(among) :])


def take_cases(job: Job, nursery: Nursery, cases: list[Any]) -> list[dict[str, Any]]:
    """What became of each case; every run to go on with is made once."""
    straight: dict[str, tuple[Path, Notes]] = {}
    found, started = [], time.monotonic()
    for number, (model, begun, goes_on) in enumerate(cases, start=1):
        name = f"{model}-{name_mesh(begun)}"
        if name not in straight:
            job.tell(f"{model}: {STEPS} steps on {name_mesh(begun)}")
            root = job.folder / name
            straight[name] = (root, run(job, nursery, root, model, begun))
        root, alone = straight[name]
        copy = copy_until_saved(root, job.folder / f"{number}-{name}-to-{name_mesh(goes_on)}")
        one = compare(alone, run(job, nursery, copy, model, goes_on))
        found.append(one | {"model": model, "from": name_mesh(begun), "to": name_mesh(goes_on)})
        job.tell(
            f"{number} of {len(cases)}: {model} {name_mesh(begun)} -> {name_mesh(goes_on)}: order "
            f"{'same' if one['same_order'] else 'DIFFERS'}, arrays {'equal' if one['same_arrays'] else 'DIFFER'}, "
            f"gradient {one['gradient']:.1e}, parameters {one['parameters']:.1e}, loss {one['loss']:.1e}; "
            f"{(time.monotonic() - started) / number * (len(cases) - number) / 60:.0f} minutes left"
        )
        shutil.rmtree(copy)
    return found


def make_rows(where: str, found: list[dict[str, Any]]) -> list[Row]:
    """The figures of some cases."""
    count = len(found)

    def all_of(name: str, key: str) -> Row:
        reached = sum(one[key] for one in found)
        return Row(f"K7, {where}: {name}", f"{count} of {count}", f"{reached} of {count}", reached == count)

    def most_of(name: str, key: str, bound: float, kind: str) -> Row:
        within, most = sum(one[key] <= bound for one in found), max(one[key] for one in found)
        got = f"{within} of {count}, at most {most:.2{kind}}"
        return Row(f"K7, {where}: {name}", f"at most {bound:{kind if kind == '%' else '.0e'}}", got, within == count)

    same = [one for one in found if one["from"] == one["to"]]
    rows = [
        all_of("example order identical", "same_order"),
        all_of("restored arrays bit-equal to the saved ones", "same_arrays"),
        most_of("gradient of the next step, relative L2", "gradient", GRADIENT, "e"),
        most_of("parameters 10 steps later, relative L2", "parameters", PARAMETERS, "e"),
        most_of(f"training loss at step {STEPS}, mean of 50", "loss", LOSS, "%"),
    ]
    if same:
        equal = sum(one["bit_equal"] for one in same)
        rows.append(
            Row(
                f"K7, {where}: parameters bit-equal where the devices are as many",
                f"{len(same)} of {len(same)}",
                f"{equal} of {len(same)}",
                equal == len(same),
            )
        )
    rows[0].details["cases"] = found
    return rows


# --- the program of one process ------------------------------------------------------------------


class Left(Exception):
    """The run has taken the steps that are compared: what would follow is its evaluation."""


def observe(notes: Path, arguments: list[str]) -> None:
    """Runs the command line, and writes down what its loop was fed with, saved and read back."""
    from seq2seq_jax.main import main
    from seq2seq_jax.train.checkpoints import Checkpoints
    from seq2seq_jax.train.loop import CompiledStep

    told: dict[str, Any] = {"examples": {}, "saved": {}, "restored": {}}
    arrays: dict[str, np.ndarray] = {}
    take, save, restore = CompiledStep.__call__, Checkpoints.save, Checkpoints.restore

    def take_step(self: Any, state: Any, batch: Any) -> Any:
        number = int(state.step)
        told["examples"][str(number)] = hash_array(batch.example_ids) + hash_array(batch.target_out)
        before = find_moment(state) if number == SAVED else None  # the step may write over it
        state, sums = take(self, state, batch)
        if before is not None:
            arrays["gradient"] = (find_moment(state) - B1 * before) / (1 - B1)
        return state, sums

    def save_state(self: Any, number: int, state: Any, **more: Any) -> bool:
        if number == SAVED:
            told["saved"] = hash_leaves(state)
        if number == AFTER:
            arrays["parameters"] = join_leaves(state.params)
        saved = save(self, number, state, **more)
        if number == STEPS:
            raise Left
        return saved

    def restore_state(self: Any, *given: Any, **more: Any) -> Any:
        found = restore(self, *given, **more)
        if found is not None and found.step == SAVED:
            told["restored"] = hash_leaves(found.state)
        return found

    CompiledStep.__call__, Checkpoints.save, Checkpoints.restore = take_step, save_state, restore_state
    try:
        code = main(["seq2seq_jax.main", *arguments])
    except Left:
        code = 0
    if code or "gradient" not in arrays:
        raise SystemExit(code or 1)
    root = next(Path(one.partition("=")[2]) for one in arguments if one.startswith("--workdir="))
    records = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    told["loss"] = next(one["loss"] for one in records if "loss" in one and one["step"] == STEPS)
    np.savez(notes / "arrays.npz", **arrays)
    (notes / "notes.json").write_text(json.dumps(told))


def find_moment(state: Any) -> np.ndarray:
    """Adam's mean of the gradients, m. The next is m' = b1 m + (1 - b1) g, which gives away g as the step had it."""
    import jax

    (found,) = (
        part for part in jax.tree.leaves(state.opt_state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(part, "mu")
    )
    return join_leaves(found.mu)


def hash_array(array: Any) -> str:
    """sha256 of shape, dtype and bytes."""
    array = np.asarray(array)
    return hashlib.sha256(f"{array.shape} {array.dtype}".encode() + array.tobytes()).hexdigest()


def hash_leaves(tree: Any) -> dict[str, str]:
    """Name → digest."""
    import jax

    return {jax.tree_util.keystr(path): hash_array(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def join_leaves(tree: Any) -> np.ndarray:
    """All leaves, one after the other, in float64."""
    import jax

    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


if __name__ == "__main__":
    _, where, *given = serve()
    observe(Path(where), given)
