"""Data sets in batches of few sizes, so that few programs are compiled."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from opnorm import linalg
from opnorm.analysis import inputs
from opnorm.linalg import PyTree

# The batch sizes are the largest one divided by these. Each size is compiled, and the
# smallest ones serve the last rows of a pool.
_DIVISORS = (1, 4, 16)
_SMALLEST_BATCH = 8

_partition: Callable[..., jax.P] = jax.P


def in_batches(
    fun: Callable[..., PyTree],
    f: linalg.Network,
    arrays: tuple[np.ndarray, ...],
    batch_size: int,
    extra: tuple[PyTree, ...] = (),
) -> PyTree:
    """Applies ``fun(f, *batch, *extra)`` to batches of one size and joins the results.

    The last batch is filled up with copies of the last example, which are left out of
    the results.

    Args:
      fun: a function of a network and of arrays ``(b, ...)``, which returns a tree of
        arrays ``(b, ...)``; best one that :func:`opnorm.linalg.network_program` has
        made.
      f: the network.
      arrays: each ``(N, ...)``, one row per example; the first one holds the images.
      batch_size: largest number of examples per call.
      extra: further arguments of ``fun``, the same for all batches.

    Returns:
      The tree of ``fun``, with NumPy arrays ``(N, ...)``.

    Raises:
      ValueError: for no examples, arrays of different lengths, images that are neither
        uint8 nor float, or a batch size below 1.
    """
    count = len(arrays[0])
    inputs.check_examples(arrays[0], arrays[-1], batch_size)
    size = min(batch_size, count)
    pieces = []
    for start in range(0, count, size):
        rows = np.minimum(np.arange(start, start + size), count - 1)
        pieces.append(fun(f, *(array[rows] for array in arrays), *extra))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *pieces)


def reporting_progress(
    fun: Callable[..., PyTree],
    count: int,
    size: int,
    on_progress: Callable[[float], None] | None,
) -> Callable[..., PyTree]:
    """Returns ``fun``, which then waits for its result and reports progress.

    Waiting keeps to the limit of memory: calls would queue up otherwise.

    Args:
      fun: a function that is called once for each batch.
      count: number of examples.
      size: examples per call.
      on_progress: called after each call with the fraction of the calls that is done.
    """
    calls, done = math.ceil(count / size), 0

    def reporting(*args: PyTree) -> PyTree:
        nonlocal done
        found = jax.tree.map(np.asarray, fun(*args))
        done += 1
        if on_progress is not None:
            on_progress(done / calls)
        return found

    return reporting


def batch_sizes(batch_size: int) -> tuple[int, ...]:
    """Returns the batch sizes that are compiled, largest first.

    All are multiples of the number of devices. A quarter and a sixteenth of the largest
    size serve the last rows of a pool.
    """
    devices = jax.device_count()
    least = max(_SMALLEST_BATCH, devices)
    sizes = {-(-batch_size // devices) * devices}
    for divisor in _DIVISORS:
        size = -(-batch_size // (divisor * devices)) * devices
        if size >= least:
            sizes.add(size)
    return tuple(sorted(sizes, reverse=True))


class Batch(NamedTuple):
    """Row numbers that share a compiled call.

    Attributes:
      rows: ``(n,)`` int, the rows of the pool that the batch computes.
      filled: ``(b,)`` int, b at least n: the same rows, then copies of the last one.
    """

    rows: np.ndarray
    filled: np.ndarray


def fill(rows: np.ndarray, sizes: Sequence[int]) -> Iterator[Batch]:
    """Splits rows into batches of the given sizes, which must fall."""
    while len(rows):
        fitting = [size for size in sizes if size <= len(rows)]
        size = fitting[0] if fitting else sizes[-1]
        batch, rows = rows[:size], rows[size:]
        yield Batch(batch, batch[np.minimum(np.arange(size), len(batch) - 1)])


class Placement:
    """Places batches split over all devices, and other arrays whole on each device."""

    def __init__(self) -> None:
        self._mesh = None
        if jax.device_count() > 1:
            kind = (jax.sharding.AxisType.Auto,)
            shape = (jax.device_count(),)
            self._mesh = jax.make_mesh(shape, ("data",), axis_types=kind)

    def shard(self, arrays: PyTree) -> PyTree:
        """Splits the leading axis of each array over the devices."""
        return self._put(arrays, _partition("data"))

    def replicate(self, arrays: PyTree) -> PyTree:
        """Copies each array to every device."""
        return self._put(arrays, _partition())

    def _put(self, arrays: PyTree, spec: jax.P) -> PyTree:
        if self._mesh is None:
            return arrays
        return jax.device_put(arrays, jax.NamedSharding(self._mesh, spec))
