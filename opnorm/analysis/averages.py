"""Means over examples, with their standard errors."""

from typing import Any, NamedTuple

import numpy as np


class Average(NamedTuple):
    """A mean over examples.

    Attributes:
      mean: float64; NaN where nothing counted.
      standard_error: sample standard deviation over sqrt(counted), shape of ``mean``;
        NaN where fewer than two examples counted.
      counted: int, shape of ``mean``: the examples that counted.
    """

    mean: np.ndarray
    standard_error: np.ndarray
    counted: np.ndarray


def average(values: Any, where: Any = True) -> Average:
    """Averages over the first axis, in float64.

    Args:
      values: ``(N, ...)``, one row per example.
      where: bool that broadcasts to ``values``: which of them count.

    Raises:
      ValueError: for no example.

    Source: Roth et al. 2020, whose figures shade the standard error over examples.
    """
    values = np.asarray(values, np.float64)
    if values.ndim < 1 or not len(values):
        raise ValueError(
            f"values has shape {values.shape}; it must be (N, ...), N at least 1."
        )
    chosen = np.broadcast_to(where, values.shape)
    counted = chosen.sum(axis=0)
    # Zero divided by zero is the NaN that is promised.
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.sum(values, axis=0, where=chosen) / counted
        squares = np.sum((values - mean) ** 2, axis=0, where=chosen)
        variance = squares / np.where(counted > 1, counted - 1, np.nan)
        return Average(mean, np.sqrt(variance / counted), counted)
