"""The Transformer of Hugging Face for PyTorch: the peer that `transformer_step.py` measures against.

MarianMTModel is the architecture of Vaswani et al. 2017 with one table for both embeddings and the output, biases
everywhere and sinusoidal positions: layer for layer what `seq2seq_jax.models.transformer` is by default. Its attention
is PyTorch's `scaled_dot_product_attention` (flash attention on GPUs). Which tensor of it is which parameter of ours
stands where the tests of our model have it, `tests/models/marian_reference.py`.

Every sentence fills its row, so that the peer needs no mask; ours keeps its masks. The bias of its output is a constant
of the model and is made a parameter here, because ours trains it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rounds
import torch
from torch import nn

if TYPE_CHECKING:
    from training_step import Recipe

    from seq2seq_jax.interfaces import PyTree
    from seq2seq_jax.models.transformer import TransformerConfig

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "models"))

from marian_reference import make_empty_marian, make_marian, to_marian  # noqa: E402


def has_gpu() -> bool:
    """Whether PyTorch has a GPU to run on."""
    return torch.cuda.is_available()


def _train_bias(model: Any) -> Any:
    """The model with the bias of its output as a parameter."""
    model.final_logits_bias = nn.Parameter(model.final_logits_bias.clone())
    return model


def make_peer(config: TransformerConfig) -> Any:
    """The peer with random weights."""
    torch.manual_seed(0)
    return _train_bias(make_empty_marian(config))


def load_peer(params: PyTree, config: TransformerConfig) -> Any:
    """The peer with our parameters (NumPy arrays)."""
    return _train_bias(make_marian(params, config))


def read_gradients(model: Any, params: PyTree, config: TransformerConfig) -> PyTree:
    """The peer's gradients in the tree of ours, NumPy arrays.

    Its tensors are ours in another order: brought into it, the numbers of our elements tell where each gradient goes.
    """
    import jax

    leaves, shape = jax.tree.flatten(params)
    ends = np.cumsum([leaf.size for leaf in leaves])
    numbers = [np.arange(end - leaf.size, end).reshape(leaf.shape) for end, leaf in zip(ends, leaves, strict=True)]
    places = to_marian(jax.tree.unflatten(shape, [each.astype(np.float64) for each in numbers]), config)
    sums = np.zeros(ends[-1], np.float32)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            np.add.at(sums, np.asarray(places[name]).astype(np.int64), parameter.grad.numpy())
    return jax.tree.unflatten(shape, [sums[each] for each in numbers])


def count_parameters(model: Any) -> int:
    """What is trained."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _to_device(tokens: Mapping[str, np.ndarray], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array.astype(np.int64)).to(device) for name, array in tokens.items()}


def _run(model: Any, batch: Mapping[str, torch.Tensor], label_smoothing: float) -> torch.Tensor:
    logits = model(input_ids=batch["source"], decoder_input_ids=batch["target_in"], use_cache=False).logits
    return nn.functional.cross_entropy(
        logits.flatten(0, 1), batch["target_out"].flatten(), label_smoothing=label_smoothing
    )


def mean_loss(model: Any, tokens: Mapping[str, np.ndarray], label_smoothing: float) -> torch.Tensor:
    """Mean cross-entropy of a batch of tokens `[B, S]` and `[B, T]`."""
    return _run(model, _to_device(tokens, torch.device("cpu")), label_smoothing)


def measure(
    config: TransformerConfig,
    tokens: Mapping[str, np.ndarray],
    recipe: Recipe,
    *,
    steps: int,
    warm_up: int,
    compiled: bool,
) -> dict[str, Any]:
    """Times the training step of the peer.

    Args:
        config: of our model; bfloat16 is autocast for the peer.
        tokens: the batch.
        recipe: how it trains.
        steps: measurements.
        warm_up: steps before them.
        compiled: by torch.compile.

    Returns:
        Seconds of every measured step (on a GPU: a tenth of ten), and what they were of.
    """
    cuda = has_gpu()
    device = torch.device("cuda" if cuda else "cpu")
    torch.set_float32_matmul_precision("high")  # XLA's default on GPUs; nothing changes on CPUs
    model = make_peer(config).to(device).train()
    optimizer = torch.optim.Adam(
        model.parameters(), lr=recipe.learning_rate, betas=(0.9, recipe.b2), eps=recipe.eps, fused=True
    )
    batch = _to_device(tokens, device)
    mixed = torch.autocast(device.type, torch.bfloat16) if config.dtype == "bfloat16" else nullcontext()
    run = torch.compile(_run) if compiled else _run

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        with mixed:
            loss = run(model, batch, recipe.label_smoothing)
        loss.backward()
        if recipe.clip_norm:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
        return loss

    first = rounds.time_calls(step, torch.Tensor.item, steps=1, warm_up=0, block=1)
    times = rounds.time_calls(step, torch.Tensor.item, steps=steps, warm_up=warm_up, block=rounds.BLOCK if cuda else 1)
    figures = {
        **times,
        "first_seconds": first["seconds"][0],
        "parameters": count_parameters(model),
        "loss": step().item(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "version": f"torch {torch.__version__}",
    }
    if cuda:  # weights, both moments and what stands in the gradients' place are not temporary
        kept = torch.cuda.memory_allocated()
        figures["temp_mib"] = (torch.cuda.max_memory_allocated() - kept) / 2**20
    return figures
