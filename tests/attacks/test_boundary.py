"""The boundary attack on affine networks, whose nearest point is known."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import linalg
from opnorm.attacks.boundary import _adapt, _beside, _contract, _Tests, boundary
from opnorm.attacks.stage import Problem

P = [2.0, math.inf]
W = np.random.default_rng(0).normal(size=10)
LEAST = {2.0: 0.1, math.inf: 0.03}


def points(batch=4, seed=1):
    drawn = np.random.default_rng(seed).uniform(0.4, 0.6, (batch, 10))
    return jnp.asarray(drawn, jnp.float32)


def affine(p, x):
    """Two classes with the nearest boundary at ``LEAST[p]`` of every example."""
    size = np.linalg.norm(W, 1 if p == math.inf else 2)

    def f(z):
        # The inner product row by row: a batch of another size rounds the same way.
        margin = LEAST[p] * size + jnp.sum((z - x) * jnp.float32(W), axis=1)
        return jnp.stack([margin / 2, -margin / 2], axis=1)

    return f


def tilted(z, slope=1.0):
    """Two classes, and a boundary at a different distance from every example."""
    margin = 0.5 + slope * jnp.sum((z - 0.5) * jnp.float32(W), axis=1)
    return jnp.stack([margin / 2, -margin / 2], axis=1)


def run_tilted(x, labels, slope=1.0, hard=False):
    """Enough steps for all parts of the walk; decisions instead of logits if hard."""
    return _run_tilted(jnp.asarray(x), labels, slope, hard)


@jax.jit
def _run_tilted(x, labels, slope, hard):
    def f(z):
        logits = tilted(z, slope)
        decisions = jax.nn.one_hot(jnp.argmax(logits, axis=1), 2)
        return jnp.where(hard, decisions, logits)

    keys = jax.random.split(jax.random.key(0), len(x))
    return boundary(num_steps=150).run(f, x, labels, keys)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run(f, options, x, labels, keys, start):
    return boundary(**dict(options)).run(f, x, labels, keys, start=start)


def run(f, x, keys=None, start=None, labels=None, **options):
    labels = jnp.zeros(len(x), int) if labels is None else labels
    keys = jax.random.split(jax.random.key(0), len(x)) if keys is None else keys
    return _run(f, tuple(options.items()), x, labels, keys, start)


@pytest.mark.parametrize(
    ("p", "num_steps", "worst", "mean"),
    [(2.0, 2000, 1.2, 1.07), (math.inf, 5000, 1.25, 1.14)],
)
def test_the_distance_comes_near_the_least_one(p, num_steps, worst, mean) -> None:
    x = points(32)
    result = run(affine(p, x), x, p=p, num_steps=num_steps)
    ratio = np.asarray(result.distance) / LEAST[p]
    assert np.all(result.success)
    assert np.all(ratio >= 1 - 1e-6)
    assert np.all(ratio <= worst), ratio
    assert ratio.mean() <= mean, ratio


@pytest.mark.parametrize("p", P)
def test_more_steps_never_lengthen_the_perturbation(p) -> None:
    x = points()
    f, stage = affine(p, x), boundary(p=p).stages[0]
    keys = jax.vmap(jax.random.key)(np.arange(4))
    problem = Problem(x, jnp.zeros(4, int), keys, None)

    @jax.jit
    def advance(state, i):
        state = stage.advance(f, problem, state, i, 25)[0]
        point = stage.finish(problem, state)
        return state, point, jnp.argmax(f(point), axis=1)

    state = jax.jit(lambda: stage.init(f, problem))()
    before = np.full(4, np.inf)
    for i in range(0, 500, 25):
        state, point, decisions = advance(state, i)
        distance = np.asarray(state.nearest.distance)
        assert np.all(distance <= before)
        found = np.isfinite(distance)
        assert np.all(np.asarray(decisions)[found] == 1)
        length = np.linalg.norm(np.asarray(point) - np.asarray(x), p, axis=1)
        np.testing.assert_allclose(distance[found], length[found], rtol=1e-6)
        before = distance
    assert np.all(np.isfinite(before))


@pytest.mark.parametrize("p", P)
def test_the_beginning_is_halved_down_to_the_boundary(p) -> None:
    x = np.asarray(points())
    direction = np.sign(W) if p == math.inf else W / np.linalg.norm(W)
    start = x - np.float32(3.0 * LEAST[p] * direction)
    # A start counts only where it is misclassified.
    start[0] = x[0]
    # One step for the start and ten for the halvings.
    options = {"p": p, "num_steps": 11, "num_tries": 1}
    result = run(affine(p, x), x, start=start, **options)
    np.testing.assert_array_equal(result.success, [False, True, True, True])
    np.testing.assert_array_equal(np.asarray(result.x_adv)[0], x[0])
    ratio = np.asarray(result.distance)[1:] / LEAST[p]
    assert np.all((ratio >= 1 - 1e-6) & (ratio <= 1 + 2 * 3 / 1024)), ratio


def test_without_a_misclassified_point_the_input_is_returned() -> None:
    x = points(5)
    result = run_tilted(x, np.zeros(5, int), slope=0.0)
    np.testing.assert_array_equal(result.x_adv, x)
    # As many as there are tries.
    np.testing.assert_array_equal(result.steps, 50)
    assert not np.any(result.success)


def test_the_first_points_are_uniform_in_the_box() -> None:
    x = jnp.full((4000, 2), 0.25, jnp.float32)

    def f(z):
        moved = jnp.any(z != 0.25, axis=1)
        return jnp.stack([1.0 - moved, 1.0 * moved], axis=1)

    found = np.asarray(run(f, x, num_steps=1, bounds=(-1.0, 1.0)).x_adv)
    for share in (0.1, 0.5, 0.9):
        below = np.mean(found <= -1 + 2 * share, axis=0)
        np.testing.assert_allclose(below, share, atol=0.03)


def test_examples_wrong_already_stay_where_they_are() -> None:
    x, labels = np.asarray(points(5)), np.array([0, 1, 0, 1, 0])
    result = run_tilted(x, labels)
    np.testing.assert_array_equal(np.asarray(result.x_adv)[1::2], x[1::2])
    np.testing.assert_array_equal(np.asarray(result.distance)[1::2], 0)
    np.testing.assert_array_equal(result.steps, [150, 0, 150, 0, 150])
    assert np.all(result.success)


def test_only_decisions_matter() -> None:
    x, labels = points(5), np.zeros(5, int)
    plain, other = run_tilted(x, labels), run_tilted(x, labels, hard=True)
    np.testing.assert_array_equal(plain.x_adv, other.x_adv)


def step_beside(p):
    """x, a perturbation, the one beside it, and that at 0.9 of its length."""
    x = jnp.asarray(points(), float)
    delta = np.random.default_rng(2).normal(size=x.shape)

    @jax.jit
    def both(x, delta):
        keys = jax.vmap(jax.random.key)(jnp.arange(4))
        beside = _beside(keys, x, delta, jnp.full(4, 0.3), p) - x
        radius = 0.9 * linalg.norm(delta, p)
        return beside, _contract(x, beside, radius, p) - x

    return delta, *map(np.asarray, both(x, jnp.asarray(delta)))


def test_a_point_beside_another_is_as_far_away() -> None:
    with jax.enable_x64(True):
        delta, beside, nearer = step_beside(2.0)
        radius = np.linalg.norm(delta, axis=1)
        np.testing.assert_allclose(np.linalg.norm(beside, axis=1), radius, rtol=1e-12)
        # The step is orthogonal: the angle's tangent is its relative length.
        cosine = np.sum(beside * delta, axis=1) / radius**2
        np.testing.assert_allclose(cosine, 1 / math.hypot(1, 0.3), rtol=1e-12)
        np.testing.assert_allclose(nearer, 0.9 * beside, atol=1e-12)


def test_a_point_beside_another_stays_in_the_cube() -> None:
    with jax.enable_x64(True):
        _, turned, _ = step_beside(2.0)
        turned = turned * math.hypot(1, 0.3)
        delta, beside, nearer = step_beside(math.inf)
        side = np.abs(delta).max(axis=1, keepdims=True)
        np.testing.assert_allclose(beside, np.clip(turned, -side, side), atol=1e-12)
        assert np.any(np.abs(turned) > side)
        length = np.abs(nearer).max(axis=1, keepdims=True)
        np.testing.assert_allclose(length, 0.9 * side, rtol=1e-12)
        directions = [
            v / np.linalg.norm(v, axis=1, keepdims=True) for v in (nearer, beside)
        ]
        np.testing.assert_allclose(*directions, atol=1e-12)


def test_steps_follow_the_latest_tests() -> None:
    length, shares = 4, (0.2, 0.5)
    tests = _Tests(jnp.zeros((3, length), bool), jnp.zeros(3, jnp.int32))
    adapt = jax.jit(lambda *given: _adapt(*given, shares))
    # Row 0 always succeeds, row 1 never, and row 2 every other time.
    factors = []
    for i in range(9):
        hit = np.array([True, False, i % 2 == 0])
        factor, tests = adapt(tests, hit, np.full(3, True))
        factors.append(np.asarray(factor))
    table = np.array(factors)
    changes = np.where(np.arange(9) % 4 == 3, 1.5, 1.0)
    np.testing.assert_allclose(table[:, 0], changes)
    np.testing.assert_allclose(table[:, 1], 1 / changes)
    np.testing.assert_array_equal(table[:, 2], 1)
    # A point that is no test leaves no trace.
    factor, after = adapt(tests, hit, np.full(3, False))
    np.testing.assert_array_equal(factor, 1)
    chex.assert_trees_all_equal(after, tests)


def test_the_first_hundred_spherical_tests_change_the_step() -> None:
    x = points(1)

    # All but what is very near x is misclassified: every test succeeds.
    def near(z):
        inside = linalg.norm(z - x) < 1e-4
        return jnp.stack([1.0 * inside, 1.0 - inside], axis=1)

    stage = boundary(source_step=1e-3).stages[0]
    keys = jax.vmap(jax.random.key)(np.arange(1))
    problem = Problem(x, jnp.zeros(1, int), keys, None)
    state = jax.jit(lambda: stage.init(near, problem))()
    advance = jax.jit(lambda state, i: stage.advance(near, problem, state, i, 11)[0])
    steps = []
    for i in range(0, 1 + 10 + 11 * 100, 11):
        state = advance(state, i)
        steps.append((float(state.spherical_step[0]), float(state.source_step[0])))
    # The 30th test of a source step comes long before the 100th on the sphere.
    sphere, source = np.array(steps).T
    np.testing.assert_allclose(sphere[:99], 0.01, rtol=1e-6)
    np.testing.assert_allclose(sphere[-1], 0.015, rtol=1e-6)
    np.testing.assert_allclose(source[:29], 1e-3, rtol=1e-6)
    np.testing.assert_allclose(source[31], 1.5e-3, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64])
def test_shape_and_dtype_are_those_of_the_input(dtype) -> None:
    with jax.enable_x64(dtype == jnp.float64):
        x = points().astype(dtype).reshape(4, 5, 2, 1)

        def f(z):
            margin = jnp.sum((z - 0.5).reshape(4, 10) * jnp.asarray(W, dtype), axis=1)
            return jnp.stack([margin + 0.3, -margin], axis=1)

        result = run(f, x, num_steps=60)
        assert result.x_adv.shape == x.shape
        assert result.x_adv.dtype == dtype
        assert np.all(result.success)


def test_a_step_costs_one_forward_pass() -> None:
    x, weights = points(), jnp.ones((10, 2))
    jaxpr = jax.make_jaxpr(
        lambda key: boundary()(lambda z: z @ weights, x, jnp.zeros(4, int), key)
    )(jax.random.key(0))
    # One at x, and one in the body of the loop.
    assert str(jaxpr).count("dot_general[") == 2


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"p": 1.0}, "p is 1"),
        ({"num_steps": 0}, "num_steps is 0"),
        ({"num_tries": 0}, "num_tries is 0"),
        ({"spherical_step": 0.0}, "spherical_step is 0.0"),
        ({"source_step": 1.0}, "source_step is 1.0"),
        ({"bounds": (0.0, math.nan)}, "bounds is .0.0, nan.; it must be"),
        ({"bounds": (1.0, 0.0)}, "bounds"),
    ],
)
def test_bad_options_are_refused_by_name(options, name) -> None:
    with pytest.raises(ValueError, match=name):
        boundary(**options)


def test_a_key_is_needed() -> None:
    x = points()
    with pytest.raises(ValueError, match="key is None"):
        boundary()(tilted, x, jnp.zeros(4, int))
