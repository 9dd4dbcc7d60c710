"""Times the whole training step of the Transformer, ours and Hugging Face's for PyTorch, in turn on one machine.

A step is the forward and backward pass with dropout 0.1 and label smoothing 0.1, and Adam, as in
Vaswani et al. 2017. The peer is MarianMTModel: the same architecture, its attention by PyTorch's own
kernels. Each side runs in processes of its own, one after the other and several times, because
machines drift; the table has the minimum of each.

    python benchmarks/transformer_step.py                           # 2 + 2 layers of 256
    python benchmarks/transformer_step.py --features 512 --layers 6 --heads 8 --feed_forward 2048 \\
        --vocab 37000 --rows 256 --source 64 --target 64 --dtype bfloat16       # the paper's base, on a GPU
    python benchmarks/transformer_step.py --sides ours,torch,compiled           # torch.compile beside it
    python benchmarks/transformer_step.py --profile                 # parts of our step against their floors
    python benchmarks/transformer_step.py --check                   # the same computation?
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from typing import TYPE_CHECKING, Any

import rounds
import training_step
from training_step import DEVICE, PROFILE, Recipe

from seq2seq_jax.errors import UserError

if TYPE_CHECKING:
    from step_profile import Instruction

    from seq2seq_jax.models.transformer import Transformer

RECIPE = Recipe(dropout=0.1, label_smoothing=0.1, clip_norm=0.0, learning_rate=1e-4, b2=0.98, eps=1e-9)
SIDES = ("ours", "torch", "compiled")
PEERS = SIDES[1:]
PARTS = (
    "projections",
    "attention",
    "feed-forward",
    "norms, sums, dropout",
    "embedding",
    "softmax and loss",
    "dropout draws",
    "optimizer",
    "other",
    "idle",
)
"""What a step consists of. Projections are the products with the weights of queries, keys, values and contexts."""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = rounds.Parser(__doc__)
    profiles = "share the time of our step by parts, and compare them with their floors"
    training_step.add_arguments(parser, features=256, layers=2, profiles=profiles)
    add, whole = parser.add_argument, rounds.read_whole
    add("--heads", type=whole, default=4, help="of every attention")
    add("--feed_forward", type=rounds.read_count, default=0, help="width inside the feed-forward layers; 0 is 4 times "
        "--features")  # fmt: skip
    add("--remat", choices=("none", "dots", "full"), default="none", help="what our backward pass computes again")
    add("--sides", help="by commas; ours, torch, compiled (torch.compile) (default: ours and torch; on a GPU all, but "
        "ours alone with --profile)")  # fmt: skip
    args = parser.parse_args(arguments)
    args.alone = "ours"
    args.feed_forward = args.feed_forward or 4 * args.features
    args.every_peer = args.sides is None and not args.profile
    args.sides = training_step.read_sides(parser, args, SIDES, SIDES[:1] if args.profile else SIDES)
    if args.profile and args.sides != ["ours"]:
        parser.error(f"--profile goes with --sides=ours, but they are {','.join(args.sides)}")
    if args.features % args.heads or args.features % 2:
        parser.error(f"--features must be even and a multiple of the {args.heads} --heads, but is {args.features}")
    return args


def count_flops(args: argparse.Namespace) -> dict[str, float]:
    """Operations of a step's products by part: forward, and twice that backward.

    Recomputation does not count, nor what a causal mask hides.
    """
    d, source, target = args.features, args.rows * args.source, args.rows * args.target
    pairs = source * args.source + target * (args.target + 1) / 2 + target * args.source
    step = {
        "projections": args.layers * 2 * d * d * (4 * source + 4 * target + 2 * target + 2 * source),
        "attention": args.layers * 2 * 2 * d * pairs,
        "feed-forward": args.layers * 2 * 2 * d * args.feed_forward * (source + target),
        "softmax and loss": 2 * d * args.vocab * target,
    }
    return {part: 3.0 * flops for part, flops in step.items()}


def estimate_floors(args: argparse.Namespace, parameters: int) -> dict[str, float]:
    """Milliseconds that parts take at least: products by the device's peak, Adam by its memory's bandwidth.

    Adam reads gradient, parameter and both moments, and writes the last three, float32.
    """
    import jax

    from seq2seq_jax.parallel.roofline import calibrate, find_hardware

    peak = rounds.measure_device(args.dtype)["peak"]
    hardware = find_hardware(jax.devices()[0]) or calibrate(jax.devices()[0])
    floors = {part: 1e3 * flops / peak for part, flops in count_flops(args).items()}
    return floors | {"optimizer": 1e3 * 7 * 4 * parameters / hardware.bandwidth}


def classify(instruction: Instruction) -> str:
    """The part of `PARTS` that an instruction belongs to, by the scopes of its name and by its last operation."""
    name = instruction.name
    product = name.endswith(("dot_general", "conv_general_dilated"))
    if not name:
        return "other"
    if "threefry" in name or "dropout" in name:
        return "dropout draws"
    if "(softmax)" in name or "/softmax/" in name:
        return "softmax and loss"
    if "/attend/" in name:
        return "attention"
    if "embedding" in name:
        return "embedding"
    if "jvp(" not in name:
        return "optimizer"  # all that is not differentiated: moments, update
    if "feed_forward" in name:
        return "feed-forward"
    return "projections" if product else "norms, sums, dropout" if "_stack" in name else "other"


def build_ours(args: argparse.Namespace, *, dropout: float) -> Transformer:
    """Our model."""
    from seq2seq_jax.models.transformer import Transformer, TransformerConfig
    from seq2seq_jax.parallel.layout import Execution

    config = TransformerConfig(
        source_vocab=args.vocab,
        target_vocab=args.vocab,
        features=args.features,
        encoder_layers=args.layers,
        decoder_layers=args.layers,
        heads=args.heads,
        feed_forward=args.feed_forward,
        dropout=dropout,
        dtype=args.dtype,
    )
    return Transformer(config, Execution(remat=args.remat))


def measure_torch(args: argparse.Namespace) -> dict[str, Any]:
    """Times the peer's training step."""
    import transformer_torch

    if args.every_peer and args.side == "compiled" and not transformer_torch.has_gpu():
        return {"skipped": "torch.compile is measured on a GPU, or with --sides=ours,torch,compiled"}
    return transformer_torch.measure(
        build_ours(args, dropout=RECIPE.dropout).config,
        training_step.make_tokens(args),
        RECIPE,
        steps=args.steps,
        warm_up=args.warm_up,
        compiled=args.side == "compiled",
    )


def run_check(args: argparse.Namespace) -> bool:
    """Compares loss and every gradient of both sides: the same weights, float32, no dropout, on the CPU."""
    require_transformers()
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    import torch
    import transformer_torch

    torch.set_num_threads(1)  # it is small, and on a busy machine threads that wait for each other take for ever
    args.dtype = "float32"
    model, batch = build_ours(args, dropout=0.0), training_step.make_batch(args)
    params = training_step.draw_params(model, batch)
    ours = training_step.compute_gradients(model, params, batch, label_smoothing=RECIPE.label_smoothing)
    peer = transformer_torch.load_peer(params, model.config).train()
    peer_loss = transformer_torch.mean_loss(peer, training_step.make_tokens(args), RECIPE.label_smoothing)
    peer_loss.backward()
    counts = sum(leaf.size for leaf in jax.tree.leaves(params)), transformer_torch.count_parameters(peer)
    theirs = peer_loss.item(), transformer_torch.read_gradients(peer, params, model.config)
    return training_step.compare_gradients(ours, theirs, counts)


def measure_side(args: argparse.Namespace) -> dict[str, Any]:
    """What a process of a round is asked for."""
    rounds.keep_to_cores(args.cores)
    if args.side == DEVICE:
        return rounds.measure_device(args.dtype)
    if args.side in PEERS:
        return measure_torch(args)
    model = build_ours(args, dropout=RECIPE.dropout)
    if args.side != PROFILE:
        return training_step.measure_ours(args, model, RECIPE)
    figures = training_step.profile_ours(args, model, RECIPE, parts=PARTS, classify=classify)
    return figures | {"floors": estimate_floors(args, figures.pop("parameters"))}


def require_transformers() -> None:
    """Raises UserError where Hugging Face's package is not installed."""
    if importlib.util.find_spec("transformers") is None:
        raise UserError("the peer is of the package transformers: `pip install transformers`, or run --sides=ours")


def measure_all(args: argparse.Namespace) -> dict[str, Any]:
    """Measures and prints what is asked for; the figures."""
    if args.profile:
        return {"profile": training_step.run_profile(args)}
    if set(PEERS) & set(args.sides):
        require_transformers()
    flops = sum(count_flops(args).values())
    device, results = training_step.run_rounds(args, flops=flops, peers=PEERS)
    training_step.print_table(device, results)
    return {"device": device, "results": results}


def main() -> int:
    """Runs what the command line asks for; returns the exit code."""
    return training_step.run_script(
        parse_arguments(),
        script="transformer_step.py",
        peers=PEERS,
        measure=measure_side,
        check=run_check,
        measure_all=measure_all,
    )


if __name__ == "__main__":
    sys.exit(main())
