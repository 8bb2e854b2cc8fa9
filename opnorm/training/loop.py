"""training: the loop over compiled steps, with checkpoints, metrics and progress."""

import dataclasses
import functools
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from opnorm import data, models
from opnorm.training import checkpoints, methods, network, optimizers, progress
from opnorm.training import config as configs
from opnorm.training import run_directory as run_directories
from opnorm.training.config import Config
from opnorm.training.step import (
    Step,
    TrainState,
    data_mesh,
    init_state,
    make_step,
    sharded,
)

# Digits are not the same digit in a mirror.
_NO_FLIP = ("mnist", "svhn_cropped")


class TrainResult(NamedTuple):
    """A trained network.

    Attributes:
      params: parameters after the last step.
      batch_stats: BatchNorm's running statistics after the last step.
      step: number of updates done.
      metrics: the last logged metrics.
    """

    params: Any
    batch_stats: Any
    step: int
    metrics: dict[str, float]


def build_model(config: Config, num_classes: int) -> nn.Module:
    """Builds the Flax module that a configuration names."""
    return models.create(config.model, num_classes=num_classes, width=config.width)


def train(
    config: Config,
    *,
    directory: str | os.PathLike[str] | None = None,
    train_set: data.Dataset | None = None,
    download: bool = False,
    mesh: Mesh | None = None,
    log_every: int = 20,
    checkpoint_every: int | None = None,
    show_progress: bool = True,
) -> TrainResult:
    """Trains a network as a configuration says, or goes on where an earlier call ended.

    On CPU the result is a function of the configuration alone, bit by bit, however
    often the run was interrupted.

    Args:
      config: the run; see :class:`opnorm.training.config.Config`.
      directory: run directory for flags, metrics (JSON lines) and checkpoints; a run
        that is there already is resumed, or returned at once if it is complete. None
        keeps nothing.
      train_set: the training set if it is loaded already; None loads it.
      download: whether the data set may be downloaded.
      mesh: devices to share each batch; None for all visible ones.
      log_every: steps between lines of metrics.
      checkpoint_every: steps between checkpoints; None for once an epoch. One is
        written at the end in any case.
      show_progress: whether to show a progress bar or lines.

    Returns:
      The trained variables, on the mesh.

    Raises:
      ValueError: for a configuration that cannot be trained, a directory that holds
        another run, a batch that the devices do not divide, or parameters to start from
        that do not fit.
      FileNotFoundError: if the data are not there.
      FloatingPointError: if the loss is not finite.
    """
    configs.validate(config)
    for name, value in (
        ("log_every", log_every),
        ("checkpoint_every", checkpoint_every),
    ):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1.")
    mesh = data_mesh() if mesh is None else mesh
    if config.batch_size % mesh.size:
        raise ValueError(
            f"batch_size is {config.batch_size}; it must be a multiple of the number "
            f"of devices, {mesh.size}."
        )
    if train_set is None:
        train_set = data.load(
            config.dataset,
            split="train",
            data_dir=config.data_dir,
            download=download,
            limit=config.train_examples,
            seed=0,
        )
    steps_per_epoch = data.steps_per_epoch(config.batch_size, len(train_set))
    total_steps = config.epochs * steps_per_epoch
    state = _initial_state(config, train_set, mesh, total_steps)
    run, store = None, None
    if directory is not None:
        run = run_directories.RunDirectory.create(directory, dataclasses.asdict(config))
        store = checkpoints.CheckpointStore(Path(directory) / checkpoints.FOLDER)
        restored = store.restore(state)
        if restored is not None:
            state = restored.state
        run.truncate_metrics(int(state.step))
    step = _compiled_step(
        _without_seed(config), train_set.num_classes, total_steps, mesh
    )
    logged: dict[str, float] = {}
    start = int(state.step)
    split = sharded(mesh)
    with progress.Progress(
        total_steps,
        initial=start,
        description=config.method,
        examples_per_step=config.batch_size,
        enabled=show_progress,
    ) as bar:
        for number in range(start, total_steps):
            indices = data.batch_indices(
                config.seed, number, config.batch_size, len(train_set)
            )
            batch = jax.device_put(
                (
                    train_set.images[indices],
                    train_set.labels[indices],
                    indices.astype(np.int32),
                ),
                split,
            )
            state, metrics = step(state, *batch)
            done = number + 1
            if done % log_every == 0 or done == total_steps:
                logged = {name: float(value) for name, value in metrics.items()}
                if not math.isfinite(logged["loss"]):
                    raise FloatingPointError(
                        f"the loss is {logged['loss']} at step {done}; a smaller "
                        "learning_rate or a clip_norm may help."
                    )
                if run is not None:
                    run.log(done, epoch=done / steps_per_epoch, **logged)
            bar.update(done, loss=metrics["loss"], accuracy=metrics["accuracy"])
            every = checkpoint_every or steps_per_epoch
            if store is not None and (done % every == 0 or done == total_steps):
                store.save(done, state, {"config": dataclasses.asdict(config)})
    if store is not None:
        store.close()
    return TrainResult(state.params, state.batch_stats, int(state.step), logged)


def load_run(
    directory: str | os.PathLike[str],
) -> tuple[Config, Any, Any, dict[str, Any]]:
    """Reads a run's newest valid checkpoint.

    Args:
      directory: a run directory.

    Returns:
      (config, params, batch_stats, metadata).

    Raises:
      ValueError or FileNotFoundError: if there is no valid checkpoint.
    """
    params, batch_stats, metadata = checkpoints.restore_variables(directory)
    return Config(**metadata["config"]), params, batch_stats, metadata


def _initial_state(
    config: Config, train_set: data.Dataset, mesh: Mesh, total_steps: int
) -> TrainState:
    key = jax.random.key(config.seed)
    init_key, run_key = jax.random.split(key)
    module = build_model(config, train_set.num_classes)
    params, batch_stats = network.init(module, init_key, train_set.image_shape)
    if config.init_from is not None:
        found_params, found_stats, _ = checkpoints.restore_variables(config.init_from)
        params = _fit(params, found_params, config.init_from)
        batch_stats = _fit(batch_stats, found_stats, config.init_from)
    method = methods.create(config, network.bind(module))
    optimizer = optimizers.create(config, total_steps)
    return init_state(
        params,
        batch_stats,
        method,
        optimizer,
        run_key,
        mesh,
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


def _without_seed(config: Config) -> Config:
    """The part of a configuration that its compiled step depends on."""
    return dataclasses.replace(config, seed=0, init_from=None)


# Runs that differ only in seed share one compiled step.
@functools.lru_cache(maxsize=8)
def _compiled_step(
    config: Config, num_classes: int, total_steps: int, mesh: Mesh
) -> Step:
    bound = network.bind(build_model(config, num_classes))
    return make_step(
        methods.create(config, bound),
        optimizers.create(config, total_steps),
        mesh,
        augment=config.augment,
        flip=config.dataset not in _NO_FLIP,
    )
