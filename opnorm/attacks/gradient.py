"""attacks: gradient attacks of fixed budget: FGM, PGA, and random noise beside them.

An attack is made from its options and applied to data:
``attack(f, x, labels, key=None, *, start=None) -> x_adv``.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from opnorm import linalg
from opnorm.attacks import losses

BatchFunction = Callable[[jax.Array], jax.Array]
Bounds = tuple[float, float] | None


class Attack(Protocol):
    """``attack(f, x, labels, key=None, *, start=None) -> x_adv``.

    Args:
      f: batch function ``(B, ...) -> (B, K)`` of logits, with independent rows.
      x: ``(B, ...)`` float, the clean inputs in [0, 1] pixel units.
      labels: ``(B,)`` int: the classes to leave, or with ``targeted`` to reach.
      key: typed key; needed where something is random.
      start: shape of ``x``: where to start instead of at x or at random.

    Returns:
      Shape and dtype of ``x``: inside the bounds, within the budget up to rounding,
      and finite if x is, whatever f does. No gradient flows through it.
    """

    def __call__(
        self,
        f: BatchFunction,
        x: jax.Array,
        labels: jax.Array,
        key: jax.Array | None = None,
        *,
        start: jax.Array | None = None,
    ) -> jax.Array: ...


def fgm(
    *,
    p: float,
    epsilon: float | jax.Array,
    loss: str | losses.Loss = "cross_entropy",
    targeted: bool = False,
    bounds: Bounds = (0.0, 1.0),
) -> Attack:
    """Returns the fast gradient method: ``x + epsilon T_{p*}(gradient)``.

    It maximises the linearised loss over the Lp ball; p = inf is FGSM.

    Args:
      p: exponent of the norm, in [1, inf].
      epsilon: budget in pixel units, at least 0; scalar or ``(B,)``, may be traced.
      loss: as for :func:`pga`, but "logit_distance", whose gradient at x is zero.
      targeted: descend the loss towards the labels instead.
      bounds: box (low, high) that inputs stay in, or None.

    Raises:
      ValueError: for an option out of range.

    Source: Roth et al. 2020, Eq. 16; Farnia et al. 2019, Eq. 5.
    """
    return pga(
        p=p,
        epsilon=epsilon,
        num_steps=1,
        step_size=math.inf,
        random_start=False,
        loss=loss,
        targeted=targeted,
        bounds=bounds,
    )


def pga(
    *,
    p: float,
    epsilon: float | jax.Array,
    num_steps: int = 10,
    step_size: float | jax.Array | None = None,
    random_start: bool = True,
    num_restarts: int = 1,
    loss: str | losses.Loss = "cross_entropy",
    q: float = 2.0,
    targeted: bool = False,
    bounds: Bounds = (0.0, 1.0),
) -> Attack:
    """Returns projected gradient ascent in the Lp ball of radius epsilon.

    ``x_k = Proj(x_{k-1} + step_size T_{p*}(gradient))``: onto the ball, then the box.
    The last iterate is returned. With ``step_size=inf`` the step is its limit, ``x +
    epsilon T_{p*}(gradient)``: the power method, where the network is linear. Where a
    gradient is zero or not finite, the point stays. A step costs one forward and one
    backward pass to the input; several restarts cost one forward pass more each.

    Clipping to the box after projecting on the ball can leave budget unused: for p = 1
    a pixel at its bound may stay the steepest one, and the attack then stands still.
    For p other than 1, 2 and inf the dual map is not the gradient of what the
    projection preserves, and small steps stop short of the maximum even of a linear
    loss; ``step_size=inf`` reaches it.

    Args:
      p: exponent of the norm, in [1, inf].
      epsilon: budget in pixel units, at least 0; scalar or ``(B,)``, may be traced, so
        that a list of budgets needs one compilation.
      num_steps: steps, at least 0.
      step_size: positive, scalar or ``(B,)``, may be traced; None for ``2 epsilon /
        num_steps``; inf for the limit.
      random_start: start at a uniform sample of the ball instead of x.
      num_restarts: random starts, at least 1; per example a point that reaches the
        goal is kept before one that does not ("logit_distance" has no goal), then
        the highest loss.
      loss: "cross_entropy" or "margin" (see :mod:`opnorm.attacks.losses`),
        "logit_distance" (Lq distance to the clean logits; ignores labels), or a
        function ``(logits (B, K), labels (B,)) -> (B,)``.
      q: exponent of "logit_distance".
      targeted: descend the loss towards the labels instead.
      bounds: box (low, high) that inputs stay in, or None. x must lie in it, or the
        result may leave the budget.

    Raises:
      ValueError: for an option out of range; when applied, for a missing key, a start
        of another shape, inputs that are not float, or labels that are not ``(B,)``
        ints.

    Source: Roth et al. 2020, Eqs. 15-18; Madry et al. 2018.
    """
    p, q = linalg.check_exponent("p", p), linalg.check_exponent("q", q)
    linalg.check_length("epsilon", epsilon)
    if step_size is not None:
        linalg.check_length("step_size", step_size, positive=True)
    _check_count("num_steps", num_steps, 0)
    _check_count("num_restarts", num_restarts, 1)
    _check_bounds(bounds)
    named = (*losses.NAMED, "logit_distance")
    if isinstance(loss, str) and loss not in named:
        raise ValueError(f"loss is {loss!r}; it may be {', '.join(named)}.")
    if loss == "logit_distance" and targeted:
        raise ValueError("loss 'logit_distance' has no labels; targeted must be False.")
    if num_restarts > 1 and not random_start:
        raise ValueError("num_restarts needs random_start=True: they would be alike.")

    def attack(
        f: BatchFunction,
        x: jax.Array,
        labels: jax.Array,
        key: jax.Array | None = None,
        *,
        start: jax.Array | None = None,
    ) -> jax.Array:
        _check_inputs(x, labels, start)
        if loss == "logit_distance" and not random_start and start is None:
            raise ValueError(
                "loss 'logit_distance' has no gradient at x; it needs "
                "random_start=True or a start."
            )
        if key is None and random_start and (start is None or num_restarts > 1):
            raise ValueError("key is None; random_start needs one.")
        x = lax.stop_gradient(x)
        if start is not None:
            start = lax.stop_gradient(start).astype(x.dtype)
        f = linalg.detach(f, x)
        objective = _objective(f, x, labels, loss, q, targeted)
        gradient = jax.grad(lambda z: jnp.sum(objective(z)[0]))

        def one(begin: jax.Array) -> jax.Array:
            def step(_: Any, delta: jax.Array) -> jax.Array:
                ascent = gradient(x + delta)
                return _advance(
                    x, delta, ascent, p, epsilon, step_size, num_steps, bounds
                )

            begin = _confine(x, begin - x, p, epsilon, bounds)
            end = x + linalg.fori_loop(num_steps, step, begin)
            # Adding x back rounds, and may round out of the box.
            return end if bounds is None else jnp.clip(end, *bounds)

        def begin(restart: Any) -> jax.Array:
            if not random_start or key is None:
                return x if start is None else start
            restart_key = jax.random.fold_in(key, restart)
            drawn = x + linalg.sample_ball(restart_key, x, p, epsilon)
            if start is None:
                return drawn
            return jnp.where(restart == 0, start, drawn)

        if num_restarts == 1:
            return lax.stop_gradient(one(begin(0)))

        def better(restart: jax.Array, best: Any) -> Any:
            point = one(begin(restart))
            value, logits = objective(point)
            value = jnp.nan_to_num(value, nan=-jnp.inf).astype(wide)
            hit = (jnp.argmax(logits, axis=1) == labels) == targeted
            hit &= loss != "logit_distance"
            _, old_value, old_hit = best
            wins = (hit & ~old_hit) | ((hit == old_hit) & (value > old_value))
            new = (point, value, hit)
            return jax.tree.map(lambda a, b: jnp.where(_like(wins, a), a, b), new, best)

        wide = jnp.promote_types(x.dtype, jnp.float32)
        # Like the labels, so that under shard_map they differ where those do.
        lowest = jnp.full_like(labels, -jnp.inf, dtype=wide)
        worst = (x, lowest, jnp.zeros_like(labels, dtype=bool))
        return lax.stop_gradient(linalg.fori_loop(num_restarts, better, worst)[0])

    return attack


def uniform_noise(
    *, p: float, epsilon: float | jax.Array, bounds: Bounds = (0.0, 1.0)
) -> Attack:
    """Returns the baseline that draws a point of the Lp ball uniformly.

    Args:
      p: exponent of the norm, in [1, inf].
      epsilon: budget in pixel units, at least 0; scalar or ``(B,)``.
      bounds: box (low, high) that inputs are clipped to, or None.

    Raises:
      ValueError: for an option out of range, or a missing key.
    """
    return pga(p=p, epsilon=epsilon, num_steps=0, bounds=bounds)


def _objective(
    f: BatchFunction,
    x: jax.Array,
    labels: jax.Array,
    loss: str | losses.Loss,
    q: float,
    targeted: bool,
) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
    """``z -> (what to maximise (B,), logits)``."""
    if loss == "logit_distance":
        clean = f(x)

        def distance(z: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits = f(z)
            return losses.logit_distance(logits, clean, q), logits

        return distance
    chosen = losses.NAMED[loss] if isinstance(loss, str) else loss
    sign = -1.0 if targeted else 1.0

    def labelled(z: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = f(z)
        return sign * chosen(logits, labels), logits

    return labelled


def _advance(
    x: jax.Array,
    delta: jax.Array,
    ascent: jax.Array,
    p: float,
    epsilon: float | jax.Array,
    step_size: float | jax.Array | None,
    num_steps: int,
    bounds: Bounds,
) -> jax.Array:
    direction = linalg.dual_map(ascent, linalg.conjugate_exponent(p))
    if step_size is None:
        step_size = 2 * jnp.asarray(epsilon) / num_steps
    step_size = jnp.asarray(step_size, direction.dtype)
    unlimited = jnp.isinf(step_size)
    walked = delta + linalg.scale(direction, jnp.where(unlimited, 0.0, step_size))
    jumped = linalg.scale(direction, jnp.asarray(epsilon, direction.dtype))
    jumps = unlimited & (linalg.norm(direction, math.inf) > 0)
    moved = jnp.where(_like(jumps, x), jumped, walked)
    return _confine(x, moved, p, epsilon, bounds)


def _confine(
    x: jax.Array, delta: jax.Array, p: float, epsilon: float | jax.Array, bounds: Bounds
) -> jax.Array:
    """The perturbation inside the ball and, at x, inside the box.

    Since x lies in the box, clipping shortens every entry, and so stays in the ball.
    """
    delta = linalg.project_ball(delta, p, epsilon)
    if bounds is None:
        return delta
    return jnp.clip(x + delta, *bounds) - x


def _like(mask: jax.Array, array: jax.Array) -> jax.Array:
    return mask.reshape(mask.shape + (1,) * (array.ndim - 1))


def _check_inputs(x: jax.Array, labels: jax.Array, start: jax.Array | None) -> None:
    if not jnp.issubdtype(x.dtype, jnp.floating) or x.ndim < 2 or x.size == 0:
        raise ValueError(
            f"x has shape {x.shape} and dtype {x.dtype}; it must be (B, ...) and "
            "floating point, with at least one example."
        )
    if labels.shape != x.shape[:1] or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"labels has shape {labels.shape} and dtype {labels.dtype}; it must be "
            f"({x.shape[0]},) and integer."
        )
    if start is not None and start.shape != x.shape:
        raise ValueError(f"start has shape {start.shape}; it must be {x.shape}.")


def _check_count(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or value < least:
        raise ValueError(f"{name} is {value!r}; it must be an int of {least} or more.")


def _check_bounds(bounds: Bounds) -> None:
    if bounds is not None and not (len(bounds) == 2 and bounds[0] < bounds[1]):
        raise ValueError(f"bounds is {bounds}; it must be (low, high) or None.")
