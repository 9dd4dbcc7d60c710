"""Drives the peer of `search.py`: the beam search of NVIDIA's GNMT for PyTorch, as it stands in their repository.

The folder that is given holds `seq2seq` of NVIDIA DeepLearningExamples, PyTorch/Translation/GNMT, with the imports of
`apex` taken out (they are for training) and an empty `dllogger.py` beside it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

BOS, EOS = 2, 3  # of the peer; the same as ours
IMPOSSIBLE = -1e4  # float16 has it, too


class Generator:
    """The peer with random weights, and eos made impossible so that every output has the same length.

    Args:
        peer: the folder that holds `seq2seq`.
        sizes: `vocab`, `features` and `layers`.
        beam: hypotheses of a sentence.
        steps: tokens of every output.
        dtype: "bfloat16" is half precision on a GPU, which is what the peer does there.
    """

    def __init__(self, peer: str | Path, sizes: Mapping[str, int], *, beam: int, steps: int, dtype: str):
        sys.path.insert(0, str(peer))
        from seq2seq.inference.beam_search import SequenceGenerator
        from seq2seq.models.gnmt import GNMT

        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.set_float32_matmul_precision("high")  # XLA's default on GPUs; nothing changes on CPUs
        torch.manual_seed(0)
        model = GNMT(
            sizes["vocab"],
            hidden_size=sizes["features"],
            num_layers=sizes["layers"],
            batch_first=False,
            share_embedding=False,
        )
        with torch.no_grad():
            model.decoder.classifier.classifier.bias[EOS] = IMPOSSIBLE
        model = model.to(self.device).eval()
        self.model = model.half() if dtype == "bfloat16" and self.device.type == "cuda" else model
        self.beam = beam
        self.generator = SequenceGenerator(self.model, beam_size=beam, max_seq_len=steps + 1)

    @torch.no_grad()
    def load_weights(self, params: Mapping[str, Any]) -> None:
        """Copies the parameters of `seq2seq_jax.models.gnmt.GNMT` (NumPy arrays) into the peer."""
        encoder, decoder = self.model.encoder, self.model.decoder
        attention = decoder.att_rnn.attn

        def put(tensor: torch.Tensor, array: np.ndarray) -> None:
            tensor.copy_(torch.from_numpy(np.array(array)))

        def put_lstm(layer: torch.nn.LSTM, weights: Mapping[str, np.ndarray], suffix: str = "") -> None:
            put(getattr(layer, f"weight_ih_l0{suffix}"), weights["input_kernel"].T)
            put(getattr(layer, f"weight_hh_l0{suffix}"), weights["recurrent_kernel"].T)
            put(getattr(layer, f"bias_ih_l0{suffix}"), weights["bias"])
            getattr(layer, f"bias_hh_l0{suffix}").zero_()  # two biases where one is meant

        put(encoder.embedder.weight, params["source_embedding"]["table"])
        put(decoder.embedder.weight, params["target_embedding"]["table"])
        put_lstm(encoder.rnn_layers[0], params["encoder_bottom_forward"])
        put_lstm(encoder.rnn_layers[0], params["encoder_bottom_backward"], "_reverse")
        put_lstm(encoder.rnn_layers[1], params["encoder_second"])
        put_lstm(decoder.att_rnn.rnn, params["decoder_bottom"])
        for layers, stack in ((encoder.rnn_layers[2:], "encoder_stack"), (decoder.rnn_layers, "decoder_stack")):
            for n, layer in enumerate(layers):
                put_lstm(layer, {name: leaf[n] for name, leaf in params[stack].items()})
        put(attention.linear_q.weight, params["attention"]["query_kernel"].T)
        put(attention.linear_k.weight, params["attention"]["key_kernel"].T)
        put(attention.linear_att, params["attention"]["v"])
        attention.normalize_scalar.fill_(float(np.linalg.norm(params["attention"]["v"])))  # which it divides v by
        put(attention.normalize_bias, params["attention"]["bias"])
        put(decoder.classifier.classifier.weight, params["softmax"]["kernel"])
        put(decoder.classifier.classifier.bias, params["softmax"]["bias"])

    @torch.no_grad()
    def search(self, sources: Sequence[np.ndarray]) -> np.ndarray:
        """Searches a batch, longest source first: the best outputs with bos, `[B, 1 + steps]`."""
        lengths = torch.tensor([len(source) for source in sources])
        padded = torch.zeros((int(lengths[0]), len(sources)), dtype=torch.int64)
        for row, source in enumerate(sources):
            padded[: len(source), row] = torch.from_numpy(source.astype(np.int64))
        context = self.model.encode(padded.to(self.device), lengths)
        first = torch.full((1, len(sources) * self.beam), BOS, device=self.device)
        tokens, _, _ = self.generator.beam_search(len(sources), first, [context, lengths.to(self.device), None])
        return tokens.cpu().numpy()
