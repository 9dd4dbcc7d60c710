"""The composition root: a config becomes a model on a mesh, its optimiser, its losses and its search.

With `corpora.py` and `modes/` the only place that knows several packages.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from seq2seq_jax.arithmetic import count_weights
from seq2seq_jax.config import has_search
from seq2seq_jax.data.spec import name_target
from seq2seq_jax.data.vocab import Vocabs
from seq2seq_jax.errors import UserError
from seq2seq_jax.interfaces import Array, Batch, Hypotheses, Listener, MaskedModel, PyTree, Seq2Seq, Sums
from seq2seq_jax.models import MODELS
from seq2seq_jax.parallel.layout import Layout, make_layout
from seq2seq_jax.parallel.roofline import find_hardware
from seq2seq_jax.parallel.shard import batch_sharding, init_sharded, state_shardings
from seq2seq_jax.parallel.softmax import choose_chunk
from seq2seq_jax.parallel.spread import Gradient, spread_gradient, spread_rows, spread_sums
from seq2seq_jax.speech_checks import reads_speech
from seq2seq_jax.speech_experiment import LEAST_FRAMES, make_augment, make_frontend, make_speech_program
from seq2seq_jax.tasks.abstract_batch import make_abstract_batch
from seq2seq_jax.tasks.constraints import make_wish
from seq2seq_jax.tasks.engine import Engine
from seq2seq_jax.tasks.loss import Loss, OwnTokens, make_loss
from seq2seq_jax.tasks.masked import MaskRule, make_masked_loss
from seq2seq_jax.tasks.methods import make_method, make_rank
from seq2seq_jax.tasks.recogniser import make_frame_search, make_paths
from seq2seq_jax.tasks.recognition import make_speech_loss
from seq2seq_jax.tasks.score import Scorer, make_scores
from seq2seq_jax.tasks.search import Decode, Program, Search, limit, make_decode, model_program
from seq2seq_jax.tasks.sequence import Objective, make_sequence_loss
from seq2seq_jax.tasks.translation import Translator
from seq2seq_jax.train.accumulation import make_add
from seq2seq_jax.train.freezing import find_frozen, freeze, hold, name_of
from seq2seq_jax.train.optimizers import make_optimizer
from seq2seq_jax.train.schedules import SCHEDULE_NUMBERS, make_schedule
from seq2seq_jax.train.step import Total, TrainState, init_state, make_totals, make_train_step, make_update


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
        count = self.config.sequence.candidates if self.objective is not None else 0
        sharding, packed = batch_sharding(self.mesh), self.config.data.pack
        samples = self.config.audio.hop if reads_speech(self.config.model) else 0
        return make_abstract_batch(
            sharding, rows, source_len, target_len, candidates=count, packed=packed, samples=samples
        )

    def _init(self, key: Array) -> TrainState:
        return make_state(self.model, self.optimizer, key, ema_decay=self.config.train.ema_decay)

    def train_step(self) -> Any:
        """The jitted train step; the state is donated."""
        keys = self.config.train
        step = make_train_step(
            self.gradient(), self.optimizer, seed=keys.seed, ema_decay=keys.ema_decay, loss_per=keys.loss_per
        )
        return jax.jit(step, donate_argnums=0, out_shardings=(self._shardings, None))

    def accumulated_step(self) -> tuple[Callable[[], Total], Any, Any]:
        """The jitted parts of an update from `train.accumulate` batches; see `train.accumulation.AccumulatedStep`."""
        keys, gradient, abstract = self.config.train, self.gradient(), self.abstract_state()
        totals = make_totals(gradient, seed=keys.seed, accumulate=keys.accumulate)
        batch = self.abstract_batch(self.config.data.rows_multiple, 2, 2)
        shapes = jax.eval_shape(totals, abstract.params, abstract.step, abstract.step, batch)
        whole = abstract.step.sharding
        places = jax.tree.map(lambda _: whole, shapes).replace(grads=self._shardings.params)
        zeros = jax.jit(lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), out_shardings=places)
        add = make_add(gradient, seed=keys.seed, accumulate=keys.accumulate)
        update = make_update(self.optimizer, ema_decay=keys.ema_decay, loss_per=keys.loss_per)
        return (
            zeros,
            jax.jit(add, donate_argnums=0, out_shardings=places),
            jax.jit(update, donate_argnums=0, out_shardings=(self._shardings, None)),
        )

    def gradient(self) -> Gradient:
        """The gradient of a batch's sums on the mesh, zero where parameters are frozen."""
        keys = self.config.train
        if self.objective is not None:
            loss = make_sequence_loss(self._spread_model, self.objective, chunk=self.chunk)
        else:
            own = (keys.own_tokens, keys.own_tokens_start, keys.own_tokens_steps, keys.own_tokens_passes)
            loss = self._likelihood(keys.label_smoothing, own_tokens=OwnTokens(*own) if keys.own_tokens else None)
        return hold(spread_gradient(loss, self.layout, self.boxed_state.params), self.frozen)

    def _likelihood(self, smoothing: float, *, train: bool = True, own_tokens: OwnTokens | None = None) -> Loss:
        """The loss of texts as they are: of targets, or of a masked language model's hidden tokens."""
        model = self._spread_model
        how: dict[str, Any] = {"label_smoothing": smoothing, "chunk": self.chunk, "train": train}
        if isinstance(model, Listener):
            augment = make_augment(self.config) if train else None
            weight = self.config.audio.ctc_weight
            return make_speech_loss(model, ctc_weight=weight, own_tokens=own_tokens, augment=augment, **how)
        if isinstance(model, MaskedModel):
            return make_masked_loss(model, rule=MaskRule(**self.config.masked), **how)
        return make_loss(model, own_tokens=own_tokens, **how)

    @property
    def objective(self) -> Objective | None:
        """What sequence-level training follows; None where it is the likelihood alone."""
        keys = self.config.sequence
        if keys.objective == "none":
            return None
        return Objective(keys.objective, keys.sharpness, keys.reference, keys.likelihood)

    @functools.cached_property
    def frozen(self) -> frozenset[str]:
        """The names of the parameters that stay as they are."""
        return find_frozen(self.config.train.freeze, self.abstract_state().params)

    def count_frozen(self) -> int:
        """Elements of the parameters that stay as they are."""
        leaves = jax.tree_util.tree_leaves_with_path(self.abstract_state().params)
        return sum(leaf.size for path, leaf in leaves if name_of(path) in self.frozen)

    @property
    def _shardings(self) -> TrainState:
        return state_shardings(self.boxed_state, self.layout)

    @property
    def _spread_model(self) -> nn.Module:
        """The model as its code runs inside the step."""
        return self.model.clone(execution=self.layout.execution)

    def dev_sums(self) -> Callable[[PyTree, Batch], Sums]:
        """The jitted sums of a batch without dropout and label smoothing."""
        loss = self._likelihood(0.0, train=False)
        return jax.jit(spread_sums(loss, self.layout, self.boxed_state.params))

    def scores(self) -> Callable[[PyTree, Batch], Array]:
        """The jitted log-probabilities `[B, T]` of a batch's targets."""
        make = make_scores(self._spread_model, chunk=self.chunk)
        return jax.jit(spread_rows(make, self.layout, self.boxed_state.params))

    def frame_search(self, search: Callable[[Array, Array], Hypotheses]) -> Callable[[PyTree, Batch], Hypotheses]:
        """The jitted search of a batch by the log-probabilities of its frames alone; see `make_frame_search`."""
        make = make_frame_search(self._spread_model, search)
        everywhere = self.program.place()
        return jax.jit(spread_rows(make, self.layout, self.boxed_state.params), out_shardings=everywhere)

    def frame_paths(self) -> Callable[[PyTree, Batch], Array]:
        """The jitted steps `[B, T, 2]` that the tokens of a batch's targets begin and end at; see `make_paths`."""
        paths = spread_rows(make_paths(self._spread_model), self.layout, self.boxed_state.params)
        return jax.jit(paths, out_shardings=self.program.place())

    @property
    def program(self) -> Program:
        """The model as what searches."""
        if isinstance(self.model, Listener):
            return make_speech_program(self.model, self.layout, self.boxed_state.params, self.config.decode)
        return model_program(self.model, self.layout, self.boxed_state.params)

    def search(self, *, beam_size: int | None = None) -> Decode:
        """The jitted search of one batch by the config; see `tasks.search.make_decode`."""
        return make_decode(self.program, self.make_search(beam_size))

    def make_search(self, beam_size: int | None = None, *, method: str | None = None) -> Search:
        """How to search, by the config.

        Args:
            beam_size: another than the config's; of "sampling", how many outputs are drawn (by default one).
            method: another than the config's.
        """
        keys = self.config.decode
        return limit(make_method(keys, method=method, size=beam_size), keys)

    @property
    def chunk(self) -> int:
        """Tokens whose logits exist at a time."""
        keys, platform = self.model.config, self.mesh.devices.flat[0].platform
        size = keys.target_vocab if has_search(self.config.model) else keys.source_vocab
        return choose_chunk(size, keys.features, platform=platform)

    def step_flops(self, sums: Mapping[str, float]) -> float:
        """Arithmetic of forward and backward for these sums' tokens: 6 for every weight that meets one.

        See `arithmetic.count_weights`; look-ups and the attention's scores are left out.
        """
        encoder, decoder = self._weights_in_products
        source, target = sums.get("source_tokens", 0.0), sums.get("target_tokens", 0.0)
        if not has_search(self.config.model):
            target = self.config.masked.share * source
        return 6.0 * (encoder * source + decoder * target)

    @functools.cached_property
    def _weights_in_products(self) -> tuple[float, float]:
        return count_weights(self.abstract_state().params, self.config)

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

    def translator(
        self,
        *,
        beam_size: int | None = None,
        method: str | None = None,
        tags: Sequence[str] | None = None,
        engine: Engine | None = None,
    ) -> Translator:
        """A translator with the config's search.

        Args:
            beam_size, method: others than the config's; see `Training.make_search`.
            tags: names of the tokens before every source; by default what the config's target language asks for.
            engine: in the place of one with the config's search.
        """
        if tags is None:
            tags = (name_target(self.config.data.target),) if self.config.data.target_tag else ()
        keys, method = self.config.decode, method or self.config.decode.method
        engine = engine or self.engine(self.training.make_search(beam_size, method=method))
        rank = make_rank(keys, target=self.config.data.target) if method == "minimum_bayes_risk" else None
        wish = make_wish(keys)
        return Translator(engine, self.vocabs, tags=tags, rank=rank, wish=wish)

    def engine(self, search: Search, *, attention: str = "best", program: Program | None = None) -> Engine:
        """What searches: this model, or another program such as an ensemble; see `tasks.engine.Engine`."""
        names = ("rows", "max_source_len", "no_repeat_ngram", "max_loop")
        limits = {name: self.config.decode[name] for name in names}
        return Engine(program or self.training.program, search, attention=attention, **limits)

    def scorer(self, *, tags: Sequence[str] = ()) -> Scorer:
        """What scores given pairs, as many at a time as are decoded; see `tasks.score`."""
        decode, devices = self.config.decode, self.training.mesh.size
        rows = -(-decode.rows // devices) * devices
        return Scorer(self.training.scores(), self.vocabs, rows=rows, max_len=decode.max_source_len, tags=tags)


def make_state(
    model: nn.Module, optimizer: optax.GradientTransformation, key: Array, *, ema_decay: float = 0.0
) -> TrainState:
    """The state before the first step; its parameters are boxed with their logical axes."""
    return init_state(make_parameters(model, key), optimizer, ema_decay=ema_decay)


def make_parameters(model: nn.Module, key: Array) -> PyTree:
    """A model's parameters before the first step, boxed with their logical axes."""
    tokens = jnp.ones((1, 2), jnp.int32)
    given: tuple[Array, ...] = (tokens, tokens > 0) if isinstance(model, MaskedModel) else (tokens, tokens > 0, tokens)
    if isinstance(model, Listener):
        config: Any = model.config  # type: ignore[attr-defined]
        frames = jnp.zeros((1, LEAST_FRAMES, config.frontend.hop), jnp.float32)
        given = (frames, jnp.ones((1, LEAST_FRAMES), bool), *([tokens] if isinstance(model, Seq2Seq) else []))
    return model.init(key, *given)["params"]


def build(config: ConfigDict, vocabs: Vocabs, *, updates_per_epoch: float | None = None) -> Experiment:
    """Builds an experiment; see `make_training`."""
    sizes = len(vocabs.source), len(vocabs.target)
    return Experiment(make_training(config, *sizes, updates_per_epoch=updates_per_epoch), vocabs)


def make_model(config: ConfigDict, source_vocab: int, target_vocab: int) -> tuple[Callable[..., nn.Module], Any]:
    """The linen class and the frozen Config of `config.model`."""
    fields = {key: value for key, value in config.model.items() if key != "name"}
    module, make = MODELS[config.model.name]
    try:
        if reads_speech(config.model):
            fields["frontend"] = make_frontend(config)
        return module, make(source_vocab=source_vocab, target_vocab=target_vocab, **fields)
    except ValueError as error:
        raise UserError(_name_keys(str(error), "model")) from error


def _name_keys(problem: str, section: str) -> str:
    """A problem with the fields of a section, which are called as its keys are, or with keys of another one."""
    problem = re.sub(r"`(\w+)`", rf"config.{section}.\1", problem)
    return re.sub(r"`(\w+\.\w+)`", r"config.\1", problem).replace("`parallel`", "config.parallel")


def make_training(
    config: ConfigDict,
    source_vocab: int,
    target_vocab: int,
    *,
    devices: Sequence[jax.Device] | None = None,
    updates_per_epoch: float | None = None,
) -> Training:
    """Builds a model on a mesh, its optimiser, and the learning rate of every step as it is logged.

    Args:
        config: the run's.
        source_vocab, target_vocab: sizes of the vocabularies.
        devices: of the mesh, real or of a topology that is compiled for; all there are by default.
        updates_per_epoch: what a schedule by epochs needs; without it, its rates cannot be asked for.

    Raises:
        UserError: values of the config contradict each other, or there are not the devices it asks for.
    """
    module, model_config = make_model(config, source_vocab, target_vocab)
    model, keys = module(model_config), config.train
    try:
        layout = make_layout(**config.parallel, rows_multiple=config.data.rows_multiple, devices=devices)
        schedule = make_schedule(
            keys.schedule,
            updates_per_epoch=updates_per_epoch,
            **{name: keys[name] for name in SCHEDULE_NUMBERS},
        )
        optimizer = make_optimizer(
            keys.optimizer,
            schedule,
            clip_norm=keys.clip_norm,
            b1=keys.b1,
            b2=keys.b2,
            eps=keys.eps,
            momentum=keys.momentum,
            weight_decay=keys.weight_decay,
            rho=keys.rho,
            adam_steps=keys.adam_steps,
            adam_learning_rate=keys.adam_learning_rate,
        )
        if keys.freeze:
            shapes = nn.meta.unbox(jax.eval_shape(functools.partial(make_parameters, model), jax.random.key(0)))
            optimizer = freeze(optimizer, find_frozen(keys.freeze, shapes))
    except ValueError as error:
        raise UserError(_name_keys(str(error), "train")) from error
    if keys.optimizer == "adam_then_sgd":  # the schedule is that of the second part: tell the rate of the first, too
        return Training(
            config,
            model,
            layout,
            optimizer,
            lambda n: jnp.where(n < keys.adam_steps, keys.adam_learning_rate, schedule(n)),
        )
    return Training(config, model, layout, optimizer, schedule)
