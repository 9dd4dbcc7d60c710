"""What results are told with: the sizes and digest of parameters, and the versions of the packages that made them."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata

import jax
import numpy as np
from jax.experimental import multihost_utils

from seq2seq_jax.interfaces import PyTree

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "sentencepiece", "sacrebleu", "numpy")


def count_parameters(tree: PyTree) -> int:
    """Elements of all leaves."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def count_bytes(tree: PyTree) -> int:
    """Bytes of all leaves."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def hash_parameters(params: PyTree) -> str:
    """sha256 over the names, shapes and bytes of all parameters: equal for bit-equal ones."""
    digest = hashlib.sha256()
    for path, leaf in sorted(jax.tree_util.tree_leaves_with_path(params), key=lambda item: str(item[0])):
        if not leaf.is_fully_addressable:
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        array = np.asarray(jax.device_get(leaf))
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions of the packages that results depend on."""
    from seq2seq_jax import __version__

    return {"seq2seq_jax": __version__} | {name: _read_version(name) for name in PACKAGES}


@functools.cache
def _read_version(name: str) -> str:
    """Of a package; it takes milliseconds, and every checkpoint names all of them."""
    return importlib.metadata.version(name)
