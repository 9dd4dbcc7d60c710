"""PyTorch's recurrent layers (cuDNN on a GPU, oneDNN and MKL on a CPU): the peer that `recurrent.py` measures against.

Also the same layers, and those that PyTorch has not, written down from their equations in float64 and differentiated
by PyTorch: what `--check` compares every variant with.

Weights come as nested dictionaries of numpy arrays, see `recurrent_variants.draw_weights`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import rounds
import torch
from torch import nn

Layers = Sequence[Mapping[str, Mapping[str, np.ndarray]]]
"""For every layer its directions ("forward", and "backward" where there are two), for each of them its arrays."""


# --- the peer -------------------------------------------------------------------------------------


def build_peer(name: str, layers: Layers) -> nn.LSTM | nn.GRU:
    """The PyTorch module of a name (such as "torch" or "torch GRU", see `recurrent_variants.PEERS`)."""
    first = layers[0]["forward"]
    inputs, width = first["input_kernel"].shape[0], first["input_kernel"].shape[1] // (3 if "GRU" in name else 4)
    two = len(layers[0]) == 2
    module: nn.LSTM | nn.GRU
    if "GRU" in name:
        module = nn.GRU(inputs, width, len(layers), bidirectional=two)
    else:
        projection = first["projection_kernel"].shape[1] if "projection" in name else 0
        module = nn.LSTM(inputs, width, len(layers), bidirectional=two, proj_size=projection)
    state = {key: torch.zeros_like(tensor) for key, tensor in module.state_dict().items()}
    for key, place in name_parameters(layers):
        n, direction, array = place
        own = layers[n][direction][array]
        # The last H of GRU's second biases is the one that is meant; the others stay zero, as those of an LSTM.
        state[key][-own.shape[-1] :] = torch.from_numpy(np.ascontiguousarray(own.T))
    module.load_state_dict(state)
    return module


def name_parameters(layers: Layers) -> list[tuple[str, tuple[int, str, str]]]:
    """PyTorch's name of every array that it has, and the place of ours: layer, direction, name."""
    names = {
        "input_kernel": "weight_ih",
        "recurrent_kernel": "weight_hh",
        "bias": "bias_ih",
        "candidate_bias": "bias_hh",
        "projection_kernel": "weight_hr",
    }
    return [
        (f"{names[array]}_l{n}{'_reverse' if direction == 'backward' else ''}", (n, direction, array))
        for n, layer in enumerate(layers)
        for direction, arrays in layer.items()
        for array in arrays
        if array in names
    ]


def measure(
    name: str, layers: Layers, x: np.ndarray, cotangent: np.ndarray, *, dtype: str, steps: int, warm_up: int
) -> dict[str, Any]:
    """Times forward and backward pass of the peer, gradients of the weights and of the input.

    Weights are held in the dtype of the products, which is quicker than autocast.

    Returns:
        See `rounds.time_calls`; on a GPU also MiB at the peak above weights, input and gradients.
    """
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    kind = getattr(torch, dtype)
    torch.set_float32_matmul_precision("high")  # XLA's default on GPUs; nothing changes on CPUs
    torch.backends.cudnn.allow_tf32 = True
    module = build_peer(name, layers).to(device, kind)
    module.flatten_parameters()
    given = torch.from_numpy(x).to(device, kind).requires_grad_()
    back = torch.from_numpy(cotangent).to(device, kind)
    leaves = [given, *module.parameters()]

    def step() -> tuple[torch.Tensor, ...]:
        y, _ = module(given)
        return torch.autograd.grad(y, leaves, back)

    def wait(result: Any) -> None:
        if cuda:
            torch.cuda.synchronize()

    first = rounds.time_calls(step, wait, steps=1, warm_up=0, block=1)
    times = rounds.time_calls(step, wait, steps=steps, warm_up=warm_up, block=rounds.BLOCK if cuda else 1)
    figures: dict[str, Any] = {
        **times,
        "first_seconds": first["seconds"][0],
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "version": f"torch {torch.__version__}",
    }
    if cuda:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        grads = step()
        own = sum(grad.nbytes for grad in grads)
        figures["temp_mib"] = (torch.cuda.max_memory_allocated() - before - own) / 2**20
    return figures


# --- the equations --------------------------------------------------------------------------------


def run_equations(
    cell: str, layers: Layers, x: np.ndarray, cotangent: np.ndarray, *, epsilon: float
) -> tuple[np.ndarray, np.ndarray, list[dict[str, dict[str, np.ndarray]]]]:
    """Outputs, gradient of the input and gradients of the weights, in float64.

    Args:
        cell: "lstm" (with peepholes, layer norm, a projection and noise where the weights have them) or "gru".
        layers: see `Layers`.
        x: `[T, B, D]`.
        cotangent: of the outputs.
        epsilon: of layer norm.
    """
    step = {"lstm": _lstm_step, "gru": _gru_step}[cell]
    given = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    leaves = [
        {
            direction: {
                key: torch.tensor(array, dtype=torch.float64, requires_grad=key != "noise")
                for key, array in arrays.items()
            }
            for direction, arrays in layer.items()
        }
        for layer in layers
    ]
    y = given
    for layer in leaves:
        outputs = [_run_direction(step, w, y, turned=key == "backward", epsilon=epsilon) for key, w in layer.items()]
        y = torch.cat(outputs, dim=-1)
    y.backward(torch.tensor(cotangent, dtype=torch.float64))
    grads = [
        {
            direction: {key: tensor.grad.numpy() for key, tensor in arrays.items() if tensor.requires_grad}
            for direction, arrays in layer.items()
        }
        for layer in leaves
    ]
    return y.detach().numpy(), given.grad.numpy(), grads


def run_peer(
    name: str, layers: Layers, x: np.ndarray, cotangent: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[dict[str, dict[str, np.ndarray]]]]:
    """The same of the peer's module in float64."""
    module = build_peer(name, layers).double()
    given = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    y, _ = module(given)
    y.backward(torch.tensor(cotangent, dtype=torch.float64))
    grads: list[dict[str, dict[str, np.ndarray]]] = [{direction: {} for direction in layer} for layer in layers]
    for key, (n, direction, array) in name_parameters(layers):
        found = getattr(module, key).grad.numpy().T
        grads[n][direction][array] = found[..., -layers[n][direction][array].shape[-1] :]
    return y.detach().numpy(), given.grad.numpy(), grads


def _run_direction(step: Any, w: Mapping[str, torch.Tensor], x: torch.Tensor, *, turned: bool, epsilon: float) -> Any:
    """One direction of one layer, `[T, B, D]` to `[T, B, P]`."""
    rows, outputs = x.shape[1], w["recurrent_kernel"].shape[0]
    inner = w["projection_kernel"].shape[0] if "projection_kernel" in w else outputs
    c, h = x.new_zeros(rows, inner), x.new_zeros(rows, outputs)
    found: list[torch.Tensor] = []
    for at in reversed(range(len(x))) if turned else range(len(x)):
        seen = h * w["noise"] if "noise" in w else h
        c, h = step(w, x[at], c, h, seen, epsilon)
        found.append(h)
    return torch.stack(found[::-1] if turned else found)


def _norm(x: torch.Tensor, w: Mapping[str, torch.Tensor], name: str, epsilon: float) -> torch.Tensor:
    """Layer normalisation where the weights have a gain for it."""
    if f"{name}_gain" not in w:
        return x
    return nn.functional.layer_norm(x, x.shape[-1:], w[f"{name}_gain"], w.get(f"{name}_bias"), epsilon)


def _lstm_step(w: Mapping[str, torch.Tensor], x: Any, c: Any, h: Any, seen: Any, epsilon: float) -> tuple[Any, Any]:
    z = _norm(x @ w["input_kernel"], w, "input", epsilon) + w["bias"]
    i, f, g, o = (z + _norm(seen @ w["recurrent_kernel"], w, "recurrent", epsilon)).chunk(4, dim=-1)
    peepholes = [w.get(f"peephole_{gate}", torch.zeros(())) for gate in "ifo"]
    i, f = i + peepholes[0] * c, f + peepholes[1] * c
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o + peepholes[2] * c) * torch.tanh(_norm(c, w, "cell", epsilon))
    return c, (h @ w["projection_kernel"] if "projection_kernel" in w else h)


def _gru_step(w: Mapping[str, torch.Tensor], x: Any, c: Any, h: Any, seen: Any, epsilon: float) -> tuple[Any, Any]:
    x_r, x_z, x_n = (x @ w["input_kernel"] + w["bias"]).chunk(3, dim=-1)
    p_r, p_z, p_n = (seen @ w["recurrent_kernel"]).chunk(3, dim=-1)
    r, z = torch.sigmoid(x_r + p_r), torch.sigmoid(x_z + p_z)
    return c, (1 - z) * torch.tanh(x_n + r * (p_n + w["candidate_bias"])) + z * h
