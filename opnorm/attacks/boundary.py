"""attacks: the boundary attack, a random walk that sees nothing but decisions."""

import math

import jax
import jax.numpy as jnp

from opnorm import linalg
from opnorm.attacks import attack as attack_lib
from opnorm.attacks import checks
from opnorm.attacks.attack import Attack, BatchFunction, Problem, Stage, like
from opnorm.attacks.checks import Bounds

_HALVINGS = 10
# Brendel et al. 2018, section 2.3, with the constants of their code: how many of the
# latest tests count, the shares of adversarial ones between which a step is kept, and
# what it is multiplied or divided by.
_PERIOD = 10
_SPHERICAL_TESTS, _SPHERICAL_SHARES = 100, (0.2, 0.5)
_SOURCE_TESTS, _SOURCE_SHARES = 30, (0.1, 0.25)
_ADAPTATION = 1.5
_CONVERGED = 1e-7
# A step of one would end at x.
_LARGEST_STEP = 0.999


def boundary(
    *,
    p: float = 2.0,
    num_steps: int = 5000,
    spherical_step: float = 0.01,
    source_step: float = 0.01,
    num_tries: int = 50,
    bounds: Bounds = (0.0, 1.0),
) -> Attack:
    """Returns the boundary attack, which walks along the boundary by decisions alone.

    It begins at ``start`` where that is misclassified, else at the first misclassified
    of uniform pictures, and halves the way to x ten times. Then, at distance R of x,
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
      bounds: box (low, high).

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
    checks.check_box(bounds)
    assert bounds is not None
    low, high = bounds

    def init(f: BatchFunction, problem: Problem) -> dict[str, jax.Array]:
        x, labels = problem.x, problem.labels
        wide = jnp.promote_types(x.dtype, jnp.float32)
        wrong = attack_lib.decided(f(x), labels, False)
        nothing = jnp.zeros_like(labels, dtype=jnp.int32)

        def fresh(length: int) -> jax.Array:
            return jnp.broadcast_to((nothing > 0)[:, None], (len(x), length))

        return {
            "best": x,
            "distance": jnp.where(wrong, 0.0, jnp.inf).astype(wide),
            "inside": x,
            "tries": nothing,
            "halvings": nothing,
            "turn": nothing,
            "spherical_step": jnp.full_like(labels, spherical_step, dtype=wide),
            "source_step": jnp.full_like(labels, source_step, dtype=wide),
            "spherical_tests": fresh(_SPHERICAL_TESTS),
            "spherical_count": nothing,
            "source_tests": fresh(_SOURCE_TESTS),
            "source_count": nothing,
            "done": wrong,
        }

    def step(
        f: BatchFunction, problem: Problem, state: dict[str, jax.Array], i: jax.Array
    ) -> dict[str, jax.Array]:
        assert problem.keys is not None
        x, best, inside = problem.x, state["best"], state["inside"]
        seeks = jnp.isinf(state["distance"])
        halves = ~seeks & (state["halvings"] < _HALVINGS)
        walks = ~seeks & ~halves
        # A test on the sphere comes before every tenth move.
        place = state["turn"] % (_PERIOD + 1)
        tests = walks & (place == 0)

        keys = attack_lib.fold_in(problem.keys, i)
        drawn = _uniform(keys, x, low, high)
        if problem.start is not None:
            begins = like(state["tries"] == 0, x)
            drawn = jnp.where(begins, problem.start, drawn)
        shrink = jnp.where(tests, 0.0, state["source_step"])
        radius = (1 - shrink) * state["distance"]
        point = _beside(keys, x, best - x, state["spherical_step"], p)
        point = _contract(x, attack_lib.clip(point, bounds) - x, radius, p)
        point = jnp.where(like(halves, x), inside + (best - inside) / 2, point)
        point = jnp.where(like(seeks, x), drawn, point)
        point = attack_lib.clip(point.astype(x.dtype), bounds)

        hit = attack_lib.decided(f(point), problem.labels, False)
        distance = linalg.norm(point - x, p)
        # A test's point is as far as the last up to rounding, which must not decide.
        nearer = hit & ~tests & (distance < state["distance"])
        tries = state["tries"] + seeks
        given_up = seeks & ~nearer & (tries >= num_tries)
        spherical, spherical_tests, spherical_count = _adapt(
            state["spherical_tests"],
            state["spherical_count"],
            hit,
            tests,
            _SPHERICAL_SHARES,
        )
        source, source_tests, source_count = _adapt(
            state["source_tests"],
            state["source_count"],
            hit,
            walks & (place == 1),
            _SOURCE_SHARES,
        )
        spherical_now = jnp.minimum(state["spherical_step"] * spherical, _LARGEST_STEP)
        source_now = state["source_step"] * spherical * source
        source_now = jnp.minimum(source_now, _LARGEST_STEP)
        return {
            "best": jnp.where(like(nearer, x), point, best),
            "distance": jnp.where(nearer, distance, state["distance"]),
            "inside": jnp.where(like(halves & ~hit, x), point, inside),
            "tries": tries,
            "halvings": state["halvings"] + halves,
            "turn": state["turn"] + walks,
            "spherical_step": spherical_now,
            "source_step": source_now,
            "spherical_tests": spherical_tests,
            "spherical_count": spherical_count,
            "source_tests": source_tests,
            "source_count": source_count,
            "done": given_up | (walks & (source_now < _CONVERGED)),
        }

    def finish(problem: Problem, state: dict[str, jax.Array]) -> jax.Array:
        del problem
        return state["best"]

    stage = Stage(
        name="boundary",
        num_steps=num_steps,
        bounds=bounds,
        init=init,
        step=step,
        finish=finish,
        done=lambda state: state["done"],
        check=attack_lib.check_keys,
        takes_start=True,
    )
    return Attack(name="boundary", p=p, stages=(stage,), budget=False)


def _uniform(keys: jax.Array, x: jax.Array, low: float, high: float) -> jax.Array:
    shape = x.shape[1:]
    unit = jax.vmap(lambda key: jax.random.uniform(key, shape, x.dtype))(keys)
    return low + (high - low) * unit


def _beside(
    keys: jax.Array, x: jax.Array, delta: jax.Array, length: jax.Array, p: float
) -> jax.Array:
    """A point beside ``x + delta`` and as far from x; for p = inf at most as far."""
    noise, unit = linalg.sample_sphere(keys, x, 2.0), linalg.dual_map(delta, 2.0)
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
    tests: jax.Array,
    count: jax.Array,
    hit: jax.Array,
    counts: jax.Array,
    shares: tuple[float, float],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Notes a test where it counts; the factor for the step, and the tests after."""
    length = tests.shape[1]
    here = jnp.arange(length)[None] == (count % length)[:, None]
    tests = jnp.where(here & counts[:, None], hit[:, None], tests)
    count = count + counts
    share = jnp.mean(tests, axis=1, dtype=jnp.float32)
    judged = counts & (count >= length)
    grows, falls = judged & (share > shares[1]), judged & (share < shares[0])
    factor = jnp.where(grows, _ADAPTATION, jnp.where(falls, 1 / _ADAPTATION, 1.0))
    return factor, tests, jnp.where(grows | falls, 0, count)


def _check_share(name: str, value: float) -> None:
    if isinstance(value, bool) or not 0 < value < 1:
        raise ValueError(f"{name} is {value}; it must be in (0, 1).")
