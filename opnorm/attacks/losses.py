"""attacks: what an attack maximises, per example, as functions of the logits."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from opnorm import linalg

Loss = Callable[[jax.Array, jax.Array], jax.Array]


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Computes ``-log softmax(z)_y`` as ``softplus(log sum_{i != y} exp z_i - z_y)``.

    The usual form rounds to exactly 0, with gradient 0, for margins beyond 17 in
    float32, where an attack would stand still; this one holds to margins of 87.

    Args:
      logits: ``(B, K)`` float.
      labels: ``(B,)`` int.

    Returns:
      ``(B,)``, at least float32; 0 if there is one class.

    Raises:
      ValueError: for shapes that do not fit.

    Source: Roth et al. 2020, Eq. 24.
    """
    chosen, others = _split(logits, labels)
    if logits.shape[1] == 1:
        return jnp.zeros_like(chosen)
    return jax.nn.softplus(jax.nn.logsumexp(others, axis=1) - chosen)


def margin(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Computes ``max_{i != y} z_i - z_y``: positive where y is not the largest.

    Args:
      logits: ``(B, K)`` float.
      labels: ``(B,)`` int.

    Returns:
      ``(B,)``, at least float32; ``-z_y`` if there is one class.

    Raises:
      ValueError: for shapes that do not fit.
    """
    chosen, others = _split(logits, labels)
    if logits.shape[1] == 1:
        return -chosen
    return jnp.max(others, axis=1) - chosen


def logit_distance(
    logits: jax.Array, clean_logits: jax.Array, q: float = 2.0
) -> jax.Array:
    """Computes ``||f(x*) - f(x)||_q``, which needs no labels.

    Its gradient at the clean point is zero: an attack on it needs a start elsewhere.

    Args:
      logits: ``(B, K)`` float, f(x*).
      clean_logits: shape of ``logits``, f(x).
      q: exponent in [1, inf].

    Returns:
      ``(B,)``, at least float32.

    Source: Roth et al. 2020, Eq. 108.
    """
    return linalg.norm(logits - clean_logits, q)


def dlr(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Computes the difference of logits ratio ``-(z_y - max_{i != y} z_i) / s``.

    ``s = z_(1) - z_(3)``, of the logits in descending order, so that scaling or
    shifting them changes nothing: in [-1, 0] where y is the largest, positive
    elsewhere. With two classes, which have no third, s is 1.

    Args:
      logits: ``(B, K)`` float.
      labels: ``(B,)`` int.

    Returns:
      ``(B,)``, at least float32; 0 where all logits are equal, ``-z_y`` if there is one
      class.

    Raises:
      ValueError: for shapes that do not fit.

    Source: Croce & Hein 2020, Eq. 5.
    """
    value = margin(logits, labels)
    if logits.shape[1] < 3:
        return value
    largest = jax.lax.top_k(logits.astype(value.dtype), 3)[0]
    return value / (largest[:, 0] - largest[:, 2] + _TINY)


def dlr_targeted(logits: jax.Array, labels: jax.Array, targets: jax.Array) -> jax.Array:
    """Computes ``-(z_y - z_t) / s``: the ratio that steers from y towards class t.

    ``s = z_(1) - (z_(3) + z_(4)) / 2``. The paper's needs four classes: with three it
    is ``z_(1) - (z_(2) + z_(3)) / 2`` (over ``z_(1) - z_(3)`` the ratio would be -1
    everywhere for the third class), with two 1.

    Args:
      logits: ``(B, K)`` float.
      labels: ``(B,)`` int, y.
      targets: ``(B,)`` int, t.

    Returns:
      ``(B,)``, at least float32.

    Raises:
      ValueError: for shapes that do not fit.

    Source: Croce & Hein 2020, Eq. 6.
    """
    chosen, _ = _split(logits, labels)
    target, _ = _split(logits, targets)
    classes = logits.shape[1]
    if classes < 3:
        return target - chosen
    largest = jax.lax.top_k(logits.astype(chosen.dtype), min(classes, 4))[0]
    low = (largest[:, -2] + largest[:, -1]) / 2
    return (target - chosen) / (largest[:, 0] - low + _TINY)


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
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    hit = jnp.arange(logits.shape[1])[None] == labels[:, None]
    chosen = jnp.sum(jnp.where(hit, logits, 0.0), axis=1)
    return chosen, jnp.where(hit, -jnp.inf, logits)
