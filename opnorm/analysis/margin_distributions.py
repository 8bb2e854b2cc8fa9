"""The distribution of the margins of a data set, and its ramp risk."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from opnorm.analysis.averages import Average, average
from opnorm.analysis.margins import ramp_loss


class MarginDistribution(NamedTuple):
    """How margins are distributed; all in units of the logits, except ``error``.

    Margins that are NaN count in ``error`` and ``num_nan`` only.

    Attributes:
      mean: mean of the margins.
      standard_deviation: of the population. It falls where margins concentrate.
      mean_modulus: mean distance of the margins from 0. It falls where margins
        concentrate around the decision boundary.
      quantiles: ``(Q,)`` float64, the quantiles that were asked for.
      error: fraction of examples whose margin is 0, negative or NaN.
      num_nan: number of margins that are NaN.
    """

    mean: float
    standard_deviation: float
    mean_modulus: float
    quantiles: np.ndarray
    error: float
    num_nan: int


def margin_distribution(
    margins: ArrayLike, *, quantiles: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95)
) -> MarginDistribution:
    """Computes mean, spread and quantiles of the margins of one network, in float64.

    :func:`opnorm.analysis.histograms` gives the densities of several networks.

    Args:
      margins: ``(N,)`` float, as ``margin`` of
        :func:`opnorm.analysis.evaluate_outcomes`, N at least 1.
      quantiles: Q levels in [0, 1].

    Raises:
      ValueError: for another shape, infinite margins, no margin that is a number, or
        levels out of range.

    Source: "Towards Understanding the Regularization of Adversarial Robustness on
    Neural Networks", 2020, Figs. 1b, 4 and 9.

    Example:
      >>> from opnorm import analysis
      >>> found = analysis.margin_distribution([-1.0, 1.0, 3.0], quantiles=[0.5])
      >>> round(found.standard_deviation, 2), round(found.mean_modulus, 2)
      (1.63, 1.67)
      >>> found.quantiles.tolist(), round(found.error, 2)
      ([1.0], 0.33)
    """
    margins = _check_margins(margins)
    levels = np.asarray(quantiles, np.float64)
    if levels.ndim != 1 or not np.all((levels >= 0) & (levels <= 1)):
        raise ValueError(
            f"quantiles is {quantiles}; it must be a list of numbers in [0, 1]."
        )
    known = margins[~np.isnan(margins)]
    if not len(known) or np.isinf(known).any():
        raise ValueError(
            "margins has infinite values or only NaN; it must have numbers, which "
            "logits without masked classes give."
        )
    return MarginDistribution(
        float(np.mean(known)),
        float(np.std(known)),
        float(np.mean(np.abs(known))),
        np.quantile(known, levels),
        float(np.mean(~(margins > 0))),
        len(margins) - len(known),
    )


def ramp_risk(margins: ArrayLike, gammas: ArrayLike) -> Average:
    """Computes the mean of the ramp loss over examples, with its standard error.

    The risk at gamma lies between the error and
    :func:`opnorm.analysis.margin_loss` at gamma.

    Args:
      margins: ``(N,)`` float, as ``margin`` of
        :func:`opnorm.analysis.evaluate_outcomes`, N at least 1. NaN counts as an error,
        whose loss is 1.
      gammas: positive, in units of the logits; a scalar, or ``(G,)``.

    Returns:
      The mean in [0, 1] and its standard error over examples, in the shape of
      ``gammas``. The gap of the paper is the mean on the test set minus that on the
      training set.

    Raises:
      ValueError: for another shape, or a gamma that is not positive.

    Source: see :func:`opnorm.analysis.ramp_loss`; Definition 5.

    Example:
      >>> from opnorm import analysis
      >>> analysis.ramp_risk([3.0, 1.0, -1.0, 0.5], [2.0, 1.0]).mean.tolist()
      [0.5625, 0.375]
    """
    margins, scales = _check_margins(margins), np.asarray(gammas)
    if scales.ndim > 1:
        raise ValueError(f"gammas has shape {scales.shape}; it must be () or (G,).")
    each = margins.reshape(-1, *(1,) * scales.ndim)
    losses = np.asarray(ramp_loss(jnp.asarray(each), jnp.asarray(scales)))
    return average(np.where(np.isnan(each), 1.0, losses))


def _check_margins(margins: ArrayLike) -> np.ndarray:
    margins = np.asarray(margins, np.float64)
    if margins.ndim != 1 or not len(margins):
        raise ValueError(
            f"margins has shape {margins.shape}; it must be (N,), N at least 1."
        )
    return margins
