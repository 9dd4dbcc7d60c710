"""One device: a stack of LSTM layers in order against the same stack as a batched wavefront, side by side.

    python benchmarks/wavefront.py [--features 256 --layers 8 --length 64 --rows 1,8,64 --chunk 1,4,16]

Both are run in turns in one process, forward and backward, and the quickest of each is compared: below
1.00 the wavefront wins. `config.parallel.layers="wavefront"` is the one, "in_order" the other.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import rounds
from flax import linen as nn

from seq2seq_jax.layers.dropout import make_places
from seq2seq_jax.layers.recurrent import LayerKind
from seq2seq_jax.layers.runs import choose_loop
from seq2seq_jax.layers.stack import RecurrentStack, run_in_order
from seq2seq_jax.parallel.pipeline import batched_wavefront


def build(run: Callable, args: argparse.Namespace, rows: int) -> tuple[Callable, tuple]:
    """The jitted value and gradients of a stack, and what to call it with."""
    kind = LayerKind(args.features, dtype=jnp.dtype(args.dtype), loop=choose_loop(jax.default_backend()))
    stack = RecurrentStack(kind, args.layers, run=run)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(args.length, rows, args.features)), args.dtype)
    mask, places = jnp.ones((args.length, rows), bool), make_places(jnp.arange(rows), args.length)
    plain = RecurrentStack(kind, args.layers)
    params = nn.meta.unbox(jax.jit(functools.partial(plain.init, mask=mask, places=places))(jax.random.key(0), x))

    def loss(params: dict, x: jax.Array) -> jax.Array:
        y, _ = stack.apply(params, x, mask=mask, places=places)
        return jnp.sum(jnp.square(y.astype(jnp.float32)))

    return jax.jit(jax.value_and_grad(loss, (0, 1))).lower(params, x).compile(), (params, x)


def measure(runs: dict[str, tuple[Callable, tuple]], *, seconds: float) -> dict[str, float]:
    """The least seconds of each, in turns until `seconds` have gone, at least once."""
    best = dict.fromkeys(runs, float("inf"))
    for call, arguments in runs.values():
        jax.block_until_ready(call(*arguments))
    end = time.perf_counter() + seconds
    while True:
        for name, (call, arguments) in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(call(*arguments))
            best[name] = min(best[name], time.perf_counter() - start)
        if time.perf_counter() >= end:
            return best


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = rounds.Parser(__doc__)
    add = parser.add_argument
    add("--features", type=rounds.read_whole, default=256, help="width of the input and of every layer")
    add("--layers", type=rounds.read_whole, default=8, help="layers of the stack")
    add("--length", type=rounds.read_whole, default=64, help="time steps")
    add("--rows", type=rounds.read_wholes, default="1,8,64", help="rows of the batch, several by commas")
    add("--chunk", type=rounds.read_wholes, default="1,4,16", help="time steps in a chunk, several by commas")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the products")
    add("--seconds", type=rounds.read_seconds, default=6.0, help="of measuring for each number of rows")
    return parser.parse_args(arguments)


def main() -> None:
    """Prints a line for every number of rows and every length of a chunk."""
    args = parse_arguments()
    device = jax.devices()[0].device_kind
    print(
        f"{args.layers} layers of {args.features}, {args.length} steps, {args.dtype}, {device}, jax {jax.__version__}"
    )
    for rows in args.rows:
        runs = {"in order": build(run_in_order, args, rows)}
        for chunk in args.chunk:
            wave = functools.partial(batched_wavefront, chunks=-(-args.length // chunk))
            runs[f"wavefront, chunks of {chunk}"] = build(wave, args, rows)
        best = measure(runs, seconds=args.seconds)
        for name, seconds in best.items():
            print(
                f"  {rows:4d} rows  {name:26s} {1e3 * seconds:9.2f} ms  {seconds / best['in order']:5.2f}", flush=True
            )


if __name__ == "__main__":
    main()
