"""Margins of classification, and the slopes and gains that they are compared with.

These are plain functions of a batch. :func:`opnorm.analysis.loss_regularity` applies
some of them to a whole data set.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from opnorm import linalg, operators
from opnorm.attacks import checks, losses
from opnorm.linalg import BatchFunction
from opnorm.linalg.dtypes import at_least_single


def margin(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Computes ``z_y - max_{i != y} z_i``, positive where logit y alone is the largest.

    Attacks maximise :func:`opnorm.attacks.margin`, which has the opposite sign.

    Args:
      logits: ``(B, K)`` float, K at least 2.
      labels: ``(B,)`` int.

    Returns:
      ``(B,)``, at least float32.

    Raises:
      ValueError: for shapes or labels that do not fit.

    Source: "Towards Understanding the Regularization of Adversarial Robustness on
    Neural Networks", 2020, Definition 3.

    Example:
      >>> import jax.numpy as jnp
      >>> from opnorm import analysis
      >>> logits = jnp.array([[3.0, 1.0, 0.0], [3.0, 1.0, 0.0]])
      >>> print(analysis.margin(logits, jnp.array([0, 1])))
      [ 2. -2.]
    """
    checks.check_labels(labels, len(logits), logits)
    return -losses.margin(logits, labels)


def probability_margin(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Computes ``max_{i != y} p_i - p_y`` with softmax probabilities p.

    The margin is negative if and only if the example is classified correctly (ties
    apart).

    Args:
      logits: ``(B, K)`` float, K at least 2.
      labels: ``(B,)`` int.

    Returns:
      ``(B,)``, in [-1, 1].

    Raises:
      ValueError: for shapes or labels that do not fit.

    Source: Finlay & Oberman, the modified Carlini-Wagner loss.
    """
    p, own = _probabilities(logits, labels)
    return jnp.max(_others(p, labels, -jnp.inf), axis=1) - own


def log_sum_exp_margin(
    logits: jax.Array, labels: jax.Array, *, temperature: float = 10.0
) -> jax.Array:
    """Computes a smooth upper bound of :func:`probability_margin`.

    The bound is::

        log(sum_{i != y} exp(t p_i)) / t - p_y

    and exceeds the margin by at most ``log(K - 1) / t``. Where it is negative, the
    example is classified correctly, so bounds from its curvature are valid for the
    margin.

    Args:
      logits: ``(B, K)`` float.
      labels: ``(B,)`` int.
      temperature: t, above 0; a larger one is nearer to the margin and more curved.

    Returns:
      ``(B,)``.

    Raises:
      ValueError: for a temperature that is not positive, or shapes or labels that do
        not fit.
    """
    linalg.check_length("temperature", temperature, positive=True)
    p, own = _probabilities(logits, labels)
    rest = _others(temperature * p, labels, -jnp.inf)
    return jax.nn.logsumexp(rest, axis=1) / temperature - own


def soft_margin(
    logits: jax.Array, labels: jax.Array, *, temperature: float = 10.0
) -> jax.Array:
    """Computes the smoothed margin of Finlay & Oberman, which is **no valid bound**.

    It is ``sum_i s_i q_i - p_y``, where q are the probabilities of the other classes,
    with 0 for y, and s is their softmax at the temperature. It lies below
    :func:`probability_margin`, by up to 0.11 for ten classes, so it can be negative
    where the example is misclassified, and distances computed from it may be too large.
    It serves for comparisons with the tables of the paper; use
    :func:`log_sum_exp_margin` otherwise.

    Args:
      logits: ``(B, K)`` float.
      labels: ``(B,)`` int.
      temperature: above 0.

    Returns:
      ``(B,)``.

    Raises:
      ValueError: for a temperature that is not positive, or shapes or labels that do
        not fit.
    """
    linalg.check_length("temperature", temperature, positive=True)
    p, own = _probabilities(logits, labels)
    rest = _others(p, labels, 0.0)
    return jnp.sum(jax.nn.softmax(temperature * rest, axis=1) * rest, axis=1) - own


def top_k_margin(logits: jax.Array, labels: jax.Array, *, k: int = 5) -> jax.Array:
    """Computes ``p_(k+1) - p_y`` with the (k+1)-th largest probability.

    It is negative if and only if the label is among the k most probable classes (ties
    apart).

    Args:
      logits: ``(B, K)`` float, K above k.
      labels: ``(B,)`` int.
      k: at least 1.

    Returns:
      ``(B,)``.

    Raises:
      ValueError: for a k that is not between 1 and K - 1, or shapes or labels that do
        not fit.

    Source: Finlay & Oberman, for ImageNet.
    """
    checks.check_labels(labels, len(logits), logits)
    _check_rank(k, logits.shape[1])
    p, own = _probabilities(logits, labels)
    return jax.lax.top_k(p, k + 1)[0][:, -1] - own


def label_and_rival(logits: jax.Array, labels: jax.Array, *, k: int = 1) -> jax.Array:
    """Computes the logit of the label, and the k-th largest of the others.

    They are logits of two classes. The decision is for class 0 if and only if the label
    is among the k largest, so an attack on these logits pushes the label out of the top
    k.

    Args:
      logits: ``(B, K)`` float, K above k.
      labels: ``(B,)`` int.
      k: at least 1.

    Returns:
      ``(B, 2)``.

    Raises:
      ValueError: for a k that is not between 1 and K - 1, or shapes or labels that do
        not fit.
    """
    checks.check_labels(labels, len(logits), logits)
    _check_rank(k, logits.shape[1])
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)
    rest = _others(logits, labels, -jnp.inf)
    return jnp.concatenate([own, jax.lax.top_k(rest, k)[0][:, -1:]], axis=1)


def decide_top_k(
    f: linalg.Network, labels: jax.Array, top_k: int
) -> tuple[linalg.Network, jax.Array]:
    """Returns a network and labels whose decisions are those of the top k.

    Args:
      f: batch function ``(B, ...) -> (B, K)`` of logits.
      labels: ``(B,)`` int, for the examples of one batch.
      top_k: an example is correct where its label is among as many of the largest
        logits.

    Returns:
      A batch function of these examples and labels ``(B,)``: the largest logit is that
      of the label if and only if the example is correct.
    """
    if top_k == 1:
        return f, labels
    return (
        lambda x: label_and_rival(f(x), labels, k=top_k),
        jnp.zeros_like(labels),
    )


def ramp_loss(margins: jax.Array, gamma: float | jax.Array) -> jax.Array:
    """Computes ``clip(1 - margin / gamma, 0, 1)`` of each example.

    It lies between the error, which is 1 where the margin is negative or zero, and
    :func:`margin_loss` of the same gamma.

    Args:
      margins: any shape, float, as :func:`margin` returns them.
      gamma: the smallest margin whose loss is zero, positive, in units of the logits.

    Returns:
      Shape and dtype of ``margins``, in [0, 1]. Its mean is the ramp risk.

    Raises:
      ValueError: for a gamma that is not positive.

    Source: see :func:`margin`; Definitions 4 and 5.

    Example:
      >>> import jax.numpy as jnp
      >>> from opnorm import analysis
      >>> print(analysis.ramp_loss(jnp.array([-1.0, 0.5, 1.5, 3.0]), 2.0))
      [1.   0.75 0.25 0.  ]
    """
    linalg.check_length("gamma", gamma, positive=True)
    margins = jnp.asarray(margins)
    return jnp.clip(1 - margins / jnp.asarray(gamma, margins.dtype), 0.0, 1.0)


def margin_loss(margins: jax.Array, gamma: float | jax.Array = 0.0) -> jax.Array:
    """Computes the fraction of examples whose margin is at most gamma.

    At gamma = 0 it is the error, in which a tie counts as an error. With the margins of
    attacked examples it is the adversarial margin loss.

    Args:
      margins: ``(N,)`` float, as :func:`margin` returns them. NaN counts as an error.
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

    The gain of a chain of layers without biases, with 1-Lipschitz functions that are
    zero at zero between them, is at most the product of the layers' norms. It may be
    larger with biases or overlapping max-pooling.

    Args:
      f: batch function ``(B, ...) -> (B, d)``, such as the logits.
      x: ``(B, ...)`` float, an input of f: in [0, 1] pixel units for networks that
        normalise inside.
      normalize: batch function that f applies to x first. With it the ratio is that of
        the layers behind, as in the paper's figure. None if f has no such function.

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
      x: ``(B, ...)`` float, an input of f. Networks that normalise inside take [0, 1]
        pixel units, in which the gradient is ``1 / std`` times that in normalised ones.
      labels: ``(B,)`` int.
      loss: ``(logits, labels) -> (B,)``.
      p: exponent of the norm of perturbations, in [1, inf].

    Returns:
      ``(B,)``, at least float32, in units of the loss per unit of x.

    Raises:
      ValueError: for p outside [1, inf], labels that do not fit one of
        :mod:`opnorm.attacks.losses`, and for the reasons of the loss.

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


def log_released_unit(
    layers: Sequence[operators.Layer], norms: ArrayLike, *, attacked: bool
) -> float:
    """Computes the log of the unit of margins in the code of Farnia et al. 2019.

    The paper divides margins by the square root of the capacity norm,
    :func:`opnorm.operators.log_capacity`. The released code divides by another number,
    with d layers of spectral norms s_1, ..., s_d::

        Q c sqrt(S'),  Q = s_1 ... s_d,  S' = F_1 / s_1^2 + ... + F_d / s_d^2

    where c is 1 without an attack, and ``2 + s_1 + s_1 s_2 + ... + s_1 ... s_(d-1)``
    with FGM and PGM. It takes no account of the length and the steps of the attack, nor
    of kappa. F is the squared Frobenius norm of a kernel, for a convolution times
    ``H W C_in / 4`` of its input; the square of the Frobenius norm of the map counts
    each tap once for every window on the image instead.

    Args:
      layers: all layers of the chain, from :func:`opnorm.operators.layers`.
      norms: ``(L,)``, their spectral norms as maps, such as ``value`` of
        :func:`opnorm.operators.layer_norms`.
      attacked: whether the margins are those of attacked examples.

    Returns:
      The natural logarithm; -inf if a layer is zero. Lengths at the input are those
      that enter the first layer, after any normalisation of the pixels.

    Raises:
      ValueError: for no layer, or norms of another shape.

    Source: Farnia et al. 2019, Fig. 3, as drawn by the released code.

    Example:
      Two layers with norms 2 and 3: the unit is 6 (2 + 2) sqrt(8/4 + 9/9).

      >>> import math
      >>> import jax.numpy as jnp
      >>> from opnorm import analysis, operators
      >>> first = operators.Layer(2.0 * jnp.eye(2), "a", "dense", (2,))
      >>> last = operators.Layer(jnp.diag(jnp.array([3.0, 0.0])), "b", "dense", (2,))
      >>> unit = analysis.log_released_unit([first, last], [2.0, 3.0], attacked=True)
      >>> round(math.exp(unit) / math.sqrt(3), 3)
      24.0
    """
    norms = np.asarray(norms, np.float64)
    if not layers or norms.shape != (len(layers),):
        raise ValueError(
            f"norms has shape {norms.shape}; it must be ({len(layers)},), one norm for "
            "each layer, of which there is at least one."
        )
    if not norms.all():
        return -np.inf
    squares = []
    for layer in layers:
        square = np.sum(np.square(np.asarray(layer.kernel, np.float64)))
        if layer.kind == "convolution":
            square = square * np.prod(layer.input_shape) / 4
        squares.append(square)
    logs = np.log(norms)
    log_ratio = np.log(np.sum(np.asarray(squares) / norms**2))
    log_sum = 0.0
    if attacked:
        # Empty products are 1; the code counts the first of them twice.
        log_sum = np.logaddexp.reduce([0.0, 0.0, *np.cumsum(logs)[:-1]])
    return float(np.sum(logs) + log_sum + log_ratio / 2)


def _probabilities(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    checks.check_labels(labels, len(logits), logits)
    p = jax.nn.softmax(logits.astype(at_least_single(logits.dtype)))
    return p, jnp.take_along_axis(p, labels[:, None], axis=1)[:, 0]


def _others(values: jax.Array, labels: jax.Array, filler: float) -> jax.Array:
    own = jnp.arange(values.shape[1])[None] == labels[:, None]
    return jnp.where(own, filler, values)


def _check_rank(k: int, num_classes: int) -> None:
    linalg.check_count("k", k, 1, num_classes - 1)
