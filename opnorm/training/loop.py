"""training: the loop over compiled steps, with checkpoints, metrics and progress."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from opnorm import data, models
from opnorm.training import (
    checkpoints,
    feed,
    hosts,
    methods,
    network,
    optimizers,
    preemption,
    progress,
)
from opnorm.training import config as configs
from opnorm.training import plan as plans
from opnorm.training.config import Config
from opnorm.training.plan import Plan
from opnorm.training.shared_run import SharedRun
from opnorm.training.step import (
    Step,
    TrainState,
    data_mesh,
    init_state,
    make_step,
    place,
    replicated,
    sharded,
    state_shardings,
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
    mean, std = models.STATISTICS[config.normalization]
    # What only some models have is passed to those.
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
    return data.load(
        config.dataset,
        split="train",
        data_dir=config.data_dir,
        download=download,
        limit=config.train_examples,
        seed=0,
    )


def train(
    config: Config,
    *,
    directory: str | os.PathLike[str] | None = None,
    train_set: data.Dataset | data.Stream | None = None,
    download: bool = False,
    mesh: Mesh | None = None,
    parameter_sharding: str = "replicated",
    log_every: int = 20,
    checkpoint_every: int | None = None,
    max_skipped_updates: int = 10,
    show_progress: bool = True,
) -> TrainResult:
    """Trains a network as a configuration says, or goes on where an earlier call ended.

    On CPU the result is a function of the configuration alone, bit by bit, however
    often the run was interrupted. Where several processes share a run (see
    :mod:`opnorm.training.hosts`), each calls it with the same arguments.

    Args:
      config: the run; see :class:`opnorm.training.config.Config`.
      directory: run directory for flags, metrics (JSON lines) and checkpoints; a run
        that is there already is resumed, or returned at once if it is complete. None
        keeps nothing. Several processes need it in the first one only.
      train_set: the training set if it is loaded already; None loads it.
      download: whether the data set may be downloaded.
      mesh: devices to share each batch; None for all, of all processes.
      parameter_sharding: "replicated", or "fsdp": parameters and optimiser state in
        parts over the devices, gathered for each step.
      log_every: steps between lines of metrics.
      checkpoint_every: steps between checkpoints; None for once an epoch. One is
        written at the end in any case.
      max_skipped_updates: how many updates in a row may have a loss or gradient that
        is not finite. They are left out, and counted in the metrics.
      show_progress: whether to show a progress bar or lines.

    Returns:
      The trained variables, whole on every device of the mesh.

    Raises:
      ValueError: for a configuration that cannot be trained, a directory that holds
        another run, a batch that the devices do not divide, or parameters to start from
        that do not fit.
      FileNotFoundError: if the data are not there.
      FloatingPointError: if too many updates in a row were not finite; the state before
        them is in the last checkpoint.
      ProcessLost: if another process of the run is gone.
      Preempted: a SystemExit with code 143, after SIGTERM, if there is a directory;
        everything done so far is in its checkpoint.
    """
    configs.validate(config)
    for name, value in (
        ("log_every", log_every),
        ("checkpoint_every", checkpoint_every),
        ("max_skipped_updates", max_skipped_updates),
    ):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1.")
    mesh = data_mesh() if mesh is None else mesh
    if train_set is None:
        train_set = load_train_set(config, download=download)
    plan = plans.make(config, len(train_set))
    for phase in plan.phases:
        parts = mesh.size * config.accumulation_steps
        if phase.batch_size % parts:
            raise ValueError(
                f"batch_size is {phase.batch_size}; it must be a multiple of the "
                f"number of devices, {mesh.size}, times accumulation_steps, "
                f"{config.accumulation_steps}."
            )
    shape = _image_shape(train_set, plan)
    state = _initial_state(config, train_set, plan, shape)
    shardings = state_shardings(state, mesh, parameter_sharding)
    run = None if directory is None else SharedRun(Path(directory), config)
    state = place(state if run is None else run.restore(state), shardings)
    step = _compiled_step(
        _without_seed(config),
        train_set.num_classes,
        plan,
        mesh,
        parameter_sharding,
        shape,
    )
    start = int(state.step)
    skipped = int(state.skipped_updates)
    logged: dict[str, float] = {}
    every = checkpoint_every
    with (
        contextlib.ExitStack() as stack,
        progress.Progress(
            plan.total_steps,
            initial=start,
            description=config.method,
            examples=plan.examples_done,
            enabled=show_progress and hosts.is_writer(),
        ) as bar,
    ):
        request = preemption.Request()
        if run is not None:
            stack.callback(run.close)
            # JAX itself listens where there are several processes.
            if jax.process_count() == 1:
                request = stack.enter_context(preemption.on_sigterm())
        batches = feed.batches(
            train_set,
            plan,
            config.seed,
            start,
            sharded(mesh),
            augment=config.augment,
        )
        stack.enter_context(contextlib.closing(batches))
        stack.enter_context(hosts.explain_loss_of_others())
        for done, batch in enumerate(batches, start + 1):
            state, metrics = step(state, *batch)
            last = done == plan.total_steps
            if done % log_every == 0 or last:
                logged = {name: float(value) for name, value in metrics.items()}
                skipped = _check_skipped(state, skipped, max_skipped_updates, done)
                if run is not None:
                    run.log(done, epoch=plan.epochs_done(done), **logged)
            bar.update(done, loss=metrics["loss"], accuracy=metrics["accuracy"])
            ends = run is not None and (bool(request) or hosts.asked_to_end(done))
            saves = done % every == 0 if every else plan.is_end_of_epoch(done)
            if run is not None and (saves or last or ends):
                run.save(done, state)
                if ends and not last:
                    raise preemption.Preempted(done)
    params = state.params
    if parameter_sharding != "replicated":
        params = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(params)
    return TrainResult(params, state.batch_stats, int(state.step), logged)


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


def _check_skipped(state: TrainState, known: int, limit: int, step: int) -> int:
    """Warns of updates that were left out; returns how many there were so far."""
    skipped, in_a_row = int(state.skipped_updates), int(state.skipped_in_a_row)
    if in_a_row > limit:
        raise FloatingPointError(
            f"the last {in_a_row} updates before step {step} were left out, because "
            "their loss or gradient was not finite; a smaller learning_rate or a "
            "clip_norm may help."
        )
    if skipped > known:
        logging.warning(
            "%d updates so far were left out, because their loss or gradient was not "
            "finite; the last of them at step %d or before.",
            skipped,
            step,
        )
    return skipped


def _image_shape(
    train_set: data.Dataset | data.Stream, plan: Plan
) -> tuple[int, int, int]:
    if isinstance(train_set, data.Dataset):
        height, width, channels = train_set.image_shape
        return height, width, channels
    size = plan.phases[0].image_size or plans.IMAGE_SIZE
    return size, size, 3


def _initial_state(
    config: Config,
    train_set: data.Dataset | data.Stream,
    plan: Plan,
    image_shape: tuple[int, int, int],
) -> TrainState:
    key = jax.random.key(config.seed)
    init_key, run_key = jax.random.split(key)
    module = build_model(config, train_set.num_classes)
    params, batch_stats = network.init(module, init_key, image_shape)
    if config.init_from is not None:
        found_params, found_stats, _ = checkpoints.restore_variables(config.init_from)
        params = _fit(params, found_params, config.init_from)
        batch_stats = _fit(batch_stats, found_stats, config.init_from)
    return init_state(
        params,
        batch_stats,
        methods.create(config, network.bind(module)),
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


def _without_seed(config: Config) -> Config:
    """The part of a configuration that its compiled step depends on."""
    return dataclasses.replace(config, seed=0, init_from=None)


# Runs that differ only in seed share one compiled step.
@functools.lru_cache(maxsize=8)
def _compiled_step(
    config: Config,
    num_classes: int,
    plan: Plan,
    mesh: Mesh,
    parameter_sharding: str,
    image_shape: tuple[int, int, int],
) -> Step:
    module = build_model(config, num_classes)
    method = methods.create(config, network.bind(module))
    optimizer = optimizers.create(config, plan)
    shardings = None
    if parameter_sharding != "replicated":
        params, batch_stats = jax.eval_shape(
            lambda key: network.init(module, key, image_shape), jax.random.key(0)
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
