"""Starting from another run's parameters (`--init_from=RUN`): fine-tuning and domain adaptation.

What has the same name and shape is taken. Of tables over a vocabulary that is not the same, the rows of the pieces
that both know are taken. One table that serves both sides takes, and is taken for, a table of one side. All else keeps
its fresh values; the optimizer starts anew.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from seq2seq_jax.config import has_search, load_config, takes_source
from seq2seq_jax.data.vocab import Vocab
from seq2seq_jax.errors import UserError
from seq2seq_jax.experiment import Experiment
from seq2seq_jax.interfaces import Array, PyTree
from seq2seq_jax.modes.evaluate import load_run
from seq2seq_jax.provenance import hash_parameters
from seq2seq_jax.train.step import TrainState
from seq2seq_jax.workdir import Folder, refuse_foreign

OTHER_SIDE = {"source_embedding.table": "target_embedding.table", "target_embedding.table": "source_embedding.table"}


@dataclasses.dataclass(frozen=True)
class Taken:
    """What was taken of another run.

    Attributes:
        source: its folder.
        step: of its checkpoint.
        whole: names of the parameters that were taken as they are.
        rows: name → (rows taken, rows), of tables over another vocabulary.
        left: name → why it was not taken.
        unused: names that only the other run has.
        renamed: name → its name there, of a table that serves both sides here or there.
        parameters_sha256: of all its parameters.
    """

    source: str
    step: int
    whole: tuple[str, ...]
    rows: dict[str, tuple[int, int]]
    left: dict[str, str]
    unused: tuple[str, ...]
    renamed: dict[str, str]
    parameters_sha256: str

    def describe(self) -> str:
        """For people: what came along and what did not, one line each."""
        count = len(self.whole) + len(self.rows) + len(self.left)
        told = [f"init_from {self.source}, step {self.step}: {len(self.whole)} of {count} parameters taken as they are"]
        told += [f"  {name}: {n} of {all_} rows taken, by their pieces" for name, (n, all_) in self.rows.items()]
        told += [f"  {name}: taken from {there}" for name, there in self.renamed.items()]
        told += [f"  {name}: not taken, {why}" for name, why in self.left.items()]
        told += [f"  {name}: is there, but has no place in this model" for name in self.unused]
        return "\n".join(told)


def warm_start(experiment: Experiment, state: TrainState, source: Path) -> tuple[TrainState, Taken]:
    """Puts the best checkpoint of the run in `source` into a fresh state.

    Args:
        experiment: the new one.
        state: its fresh state.
        source: the folder of the other run.

    Raises:
        UserError: there is no usable run, or nothing of it fits.
    """
    refuse_foreign(source, "--init_from")
    config = load_config(Folder(source).config)
    config.parallel = experiment.config.parallel  # onto the same devices, in the same shards
    config.data.rows_multiple = experiment.config.data.rows_multiple
    other, restored = load_run(config, Folder(source))
    found = _by_name(restored.state.averaged)
    boxes = _by_name(experiment.training.boxed_state.params)
    whole, rows, left, renamed = [], {}, {}, {}
    one_table = _serves_both(other.config.model) or _serves_both(experiment.config.model)

    def take(name: str, fresh: Array) -> Array:
        there = OTHER_SIDE.get(name, name) if one_table and name not in found else name
        given = found.get(there)
        axis = _vocabulary_axis(boxes[name])
        if given is not None and there != name:
            renamed[name] = there
        if given is None:
            left[name] = "that run has none of this name"
        elif axis is not None and _side(other, there).digest != _side(experiment, name).digest:
            if _without(given.shape, axis) == _without(fresh.shape, axis):
                places = match_pieces(_side(other, there), _side(experiment, name))
                rows[name] = (int((places >= 0).sum()), len(places))
                return _take_rows(fresh, given, places, axis)
            left[name] = f"its shape is {given.shape} there and {fresh.shape} here"
        elif given.shape != fresh.shape:
            left[name] = f"its shape is {given.shape} there and {fresh.shape} here"
        else:
            whole.append(name)
            return jax.device_put(given, fresh.sharding)
        return fresh

    params = _map_by_name(take, state.params)
    renamed = {name: there for name, there in renamed.items() if name not in left}
    unused = tuple(name for name in found if name not in boxes and name not in renamed.values())
    digest = hash_parameters(restored.state.averaged)
    taken = Taken(str(source), restored.step, tuple(whole), rows, left, unused, renamed, digest)
    if not any(_is_matrix(boxes[name], name) for name in (*whole, *rows)):  # a bias fits anything
        raise UserError(f"--init_from={source}: nothing of it fits this model: {taken.describe()}.")
    ema = None if state.ema is None else jax.tree.map(jnp.copy, params)
    return dataclasses.replace(state, params=params, ema=ema), taken


def match_pieces(old: Vocab, new: Vocab) -> np.ndarray:
    """`[V]` int32: for every id of `new` that of the same piece in `old`, or -1."""
    known = {piece: i for i, piece in enumerate(old.pieces(range(old.size)))}
    return np.array([known.get(piece, -1) for piece in new.pieces(range(new.size))], np.int32)


def _take_rows(fresh: Array, given: Array, places: np.ndarray, axis: int) -> Array:
    """The rows of `given` at `places` along an axis; those of `fresh` where there is none."""

    def take(fresh: Array, given: Array) -> Array:
        shape = [1] * fresh.ndim
        shape[axis] = len(places)
        return jnp.where((places >= 0).reshape(shape), jnp.take(given, np.maximum(places, 0), axis=axis), fresh)

    return jax.jit(take, out_shardings=fresh.sharding)(fresh, given)


def _side(experiment: Experiment, name: str) -> Vocab:
    """The vocabulary that a table is over."""
    reads = name.startswith("source") or not has_search(experiment.config.model)  # without a decoder: all of it
    return experiment.vocabs.source if reads else experiment.vocabs.target


def _serves_both(model: ConfigDict) -> bool:
    """Whether a model has one table for both sides."""
    return takes_source(model) and model.get("share_embeddings") == "all"


def _vocabulary_axis(box: Any) -> int | None:
    return box.names.index("vocab") if isinstance(box, nn.LogicallyPartitioned) and "vocab" in box.names else None


def _is_matrix(box: Any, name: str) -> bool:
    """Whether a parameter is a kernel or a table, in one layer or in all of a stack."""
    return box.value.ndim > 1 and not name.rpartition(".")[2].endswith(("bias", "gain"))


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]


def _by_name(tree: PyTree) -> dict[str, Any]:
    """The leaves by their dotted paths; a box counts as a leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _map_by_name(take: Any, tree: PyTree) -> PyTree:
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: take(jax.tree_util.keystr(path, simple=True, separator="."), leaf), tree
    )
