"""Drives the peers of `transformer_search.py`: Hugging Face's `generate` and CTranslate2, with our weights.

Our parameters become those of MarianMTModel (`tests/models/marian_reference.py`), and these the ones of CTranslate2 by
its own converter. torch, transformers and ctranslate2 are imported where they are needed: each process has one side.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import transformer_weights

if TYPE_CHECKING:
    from transformer_search import Search

EOS = 3
SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "models"))


def name_tokens(vocab: int) -> list[str]:
    """A vocabulary for CTranslate2, which has texts for tokens."""
    return [*SPECIAL, *(f"t{token}" for token in range(len(SPECIAL), vocab))]


def count_threads(args: argparse.Namespace) -> int:
    """The cores that a side may use."""
    return args.cores or len(os.sched_getaffinity(0))


def import_ctranslate2(args: argparse.Namespace) -> Any:
    """CTranslate2, from the folder of --peer if there is one."""
    if args.peer:
        sys.path.insert(0, args.peer)
    import ctranslate2

    return ctranslate2


def describe(args: argparse.Namespace) -> dict[str, str]:
    """The device and the version of this process's side."""
    if args.side == "torch":
        import torch
        import transformers

        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        return {"device": device, "version": f"transformers {transformers.__version__}, torch {torch.__version__}"}
    ctranslate2 = import_ctranslate2(args)
    device = "cuda" if ctranslate2.get_cuda_device_count() else "cpu"
    return {"device": device, "version": f"ctranslate2 {ctranslate2.__version__}, {choose_type(args, device)}"}


# --- Hugging Face ---------------------------------------------------------------------------------


def make_generate(
    args: argparse.Namespace, part: str, *, beam: int, max_len: int, lengths: Sequence[int] | None = None
) -> Search:
    """The search by `generate`: batches of --rows, the longest sentences first; for lengths see `stop_at`."""
    import torch
    from marian_reference import make_marian

    torch.set_num_threads(count_threads(args))
    torch.set_float32_matmul_precision("high")  # XLA's default on GPUs; nothing changes on CPUs
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = make_marian(transformer_weights.read(args, part), transformer_weights.make_config(args))
    model = model.to(device, getattr(torch, args.dtype)).eval()
    options = {"num_beams": beam, "do_sample": False, "max_new_tokens": max_len}
    options |= {"early_stopping": True, "length_penalty": 1.0} if beam > 1 else {}

    def search(sources: Sequence[np.ndarray]) -> list[list[int]]:
        outputs: list[list[int]] = [[] for _ in sources]
        order = sorted(range(len(sources)), key=lambda n: -len(sources[n]))
        for first in range(0, len(order), args.rows):
            places = order[first : first + args.rows]
            padded = torch.zeros((len(places), len(sources[places[0]])), dtype=torch.int64)
            for row, place in enumerate(places):
                padded[row, : len(sources[place])] = torch.from_numpy(sources[place].astype(np.int64))
            padded = padded.to(device)
            stop = {} if lengths is None else {"stopping_criteria": stop_at([lengths[place] for place in places])}
            found = model.generate(padded, attention_mask=(padded > 0).long(), **options, **stop)[:, 1:].tolist()
            for place, tokens in zip(places, found, strict=True):
                end = tokens.index(EOS) + 1 if EOS in tokens else next((n for n, t in enumerate(tokens) if not t), None)
                outputs[place] = tokens[: end if lengths is None else lengths[place]]  # then it fills with eos, too
        return outputs

    return search


def stop_at(lengths: Sequence[int]) -> list[Any]:
    """What tells `generate` that outputs are complete: all hypotheses of a row, at the row's own length."""
    import torch
    from transformers import StoppingCriteria, StoppingCriteriaList

    class AtLength(StoppingCriteria):  # type: ignore[misc]
        def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            wanted = torch.tensor(lengths, device=input_ids.device).repeat_interleave(len(input_ids) // len(lengths))
            return input_ids.shape[1] - 1 >= wanted  # all begin with bos

    return StoppingCriteriaList([AtLength()])


# --- CTranslate2 ----------------------------------------------------------------------------------


def convert(args: argparse.Namespace) -> dict[str, Any]:
    """Writes our weights as models of CTranslate2, float32, beside them."""
    import_ctranslate2(args)
    from ctranslate2.converters.transformers import BartLoader
    from marian_reference import make_marian

    tokens = name_tokens(args.vocab)
    for part in {"real" if part == "real" else "batch" for part in args.parts}:
        model = make_marian(transformer_weights.read(args, part), transformer_weights.make_config(args))
        # Its converter for Marian drops the last token and starts from a zero vector; the one for BART does not.
        model.config.normalize_before = model.config.normalize_embedding = False
        spec = BartLoader().get_model_spec(model)
        spec.register_source_vocabulary(tokens)
        spec.register_target_vocabulary(tokens)
        spec.config.unk_token, spec.config.bos_token, spec.config.eos_token = SPECIAL[1:]
        spec.config.decoder_start_token = SPECIAL[2]
        spec.validate()
        spec.optimize()
        target = transformer_weights.find(args, part)
        target.mkdir()
        spec.save(str(target))
    return {}


def choose_type(args: argparse.Namespace, device: str) -> str:
    """What CTranslate2 computes in."""
    if args.side == "ct2":
        return args.dtype if device == "cuda" else "float32"
    return "int8_bfloat16" if device == "cuda" and args.dtype == "bfloat16" else "int8"


def make_translate(args: argparse.Namespace, part: str, *, beam: int, max_len: int) -> Search:
    """The search by CTranslate2's `Translator`, which sorts by length and leaves rows out that are done."""
    ctranslate2 = import_ctranslate2(args)
    device = "cuda" if ctranslate2.get_cuda_device_count() else "cpu"
    translator = ctranslate2.Translator(
        str(transformer_weights.find(args, part)),
        device=device,
        compute_type=choose_type(args, device),
        inter_threads=1,
        intra_threads=count_threads(args),
    )
    names = name_tokens(args.vocab)
    numbers = {name: number for number, name in enumerate(names)}

    def search(sources: Sequence[np.ndarray]) -> list[list[int]]:
        found = translator.translate_batch(
            [[names[token] for token in source] for source in sources],
            beam_size=beam,
            length_penalty=1.0,
            max_batch_size=args.rows,
            max_decoding_length=max_len,
            min_decoding_length=0,
            return_end_token=True,
        )
        return [[numbers[name] for name in each.hypotheses[0]] for each in found]

    return search
