"""GNMT as a PyTorch user would write it: the peer that `gnmt_step.py` measures against.

`torch.nn.LSTM` layers (oneDNN on CPUs, cuDNN on GPUs), additive attention over all pairs at once,
`torch.nn.CrossEntropyLoss`, the fused or multi-tensor Adam. The model is NVIDIA's reading of Wu et
al. 2016 (`attention_from="current_step"` of `seq2seq_jax.models.gnmt`), layer for layer.

Every sentence fills its row, so that the peer needs neither packed sequences nor a mask; ours keeps
its masks. `torch.nn.LSTM` has two biases a layer where one is meant: `parameters` counts one.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import rounds
import torch
from torch import nn


class TorchGNMT(nn.Module):
    """Encoder, attention, decoder and output projection; time-major inside.

    Args:
        vocab: tokens of either vocabulary.
        features: width of embeddings, layers and attention.
        layers: layers of the encoder (the bottom one in both directions) and of the decoder.
        dropout: rate on every non-recurrent connection.
    """

    def __init__(self, *, vocab: int, features: int, layers: int, dropout: float):
        super().__init__()
        memory = features * (2 if layers == 1 else 1)
        self.source_embedding = nn.Embedding(vocab, features)
        self.target_embedding = nn.Embedding(vocab, features)
        self.encoder_bottom = nn.LSTM(features, features, bidirectional=True)
        self.encoder = nn.ModuleList(nn.LSTM(features * (2 if n == 0 else 1), features) for n in range(layers - 1))
        self.decoder = nn.ModuleList(nn.LSTM(features + (memory if n else 0), features) for n in range(layers))
        self.query = nn.Linear(features, features, bias=False)
        self.key = nn.Linear(memory, features)
        self.v = nn.Linear(features, 1, bias=False)
        self.classifier = nn.Linear(features, vocab)
        self.dropout = nn.Dropout(dropout)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.04, 0.04)

    def forward(self, source: torch.Tensor, target_in: torch.Tensor) -> torch.Tensor:
        """Tokens `[S, B]` and `[T, B]` to logits `[T, B, V]`."""
        x, _ = self.encoder_bottom(self.dropout(self.source_embedding(source)))
        for n, layer in enumerate(self.encoder):
            y, _ = layer(self.dropout(x))
            x = y + x if n >= 1 else y
        memory = self.dropout(x).transpose(0, 1)  # [B, S, D]
        x, _ = self.decoder[0](self.dropout(self.target_embedding(target_in)))
        context = self.attend(x.transpose(0, 1), memory).transpose(0, 1)
        for n, layer in enumerate(self.decoder[1:]):
            y, _ = layer(torch.cat([self.dropout(x), self.dropout(context)], dim=-1))
            x = y + x if n >= 1 else y
        return self.classifier(self.dropout(x))

    def attend(self, queries: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """Contexts `[B, T, D]` of all queries `[B, T, D]` at once."""
        pairs = torch.tanh(self.query(queries)[:, :, None] + self.key(memory)[:, None])  # [B, T, S, A]
        return torch.softmax(self.v(pairs)[..., 0], dim=-1) @ memory


def load_weights(model: TorchGNMT, params: Mapping[str, Any]) -> None:
    """Copies the parameters of `seq2seq_jax.models.gnmt.GNMT` (numpy arrays) into the peer."""
    state = {name: tensor.zero_() for name, tensor in model.state_dict().items()}  # the second biases stay zero

    def put(name: str, array: np.ndarray) -> None:
        state[name].copy_(torch.from_numpy(np.array(array)))

    def put_lstm(name: str, layer: Mapping[str, np.ndarray], suffix: str = "") -> None:
        put(f"{name}.weight_ih_l0{suffix}", layer["input_kernel"].T)
        put(f"{name}.weight_hh_l0{suffix}", layer["recurrent_kernel"].T)
        put(f"{name}.bias_ih_l0{suffix}", layer["bias"])

    for side in ("source", "target"):
        put(f"{side}_embedding.weight", params[f"{side}_embedding"]["table"])
    put_lstm("encoder_bottom", params["encoder_bottom_forward"])
    put_lstm("encoder_bottom", params["encoder_bottom_backward"], "_reverse")
    for side, alone in (("encoder", "encoder_second"), ("decoder", "decoder_bottom")):
        if alone in params:
            put_lstm(f"{side}.0", params[alone])
        stack = params.get(f"{side}_stack", {"bias": ()})
        for n in range(len(stack["bias"])):
            put_lstm(f"{side}.{n + 1}", {name: leaf[n] for name, leaf in stack.items()})
    attention = params["attention"]
    put("query.weight", attention["query_kernel"].T)
    put("key.weight", attention["key_kernel"].T)
    put("key.bias", attention["bias"])
    put("v.weight", attention["v"][None])
    put("classifier.weight", params["softmax"]["kernel"])
    put("classifier.bias", params["softmax"]["bias"])


def read_gradients(model: TorchGNMT) -> dict[str, Any]:
    """The peer's gradients in the tree of ours, numpy arrays."""
    grads = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}

    def lstm(name: str, suffix: str = "") -> dict[str, np.ndarray]:
        return {
            "input_kernel": grads[f"{name}.weight_ih_l0{suffix}"].T,
            "recurrent_kernel": grads[f"{name}.weight_hh_l0{suffix}"].T,
            "bias": grads[f"{name}.bias_ih_l0{suffix}"],
        }

    tree = {
        "source_embedding": {"table": grads["source_embedding.weight"]},
        "target_embedding": {"table": grads["target_embedding.weight"]},
        "encoder_bottom_forward": lstm("encoder_bottom"),
        "encoder_bottom_backward": lstm("encoder_bottom", "_reverse"),
        "attention": {
            "query_kernel": grads["query.weight"].T,
            "key_kernel": grads["key.weight"].T,
            "bias": grads["key.bias"],
            "v": grads["v.weight"][0],
        },
        "softmax": {"kernel": grads["classifier.weight"], "bias": grads["classifier.bias"]},
    }
    for side, alone, layers in (
        ("encoder", "encoder_second", model.encoder),
        ("decoder", "decoder_bottom", model.decoder),
    ):
        each = [lstm(f"{side}.{n}") for n in range(len(layers))]
        tree |= {alone: each[0]} if each else {}
        if len(each) > 1:
            tree[f"{side}_stack"] = {name: np.stack([layer[name] for layer in each[1:]]) for name in each[0]}
    return tree


def count_parameters(model: TorchGNMT) -> int:
    """Parameters, with one bias a layer and direction."""
    return sum(p.numel() for name, p in model.named_parameters() if ".bias_hh" not in name)


def mean_loss(model: TorchGNMT, tokens: Mapping[str, np.ndarray], label_smoothing: float) -> torch.Tensor:
    """Mean cross-entropy of a batch of tokens `[B, S]` and `[B, T]`."""
    device = next(model.parameters()).device
    source, target_in, target_out = (
        torch.from_numpy(tokens[name].astype(np.int64).T.copy()).to(device)
        for name in ("source", "target_in", "target_out")
    )
    criterion = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
    return criterion(model(source, target_in).flatten(0, 1), target_out.flatten())


def measure(
    sizes: Mapping[str, int],
    tokens: Mapping[str, np.ndarray],
    *,
    steps: int,
    warm_up: int,
    dtype: str,
    dropout: float,
    label_smoothing: float,
    clip_norm: float,
    learning_rate: float,
) -> dict[str, Any]:
    """Times the training step of the peer.

    Returns:
        Seconds of every measured step (on a GPU: a tenth of ten), and what they were of.
    """
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    torch.set_float32_matmul_precision("high")  # XLA's default on GPUs; nothing changes on CPUs
    torch.manual_seed(0)
    model = TorchGNMT(vocab=sizes["vocab"], features=sizes["features"], layers=sizes["layers"], dropout=dropout)
    model = model.to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, fused=True)
    batch = {name: torch.from_numpy(array.astype(np.int64).T.copy()).to(device) for name, array in tokens.items()}
    criterion = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
    mixed = torch.autocast(device.type, torch.bfloat16) if dtype == "bfloat16" else nullcontext()

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        with mixed:
            logits = model(batch["source"], batch["target_in"])
            loss = criterion(logits.flatten(0, 1), batch["target_out"].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()
        return loss

    first = rounds.time_calls(step, torch.Tensor.item, steps=1, warm_up=0, block=1)
    times = rounds.time_calls(step, torch.Tensor.item, steps=steps, warm_up=warm_up, block=rounds.BLOCK if cuda else 1)
    return {
        **times,
        "first_seconds": first["seconds"][0],
        "parameters": count_parameters(model),
        "loss": step().item(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "version": f"torch {torch.__version__}",
    }
