"""Losses that attacks maximise, per example, as functions of the logits.

A logit of -inf masks its class: values and gradients are those of the network without
that class. A logit of +inf has no such meaning: differences of such logits are NaN,
which attacks count as the lowest loss, with gradient zero.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from opnorm import linalg
from opnorm.attacks import checks
from opnorm.linalg.dtypes import at_least_single

Loss = Callable[[jax.Array, jax.Array], jax.Array]


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Computes ``-log softmax(z)_y`` as ``softplus(log sum_{i != y} exp z_i - z_y)``.

    The usual form rounds to exactly 0, with gradient 0, for margins beyond 17 in
    float32, where an attack would stand still; this one holds to margins of 87.

    Args:
      logits: ``(B, K)`` float.
      labels: ``(B,)`` int.

    Returns:
      ``(B,)``, at least float32; 0 where all other classes are masked.

    Raises:
      ValueError: for shapes that do not fit, or one class.

    Source: Roth et al. 2020, Eq. 24.
    """
    chosen, others = _split(logits, labels)
    # The gradient of the logsumexp of nothing is NaN, also where it is not selected.
    alone = jnp.all(jnp.isneginf(others), axis=1)
    others = jnp.where(alone[:, None], 0.0, others)
    value = jax.nn.softplus(jax.nn.logsumexp(others, axis=1) - chosen)
    return jnp.where(alone, 0.0, value)


def margin(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Computes ``max_{i != y} z_i - z_y``: positive where y is not the largest.

    Args:
      logits: ``(B, K)`` float.
      labels: ``(B,)`` int.

    Returns:
      ``(B,)``, at least float32; -inf where all other classes are masked.

    Raises:
      ValueError: for shapes that do not fit, or one class.
    """
    chosen, others = _split(logits, labels)
    return jnp.max(others, axis=1) - chosen


def logit_distance(
    logits: jax.Array, clean_logits: jax.Array, q: float = 2.0
) -> jax.Array:
    """Computes ``||f(x*) - f(x)||_q``, which needs no labels.

    Logits that are the same infinity at both points do not differ. The gradient at the
    clean point is zero: an attack on this loss needs a start elsewhere.

    Args:
      logits: ``(B, K)`` float, f(x*).
      clean_logits: shape of ``logits``, f(x).
      q: exponent in [1, inf].

    Returns:
      ``(B,)``, at least float32.

    Source: Roth et al. 2020, Eq. 108.
    """
    masked = jnp.isinf(clean_logits) & (logits == clean_logits)
    return linalg.norm(jnp.where(masked, 0.0, logits - clean_logits), q)


def dlr(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Computes the difference of logits ratio ``-(z_y - max_{i != y} z_i) / s``.

    ``s = z_(1) - z_(3)``, of the logits in descending order, so that scaling or
    shifting them changes nothing: in [-1, 0] where y is the largest, positive
    elsewhere. Where fewer than three classes are not masked, s is 1.

    Args:
      logits: ``(B, K)`` float.
      labels: ``(B,)`` int.

    Returns:
      ``(B,)``, at least float32; 0 where all logits are equal, -inf where all other
      classes are masked.

    Raises:
      ValueError: for shapes that do not fit, or one class.

    Source: Croce & Hein 2020, Eq. 5.
    """
    value = margin(logits, labels)
    if logits.shape[1] < 3:
        return value
    largest, count = _largest(logits, 3)
    spread = largest[:, 0] - largest[:, 2] + _TINY
    return value / jnp.where(count == 3, spread, 1.0)


def dlr_targeted(logits: jax.Array, labels: jax.Array, targets: jax.Array) -> jax.Array:
    """Computes ``-(z_y - z_t) / s``: the ratio that steers from y towards class t.

    ``s = z_(1) - (z_(3) + z_(4)) / 2``. The paper's needs four classes: with three that
    are not masked it is ``z_(1) - (z_(2) + z_(3)) / 2`` (over ``z_(1) - z_(3)`` the
    ratio would be -1 everywhere for the third class), with two 1.

    Args:
      logits: ``(B, K)`` float.
      labels: ``(B,)`` int, y.
      targets: ``(B,)`` int, t.

    Returns:
      ``(B,)``, at least float32; -inf where t is masked.

    Raises:
      ValueError: for shapes that do not fit, or one class.

    Source: Croce & Hein 2020, Eq. 6.
    """
    chosen, _ = _split(logits, labels)
    target, _ = _split(logits, targets)
    if logits.shape[1] < 3:
        return target - chosen
    largest, count = _largest(logits, 4)
    low = (largest[:, -2] + largest[:, -1]) / 2
    low = jnp.where(count == 3, (largest[:, 1] + largest[:, 2]) / 2, low)
    spread = largest[:, 0] - low + _TINY
    return (target - chosen) / jnp.where(count < 3, 1.0, spread)


# Equal logits give 0 and no NaN.
_TINY = 1e-12

NAMED: dict[str, Loss] = {"cross_entropy": cross_entropy, "margin": margin, "dlr": dlr}


def _split(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The logit of each label, and the logits with that one at -inf."""
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"logits and labels have shapes {logits.shape} and {labels.shape}; they "
            "must be (B, K) and (B,)."
        )
    checks.check_classes(logits.shape[1])
    logits = logits.astype(at_least_single(logits.dtype))
    hit = jnp.arange(logits.shape[1])[None] == labels[:, None]
    chosen = jnp.sum(jnp.where(hit, logits, 0.0), axis=1)
    return chosen, jnp.where(hit, -jnp.inf, logits)


def _largest(logits: jax.Array, most: int) -> tuple[jax.Array, jax.Array]:
    """The largest logits of each row, descending, and how many are not masked.

    A masked one is replaced by the first, so that no infinity reaches a gradient.
    """
    wide = logits.astype(at_least_single(logits.dtype))
    values = jax.lax.top_k(wide, min(most, logits.shape[1]))[0]
    masked = jnp.isneginf(values)
    return jnp.where(masked, values[:, :1], values), jnp.sum(~masked, axis=1)
