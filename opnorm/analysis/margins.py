"""analysis: margins of classification, and slopes and gains that they are set against.

Plain functions of a batch: what is measured over a data set applies them to its batches
(:func:`opnorm.analysis.loss_regularity` does so for gradients).
"""

import jax
import jax.numpy as jnp

from opnorm import linalg
from opnorm.attacks import checks, losses
from opnorm.linalg import BatchFunction


def margin(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Computes ``z_y - max_{i != y} z_i``: positive where y alone is the largest.

    This is minus :func:`opnorm.attacks.margin`, which attacks maximise.

    Args:
      logits: ``(B, K)`` float, K at least 2.
      labels: ``(B,)`` int.

    Returns:
      ``(B,)``, at least float32.

    Raises:
      ValueError: for shapes or labels that do not fit.

    Source: "Towards Understanding the Regularization of Adversarial Robustness on
    Neural Networks", 2020, Definition 3.
    """
    checks.check_labels(labels, len(logits), logits)
    return -losses.margin(logits, labels)


def ramp_loss(margins: jax.Array, gamma: float | jax.Array) -> jax.Array:
    """Computes ``clip(1 - margin / gamma, 0, 1)`` of each example.

    It lies between the error (1 where the margin is negative, and at a tie) and
    :func:`margin_loss` of the same gamma.

    Args:
      margins: any shape, float, of :func:`margin`.
      gamma: the margin that costs nothing, positive, in units of the logits.

    Returns:
      Shape and dtype of ``margins``, in [0, 1]. Its mean is the ramp risk.

    Raises:
      ValueError: for a gamma that is not positive.

    Source: as :func:`margin`, Definitions 4 and 5.
    """
    linalg.check_length("gamma", gamma, positive=True)
    margins = jnp.asarray(margins)
    return jnp.clip(1 - margins / jnp.asarray(gamma, margins.dtype), 0.0, 1.0)


def margin_loss(margins: jax.Array, gamma: float | jax.Array = 0.0) -> jax.Array:
    """Computes the part of the examples whose margin is at most gamma.

    At gamma = 0 it is the error, in which a tie counts as one. With the margins of
    attacked examples it is the adversarial margin loss.

    Args:
      margins: ``(N,)`` float, of :func:`margin`. NaN counts as an error.
      gamma: at least 0, in units of the logits; scalar, or ``(G, 1)`` for several.

    Returns:
      In [0, 1], a scalar, or ``(G,)``.

    Raises:
      ValueError: for a negative gamma.

    Source: Farnia et al. 2019, Eqs. 1 and 8.
    """
    linalg.check_length("gamma", gamma)
    margins = jnp.asarray(margins)
    passed = margins > jnp.asarray(gamma, margins.dtype)
    return jnp.mean(~passed, axis=-1, dtype=margins.dtype)


def output_gain(
    f: BatchFunction, x: jax.Array, *, normalize: BatchFunction | None = None
) -> jax.Array:
    """Computes ``||f(x)||_2 / ||normalize(x)||_2`` of each example.

    For a chain of layers without biases, with 1-Lipschitz functions that are zero at
    zero between them, it is at most the product of the layers' norms. Biases and
    overlapping max-pooling may exceed that.

    Args:
      f: batch function ``(B, ...) -> (B, d)``, such as the logits.
      x: ``(B, ...)`` float, what f takes: in [0, 1] pixel units for networks that
        normalise inside.
      normalize: batch function; what f does to x first. With it the ratio is that of
        the layers behind, as in the paper's figure. None where nothing is done.

    Returns:
      ``(B,)``, at least float32; not finite where the divisor is zero.

    Source: Farnia et al. 2019, Fig. 2a.
    """
    inputs = x if normalize is None else normalize(x)
    return linalg.norm(f(x), 2.0) / linalg.norm(inputs, 2.0)


def gradient_norms(
    f: BatchFunction,
    x: jax.Array,
    labels: jax.Array,
    *,
    loss: losses.Loss = losses.cross_entropy,
    p: float = 2.0,
) -> jax.Array:
    """Computes the dual norm of the loss's gradient in the input, per example.

    ``||grad_x loss(f(x), y)||_{p*}``. For p = 2 and the cross-entropy this is the
    quantity whose smallest value is the kappa of
    :func:`opnorm.operators.log_capacity`.

    Args:
      f: batch function ``(B, ...) -> (B, K)`` of logits, with independent rows.
      x: ``(B, ...)`` float, what f takes: for networks that normalise inside in [0, 1]
        pixel units, in which the gradient is ``1 / std`` times that in normalised ones.
      labels: ``(B,)`` int.
      loss: ``(logits, labels) -> (B,)``.
      p: exponent of the norm of perturbations, in [1, inf].

    Returns:
      ``(B,)``, at least float32, in loss per unit of x.

    Raises:
      ValueError: for p outside [1, inf], labels that do not fit one of
        :mod:`opnorm.attacks.losses`, and as the loss.

    Source: Farnia et al. 2019, Fig. 2b.
    """
    named = loss in losses.NAMED.values()

    def total(z: jax.Array) -> jax.Array:
        logits = f(z)
        if named:
            checks.check_labels(labels, len(x), logits)
        return jnp.sum(loss(logits, labels))

    gradient = jax.grad(total)(x)
    return linalg.norm(gradient, linalg.conjugate_exponent(p))
