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
    ) -> None:
        self._metadata = {
            "config": dataclasses.asdict(config),
            "image_shape": program.objective.image_shape,
            "num_classes": program.objective.num_classes,
        }
        self._directory = RunDirectory(directory)
        self._store = checkpoints.CheckpointStore(directory / checkpoints.FOLDER)
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
          ValueError: if checkpoints are gone or damaged, all of them.
        """
        found: list[TrainState] = []

        def read() -> bool:
            restored = self._store.restore(state, optional=_COUNTERS)
            if restored is not None:
                found.append(restored.state)
            else:
                self._check_unsaved()
            step = int(found[0].step) if found else 0
            self._directory.truncate_metrics(step)
            return bool(found)

        if hosts.from_writer(read):
            state = hosts.broadcast(found[0] if found else state)
        return state

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

    def log(self, step: int, **metrics: float) -> None:
        """Appends a line of metrics."""
        if hosts.is_writer():
            self._directory.log(step, **metrics)

    def close(self) -> None:
        """Closes the checkpoints, and lets other processes in."""
        with self._held:
            if hosts.is_writer():
                self._store.close()


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
