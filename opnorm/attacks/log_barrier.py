"""attacks: LogBarrier, which shortens a perturbation from inside the wrong decision."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from opnorm import linalg
from opnorm.attacks import attack as attack_lib
from opnorm.attacks import box, checks
from opnorm.attacks.attack import Attack, BatchFunction, Problem, Stage, like
from opnorm.attacks.checks import Bounds

# A move shorter than this ends a round, and the noise that a start is looked for with
# grows by this factor a try, from this size on: the constants of the paper's code.
_STILL = 1e-6
_SMALLEST_NOISE = 0.01
_GROWTH = 1.01


def log_barrier(
    *,
    p: float = 2.0,
    num_outer: int = 15,
    num_inner: int = 500,
    step_size: float = 0.01,
    initial_weight: float = 0.1,
    decay: float = 0.75,
    backtrack: float = 0.5,
    temperature: float = 500.0,
    final_bisections: int = 10,
    num_tries: int = 1000,
    bounds: Bounds = (0.0, 1.0),
) -> Attack:
    """Returns LogBarrier: descent of the length plus a barrier that keeps it wrong.

    From a misclassified point it descends ``h(z - x) - weight log(prob_c - prob_y)``, c
    the likeliest class but the label y, with ``h(d) = ||d||_2^2 / 2`` for p = 2, and
    for p = inf ``h(d) = sum_i softmax(temperature |d|)_i |d_i|``. The weights are
    ``initial_weight decay^k``, k = 0, ..., num_outer - 1. A point that is classified
    correctly goes back towards the last that is not. The nearest misclassified point is
    kept.

    The barrier holds the points off the boundary: on an affine network of margin m and
    gradient w, of least distance ``t* = m / ||w||_2``, at the t that solves
    ``t sinh(||w||_2 t - m) = weight ||w||_2``. For small weights that is
    ``t (t - t*) = weight``, which is far too long where t* is small. So the way from x
    to the point found is halved ``final_bisections`` times in the end.

    For p = inf a step of the descent shortens only the few largest entries, by
    ``step_size`` together: with many pixels the noise that it begins with is not used
    up, and it needs a ``start`` that is good already.

    A step costs one forward and one backward pass, and evaluates one point, a try, an
    iterate, one on the way back or a halving. Points on the way back count as inner
    steps. A round ends early when its point stands still.

    Args:
      p: exponent of the norm: 2 or inf.
      num_outer: rounds of the descent, one for each weight, at least 1.
      num_inner: steps of a round, at least 1.
      step_size: of the descent, positive.
      initial_weight: weight of the barrier in the first round, positive.
      decay: what the weight is multiplied by from round to round, in (0, 1).
      backtrack: part of the way that a point goes back when it is classified correctly,
        in (0, 1).
      temperature: sharpness of h for p = inf, per pixel unit, positive.
      final_bisections: halvings in the end, at least 0.
      num_tries: points tried at first, at least 1: the start, if there is one, then x
        with Gaussian noise of standard deviation ``0.01 1.01^j``. After them a walk to
        the corners of the box (:mod:`opnorm.attacks.box`) is tried, if there is a box,
        before an example is given up.
      bounds: box (low, high) that points are clipped to, or None.

    Raises:
      ValueError: for an option out of range; when applied, as :class:`Attack`.

    Source: Finlay, Pooladian & Oberman 2019, "The LogBarrier adversarial attack",
    Algorithm 1; the bisection is ours.
    """
    p = checks.check_norm(p, (2.0, math.inf))
    linalg.check_count("num_outer", num_outer, 1)
    linalg.check_count("num_inner", num_inner, 1)
    linalg.check_count("final_bisections", final_bisections, 0)
    linalg.check_count("num_tries", num_tries, 1)
    _check_between("step_size", step_size, math.inf)
    _check_between("initial_weight", initial_weight, math.inf)
    _check_between("temperature", temperature, math.inf)
    _check_between("decay", decay, 1.0)
    _check_between("backtrack", backtrack, 1.0)
    checks.check_bounds(bounds)

    def attempt(problem: Problem, tries: jax.Array) -> jax.Array:
        assert problem.keys is not None
        x = problem.x

        def draw(key: jax.Array) -> jax.Array:
            return jax.random.normal(key, x.shape[1:], x.dtype)

        noise = jax.vmap(draw)(attack_lib.fold_in(problem.keys, tries))
        size = _SMALLEST_NOISE * _GROWTH ** tries.astype(jnp.float32)
        point = x + linalg.scale(noise, size)
        if problem.start is not None:
            point = jnp.where(like(tries == 0, x), problem.start, point)
        return attack_lib.clip(point, bounds)

    walk_steps = box.walk_steps(bounds)

    def init(f: BatchFunction, problem: Problem) -> dict[str, Any]:
        x, labels = problem.x, problem.labels
        wide = jnp.promote_types(x.dtype, jnp.float32)
        logits = f(x)
        wrong = attack_lib.decided(logits, labels, False)
        nothing = jnp.zeros_like(labels, dtype=jnp.int32)
        return {
            "point": attempt(problem, nothing),
            "feasible": x,
            "best": x,
            "distance": jnp.where(wrong, 0.0, jnp.inf).astype(wide),
            "right": x,
            "tries": nothing,
            "walk": box.begin_walk(x, logits, labels),
            "outer": nothing,
            "inner": nothing,
            "bisections": nothing,
            "done": wrong,
        }

    def step(
        f: BatchFunction, problem: Problem, state: dict[str, Any], i: jax.Array
    ) -> dict[str, Any]:
        del i
        x, labels, point = problem.x, problem.labels, state["point"]
        walk = state["walk"]
        walks = jnp.isinf(state["distance"]) & (state["tries"] >= num_tries)

        def objective(logits: jax.Array) -> jax.Array:
            lead = box.walk_objective(walk, logits, labels)
            return jnp.where(walks, lead, _barrier(logits, labels))

        _, logits, gradient = attack_lib.value_and_gradient(f, objective, point)
        distance = linalg.norm(point - x, p)
        hit = attack_lib.decided(logits, labels, False) & jnp.isfinite(distance)
        nearer = hit & (distance < state["distance"])
        best = jnp.where(like(nearer, x), point, state["best"])
        distance = jnp.where(nearer, distance, state["distance"])
        seeks = jnp.isinf(distance)
        walk, ended = box.advance_walk(
            walk, walks, x, best, ~seeks, hit, gradient, bounds
        )
        gradient = jnp.where(like(walks, x), 0.0, gradient)
        ends = ~seeks & (state["outer"] == num_outer)
        descends = ~seeks & ~ends

        weight = initial_weight * decay ** state["outer"].astype(distance.dtype)
        force = _pull(point - x, p, temperature) + linalg.scale(gradient, weight)
        moved = attack_lib.clip(point - step_size * force, bounds).astype(x.dtype)
        still = hit & (linalg.norm(moved - point, p) < _STILL)
        back = point + backtrack * (state["feasible"] - point)
        inner = state["inner"] + descends
        over = descends & (still | (inner >= num_inner))
        outer = state["outer"] + over

        bisections = state["bisections"] + ends
        right = jnp.where(like(ends & ~hit, x), point, state["right"])
        halved = right + (best - right) / 2
        tries = state["tries"] + seeks

        following = jnp.where(like(hit, x), moved, back)
        following = jnp.where(like(outer == num_outer, x), halved, following)
        sought = jnp.where(
            like(tries >= num_tries, x), walk["point"], attempt(problem, tries)
        )
        following = jnp.where(like(seeks, x), sought, following)
        given_up = seeks & (ended if walk_steps else tries >= num_tries)
        finished = ~seeks & (outer == num_outer) & (bisections >= final_bisections)
        return {
            "point": attack_lib.clip(following.astype(x.dtype), bounds),
            "feasible": jnp.where(like(hit, x), point, state["feasible"]),
            "best": best,
            "distance": distance,
            "right": right,
            "tries": tries,
            "walk": walk,
            "outer": outer,
            "inner": jnp.where(over, 0, inner),
            "bisections": bisections,
            "done": given_up | finished,
        }

    def finish(problem: Problem, state: dict[str, jax.Array]) -> jax.Array:
        del problem
        return state["best"]

    stage = Stage(
        name="log_barrier",
        num_steps=num_tries + walk_steps + num_outer * num_inner + final_bisections,
        bounds=bounds,
        init=init,
        step=step,
        finish=finish,
        done=lambda state: state["done"],
        check=attack_lib.check_keys,
        takes_start=True,
    )
    return Attack(name="log_barrier", p=p, stages=(stage,), budget=False)


def _barrier(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Computes ``-log(prob_c - prob_y)``, c the likeliest class but y, ``(B,)``.

    As ``logsumexp(z) - z_c - log(1 - exp(z_y - z_c))``, in which no digits cancel near
    the boundary; zero, with gradient zero, on the other side of it.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    chosen = jnp.arange(logits.shape[1])[None] == labels[:, None]
    own = jnp.sum(jnp.where(chosen, logits, 0.0), axis=1)
    other = jnp.max(jnp.where(chosen, -jnp.inf, logits), axis=1)
    ahead = jnp.isfinite(other) & (other > own)
    gap = jnp.where(ahead, other - own, 1.0)
    value = jax.nn.logsumexp(logits, axis=1) - other - jnp.log(-jnp.expm1(-gap))
    return jnp.where(ahead, value, 0.0)


def _pull(delta: jax.Array, p: float, temperature: float) -> jax.Array:
    """The gradient of h, shape of ``delta``."""
    if p == 2:
        return delta
    flat = delta.reshape(len(delta), -1)
    flat = flat.astype(jnp.promote_types(flat.dtype, jnp.float32))
    size = jnp.abs(flat)
    share = jax.nn.softmax(temperature * size, axis=1)
    value = jnp.sum(share * size, axis=1, keepdims=True)
    slope = jnp.sign(flat) * share * (1 + temperature * (size - value))
    return slope.reshape(delta.shape).astype(delta.dtype)


def _check_between(name: str, value: Any, high: float) -> None:
    if isinstance(value, bool) or not 0 < value < high:
        raise ValueError(f"{name} is {value}; it must be in (0, {high:g}).")
