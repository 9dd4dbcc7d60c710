"""What a config comes to before anything is run: parameters, memory, steps, compilations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
from flax import linen as nn
from ml_collections import ConfigDict

from seq2seq_jax.data.vocab import Vocabs
from seq2seq_jax.experiment import count_bytes, count_parameters, make_model, make_state, make_training


def describe(config: ConfigDict, root: Path) -> dict[str, Any]:
    """Parameters by module, memory, steps and the bound on compilations; reads no corpus, runs nothing.

    The vocabulary sizes are those of the run in `root` if it has them, else `config.vocab.size`.
    """
    if (root / "vocab" / "vocabs.json").exists():
        vocabs = Vocabs.load(root / "vocab")
        sizes, origin = (len(vocabs.source), len(vocabs.target)), "of the run's own vocabulary"
    else:
        sizes, origin = (config.vocab.size, config.vocab.size), "config.vocab.size (the corpus may give fewer)"
    module, model_config = make_model(config, *sizes)
    mesh, optimizer, _ = make_training(config)
    model = module(model_config)
    state = nn.meta.unbox(jax.eval_shape(lambda key: make_state(model, optimizer, key), jax.random.key(0)))
    modules = {name: count_parameters(tree) for name, tree in sorted(state.params.items())}
    data, keys = config.data, config.train
    return {
        "model": config.model.name,
        "parameters": count_parameters(state.params),
        "parameters_by_module": modules,
        "vocabulary": {"source": sizes[0], "target": sizes[1], "from": origin},
        "memory_bytes": {
            "parameters": count_bytes(state.params),
            "optimizer": count_bytes(state.opt_state),
            "gradients": count_bytes(state.params),
            "checkpoint": count_bytes(state),
        },
        "steps": keys.steps,
        "slots_per_step": data.tokens_per_batch,
        "slots_in_all": data.tokens_per_batch * keys.steps,
        "checkpoints_every": keys.save_every,
        "evaluations_every": keys.evaluate_every,
        "compilations": {"train_step_at_most": data.max_shapes, "longest_source": data.max_source_len,
                         "longest_target": data.max_target_len},
        "devices": {"count": mesh.size, "kind": mesh.devices.flat[0].device_kind},
    }  # fmt: skip


def render(report: dict[str, Any]) -> str:
    """The report as people read it."""
    memory, sizes = report["memory_bytes"], report["vocabulary"]
    width = max(len(name) for name in report["parameters_by_module"])
    lines = [f"{report['model']}: {report['parameters']:,} parameters"]
    lines += [f"  {name:{width}s} {count:>13,}" for name, count in report["parameters_by_module"].items()]
    lines += [
        f"vocabulary: source {sizes['source']:,}, target {sizes['target']:,}, {sizes['from']}",
        "memory: " + ", ".join(f"{name} {size / 2**20:,.1f} MiB" for name, size in memory.items()),
        f"training: {report['steps']:,} steps of at most {report['slots_per_step']:,} token slots, "
        f"{report['slots_in_all']:,} in all; a checkpoint every {report['checkpoints_every']:,} steps, "
        f"dev scores every {report['evaluations_every']:,}",
        f"compiled when first met: the train step for at most {report['compilations']['train_step_at_most']} shapes, "
        f"up to {report['compilations']['longest_source']} + {report['compilations']['longest_target']} tokens a row",
        f"devices: {report['devices']['count']} x {report['devices']['kind']}",
    ]
    return "\n".join(lines)
