"""WRM, gradient ascent on a loss that pays for the squared length."""

import jax
import jax.numpy as jnp
from jax import lax

from opnorm import linalg
from opnorm.attacks import checks, losses, meshes, parts, registry
from opnorm.attacks.attack import Attack
from opnorm.attacks.checks import Bounds
from opnorm.attacks.stage import Problem, Stage
from opnorm.linalg import BatchFunction


@registry.register
def wrm(
    *,
    gamma: float | jax.Array | None = None,
    penalty: float | jax.Array | None = None,
    num_steps: int = 15,
    loss: str | losses.Loss = "cross_entropy",
    bounds: Bounds = None,
) -> Attack:
    """Returns the ascent on ``loss(z) - gamma ||z - x||_2^2`` (WRM).

    With ``e = 1 / (2 gamma)`` it starts at x (or at ``start``) and takes the steps
    ``z += (e gradient(z) - (z - x)) / sqrt(k + 1)``, k = 0, ..., num_steps: the first
    one goes to ``x + e gradient``, which is the maximiser of a linear loss. The
    objective is strictly concave, and its maximiser unique, where the loss's gradient
    is L-Lipschitz in x and ``e L < 1``; ``wrm.residual`` says how far the ascent got.
    A gradient that is not finite counts as zero. A step costs one forward and one
    backward pass.

    Perturbations are paid for and have no largest length, so this is an attack without
    a budget, which :func:`first_success` refuses. But it looks for no shortest one
    either: the last iterate is returned, whether it succeeds or not.

    Args:
      gamma: price of the squared length, positive, in units of the loss per squared
        pixel unit; scalar or ``(B,)``, may be traced.
      penalty: the same price in the convention ``loss(z) - penalty / 2 ||z - x||_2^2``:
        twice gamma. Exactly one of the two is given.
      num_steps: steps after the first, at least 0.
      loss: "cross_entropy", "margin" or "dlr" (the functions of these names), or a
        function ``(logits (B, K), labels (B,)) -> (B,)``.
      bounds: box (low, high) that iterates are clipped to, for all entries or for
        each, or None.

    Raises:
      ValueError: for an option out of range; when applied, as :class:`Attack`.

    Source: Sinha, Namkoong & Duchi 2018, Algorithm 1 and Eq. 2 (gamma); Farnia et al.
    2019, Eq. 7 (penalty).
    """
    price = _price(gamma, penalty)
    linalg.check_count("num_steps", num_steps, 0)
    bounds = checks.check_bounds(bounds)
    chosen = _named(loss)

    def check(problem: Problem) -> None:
        name = "gamma" if penalty is None else "penalty"
        checks.check_per_example(name, price, len(problem.x))

    def init(f: BatchFunction, problem: Problem) -> jax.Array:
        del f
        begin = problem.x if problem.start is None else problem.start
        return parts.clip(begin, bounds)

    def step(
        f: BatchFunction, problem: Problem, z: jax.Array, i: jax.Array
    ) -> jax.Array:
        _, _, gradient = parts.value_and_gradient(
            f, lambda logits: chosen(logits, problem.labels), z
        )
        reach = jnp.asarray(0.5 / meshes.constant(price))
        ascent = linalg.scale(gradient, reach) - (z - problem.x)
        moved = z + ascent / jnp.sqrt(i + 1).astype(z.dtype)
        return parts.clip(moved, bounds)

    stage = Stage(
        takes_start=True,
        name="wrm",
        num_steps=num_steps + 1,
        bounds=bounds,
        init=init,
        step=step,
        finish=lambda problem, z: z,
        check=check,
        any_labels=not isinstance(loss, str),
    )
    return Attack(name="wrm", p=2.0, stages=(stage,), budget=False)


def surrogate(
    f: BatchFunction,
    x: jax.Array,
    labels: jax.Array,
    x_adv: jax.Array,
    *,
    gamma: float | jax.Array | None = None,
    penalty: float | jax.Array | None = None,
    loss: str | losses.Loss = "cross_entropy",
) -> jax.Array:
    """Computes the robust surrogate loss ``loss(x_adv) - gamma ||x_adv - x||_2^2``.

    Where x_adv maximises it, its mean plus ``gamma rho`` bounds the expected loss under
    every distribution within a squared Wasserstein distance rho of the examples.
    Differentiable; at the maximiser the gradient for f's parameters is that of
    ``loss(x_adv)`` with x_adv constant.

    Args:
      f: batch function ``(B, ...) -> (B, K)`` of logits.
      x: ``(B, ...)`` float, the clean inputs in [0, 1] pixel units.
      labels: ``(B,)`` int.
      x_adv: shape of ``x``, from :func:`wrm` with the same price and loss.
      gamma: as for :func:`wrm`.
      penalty: as for :func:`wrm`.
      loss: as for :func:`wrm`.

    Returns:
      ``(B,)``, at least float32 for the named losses.

    Raises:
      ValueError: for a price or loss that :func:`wrm` refuses.

    Source: Sinha, Namkoong & Duchi 2018, Eq. 2b and Theorem 3.
    """
    length = linalg.norm(x_adv - x, 2.0)
    return _named(loss)(f(x_adv), labels) - _price(gamma, penalty) * length**2


def residual(
    f: BatchFunction,
    x: jax.Array,
    labels: jax.Array,
    x_adv: jax.Array,
    *,
    gamma: float | jax.Array | None = None,
    penalty: float | jax.Array | None = None,
    loss: str | losses.Loss = "cross_entropy",
    bounds: Bounds = None,
) -> jax.Array:
    """Computes how far an ascent is from its end, ``||x + e gradient - x_adv||_2``.

    ``e = 1 / (2 gamma)``, the gradient is taken at x_adv, and with bounds the point
    ``x + e gradient`` is clipped first: zero where x_adv is stationary. Where the
    gradient is L-Lipschitz and ``e L < 1``, the maximiser is at most ``1 / (1 - e L)``
    times as far away.

    Args:
      f: batch function ``(B, ...) -> (B, K)`` of logits, with independent rows.
      x: ``(B, ...)`` float, the clean inputs in [0, 1] pixel units.
      labels: ``(B,)`` int.
      x_adv: shape of ``x``, from :func:`wrm` with the same options.
      gamma: as for :func:`wrm`.
      penalty: as for :func:`wrm`.
      loss: as for :func:`wrm`.
      bounds: as for :func:`wrm`.

    Returns:
      ``(B,)``, in pixel units, at least float32.

    Raises:
      ValueError: for an option that :func:`wrm` refuses.
    """
    reach, chosen = 0.5 / _price(gamma, penalty), _named(loss)
    bounds = checks.check_bounds(bounds)
    _, _, gradient = parts.value_and_gradient(
        f, lambda logits: chosen(logits, labels), x_adv
    )
    # Entries of x outside the bounds are confined as in the search.
    inside = parts.clip(x, bounds)
    target = parts.clip(inside + linalg.scale(gradient, reach), bounds)
    target += x - inside
    return linalg.norm(target - x_adv, 2.0)


def _price(
    gamma: float | jax.Array | None, penalty: float | jax.Array | None
) -> jax.Array:
    """gamma, in either convention."""
    if (gamma is None) == (penalty is None):
        raise ValueError(
            f"gamma is {gamma} and penalty is {penalty}; exactly one of them must be "
            "given."
        )
    name, value = ("gamma", gamma) if penalty is None else ("penalty", penalty)
    linalg.check_length(name, value, positive=True)
    linalg.check_length(name, value)
    price = lax.stop_gradient(jnp.asarray(value, float))
    return price if penalty is None else price / 2


def _named(loss: str | losses.Loss) -> losses.Loss:
    if not isinstance(loss, str):
        return loss
    if loss not in losses.NAMED:
        raise ValueError(f"loss is {loss!r}; it may be {', '.join(losses.NAMED)}.")
    return losses.NAMED[loss]
