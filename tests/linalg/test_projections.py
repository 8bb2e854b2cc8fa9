"""Projections onto Lp balls and spheres: optimality, laws, degenerate points."""

import math

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from jax.test_util import check_grads

from opnorm import linalg

EXPONENTS = (1.0, 1.3, 2.0, 4.0, math.inf)
points = hnp.arrays(
    np.float64,
    st.sampled_from([(1, 1), (3, 2), (2, 7)]),
    elements=st.floats(-20, 20).map(lambda x: 0.0 if abs(x) < 1e-6 else x),
)
radii = st.floats(0.01, 10)
settings = hypothesis.settings(max_examples=20, deadline=None)


@pytest.mark.parametrize("p", EXPONENTS)
@settings
@hypothesis.given(x=points, radius=radii, seed=st.integers(0, 100))
def test_ball_projection_is_the_nearest_point(p, x, radius, seed):
    # y is the projection on a convex set just if <x - y, z - y> <= 0 for all z in it.
    with jax.enable_x64(True):
        x = jnp.asarray(x)
        y = linalg.project_ball(x, p, radius)
        assert np.all(linalg.norm(y, p) <= radius * (1 + 1e-12))
        gap = x - y
        worst = linalg.norm(gap, linalg.conjugate_exponent(p)) * radius
        size = 1 + linalg.norm(x, 2.0) ** 2
        np.testing.assert_array_less(worst - linalg.inner(gap, y), 1e-9 * size)


@pytest.mark.parametrize("p", EXPONENTS)
@settings
@hypothesis.given(x=points, radius=radii)
def test_projections_are_idempotent_and_land_on_the_sphere(p, x, radius):
    with jax.enable_x64(True):
        x = jnp.asarray(x)
        ball = linalg.project_ball(x, p, radius)
        again = linalg.project_ball(ball, p, radius * (1 + 1e-12))
        np.testing.assert_array_equal(again, ball)
        sphere = linalg.project_sphere(x, p, radius)
        np.testing.assert_allclose(linalg.norm(sphere, p), radius, rtol=1e-10)


@pytest.mark.parametrize("p", (1.5, 3.0))
def test_general_ball_projection_is_scipys_minimiser(p):
    with jax.enable_x64(True):
        x = np.array([[2.0, -1.0, 0.3, 0.0]])
        found = linalg.project_ball(jnp.asarray(x), p, 1.0)[0]
        solved = scipy.optimize.minimize(
            lambda y: np.sum((y - x[0]) ** 2),
            0.1 * x[0],
            method="SLSQP",
            constraints={"type": "ineq", "fun": lambda y: 1 - np.sum(abs(y) ** p)},
            options={"ftol": 1e-15, "maxiter": 500},
        )
        np.testing.assert_allclose(found, solved.x, atol=1e-6)


def test_l1_ball_projection_is_optaxs():
    x = 3 * jax.random.normal(jax.random.key(0), (16, 50))
    theirs = jax.vmap(lambda v: optax.projections.projection_l1_ball(v, 2.0))
    expected = jax.jit(theirs)(x)
    np.testing.assert_allclose(linalg.project_ball(x, 1.0, 2.0), expected, atol=2e-6)


@pytest.mark.parametrize("p", (1.0, 2.0, math.inf))
def test_sphere_projection_of_inner_points_is_the_nearest_point(p):
    with jax.enable_x64(True):
        x = 0.4 * jax.random.normal(jax.random.key(3), (6, 3))
        x = x / jnp.maximum(linalg.norm(x, p), 1.2)[:, None] * 0.8
        found = linalg.project_sphere(x, p, 1.0)
        # A dense net of the sphere has nothing nearer.
        net = jax.random.normal(jax.random.key(4), (200_000, 3))
        net = net / linalg.norm(net, p)[:, None]
        nearest = jnp.min(jnp.linalg.norm(x[:, None] - net[None], axis=-1), axis=1)
        distance = jnp.linalg.norm(x - found, axis=-1)
        assert np.all(distance <= nearest + 1e-9)


@pytest.mark.parametrize("p", EXPONENTS)
def test_zero_and_zero_radius(p):
    zero = jnp.zeros((2, 3))
    np.testing.assert_array_equal(linalg.project_ball(zero, p, 1.0), zero)
    np.testing.assert_allclose(
        linalg.norm(linalg.project_sphere(zero, p, 1.0), p), 1.0, rtol=1e-6
    )
    x = jnp.array([[1.0, -2.0, 3.0]])
    np.testing.assert_array_equal(linalg.project_ball(x, p, 0.0), jnp.zeros_like(x))


@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize("size", (1e-20, 1e20))
def test_huge_and_tiny_points(p, size):
    x = jnp.array([[3.0, -1.0, 0.5]])
    scaled = linalg.project_ball(size * x, p, size)
    np.testing.assert_allclose(
        scaled / size, linalg.project_ball(x, p, 1.0), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("p", EXPONENTS)
def test_a_far_point_projects_to_the_steepest_vertex_direction(p):
    # Lemma 2: far out along z the projection of z is T_{p*}(z).
    with jax.enable_x64(True):
        z = jnp.array([[3.0, -1.0, 0.5]])
        found = linalg.project_ball(1e12 * z, p, 1.0)
        expected = linalg.dual_map(z, linalg.conjugate_exponent(p))
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("p", EXPONENTS)
def test_radius_of_each_example(p):
    x = 5 * jax.random.normal(jax.random.key(1), (3, 4))
    radius = jnp.array([0.5, 1.0, 100.0])
    found = linalg.project_ball(x, p, radius)
    for i in range(3):
        alone = linalg.project_ball(x[i : i + 1], p, float(radius[i]))
        np.testing.assert_allclose(found[i], alone[0], rtol=1e-6)
    np.testing.assert_array_equal(found[2], x[2])


@pytest.mark.parametrize("p", EXPONENTS)
def test_half_precision(p):
    x = jnp.array([[3.0, -1.0, 0.5]], jnp.bfloat16)
    found = linalg.project_ball(x, p, 1.0)
    assert found.dtype == jnp.bfloat16
    expected = linalg.project_ball(x.astype(jnp.float32), p, 1.0)
    np.testing.assert_allclose(np.asarray(found, np.float32), expected, atol=1e-2)


@pytest.mark.parametrize("p", EXPONENTS)
def test_derivatives_are_those_of_finite_differences(p):
    with jax.enable_x64(True):
        x = jnp.array([[2.0, -1.1, 0.31, 0.7], [0.1, 0.05, -0.02, 0.01]])
        check_grads(
            lambda x, r: linalg.project_ball(x, p, r), (x, jnp.array([1.0, 1.0])), 1
        )
        inner = jax.grad(lambda x: jnp.sum(linalg.project_sphere(x, p) ** 3))(x)
        assert np.all(np.isfinite(inner))
        at_zero = jax.grad(lambda x: jnp.sum(linalg.project_ball(x, p, 1.0)))(
            jnp.zeros_like(x)
        )
        np.testing.assert_array_equal(at_zero, 1)


@pytest.mark.parametrize("p", (1.0, 1.5, 2.0, 4.0, math.inf))
def test_samples_fill_the_ball_uniformly(p):
    like = jnp.zeros((20_000, 3))
    drawn = linalg.sample_ball(jax.random.key(0), like, p, 2.0)
    size = np.asarray(linalg.norm(drawn, p)) / 2
    assert size.max() <= 1 + 1e-6
    # Uniform means P(||y|| <= r) = r^n.
    for r in (0.5, 0.8):
        assert np.mean(size <= r) == pytest.approx(r**3, abs=0.02)
    # And a cube inside the ball gets its share of points in each octant.
    octants = np.asarray(drawn > 0).dot([1, 2, 4])
    assert np.all(abs(np.bincount(octants, minlength=8) / 20_000 - 1 / 8) < 0.02)
    on_sphere = linalg.sample_sphere(jax.random.key(1), like[:100], p)
    np.testing.assert_allclose(linalg.norm(on_sphere, p), 1.0, rtol=1e-5)


@pytest.mark.parametrize("radius", (-1.0, math.nan, jnp.ones((3, 1)), jnp.ones(5)))
def test_bad_radii_are_refused(radius):
    with pytest.raises(ValueError, match="radius"):
        linalg.project_ball(jnp.ones((2, 3)), 2.0, radius)
