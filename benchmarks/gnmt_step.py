"""Times the whole training step of GNMT: ours, the same with plain scans, and PyTorch's, in turn on one machine.

A step is the forward and backward pass with dropout 0.2 and label smoothing 0.1, clipping by the
global norm 5, and Adam. Each side runs in processes of its own, one after the other and several
times, because machines drift; the table has the minimum of each.

    python benchmarks/gnmt_step.py                                  # 2 + 2 layers of 256
    python benchmarks/gnmt_step.py --features 1024 --layers 8 --vocab 32000 --dtype bfloat16    # the paper's
    python benchmarks/gnmt_step.py --attention_from previous_step   # the paper's loop: ours alone
    python benchmarks/gnmt_step.py --profile                        # what parts our step's time goes to
    python benchmarks/gnmt_step.py --check                          # ours and PyTorch's are the same computation
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any

import rounds
import training_step
from training_step import DEVICE, PROFILE, Recipe

if TYPE_CHECKING:
    from seq2seq_jax.models.gnmt import GNMT

RECIPE = Recipe(dropout=0.2, label_smoothing=0.1, clip_norm=5.0, learning_rate=1e-3)
SIDES = ("ours", "plain", "torch")
SHARED = "current_step"  # the attention that all sides have


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = rounds.Parser(__doc__)
    profiles = "share the time of our step (or --sides=plain) by parts"
    training_step.add_arguments(parser, features=256, layers=2, profiles=profiles)
    add = parser.add_argument
    add("--attention_from", choices=(SHARED, "previous_step"), default=SHARED, help="the decoder's step that attends")
    add("--sides", help="by commas; ours, plain (recurrent layers are lax.scan, differentiated by JAX), torch "
        "(default: all, but ours alone with --profile or --attention_from=previous_step)")  # fmt: skip
    args = parser.parse_args(arguments)
    args.alone = "ours,plain"
    alone = args.profile or args.attention_from != SHARED
    args.sides = training_step.read_sides(parser, args, SIDES, SIDES[:1] if alone else SIDES)
    if args.attention_from != SHARED and (args.check or args.sides != ["ours"]):
        parser.error("--attention_from=previous_step goes with --sides=ours, not with --check: no other side has it")
    if args.profile and args.sides not in (["ours"], ["plain"]):
        parser.error(f"--profile goes with --sides=ours or --sides=plain, but they are {','.join(args.sides)}")
    if args.attention_from == SHARED and args.layers < 2:
        parser.error(f"--layers must be at least 2 with --attention_from={SHARED}, but is {args.layers}")
    return args


def count_flops(args: argparse.Namespace) -> float:
    """Operations of the products of a step: forward, and twice that backward. Recomputation does not count."""
    d, vocab, layers = args.features, args.vocab, args.layers
    memory = d * (2 if layers == 1 else 1)

    def lstm(width: int) -> int:
        return 2 * 4 * d * (width + d)

    encoder = 2 * lstm(d) + sum(lstm(2 * d if n == 0 else d) for n in range(layers - 1)) + 2 * memory * d
    bottom = lstm(d + (memory if args.attention_from == "previous_step" else 0))
    decoder = bottom + (layers - 1) * lstm(d + memory) + 2 * d * d + 2 * d * vocab
    pairs = 2 * d + 2 * memory  # score and context
    return 3.0 * args.rows * (args.source * encoder + args.target * decoder + args.source * args.target * pairs)


def build_ours(args: argparse.Namespace, *, dropout: float) -> GNMT:
    """Our model."""
    from seq2seq_jax.models.gnmt import GNMT, GNMTConfig

    return GNMT(
        GNMTConfig(
            source_vocab=args.vocab,
            target_vocab=args.vocab,
            features=args.features,
            encoder_layers=args.layers,
            decoder_layers=args.layers,
            attention_features=args.features,
            attention_from=args.attention_from,
            dropout=dropout,
            dtype=args.dtype,
        )
    )


def measure_torch(args: argparse.Namespace) -> dict[str, Any]:
    """Times the peer's training step."""
    import gnmt_torch

    return gnmt_torch.measure(
        {"vocab": args.vocab, "features": args.features, "layers": args.layers},
        training_step.make_tokens(args),
        steps=args.steps,
        warm_up=args.warm_up,
        dtype=args.dtype,
        dropout=RECIPE.dropout,
        label_smoothing=RECIPE.label_smoothing,
        clip_norm=RECIPE.clip_norm,
        learning_rate=RECIPE.learning_rate,
    )


def run_check(args: argparse.Namespace) -> bool:
    """Compares loss and every gradient of both sides: the same weights, float32, no dropout, on the CPU."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    import gnmt_torch
    import jax
    import torch

    torch.set_num_threads(1)  # it is small, and on a busy machine threads that wait for each other take for ever
    args.dtype = "float32"
    model, batch = build_ours(args, dropout=0.0), training_step.make_batch(args)
    params = training_step.draw_params(model, batch)
    ours = training_step.compute_gradients(model, params, batch, label_smoothing=RECIPE.label_smoothing)
    peer = gnmt_torch.TorchGNMT(vocab=args.vocab, features=args.features, layers=args.layers, dropout=0.0)
    gnmt_torch.load_weights(peer, params)
    peer_loss = gnmt_torch.mean_loss(peer, training_step.make_tokens(args), RECIPE.label_smoothing)
    peer_loss.backward()
    counts = sum(leaf.size for leaf in jax.tree.leaves(params)), gnmt_torch.count_parameters(peer)
    theirs = peer_loss.item(), gnmt_torch.read_gradients(peer)
    return training_step.compare_gradients(ours, theirs, counts, " (one of its two biases a layer counted)")


def measure_side(args: argparse.Namespace) -> dict[str, Any]:
    """What a process of a round is asked for."""
    rounds.keep_to_cores(args.cores)
    if args.side == DEVICE:
        return rounds.measure_device(args.dtype)
    if args.side == "torch":
        return measure_torch(args)
    if args.side == "plain" or (args.side == PROFILE and args.sides == ["plain"]):
        import plain_scan

        plain_scan.replace_loops()
    model = build_ours(args, dropout=RECIPE.dropout)
    if args.side != PROFILE:
        return training_step.measure_ours(args, model, RECIPE)
    import step_profile

    return training_step.profile_ours(args, model, RECIPE, parts=step_profile.PARTS, classify=step_profile.classify)


def measure_all(args: argparse.Namespace) -> dict[str, Any]:
    """Measures and prints what is asked for; the figures."""
    if args.profile:
        return {"profile": training_step.run_profile(args)}
    device, results = training_step.run_rounds(args, flops=count_flops(args), peers=["torch"])
    training_step.print_table(device, results)
    return {"device": device, "results": results}


def main() -> int:
    """Runs what the command line asks for; returns the exit code."""
    return training_step.run_script(
        parse_arguments(),
        script="gnmt_step.py",
        peers=["torch"],
        measure=measure_side,
        check=run_check,
        measure_all=measure_all,
    )


if __name__ == "__main__":
    sys.exit(main())
