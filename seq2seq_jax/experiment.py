"""The composition root: a config and a folder become data, vocabularies, a model, a mesh and an optimiser.

The only place, with `modes.py`, that knows several packages.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from seq2seq_jax.data.vocab import Vocabs
from seq2seq_jax.errors import UserError
from seq2seq_jax.interfaces import Array, Batch, Hypotheses, PyTree, Sums
from seq2seq_jax.models import MODELS
from seq2seq_jax.parallel.layout import Layout, make_layout
from seq2seq_jax.parallel.roofline import find_hardware
from seq2seq_jax.parallel.shard import batch_sharding, init_sharded, state_shardings
from seq2seq_jax.parallel.spread import spread_gradient, spread_sums
from seq2seq_jax.tasks.translation import Search, Translator, make_decode, make_loss
from seq2seq_jax.train.optimizers import make_optimizer
from seq2seq_jax.train.schedules import make_schedule
from seq2seq_jax.train.step import TrainState, init_state, make_train_step

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "sentencepiece", "sacrebleu", "numpy")


@dataclasses.dataclass(frozen=True)
class Training:
    """A model on a mesh and how it is trained: all that is made of a config and two vocabulary sizes."""

    config: ConfigDict
    model: nn.Module
    layout: Layout
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule

    @property
    def mesh(self) -> Mesh:
        """Its devices."""
        return self.layout.mesh

    def init(self) -> TrainState:
        """The state before the first step, born in its shards."""
        return init_sharded(self._init, self.layout, jax.random.key(self.config.train.seed))

    @functools.cached_property
    def boxed_state(self) -> TrainState:
        """Shapes and dtypes, every parameter with the names of its axes; runs nothing."""
        return jax.eval_shape(self._init, jax.random.key(0))

    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the state; runs nothing."""
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            nn.meta.unbox(self.boxed_state),
            state_shardings(self.boxed_state, self.layout),
        )

    def abstract_batch(self, rows: int, source_len: int, target_len: int) -> Batch:
        """Shapes, dtypes and shardings of a batch of tokens."""

        def array(dtype: Any, *shape: int) -> Any:
            return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(self.mesh))

        source, target = (rows, source_len), (rows, target_len)
        return Batch(
            source=array(jnp.int32, *source),
            source_mask=array(jnp.bool_, *source),
            target_in=array(jnp.int32, *target),
            target_out=array(jnp.int32, *target),
            target_mask=array(jnp.bool_, *target),
            example_ids=array(jnp.int32, rows),
            row_mask=array(jnp.bool_, rows),
        )

    def _init(self, key: Array) -> TrainState:
        return make_state(self.model, self.optimizer, key)

    def train_step(self) -> Any:
        """The jitted train step; the state is donated."""
        loss = make_loss(self._spread_model, label_smoothing=self.config.train.label_smoothing, chunk=self.chunk)
        gradient = spread_gradient(loss, self.layout, self.boxed_state.params)
        step = make_train_step(gradient, self.optimizer, seed=self.config.train.seed)
        return jax.jit(step, donate_argnums=0, out_shardings=(state_shardings(self.boxed_state, self.layout), None))

    @property
    def _spread_model(self) -> nn.Module:
        """The model as its code runs inside the step."""
        return self.model.clone(execution=self.layout.execution)

    def dev_sums(self) -> Callable[[PyTree, Batch], Sums]:
        """The jitted sums of a batch without dropout and label smoothing."""
        loss = make_loss(self._spread_model, label_smoothing=0.0, chunk=self.chunk, train=False)
        return jax.jit(spread_sums(loss, self.layout, self.boxed_state.params))

    def search(self, *, beam_size: int | None = None) -> Callable[..., Hypotheses]:
        """The jitted `decode(params, source, source_mask, row_mask, *, max_len)` of the config's search."""
        return make_decode(self.model, self.make_search(beam_size), self.layout, self.boxed_state.params)

    def make_search(self, beam_size: int | None = None) -> Search:
        """How to search, by the config."""
        decode = self.config.decode
        return Search(
            beam_size=beam_size or decode.beam_size,
            length_penalty=decode.length_penalty,
            coverage_penalty=decode.coverage_penalty,
            length_factor=decode.length_factor,
            length_extra=decode.length_extra,
        )

    @property
    def chunk(self) -> int:
        """Tokens whose logits exist at a time: small enough for a CPU's cache, large enough for an accelerator."""
        return 512 if self.mesh.devices.flat[0].platform == "cpu" else 8192

    def step_flops(self, sums: Mapping[str, float]) -> float:
        """Arithmetic of forward and backward for these sums' tokens: 6 for every weight that meets one.

        Encoder weights meet source tokens, all others target tokens; look-ups and the attention's
        scores are left out.
        """
        encoder, decoder = self._weights_in_products
        return 6.0 * (encoder * sums.get("source_tokens", 0.0) + decoder * sums.get("target_tokens", 0.0))

    @functools.cached_property
    def _weights_in_products(self) -> tuple[int, int]:
        """Weights that meet every source token, and every target token (a shared table's as a softmax)."""
        params = self.abstract_state().params
        encoder = sum(count_parameters(tree) for name, tree in params.items() if name.startswith("encoder"))
        tables = sum(count_parameters(tree) for name, tree in params.items() if name.endswith("embedding"))
        shared = 0 if "kernel" in params["softmax"] else params["target_embedding"]["table"].size
        return encoder, count_parameters(params) - encoder - tables + shared

    def peak_flops(self) -> float | None:
        """Of all devices of the mesh a second, or None where it is not known."""
        hardware = find_hardware(self.mesh.devices.flat[0])
        return hardware.peak_flops * self.mesh.size if hardware else None


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A training and the vocabularies of its corpus."""

    training: Training
    vocabs: Vocabs

    @property
    def config(self) -> ConfigDict:
        """The run's."""
        return self.training.config

    def translator(self, *, beam_size: int | None = None) -> Translator:
        """A translator with the config's search."""
        decode = self.config.decode
        search = self.training.make_search(beam_size)
        return Translator(
            self.training.search(beam_size=beam_size),
            self.vocabs,
            search,
            rows=decode.rows,
            max_source_len=decode.max_source_len,
        )


def make_state(model: nn.Module, optimizer: optax.GradientTransformation, key: Array) -> TrainState:
    """The state before the first step; its parameters are boxed with their logical axes."""
    tokens = jnp.ones((1, 2), jnp.int32)
    params = model.init(key, tokens, jnp.ones((1, 2), bool), tokens)["params"]
    return init_state(params, optimizer)


def build(config: ConfigDict, vocabs: Vocabs) -> Experiment:
    """Builds an experiment.

    Raises:
        UserError: values of the config contradict each other.
    """
    return Experiment(make_training(config, len(vocabs.source), len(vocabs.target)), vocabs)


def make_model(config: ConfigDict, source_vocab: int, target_vocab: int) -> tuple[Callable[..., nn.Module], Any]:
    """The linen class and the frozen Config of `config.model`."""
    fields = {key: value for key, value in config.model.items() if key != "name"}
    module, make = MODELS[config.model.name]
    try:
        return module, make(source_vocab=source_vocab, target_vocab=target_vocab, **fields)
    except ValueError as error:
        raise UserError(f"config.model: {error}") from error


def make_training(
    config: ConfigDict, source_vocab: int, target_vocab: int, *, devices: Sequence[jax.Device] | None = None
) -> Training:
    """Builds a model on a mesh, its optimiser, and the learning rate of every step as it is logged.

    Args:
        config: the run's.
        source_vocab, target_vocab: sizes of the vocabularies.
        devices: of the mesh, real or of a topology that is compiled for; all there are by default.

    Raises:
        UserError: values of the config contradict each other, or there are not the devices it asks for.
    """
    module, model_config = make_model(config, source_vocab, target_vocab)
    keys = config.train
    try:
        layout = make_layout(**config.parallel, rows_multiple=config.data.rows_multiple, devices=devices)
        schedule = make_schedule(
            keys.schedule,
            learning_rate=keys.learning_rate,
            warmup_steps=keys.warmup_steps,
            decay_steps=keys.decay_steps,
            decay_floor=keys.decay_floor,
            decay_start=keys.decay_start,
            decay_every=keys.decay_every,
            decay_times=keys.decay_times,
        )
        optimizer = make_optimizer(
            keys.optimizer,
            schedule,
            clip_norm=keys.clip_norm,
            b1=keys.b1,
            b2=keys.b2,
            eps=keys.eps,
            weight_decay=keys.weight_decay,
            adam_steps=keys.adam_steps,
            adam_learning_rate=keys.adam_learning_rate,
        )
    except ValueError as error:
        raise UserError(f"config: {error}") from error
    model = module(model_config)
    if keys.optimizer == "adam_then_sgd":  # the schedule is that of the second part: tell the rate of the first, too
        return Training(
            config,
            model,
            layout,
            optimizer,
            lambda n: jnp.where(n < keys.adam_steps, keys.adam_learning_rate, schedule(n)),
        )
    return Training(config, model, layout, optimizer, schedule)


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

    return {"seq2seq_jax": __version__} | {name: importlib.metadata.version(name) for name in PACKAGES}
