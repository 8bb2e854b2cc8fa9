"""The improvement ratio, the gain of a defence in distance over its cost in error."""

import math
from typing import NamedTuple

import numpy as np


class Improvement(NamedTuple):
    """A network compared with the same network before it was defended.

    Attributes:
      distance_gain: relative gain in the mean distance of the nearest adversarial
        point, ``R_mu = distance / distance_before - 1``; NaN where the network before
        has no distance.
      error_rise: relative rise of the clean error, ``R_e = error / error_before - 1``;
        NaN where the network before makes no error.
      ratio: ``R_mu / R_e``; NaN where one of the two is NaN, or the errors are equal.
    """

    distance_gain: float
    error_rise: float
    ratio: float


def improvement(
    distance: float, error: float, distance_before: float, error_before: float
) -> Improvement:
    """Computes the gain in distance over the rise of the clean error.

    All four numbers must be means over the same examples.

    Args:
      distance: mean distance of the nearest adversarial points.
      error: clean error, in [0, 1].
      distance_before: mean distance of the network that is compared with.
      error_before: clean error of that network.

    Example:
      >>> from opnorm import analysis
      >>> round(analysis.improvement(0.6, 0.06, 0.2, 0.05).ratio, 6)
      10.0

    Source: Finlay & Oberman, section 4.
    """
    gain = distance / distance_before - 1 if distance_before else math.nan
    rise = error / error_before - 1 if error_before else math.nan
    return Improvement(gain, rise, gain / rise if rise else math.nan)


def improvement_error(
    distances: np.ndarray, before: np.ndarray, *, largest: float = math.inf
) -> float:
    """Computes the standard error over examples of the improvement ratio.

    The distances and errors of both networks are means over the same examples, so they
    rise and fall together. The jackknife takes this into account: it leaves out one
    example after another, of all networks at once.

    Args:
      distances: ``(S, N)``, the distances of S networks that differ in their seed; 0
        where a network is wrong, inf where no attack succeeded.
      before: ``(S', N)``, the distances of the networks that are compared with.
      largest: distance that an example counts with if no attack succeeded.

    Returns:
      The standard error; inf where the ratio does not exist without some example,
      because the two clean errors are equal then, or those before are zero.

    Raises:
      ValueError: for arrays of other shapes, or fewer than two examples.

    Source: Efron & Stein 1981 for the jackknife.
    """
    if distances.ndim != 2 or before.ndim != 2 or distances.shape[1] < 2:
        raise ValueError(
            f"distances and before have shapes {distances.shape} and {before.shape}; "
            "they must be (S, N) and (S', N), with N at least 2."
        )
    if distances.shape[1] != before.shape[1]:
        raise ValueError(
            f"distances has {distances.shape[1]} examples and before "
            f"{before.shape[1]}; they must be the same."
        )
    left_out = []
    for example in range(distances.shape[1]):
        means = []
        for each in (distances, before):
            kept = np.delete(each, example, axis=1)
            means += [np.minimum(kept, largest).mean(), np.mean(kept == 0)]
        left_out.append(improvement(*map(float, means)).ratio)
    ratios = np.array(left_out)
    if np.isnan(ratios).any():
        return math.inf
    spread = np.sum((ratios - np.mean(ratios)) ** 2)
    return float(np.sqrt(spread * (len(ratios) - 1) / len(ratios)))
