"""(p, q) operator norms by the power method and by gradient ascent."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from opnorm.linalg import checks, krylov, loops, norms, projections, sampling
from opnorm.linalg.linear_map import LinearMap
from opnorm.linalg.typed import smallest_normal


class OperatorNorm(NamedTuple):
    """A (p, q) operator norm per example and the vectors that attain it.

    Attributes:
      value: ``(B,)``, ``||A v||_q``, a lower bound of the norm. It is the norm if v is
        a global maximiser.
      right: ``(B, *in_shape)``, v with ``||v||_p = 1``.
      left: ``(B, *out_shape)``, ``u = T_q(A v)``, so that ``<u, A v> = value``.
      residual: ``(B,)``, ``(||A^T u||_{p*} - ||A v||_q) / ||A^T u||_{p*}`` in [0, 1].
        By Hölder's inequality it is 0 exactly where v is stationary. With p = q = 2 it
        is about the squared sine of the angle by which the next step would turn v.
      num_steps: int32 scalar, the number of steps.
    """

    value: jax.Array
    right: jax.Array
    left: jax.Array
    residual: jax.Array
    num_steps: jax.Array


def operator_norm(
    linear_map: LinearMap,
    *,
    p: float = 2.0,
    q: float = 2.0,
    num_steps: int = 10,
    tolerance: float | None = None,
    step_size: float | jax.Array = math.inf,
    num_restarts: int = 1,
    init: jax.Array | None = None,
    key: jax.Array | None = None,
) -> OperatorNorm:
    """Computes ``||A||_{p,q} = max ||A v||_q over ||v||_p = 1`` iteratively.

    With ``step_size=inf`` a step is a step of the power method:

        u = T_q(A v),    v = T_{p*}(A^T u).

    With a finite step size it is projected gradient ascent on the sphere:

        v = Proj(v + step_size A^T u)    onto    ||v||_p = 1.

    The power method never lowers ``||A v||_q``. For p = q = 2 almost every start leads
    to the global maximum. For other exponents the method may end at a local maximum
    (for p = 1 or q = inf after very few steps), so use several restarts.

    Each step costs one product with A and one with A^T. The value and the residual
    cost one more of each.

    Args:
      linear_map: B maps.
      p: exponent of the input norm, in [1, inf].
      q: exponent of the output norm, in [1, inf].
      num_steps: number of steps, at least 0; the largest number with a tolerance.
      tolerance: a positive number; the method stops when the residual of every example
        is at most this. With None it takes ``num_steps`` steps. A tolerance forbids
        reverse-mode differentiation.
      step_size: inf for the power method, or a positive step.
      num_restarts: number of starts, at least 1; the best value of each example is
        kept.
      init: ``(B, *in_shape)``, the first start, normalised here; random if None. An
        example without a direction (zero or not finite) starts from equal entries.
      key: typed key for random starts; may be None if ``init`` is the only start.

    Returns:
      Values, vectors and residuals. A zero map has value 0 and keeps its start. A map
      with NaN has value NaN and finite vectors.

    Raises:
      ValueError: for an argument out of its range, a key that is missing or not typed,
        or an ``init`` of another shape.

    Source: Roth et al. 2020, Eqs. 8-12 and 30-35.

    Example:
      The (inf, 1) norm of a matrix is the largest ``||A s||_1`` over sign vectors s.

      >>> import jax
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from opnorm import linalg
      >>> A = linalg.from_matrix(jnp.array([[1.0, 2.0, 0.0], [0.0, -1.0, 3.0]]))
      >>> found = linalg.operator_norm(
      ...     A, p=jnp.inf, q=1, num_restarts=4, key=jax.random.key(0)
      ... )
      >>> print(np.asarray(found.value).round(4), abs(found.right))
      [7.] [[1. 1. 1.]]
    """
    p, q = norms.check_exponent("p", p), norms.check_exponent("q", q)
    num_steps, num_restarts = check_options(
        num_steps, tolerance, step_size, num_restarts
    )
    if key is not None:
        checks.check_key(key)
    shape = (linear_map.batch_size, *linear_map.in_shape)
    if init is not None and init.shape != shape:
        raise ValueError(f"init has shape {init.shape}; it must be {shape}.")
    if key is None and (init is None or num_restarts > 1):
        raise ValueError(
            "key is None; random starts need a key, such as jax.random.key(0)."
        )
    like = jnp.zeros(shape, linear_map.dtype)
    given = like if init is None else _unit(jnp.asarray(init, like.dtype), p)

    def start(restart: int | jax.Array) -> jax.Array:
        if key is None:
            return given
        drawn = sampling.sample_sphere(jax.random.fold_in(key, restart), like, p)
        return drawn if init is None else jnp.where(restart == 0, given, drawn)

    def one(restart: int | jax.Array) -> OperatorNorm:
        v = linear_map.spread(start(restart))
        return _ascend(linear_map, v, p, q, num_steps, tolerance, step_size)

    best = one(0)
    if num_restarts == 1:
        return best

    def body(i: jax.Array, best: OperatorNorm) -> OperatorNorm:
        return _better(best, one(i + 1))

    return loops.fori_loop(num_restarts - 1, body, best)


def check_options(
    num_steps: int,
    tolerance: float | None,
    step_size: float | jax.Array,
    num_restarts: int,
) -> tuple[int, int]:
    """Returns num_steps and num_restarts as ints.

    Raises:
      ValueError: for iteration options out of their range.
    """
    num_steps = checks.check_count("num_steps", num_steps, 0)
    krylov.check_tolerance(tolerance)
    norms.check_length("step_size", step_size, positive=True)
    return num_steps, checks.check_count("num_restarts", num_restarts, 1)


def evaluate(
    linear_map: LinearMap, right: jax.Array, p: float, q: float
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Computes ``(value, left, A^T left, residual)`` at given unit vectors."""
    image = linear_map.matvec(right)
    left = norms.dual_map(image, q)
    pulled = linear_map.rmatvec(left)
    value = norms.norm(image, q)
    bound = norms.norm(pulled, norms.conjugate_exponent(p))
    gap = jnp.maximum(bound - value, 0.0)
    residual = gap / jnp.where(bound > 0, bound, 1.0)
    return value, left, pulled, residual


def _ascend(
    linear_map: LinearMap,
    v: jax.Array,
    p: float,
    q: float,
    num_steps: int,
    tolerance: float | None,
    step_size: float | jax.Array,
) -> OperatorNorm:
    power = not isinstance(step_size, jax.core.Tracer) and step_size == math.inf

    def advance(v: jax.Array, pulled: jax.Array) -> jax.Array:
        if power:
            moved = norms.dual_map(pulled, norms.conjugate_exponent(p))
        else:
            moved = projections.project_sphere(v + step_size * pulled, p, 1.0)
        # A product that is zero or overflows has no direction.
        largest = norms.norm(pulled, math.inf)
        alive = (largest > 0) & jnp.isfinite(largest)
        return jnp.where(_column(alive, v), moved.astype(v.dtype), v)

    if tolerance is None:

        def step(_: jax.Array, v: jax.Array) -> jax.Array:
            pulled = linear_map.rmatvec(norms.dual_map(linear_map.matvec(v), q))
            return advance(v, pulled)

        v = loops.fori_loop(num_steps, step, v)
        value, left, _, residual = evaluate(linear_map, v, p, q)
        return OperatorNorm(value, v, left, residual, jnp.int32(num_steps))

    def unfinished(carry: tuple[OperatorNorm, jax.Array]) -> jax.Array:
        found, _ = carry
        return (found.num_steps < num_steps) & jnp.any(found.residual > tolerance)

    def refine(
        carry: tuple[OperatorNorm, jax.Array],
    ) -> tuple[OperatorNorm, jax.Array]:
        found, pulled = carry
        return _state(
            linear_map, advance(found.right, pulled), p, q, found.num_steps + 1
        )

    first = _state(linear_map, v, p, q, jnp.int32(0))
    found, _ = loops.while_loop(unfinished, refine, first)
    return found


def _state(
    linear_map: LinearMap, v: jax.Array, p: float, q: float, step: jax.Array
) -> tuple[OperatorNorm, jax.Array]:
    value, left, pulled, residual = evaluate(linear_map, v, p, q)
    return OperatorNorm(value, v, left, residual, step), pulled


def _better(first: OperatorNorm, second: OperatorNorm) -> OperatorNorm:
    """The better result of each example; numbers of steps are added."""
    wins = second.value > first.value

    def pick(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(_column(wins, a), b, a)

    return OperatorNorm(
        pick(first.value, second.value),
        pick(first.right, second.right),
        pick(first.left, second.left),
        pick(first.residual, second.residual),
        first.num_steps + second.num_steps,
    )


def _unit(v: jax.Array, p: float) -> jax.Array:
    length = norms.norm(v, p)
    usable = jnp.isfinite(length) & (length >= smallest_normal(length.dtype))
    # A start of zero would stay zero, and its value would be 0.
    v = jnp.where(_column(usable, v), v, 1.0)
    return (v / _column(norms.norm(v, p), v)).astype(v.dtype)


def _column(values: jax.Array, like: jax.Array) -> jax.Array:
    return values.reshape(values.shape + (1,) * (like.ndim - 1))
