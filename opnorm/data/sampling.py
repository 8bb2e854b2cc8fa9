"""The examples of each batch.

The batch of a step is a pure function of the seed and the step, so training that
resumes at a step gets the same data as training without an interruption.
"""

import functools

import numpy as np


@functools.lru_cache(maxsize=4)
def epoch_permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """Computes the order of the examples in one epoch.

    Args:
      seed: at least 0.
      epoch: at least 0.
      num_examples: number of examples, at least 1.

    Returns:
      (num_examples,) int64, a permutation; read-only, since it is kept for the other
      steps of the epoch.

    Raises:
      ValueError: if an argument is too small.
    """
    _check("seed", seed, 0)
    _check("epoch", epoch, 0)
    _check("num_examples", num_examples, 1)
    # NumPy keeps the raw bits of a bit generator across versions, but may change
    # Generator.permutation. A run must resume under a newer NumPy.
    bits = np.random.PCG64(np.random.SeedSequence((seed, epoch)))
    order = np.argsort(bits.random_raw(num_examples), kind="stable")
    order.flags.writeable = False
    return order


def batch_indices(
    seed: int, step: int, batch_size: int, num_examples: int
) -> np.ndarray:
    """Computes the indices of the examples of one training step.

    Each epoch visits the examples in a new order, in whole batches. It drops the last
    ``num_examples % batch_size`` examples of its order.

    Args:
      seed: at least 0.
      step: the step of the whole training, at least 0.
      batch_size: examples per step, between 1 and ``num_examples``.
      num_examples: number of examples.

    Returns:
      (batch_size,) int64.

    Raises:
      ValueError: if an argument is out of range.

    Example:
      >>> from opnorm import data
      >>> batches = [data.batch_indices(0, step, 3, 6) for step in range(2)]
      >>> sorted(int(i) for batch in batches for i in batch)
      [0, 1, 2, 3, 4, 5]
    """
    _check("step", step, 0)
    epoch, position = divmod(step, steps_per_epoch(batch_size, num_examples))
    order = epoch_permutation(seed, epoch, num_examples)
    return order[position * batch_size : (position + 1) * batch_size]


def steps_per_epoch(batch_size: int, num_examples: int) -> int:
    """Computes the number of whole batches of an epoch.

    Args:
      batch_size: examples per step, between 1 and ``num_examples``.
      num_examples: number of examples.

    Returns:
      ``num_examples // batch_size``.

    Raises:
      ValueError: if there is not one whole batch.
    """
    _check("batch_size", batch_size, 1)
    if batch_size > num_examples:
        raise ValueError(
            f"batch_size is {batch_size}; it may be at most the {num_examples} examples"
            " of the dataset."
        )
    return num_examples // batch_size


def _check(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} is {value}; it must be at least {least}.")
