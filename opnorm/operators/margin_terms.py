"""Terms of a generalisation bound from the smallest singular values of layers."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from opnorm import linalg
from opnorm.operators.layers import (
    Layer,
    check_counted,
    layer_singular_values,
    stack,
)


class MarginTerms(NamedTuple):
    """Logarithms of ``u_min`` and of its three factors; -inf where a factor is 0.

    Attributes:
      log_u_min: log of ``min ||w_i - w_j||_2 prod_l sigma_min(W_l) v_min``.
      log_separation: log of the least distance ``||w_i - w_j||_2`` of two classes'
        weights in the last layer.
      log_sigma_min: ``(L - 1,)``, the least singular values of the other layers.
      log_v_min: log of the distance to the boundary that was given, in units of the
        input of the first layer.
      log_sigma_product: log of the product of the least singular values, the sum of
        ``log_sigma_min``.
    """

    log_u_min: jax.Array
    log_separation: jax.Array
    log_sigma_min: jax.Array
    log_v_min: jax.Array
    log_sigma_product: jax.Array


def log_margin_terms(
    layers: Sequence[Layer],
    *,
    v_min: float | jax.Array,
    form: str = "operator",
    input_scale: float | Sequence[float] = 1.0,
) -> MarginTerms:
    """Computes log u_min, the paper's estimate of the smallest margin in the logits.

    **It is a diagnostic and bounds nothing.** The step of the proof that multiplies the
    smallest singular values (Eq. 14) is false in general: the image of a vector under
    one layer need not be orthogonal to the null space of the next. The chain of
    ``(1, 0)^T`` and ``(cos 1.5, sin 1.5)`` has two singular values 1 and the gain 0.07.
    ReLU makes the gain of random chains smaller than the product, too. It holds for
    tall layers where every unit is active. Residual networks are no chains of their
    layers. For trained networks u_min is 0, or the product of fifty small numbers, so
    networks are compared by its logarithm.

    Args:
      layers: all L layers of the chain, at least 2, from :func:`layers`; with
        ``batch_norm="ignore"`` for the weights alone. The last one is dense.
      v_min: the least L2 distance of a point to the decision boundary, at least 0, in
        [0, 1] pixel units if ``input_scale`` is that of the network. The paper takes it
        over the balls of radius epsilon about the examples
        (:func:`opnorm.analysis.boundary_distance` with ``radius``). Distances that
        attacks find are at least the true ones.
      form: as in :func:`layer_singular_values`. The least one of a layer is the last
        of its ``min(rows, columns)`` singular values, so wide layers count by their
        row space; it is 0, and so is u_min, where a layer lacks full rank.
      input_scale: the factor ``1 / std`` of the pixels at the input of the network, one
        number or one per channel, as in :func:`log_capacity`. v_min is multiplied by
        the smallest one, by which lengths grow at least.

    Returns:
      The logarithms.

    Raises:
      ValueError: for fewer than two layers, a last layer that is not dense or has one
        output, a negative v_min, an unknown form, or a network that multiplies by
        parameters that are in no kernel.

    Source: "Towards Understanding the Regularization of Adversarial Robustness on
    Neural Networks", 2020, Theorem 4.1, Eq. 4.

    Example:
      >>> import jax.numpy as jnp
      >>> from opnorm import operators
      >>> first = operators.Layer(jnp.diag(jnp.array([4.0, 2.0])), "a", "dense", (2,))
      >>> last = operators.Layer(jnp.diag(jnp.array([3.0, 4.0])), "b", "dense", (2,))
      >>> terms = operators.log_margin_terms([first, last], v_min=0.1)
      >>> print(f"{jnp.exp(terms.log_u_min):.2f}")
      1.00
    """
    linalg.check_length("v_min", v_min)
    check_counted(layers)
    if len(layers) < 2 or layers[-1].kind != "dense" or layers[-1].kernel.shape[1] < 2:
        kinds = ", ".join(layer.kind for layer in layers)
        raise ValueError(
            f"layers is [{kinds}]; it must have at least two layers, the last of them "
            "dense with two outputs or more."
        )
    least = [layer_singular_values(layer, form=form)[-1] for layer in layers[:-1]]
    log_sigma_min = jnp.log(stack(least))
    weight = layers[-1].kernel.T
    first, second = np.triu_indices(len(weight), 1)
    separation = jnp.min(linalg.norm(weight[first] - weight[second], 2.0))
    log_separation = jnp.log(separation.astype(log_sigma_min.dtype))
    dtype = log_sigma_min.dtype
    smallest = jnp.min(jnp.abs(jnp.asarray(input_scale, dtype)))
    log_v_min = jnp.log(jnp.asarray(v_min, dtype)) + jnp.log(smallest)
    product = jnp.sum(log_sigma_min)
    total = log_separation + product + log_v_min
    return MarginTerms(total, log_separation, log_sigma_min, log_v_min, product)
