"""training: the directory and the checkpoints of a run that processes share."""

import dataclasses
from pathlib import Path

from opnorm.training import checkpoints, hosts
from opnorm.training.config import Config
from opnorm.training.run_directory import RunDirectory
from opnorm.training.step import TrainState

# Leaves of a state that checkpoints of earlier versions lack.
_COUNTERS = ("skipped_updates", "skipped_in_a_row")


class SharedRun:
    """A run's directory, as all of its processes see it.

    Every process calls every method; the first one alone reads and writes.

    Args:
      directory: the run directory, made if need be.
      config: of the run.
      image_shape: ``(H, W, C)`` of the largest pictures that the network sees.
      num_classes: of the data set.

    Raises:
      ValueError: if the directory holds another run.
    """

    def __init__(
        self,
        directory: Path,
        config: Config,
        image_shape: tuple[int, ...],
        num_classes: int,
    ) -> None:
        self._config = dataclasses.asdict(config)
        self._metadata = {
            "config": self._config,
            "image_shape": image_shape,
            "num_classes": num_classes,
        }

        def create() -> None:
            self._directory = RunDirectory.create(
                directory, self._config, defaults=dataclasses.asdict(Config())
            )
            self._store = checkpoints.CheckpointStore(directory / checkpoints.FOLDER)

        hosts.from_writer(create)

    def restore(self, state: TrainState) -> TrainState:
        """The state of the newest checkpoint, or the given one."""
        found: list[TrainState] = []

        def read() -> bool:
            restored = self._store.restore(state, optional=_COUNTERS)
            if restored is not None:
                found.append(restored.state)
            step = int(found[0].step) if found else 0
            self._directory.truncate_metrics(step)
            return bool(found)

        if hosts.from_writer(read):
            state = hosts.broadcast(found[0] if found else state)
        return state

    def save(self, step: int, state: TrainState) -> None:
        """Writes a checkpoint."""
        state = hosts.gather(state)
        if hosts.is_writer():
            self._store.save(step, state, self._metadata)

    def log(self, step: int, **metrics: float) -> None:
        """Appends a line of metrics."""
        if hosts.is_writer():
            self._directory.log(step, **metrics)

    def close(self) -> None:
        """Ends what the checkpoints keep open."""
        if hosts.is_writer():
            self._store.close()
