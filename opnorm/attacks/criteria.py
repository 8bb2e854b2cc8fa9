"""Goals other than leaving a class, and networks of one logit.

A search that leaves a class serves every goal. It searches on a network of two logits,
0 and a function of the outputs that is positive where the goal is reached, and leaves
class 0.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from opnorm import linalg
from opnorm.attacks import losses
from opnorm.attacks.stage import Problem, Stage, State
from opnorm.linalg import BatchFunction, PyTree
from opnorm.linalg.dtypes import at_least_single

# Losses beyond it count as equal.
_LARGEST = 1e30
# The least modulus of a value beside the boundary of success, in units of the loss at
# x. Distances to the boundary are wrong by this part at most.
_STEP = 0.01
_partial: Callable[..., linalg.Network] = jax.tree_util.Partial
# Outputs (B, ...) of a network and labels (B, ...) to one value for each example.
Judge = Callable[[PyTree, jax.Array], jax.Array]


class Criterion(NamedTuple):
    """A goal of an attack.

    Attributes:
      loss: ``(outputs, labels) -> (B,)`` float, to maximise.
      success: ``(outputs, labels) -> (B,)`` bool; None if that is a positive loss.
    """

    loss: Judge
    success: Judge | None = None


def pose(
    criterion: Criterion | None,
    f: linalg.Network,
    x: jax.Array,
    labels: jax.Array,
    targeted: bool,
    *keys: jax.Array,
) -> tuple[linalg.Network, jax.Array]:
    """Returns the network and the labels that a search works with.

    The loss is divided by its modulus at x, since its unit is the caller's choice: the
    cross-entropy of two logits has no gradient at margins of a hundred. This changes
    neither the directions of gradients nor the distances to linearised boundaries.

    Args:
      criterion: the goal; None returns the network and the labels that were given.
      f: batch function ``(B, ...) -> outputs``.
      x: ``(B, ...)`` float, the clean inputs.
      labels: ``(B, ...)``; later calls of the network have the same rows.
      targeted: whether the search reaches labels.
      *keys: ``(B,)`` typed keys of the draw at x, for a randomised network
        ``f(x, keys)``; the network of two logits is then randomised, too.

    Returns:
      A network of two logits, and ``(B,)`` int32 labels: class 1 to reach or class 0 to
      leave.
    """
    if criterion is None:
        return f, labels
    # Derived from the labels, so that it varies over devices as they do.
    rows = labels.reshape(len(labels), -1)[:, 0]
    goal = jnp.full_like(rows, int(targeted), dtype=jnp.int32)

    at_input = f(x, *keys)
    first = lax.stop_gradient(_loss(criterion, at_input, labels))
    size = jnp.abs(first)
    unit = jnp.where((size > 0) & jnp.isfinite(size), size, 1.0)
    # Where the sign of the loss is not that of success, zero is no boundary.
    step: jax.Array | float = 1.0
    if criterion.success is not None:
        hit = _checked("success", criterion.success(at_input, labels), len(labels))
        step = jnp.where(hit == (first > 0), _STEP, 1.0)

    def network(z: jax.Array, *keys: jax.Array) -> jax.Array:
        outputs = f(z, *keys)
        loss = _loss(criterion, outputs, labels) / unit
        return _two_logits(_agreeing(criterion, outputs, labels, loss, step))

    return network, goal


def reaching(stage: Stage) -> Stage:
    """Returns a stage that reaches labels, made of a stage that leaves them.

    With t the label, the function of the logits is ``z_t - max_{i != t} z_i``.
    """

    def posed(f: BatchFunction, problem: Problem) -> tuple[BatchFunction, Problem]:
        labels = problem.labels

        def network(z: jax.Array) -> jax.Array:
            return _two_logits(_sound(lead(f(z), labels)))

        return network, problem._replace(labels=jnp.zeros_like(labels))

    def init(f: BatchFunction, problem: Problem) -> State:
        return stage.init(*posed(f, problem))

    def step(f: BatchFunction, problem: Problem, state: State, i: jax.Array) -> State:
        return stage.step(*posed(f, problem), state, i)

    return dataclasses.replace(stage, init=init, step=step, targeted=True)


def lead(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Computes ``z_y - max_{i != y} z_i``: positive where y is the largest.

    As the loss of :func:`opnorm.attacks.with_criterion` it makes an attack reach its
    labels.

    Args:
      logits: ``(B, K)`` float.
      labels: ``(B,)`` int.

    Returns:
      ``(B,)``, at least float32.

    Raises:
      ValueError: for shapes that do not fit, or one class.
    """
    return -losses.margin(logits, labels)


def reached(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Tells whether a network decides for the labels.

    The decision is that by which accuracies are measured, also where logits are equal.
    As the success of :func:`opnorm.attacks.with_criterion`, beside the loss
    :func:`lead`, it counts the ties that the loss alone does not.

    Args:
      logits: ``(B, K)`` float.
      labels: ``(B,)`` int.

    Returns:
      ``(B,)`` bool; False where a logit is NaN.
    """
    known = ~jnp.any(jnp.isnan(logits), axis=1)
    return known & (jnp.argmax(logits, axis=1) == labels)


def binary(f: linalg.Network) -> linalg.Network:
    """Returns a binary network of one logit z as a network of the two logits 0 and z.

    Class 1 is chosen where z > 0, that is, where its probability ``sigmoid(z)`` is
    above one half. Every function of the library that takes classes takes the result.

    Args:
      f: ``(B, ...) -> (B, 1)`` or ``(B,)``.

    Returns:
      ``(B, ...) -> (B, 2)``; a callable pytree if f is one.

    Raises:
      ValueError: when applied, for outputs of another shape.

    Example:
      >>> import jax.numpy as jnp
      >>> from opnorm import attacks
      >>> f = attacks.binary(lambda x: x[:, :1] - 0.5)
      >>> x, labels = jnp.array([[0.75, 0.0]]), jnp.array([1])
      >>> print(f(x))
      [[0.   0.25]]
      >>> found = attacks.fab(p=2, num_steps=5).run(f, x, labels)
      >>> round(float(found.distance[0]), 3)
      0.251
    """
    if linalg.keeps_programs(f):
        return _partial(_binary, f)
    return lambda x: _binary(f, x)


def _binary(f: linalg.Network, x: jax.Array) -> jax.Array:
    logit: jax.Array = f(x)
    if logit.shape not in ((len(x),), (len(x), 1)):
        raise ValueError(
            f"the binary network returns shape {logit.shape}; it must be one logit for "
            f"each example, ({len(x)}, 1)."
        )
    return _two_logits(logit.reshape(-1))


def _two_logits(value: jax.Array) -> jax.Array:
    return jnp.stack([jnp.zeros_like(value), value], axis=1)


def _loss(criterion: Criterion, outputs: PyTree, labels: jax.Array) -> jax.Array:
    loss = _checked("loss", criterion.loss(outputs, labels), len(labels))
    return loss.astype(at_least_single(loss.dtype))


def _agreeing(
    criterion: Criterion,
    outputs: PyTree,
    labels: jax.Array,
    loss: jax.Array,
    step: jax.Array | float,
) -> jax.Array:
    """Computes a value ``(B,)`` that is positive where there is success.

    With l the loss and s the step it is ``sqrt(l^2 + s^2)`` in modulus where the sign
    of the loss is that of success, so that distances to linearised boundaries and
    margins keep their meaning, and ``s / (1 + |l|)`` elsewhere. Among points that
    succeed, and among the others, it has the order of the losses. Its gradient is that
    of the loss.
    """
    if criterion.success is None:
        return _sound(loss)
    hit = _checked("success", criterion.success(outputs, labels), len(labels))
    held = lax.stop_gradient(loss)
    held = jnp.where(jnp.isnan(held), -_LARGEST, jnp.clip(held, -_LARGEST, _LARGEST))
    least = jnp.asarray(step, held.dtype)
    agrees = hit == (held > 0)
    size = jnp.where(agrees, jnp.hypot(held, least), least / (1 + jnp.abs(held)))
    sloped = jnp.where(jnp.isfinite(loss), loss, 0.0)
    return jnp.where(hit, size, -size) + (sloped - lax.stop_gradient(sloped))


def _sound(value: jax.Array) -> jax.Array:
    """Replaces NaN by -inf: it is no success."""
    return jnp.where(jnp.isnan(value), -jnp.inf, value)


def _checked(name: str, values: jax.Array, count: int) -> jax.Array:
    shape = jnp.shape(values)
    if shape != (count,):
        raise ValueError(
            f"{name} returns shape {shape}; it must be ({count},), one value for each "
            "example."
        )
    return values
