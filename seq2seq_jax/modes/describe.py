"""What a config comes to before anything is run: parameters, memory, steps, compilations."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jax
from flax import linen as nn
from ml_collections import ConfigDict

from seq2seq_jax.arithmetic import count_token
from seq2seq_jax.config import vocab_sizes
from seq2seq_jax.data.vocab import Vocabs
from seq2seq_jax.experiment import Training, make_training
from seq2seq_jax.modes.largest_batch import longest_shape, most_slots
from seq2seq_jax.parallel.shard import plan_leaves
from seq2seq_jax.provenance import count_bytes, count_parameters


def describe(config: ConfigDict, root: Path) -> dict[str, Any]:
    """Parameters by module, memory, steps and the bound on compilations; reads no corpus, runs nothing.

    The vocabulary sizes are those of the run in `root` if it has them, else `config.vocab.size`.
    """
    if (root / "vocab" / "vocabs.json").exists():
        vocabs = Vocabs.load(root / "vocab")
        sizes, origin = (len(vocabs.source), len(vocabs.target)), "of the run's own vocabulary"
    else:
        sizes, origin = vocab_sizes(config), "config.vocab.size (the corpus may give fewer)"
    training = make_training(config, *sizes)
    state = nn.meta.unbox(training.boxed_state)
    modules = {name: count_parameters(tree) for name, tree in sorted(state.params.items())}
    table = list_parameters(training)
    here = {"parameters": sum(row["bytes_per_device"] for row in table)}
    here["optimizer"] = sum(map(_bytes_per_device, jax.tree.leaves(training.abstract_state().opt_state)))
    data, keys = config.data, config.train
    average = {"average": count_bytes(state.ema)} if keys.ema_decay else {}
    if average:
        here["average"] = sum(map(_bytes_per_device, jax.tree.leaves(training.abstract_state().ema)))
    slots = most_slots(config) * keys.accumulate
    lengths = longest_shape(config)[1:] if data.pack else (data.max_source_len, data.max_target_len)
    return {
        "model": config.model.name,
        "parameters": count_parameters(state.params),
        "parameters_frozen": training.count_frozen(),
        "parameters_by_module": modules,
        "parameters_by_name": table,
        "vocabulary": {"source": sizes[0], "target": sizes[1], "from": origin},
        "memory_bytes": {
            "parameters": count_bytes(state.params),
            "optimizer": count_bytes(state.opt_state),
            **average,
            "gradients": count_bytes(state.params),
            "checkpoint": count_bytes(state),
        },
        "memory_bytes_per_device": here,
        "layout": {
            "strategy": training.layout.strategy,
            "step": training.layout.step,
            "mesh": dict(training.mesh.shape),
        },
        "flops_per_token": count_token(
            state.params, config, source_len=data.max_source_len, target_len=data.max_target_len
        ),
        "steps": keys.steps,
        "epochs": keys.epochs,
        "slots_per_step": slots,
        "slots_in_all": slots * keys.steps,
        "checkpoints_every": keys.save_every,
        "evaluations_every": keys.evaluate_every,
        "compilations": {"train_step_at_most": 1 if data.pack else data.max_shapes, "longest_source": lengths[0],
                         "longest_target": lengths[1]},
        "devices": {"count": training.mesh.size, "kind": training.mesh.devices.flat[0].device_kind},
    }  # fmt: skip


def list_parameters(training: Training) -> list[dict[str, Any]]:
    """Every parameter: its name, shape, logical axes, the mesh axes each is split over, and bytes on a device."""
    leaves = plan_leaves(training.boxed_state.params, training.layout)
    rows = []
    for (path, array), leaf in zip(
        jax.tree_util.tree_leaves_with_path(training.abstract_state().params), jax.tree.leaves(leaves), strict=True
    ):
        rows.append(
            {
                "name": "/".join(str(key.key) for key in path),
                "shape": list(array.shape),
                "axes": list(leaf.names),
                "split_over": [list(axes) for axes in leaf.at_rest],
                "bytes_per_device": _bytes_per_device(array),
            }
        )
    return rows


def _bytes_per_device(array: Any) -> int:
    """Bytes of one device's shard of an abstract array."""
    return math.prod(array.sharding.shard_shape(array.shape)) * array.dtype.itemsize


def render(report: dict[str, Any]) -> str:
    """The report as people read it."""
    memory, sizes = report["memory_bytes"], report["vocabulary"]
    frozen = f", {report['parameters_frozen']:,} of them frozen" if report["parameters_frozen"] else ""
    lines = [f"{report['model']}: {report['parameters']:,} parameters{frozen}"]
    width = max(len(row["name"]) for row in report["parameters_by_name"])
    for row in report["parameters_by_name"]:
        shape = " x ".join(map(str, row["shape"]))
        split = [
            f"{name} over {'+'.join(axes)}" for name, axes in zip(row["axes"], row["split_over"], strict=True) if axes
        ]
        named = " ".join(axis or "-" for axis in row["axes"])
        lines.append(
            f"  {row['name']:{width}s} {shape:>20s}  {named:20s} {', '.join(split) or 'whole on every device':28s} "
            f"{row['bytes_per_device'] / 2**20:>9,.2f} MiB a device"
        )
    mesh, layout = report["layout"]["mesh"], report["layout"]
    steps = f"{report['steps']:,} steps"
    if report["epochs"]:
        steps = f"{report['epochs']:g} epochs ({steps} by config.train.steps, counted when the corpus is read)"
    sizes_said = " x ".join(f"{name}={size}" for name, size in mesh.items() if size > 1) or "one device"
    here = report["memory_bytes_per_device"]
    lines.append(
        f"layout: {layout['strategy']} by {layout['step']} on {sizes_said}: a device holds "
        + ", ".join(f"{name} {size / 2**20:,.1f} MiB" for name, size in here.items())
    )
    lines += [
        f"vocabulary: source {sizes['source']:,}, target {sizes['target']:,}, {sizes['from']}",
        "memory: " + ", ".join(f"{name} {size / 2**20:,.1f} MiB" for name, size in memory.items()),
        render_flops(report["flops_per_token"]),
        f"training: {steps} of at most {report['slots_per_step']:,} token slots, "
        f"{report['slots_in_all']:,} in all; a checkpoint every {report['checkpoints_every']:,} steps, "
        f"dev scores every {report['evaluations_every']:,}",
        _render_compilations(report["compilations"]),
        f"devices: {report['devices']['count']} x {report['devices']['kind']}",
    ]
    return "\n".join(lines)


def _render_compilations(counts: dict[str, int]) -> str:
    lengths = f"{counts['longest_source']} + {counts['longest_target']} tokens a row"
    if counts["train_step_at_most"] == 1:
        return f"compiled when first met: the train step for one shape, of about {lengths}"
    return f"compiled when first met: the train step for at most {counts['train_step_at_most']} shapes, up to {lengths}"


def render_flops(flops: dict[str, Any]) -> str:
    """Arithmetic of a token, a line: each side that the model reads, and what the attention's scores add."""
    sides = [side for side in ("source", "target") if flops[side]]
    line = "arithmetic of training: " + ", ".join(f"{flops[side] / 1e6:,.2f} MFLOP a {side} token" for side in sides)
    scored = [side for side in sides if flops[f"{side}_scores"]]
    if not scored:
        return line
    more = " and ".join(f"{flops[f'{side}_scores'] / 1e6:,.2f} a {side} token" for side in scored)
    lengths = " + ".join(f"{flops[f'{side}_len']:,}" for side in sides)
    return f"{line}; the attention's scores add {more} where texts have {lengths} tokens, the longest there may be"
