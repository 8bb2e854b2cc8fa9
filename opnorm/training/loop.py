"""The loop over compiled steps, with checkpoints, metrics and progress."""

import contextlib
import dataclasses
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import jax
from absl import logging
from jax.sharding import Mesh

from opnorm import data, models
from opnorm.data.dataset import check_units
from opnorm.data.holding_out import check_disjoint
from opnorm.linalg import Params, PyTree
from opnorm.runs import JsonObject, checkpoints, hosts, preemption, progress
from opnorm.training import validation
from opnorm.training.config import Config
from opnorm.training.feed import DeviceBatch
from opnorm.training.load import initial_state
from opnorm.training.metrics import OnMetrics
from opnorm.training.program import Program, make_program
from opnorm.training.robust_check import RobustCheck
from opnorm.training.shardings import data_mesh, place
from opnorm.training.shared_run import SharedRun
from opnorm.training.state import TrainState
from opnorm.training.train_set import load_train_set, load_validation_set
from opnorm.training.validation_accuracy import ValidationAccuracy


class TrainResult(NamedTuple):
    """A trained network: ``result.network(x)``.

    Attributes:
      network: ``(B, H, W, C) -> (B, K)`` in inference mode, a callable pytree with the
        variables after the last step. Its kernels are bounded where the configuration
        bounds their layers' norms.
      step: number of updates done.
      metrics: the last logged metrics.
    """

    network: models.Network
    step: int
    metrics: dict[str, float]

    @property
    def params(self) -> Params:
        """The parameters of the network."""
        return self.network.params

    @property
    def batch_stats(self) -> PyTree:
        """BatchNorm's running statistics of the network."""
        return self.network.batch_stats


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
    robust_check_every: int | None = None,
    validation_set: data.Dataset | None = None,
    validate_every: int | None = None,
    validation_examples: int | None = 1000,
    keep_best: bool = False,
    show_progress: bool = True,
    on_metrics: OnMetrics | None = None,
) -> TrainResult:
    """Trains the network of a configuration, or goes on where an earlier call ended::

        config = training.Config(method="data_dependent_snr", epsilon=0.5, weight=1.0)
        result = training.train(config, directory="runs/snr")
        result.network(x)  # (B, K) logits

    On CPU the result is a function of the configuration alone, bit by bit, however
    often the run was interrupted. Where several processes share a run (see
    :mod:`opnorm.runs.hosts`), each calls it with the same arguments.

    Args:
      config: the choices that decide the result.
      directory: run directory for flags, metrics (JSON lines) and checkpoints; a run
        that is there already is resumed, or returned at once if it is complete. It may
        be given more epochs where its schedule gives the steps planned before the same
        learning rates. The paths of images and of init_from may change while their
        content does not. None keeps nothing. Several processes need it in the first
        one only.
      train_set: the training set as :func:`load_train_set` returns it, if it is loaded
        already; None loads it.
      download: whether the data set may be downloaded.
      mesh: devices to share each batch; None for all, of all processes.
      parameter_sharding: "replicated", or "fsdp": parameters and optimiser state in
        parts over the devices, gathered for each step.
      log_every: steps between lines of metrics.
      checkpoint_every: steps between checkpoints; None for once an epoch. One is
        written at the end in any case.
      max_skipped_updates: how many updates in a row may have a loss or gradient that
        is not finite. They are left out, and counted in the metrics.
      robust_check_every: epochs between measurements of the accuracy under FGSM and
        under PGD with 10 steps, both of length epsilon in norm p, on the first 128
        training images. A line of metrics after such an epoch, and after the last one,
        has "fgsm_accuracy" and "pgd_accuracy". A warning is logged once where the
        first exceeds the second by more than 0.2: catastrophic overfitting. None
        measures every epoch where the method is adversarial training with one step
        (FGSM) and never elsewhere; 0 never measures.
      validation_set: examples in memory, held out of the training; None loads those of
        the configuration's validation_fraction.
      validate_every: epochs between measurements of the accuracy on the validation set.
        A line of metrics after such an epoch, and after the last one, has
        "validation_accuracy" and, unless epsilon is 0, "validation_pga_accuracy", under
        PGA with 10 steps in the configuration's norm and epsilon. BatchNorm uses its
        running statistics. None is 1 with a validation set and 0, which never measures,
        without.
      validation_examples: number of validation examples that are measured, the same
        ones each time, as many of each class as possible; None for all. A given
        validation_set is measured whole.
      keep_best: whether to keep the checkpoint with the largest
        "validation_pga_accuracy" beside the last ones, in the folder "best" of the
        directory, for ``load_run(directory, "best")``. The earliest of equal ones is
        kept. For the method "standard", and with epsilon 0, the largest
        "validation_accuracy" is the best. The last checkpoint is then written after
        each improvement, too.
      show_progress: whether to show a progress bar or lines.
      on_metrics: called as ``on_metrics(step, values)`` with each record of metrics, in
        rising order of steps, on the process that writes: the number of updates done,
        and the values of the record, "epoch" among them, as floats. With a directory
        the record is in metrics.jsonl by then, and a checkpoint of the step is not yet
        written. An exception ends the training, which then goes on from its last
        checkpoint. A resumed run gives the records after that checkpoint, some of which
        an earlier call may have given; the writers :func:`csv_metrics` and
        :func:`tensorboard_metrics` put them in the place of the earlier ones. None
        calls nothing.

    Returns:
      The trained network; its variables are whole on every device of the mesh.

    Raises:
      ValueError: for a configuration that cannot be trained, a directory that holds
        another run, other data, or files that are not of a run, a run whose checkpoints
        are gone, a batch that the devices do not divide, or parameters to start from
        that do not fit.
      FileNotFoundError: if the data or the network to start from are not there.
      RunInUse: an OSError, if another process writes into the directory.
      OSError: if something cannot be written; earlier checkpoints are whole.
      FloatingPointError: if too many updates in a row were not finite; the state before
        them is in the last checkpoint.
      ProcessLost: if another process of the run is gone.
      Preempted: a SystemExit with code 143 after SIGTERM and 129 after SIGHUP, if there
        is a directory; everything done so far is in its checkpoint.
      KeyboardInterrupt: after Ctrl-C; if there is a directory, everything done so far
        is in its checkpoint. A second Ctrl-C ends the process at once.
    """
    validation.validate(config)
    for name, value in (
        ("log_every", log_every),
        ("checkpoint_every", checkpoint_every),
        ("max_skipped_updates", max_skipped_updates),
        ("validation_examples", validation_examples),
    ):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1.")
    if robust_check_every is not None and robust_check_every < 0:
        raise ValueError(
            f"robust_check_every is {robust_check_every}; it must be at least 0."
        )
    held_out = bool(config.validation_fraction) or validation_set is not None
    validate_every = int(held_out) if validate_every is None else validate_every
    _check_validation(
        validate_every, held_out, keep_best, has_directory=directory is not None
    )
    mesh = data_mesh() if mesh is None else mesh
    given = train_set is not None or validation_set is not None
    if train_set is None:
        train_set = load_train_set(config, download=download)
    if isinstance(train_set, data.Dataset):
        check_units(train_set)
    if validate_every and validation_set is None:
        validation_set = load_validation_set(
            config, download=download, limit=validation_examples
        )
    program = make_program(config, train_set, mesh, parameter_sharding)
    checks: list[Check] = [
        RobustCheck(config, program.plan, train_set, robust_check_every)
    ]
    criterion = None
    if validate_every and validation_set is not None:
        data.check_splits(train_set, validation_set, "validation")
        # Different images may have the same middle.
        if given and config.image_size is None and isinstance(train_set, data.Dataset):
            check_disjoint(train_set, validation_set)
        validation_accuracy = ValidationAccuracy(
            config, program.plan, mesh, validation_set, validate_every
        )
        checks.append(validation_accuracy)
        criterion = validation_accuracy.criterion if keep_best else None
    state = initial_state(program, config)
    shardings = program.shardings(state)
    with contextlib.ExitStack() as stack:
        run = None
        if directory is not None:
            inputs = _inputs(config, train_set)
            run = SharedRun(Path(directory), config, program, inputs, criterion)
            stack.callback(run.close)
            state = run.restore(state)
        state = place(state, shardings)
        plan = program.plan
        batches = program.batches(train_set, config.seed, int(state.step))
        stack.enter_context(contextlib.closing(batches))
        bar = progress.Progress(
            plan.total_steps,
            initial=int(state.step),
            description=config.method,
            examples=plan.examples_done,
            enabled=show_progress and hosts.is_writer(),
        )
        every = _Every(
            log_every, checkpoint_every, max_skipped_updates, checks, on_metrics
        )
        state, metrics = _take_steps(program, state, batches, run, bar, every)
    return TrainResult(program.network(state), int(state.step), metrics)


class Check(Protocol):
    """A measurement of the network between epochs."""

    def is_due(self, steps: int) -> bool:
        """Whether the network after the first ``steps`` updates is measured."""
        ...

    def measure(self, network: models.Network, steps: int) -> dict[str, float]:
        """Returns metrics of the network after the first ``steps`` updates."""
        ...


class _Every(NamedTuple):
    """The limits of a loop, and the measurements in it, as in :func:`train`."""

    log: int
    checkpoint: int | None
    max_skipped: int
    checks: Sequence[Check]
    on_metrics: OnMetrics | None


def _take_steps(
    program: Program,
    state: TrainState,
    batches: Iterable[DeviceBatch],
    run: SharedRun | None,
    bar: progress.Progress,
    every: _Every,
) -> tuple[TrainState, dict[str, float]]:
    """Takes all steps to come; returns the last state and the last logged metrics."""
    plan, step, clip = program.plan, program.step, program.clip
    start, skipped = int(state.step), int(state.skipped_updates)
    logged: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(bar)
        request = preemption.Request()
        if run is not None:
            request = stack.enter_context(_on_signals())
        stack.enter_context(hosts.explain_loss_of_others())
        for done, batch in enumerate(batches, start + 1):
            state, metrics = step(state, *batch)
            last, epoch_ends = done == plan.total_steps, plan.is_end_of_epoch(done)
            if clip is not None and epoch_ends:
                state = dataclasses.replace(state, params=clip(state.params))
            checks = [check for check in every.checks if check.is_due(done)]
            if done % every.log == 0 or last or checks:
                logged = {name: float(value) for name, value in metrics.items()}
                skipped = _check_skipped(state, skipped, every.max_skipped, done)
                if checks:
                    logged |= _measure(checks, program.network(state), done)
                record = {"epoch": plan.epochs_done(done), **logged}
                if run is not None:
                    run.log(done, **record)
                if every.on_metrics is not None and hosts.is_writer():
                    every.on_metrics(done, record)
            bar.update(done, loss=metrics["loss"], accuracy=metrics["accuracy"])
            if run is None:
                continue
            ends = hosts.asked_to_end(done, own=bool(request))
            saves = done % every.checkpoint == 0 if every.checkpoint else epoch_ends
            saves |= bool(checks) and run.keep_if_best(done, state, logged)
            if saves or last or ends:
                run.save(done, state)
                if ends and not last:
                    request.end(done)
    return state, logged


def _measure(
    checks: Sequence[Check], network: models.Network, steps: int
) -> dict[str, float]:
    """Returns the metrics of all measurements that are due."""
    found: dict[str, float] = {}
    for check in checks:
        found |= check.measure(network, steps)
    return found


def _check_validation(
    every: int, held_out: bool, keep_best: bool, *, has_directory: bool
) -> None:
    """Raises a ValueError for measurements of a validation set that cannot be made."""
    if every < 0:
        raise ValueError(f"validate_every is {every}; it must be at least 0.")
    if every and not held_out:
        raise ValueError(
            f"validate_every is {every}; it needs a validation_fraction above 0, which "
            "holds examples out of the training."
        )
    if keep_best and not every:
        raise ValueError(
            "keep_best is True; it needs a validation_fraction above 0 and a "
            f"validate_every that is not 0, which is {every}."
        )
    if keep_best and not has_directory:
        raise ValueError("keep_best is True; it needs a directory to keep it in.")


def _inputs(config: Config, train_set: data.Dataset | data.Stream) -> JsonObject:
    """Identifies the data, and the network to start from, that flags only name."""
    found = data.fingerprint(train_set)
    if config.init_from is not None:
        # As stored: parameters computed from it may differ between devices.
        names = ("params", "batch_stats")
        stored, _ = checkpoints.restore_parts(config.init_from, names)
        found["start"] = checkpoints.digest(stored)
    return found


def _on_signals() -> contextlib.AbstractContextManager[preemption.Request]:
    """Listens for signals; with several processes JAX itself listens for SIGTERM."""
    if jax.process_count() == 1:
        return preemption.on_signals()
    return preemption.on_signals(None, pass_on=True)


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
