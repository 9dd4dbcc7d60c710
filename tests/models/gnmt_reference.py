"""GNMT in plain float64 numpy, one sentence and one time step at a time: what the module is tested against.

Written from the equations of Wu et al. 2016 (arXiv 1609.08144) alone. A sentence is a list of
tokens, so there are no masks, no batches and no padding here that could be wrong in the same way
as the module's. Parameters come as the module's tree of dictionaries with float64 arrays.

    LSTM (section 3.1)        i, f, o = sigma(.)   g = tanh(.)   c' = f c + i g   m' = o tanh(c')
    residual (equation 6)     x^i = m^i + x^(i-1), from the third layer of either side on
    attention (equation 4)    s_t = v . tanh(Q y + K x_t + b)   p = softmax(s)   a = sum_t p_t x_t
    softmax                   logits = W x + b
"""

from __future__ import annotations

import numpy as np


def sigma(x):
    """The logistic function."""
    return 1.0 / (1.0 + np.exp(-x))


def lstm_step(layer, inputs, cell, output):
    """One step of one layer: a list of input vectors, the old cell and output to the new ones."""
    x = np.concatenate(inputs)
    z = x @ layer["input_kernel"] + output @ layer["recurrent_kernel"] + layer["bias"]
    width = len(cell)
    i, f, g, o = (z[n * width : (n + 1) * width] for n in range(4))
    cell = sigma(f) * cell + sigma(i) * np.tanh(g)
    return cell, sigma(o) * np.tanh(cell)


def get_layer(params, side, number):
    """The parameters of layer `number` of the encoder or decoder; layers count from 1, as in the paper's figure 1."""
    alone = {("encoder", 2): "encoder_second", ("decoder", 1): "decoder_bottom"}
    if (side, number) in alone:
        return params[alone[side, number]]
    below = 2 if side == "encoder" else 1
    return {name: leaf[number - below - 1] for name, leaf in params[f"{side}_stack"].items()}


def lstm_sequence(layer, vectors):
    """The outputs of one layer over a list of vectors, from a state of zeros."""
    width = layer["recurrent_kernel"].shape[0]
    cell, output, outputs = np.zeros(width), np.zeros(width), []
    for x in vectors:
        cell, output = lstm_step(layer, [x], cell, output)
        outputs.append(output)
    return outputs


def encode(params, source, layers):
    """What the decoder attends to: one vector for every token of the sentence."""
    table = params["source_embedding" if "source_embedding" in params else "target_embedding"]["table"]
    words = [table[token] for token in source]
    left_to_right = lstm_sequence(params["encoder_bottom_forward"], words)
    right_to_left = lstm_sequence(params["encoder_bottom_backward"], words[::-1])[::-1]
    x = [np.concatenate(pair) for pair in zip(left_to_right, right_to_left, strict=True)]
    for number in range(2, layers + 1):
        m = lstm_sequence(get_layer(params, "encoder", number), x)
        x = [new + old for new, old in zip(m, x, strict=True)] if number >= 3 else m
    return x


def attend(attention, query, memory):
    """Equation 4: the context vector and the probability of every source position."""
    asked = query @ attention["query_kernel"] + attention["bias"]
    scores = np.array([attention["v"] @ np.tanh(asked + x @ attention["key_kernel"]) for x in memory])
    p = np.exp(scores - scores.max())
    p = p / p.sum()
    return sum(weight * x for weight, x in zip(p, memory, strict=True)), p


def decode(params, target_in, memory, layers, attention_from):
    """Hidden states `[T, D]` below the softmax and attention `[T, S]` of one target."""
    width = params["decoder_bottom"]["recurrent_kernel"].shape[0]
    states = [(np.zeros(width), np.zeros(width)) for _ in range(layers)]
    hidden, attention = [], []
    for token in target_in:
        word = params["target_embedding"]["table"][token]
        if attention_from == "previous_step":
            context, p = attend(params["attention"], states[0][1], memory)
            states[0] = lstm_step(params["decoder_bottom"], [word, context], *states[0])
        else:
            states[0] = lstm_step(params["decoder_bottom"], [word], *states[0])
            context, p = attend(params["attention"], states[0][1], memory)
        x = states[0][1]
        for number in range(2, layers + 1):
            layer = get_layer(params, "decoder", number)
            states[number - 1] = lstm_step(layer, [x, context], *states[number - 1])
            m = states[number - 1][1]
            x = m + x if number >= 3 else m
        hidden.append(x)
        attention.append(p)
    return np.stack(hidden), np.stack(attention)


def translate(params, source, target_in, *, encoder_layers, decoder_layers, attention_from):
    """Logits `[T, V]`, attention `[T, S]` and memory `[S, Dm]` of one sentence pair without padding."""
    memory = encode(params, source, encoder_layers)
    hidden, attention = decode(params, target_in, memory, decoder_layers, attention_from)
    softmax = params["softmax"]
    kernel = softmax["kernel"] if "kernel" in softmax else params["target_embedding"]["table"]
    return hidden @ kernel.T + softmax["bias"], attention, np.stack(memory)


def cross_entropy(logits, target_out):
    """Minus the sum of the log-probabilities of `target_out`."""
    top = logits.max(axis=-1, keepdims=True)
    log_probs = logits - top - np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))
    return -sum(log_probs[t, token] for t, token in enumerate(target_out))
