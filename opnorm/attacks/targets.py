"""Classes for targeted attacks to reach."""

import jax
import jax.numpy as jnp
import numpy as np

from opnorm import linalg
from opnorm.attacks import checks, parts

CHOICES = ("random", "likeliest", "least_likely")


def choose_targets(
    f: linalg.Network,
    x: jax.Array,
    labels: jax.Array,
    choice: str | jax.Array | np.ndarray,
    key: jax.Array | None = None,
) -> jax.Array:
    """Chooses a class other than the label for each example.

    Args:
      f: ``(B, ...) -> (B, K)`` logits.
      x: ``(B, ...)`` float, the clean inputs.
      labels: ``(B,)`` int, the classes of the examples.
      choice: "random" for each other class alike, "likeliest" or "least_likely" for the
        other class of the largest or smallest logit (the lowest number of several; a
        masked one, of logit -inf, or NaN is taken last), or given classes, ``(B,)`` int
        or one for all, which are checked.
      key: typed key of "random", one or ``(B,)`` keys; example i uses ``fold_in(key,
        i)``.

    Returns:
      ``(B,)`` int32: the labels of an attack with ``targeted=True``.

    Raises:
      ValueError: for another choice, labels that are not classes of f, a missing key,
        and given targets that are no classes or, where known, are the label.

    Example:
      >>> import jax.numpy as jnp
      >>> from opnorm import attacks
      >>> x, labels = jnp.array([[0.1, 0.7, 0.4]]), jnp.array([1])
      >>> attacks.choose_targets(lambda x: x, x, labels, "least_likely")
      Array([0], dtype=int32)
    """
    shape = linalg.output_shapes(f, x)
    checks.check_labels(labels, len(x), shape)
    labels = jnp.asarray(labels, jnp.int32)
    if not isinstance(choice, str):
        return _given(choice, labels, shape)
    if choice not in CHOICES:
        known = ", ".join(map(repr, CHOICES))
        raise ValueError(f"choice is {choice!r}; it may be {known}, or given classes.")
    if choice == "random":
        if key is None:
            raise ValueError("key is None; choice 'random' needs one.")
        linalg.check_key(key, len(x))
        keys = key if key.ndim else parts.fold_in(key, jnp.arange(len(x)))
        others: int = shape.shape[1] - 1
        steps = jax.vmap(lambda key: jax.random.randint(key, (), 0, others))(keys)
        return (labels + 1 + steps) % (others + 1)
    return _extreme(f, x, labels, least=choice == "least_likely")


@linalg.network_program
def _extreme(
    f: linalg.Network, x: jax.Array, labels: jax.Array, *, least: bool
) -> jax.Array:
    logits = f(x)
    own = jnp.arange(logits.shape[1])[None] == labels[:, None]
    values = -logits if least else logits
    unusable = jnp.isnan(logits) | jnp.isneginf(logits)
    values = jnp.nan_to_num(jnp.where(unusable, -jnp.inf, values))
    return jnp.argmax(jnp.where(own, -jnp.inf, values), axis=1).astype(jnp.int32)


def _given(
    choice: jax.Array | np.ndarray, labels: jax.Array, logits: jax.ShapeDtypeStruct
) -> jax.Array:
    given = jnp.asarray(choice)
    if given.shape == ():
        given = jnp.broadcast_to(given, labels.shape)
    try:
        checks.check_labels(given, len(labels), logits)
    except ValueError as error:
        raise ValueError(f"choice: {error}") from None
    if checks.known(given) and checks.known(labels):
        same = np.asarray(given) == np.asarray(labels)
        if np.any(same):
            raise ValueError(
                f"choice gives example {int(np.argmax(same))} its own label, "
                f"{int(given[np.argmax(same)])}; a target must be another class."
            )
    return given.astype(jnp.int32)
