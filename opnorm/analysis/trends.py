"""Whether a quantity rises or falls from one group of networks to the next."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from opnorm import linalg
from opnorm.analysis.averages import average


class Trend(NamedTuple):
    """The course of a quantity over G groups in their order.

    Attributes:
      mean: ``(G,)``, mean of each group.
      standard_error: ``(G,)``, of each mean; NaN for a group of one value.
      change: mean of the last group minus that of the first.
      change_error: standard error of the change, for independent groups; NaN where one
        of both has one value.
      direction: 1 for a rise, -1 for a fall, 0 for neither.
    """

    mean: np.ndarray
    standard_error: np.ndarray
    change: float
    change_error: float
    direction: int


def trend(groups: Sequence[ArrayLike], *, num_errors: float = 2.0) -> Trend:
    """Computes whether the means of groups rise or fall throughout.

    A rise is a larger mean in each group than in the group before, and a change from
    the first to the last that exceeds ``num_errors`` standard errors. A fall is the
    same with the other sign. Where the standard error is not known, since a group has
    one value, the order of the means alone decides.

    Args:
      groups: G arrays ``(n_g,)`` of finite values, such as one value for each seed; G
        at least 2, each n_g at least 1.
      num_errors: standard errors that the change must exceed, at least 0.

    Returns:
      The means, the change and the direction, in float64.

    Raises:
      ValueError: for fewer than two groups, a group without values or of another rank,
        values that are not finite, or a negative ``num_errors``.

    Example:
      >>> from opnorm import analysis
      >>> found = analysis.trend([[0.9, 1.1], [0.7], [0.3, 0.5]])
      >>> found.direction, round(found.change, 2), round(found.change_error, 2)
      (-1, -0.6, 0.14)
    """
    linalg.check_length("num_errors", num_errors)
    values = [np.asarray(group, np.float64) for group in groups]
    shapes = [group.shape for group in values]
    if len(values) < 2 or any(len(s) != 1 or not s[0] for s in shapes):
        raise ValueError(
            f"groups has arrays of the shapes {shapes}; it must have at least two, "
            "each (n,), n at least 1."
        )
    for group in values:
        if not np.isfinite(group).all():
            raise ValueError(f"groups has the values {group}; all must be finite.")
    averages = [average(group) for group in values]
    mean = np.array([float(found.mean) for found in averages])
    error = np.array([float(found.standard_error) for found in averages])
    change = mean[-1] - mean[0]
    change_error = np.hypot(error[0], error[-1])
    sign = int(np.sign(change))
    throughout = bool(np.all(np.sign(np.diff(mean)) == sign))
    # NaN compares as false, so an unknown error does not hide the order of the means.
    hidden = bool(abs(change) <= num_errors * change_error)
    direction = sign if throughout and not hidden else 0
    return Trend(mean, error, float(change), float(change_error), direction)
