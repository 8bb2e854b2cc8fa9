"""The boundary attack, a random walk that sees nothing but decisions."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from opnorm import linalg
from opnorm.attacks import checks, criteria, parts, registry
from opnorm.attacks.attack import Attack
from opnorm.attacks.checks import Bounds
from opnorm.attacks.parts import Nearest
from opnorm.attacks.stage import Problem, Stage, check_keys
from opnorm.linalg import BatchFunction

_HALVINGS = 10
# Brendel et al. 2018, section 2.3, with the constants of their code: how many of the
# latest tests count, the shares of adversarial ones between which a step is kept, and
# what it is multiplied or divided by.
_PERIOD = 10
_SPHERICAL_TESTS, _SPHERICAL_SHARES = 100, (0.2, 0.5)
_SOURCE_TESTS, _SOURCE_SHARES = 30, (0.1, 0.25)
_ADAPTATION = 1.5
_CONVERGED = 1e-7
# Where there is no box: the first noise that a misclassified point is looked for with,
# and its growth from try to try.
_SMALLEST_NOISE, _GROWTH = 0.01, 1.5
# A step of one would end at x.
_LARGEST_STEP = 0.999


@registry.register
def boundary(
    *,
    p: float = 2.0,
    num_steps: int = 5000,
    spherical_step: float = 0.01,
    source_step: float = 0.01,
    num_tries: int = 50,
    targeted: bool = False,
    bounds: Bounds = (0.0, 1.0),
) -> Attack:
    """Returns the boundary attack, which walks along the boundary by decisions alone.

    It begins at ``start`` where that is misclassified, else at the first misclassified
    of uniform images, and halves the way to x ten times. Entries without both bounds
    begin at x with Gaussian noise, of standard deviation ``0.01 1.5^j`` in try j. Then,
    at distance R of x,
    it draws a Gaussian direction orthogonal to the way to x, of Euclidean length
    ``spherical_step`` times that way's, goes along it to another point of the sphere of
    radius R, and contracts the perturbation there to ``(1 - source_step) R``. If that
    is misclassified, and nearer than all before, it is the next point. For p = inf the
    sphere is a cube's surface: after the same orthogonal step the entries beyond the
    cube are clipped, which may leave the point inside, and the contraction is the same.

    Every tenth time the point on the sphere of radius R is tested too. If more than
    half of the last 100 such tests succeed both steps grow by 1.5, if less than a
    fifth they shrink; the source step alone follows the last 30 tests of the second
    point, with a quarter and a tenth. An example is done when its source step is below
    1e-7.

    A step costs one forward pass: of a try, a halving, a test, or a move. The walk is
    slow: on affine networks 2000 steps end at 1.05 times the least distance (p = 2) and
    1.3 times (p = inf) in 10 dimensions, 5000 at 1.1 and 1.6 times in 192.

    Args:
      p: exponent of the norm: 2 or inf.
      num_steps: forward passes, at least 1; at x there is one more. Those of the
        beginning and of tests are among them.
      spherical_step: first length of the step along the sphere, in units of the
        distance; in (0, 1).
      source_step: first length of the step towards x, in units of the distance; in
        (0, 1).
      num_tries: after how many points without a misclassified one an example is given
        up, at least 1; a start is the first of them. Attacks with gradients then walk
        to corners of the box; here their points can serve as starts.
      targeted: reach the labels instead of leaving them.
      bounds: box (low, high), for all entries or for each, or None.

    Raises:
      ValueError: for an option out of range; when applied, as :class:`Attack`.

    Source: Brendel, Rauber & Bethge 2018, "Decision-based adversarial attacks",
    Algorithm 1. Here every example draws its own directions and adapts its own steps;
    p = inf is ours.
    """
    p = checks.check_norm(p, (2.0, math.inf))
    linalg.check_count("num_steps", num_steps, 1)
    linalg.check_count("num_tries", num_tries, 1)
    _check_share("spherical_step", spherical_step)
    _check_share("source_step", source_step)
    bounds = checks.check_bounds(bounds)
    options = _Options(p, spherical_step, source_step, num_tries, bounds)
    stage = Stage(
        name="boundary",
        num_steps=num_steps,
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
    return Attack(name="boundary", p=p, stages=(stage,), budget=False)


class _Options(NamedTuple):
    """The options of :func:`boundary`."""

    p: float
    spherical_step: float
    source_step: float
    num_tries: int
    bounds: Bounds


class _Tests(NamedTuple):
    """The latest tests of a step size, one row for each example.

    Attributes:
      passed: ``(B, L)`` bool, a ring buffer: whether the point was misclassified.
      taken: ``(B,)`` int32, tests since the step size was last changed.
    """

    passed: jax.Array
    taken: jax.Array


class _State(NamedTuple):
    """The walk, one row for each example.

    Attributes:
      nearest: the nearest misclassified point, which the walk goes on from.
      inside: ``(B, ...)``, the point of the bisection that is classified correctly.
      tries: ``(B,)`` int32, points tried before the first misclassified one.
      halvings: ``(B,)`` int32, halvings of the way to x.
      turn: ``(B,)`` int32, steps of the walk.
      spherical_step: ``(B,)``, in units of the distance.
      source_step: ``(B,)``, in units of the distance.
      spherical_tests: tests on the sphere.
      source_tests: tests of points after a step towards x.
      done: ``(B,)`` bool.
    """

    nearest: Nearest
    inside: jax.Array
    tries: jax.Array
    halvings: jax.Array
    turn: jax.Array
    spherical_step: jax.Array
    source_step: jax.Array
    spherical_tests: _Tests
    source_tests: _Tests
    done: jax.Array


def _init(options: _Options, f: BatchFunction, problem: Problem) -> _State:
    x, labels = problem.x, problem.labels
    wrong = parts.decided(f(x), labels)
    nothing = jnp.zeros_like(labels, dtype=jnp.int32)

    def fresh(length: int) -> _Tests:
        passed = jnp.broadcast_to((nothing > 0)[:, None], (len(x), length))
        return _Tests(passed, nothing)

    def constant(value: float) -> jax.Array:
        return jnp.full_like(labels, value, dtype=parts.wide(x))

    return _State(
        nearest=parts.begin_nearest(x, wrong),
        inside=x,
        tries=nothing,
        halvings=nothing,
        turn=nothing,
        spherical_step=constant(options.spherical_step),
        source_step=constant(options.source_step),
        spherical_tests=fresh(_SPHERICAL_TESTS),
        source_tests=fresh(_SOURCE_TESTS),
        done=wrong,
    )


def _step(
    options: _Options,
    f: BatchFunction,
    problem: Problem,
    state: _State,
    i: jax.Array,
) -> _State:
    x = problem.x
    seeks = jnp.isinf(state.nearest.distance)
    halves = ~seeks & (state.halvings < _HALVINGS)
    walks = ~seeks & ~halves
    # A test on the sphere comes before every tenth move.
    place = state.turn % (_PERIOD + 1)
    tests = walks & (place == 0)
    point = _propose(options, problem, state, i, seeks, halves, tests)

    hit = parts.decided(f(point), problem.labels)
    distance = linalg.norm(point - x, options.p)
    # A test's point is as far as the last up to rounding, which must not decide.
    nearest = parts.keep_nearest(state.nearest, point, distance, hit & ~tests)
    tries = parts.count(state.tries, seeks)
    given_up = seeks & jnp.isinf(nearest.distance) & (tries >= options.num_tries)
    spherical, spherical_tests = _adapt(
        state.spherical_tests, hit, tests, _SPHERICAL_SHARES
    )
    source, source_tests = _adapt(
        state.source_tests, hit, walks & (place == 1), _SOURCE_SHARES
    )
    spherical_step = jnp.minimum(state.spherical_step * spherical, _LARGEST_STEP)
    source_step = state.source_step * spherical * source
    source_step = jnp.minimum(source_step, _LARGEST_STEP)
    return _State(
        nearest=nearest,
        inside=parts.select(halves & ~hit, point, state.inside),
        tries=tries,
        halvings=parts.count(state.halvings, halves),
        turn=parts.count(state.turn, walks),
        spherical_step=spherical_step,
        source_step=source_step,
        spherical_tests=spherical_tests,
        source_tests=source_tests,
        done=given_up | (walks & (source_step < _CONVERGED)),
    )


def _propose(
    options: _Options,
    problem: Problem,
    state: _State,
    i: jax.Array,
    seeks: jax.Array,
    halves: jax.Array,
    tests: jax.Array,
) -> jax.Array:
    """Returns the point that a step evaluates, shape of ``x``.

    Args:
      options: of the attack.
      problem: rows.
      state: before the step.
      i: number of the step.
      seeks: ``(B,)`` bool, rows without a misclassified point, which draw one.
      halves: ``(B,)`` bool, rows that halve the way to x.
      tests: ``(B,)`` bool, rows that test a point on the sphere.
    """
    assert problem.keys is not None
    x, p, bounds = problem.x, options.p, options.bounds
    best, inside = state.nearest.point, state.inside
    keys = parts.fold_in(problem.keys, i)
    drawn = _draw(keys, x, state.tries, bounds)
    if problem.start is not None:
        drawn = parts.select(state.tries == 0, problem.start, drawn)
    shrink = jnp.where(tests, 0.0, state.source_step)
    radius = (1 - shrink) * state.nearest.distance
    point = _beside(keys, x, best - x, state.spherical_step, p, bounds)
    point = _contract(x, parts.clip(point, bounds) - x, radius, p)
    point = parts.select(halves, inside + (best - inside) / 2, point)
    point = parts.select(seeks, drawn, point)
    return parts.clip(point.astype(x.dtype), bounds)


def _draw(keys: jax.Array, x: jax.Array, tries: jax.Array, bounds: Bounds) -> jax.Array:
    """Draws points of the box uniformly.

    An entry without both bounds is that of x with Gaussian noise, whose standard
    deviation grows from try to try.
    """

    def draw(sampler: Callable[..., jax.Array]) -> jax.Array:
        return jax.vmap(lambda key: linalg.draw(sampler, key, x.shape[1:], x.dtype))(
            keys
        )

    low, high = parts.ends(bounds, x)
    if checks.is_finite(bounds):
        return low + (high - low) * draw(jax.random.uniform)
    size = _SMALLEST_NOISE * _GROWTH ** tries.astype(jnp.float32)
    noisy = x + linalg.scale(draw(jax.random.normal), size)
    # An infinite end is a number or an array.
    boxed = jnp.isfinite(low) & jnp.isfinite(high)
    low, high = jnp.where(boxed, low, 0.0), jnp.where(boxed, high, 1.0)
    uniform = low + (high - low) * draw(jax.random.uniform)
    return jnp.where(boxed, uniform, noisy).astype(x.dtype)


def _beside(
    keys: jax.Array,
    x: jax.Array,
    delta: jax.Array,
    length: jax.Array,
    p: float,
    bounds: Bounds = None,
) -> jax.Array:
    """A point beside ``x + delta`` and as far from x; for p = inf at most as far."""
    noise = parts.free(linalg.sample_sphere(keys, x, 2.0), bounds)
    unit = linalg.dual_map(delta, 2.0)
    noise = noise - linalg.scale(unit, linalg.inner(noise, unit))
    way = length * linalg.norm(delta, 2.0)
    turned = delta + linalg.scale(linalg.dual_map(noise, 2.0), way)
    radius = linalg.norm(delta, p)
    if p == math.inf:
        return x + linalg.project_ball(turned, p, radius)
    return x + linalg.scale(linalg.dual_map(turned, 2.0), radius)


def _contract(x: jax.Array, delta: jax.Array, radius: jax.Array, p: float) -> jax.Array:
    """``x + delta`` drawn straight towards x, into the ball."""
    reach = linalg.norm(delta, p)
    beyond = reach > radius
    factor = jnp.where(beyond, radius / jnp.where(beyond, reach, 1.0), 1.0)
    return x + linalg.scale(delta, factor)


def _adapt(
    tests: _Tests, hit: jax.Array, counts: jax.Array, shares: tuple[float, float]
) -> tuple[jax.Array, _Tests]:
    """Notes a test in the rows where it counts.

    Args:
      tests: before the test.
      hit: ``(B,)`` bool, whether the point was misclassified.
      counts: ``(B,)`` bool, rows that have taken the test.
      shares: the step shrinks below the first share of points that pass, and grows
        above the second.

    Returns:
      ``(B,)``, the factor for the step, and the tests.
    """
    length = tests.passed.shape[1]
    here = jnp.arange(length)[None] == (tests.taken % length)[:, None]
    passed = jnp.where(here & counts[:, None], hit[:, None], tests.passed)
    taken = parts.count(tests.taken, counts)
    share = jnp.mean(passed, axis=1, dtype=jnp.float32)
    judged = counts & (taken >= length)
    grows, falls = judged & (share > shares[1]), judged & (share < shares[0])
    factor = jnp.where(grows, _ADAPTATION, jnp.where(falls, 1 / _ADAPTATION, 1.0))
    return factor, _Tests(passed, jnp.where(grows | falls, 0, taken))


def _check_share(name: str, value: float) -> None:
    if isinstance(value, bool) or not 0 < value < 1:
        raise ValueError(f"{name} is {value}; it must be in (0, 1).")
