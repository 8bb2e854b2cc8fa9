"""LogBarrier, which shortens a perturbation from inside the wrong decision."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from opnorm import linalg
from opnorm.attacks import box, checks, criteria, parts, registry
from opnorm.attacks.attack import Attack
from opnorm.attacks.checks import Bounds
from opnorm.attacks.parts import Nearest, like
from opnorm.attacks.stage import Problem, Stage, check_keys
from opnorm.linalg import BatchFunction
from opnorm.linalg.dtypes import at_least_single

# A move shorter than this ends a round, and the noise that a start is looked for with
# grows by this factor a try, from this size on: the constants of the paper's code.
_STILL = 1e-6
_SMALLEST_NOISE = 0.01
_GROWTH = 1.01


@registry.register
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
    targeted: bool = False,
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
        the corners of the box is tried, if there is a box, before an example is given
        up.
      targeted: reach the labels instead of leaving them.
      bounds: box (low, high) that points are clipped to, for all entries or for each,
        or None.

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
    bounds = checks.check_bounds(bounds)

    options = _Options(
        p=p,
        num_outer=num_outer,
        num_inner=num_inner,
        step_size=step_size,
        initial_weight=initial_weight,
        decay=decay,
        backtrack=backtrack,
        temperature=temperature,
        final_bisections=final_bisections,
        num_tries=num_tries,
        bounds=bounds,
    )
    num_steps = num_tries + num_outer * num_inner + final_bisections
    stage = Stage(
        name="log_barrier",
        num_steps=num_steps + box.walk_steps(bounds),
        bounds=bounds,
        init=functools.partial(_init, options),
        step=functools.partial(_step, options),
        finish=lambda problem, state: state.nearest.point,
        done=lambda state: state.done,
        check=check_keys,
        takes_start=True,
    )
    if targeted:
        stage = criteria.reaching(stage)
    return Attack(name="log_barrier", p=p, stages=(stage,), budget=False)


class _Options(NamedTuple):
    """The options of :func:`log_barrier`."""

    p: float
    num_outer: int
    num_inner: int
    step_size: float
    initial_weight: float
    decay: float
    backtrack: float
    temperature: float
    final_bisections: int
    num_tries: int
    bounds: Bounds


class _Counts(NamedTuple):
    """The progress of a search, each ``(B,)`` int32.

    Attributes:
      tries: points tried before the first misclassified one.
      outer: rounds that are over.
      inner: steps of the present round.
      bisections: halvings after the last round.
    """

    tries: jax.Array
    outer: jax.Array
    inner: jax.Array
    bisections: jax.Array


class _State(NamedTuple):
    """The search, one row for each example.

    Attributes:
      point: ``(B, ...)``, the point to evaluate next.
      feasible: ``(B, ...)``, the last misclassified point.
      right: ``(B, ...)``, the nearest point of the bisection that is classified
        correctly.
      nearest: the nearest misclassified point.
      counts: the progress.
      walk: the walk to the corners.
      done: ``(B,)`` bool.
    """

    point: jax.Array
    feasible: jax.Array
    right: jax.Array
    nearest: Nearest
    counts: _Counts
    walk: box.Walk
    done: jax.Array


def _init(options: _Options, f: BatchFunction, problem: Problem) -> _State:
    x, labels = problem.x, problem.labels
    logits = f(x)
    wrong = parts.decided(logits, labels)
    zero = jnp.zeros_like(labels, dtype=jnp.int32)
    return _State(
        point=_attempt(options, problem, zero),
        feasible=x,
        right=x,
        nearest=parts.begin_nearest(x, wrong),
        counts=_Counts(zero, zero, zero, zero),
        walk=box.begin_walk(x, logits, labels),
        done=wrong,
    )


def _attempt(options: _Options, problem: Problem, tries: jax.Array) -> jax.Array:
    """Draws a point that may be misclassified, with more noise in each try."""
    assert problem.keys is not None
    x = problem.x

    def draw(key: jax.Array) -> jax.Array:
        return linalg.draw(jax.random.normal, key, x.shape[1:], x.dtype)

    noise = jax.vmap(draw)(parts.fold_in(problem.keys, tries))
    size = _SMALLEST_NOISE * _GROWTH ** tries.astype(jnp.float32)
    point = x + linalg.scale(noise, size)
    if problem.start is not None:
        point = parts.select(tries == 0, problem.start, point)
    return parts.clip(point, options.bounds)


def _step(
    options: _Options,
    f: BatchFunction,
    problem: Problem,
    state: _State,
    i: jax.Array,
) -> _State:
    del i
    x, labels, point, walk = problem.x, problem.labels, state.point, state.walk
    p, bounds, tried = options.p, options.bounds, state.counts.tries
    walks = jnp.isinf(state.nearest.distance) & (tried >= options.num_tries)

    def objective(logits: jax.Array) -> jax.Array:
        lead = box.walk_objective(walk, logits, labels)
        return jnp.where(walks, lead, _barrier(logits, labels))

    _, logits, gradient = parts.value_and_gradient(f, objective, point)
    distance = linalg.norm(point - x, p)
    hit = parts.decided(logits, labels) & jnp.isfinite(distance)
    nearest = parts.keep_nearest(state.nearest, point, distance, hit)
    seeks = jnp.isinf(nearest.distance)
    walk, ended = box.advance_walk(
        walk, walks, x, nearest.point, ~seeks, hit, gradient, bounds
    )
    gradient = jnp.where(like(walks, x), 0.0, gradient)
    moved = _descend(options, x, state, gradient)
    still = hit & (linalg.norm(moved - point, p) < _STILL)
    counts = _count(options, state.counts, seeks, still)

    ends = ~seeks & (state.counts.outer == options.num_outer)
    right = parts.select(ends & ~hit, point, state.right)
    halved = right + (nearest.point - right) / 2
    back = point + options.backtrack * (state.feasible - point)
    following = parts.select(hit, moved, back)
    following = parts.select(counts.outer == options.num_outer, halved, following)
    exhausted = counts.tries >= options.num_tries
    attempt = _attempt(options, problem, counts.tries)
    sought = parts.select(exhausted, walk.point, attempt)
    following = parts.select(seeks, sought, following)

    given_up = seeks & (ended if box.walk_steps(bounds) else exhausted)
    finished = ~seeks & (counts.outer == options.num_outer)
    finished &= counts.bisections >= options.final_bisections
    return _State(
        point=parts.clip(following.astype(x.dtype), bounds),
        feasible=parts.select(hit, point, state.feasible),
        right=right,
        nearest=nearest,
        counts=counts,
        walk=walk,
        done=given_up | finished,
    )


def _descend(
    options: _Options, x: jax.Array, state: _State, gradient: jax.Array
) -> jax.Array:
    """Takes a step along the length and the barrier, whose gradient is given."""
    point, distance = state.point, state.nearest.distance
    weight = options.initial_weight * options.decay ** state.counts.outer.astype(
        distance.dtype
    )
    force = _pull(point - x, options.p, options.temperature)
    force += linalg.scale(gradient, weight)
    return parts.clip(point - options.step_size * force, options.bounds).astype(x.dtype)


def _count(
    options: _Options, counts: _Counts, seeks: jax.Array, still: jax.Array
) -> _Counts:
    """Counts the step that was just taken.

    Args:
      options: of the attack.
      counts: before the step.
      seeks: ``(B,)`` bool, whether no misclassified point is known yet.
      still: ``(B,)`` bool, whether the point has hardly moved.
    """
    ends = ~seeks & (counts.outer == options.num_outer)
    descends = ~seeks & ~ends
    inner = parts.count(counts.inner, descends)
    over = descends & (still | (inner >= options.num_inner))
    return _Counts(
        tries=parts.count(counts.tries, seeks),
        outer=parts.count(counts.outer, over),
        inner=jnp.where(over, 0, inner),
        bisections=parts.count(counts.bisections, ends),
    )


def _barrier(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Computes ``-log(prob_c - prob_y)``, c the likeliest class but y, ``(B,)``.

    As ``logsumexp(z) - z_c - log(1 - exp(z_y - z_c))``, in which no digits cancel near
    the boundary; zero, with gradient zero, on the other side of it.
    """
    logits = logits.astype(at_least_single(logits.dtype))
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
    flat = flat.astype(at_least_single(flat.dtype))
    size = jnp.abs(flat)
    share = jax.nn.softmax(temperature * size, axis=1)
    value = jnp.sum(share * size, axis=1, keepdims=True)
    slope = jnp.sign(flat) * share * (1 + temperature * (size - value))
    return slope.reshape(delta.shape).astype(delta.dtype)


def _check_between(name: str, value: float, high: float) -> None:
    if isinstance(value, bool) or not 0 < value < high:
        raise ValueError(f"{name} is {value}; it must be in (0, {high:g}).")
