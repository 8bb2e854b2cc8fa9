"""Batches on their devices, in the order that a plan gives.

Every process reads the rows of each batch that its own devices hold, and no others.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, overload

import jax
import numpy as np
from jax.sharding import NamedSharding

from opnorm import data
from opnorm.training.plan import IMAGE_SIZE, Phase, Plan

DeviceBatch = tuple[jax.Array, jax.Array, jax.Array]
# (seed of the views, numbers of the examples).
Task = tuple[int, np.ndarray]

_assemble: Callable[..., jax.Array] = jax.make_array_from_process_local_data


def batches(
    source: data.Dataset | data.Stream,
    plan: Plan,
    seed: int,
    first_step: int,
    sharding: NamedSharding,
    *,
    augment: bool,
) -> Generator[DeviceBatch, None, None]:
    """Yields the batches of the steps from one to the end of the run.

    Args:
      source: the training set.
      plan: the steps of the run.
      seed: random seed of the order of the examples and of the views of streamed
        ones.
      first_step: number of the first step.
      sharding: sharding of a batch, split along its leading axis.
      augment: whether streamed images are cropped and mirrored at random.

    Yields:
      images ``(B, H, W, C)`` uint8, labels ``(B,)`` int32, indices ``(B,)`` int32.
    """
    if isinstance(source, data.Dataset):
        for step in range(first_step, plan.total_steps):
            indices = _own_rows(plan.indices(seed, step), sharding)
            host = source.images[indices], source.labels[indices], indices
            yield _put(host, plan.phase(step).batch_size, sharding)
        return
    for phase in plan.phases:
        steps = range(max(first_step, phase.first_step), plan.end(phase))
        if steps:
            yield from _streamed(source, plan, phase, seed, steps, sharding, augment)


def _streamed(
    source: data.Stream,
    plan: Plan,
    phase: Phase,
    seed: int,
    steps: range,
    sharding: NamedSharding,
    augment: bool,
) -> Iterator[DeviceBatch]:
    tasks = _Tasks(plan, seed, steps, sharding)
    size = phase.image_size or IMAGE_SIZE
    decoded: Any
    if augment:
        decoded = source.batches(tasks, image_size=size, least_area=phase.least_area)
    else:
        decoded = source.batches(tasks, image_size=size, augment=False)

    def with_indices() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        try:
            for (_, indices), (images, labels) in zip(tasks, decoded, strict=True):
                yield images, labels, indices
        finally:
            decoded.close()

    return data.prefetch(
        with_indices(), lambda host: _put(host, phase.batch_size, sharding)
    )


class _Tasks(Sequence[Task]):
    """The seed of a step's views and the examples that this process reads, by step."""

    def __init__(
        self, plan: Plan, seed: int, steps: range, sharding: NamedSharding
    ) -> None:
        self._plan, self._seed = plan, seed
        self._steps, self._sharding = steps, sharding

    def __len__(self) -> int:
        return len(self._steps)

    @overload
    def __getitem__(self, place: int) -> Task: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[Task]: ...

    def __getitem__(self, place: int | slice) -> Task | Sequence[Task]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        step = self._steps[place]
        # Each epoch shows an example in another view.
        entropy = (self._seed, int(self._plan.epochs_done(step)))
        words = np.random.SeedSequence(entropy).generate_state(1, np.uint32)
        indices = self._plan.indices(self._seed, step)
        return int(words[0]), _own_rows(indices, self._sharding)


def place_rows(
    host: tuple[np.ndarray, np.ndarray, np.ndarray], sharding: NamedSharding
) -> DeviceBatch:
    """Places a batch that every process has whole on the devices.

    Args:
      host: images ``(B, H, W, C)`` uint8, labels ``(B,)`` int32, numbers ``(B,)``.
      sharding: sharding of a batch, split along its leading axis.
    """
    images, labels, numbers = host
    own = _own_rows(np.arange(len(labels)), sharding)
    return _put((images[own], labels[own], numbers[own]), len(labels), sharding)


def _own_rows(indices: np.ndarray, sharding: NamedSharding) -> np.ndarray:
    """Returns the examples of a batch that lie on devices of this process."""
    if sharding.is_fully_addressable:
        return indices
    parts = sharding.addressable_devices_indices_map(indices.shape).values()
    rows = [part for part in parts if part is not None]
    return np.concatenate(
        [indices[part] for part in sorted(rows, key=lambda part: part[0].start or 0)]
    )


def _put(
    host: tuple[np.ndarray, np.ndarray, np.ndarray],
    batch_size: int,
    sharding: NamedSharding,
) -> DeviceBatch:
    images, labels, indices = host
    own = images, labels, indices.astype(np.int32)
    if sharding.is_fully_addressable:
        whole: DeviceBatch = jax.device_put(own, sharding)
        return whole
    placed: DeviceBatch = jax.tree.map(
        lambda array: _assemble(sharding, array, (batch_size, *array.shape[1:])),
        own,
    )
    return placed
