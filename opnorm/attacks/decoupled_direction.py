"""attacks: nearest points by steps of decoupled direction and length: DDN and FMN."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from opnorm import linalg
from opnorm.attacks import attack as attack_lib
from opnorm.attacks import checks, losses
from opnorm.attacks.attack import Attack, BatchFunction, Problem, Stage, like
from opnorm.attacks.checks import Bounds

# An estimate that is exact ends on the boundary itself, where nothing is decided.
_BEYOND = 1.01


def decoupled_direction(
    *,
    num_steps: int = 100,
    gamma: float = 0.05,
    initial_epsilon: float = 1.0,
    targeted: bool = False,
    bounds: Bounds = (0.0, 1.0),
) -> Attack:
    """Returns the decoupled direction and norm attack (DDN): the nearest point in L2.

    A step of length ``a_i``, falling from 1 to 0.01 along a cosine, goes along the
    normalised gradient of the cross-entropy; the perturbation is then rescaled to
    length epsilon, which shrinks by ``1 - gamma`` after a misclassified point and grows
    by ``1 + gamma`` after another. Where the gradient is zero the direction is random,
    if there is a key. A step costs one forward and one backward pass.

    Args:
      num_steps: steps, at least 1; the last point is judged too.
      gamma: change of the length, in (0, 1).
      initial_epsilon: first length, positive.
      targeted: reach the labels instead of leaving them.
      bounds: box (low, high).

    Raises:
      ValueError: for an option out of range; when applied, as :class:`Attack`.

    Source: Rony et al. 2019, Algorithm 1, without its rounding to 256 levels.
    """
    linalg.check_count("num_steps", num_steps, 1)
    _check_fraction("gamma", gamma)
    linalg.check_length("initial_epsilon", initial_epsilon, positive=True)
    checks.check_box(bounds)

    def init(f: BatchFunction, problem: Problem) -> dict[str, jax.Array]:
        state = _initial_state(f, problem, targeted, bounds)
        largest = _largest(problem.x, 2.0, bounds)
        epsilon = jnp.minimum(initial_epsilon, largest).astype(largest.dtype)
        return {**state, "epsilon": epsilon}

    def step(
        f: BatchFunction, problem: Problem, state: dict[str, jax.Array], i: jax.Array
    ) -> dict[str, jax.Array]:
        x, delta = problem.x, state["delta"]

        def objective(logits: jax.Array) -> jax.Array:
            value = losses.cross_entropy(logits, problem.labels)
            return -value if targeted else value

        point = attack_lib.clip(x + delta, bounds)
        _, logits, gradient = attack_lib.value_and_gradient(f, objective, point)
        hit = attack_lib.decided(logits, problem.labels, targeted)
        new = _record(problem, state, point, hit, 2.0)
        direction = linalg.dual_map(gradient, 2.0)
        if problem.keys is not None:
            keys = attack_lib.fold_in(problem.keys, i)
            random = linalg.sample_sphere(keys, x, 2.0)
            zero = linalg.norm(gradient, math.inf) == 0
            direction = jnp.where(like(zero, x), random, direction)
        size = _cosine(i, num_steps, 1.0, 0.01).astype(x.dtype)
        moved = delta + size * direction
        epsilon = state["epsilon"] * jnp.where(hit, 1 - gamma, 1 + gamma)
        epsilon = jnp.minimum(epsilon, _largest(x, 2.0, bounds))
        length = linalg.norm(moved, 2.0)
        moved = linalg.scale(moved, epsilon / jnp.where(length > 0, length, 1.0))
        moved = attack_lib.clip(x + moved, bounds) - x
        return {**new, "delta": moved, "epsilon": epsilon}

    return _attack("decoupled_direction", 2.0, num_steps, init, step, targeted, bounds)


def fast_minimum_norm(
    *,
    p: float,
    num_steps: int = 100,
    gamma: float = 0.05,
    targeted: bool = False,
    bounds: Bounds = (0.0, 1.0),
) -> Attack:
    """Returns the fast minimum-norm attack (FMN) for the nearest point in Lp.

    Steps go along the L2-normalised gradient of the margin, with lengths that fall from
    1 to 0.01 along a cosine, and end with a projection on the Lp ball of radius
    epsilon. Before the first misclassified point, epsilon is the distance of the
    linearised boundary and a hundredth of what is left; then it shrinks by ``1 -
    gamma`` after a misclassified point, at least to the smallest distance so far, and
    grows by ``1 + gamma`` after another; gamma falls to a fiftieth along a cosine. A
    step costs one forward and one backward pass.

    Args:
      p: exponent of the norm: 1, 2 or inf.
      num_steps: steps, at least 1; the last point is judged too.
      gamma: first change of the radius, in (0, 1).
      targeted: reach the labels instead of leaving them.
      bounds: box (low, high).

    Raises:
      ValueError: for an option out of range; when applied, as :class:`Attack`.

    Source: Pintor et al. 2021, Algorithm 1.
    """
    p = checks.check_norm(p, (1.0, 2.0, math.inf))
    linalg.check_count("num_steps", num_steps, 1)
    _check_fraction("gamma", gamma)
    checks.check_box(bounds)
    conjugate = linalg.conjugate_exponent(p)

    def init(f: BatchFunction, problem: Problem) -> dict[str, jax.Array]:
        state = _initial_state(f, problem, targeted, bounds)
        return {**state, "epsilon": jnp.full_like(state["distance"], jnp.inf)}

    def step(
        f: BatchFunction, problem: Problem, state: dict[str, jax.Array], i: jax.Array
    ) -> dict[str, jax.Array]:
        x, delta = problem.x, state["delta"]

        def objective(logits: jax.Array) -> jax.Array:
            value = losses.margin(logits, problem.labels)
            return -value if targeted else value

        point = attack_lib.clip(x + delta, bounds)
        value, logits, gradient = attack_lib.value_and_gradient(f, objective, point)
        hit = attack_lib.decided(logits, problem.labels, targeted)
        new = _record(problem, state, point, hit, p)
        slope = linalg.norm(gradient, conjugate)
        gap = jnp.where(jnp.isfinite(value), jnp.abs(value), 0.0)
        ahead = _BEYOND * gap / jnp.where(slope > 0, slope, 1.0)
        linear = linalg.norm(delta, p) + jnp.where(slope > 0, ahead, 0.0)
        change = _cosine(i, num_steps, gamma, gamma / 50)
        shrunk = jnp.minimum(state["epsilon"] * (1 - change), new["distance"])
        searched = jnp.isfinite(state["distance"])
        grown = jnp.where(searched, state["epsilon"] * (1 + change), linear)
        epsilon = jnp.where(hit, shrunk, grown)
        epsilon = jnp.minimum(epsilon, _largest(x, p, bounds)).astype(slope.dtype)
        size = _cosine(i, num_steps, 1.0, 0.01).astype(x.dtype)
        moved = delta + size * linalg.dual_map(gradient, 2.0)
        moved = attack_lib.confine(x, moved, p, epsilon, bounds)
        return {**new, "delta": moved, "epsilon": epsilon}

    return _attack("fast_minimum_norm", p, num_steps, init, step, targeted, bounds)


def _attack(
    name: str,
    p: float,
    num_steps: int,
    init: Any,
    step: Any,
    targeted: bool,
    bounds: Bounds,
) -> Attack:
    stage = Stage(
        name=name,
        num_steps=num_steps + 1,
        bounds=bounds,
        init=init,
        step=step,
        finish=lambda problem, state: state["best"],
        done=lambda state: state["done"],
        targeted=targeted,
        takes_start=True,
    )
    return Attack(name=name, p=p, stages=(stage,), budget=False)


def _initial_state(
    f: BatchFunction, problem: Problem, targeted: bool, bounds: Bounds
) -> dict[str, jax.Array]:
    x = problem.x
    start = x if problem.start is None else attack_lib.clip(problem.start, bounds)
    at_input = attack_lib.decided(f(x), problem.labels, targeted)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return {
        "delta": start - x,
        "best": x,
        "distance": jnp.where(at_input, 0.0, jnp.inf).astype(wide),
        "done": at_input,
    }


def _record(
    problem: Problem,
    state: dict[str, jax.Array],
    point: jax.Array,
    hit: jax.Array,
    p: float,
) -> dict[str, jax.Array]:
    """The state with a point kept where it is the nearest that succeeds."""
    distance = linalg.norm(point - problem.x, p)
    nearer = hit & (distance < state["distance"])
    return {
        **state,
        "best": jnp.where(like(nearer, point), point, state["best"]),
        "distance": jnp.where(nearer, distance, state["distance"]),
    }


def _largest(x: jax.Array, p: float, bounds: Bounds) -> jax.Array:
    """The length of the longest perturbation inside the box."""
    assert bounds is not None
    low, high = bounds
    return linalg.norm(jnp.maximum(x - low, high - x), p)


def _cosine(i: jax.Array, num_steps: int, first: float, last: float) -> jax.Array:
    """From first to last along half a cosine."""
    return last + (first - last) * (1 + jnp.cos(math.pi * i / num_steps)) / 2


def _check_fraction(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} is {value}; it must be in (0, 1).")
