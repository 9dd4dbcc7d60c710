"""What keys of a search may be beside each other: what `config.check_config` asks of `config.decode`."""

from __future__ import annotations

from ml_collections import ConfigDict

from seq2seq_jax.errors import UserError


def check_search(keys: ConfigDict) -> None:
    """Refuses keys of `config.decode` that contradict each other, and numbers that are no penalties.

    Raises:
        UserError: names the key, the rule, the value and the cure.
    """
    _check_numbers(keys)
    ranks = keys.method == "minimum_bayes_risk"
    beams = keys.method == "beam" or (ranks and keys.candidates_from == "beam")
    size = "candidates" if ranks else "beam_size"
    asked = f"config.decode.method={keys.method!r}" + (
        f" and config.decode.candidates_from={keys.candidates_from!r}" if ranks else ""
    )
    if keys.groups > 1 and not beams:
        raise UserError(
            f"config.decode.groups must be 1 with {asked}, but is {keys.groups} instead: only a beam has groups."
        )
    if beams and keys[size] % keys.groups:
        raise UserError(
            f"config.decode.groups must divide config.decode.{size}={keys[size]} with {asked}, but is {keys.groups} "
            "instead: all groups have the same number of beams."
        )
    if ranks and not beams and not keys.temperature:
        raise UserError(
            f"config.decode.temperature must be more than 0 with {asked}, but is {keys.temperature} instead: "
            "all candidates would be the same."
        )
    if ranks and not beams and keys.top_k == 1:
        raise UserError(
            f"config.decode.top_k must be 0 or at least 2 with {asked}, but is 1 instead: all candidates would be the "
            "same."
        )
    if keys.min_length_extra > keys.length_extra and keys.min_length_factor == keys.length_factor:
        raise UserError(
            f"config.decode.min_length_extra must be at most config.decode.length_extra={keys.length_extra}, but is "
            f"{keys.min_length_extra} instead: the shortest output would be longer than the longest."
        )
    if keys.min_length_factor > keys.length_factor:
        raise UserError(
            f"config.decode.min_length_factor must be at most config.decode.length_factor={keys.length_factor}, but is "
            f"{keys.min_length_factor} instead: the shortest output would be longer than the longest."
        )


def _check_numbers(keys: ConfigDict) -> None:
    """Refuses numbers of a beam's ranking that are no penalties; -1 stands for the preset's."""
    for name in ("coverage_penalty", "prune"):
        if keys[name] < 0 and keys[name] != -1:
            raise UserError(
                f"config.decode.{name} must be at least 0, or -1 for that of config.decode.preset={keys.preset!r}, "
                f"but is {keys[name]} instead."
            )
