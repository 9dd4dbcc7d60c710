"""Fewer frames: pairs side by side, or convolutions over time and frequency, with padding kept out.

    stack_pairs    frames 2s and 2s + 1 become one of twice the width     (Chan et al. 2016, 1508.01211, section 3.1)
    "conv"         3x3 convolutions with stride 2                         (Dong et al. 2018; Gulati et al. 2020)
    "vgg"          blocks of two 3x3 convolutions and 2x2 max pooling     (Hori et al. 2017, 1706.02737, section 3)

Every one of them halves the length, rounded up: of n frames ceil(n / 2) remain, and frame s is real where frame 2s was.
Convolutions read zeros before the first frame and after the last one; what they made of padding is set to zero again
before the next one, so that no recording knows how far it is padded. There is no batch normalisation, which would.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Bool, Float

from seq2seq_jax.interfaces import Array
from seq2seq_jax.layers.activations import relu
from seq2seq_jax.layers.dense import Dense
from seq2seq_jax.layers.initializers import glorot_initializer
from seq2seq_jax.layers.parameters import declare
from seq2seq_jax.layers.runs import sum_products

KERNEL = 3
"""Frames and bins that a convolution sees."""


def halve_mask(mask: Bool[Array, "B S"]) -> Bool[Array, "B R"]:
    """Which of half as many frames, rounded up, are real."""
    return mask[:, ::2]


def stack_pairs(x: Float[Array, "S B D"]) -> Float[Array, "R B E"]:
    """Every two frames side by side, `[ceil(S / 2), B, 2D]`; zeros after the last one of an odd number."""
    length, rows, width = x.shape
    x = jnp.pad(x, ((0, length % 2), (0, 0), (0, 0)))
    return x.reshape(-1, 2, rows, width).swapaxes(1, 2).reshape(-1, rows, 2 * width)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(x: Float[Array, "B S M C"], kernel: Array, stride: int) -> Float[Array, "B R G D"]:
    """A 3x3 convolution that reads zeros around its input, in the dtype of `x`; the gradient of the kernel is float32.

    Place (s, m) of the output sees (stride s, stride m) and what is around it, whether a length is odd or even.

    On CPUs recordings take turns where XLA writes much in between, which for all of them would be new memory to the
    process, and take longer than the sums: forward with stride 2, and for the gradient of the kernel.
    """
    return _convolve(x, kernel, stride)


def _convolve(x: Array, kernel: Array, stride: int) -> Array:
    at_once = functools.partial(_convolve_all, stride=stride)
    if stride == 1 or x.shape[-1] == 1:
        return at_once(x, kernel)
    in_turn = _take_turns(lambda one, kernel: at_once(one[None], kernel)[0])
    return lax.platform_dependent(x, kernel, cpu=in_turn, default=at_once)


def _take_turns(run: Callable[..., Array]) -> Callable[..., Array]:
    """`run(x[b], shared)` for one recording after the other."""
    return lambda x, shared: lax.map(lambda one: run(one, shared), x)


def _convolve_all(x: Array, kernel: Array, stride: int) -> Array:
    names, around = ("NHWC", "HWIO", "NHWC"), ((KERNEL // 2, KERNEL // 2),) * 2
    return lax.conv_general_dilated(x, kernel.astype(x.dtype), (stride, stride), around, dimension_numbers=names)


def _convolve_forward(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(x, kernel, stride), (x, kernel)


def _convolve_backward(stride: int, saved: tuple[Array, Array], given: Array) -> tuple[Array, Array]:
    x, kernel = saved

    def find_input(given: Array, kernel: Array) -> Array:
        return jax.linear_transpose(lambda x: _convolve_all(x, kernel, stride), x)(given)[0]

    def find_kernel(x: Array, given: Array) -> Array:
        return jax.vjp(lambda kernel: _convolve_all(x, kernel, stride), kernel)[1](given)[0]

    def find_kernel_in_turn(x: Array, given: Array) -> Array:
        return lax.map(lambda one: _sum_by_rows(one[0], one[1], stride), (x, given)).sum(axis=0)

    d_kernel = lax.platform_dependent(x, given, cpu=find_kernel_in_turn, default=find_kernel)
    if stride == 1:
        return find_input(given, kernel), d_kernel
    spread = _take_turns(functools.partial(_spread, sizes=(x.shape[1], x.shape[2])))
    return lax.platform_dependent(given, kernel, cpu=spread, default=find_input), d_kernel


convolve.defvjp(_convolve_forward, _convolve_backward)


def _sum_by_rows(x: Float[Array, "S M C"], given: Float[Array, "R G D"], stride: int) -> Array:
    """The gradient of the kernel, a product for each of its rows: on CPUs XLA's takes up to ten times as long."""
    around = jnp.pad(x, ((KERNEL // 2,) * 2, (KERNEL // 2,) * 2, (0, 0)))
    times, bins = (stride * (size - 1) + 1 for size in given.shape[:2])
    rows, flat = [], given.reshape(-1, given.shape[-1])
    for i in range(KERNEL):
        seen = [around[i : i + times : stride, j : j + bins : stride] for j in range(KERNEL)]
        rows.append(sum_products(jnp.concatenate(seen, axis=-1).reshape(flat.shape[0], -1), flat))
    return jnp.stack(rows).reshape(KERNEL, KERNEL, x.shape[-1], given.shape[-1])


def _spread(given: Float[Array, "R G D"], kernel: Array, sizes: tuple[int, int]) -> Float[Array, "S M C"]:
    """The gradient of the input of a convolution with stride 2, by two convolutions without one.

        even frames 2s        see s by row 1                    even bins 2m        see m by column 1
        odd frames 2s + 1     see s by row 2, s + 1 by row 0    odd bins 2m + 1     see m by column 2, m + 1 by column 0

    Even and odd bins are channels side by side. XLA's own puts zeros between what is given, and multiplies them.
    """
    times, bins, outputs = given.shape
    kernel = kernel.astype(given.dtype).swapaxes(2, 3)  # [3, 3, D, C]
    ahead = jnp.zeros_like(kernel[:, 0])
    both = jnp.stack(
        [jnp.stack([kernel[:, 1], ahead]), jnp.stack([kernel[:, 2], kernel[:, 0]])]
    )  # [parity, ahead, 3, ..]
    both = both.transpose(2, 1, 3, 0, 4).reshape(KERNEL, 2, outputs, -1)  # by row, ahead, D, parity and C

    def convolve_rows(*rows: int) -> Array:
        names, after = ("NHWC", "HWIO", "NHWC"), ((0, len(rows) - 1), (0, 1))
        own = jnp.stack([both[row] for row in rows])
        return lax.conv_general_dilated(given[None], own, (1, 1), after, dimension_numbers=names)[0]

    even, odd = convolve_rows(1), convolve_rows(2, 0)  # [R, G, 2 C]
    made = jnp.stack([even, odd], axis=1).reshape(2 * times, 2 * bins, -1)
    return made[: sizes[0], : sizes[1]]


def pool_pairs(x: Float[Array, "B S M C"]) -> Float[Array, "B R G C"]:
    """The largest of every 2x2 places, where nothing is negative: zeros fill up what is odd."""
    x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
    x = jnp.maximum(x[:, 0::2], x[:, 1::2])
    return jnp.maximum(x[:, :, 0::2], x[:, :, 1::2])


class Convolutions(nn.Module):
    """Subsampling by convolutions, and a projection: `[B, S, M]` to `[B, S / 2^halvings, D]`.

    Attributes:
        kind: "conv" or "vgg".
        halvings: how often the length is halved: so many convolutions, or blocks.
        mels: M.
        channels: C of every convolution; of "vgg" twice as many after the first block.
        features: D.
        dtype: dtype of the products.
        init_scale: see `seq2seq_jax.layers.initializers`.
    """

    kind: str
    halvings: int
    mels: int
    channels: int
    features: int
    dtype: jnp.dtype = jnp.float32
    init_scale: float = 0.0

    def setup(self) -> None:
        self.layers = [self._declare(n, *sizes) for n, sizes in enumerate(self._list_sizes())]
        bins = self.mels
        for _ in range(self.halvings):
            bins = -(-bins // 2)
        last = self._list_sizes()[-1][1] if self.halvings else 1
        self.projection = Dense(bins * last, self.features, self.dtype, self.init_scale)

    def _list_sizes(self) -> list[tuple[int, int]]:
        """Channels in and out of every convolution."""
        sizes, inputs = [], 1
        for block in range(self.halvings):
            outputs = self.channels * (2 if self.kind == "vgg" and block else 1)
            sizes.append((inputs, outputs))
            if self.kind == "vgg":
                sizes.append((outputs, outputs))
            inputs = outputs
        return sizes

    def _declare(self, number: int, inputs: int, outputs: int) -> tuple[Array, Array]:
        seen = KERNEL * KERNEL
        # Variance 2 / inputs (He et al. 2015, 1502.01852): behind a rectifier signals stay as large as they were. By
        # inputs and outputs a listener starts nearly silent, and CTC takes far longer to leave its blanks.
        init = glorot_initializer(self.init_scale, inputs=seen * inputs, outputs=0)
        shape, axes = (KERNEL, KERNEL, inputs, outputs), (None, None, None, "hidden")
        kernel = declare(self, f"convolution_{number}_kernel", init, shape, axes)
        return kernel, declare(self, f"convolution_{number}_bias", nn.initializers.zeros, (outputs,), ("hidden",))

    def _convolve(self, x: Array, mask: Array, number: int, *, stride: int) -> tuple[Array, Array]:
        kernel, bias = self.layers[number]
        made = relu(convolve(x, kernel, stride).astype(jnp.float32) + bias).astype(x.dtype)
        mask = halve_mask(mask) if stride == 2 else mask
        return made * mask[:, :, None, None].astype(x.dtype), mask

    def __call__(
        self, features: Float[Array, "B S M"], mask: Bool[Array, "B S"]
    ) -> tuple[Float[Array, "B R D"], Bool[Array, "B R"]]:
        """Features `[B, S, M]` and their mask to vectors `[B, R, D]`, zero where masked, and theirs `[B, R]`."""
        with jax.named_scope("subsampling"):
            x = (features * mask[..., None])[..., None].astype(self.dtype)
            for number in range(self.halvings):
                if self.kind == "conv":
                    x, mask = self._convolve(x, mask, number, stride=2)
                else:
                    x, _ = self._convolve(x, mask, 2 * number, stride=1)
                    x, _ = self._convolve(x, mask, 2 * number + 1, stride=1)
                    x, mask = pool_pairs(x), halve_mask(mask)
            made = self.projection(x.reshape(*x.shape[:2], -1)).astype(self.dtype)
            return made * mask[..., None].astype(made.dtype), mask
