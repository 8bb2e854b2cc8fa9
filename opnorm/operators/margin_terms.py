"""Terms of a generalisation bound from the smallest singular values of layers."""

import math
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
      log_v_min: log of the distance to the boundary that was given.
    """

    log_u_min: jax.Array
    log_separation: jax.Array
    log_sigma_min: jax.Array
    log_v_min: jax.Array


def log_margin_terms(
    layers: Sequence[Layer], *, v_min: float | jax.Array, form: str = "operator"
) -> MarginTerms:
    """Computes log u_min, the paper's estimate of the smallest margin in the logits.

    **It is a diagnostic and bounds nothing.** The step of the proof that multiplies the
    smallest singular values (Eq. 14) is false in general: the image of a vector under
    one layer need not be orthogonal to the null space of the next. The chain of
    ``(1, 0)^T`` and ``(cos 1.5, sin 1.5)`` has two singular values 1 and the gain 0.07.
    ReLU makes the gain of random chains smaller than the product, too.

    Args:
      layers: all L layers of the chain, at least 2, from :func:`layers`; with
        ``batch_norm="ignore"`` for the weights alone. The last one is dense.
      v_min: the least distance of a point to the decision boundary, in units of the
        input of the first layer, at least 0. Distances that
        :func:`opnorm.analysis.nearest_points` finds, with the predicted classes as
        labels, are at least the true ones. In balls of radius epsilon about the
        examples, in the same norm, the least distance is that at the examples minus
        epsilon, at least 0.
      form: as in :func:`layer_singular_values`. The least one of a layer is the last
        of its ``min(rows, columns)`` singular values, so wide layers count by their
        row space; it is 0, and so is u_min, where a layer lacks full rank.

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
    log_v_min = jnp.log(jnp.asarray(v_min, log_sigma_min.dtype))
    total = log_separation + jnp.sum(log_sigma_min) + log_v_min
    return MarginTerms(total, log_separation, log_sigma_min, log_v_min)


def log_covering_term(
    log_covering_number: float, *, num_examples: int, eta: float
) -> float:
    """Computes the log of ``sqrt((2 log(2) K + 2 log(1 / eta)) / m)``.

    Args:
      log_covering_number: log K of the inputs at the radius epsilon; the paper takes
        ``K = (C / epsilon)^k`` for a manifold of dimension k, which exceeds every
        number of examples, so the term is far above 1 for images.
      num_examples: m, at least 1.
      eta: probability in (0, 1) with which the bound may fail.

    Returns:
      The log of the term.

    Raises:
      ValueError: for an option out of range.

    Source: see :func:`log_margin_terms`; Eqs. 3 and 5.

    Example:
      >>> from opnorm import operators
      >>> round(operators.log_covering_term(1000.0, num_examples=50_000, eta=0.01), 2)
      494.75
    """
    num_examples = linalg.check_count("num_examples", num_examples, 1)
    if not math.isfinite(log_covering_number) or log_covering_number < 0:
        raise ValueError(
            f"log_covering_number is {log_covering_number}; it must be finite and at "
            "least 0."
        )
    if not 0 < eta < 1:
        raise ValueError(f"eta is {eta}; it must be above 0 and below 1.")
    covering = math.log(2 * math.log(2)) + log_covering_number
    failing = math.log(-2 * math.log(eta))
    total = float(np.logaddexp(covering, failing))
    return (total - math.log(num_examples)) / 2
