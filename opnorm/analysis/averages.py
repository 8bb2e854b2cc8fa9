"""Means over examples, with their standard errors."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Average(NamedTuple):
    """A mean over examples.

    Attributes:
      mean: float64; NaN where nothing counted.
      standard_error: sample standard deviation over sqrt(counted), shape of ``mean``;
        NaN where fewer than two examples counted.
      counted: int, shape of ``mean``: number of examples that counted.
    """

    mean: np.ndarray
    standard_error: np.ndarray
    counted: np.ndarray


def average(values: ArrayLike, where: ArrayLike = True) -> Average:
    """Averages over the first axis, in float64.

    Args:
      values: ``(N, ...)``, one row per example.
      where: bool that broadcasts to ``values``; true for the values that count.

    Raises:
      ValueError: for no example.

    Example:
      >>> from opnorm import analysis
      >>> found = analysis.average([1.0, 2.0, 6.0])
      >>> float(found.mean), round(float(found.standard_error), 3)
      (3.0, 1.528)

    Source: Roth et al. 2020, whose figures shade the standard error over examples.
    """
    values = np.asarray(values, np.float64)
    if values.ndim < 1 or not len(values):
        raise ValueError(
            f"values has shape {values.shape}; it must be (N, ...), N at least 1."
        )
    chosen = np.broadcast_to(where, values.shape)
    counted = chosen.sum(axis=0)
    # Zero divided by zero gives the NaN of the docstring.
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.sum(values, axis=0, where=chosen) / counted
        squares = np.sum((values - mean) ** 2, axis=0, where=chosen)
        variance = squares / np.where(counted > 1, counted - 1, np.nan)
        return Average(mean, np.sqrt(variance / counted), counted)
