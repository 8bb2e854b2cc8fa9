"""The network, method, optimiser and steps of a configuration, as one value.

Programs are compared by value, and compiled functions are kept by value: runs that
differ only in seed, labels or start share all of them.
"""

import dataclasses
import functools
from collections.abc import Callable, Generator
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from opnorm import data, models
from opnorm.linalg import Params, PyTree
from opnorm.training import feed, modes, optimizers, weight_bounds
from opnorm.training import plan as plans
from opnorm.training.config import Config
from opnorm.training.feed import DeviceBatch
from opnorm.training.methods import Method
from opnorm.training.modes import Modes
from opnorm.training.plan import Plan
from opnorm.training.shardings import replicated, sharded, state_shardings
from opnorm.training.state import TrainState, init_state
from opnorm.training.step import Augmentation, Step, make_step

# Digits are not the same digit in a mirror.
_NO_FLIP = ("mnist", "svhn_cropped")
_REPLICATED = "replicated"


def build_model(config: Config, num_classes: int) -> nn.Module:
    """Builds the Flax module that a configuration names."""
    mean, std = models.STATISTICS[config.normalization]
    return models.create(
        config.model,
        num_classes=num_classes,
        width=config.width,
        mean=mean,
        std=std,
        dtype=jnp.dtype(config.compute_dtype),
        activation=config.activation,
        rematerialize=config.rematerialize,
        logit_activation=config.logit_activation,
        depth=config.depth,
        scalar_biases=config.scalar_biases,
        scalar_multipliers=config.scalar_multipliers,
        dropout=config.dropout,
    )


class Objective(NamedTuple):
    """A network and the method whose loss is minimised, a hashable value.

    :func:`make_objective` makes it.

    Attributes:
      config: without the fields that decide no program.
      num_classes: number of logits.
      image_shape: ``(H, W, C)`` of the largest images that the network sees: the norm
        of a convolution grows with the image.
    """

    config: Config
    num_classes: int
    image_shape: tuple[int, ...]

    @property
    def module(self) -> nn.Module:
        """The Flax module."""
        return build_model(self.config, self.num_classes)

    @property
    def modes(self) -> Modes:
        """The module in training and in inference."""
        return modes.create(self.module)

    @property
    def method(self) -> Method:
        """The training method, on bounded parameters if the configuration bounds."""
        return _method(self)

    def init(self, key: jax.Array) -> tuple[Params, PyTree]:
        """Initialises the network: returns (params, batch_stats)."""
        return modes.init(self.module, key, self.image_shape)

    def network(
        self, params: Params, batch_stats: PyTree, method_state: PyTree
    ) -> models.Network:
        """Returns the network of a state as ``f(x)`` in inference mode.

        Args:
          params: those that updates changed. The network has others where the
            configuration bounds its layers' norms by a division.
          batch_stats: BatchNorm's running statistics; empty if there are none.
          method_state: the method's part of the same state.
        """
        if weight_bounds.divides(self.config):
            params = self.method.deploy(params, method_state)
        variables = {"params": params, "batch_stats": batch_stats}
        return models.Network(variables, self.module)


def make_objective(
    config: Config, num_classes: int, image_shape: tuple[int, ...]
) -> Objective:
    """Makes the objective of a validated configuration.

    Args:
      config: the configuration of the run.
      num_classes: number of classes of its data.
      image_shape: ``(H, W, C)`` of its largest images.
    """
    shared = dataclasses.replace(
        config, seed=0, init_from=None, random_labels=0.0, validation_fraction=0.0
    )
    return Objective(shared, num_classes, image_shape)


class Program(NamedTuple):
    """The steps of a run and all that they are made of, a hashable value.

    :func:`make_program` makes it for a training set.

    Attributes:
      objective: the network and the method.
      plan: the steps.
      mesh: devices that share each batch.
      parameter_sharding: "replicated" or "fsdp".
    """

    objective: Objective
    plan: Plan
    mesh: Mesh
    parameter_sharding: str = _REPLICATED

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """The optimiser, with its learning rate."""
        return optimizers.create(self.objective.config, self.plan)

    @property
    def augmentation(self) -> Augmentation | None:
        """The change of a batch's images in the step; streamed ones come changed."""
        config = self.objective.config
        if not config.augment or data.is_streamed(config.dataset):
            return None
        return functools.partial(
            data.augment,
            flip=config.dataset not in _NO_FLIP,
            padding=config.padding,
            cutout=config.cutout,
        )

    @property
    def step(self) -> Step:
        """The compiled step; see :func:`opnorm.training.make_step`."""
        return _compiled_step(self)

    @property
    def clip(self) -> Callable[[Params], Params] | None:
        """The compiled change of the parameters after an epoch, which are donated.

        None where nothing changes them.
        """
        return _compiled_clip(self)

    def initial_state(
        self, seed: int, start: models.Network | None = None, source: str = ""
    ) -> TrainState:
        """Builds the state before the first update, not yet on its devices.

        Args:
          seed: random seed of parameters and steps.
          start: a network whose variables to begin with; None for random ones.
          source: the name of ``start`` in an error.

        Raises:
          ValueError: if the variables do not fit.
        """
        init_key, run_key = jax.random.split(jax.random.key(seed))
        params, batch_stats = self.objective.init(init_key)
        if start is not None:
            params = _fit(params, start.params, source)
            batch_stats = _fit(batch_stats, start.batch_stats, source)
        return self._state(params, batch_stats, run_key)

    def batches(
        self, train_set: data.Dataset | data.Stream, seed: int, first_step: int = 0
    ) -> Generator[DeviceBatch, None, None]:
        """Yields the batches of the steps, on their devices, to the end of the run.

        Args:
          train_set: the training set of the run.
          seed: random seed of the order and the views.
          first_step: number of the first step.
        """
        augment, split = self.objective.config.augment, sharded(self.mesh)
        return feed.batches(
            train_set, self.plan, seed, first_step, split, augment=augment
        )

    def shardings(self, state: TrainState) -> TrainState:
        """Returns the sharding of each leaf of a state, or of its shapes.

        Raises:
          ValueError: for an unknown ``parameter_sharding``.
        """
        return state_shardings(state, self.mesh, self.parameter_sharding)

    def network(self, state: TrainState) -> models.Network:
        """Returns the network of a state, with its variables whole on every device."""
        params = state.params
        if self.parameter_sharding != _REPLICATED:
            whole = replicated(self.mesh)
            params = jax.jit(lambda tree: tree, out_shardings=whole)(params)
        return self.objective.network(params, state.batch_stats, state.method_state)

    def _state(self, params: Params, batch_stats: PyTree, key: jax.Array) -> TrainState:
        return init_state(
            params,
            batch_stats,
            self.objective.method,
            self.optimizer,
            key,
            num_examples=self.plan.num_examples,
            num_classes=self.objective.num_classes,
        )

    def _state_shapes(self) -> TrainState:
        key = jax.random.key(0)
        params, batch_stats = jax.eval_shape(self.objective.init, key)
        shapes: TrainState = jax.eval_shape(self._state, params, batch_stats, key)
        return shapes


def make_program(
    config: Config,
    train_set: data.Dataset | data.Stream,
    mesh: Mesh,
    parameter_sharding: str = _REPLICATED,
) -> Program:
    """Makes the program of a validated configuration.

    Args:
      config: the configuration of the run.
      train_set: the result of :func:`load_train_set`.
      mesh: devices to share each batch.
      parameter_sharding: "replicated", or "fsdp": parameters and optimiser state in
        parts over the devices, gathered for each step.

    Raises:
      ValueError: for a batch that is larger than the training set or that the devices
        do not divide, or too many steps.
    """
    plan = plans.make(config, len(train_set))
    plans.check_devices(plan, mesh.size, config.accumulation_steps)
    shape = plans.largest_shape(train_set, plan)
    objective = make_objective(config, train_set.num_classes, shape)
    return Program(objective, plan, mesh, parameter_sharding)


# Its jitted parts are compiled once, for training and for loading such a network.
@functools.lru_cache(maxsize=8)
def _method(objective: Objective) -> Method:
    return weight_bounds.create(
        objective.config, objective.modes, objective.image_shape
    )


@functools.lru_cache(maxsize=8)
def _compiled_step(program: Program) -> Step:
    shardings = None
    if program.parameter_sharding != _REPLICATED:
        shardings = program.shardings(program._state_shapes())
    return make_step(
        program.objective.method,
        program.optimizer,
        program.mesh,
        augmentation=program.augmentation,
        accumulation_steps=program.objective.config.accumulation_steps,
        shardings=shardings,
    )


@functools.lru_cache(maxsize=8)
def _compiled_clip(program: Program) -> Callable[[Params], Params] | None:
    objective = program.objective
    clip = weight_bounds.clipping(
        objective.config, objective.modes, objective.image_shape
    )
    if clip is None:
        return None
    whole: PyTree = replicated(program.mesh)
    if program.parameter_sharding != _REPLICATED:
        whole = program.shardings(program._state_shapes()).params
    compiled: Callable[[Params], Params] = jax.jit(
        clip, out_shardings=whole, donate_argnums=0
    )
    return compiled


def _fit(expected: PyTree, found: PyTree, source: str) -> PyTree:
    """Returns the found tree if it has the structure and shapes of the expected one."""
    shapes = [
        {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (expected, found)
    ]
    if shapes[0] != shapes[1]:
        first = min(set(shapes[0].items()) ^ set(shapes[1].items()))
        raise ValueError(
            f"init_from is {source}, whose network differs at {first[0]}: "
            f"{shapes[1].get(first[0])} there, {shapes[0].get(first[0])} here."
        )
    return jax.tree.map(lambda new, old: np.asarray(new, old.dtype), found, expected)
