"""Transfers of batches to the device while it computes."""

import collections
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Batch = TypeVar("Batch")
Placed = TypeVar("Placed")


def prefetch(
    iterator: Iterable[Batch], put: Callable[[Batch], Placed], *, size: int = 2
) -> Iterator[Placed]:
    """Yields ``put(batch)`` for each batch, after calling it for the next ones.

    A transfer to a device returns before it ends, so it runs while the device works on
    the batches before.

    Args:
      iterator: the batches. Its method ``close``, if it has one, is called when the
        result is closed, ends or fails.
      put: the transfer, such as ``lambda batch: jax.device_put(batch, sharding)``.
      size: number of results that are kept ahead of the one in use; at least 1.

    Returns:
      A generator of the results, in order.

    Raises:
      ValueError: if ``size`` is below 1.
    """
    if size < 1:
        raise ValueError(f"size is {size}; it must be at least 1.")
    return _prefetch(iter(iterator), put, size)


def _prefetch(
    batches: Iterator[Batch], put: Callable[[Batch], Placed], size: int
) -> Iterator[Placed]:
    ahead: collections.deque[Placed] = collections.deque()
    try:
        for batch in batches:
            ahead.append(put(batch))
            if len(ahead) > size:
                yield ahead.popleft()
        while ahead:
            yield ahead.popleft()
    finally:
        close = getattr(batches, "close", None)
        if close is not None:
            close()
