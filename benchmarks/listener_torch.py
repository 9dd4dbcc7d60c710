"""The listener and the front end in PyTorch: the peer that `listener.py` measures against.

The same layers with the same weights: `nn.LSTM(bidirectional=True)` on pairs of frames or on `nn.functional.conv2d`,
and `torch.stft` with the same filters. All recordings are as long as the batch, so that nothing is masked.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import rounds
import torch
from torch import nn
from torch.nn import functional

from seq2seq_jax.layers.frontend import LEAST_POWER, LEAST_VARIANCE, Frontend, mel_filters

NAMES = {"input_kernel": "weight_ih", "recurrent_kernel": "weight_hh", "bias": "bias_ih"}


def make_lstm(ahead: dict[str, np.ndarray], back: dict[str, np.ndarray]) -> nn.LSTM:
    """A layer in both directions with our weights; the second biases of PyTorch are zero."""
    inputs, width = ahead["input_kernel"].shape[0], ahead["recurrent_kernel"].shape[0]
    module = nn.LSTM(inputs, width, bidirectional=True)
    state = {key: torch.zeros_like(tensor) for key, tensor in module.state_dict().items()}
    for suffix, own in (("", ahead), ("_reverse", back)):
        for name, theirs in NAMES.items():
            state[f"{theirs}_l0{suffix}"] = torch.from_numpy(np.ascontiguousarray(own[name].T))
    module.load_state_dict(state)
    return module


def read_lstm(module: nn.LSTM) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The gradients of a layer's weights under our names, ahead and back."""
    found = []
    for suffix in ("", "_reverse"):
        tensors = {name: getattr(module, f"{theirs}_l0{suffix}").grad for name, theirs in NAMES.items()}
        found.append({name: tensor.detach().float().cpu().numpy().T for name, tensor in tensors.items()})
    return found[0], found[1]


class Listener(nn.Module):
    """Features `[B, T, M]` to hidden vectors `[B, T', D]`, from our tree of weights."""

    def __init__(self, weights: dict[str, Any], subsample: str) -> None:
        super().__init__()
        self.subsample = subsample
        count = sum(name.startswith("lower_ahead") for name in weights)
        self.lower = nn.ModuleList(
            make_lstm(weights[f"lower_ahead_{n}"], weights[f"lower_back_{n}"]) for n in range(count)
        )
        stack = weights.get("stack", {"ahead": {"bias": ()}})
        self.stack = nn.ModuleList(
            make_lstm(*({name: leaf[n] for name, leaf in stack[way].items()} for way in ("ahead", "back")))
            for n in range(len(stack["ahead"]["bias"]))
        )
        own = weights.get("subsampling", {})
        kernels = [name for name in own if name.endswith("_kernel")]
        self.kernels = nn.ParameterList(
            torch.from_numpy(np.transpose(own[name], (3, 2, 0, 1)).copy()) for name in kernels
        )
        biases = [own[name.replace("kernel", "bias")] for name in kernels]
        self.biases = nn.ParameterList(torch.from_numpy(bias.copy()) for bias in biases)
        if own:
            self.projection = nn.Linear(*own["projection"]["kernel"].shape)
            self.projection.weight.data = torch.from_numpy(own["projection"]["kernel"].T.copy())
            self.projection.bias.data = torch.from_numpy(own["projection"]["bias"].copy())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Runs over a whole batch."""
        if self.subsample == "pyramid":
            x = x.transpose(0, 1)
            for number, layer in enumerate(self.lower):
                if number:
                    x = functional.pad(x, (0, 0, 0, 0, 0, x.shape[0] % 2))
                    x = x.reshape(-1, 2, *x.shape[1:]).transpose(1, 2).reshape(x.shape[0] // 2, x.shape[1], -1)
                x = layer(x)[0]
        else:
            x = self.convolve(x[:, None]).transpose(0, 1)
        for layer in self.stack:
            x = layer(x)[0]
        return x.transpose(0, 1)

    def convolve(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, 1, T, M]` to `[B, T', D]`."""
        for number, (kernel, bias) in enumerate(zip(self.kernels, self.biases, strict=True)):
            x = functional.relu(
                functional.conv2d(x, kernel, bias, stride=2 if self.subsample == "conv" else 1, padding=1)
            )
            if self.subsample == "vgg" and number % 2:
                x = functional.max_pool2d(x, 2, ceil_mode=True)
        return self.projection(x.permute(0, 2, 3, 1).flatten(2))

    def read_gradients(self) -> dict[str, Any]:
        """The gradients in our tree."""
        found: dict[str, Any] = {}
        for n, layer in enumerate(self.lower):
            found[f"lower_ahead_{n}"], found[f"lower_back_{n}"] = read_lstm(layer)
        if len(self.stack):
            pairs = [read_lstm(layer) for layer in self.stack]
            for k, way in enumerate(("ahead", "back")):
                found.setdefault("stack", {})[way] = {
                    name: np.stack([pair[k][name] for pair in pairs]) for name in NAMES
                }
        if self.subsample != "pyramid":
            own: dict[str, Any] = {}
            for n, (kernel, bias) in enumerate(zip(self.kernels, self.biases, strict=True)):
                own[f"convolution_{n}_kernel"] = np.transpose(kernel.grad.numpy(), (2, 3, 1, 0))
                own[f"convolution_{n}_bias"] = bias.grad.numpy()
            grads = self.projection.weight.grad.numpy().T, self.projection.bias.grad.numpy()
            found["subsampling"] = own | {"projection": dict(zip(("kernel", "bias"), grads, strict=True))}
        return found


def run(weights: dict[str, Any], subsample: str, features: np.ndarray, cotangent: np.ndarray) -> tuple[np.ndarray, Any]:
    """Outputs, and the gradients of the weights in our tree."""
    torch.set_num_threads(1)  # it is small, and on a busy machine threads that wait for each other take for ever
    module = Listener(weights, subsample)
    hidden = module(torch.from_numpy(features))
    hidden.backward(torch.from_numpy(cotangent))
    return hidden.detach().numpy(), module.read_gradients()


def measure(
    weights: dict[str, Any], subsample: str, features: np.ndarray, cotangent: np.ndarray, *, dtype: str, steps: int,
    warm_up: int,
) -> dict[str, Any]:  # fmt: skip
    """Times forward and backward pass, gradients of all weights; see `rounds.time_calls`."""
    device, kind = ("cuda" if torch.cuda.is_available() else "cpu"), getattr(torch, dtype)
    torch.set_float32_matmul_precision("high")  # XLA's default on GPUs; nothing changes on CPUs
    torch.backends.cudnn.allow_tf32 = True
    module = Listener(weights, subsample).to(device, kind)
    given, back = (torch.from_numpy(x).to(device, kind) for x in (features, cotangent))
    leaves = list(module.parameters())

    def step() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(module(given), leaves, back)

    return _time(step, steps=steps, warm_up=warm_up)


def make_features(frontend: Frontend, waveform: np.ndarray) -> np.ndarray:
    """Our default features of recordings cut into frames `[B, T, H]`, by `torch.stft`."""
    return FrontEnd(frontend)(torch.from_numpy(waveform)).numpy()


class FrontEnd(nn.Module):
    """Log-mel features with pre-emphasis and normalisation by utterance."""

    def __init__(self, frontend: Frontend) -> None:
        super().__init__()
        self.frontend = frontend
        self.register_buffer("window", torch.hann_window(frontend.window))
        self.register_buffer("filters", torch.from_numpy(mel_filters(frontend).astype(np.float32)))

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        """`[B, T, H]` to `[B, T, M]`."""
        frontend, frames = self.frontend, waveform.shape[1]
        flat = waveform.flatten(1)
        flat = flat - frontend.preemphasis * functional.pad(flat, (1, 0))[:, :-1]
        how = {"hop_length": frontend.hop, "win_length": frontend.window, "center": True, "pad_mode": "constant"}
        spectrum = torch.stft(flat, frontend.fft, window=self.window, return_complex=True, **how)[..., :frames]
        mels = spectrum.abs().square().transpose(1, 2) @ self.filters
        logs = torch.log(mels.clamp(min=LEAST_POWER))
        centred = logs - logs.mean(1, keepdim=True)
        return centred * torch.rsqrt(centred.square().mean(1, keepdim=True) + LEAST_VARIANCE)


def measure_features(
    frontend: Frontend, waveform: np.ndarray, *, dtype: str, steps: int, warm_up: int
) -> dict[str, Any]:
    """Times the front end, which is float32 whatever the products of a model are."""
    del dtype
    device = "cuda" if torch.cuda.is_available() else "cpu"
    module, given = FrontEnd(frontend).to(device), torch.from_numpy(waveform).to(device)
    with torch.no_grad():
        return _time(lambda: module(given), steps=steps, warm_up=warm_up)


def _time(step: Any, *, steps: int, warm_up: int) -> dict[str, Any]:
    cuda = torch.cuda.is_available()

    def wait(result: Any) -> None:
        if cuda:
            torch.cuda.synchronize()

    first = rounds.time_calls(step, wait, steps=1, warm_up=0, block=1)
    times = rounds.time_calls(step, wait, steps=steps, warm_up=warm_up, block=rounds.BLOCK if cuda else 1)
    about = {"device": torch.cuda.get_device_name() if cuda else "cpu", "version": f"torch {torch.__version__}"}
    return {**times, "first_seconds": first["seconds"][0], **about}
