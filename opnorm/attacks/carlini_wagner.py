"""Carlini and Wagner's L2 attack, with its search for the constant."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from opnorm import linalg
from opnorm.attacks import box, checks, losses, parts, registry
from opnorm.attacks.attack import Attack
from opnorm.attacks.checks import Bounds
from opnorm.attacks.parts import Nearest, like
from opnorm.attacks.stage import Problem, Stage
from opnorm.linalg import BatchFunction

# The inputs are pulled this far off the faces of the box, where tanh has no inverse.
_INSIDE = 0.999999
# An example gives up a constant when its loss falls by less than this part.
_PROGRESS = 0.9999
# From so many searches on, the last one is spent on the best constant known.
_REPEAT_FROM = 10


@registry.register
def carlini_wagner(
    *,
    num_steps: int = 1000,
    num_searches: int = 9,
    learning_rate: float = 0.01,
    initial_constant: float = 1e-3,
    confidence: float = 0.0,
    abort_early: bool = True,
    targeted: bool = False,
    bounds: Bounds = (0.0, 1.0),
) -> Attack:
    """Returns Carlini and Wagner's attack for the nearest point in L2.

    Adam minimises ``||z - x||_2^2 + c max(0, z_y - max_{i != y} z_i + confidence)``
    over ``z = middle + half width * tanh(w)``, so that z stays in the box, or over z
    itself in entries without both bounds. c is found
    per example: ten times larger until a search succeeds, then by bisection. Every
    example has its own Adam, gives up a constant by itself, and then goes on to its
    next one at once, so that examples end at different steps. A step costs one forward
    and one backward pass. For examples without a point that succeeds in the end,
    a walk to the corners of the box is tried.

    Args:
      num_steps: steps for each constant, at least 1; published results use 10,000.
      num_searches: constants tried, at least 1. From 10 on the last one repeats the
        smallest that succeeded.
      learning_rate: of Adam, positive.
      initial_constant: first c, positive.
      confidence: margin of the logits that a point must reach, at least 0. An example
        that is misclassified (or at its target) by less is attacked like any other.
      abort_early: whether to give up a constant when a tenth of the steps lowers the
        loss by less than 1e-4 of it.
      targeted: reach the labels instead of leaving them.
      bounds: box (low, high), for all entries or for each, or None.

    Raises:
      ValueError: for an option out of range; when applied, as :class:`Attack`.

    Source: Carlini & Wagner 2017, section V (f_6) and VI.

    Example:
      A linear network gives the larger coordinate; the nearest point of the
      other class is at distance 0.2 / sqrt(2).

      >>> import jax.numpy as jnp
      >>> from opnorm import attacks
      >>> x, labels = jnp.array([[0.4, 0.6]]), jnp.array([1])
      >>> attack = attacks.carlini_wagner(num_steps=20, num_searches=4)
      >>> found = attack.run(lambda x: x, x, labels)
      >>> found.success
      Array([ True], dtype=bool)
      >>> round(float(found.distance[0]), 3)
      0.142
    """
    linalg.check_count("num_steps", num_steps, 1)
    linalg.check_count("num_searches", num_searches, 1)
    for name, value in (
        ("learning_rate", learning_rate),
        ("initial_constant", initial_constant),
    ):
        linalg.check_length(name, value, positive=True)
    linalg.check_length("confidence", confidence)
    bounds = checks.check_bounds(bounds)
    options = _Options(
        num_steps=num_steps,
        num_searches=num_searches,
        optimizer=optax.adam(learning_rate),
        initial_constant=initial_constant,
        confidence=confidence,
        abort_early=abort_early,
        targeted=targeted,
        bounds=bounds,
    )
    stage = Stage(
        name="carlini_wagner",
        num_steps=num_searches * num_steps + box.walk_steps(bounds),
        bounds=bounds,
        init=functools.partial(_init, options),
        step=functools.partial(_step, options),
        finish=lambda problem, state: state.nearest.point,
        done=lambda state: state.done,
        targeted=targeted,
        confidence=confidence,
    )
    return Attack(name=stage.name, p=2.0, stages=(stage,), budget=False)


class _Options(NamedTuple):
    """The options of :func:`carlini_wagner`."""

    num_steps: int
    num_searches: int
    optimizer: optax.GradientTransformation
    initial_constant: float
    confidence: float
    abort_early: bool
    targeted: bool
    bounds: Bounds


class _Search(NamedTuple):
    """The search at one constant, one row for each example.

    Attributes:
      shift: ``(B, ...)``, w less its value at x.
      adam: state of the optimiser.
      constant: ``(B,)``, c.
      low: ``(B,)``, the largest constant that has failed, or 0.
      high: ``(B,)``, the smallest constant that has succeeded, or inf.
      step: ``(B,)`` int32, steps at this constant.
      number: ``(B,)`` int32, constants before this one.
      succeeded: ``(B,)`` bool, whether a point has succeeded at this constant.
      checked: ``(B,)``, the loss at the last check for progress, or inf.
    """

    shift: jax.Array
    adam: optax.OptState
    constant: jax.Array
    low: jax.Array
    high: jax.Array
    step: jax.Array
    number: jax.Array
    succeeded: jax.Array
    checked: jax.Array


class _State(NamedTuple):
    search: _Search
    nearest: Nearest
    walk: box.Walk
    done: jax.Array


def _init(options: _Options, f: BatchFunction, problem: Problem) -> _State:
    x, labels = problem.x, problem.labels
    logits = f(x)
    targeted = options.targeted
    at_input = parts.decided(logits, labels, targeted, options.confidence)
    rounds = 1 if targeted else logits.shape[1]
    zero = jnp.zeros_like(labels, dtype=parts.wide(x))
    shift = jnp.zeros_like(x, dtype=parts.wide(x))
    search = _Search(
        shift=shift,
        adam=jax.vmap(options.optimizer.init)(shift),
        constant=zero + options.initial_constant,
        low=zero,
        high=zero + jnp.inf,
        step=jnp.zeros_like(labels, dtype=jnp.int32),
        number=jnp.zeros_like(labels, dtype=jnp.int32),
        succeeded=jnp.zeros_like(labels, dtype=bool),
        checked=zero + jnp.inf,
    )
    nearest = parts.begin_nearest(x, at_input)
    walk = box.begin_walk(x, logits, labels, rounds)
    return _State(search, nearest, walk, at_input)


def _step(
    options: _Options,
    f: BatchFunction,
    problem: Problem,
    state: _State,
    i: jax.Array,
) -> _State:
    del i
    x, labels, bounds = problem.x, problem.labels, options.bounds
    search, walk = state.search, state.walk
    targeted, confidence = options.targeted, options.confidence
    start = _point(bounds, x, jnp.zeros_like(search.shift))
    walks = search.number >= options.num_searches

    def point_at(shift: jax.Array) -> jax.Array:
        return parts.clip(_point(bounds, x, shift), bounds).astype(x.dtype)

    def total(z: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        logits = f(z)
        margin = losses.margin(logits, labels)
        short = (margin if targeted else -margin) + confidence
        away = z - start.astype(x.dtype)
        length = linalg.inner(away, away)
        values = length + search.constant * jnp.maximum(short, 0.0)
        lead = box.walk_objective(walk, logits, labels, targeted)
        values = jnp.where(walks, -lead, values)
        return jnp.sum(values), (values, logits)

    z, pull_back = jax.vjp(point_at, search.shift)
    z = jnp.where(like(walks, z), walk.point, z)
    slope, (values, logits) = jax.grad(total, has_aux=True)(z)
    slope = parts.finite_rows(slope)
    gradient = parts.finite_rows(pull_back(slope)[0])
    hit = parts.decided(logits, labels, targeted, confidence)
    nearest = parts.keep_nearest(state.nearest, z, linalg.norm(z - x, 2.0), hit)
    search, over = _advance(options, search, gradient, values, hit)
    walk, ended = box.advance_walk(
        walk, walks, x, nearest.point, nearest.found, hit, -slope, bounds
    )
    over &= ~walks
    following = _next_search(options, search)
    finished = over & (following.number >= options.num_searches) & nearest.found
    return _State(
        parts.select(over, following, search),
        nearest,
        walk,
        state.done | ended | finished,
    )


def _point(bounds: Bounds, x: jax.Array, shift: jax.Array) -> jax.Array:
    """Returns ``middle + half width * tanh(w)``, where w at x is increased by a shift.

    An entry without both bounds is ``x + shift``.
    """
    wide = x.astype(shift.dtype)
    if bounds is None:
        return wide + shift
    low, high = bounds
    boxed = np.isfinite(low) & np.isfinite(high)
    if not np.all(boxed):
        low, high = np.where(boxed, low, -1.0), np.where(boxed, high, 1.0)
    least, most = parts.ends((low, high), wide)
    middle, half = (least + most) / 2, (most - least) / 2
    # An entry whose bounds are equal has no width to divide by.
    width = parts.positive(half) if isinstance(half, jax.Array) else half
    origin = jnp.arctanh(jnp.clip((wide - middle) / width, -1, 1) * _INSIDE)
    inside: jax.Array = middle + half * jnp.tanh(origin + shift)
    if np.all(boxed):
        return inside
    return jnp.where(parts.for_batch(np.asarray(boxed), x), inside, wide + shift)


def _advance(
    options: _Options,
    search: _Search,
    gradient: jax.Array,
    values: jax.Array,
    hit: jax.Array,
) -> tuple[_Search, jax.Array]:
    """Takes a step of Adam.

    Returns:
      The search, and whether the example gives up the constant, ``(B,)`` bool.
    """
    # Optax multiplies by powers whose exponents are integers.
    with jax.numpy_dtype_promotion("standard"):
        update, adam = jax.vmap(options.optimizer.update)(gradient, search.adam)
    search = search._replace(
        shift=search.shift + update,
        adam=adam,
        step=search.step + 1,
        succeeded=search.succeeded | hit,
    )
    over = search.step >= options.num_steps
    if options.abort_early:
        check = search.step % max(options.num_steps // 10, 1) == 0
        stuck = ~(values <= _PROGRESS * search.checked)
        over |= check & stuck
        search = search._replace(checked=jnp.where(check, values, search.checked))
    return search, over


def _next_search(options: _Options, search: _Search) -> _Search:
    """Chooses the next constant, and returns the search that begins there."""
    constant, succeeded = search.constant, search.succeeded
    high = jnp.where(succeeded, constant, jnp.inf)
    high = jnp.minimum(high, search.high)
    low = jnp.where(succeeded, search.low, jnp.maximum(search.low, constant))
    known = jnp.isfinite(high)
    between = 0.5 * (low + jnp.where(known, high, low))
    chosen = jnp.where(known, between, 10 * constant)
    number = search.number + 1
    if options.num_searches >= _REPEAT_FROM:
        chosen = jnp.where(known & (number == options.num_searches - 1), high, chosen)
    shift = jnp.zeros_like(search.shift)
    return _Search(
        shift=shift,
        adam=jax.vmap(options.optimizer.init)(shift),
        constant=chosen,
        low=low,
        high=high,
        step=jnp.zeros_like(search.step),
        number=number,
        succeeded=jnp.zeros_like(succeeded),
        checked=jnp.full_like(search.checked, jnp.inf),
    )
