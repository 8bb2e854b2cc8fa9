"""Sums of the changes of a quantity of each layer between two networks."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class LayerChange(NamedTuple):
    """How much a quantity of L layers falls and rises.

    Attributes:
      fall: sum of ``max(first - second, 0)`` over the layers.
      rise: sum of ``max(second - first, 0)`` over the layers.
      num_fallen: number of layers where ``second`` is smaller.
      num_risen: number of layers where ``second`` is larger.
    """

    fall: float
    rise: float
    num_fallen: int
    num_risen: int


def layer_change(first: ArrayLike, second: ArrayLike) -> LayerChange:
    """Sums falls and rises from one network to another over their layers, in float64.

    The paper compares the standard deviations of singular values
    (:func:`opnorm.operators.singular_value_std`) of networks that are trained with
    weak and with strong attacks.

    Args:
      first: ``(L,)`` float, a quantity of the layers of the first network, L at least
        1.
      second: ``(L,)`` float, the same of the second network.

    Returns:
      The sums. A layer where the quantity is the same counts nowhere.

    Raises:
      ValueError: for shapes that do not fit, or values that are not finite.

    Source: "Towards Understanding the Regularization of Adversarial Robustness on
    Neural Networks", 2020, Appendix B.2. The sum of the rises that it prints for
    CIFAR-100 equals that for CIFAR-10 and does not agree with the mean beside it.

    Example:
      >>> from opnorm import operators
      >>> operators.layer_change([1.0, 2.0, 0.5], [0.5, 1.75, 1.5])
      LayerChange(fall=0.75, rise=1.0, num_fallen=2, num_risen=1)
    """
    before, after = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if before.ndim != 1 or before.shape != after.shape or not len(before):
        raise ValueError(
            f"first and second have the shapes {before.shape} and {after.shape}; both "
            "must be (L,), L at least 1."
        )
    for name, values in (("first", before), ("second", after)):
        if not np.isfinite(values).all():
            raise ValueError(f"{name} is {values}; all values must be finite.")
    fallen = before - after
    return LayerChange(
        float(np.sum(fallen, where=fallen > 0)),
        float(np.sum(-fallen, where=fallen < 0)),
        int(np.sum(fallen > 0)),
        int(np.sum(fallen < 0)),
    )
