"""What a token costs to train on: floating-point operations of the forward pass, and twice these of the backward pass.

Products with weights cost a token the same in texts of any length. Beside them a Transformer's attention scores every
key and mixes every value that a token may see: that grows with the length. What is recomputed does not count, nor do
look-ups, norms and activations.
"""

from __future__ import annotations

from typing import Any

import jax
from ml_collections import ConfigDict

from seq2seq_jax.config import has_search, is_transformer, takes_source
from seq2seq_jax.interfaces import PyTree
from seq2seq_jax.speech_checks import reads_speech
from seq2seq_jax.train.freezing import name_of

PASSES = 3
"""A forward pass, and a backward pass of two products for each of its products."""


def count_weights(params: PyTree, config: ConfigDict) -> tuple[float, float]:
    """Weights that meet every source token, and every target token (a shared table's as a softmax).

    Encoder weights meet source tokens, as do those of what a Transformer's decoder makes of them, all others target
    tokens; of a masked language model what is not in the encoder meets hidden tokens. Linformer's mixtures have a row
    for every place, and a token meets that of its own.

    Args:
        params: every parameter's shape.
        config: the run's.
    """
    source, target, keys = 0, 0, config.model
    if reads_speech(keys):
        return _count_speech(params, keys.reduction)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = name_of(path)
        if name.endswith(("table", "linformer_kernel")):
            continue
        if name.startswith(("encoder", "embedding")) or "cross_kv" in name:  # what decoders attend to
            source += leaf.size
        else:
            target += leaf.size
            if name.startswith("stack") and takes_source(keys):  # one stack for both sides
                source += leaf.size
    source += 2 * keys.get("linformer", 0) * keys.features * count_encoder_layers(keys)  # of keys and of values
    shared = params["target_embedding" if has_search(keys) else "source_embedding"]["table"]
    return source, target + (0 if "kernel" in params.get("softmax", {}) else shared.size)


def _count_speech(params: PyTree, reduction: int) -> tuple[float, float]:
    """Weights that meet every frame of speech, and every target token.

    All of the listener counts as if it met the steps of the memory: of a pyramid's lower layers, and of convolutions,
    that is less than there is.
    """
    source = target = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = name_of(path)
        if name.startswith(("listener", "frame_softmax")):
            source += leaf.size
        elif not name.endswith("table"):
            target += leaf.size
    return source / reduction, float(target)


def count_encoder_layers(keys: ConfigDict) -> int:
    """Layers of a Transformer's encoder; `keys` are those of `config.model`."""
    return keys.get("encoder_layers", keys.get("layers", 0))


def count_scored(keys: ConfigDict, source_len: int, target_len: int) -> tuple[float, float]:
    """Keys that a token's attention scores, the sum over layers: of a source token, and of a target token.

    What a causal mask hides does not count: a token sees half of its text in the mean.

    Args:
        keys: those of `config.model`; of a model with recurrent layers nothing counts.
        source_len, target_len: tokens of both texts.
    """
    past = (target_len + 1) / 2
    if not is_transformer(keys):
        return 0.0, 0.0
    if keys.name == "gpt":
        if not keys.source:
            return 0.0, keys.layers * past
        seen = source_len if keys.prefix == "full" else (source_len + 1) / 2
        return keys.layers * seen, keys.layers * (source_len + past)
    decoder = keys.get("decoder_layers", 0) * (past + source_len)
    return count_encoder_layers(keys) * (keys.linformer or source_len), decoder


def count_token(params: PyTree, config: ConfigDict, *, source_len: int, target_len: int) -> dict[str, Any]:
    """Operations of one token of each side, forward and backward.

    Of a masked language model, a token of its text counts as a source token: hidden ones, which alone meet the softmax,
    are shared among all.

    Args:
        params: every parameter's shape.
        config: the run's.
        source_len, target_len: of the texts that the scores are counted for.

    Returns:
        `source` and `target`, of products with weights; `source_scores` and `target_scores`, of attention at
        `source_len` and `target_len`.
    """
    source, target = count_weights(params, config)
    source_scores, target_scores = count_scored(config.model, source_len, target_len)
    if not has_search(config.model):
        source, target = source + config.masked.share * target, 0.0
    width = config.model.get("features", 0)
    of_weight, of_key = 2.0 * PASSES, 2.0 * 2.0 * PASSES * width  # a key and its value
    return {
        "source": of_weight * source if takes_source(config.model) else 0.0,
        "target": of_weight * target,
        "source_scores": of_key * source_scores,
        "target_scores": of_key * target_scores,
        "source_len": source_len,
        "target_len": target_len,
    }
