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
# Compiling the programs of a stage for another size takes about 3 s on two cores; a row
# of CNN7 takes about 0.5 ms for a step.
_WORTH_COMPILING = 6000

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


def batch_sizes(batch_size: int, count: int | None = None) -> tuple[int, ...]:
    """Returns the batch sizes that are compiled, largest first.

    All are multiples of the number of devices. A quarter and a sixteenth of the largest
    size serve the last rows of a pool.

    Args:
      batch_size: largest number of rows per call.
      count: number of rows; fewer rows than ``batch_size`` make the sizes smaller.
    """
    devices = jax.device_count()
    least = max(_SMALLEST_BATCH, devices)
    if count is not None:
        batch_size = min(batch_size, _fitting(count))
    sizes = {-(-batch_size // devices) * devices}
    for divisor in _DIVISORS:
        size = -(-batch_size // (divisor * devices)) * devices
        if size >= least:
            sizes.add(size)
    return tuple(sorted(sizes, reverse=True))


def refit(sizes: tuple[int, ...], count: int, steps: int) -> tuple[int, ...]:
    """Returns the sizes, and one that fits the last of the rows where that pays.

    A new size is compiled, which has to be worth the steps that rows which only fill up
    a batch would take.

    Args:
      sizes: sizes that are in use, largest first.
      count: number of rows left.
      steps: number of steps that they will take at most.
    """
    last = count % sizes[0]
    devices = jax.device_count()
    size = min(sizes[0], -(-_fitting(last) // devices) * devices)
    computed = sum(_split(last, sizes))
    if (computed - size) * steps < _WORTH_COMPILING:
        return sizes
    return tuple(sorted({*sizes, size}, reverse=True))


def _fitting(count: int) -> int:
    """Returns the least of 8, 12, 16, 24, 32, 48, ... that is not below ``count``."""
    size = _SMALLEST_BATCH
    while size < count:
        size *= 2
    between = size * 3 // 4
    return between if between > _SMALLEST_BATCH and between >= count else size


def _split(count: int, sizes: Sequence[int]) -> list[int]:
    """Returns sizes of batches for ``count`` rows.

    The largest size comes first. One batch serves the rest where several of smaller
    sizes would not compute fewer rows.
    """
    largest = sizes[0]
    parts, rest = [largest] * (count // largest), count % largest
    if not rest:
        return parts
    whole = min(size for size in sizes if size >= rest)
    smaller = [size for size in sizes if size < whole]
    several = _split(rest, smaller) if smaller else [whole]
    return parts + (several if sum(several) < whole else [whole])


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
    for size in _split(len(rows), sizes):
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
