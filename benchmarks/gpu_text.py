"""Counts the kernels that XLA makes of a recurrent layer for a GPU, and their memory; no GPU is needed.

    pip install 'jax[cuda12]' && python benchmarks/gpu_text.py [--features 1024 --rows 128 --length 50]

XLA for GPUs compiles for a chip that is only described to it (an NVIDIA H100 here). Its text tells how many kernels run
in a step of the loop ahead and of the loop back, and the temporary memory of the gradient. It tells no time: without a
chip nothing is tuned, so the tiles of products are no evidence.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from plain_scan import scan_lstm

from seq2seq_jax.interfaces import Array
from seq2seq_jax.layers.cells import LSTMCell
from seq2seq_jax.layers.recurrence import recur
from seq2seq_jax.layers.runs import Loop, Weights

H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 84942979072 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def describe_device() -> jax.sharding.Sharding:
    """Where a program for the described chip has its arrays."""
    topology = topologies.get_topology_desc(
        platform="cuda", topology_name="1x1x1", topology="1x1x1", target_config=H100
    )
    return jax.sharding.SingleDeviceSharding(topology.devices[0])


def count_kernels(text: str, length: int) -> list[float]:
    """Kernels a step of every loop in a compiled text, the loops in their order."""
    named = {name: part for part in text.split("\n\n") for name in re.findall(r"\A\s*(?:ENTRY )?%?([\w.\-]+)", part)}
    loops = re.findall(r'body=%([\w.\-]+).*?"known_trip_count":\{"n":"(\d+)"', text)
    return [
        len(re.findall(r"^.* = .* (?:fusion|custom-call|copy|dot)\(", named[body], re.M)) * int(trips) / length
        for body, trips in loops
    ]


def compile_gradient(run: Callable[[Array, Array], Array], args: argparse.Namespace) -> jax.stages.Compiled:
    """The gradient of a layer's squared outputs with regard to input products and kernel, for the described chip."""
    place = describe_device()
    shapes = (args.length, args.rows, 4 * args.features), (args.features, 4 * args.features)
    formats = jnp.bfloat16, jnp.float32
    inputs = [jax.ShapeDtypeStruct(*each, sharding=place) for each in zip(shapes, formats, strict=True)]

    def total(x: Array, kernel: Array) -> Array:
        return jnp.sum(jnp.square(run(x, kernel).astype(jnp.float32)))

    return jax.jit(jax.grad(total, (0, 1))).lower(*inputs).compile()


def main() -> int:
    """Prints a line for the plain scan and for ours, with and without blocks of steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=1024, help="H (default: 1024)")
    parser.add_argument("--rows", type=int, default=128, help="of the batch (default: 128)")
    parser.add_argument("--length", type=int, default=50, help="time steps (default: 50)")
    args = parser.parse_args()
    try:
        describe_device()
    except Exception as error:  # what a missing plugin raises differs between releases
        print(f"error: XLA for GPUs is not installed (pip install 'jax[cuda12]'): {error}", file=sys.stderr)
        return 2
    print(f"one LSTM layer of {args.features}, {args.rows} rows, {args.length} steps, bfloat16, jax {jax.__version__}")
    for unroll in (1, 10):
        runs: dict[str, Callable[[Array, Array], Array]] = {
            "lax.scan": lambda x, kernel, n=unroll: scan_lstm(x, kernel.astype(x.dtype), unroll=n)[0],
            "ours": lambda x, kernel, n=unroll: recur(LSTMCell(), x, Weights(kernel), loop=Loop(unroll=n))[0],
        }
        for name, run in runs.items():
            program = compile_gradient(run, args)
            ahead, back = count_kernels(program.as_text(), args.length)
            temp = program.memory_analysis().temp_size_in_bytes / 2**20
            print(
                f"  {name:9s} unroll {unroll:2d}: {ahead:5.1f} + {back:4.1f} kernels a step, {temp:6.1f} MiB",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
