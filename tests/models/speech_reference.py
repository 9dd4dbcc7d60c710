"""Speech models in plain float64 numpy, one recording and one time step at a time: what the modules are tested against.

Written from the papers' equations alone (Chan et al. 2016, 1508.01211; Chorowski et al. 2015, 1506.07503; Gulati et al.
2020, 2005.08100). A recording is a list of frames, so there are no masks, no batches and no padding here that could be
wrong in the same way as the modules'. Parameters come as a module's tree of dictionaries with float64 arrays.
"""

from __future__ import annotations

import numpy as np


def sigma(x):
    """The logistic function."""
    return 1.0 / (1.0 + np.exp(-x))


def softmax(scores):
    """Over a vector."""
    powers = np.exp(scores - np.max(scores))
    return powers / powers.sum()


def lstm_step(layer, inputs, cell, output):
    """One step of one layer: a list of input vectors, the old cell and output to the new ones."""
    z = np.concatenate(inputs) @ layer["input_kernel"] + output @ layer["recurrent_kernel"] + layer["bias"]
    i, f, g, o = np.split(z, 4)
    cell = sigma(f) * cell + sigma(i) * np.tanh(g)
    return cell, sigma(o) * np.tanh(cell)


def lstm_sequence(layer, vectors):
    """The outputs of one layer over a list of vectors, from a state of zeros."""
    cell = output = np.zeros(layer["recurrent_kernel"].shape[0])
    outputs = []
    for x in vectors:
        cell, output = lstm_step(layer, [x], cell, output)
        outputs.append(output)
    return outputs


def both_directions(ahead, back, vectors):
    """Their outputs side by side."""
    pairs = zip(lstm_sequence(ahead, vectors), lstm_sequence(back, vectors[::-1])[::-1], strict=True)
    return [np.concatenate(pair) for pair in pairs]


def pyramid(listener, frames, halvings):
    """The layers of a pyramid (equation 5 of Chan et al.): each but the first reads pairs."""
    x = list(frames)
    for number in range(halvings + 1):
        if number:
            x = [*x, np.zeros_like(x[0])] if len(x) % 2 else x
            x = [np.concatenate([x[2 * n], x[2 * n + 1]]) for n in range(len(x) // 2)]
        x = both_directions(listener[f"lower_ahead_{number}"], listener[f"lower_back_{number}"], x)
    return x


def convolution(x, kernel, bias, stride):
    """3x3 over `[S, M, C]` with zeros around, rectified."""
    length, bins = -(-x.shape[0] // stride), -(-x.shape[1] // stride)
    made = np.zeros((length, bins, kernel.shape[-1]))
    for s, m, i, j in np.ndindex(length, bins, 3, 3):
        at, bin_ = stride * s + i - 1, stride * m + j - 1
        if 0 <= at < x.shape[0] and 0 <= bin_ < x.shape[1]:
            made[s, m] += x[at, bin_] @ kernel[i, j]
    return np.maximum(made + bias, 0.0)


def pooled(x):
    """The largest of every 2x2 places; the last ones may be fewer."""
    length, bins = -(-x.shape[0] // 2), -(-x.shape[1] // 2)
    return np.array(
        [[x[2 * s : 2 * s + 2, 2 * m : 2 * m + 2].max(axis=(0, 1)) for m in range(bins)] for s in range(length)]
    )


def subsampled(own, frames, kind, halvings):
    """What convolutions leave of frames `[S, M]`."""
    x = np.asarray(frames)[..., None]
    for number in range(halvings):
        for place in [number] if kind == "conv" else [2 * number, 2 * number + 1]:
            kernel, bias = own[f"convolution_{place}_kernel"], own[f"convolution_{place}_bias"]
            x = convolution(x, kernel, bias, 2 if kind == "conv" else 1)
        x = pooled(x) if kind == "vgg" else x
    return x.reshape(len(x), -1) @ own["projection"]["kernel"] + own["projection"]["bias"]


def normal(x, gain, bias, epsilon=1e-5):
    """Layer normalisation over the last axis."""
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(x.var(-1, keepdims=True) + epsilon) * gain + bias


def rotated(x):
    """Rotary positions of `[S, H]`: features i and i + H / 2 are turned by s 10000^(-2i / H)."""
    half = x.shape[-1] // 2
    turn = np.exp(1j * np.arange(len(x))[:, None] * 10000.0 ** (-np.arange(half) / half))
    z = (x[:, :half] + 1j * x[:, half:]) * turn
    return np.concatenate([z.real, z.imag], axis=-1)


def conformer_layer(own, x):
    """One layer over `[S, D]` (Gulati et al. 2020, equations 1), with layer normalisation in the convolution."""

    def norm(name, x):
        return normal(x, own[f"{name}_gain"], own[f"{name}_bias"])

    def feed_forward(prefix, x):
        inner = norm(f"{prefix}_norm", x) @ own[f"{prefix}_in_kernel"] + own[f"{prefix}_in_bias"]
        return inner * sigma(inner) @ own[f"{prefix}_out_kernel"] + own[f"{prefix}_out_bias"]

    x = x + feed_forward("mlp", x) / 2
    z, heads = norm("self_norm", x), []
    kernel, bias = own["self_qkv_kernel"], own["self_qkv_bias"]
    for n in range(kernel.shape[2]):
        q, k, v = (z @ kernel[:, i, n] + bias[i, n] for i in range(3))
        scores = rotated(q) @ rotated(k).T / np.sqrt(q.shape[-1])
        heads.append(np.array([softmax(row) for row in scores]) @ v @ own["self_out_kernel"][n])
    x = x + sum(heads) + own["self_out_bias"]
    z = norm("conv_norm", x)
    first, gate = (z @ own["conv_in_kernel"][:, i] + own["conv_in_bias"][i] for i in range(2))
    gated, width = first * sigma(gate), len(own["conv_depth_kernel"])
    padded = np.pad(gated, ((width // 2, width // 2), (0, 0)))
    deep = np.array([(padded[s : s + width] * own["conv_depth_kernel"]).sum(0) for s in range(len(x))])
    deep = norm("conv_depth_norm", deep + own["conv_depth_bias"])
    x = x + deep * sigma(deep) @ own["conv_out_kernel"] + own["conv_out_bias"]
    return norm("out_norm", x + feed_forward("last_mlp", x) / 2)


def listen(listener, frames, *, kind, subsample, halvings):
    """Features `[S, M]` to the memory `[ceil(S / 2^halvings), D]`."""
    if subsample == "pyramid":
        x = pyramid(listener, frames, halvings)
    else:
        x = subsampled(listener["subsampling"], frames, subsample, halvings)
    stack = listener.get("stack", {})
    count = len(next(iter((stack.get("ahead") or stack).values()))) if stack else 0
    for n in range(count):
        if kind == "conformer":
            x = conformer_layer({name: each[n] for name, each in stack.items()}, x)
        else:
            x = both_directions(
                *({name: leaf[n] for name, leaf in stack[way].items()} for way in ("ahead", "back")), list(x)
            )
    return np.array(x)


def spell(params, memory, tokens):
    """What the softmax reads at every step, `[T, D]`, and the attention's weights `[T, S]`."""
    own, content = params["speller"], params["speller"]["content"]
    layers = [own[f"stack_{n}"] for n in range(sum(name.startswith("stack") for name in own))]
    table = params["embedding"]["table"]
    gain = np.sqrt(table.shape[1])
    states = [(np.zeros(layer["recurrent_kernel"].shape[0]),) * 2 for layer in layers]
    context, before = np.zeros(memory.shape[1]), np.eye(len(memory))[0]
    hidden, weights = [], []
    for token in tokens:
        inputs = [table[token] * gain, context]
        for n, layer in enumerate(layers):
            states[n] = lstm_step(layer, inputs, *states[n])
            inputs = [states[n][1]]
        query = inputs[0] @ content["query_kernel"]
        scores = []
        for s, h in enumerate(memory):
            inner = query + h @ content["key_kernel"] + content["bias"]
            if "filter_kernel" in own:
                width = len(own["filter_kernel"])
                near = [
                    before[s + k - width // 2] if 0 <= s + k - width // 2 < len(memory) else 0.0 for k in range(width)
                ]
                inner = inner + np.array(near) @ own["filter_kernel"] @ own["location_kernel"]
            scores.append(content["v"] @ np.tanh(inner))
        before = softmax(np.array(scores))
        context = before @ memory
        read = np.concatenate([inputs[0], context]) @ params["readout"]["kernel"] + params["readout"]["bias"]
        hidden.append(np.tanh(read))
        weights.append(before)
    return np.array(hidden), np.array(weights)
