"""The keys of `config.model` of every model, with what they mean and their defaults."""

from __future__ import annotations

from typing import Any

LISTENER_KEYS: dict[str, Any] = {
    "listener": "lstm",  # bidirectional; or "conformer" (Gulati et al. 2020)
    # Frames to fewer steps: "pyramid" (Chan et al. 2016: two steps become one before a layer), "conv" (two
    # convolutions of stride 2), "vgg" (four convolutions, two poolings)
    "subsample": "conv",
    "reduction": 4,  # frames a step of the memory, a power of two; "pyramid" needs a layer more than it doubles
    "listener_layers": 3,
    "listener_features": 256,  # width of a listener layer's output, both directions together
    "heads": 4,  # "conformer"
    "feed_forward": 512,  # "conformer"
    "kernel": 15,  # "conformer": frames that its convolution sees
    "channels": 32,  # "conv", "vgg"
    "cell": "lstm",
    "cells": 0,
    "layer_norm": False,
    "dropout": 0.1,
    "recurrent_dropout": 0.0,
    "init_scale": 0.0,
    "dtype": "float32",
}
"""What `las` and `ctc` have in common: the encoder of speech."""

MODEL_KEYS: dict[str, dict[str, Any]] = {
    "bert": {
        "name": "bert",
        "features": 128,
        "layers": 4,  # of the encoder, which reads the source's language
        "heads": 4,
        "feed_forward": 512,
        "norm": "post",  # or "pre"
        "embedding_norm": True,  # layer normalisation of the embeddings; a Transformer that starts from it has none
        "positions": "learned",  # or "sinusoidal", "relative" (T5), "rotary"
        "max_positions": 512,  # "learned" positions, and `linformer`: no text may be longer
        "activation": "gelu",  # by tanh; or "relu", "swish", "swiglu"
        "head": True,  # a dense layer, gelu and layer normalisation before the softmax
        "linformer": 0,
        "linformer_share": "none",
        "dropout": 0.1,
        "init_scale": 0.0,
        "dtype": "float32",
    },
    "gnmt": {
        "name": "gnmt",
        "features": 128,  # width of embeddings, layers and attention values
        "encoder_layers": 2,  # the bottom one runs in both directions
        "decoder_layers": 2,
        "attention_features": 128,  # width of the hidden layer of the attention
        "attention": "additive",  # how a query scores the source; or "dot", "general" (Luong et al. 2015)
        "attention_from": "current_step",  # or "previous_step", as the paper has it
        "share_embeddings": "all",  # one table; or "target" (target embedding = softmax), or "none" (three tables)
        "cell": "lstm",  # of all recurrent layers; or "lstm_peephole" (Sak et al. 2014), "gru" (Cho et al. 2014)
        "cells": 0,  # width of a layer's cell, projected to `features`; 0: as wide, without a projection
        "layer_norm": False,  # inside the cell (Ba et al. 2016)
        "dropout": 0.1,
        "recurrent_dropout": 0.0,  # on what a layer gives to its next step, one draw a sentence (Gal, Ghahramani 2016)
        "init_scale": 0.0,  # parameters are drawn uniformly from [-init_scale, init_scale]; 0: scaled by their inputs
        "dtype": "float32",  # of the products; or "bfloat16". Parameters and states are float32
    },
    "gpt": {
        "name": "gpt",
        "features": 128,
        "layers": 6,  # of the one stack that reads the source and goes on with the target
        "heads": 4,
        "feed_forward": 512,
        "source": True,  # False: a language model, which reads nothing of its source
        "prefix": "causal",  # a token of the source sees those before it; or "full": all of the source
        "norm": "pre",  # or "post" (GPT of 2018)
        "positions": "learned",  # or "sinusoidal", "relative" (T5), "rotary"
        "max_positions": 1024,  # "learned": source and target together may be no longer
        "activation": "gelu",  # by tanh, as GPT has it; or "relu", "swish", "swiglu"
        "share_embeddings": "all",  # one table; or "target" (target embedding = softmax), or "none"
        "dropout": 0.1,
        "init_scale": 0.0,
        "dtype": "float32",
    },
    "ctc": {"name": "ctc", **LISTENER_KEYS},
    "las": {
        "name": "las",
        **LISTENER_KEYS,
        "features": 256,  # width of the speller's embeddings and layers
        "speller_layers": 1,
        "attention": "location",  # also hears where it was (Chorowski et al. 2015); or "content" (Chan et al. 2016)
        "attention_features": 128,
        "location_filters": 10,
        "location_width": 101,  # steps of the memory that they see, odd
        "ctc_head": False,  # a second softmax on the listener: needed by audio.ctc_weight and decode.ctc_weight
    },
    "language_model": {
        "name": "language_model",
        "features": 128,
        "layers": 2,
        "share_embeddings": "target",  # one table for embedding and softmax; or "none" (two)
        "cell": "lstm",
        "cells": 0,
        "layer_norm": False,
        "dropout": 0.1,
        "recurrent_dropout": 0.0,
        "init_scale": 0.0,
        "dtype": "float32",
    },
    "lstm": {
        "name": "lstm",
        "features": 128,
        "layers": 2,
        "reverse_source": True,
        "cell": "lstm",
        "cells": 0,
        "layer_norm": False,
        "dropout": 0.1,
        "recurrent_dropout": 0.0,
        "init_scale": 0.0,
        "dtype": "float32",
    },
    "rnnsearch": {
        "name": "rnnsearch",
        "features": 128,  # width of the decoder's state and of each direction of the encoder
        "embedding_features": 128,
        "attention_features": 128,  # width of the hidden layer of additive attention
        "readout_features": 64,  # width of what the softmax reads
        "attention": "additive",  # how a state scores the source; or "dot", "general" (Luong et al. 2015)
        "attention_from": "previous_step",  # whose state asks; or "current_step" (Luong)
        "readout": "maxout",  # of state, last word and context; or "tanh" of state and context (Luong)
        "readout_state": "asking",  # it reads the state that asked; or "newest", the one after it
        "cell": "gru",
        "cells": 0,
        "layer_norm": False,
        "dropout": 0.1,
        "recurrent_dropout": 0.0,
        "init_scale": 0.0,
        "attention_init_scale": 0.0,  # of the attention's parameters; 0 is `init_scale`
        "recurrent_init": "scaled",  # recurrent kernels as all others; or "orthogonal", gate by gate
        "dtype": "float32",
    },
    "transformer": {
        "name": "transformer",
        "features": 128,  # width of embeddings and layers
        "encoder_layers": 3,
        "decoder_layers": 3,
        "heads": 4,  # of every attention; they divide `features`
        "feed_forward": 512,  # width inside the feed-forward layers
        "norm": "post",  # layer normalisation after every sub-layer (the paper), or before it: "pre"
        "positions": "sinusoidal",  # or "learned", "relative" (T5), "rotary"
        "max_positions": 1024,  # "learned" positions, and `linformer`: no text may be longer
        "activation": "relu",  # of the feed-forward layers; or "gelu", "swish", "swiglu"
        "share_embeddings": "all",  # one table; or "target" (target embedding = softmax), or "none" (three tables)
        "linformer": 0,  # rank that keys and values of the encoder's self-attention are mixed down to; 0: not at all
        "linformer_share": "none",  # what shares the mixtures: or "heads", "kv" (also one for both), "layers" (of all)
        "dropout": 0.1,  # on embeddings and on the output of every sub-layer
        "init_scale": 0.0,
        "dtype": "float32",
    },
}
"""The keys of `config.model`, by its `name`."""
