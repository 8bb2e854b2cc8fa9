"""Spreads of the singular values of layers, and their changes between networks."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from opnorm.operators.layers import Layer, singular_value_std


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


class LayerSpreads(NamedTuple):
    """Standard deviations of the singular values of the L layers of one network.

    Attributes:
      names: names of the layers, in order.
      kinds: kinds of the layers, see :class:`Layer`.
      operator: ``(L,)`` float64, of the layers as periodic maps of a whole image, by
        Fourier transforms.
      kernel: ``(L,)`` float64, of the kernel matrices ``C_out x (taps C_in)``.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    operator: np.ndarray
    kernel: np.ndarray

    @property
    def operator_sum(self) -> float:
        """The sum of ``operator`` over the layers."""
        return float(np.sum(self.operator))

    @property
    def kernel_sum(self) -> float:
        """The sum of ``kernel`` over the layers."""
        return float(np.sum(self.kernel))


class SpreadChanges(NamedTuple):
    """Changes of the spreads between two networks, in both forms.

    Attributes:
      operator: falls and rises of :attr:`LayerSpreads.operator`.
      kernel: falls and rises of :attr:`LayerSpreads.kernel`.
    """

    operator: LayerChange
    kernel: LayerChange


def layer_spreads(layers: Sequence[Layer]) -> LayerSpreads:
    """Measures the spread of each layer's singular values in both forms.

    The paper does not state which matrix of a convolution it decomposes; its context
    suggests the operator. The sums over the layers belong to the sums of
    :func:`spread_changes`: the fall minus the rise between two networks is the
    difference of their sums.

    Args:
      layers: L layers from :func:`layers`, L at least 1; with ``batch_norm="ignore"``
        for the quantity of the paper, whose 55 layers are the convolutions (``kind``
        "convolution") of its ResNet-56.

    Returns:
      The standard deviations (of the population), in units of the outputs of a layer
      per unit of its inputs. The layers are computed one after another on the default
      device, and layers of one shape share a program.

    Raises:
      ValueError: for no layer.

    Source: "Towards Understanding the Regularization of Adversarial Robustness on
    Neural Networks", 2020, Figs. 1a, 5 and 10, and Appendix B.2; Sedghi et al. 2019
    for the operator form.

    Example:
      >>> import jax.numpy as jnp
      >>> from opnorm import operators
      >>> layer = operators.Layer(jnp.diag(jnp.array([4.0, 2.0])), "a", "dense", (2,))
      >>> found = operators.layer_spreads([layer, layer])
      >>> found.names, found.kernel.round(3).tolist(), round(found.kernel_sum, 3)
      (('a', 'a'), [1.0, 1.0], 2.0)
    """
    operator, kernel = (
        np.asarray(singular_value_std(layers, form=form), np.float64)
        for form in ("operator", "kernel")
    )
    names = tuple(layer.name for layer in layers)
    return LayerSpreads(names, tuple(layer.kind for layer in layers), operator, kernel)


def spread_changes(first: LayerSpreads, second: LayerSpreads) -> SpreadChanges:
    """Sums falls and rises of the spreads from one network to another.

    Args:
      first: spreads of the first network, such as one trained with a weak attack.
      second: spreads of the second network, with the same layers.

    Returns:
      The sums in both forms, see :func:`layer_change`.

    Raises:
      ValueError: for networks whose layers have different names, or spreads that are
        not finite.

    Source: see :func:`layer_change`.

    Example:
      >>> import numpy as np
      >>> from opnorm import operators
      >>> def spreads(*values):
      ...     each = np.array(values)
      ...     return operators.LayerSpreads(("a", "b"), ("dense",) * 2, each, each)
      >>> operators.spread_changes(spreads(1.0, 0.5), spreads(0.25, 1.0)).kernel
      LayerChange(fall=0.75, rise=0.5, num_fallen=1, num_risen=1)
    """
    if first.names != second.names:
        raise ValueError(
            f"first and second have the layers {first.names} and {second.names}; they "
            "must have the same."
        )
    return SpreadChanges(
        layer_change(first.operator, second.operator),
        layer_change(first.kernel, second.kernel),
    )


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
