"""Our Transformer's parameters as those of Hugging Face's MarianMTModel, which computes the same (post-norm).

Nothing but elements moves: no value is scaled or added up, so that arrays of indices can go the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

ATTENTION = {"self": "self_attn", "cross": "encoder_attn"}
NORMS = {"self": "self_attn_layer_norm", "cross": "encoder_attn_layer_norm", "mlp": "final_layer_norm"}


def to_marian(params: Mapping[str, Any], config: Any) -> dict[str, np.ndarray]:
    """The state_dict of a MarianMTModel, without its sinusoids, which nobody trains.

    Args:
        params: of `models.transformer.Transformer` with `norm` "post" and sinusoidal positions; arrays.
        config: its TransformerConfig.
    """
    table = np.asarray(params["target_embedding"]["table"])
    shared = config.share_embeddings
    source = table if shared == "all" else np.asarray(params["source_embedding"]["table"])
    found = {
        "model.encoder.embed_tokens.weight": source,
        "model.decoder.embed_tokens.weight": table,
        "lm_head.weight": np.asarray(params["softmax"]["kernel"]) if shared == "none" else table,
        "final_logits_bias": np.asarray(params["softmax"]["bias"])[None],
    }
    if shared == "all":
        found["model.shared.weight"] = table
    for side in ("encoder", "decoder"):
        stack = {name: np.asarray(array) for name, array in params[f"{side}_stack"].items()}
        for n in range(stack["mlp_out_bias"].shape[0]):
            layer = _layer({name: array[n] for name, array in stack.items()})
            found |= {f"model.{side}.layers.{n}.{name}": array for name, array in layer.items()}
    return found


def _layer(own: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}

    def put(name: str, kernel: np.ndarray, bias: np.ndarray) -> None:  # PyTorch's kernels are [out, in]
        found[f"{name}.weight"], found[f"{name}.bias"] = kernel.T, bias

    def flat(kernel: np.ndarray) -> np.ndarray:  # [D, N, H]
        return kernel.reshape(kernel.shape[0], -1)

    for n, name in enumerate("qkv"):
        put(f"self_attn.{name}_proj", flat(own["self_qkv_kernel"][:, n]), own["self_qkv_bias"][n].reshape(-1))
    if "cross_kv_kernel" in own:
        put("encoder_attn.q_proj", flat(own["cross_query_kernel"]), own["cross_query_bias"].reshape(-1))
        for n, name in enumerate("kv"):
            put(f"encoder_attn.{name}_proj", flat(own["cross_kv_kernel"][:, n]), own["cross_kv_bias"][n].reshape(-1))
    for ours, theirs in ATTENTION.items():
        if f"{ours}_out_kernel" in own:
            kernel = own[f"{ours}_out_kernel"]
            put(f"{theirs}.out_proj", kernel.reshape(-1, kernel.shape[-1]), own[f"{ours}_out_bias"])
    put("fc1", own["mlp_in_kernel"], own["mlp_in_bias"])
    put("fc2", own["mlp_out_kernel"], own["mlp_out_bias"])
    for ours, theirs in NORMS.items():
        if f"{ours}_norm_gain" in own:
            found[f"{theirs}.weight"], found[f"{theirs}.bias"] = own[f"{ours}_norm_gain"], own[f"{ours}_norm_bias"]
    return found


def make_empty_marian(config: Any) -> Any:
    """A MarianMTModel of these sizes with random weights, in evaluation mode."""
    from transformers import MarianConfig, MarianMTModel

    activations = {"relu": "relu", "gelu": "gelu_new", "swish": "swish"}
    sides = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in {
            "layers": getattr(config, f"{side}_layers"),
            "attention_heads": config.heads,
            "ffn_dim": config.feed_forward,
        }.items()
    }
    return MarianMTModel(
        MarianConfig(
            vocab_size=config.source_vocab,
            decoder_vocab_size=config.target_vocab,
            share_encoder_decoder_embeddings=config.share_embeddings == "all",
            tie_word_embeddings=config.share_embeddings != "none",
            d_model=config.features,
            activation_function=activations[config.activation],
            dropout=config.dropout,
            attention_dropout=0.0,
            activation_dropout=0.0,
            scale_embedding=True,
            max_position_embeddings=config.max_positions,
            static_position_embeddings=True,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=3,
            forced_eos_token_id=None,
            decoder_start_token_id=2,
            attn_implementation="sdpa",
            **sides,
        )
    ).eval()


def make_marian(params: Mapping[str, Any], config: Any) -> Any:
    """The same model as ours: a MarianMTModel with these parameters."""
    import torch

    model = make_empty_marian(config)
    state = {name: torch.from_numpy(np.array(array, np.float32)) for name, array in to_marian(params, config).items()}
    wrong = model.load_state_dict(state, strict=False)
    missing = [name for name in wrong.missing_keys if "embed_positions" not in name]
    if missing or wrong.unexpected_keys:
        raise ValueError(f"the parameters do not fit: missing {missing}, unexpected {wrong.unexpected_keys}")
    return model
