"""The module, data, state and compiled steps that a configuration stands for."""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from opnorm import data, models
from opnorm.runs import checkpoints
from opnorm.training import (
    methods,
    modes,
    optimizers,
    validation,
    weight_bounds,
)
from opnorm.training import plan as plans
from opnorm.training.config import Config, from_plain
from opnorm.training.plan import Plan
from opnorm.training.step import (
    Step,
    TrainState,
    init_state,
    make_step,
    state_shardings,
)

# Digits are not the same digit in a mirror.
_NO_FLIP = ("mnist", "svhn_cropped")


class Run(NamedTuple):
    """A trained network, as a run directory holds it.

    Attributes:
      config: of its training, without ``data_dir``: a run may come from somebody else,
        and TensorFlow Datasets is to read only folders that the user names.
      network: ``network(x)`` in inference mode. Its kernels are bounded where the
        configuration bounds their layers' norms.
      step: number of updates done.
      metadata: what the checkpoint says of itself besides: configuration, number of
        classes and shape of images.
    """

    config: Config
    network: models.Network
    step: int
    metadata: dict[str, Any]


def build_model(config: Config, num_classes: int) -> nn.Module:
    """Builds the Flax module that a configuration names."""
    mean, std = models.STATISTICS[config.normalization]
    # Only some models take this option.
    options = {"logit_activation": True} if config.logit_activation else {}
    return models.create(
        config.model,
        num_classes=num_classes,
        width=config.width,
        mean=mean,
        std=std,
        dtype=jnp.dtype(config.compute_dtype),
        activation=config.activation,
        rematerialize=config.rematerialize,
        **options,
    )


def load_train_set(
    config: Config, *, download: bool = False
) -> data.Dataset | data.Stream:
    """Loads the training set of a configuration, or opens it where it is streamed.

    Raises:
      ValueError or FileNotFoundError: as :func:`opnorm.data.load`.
    """
    if data.is_streamed(config.dataset):
        return data.open_stream(
            config.dataset,
            split="train",
            data_dir=config.data_dir,
            limit=config.train_examples,
        )
    dataset = data.load(
        config.dataset,
        split="train",
        data_dir=config.data_dir,
        download=download,
        limit=config.train_examples,
        seed=0,
        image_size=config.image_size,
    )
    if not config.random_labels:
        return dataset
    return data.randomize_labels(dataset, config.random_labels, seed=0)


def load_run(directory: str | os.PathLike[str]) -> Run:
    """Reads the network of a run's newest valid checkpoint::

        run = training.load_run("runs/snr")
        run.network(x)  # (B, K) logits

    Args:
      directory: a run directory, or its folder of checkpoints.

    Raises:
      FileNotFoundError: if there is no checkpoint.
      ValueError: if all of them are damaged, the configuration is not one that this
        version knows, or the parameters have no layer "logits". Flax notices other
        parameters that are not those of the configuration when the network is called.
    """
    parts, metadata = checkpoints.restore_parts(
        directory, ("params", "batch_stats", "method_state")
    )
    config = from_plain(metadata.get("config"), str(directory))
    try:
        validation.validate(config)
    except ValueError as error:
        raise ValueError(
            f"{directory} has a configuration that cannot be used: {error}"
        ) from error
    params = parts["params"]
    if weight_bounds.divides(config):
        num_classes, image_shape = _shape_of_data(metadata, directory)
        try:
            params = deployed(
                config, num_classes, image_shape, params, parts["method_state"]
            )
        # Whatever parameters of another network make Flax raise.
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{directory} holds parameters that are not those of its "
                f"configuration ({str(error).strip().splitlines()[:1]})."
            ) from error
    num_classes = _num_classes(params, directory)
    config = dataclasses.replace(config, data_dir=None)
    network = as_network(config, num_classes, params, parts["batch_stats"])
    return Run(config, network, metadata["step"], metadata)


def as_network(
    config: Config, num_classes: int, params: Any, batch_stats: Any
) -> models.Network:
    """Returns trained variables as a network ``f(x)`` in inference mode.

    Args:
      config: of the training.
      num_classes: of its data.
      params: the trained parameters.
      batch_stats: BatchNorm's running statistics; empty if there are none.
    """
    variables = {"params": params, "batch_stats": batch_stats}
    return models.Network(variables, build_model(config, num_classes))


def _num_classes(params: Any, directory: str | os.PathLike[str]) -> int:
    """The number of logits: checkpoints of earlier versions do not tell it."""
    try:
        return int(params["logits"]["kernel"].shape[-1])
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"{directory} holds parameters without the layer 'logits'; they are "
            f"{', '.join(sorted(params))[:200] or 'none'}."
        ) from error


def _shape_of_data(
    metadata: dict[str, Any], directory: str | os.PathLike[str]
) -> tuple[int, tuple[int, ...]]:
    """The number of classes and ``(H, W, C)`` that a checkpoint was trained with."""
    num_classes, shape = metadata.get("num_classes"), metadata.get("image_shape")
    numbers = [num_classes, *shape] if isinstance(shape, list) else []
    if len(numbers) != 4 or not all(type(n) is int and n > 0 for n in numbers):
        raise ValueError(
            f"{directory} has a checkpoint without the number of classes and the shape "
            f"of images: num_classes is {str(num_classes)[:80]}, image_shape is "
            f"{str(shape)[:80]}."
        )
    return numbers[0], tuple(numbers[1:])


def deployed(
    config: Config,
    num_classes: int,
    image_shape: tuple[int, ...],
    params: Any,
    method_state: Any,
) -> Any:
    """Computes the parameters of the network that was trained.

    Args:
      config: of the run.
      num_classes: of its data.
      image_shape: ``(H, W, C)`` of its largest pictures.
      params: those that updates changed.
      method_state: of the same state.
    """
    if not weight_bounds.divides(config):
        return params
    method = _method(_shared(config), num_classes, image_shape)
    return method.deploy(params, method_state)


def clipping(
    config: Config,
    num_classes: int,
    image_shape: tuple[int, ...],
    shardings: TrainState,
) -> Callable[[Any], Any] | None:
    """Compiles what changes the parameters after an epoch; None if nothing does.

    Args:
      config: of the run.
      num_classes: of its data.
      image_shape: ``(H, W, C)`` of its largest pictures.
      shardings: of the state; given parameters are donated.
    """
    bound = modes.create(build_model(config, num_classes))
    clip = weight_bounds.clipping(config, bound, image_shape)
    if clip is None:
        return None
    return jax.jit(clip, out_shardings=shardings.params, donate_argnums=0)


def image_shapes(
    train_set: data.Dataset | data.Stream, plan: Plan
) -> tuple[tuple[int, ...], ...]:
    """Returns ``(H, W, C)`` of the pictures of each phase."""
    if isinstance(train_set, data.Dataset):
        return (train_set.image_shape,)
    sizes = [phase.image_size or plans.IMAGE_SIZE for phase in plan.phases]
    return tuple((size, size, 3) for size in sizes)


def initial_state(
    config: Config, train_set: data.Dataset | data.Stream, plan: Plan
) -> TrainState:
    """Builds the state before the first update, from other parameters if need be.

    Raises:
      ValueError or FileNotFoundError: if those cannot be read or do not fit.
    """
    shapes = image_shapes(train_set, plan)
    key = jax.random.key(config.seed)
    init_key, run_key = jax.random.split(key)
    module = build_model(config, train_set.num_classes)
    params, batch_stats = modes.init(module, init_key, shapes[0])
    if config.init_from is not None:
        start = load_run(config.init_from).network
        params = _fit(params, start.params, config.init_from)
        batch_stats = _fit(batch_stats, start.batch_stats, config.init_from)
    return init_state(
        params,
        batch_stats,
        _method(_shared(config), train_set.num_classes, max(shapes)),
        optimizers.create(config, plan),
        run_key,
        num_examples=len(train_set),
        num_classes=train_set.num_classes,
    )


def _fit(expected: Any, found: Any, source: str) -> Any:
    """The found tree, if it has the structure and shapes of the expected one."""
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


def compiled_step(
    config: Config,
    num_classes: int,
    plan: Plan,
    mesh: Mesh,
    parameter_sharding: str,
    image_shapes: tuple[tuple[int, ...], ...],
) -> Step:
    """Compiles the step of a run; runs that differ only in seed or labels share one.

    Args:
      config: of the run.
      num_classes: of its data.
      plan: its steps.
      mesh: devices to share each batch.
      parameter_sharding: as :func:`opnorm.training.step.state_shardings`.
      image_shapes: of :func:`image_shapes`.
    """
    return _compiled_step(
        _shared(config), num_classes, plan, mesh, parameter_sharding, image_shapes
    )


def _shared(config: Config) -> Config:
    """The same for runs whose programs are the same."""
    return dataclasses.replace(config, seed=0, init_from=None, random_labels=0.0)


# What it jits is compiled once for all that train or load such a network.
@functools.lru_cache(maxsize=8)
def _method(
    config: Config, num_classes: int, image_shape: tuple[int, ...]
) -> methods.Method:
    bound = modes.create(build_model(config, num_classes))
    return weight_bounds.create(config, bound, image_shape)


@functools.lru_cache(maxsize=8)
def _compiled_step(
    config: Config,
    num_classes: int,
    plan: Plan,
    mesh: Mesh,
    parameter_sharding: str,
    image_shapes: tuple[tuple[int, ...], ...],
) -> Step:
    method = _method(config, num_classes, max(image_shapes))
    optimizer = optimizers.create(config, plan)
    shardings = None
    if parameter_sharding != "replicated":
        module = build_model(config, num_classes)
        params, batch_stats = jax.eval_shape(
            lambda key: modes.init(module, key, image_shapes[0]), jax.random.key(0)
        )
        state = jax.eval_shape(
            lambda params, batch_stats, key: init_state(
                params,
                batch_stats,
                method,
                optimizer,
                key,
                num_examples=plan.num_examples,
                num_classes=num_classes,
            ),
            params,
            batch_stats,
            jax.random.key(0),
        )
        shardings = state_shardings(state, mesh, parameter_sharding)
    return make_step(
        method,
        optimizer,
        mesh,
        augmentation=_augmentation(config),
        accumulation_steps=config.accumulation_steps,
        shardings=shardings,
    )


def _augmentation(
    config: Config,
) -> Callable[[jax.Array, jax.Array], jax.Array] | None:
    """What the step does to pictures; streamed ones come augmented."""
    if not config.augment or data.is_streamed(config.dataset):
        return None
    return functools.partial(
        data.augment,
        flip=config.dataset not in _NO_FLIP,
        padding=config.padding,
        cutout=config.cutout,
    )
