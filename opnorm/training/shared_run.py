"""The directory and the checkpoints of a training run that processes share."""

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path

from absl import logging

from opnorm.runs import Json, JsonObject, RunDirectory, checkpoints, hosts
from opnorm.training import plan as plans
from opnorm.training.config import Config
from opnorm.training.plan import Plan
from opnorm.training.program import Program
from opnorm.training.state import TrainState
from opnorm.training.validation_accuracy import Criterion

# Leaves of a state that checkpoints of earlier versions lack.
_COUNTERS = ("skipped_updates", "skipped_in_a_row")
# A file that is written with the first checkpoint, so that a loss is noticed.
_SAVED = "checkpoints.json"
# Flags that hold a place: of the data, and of the network to start from.
_PLACES = ("dataset", "data_dir")
_START = "init_from"
# Characters that an error shows of a record that somebody else may have written.
_SHOWN_CHARACTERS = 80
# Flags that may change when epochs are added.
_LENGTHS = ("epochs", "milestones", "learning_rates")


class SharedRun:
    """The directory of a run, shared by all of its processes.

    Every process calls every method; the first one alone reads and writes, and keeps
    other processes out of the directory until :meth:`close`.

    Args:
      directory: the run directory, made if need be.
      config: the configuration of the run.
      program: its program.
      inputs: the training set's :func:`opnorm.data.fingerprint`, and as "start", with
        init_from, the digest of the variables there.
      criterion: keeps the best checkpoint by this criterion beside the last ones; None
        keeps none.

    Raises:
      ValueError: if the directory holds another run or other inputs, or is not that of
        a run, or if this process has other inputs than the first one.
      RunInUse: an OSError, if another process writes into the directory.
    """

    def __init__(
        self,
        directory: Path,
        config: Config,
        program: Program,
        inputs: Mapping[str, Json],
        criterion: Criterion | None = None,
    ) -> None:
        self._metadata = {
            "config": dataclasses.asdict(config),
            "image_shape": program.objective.image_shape,
            "num_classes": program.objective.num_classes,
        }
        self._directory = RunDirectory(directory)
        self._store = checkpoints.CheckpointStore(directory / checkpoints.FOLDER)
        # Two, since a run that finds its newest checkpoint damaged goes on from the one
        # before, and the best of that time must still be there.
        self._best_store = checkpoints.CheckpointStore(
            directory / checkpoints.BEST, max_to_keep=2
        )
        self._criterion = criterion
        self._best: float | None = None
        self._held = contextlib.ExitStack()

        def open_directory() -> JsonObject:
            with contextlib.ExitStack() as stack:
                stack.enter_context(self._directory.locked())
                _create(self._directory, config, program.plan, inputs)
                self._held = stack.pop_all()
            return dict(inputs)

        theirs = hosts.from_writer(open_directory)
        if theirs != inputs:
            raise ValueError(
                f"this process has {inputs['examples']} training examples, the first "
                f"one {theirs['examples']}, and they, or the networks to start from, "
                "are not the same; give all processes the same."
            )

    def restore(self, state: TrainState) -> TrainState:
        """Returns the state of the newest checkpoint, or the given one.

        Raises:
          ValueError: if checkpoints are gone or damaged, all of them, or if the best
            one was chosen in another way.
        """
        found: list[TrainState] = []

        def read() -> JsonObject:
            restored = self._store.restore(state, optional=_COUNTERS)
            if restored is not None:
                found.append(restored.state)
            else:
                self._check_unsaved()
            step = int(found[0].step) if found else 0
            self._directory.truncate_metrics(step)
            return {"found": bool(found), "best": self._read_best(step)}

        read_by_writer = hosts.from_writer(read)
        self._best = read_by_writer["best"]
        if read_by_writer["found"]:
            state = hosts.broadcast(found[0] if found else state)
        return state

    def _read_best(self, step: int) -> float | None:
        """Returns the accuracy of the best checkpoint of the first steps, if any."""
        if self._criterion is None:
            return None
        self._best_store.discard_after(step)
        folder, accuracy = self._directory.path / checkpoints.BEST, None
        if folder.is_dir():
            accuracy = _read_accuracy(folder, self._criterion)
        metric = self._criterion.metric
        measured = [
            line[metric] for line in self._directory.read_metrics() if metric in line
        ]
        if max(measured, default=0.0) > (accuracy or 0.0):
            logging.warning(
                "%s had a %s of %g before, whose checkpoint was not kept; the best "
                "checkpoint is the best of those that are there and of those to come.",
                self._directory.path,
                metric,
                max(measured),
            )
        return accuracy

    def _check_unsaved(self) -> None:
        """Raises a ValueError if there have been checkpoints."""
        path = self._directory.path
        logged = [line["step"] for line in self._directory.read_metrics()]
        last = max(logged, default=0)
        if (path / _SAVED).exists():
            raise ValueError(
                f"{path} has metrics up to step {last}, but its checkpoints are gone; "
                f"put its folder {checkpoints.FOLDER} back, or give another directory "
                "to train again from the beginning."
            )
        if logged:
            logging.warning(
                "%s has metrics up to step %d, but no checkpoint: the run starts "
                "again.",
                path,
                last,
            )

    def save(self, step: int, state: TrainState) -> None:
        """Writes a checkpoint.

        Raises:
          OSError: if it cannot be written; earlier checkpoints are whole.
        """
        state = hosts.gather(state)
        if hosts.is_writer():
            self._store.save(step, state, self._metadata)
            if not (self._directory.path / _SAVED).exists():
                self._directory.write_json(_SAVED, {"first_step": step})

    def keep_if_best(
        self, step: int, state: TrainState, metrics: Mapping[str, float]
    ) -> bool:
        """Keeps the checkpoint of a network that is better than all before.

        The caller saves a checkpoint of the same step behind it, so that a run never
        goes on from a step before its best one.

        Args:
          step: number of updates done.
          state: the state.
          metrics: measurements of its network; they may lack the criterion's.

        Returns:
          Whether it was kept.

        Raises:
          OSError: if it cannot be written; earlier checkpoints are whole.
        """
        if self._criterion is None or self._criterion.metric not in metrics:
            return False
        record = self._criterion.record(metrics)
        if self._best is not None and record["accuracy"] <= self._best:
            return False
        self._best = record["accuracy"]
        state = hosts.gather(state)
        if hosts.is_writer():
            self._best_store.save(step, state, {**self._metadata, "best": record})
        return True

    def log(self, step: int, **metrics: float) -> None:
        """Appends a line of metrics."""
        if hosts.is_writer():
            self._directory.log(step, **metrics)

    def close(self) -> None:
        """Closes the checkpoints, and lets other processes in."""
        with self._held:
            if hosts.is_writer():
                self._store.close()
                self._best_store.close()


def _read_accuracy(folder: Path, criterion: Criterion) -> float | None:
    """Returns the accuracy of the newest checkpoint that was kept as the best."""
    try:
        _, metadata = checkpoints.restore_parts(folder, ())
    except FileNotFoundError:
        return None
    except ValueError as error:
        logging.warning("%s", error)
        return None
    stored = metadata.get("best")
    if not isinstance(stored, dict) or not isinstance(stored.get("accuracy"), float):
        raise ValueError(f"{folder} has a checkpoint that was not kept as the best.")
    accuracy: float = stored["accuracy"]
    wanted = criterion.record({criterion.metric: accuracy})
    for name, value in wanted.items():
        if stored.get(name) != value:
            raise ValueError(
                f"{folder} has a checkpoint that was chosen in another way: {name} is "
                f"{str(stored.get(name))[:_SHOWN_CHARACTERS]} there and {value} here; "
                "give the same validation examples, or move the folder away."
            )
    return accuracy


def _create(
    run: RunDirectory, config: Config, plan: Plan, inputs: Mapping[str, Json]
) -> None:
    """Makes the directory, or checks that it holds the same run, and adds epochs."""
    flags, default = dataclasses.asdict(config), dataclasses.asdict(Config())
    stored, known = dict(flags), None
    if run.is_begun():
        stored, known = default | run.flags(), run.data()
    may_differ: tuple[str, ...] = ()
    if known is not None and _kind(stored["dataset"]) == _kind(config.dataset):
        may_differ += _PLACES
    if known is not None and "start" in known and "start" in inputs:
        may_differ += (_START,)
    longer = _is_number(stored["epochs"]) and config.epochs > stored["epochs"]
    if longer:
        may_differ += _LENGTHS
    RunDirectory.create(
        run.path, flags, may_differ=may_differ, defaults=default, data=inputs
    )
    _check_inputs(run.path, known, inputs)
    if longer:
        lengths = {name: stored[name] for name in _LENGTHS}
        plans.check_extension(dataclasses.replace(config, **lengths), config, plan)
        run.change_flags({name: flags[name] for name in _LENGTHS})


def _check_inputs(
    path: Path, stored: Mapping[str, Json] | None, given: Mapping[str, Json]
) -> None:
    """Raises a ValueError if a run was made with other data or another network.

    Runs of earlier versions have no record, and are opened.
    """
    if stored is None or stored == given:
        return
    there, here = (each.get("examples") for each in (stored, given))
    change = f"{str(there)[:_SHOWN_CHARACTERS]} examples there and {here} here"
    if there == here:
        change = f"{here} examples, but other images or labels"
    if stored.get("digest") == given.get("digest"):
        raise ValueError(
            f"{path} was started from another network than init_from names now; "
            "give the path of that one, or another directory."
        )
    raise ValueError(
        f"{path} was made with other data than are there now: {change}; bring the "
        "data back, or give another directory."
    )


def _kind(dataset: Json) -> str:
    """Returns the part of a data set's name that is not a path."""
    return str(dataset).partition(":")[0]


def _is_number(value: Json) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
