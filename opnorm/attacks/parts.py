"""The pieces that attacks are made of, on arrays with one row for each example."""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from opnorm import linalg
from opnorm.attacks import checks, losses, meshes
from opnorm.attacks.checks import Bound, Bounds
from opnorm.attacks.draws import Drawn
from opnorm.linalg import BatchFunction
from opnorm.linalg.dtypes import at_least_single

Tree = TypeVar("Tree")
Keep = Literal["value", "goal", "success"]


class Best(NamedTuple):
    """The best perturbation that a search with a budget has evaluated.

    Attributes:
      delta: ``(B, ...)`` float, the perturbation.
      value: ``(B,)`` float, the objective there; -inf before the first.
      hit: ``(B,)`` bool, whether the network decides there as the attack wants.
    """

    delta: jax.Array
    value: jax.Array
    hit: jax.Array


class Nearest(NamedTuple):
    """The nearest successful point that a search without a budget has evaluated.

    Attributes:
      point: ``(B, ...)`` float; x before the first.
      distance: ``(B,)`` float, its distance from x; inf before the first.
    """

    point: jax.Array
    distance: jax.Array

    @property
    def found(self) -> jax.Array:
        """Whether there is such a point, ``(B,)`` bool."""
        return jnp.isfinite(self.distance)


def begin_best(delta: jax.Array, labels: jax.Array) -> Best:
    """Returns the record of a search that has evaluated nothing yet.

    Args:
      delta: ``(B, ...)`` float, the perturbation to return if no objective is above
        -inf.
      labels: ``(B,)``; under ``shard_map`` the record varies where the labels do.
    """
    lowest = jnp.full_like(labels, -jnp.inf, dtype=wide(delta))
    return Best(delta, lowest, jnp.zeros_like(labels, dtype=bool))


def improves(new: Best, best: Best, keep: Keep) -> jax.Array:
    """Whether a perturbation takes the place of the best one, ``(B,)`` bool.

    Args:
      new: the perturbation that was just evaluated.
      best: the best one so far.
      keep: the rule. "value": the objective decides. "goal": a perturbation that
        succeeds comes before one that does not, then the objective decides. "success":
        the same, in a search that has ended in the rows where ``best`` succeeds.
    """
    higher = new.value > best.value
    if keep == "value":
        return higher
    if keep == "success":
        return new.hit | higher
    return (new.hit & ~best.hit) | ((new.hit == best.hit) & higher)


def begin_nearest(x: jax.Array, hit: jax.Array) -> Nearest:
    """Returns the record of a search that has evaluated x alone.

    Args:
      x: ``(B, ...)`` float, the clean inputs.
      hit: ``(B,)`` bool, whether x succeeds; its distance is 0.
    """
    return Nearest(x, jnp.where(hit, 0.0, jnp.inf).astype(wide(x)))


def keep_nearest(
    nearest: Nearest, point: jax.Array, distance: jax.Array, hit: jax.Array
) -> Nearest:
    """Returns the nearer of two points, if the new one succeeds.

    Args:
      nearest: the record so far.
      point: ``(B, ...)`` float, the point that was just evaluated.
      distance: ``(B,)``, its distance from x.
      hit: ``(B,)`` bool, whether it succeeds.
    """
    nearer = hit & (distance < nearest.distance)
    return select(nearer, Nearest(point, distance), nearest)


def select(mask: jax.Array, new: Tree, old: Tree) -> Tree:
    """Chooses ``new`` in the rows of the mask and ``old`` in the others.

    Args:
      mask: ``(B,)`` bool or a scalar.
      new: pytree of arrays ``(B, ...)``.
      old: pytree of the same structure.
    """

    def choose(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(like(mask, new), new, old)

    chosen: Tree = jax.tree.map(choose, new, old)
    return chosen


def like(mask: jax.Array, array: jax.Array) -> jax.Array:
    """Reshapes a mask ``(B,)`` to as many axes as the array has."""
    return mask.reshape(mask.shape + (1,) * (array.ndim - 1))


def wide(x: jax.Array) -> jnp.dtype:
    """The dtype of losses and distances for inputs of the dtype of x."""
    return at_least_single(x.dtype)


def count(counter: jax.Array, rows: jax.Array) -> jax.Array:
    """Adds one to a counter ``(B,)`` in the rows of a mask ``(B,)``."""
    return counter + rows.astype(counter.dtype)


def positive(value: jax.Array) -> jax.Array:
    """Replaces entries that are not positive by 1, for a denominator."""
    return jnp.where(value > 0, value, 1.0)


def all_finite(array: jax.Array) -> jax.Array:
    """Whether all entries of a row are finite, ``(B,)`` bool."""
    return jnp.all(jnp.isfinite(array), axis=tuple(range(1, array.ndim)))


def finite_rows(gradient: jax.Array) -> jax.Array:
    """Replaces the rows of a gradient that are not finite everywhere by zero."""
    return jnp.where(like(all_finite(gradient), gradient), gradient, 0.0)


def fold_in(keys: jax.Array, data: int | jax.Array) -> jax.Array:
    """``jax.random.fold_in`` over keys ``(B,)``, data ``(B,)``, or both."""
    keys_axis, data_axis = (0 if jnp.ndim(a) else None for a in (keys, data))
    return jax.vmap(jax.random.fold_in, (keys_axis, data_axis))(keys, data)


def ends(bounds: Bounds, x: jax.Array) -> tuple[float | jax.Array, float | jax.Array]:
    """Returns the ends of a box for computations with x; infinite without a box.

    Args:
      bounds: box (low, high), for all entries or for each, or None.
      x: ``(B, ...)`` float. Arrays get its dtype, and numbers stay numbers.
    """
    low, high = (-math.inf, math.inf) if bounds is None else bounds
    return _end(low, x), _end(high, x)


def _end(end: Bound, x: jax.Array) -> float | jax.Array:
    if not isinstance(end, np.ndarray):
        return end
    return jnp.asarray(for_batch(end, x), x.dtype)


def for_batch(array: np.ndarray, x: jax.Array) -> np.ndarray:
    """Gives an array that broadcasts against one example as many axes as the batch."""
    return array.reshape((1,) * (x.ndim - array.ndim) + array.shape)


def clip(x: jax.Array, bounds: Bounds) -> jax.Array:
    """Clips x to the bounds, if there are any."""
    return x if bounds is None else jnp.clip(x, *ends(bounds, x))


def free(noise: jax.Array, bounds: Bounds) -> jax.Array:
    """Sets noise ``(B, ...)`` to zero in the entries that the box fixes."""
    entries = _free_entries(bounds)
    if entries is None:
        return noise
    return jnp.where(for_batch(entries, noise), noise, 0.0)


def sample_sphere(keys: jax.Array, x: jax.Array, p: float, bounds: Bounds) -> jax.Array:
    """Draws directions of p-norm 1 in the entries that the box leaves free.

    Args:
      keys: ``(B,)`` typed keys.
      x: ``(B, ...)`` float, whose shape and dtype the samples have.
      p: exponent of the norm, in [1, inf].
      bounds: box (low, high), for all entries or for each, or None.
    """
    unit = linalg.sample_sphere(keys, x, p)
    if _free_entries(bounds) is None:
        return unit
    unit = free(unit, bounds)
    return linalg.scale(unit, 1 / positive(linalg.norm(unit, p)))


def sample_ball(
    keys: jax.Array,
    x: jax.Array,
    p: float,
    radius: float | jax.Array,
    bounds: Bounds,
) -> jax.Array:
    """Draws points of an Lp ball uniformly, in the entries that the box leaves free.

    The length of a point of the ball in n dimensions is ``radius u^(1/n)``, with u
    uniform in [0, 1], and it does not depend on the direction. So with k free entries
    the same u gives the length ``radius u^(1/k)``.

    Args:
      keys: ``(B,)`` typed keys.
      x: ``(B, ...)`` float, whose shape and dtype the samples have.
      p: exponent of the norm, in [1, inf].
      radius: scalar or ``(B,)``.
      bounds: box (low, high), for all entries or for each, or None.
    """
    drawn = linalg.sample_ball(keys, x, p, radius)
    entries = _free_entries(bounds)
    if entries is None or p == math.inf:
        return free(drawn, bounds)
    count = np.broadcast_to(entries, x.shape[1:]).sum()
    length = linalg.norm(drawn, p)
    limit = positive(jnp.asarray(radius, length.dtype))
    length = limit * (length / limit) ** (math.prod(x.shape[1:]) / max(count, 1))
    kept = free(drawn, bounds)
    return linalg.scale(kept, length / positive(linalg.norm(kept, p)))


def _free_entries(bounds: Bounds) -> np.ndarray | None:
    """The entries that may change, as a mask; None if all may."""
    if bounds is None or not checks.has_arrays(bounds):
        return None
    entries = np.asarray(bounds[0] < bounds[1])
    return None if np.all(entries) else entries


def confine(
    x: jax.Array,
    delta: jax.Array,
    p: float,
    radius: float | jax.Array,
    bounds: Bounds,
) -> jax.Array:
    """Brings a perturbation into the Lp ball and, at x, into the box.

    For p = 1 and inf the result is the nearest such perturbation. For other p it is
    projected on the ball and then clipped, as attacks are published. Since x lies in
    the box, clipping shortens every entry, and so stays in the ball.

    Args:
      x: ``(B, ...)`` float, the clean inputs, in the box.
      delta: shape of ``x``.
      p: exponent of the norm, in [1, inf].
      radius: scalar or ``(B,)``, may be traced.
      bounds: box (low, high), for all entries or for each, or None.
    """
    radius = meshes.constant(radius)
    if bounds is None:
        return linalg.project_ball(delta, p, radius)
    low, high = ends(bounds, x)
    if p == 1:
        room = jnp.minimum(low - x, 0.0), jnp.maximum(high - x, 0.0)
        delta = linalg.project_ball_box(delta, p, radius, *room)
    else:
        delta = linalg.project_ball(delta, p, radius)
    return jnp.clip(x + delta, low, high) - x


def default_step_size(epsilon: float | jax.Array, num_steps: int) -> float | jax.Array:
    """Returns the usual step size of projected gradient ascent.

    It is ``2 epsilon / num_steps``: the steps can cross the whole ball.

    Args:
      epsilon: radius of the ball, scalar or ``(B,)``.
      num_steps: number of steps; 0 counts as 1.

    Example:
      >>> default_step_size(0.5, num_steps=10)
      0.1
    """
    return 2 * epsilon / max(num_steps, 1)


def value_and_gradient(
    f: BatchFunction,
    loss: Callable[[jax.Array], jax.Array],
    x: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Evaluates the network and a loss of its logits, with one input gradient.

    Args:
      f: batch function with independent rows. With several draws
        (:class:`opnorm.attacks.draws.Drawn`) the loss is the mean of their losses.
      loss: ``logits (B, K) -> (B,)``.
      x: ``(B, ...)``.

    Returns:
      The loss ``(B,)`` with NaN as -inf, the logits, and the gradient of each example's
      loss, zero for an example whose gradient is not finite everywhere.
    """

    def total(z: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        if isinstance(f, Drawn):
            each = f.each(z)
            values = jnp.mean(jax.vmap(loss)(each), axis=0)
            return jnp.sum(values), (values, f.decisive(each))
        logits = f(z)
        values = loss(logits)
        return jnp.sum(values), (values, logits)

    gradient, (values, logits) = jax.grad(total, has_aux=True)(x)
    gradient = finite_rows(gradient)
    return jnp.nan_to_num(values, nan=-jnp.inf, posinf=jnp.inf), logits, gradient


def decided(
    logits: jax.Array,
    labels: jax.Array,
    targeted: bool = False,
    confidence: float = 0.0,
) -> jax.Array:
    """Whether the decision, the argmax, is as the attack wants, ``(B,)`` bool.

    A row with NaN decides for no class; argmax would take the first NaN.

    Args:
      logits: ``(B, K)`` float.
      labels: ``(B,)`` int.
      targeted: whether the labels are to be reached instead of left.
      confidence: least margin between the label's logit and the largest other one.
    """
    sound = ~jnp.any(jnp.isnan(logits), axis=1)
    hit = (sound & (jnp.argmax(logits, axis=1) == labels)) == targeted
    if confidence == 0:
        return hit
    margin = losses.margin(logits, labels)
    return hit & ~((-margin if targeted else margin) < confidence)


def within_budget(
    distance: jax.Array, epsilon: float | jax.Array, x: jax.Array, p: float
) -> jax.Array:
    """Whether distances from x keep a budget up to rounding, ``(B,)`` bool.

    The allowance is ``u (2 ||x||_p + sqrt(n) epsilon)``, with u the machine epsilon of
    the dtype of x and n the number of entries: a point is rounded in each entry, by at
    most u / 2 of it, and the sum in the norm is rounded n times.

    Args:
      distance: ``(B,)``, Lp lengths of perturbations.
      epsilon: scalar or ``(B,)``.
      x: ``(B, ...)`` float, the clean inputs.
      p: exponent of the norm.
    """
    size = linalg.norm(x, p)
    limit = jnp.asarray(meshes.constant(epsilon), size.dtype)
    terms = math.sqrt(math.prod(x.shape[1:]))
    unit = linalg.machine_epsilon(x.dtype)
    return distance <= limit + unit * (2 * size + terms * limit)


def other_classes(
    logits: jax.Array, labels: jax.Array, most: int
) -> tuple[jax.Array, jax.Array]:
    """Finds the classes of the largest logits, the label excepted.

    Args:
      logits: ``(B, K)`` float, K at least 2. A class whose logit is -inf (a masked
        class) or NaN is no candidate.
      labels: ``(B,)`` int.
      most: how many classes, at least 1.

    Returns:
      ``(B, T)`` int32 with T = min(most, K - 1), the largest first, and ``(B,)`` int32,
      how many of them are candidates.
    """
    classes = logits.shape[1]
    own = jnp.arange(classes)[None] == labels[:, None]
    others = jnp.where(own | jnp.isnan(logits), -jnp.inf, logits)
    values, numbers = lax.top_k(others, max(1, min(most, classes - 1)))
    return numbers, jnp.sum(values > -jnp.inf, axis=1, dtype=jnp.int32)


def pick(logits: jax.Array, classes: jax.Array) -> jax.Array:
    """Returns the logit of one class of each row, ``(B,)``.

    Args:
      logits: ``(B, K)`` float; the other logits may be infinite.
      classes: ``(B,)`` int.
    """
    hit = jnp.arange(logits.shape[1])[None] == classes[:, None]
    return jnp.sum(jnp.where(hit, logits, 0.0), axis=1)
