"""Histograms of a quantity of several networks, on one set of edges."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from opnorm import linalg


class Histograms(NamedTuple):
    """Histograms of M networks with B bins, which all networks share.

    Attributes:
      edges: ``(B + 1,)`` float64, rising, in units of the values. A value on an edge
        counts in the bin above, and one on the last edge in the last bin.
      counts: ``(M, B)`` int, number of values in each bin.
      densities: ``(M, B)`` float64, per unit of the values: the fraction of the values
        that lie in a bin, over the width of the bin. All values but NaN count, those
        outside the edges too, so a row integrates to the fraction that is inside. NaN
        where every value is NaN.
      num_below: ``(M,)`` int, number of values below the first edge.
      num_above: ``(M,)`` int, number of values above the last edge.
      num_nan: ``(M,)`` int, number of values that are NaN.
    """

    edges: np.ndarray
    counts: np.ndarray
    densities: np.ndarray
    num_below: np.ndarray
    num_above: np.ndarray
    num_nan: np.ndarray

    @property
    def centers(self) -> np.ndarray:
        """``(B,)``, the middles of the bins."""
        middles: np.ndarray = (self.edges[1:] + self.edges[:-1]) / 2
        return middles


def histograms(
    values: Sequence[ArrayLike],
    *,
    num_bins: int = 50,
    limits: tuple[float, float] | None = None,
) -> Histograms:
    """Computes histograms of several networks on the same edges.

    The values may be any quantity of examples, such as the ``probability`` (no unit),
    ``loss`` (nats) and ``margin`` (units of the logits) of
    :func:`opnorm.analysis.evaluate_outcomes`. Densities of networks with different
    numbers of examples can be compared. Since values outside the limits count, a
    histogram of a middle range, ``limits=(0.1, 0.9)``, shows a part of the whole one.
    Use :func:`opnorm.analysis.average` of rows of ``densities`` for the mean and
    standard error of networks that differ in their seed.

    Args:
      values: M arrays ``(N_m,)``, one for each network, M and N_m at least 1.
      num_bins: B, at least 1; all bins have the same width.
      limits: the first and the last edge, in units of the values; None for the least
        and the largest finite value of all networks, and for half a unit on either side
        where these two are equal.

    Returns:
      The histograms, one row for each network, in order.

    Raises:
      ValueError: for no network, an array of another shape or without values, limits
        that do not rise or are not finite, or no finite value to take limits from.

    Source: "Towards Understanding the Regularization of Adversarial Robustness on
    Neural Networks", 2020, Figs. 4, 5 and 10.

    Example:
      >>> from opnorm import analysis
      >>> found = analysis.histograms([[0.0, 0.1, 1.0], [0.6, 0.7]], num_bins=2)
      >>> found.edges.tolist(), found.counts.tolist()
      ([0.0, 0.5, 1.0], [[2, 1], [0, 2]])
      >>> found.densities.round(2).tolist()
      [[1.33, 0.67], [0.0, 2.0]]
    """
    num_bins = linalg.check_count("num_bins", num_bins, 1)
    rows = [np.asarray(row, np.float64) for row in values]
    shapes = [row.shape for row in rows]
    if not rows or any(len(shape) != 1 or shape[0] == 0 for shape in shapes):
        raise ValueError(
            f"values has arrays of the shapes {shapes}; each must be (N,), N at least "
            "1, and at least one is needed."
        )
    edges = np.linspace(*_limits(rows, limits), num_bins + 1)
    counts = np.stack([np.histogram(row[np.isfinite(row)], edges)[0] for row in rows])
    num_nan = np.array([np.isnan(row).sum() for row in rows])
    totals = np.array([len(row) for row in rows]) - num_nan
    with np.errstate(invalid="ignore"):
        fractions = counts / totals[:, None]
    return Histograms(
        edges,
        counts,
        fractions / np.diff(edges),
        np.array([np.sum(row < edges[0]) for row in rows]),
        np.array([np.sum(row > edges[-1]) for row in rows]),
        num_nan,
    )


def _limits(
    rows: Sequence[np.ndarray], limits: tuple[float, float] | None
) -> tuple[float, float]:
    if limits is not None:
        low, high = map(float, limits)
        if not -math.inf < low < high < math.inf:
            raise ValueError(f"limits is {limits}; it must be two numbers that rise.")
        return low, high
    pool = np.concatenate(rows)
    pool = pool[np.isfinite(pool)]
    if not len(pool):
        raise ValueError("values has no finite number; limits must be given.")
    low, high = float(pool.min()), float(pool.max())
    return (low, high) if low < high else (low - 0.5, high + 0.5)
