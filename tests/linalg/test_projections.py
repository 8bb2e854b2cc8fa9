"""Optimality, laws and degenerate points of projections onto balls and spheres."""

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

from opnorm import linalg

EXPONENTS = (1.0, 1.3, 2.0, 4.0, math.inf)
points = hnp.arrays(
    np.float64,
    st.sampled_from([(1, 1), (3, 2), (2, 7)]),
    elements=st.floats(-20, 20).map(lambda x: 0.0 if abs(x) < 1e-6 else x),
)
radii = st.floats(0.01, 10)
settings = hypothesis.settings(max_examples=20, deadline=None)


def lengths(vectors, p):
    return np.linalg.norm(vectors, p, axis=1)


@pytest.mark.parametrize("p", EXPONENTS)
@settings
@hypothesis.given(x=points, radius=radii)
def test_ball_projection_is_the_nearest_point(p, x, radius):
    # y is the projection onto a convex set if and only if <x - y, z - y> <= 0 for all
    # z in the set.
    with jax.enable_x64(True):
        y = np.asarray(linalg.project_ball(jnp.asarray(x), p, radius))
        assert np.all(lengths(y, p) <= radius * (1 + 1e-12))
        gap = x - y
        worst = lengths(gap, linalg.conjugate_exponent(p)) * radius
        size = 1 + lengths(x, 2) ** 2
        np.testing.assert_array_less(worst - np.sum(gap * y, axis=1), 1e-9 * size)


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
        np.testing.assert_allclose(lengths(sphere, p), radius, rtol=1e-10)


@pytest.mark.parametrize("p", [1.5, 3.0])
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
    x = jnp.asarray(3 * np.random.default_rng(0).normal(size=(16, 50)))
    theirs = jax.vmap(lambda v: optax.projections.projection_l1_ball(v, 2.0))
    expected = jax.jit(theirs)(x)
    np.testing.assert_allclose(linalg.project_ball(x, 1.0, 2.0), expected, atol=2e-6)


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
def test_sphere_projection_of_inner_points_is_the_nearest_point(p):
    with jax.enable_x64(True):
        rng = np.random.default_rng(3)
        x = 0.4 * rng.normal(size=(6, 3))
        x = x / np.maximum(lengths(x, p), 1.2)[:, None] * 0.8
        found = linalg.project_sphere(jnp.asarray(x), p, 1.0)
        # No point of a dense net of the sphere is nearer.
        net = rng.normal(size=(200_000, 3))
        net = net / lengths(net, p)[:, None]
        nearest = [lengths(point - net, 2).min() for point in x]
        assert np.all(lengths(x - found, 2) <= np.array(nearest) + 1e-9)


@pytest.mark.parametrize("p", EXPONENTS)
def test_zero_and_zero_radius(p):
    zero = jnp.zeros((1, 3))
    np.testing.assert_array_equal(linalg.project_ball(zero, p, 1.0), zero)
    sphere = linalg.project_sphere(zero, p, 1.0)
    np.testing.assert_allclose(lengths(sphere, p), 1.0, rtol=1e-6)
    x = jnp.array([[1.0, -2.0, 3.0]])
    np.testing.assert_array_equal(linalg.project_ball(x, p, 0.0), jnp.zeros_like(x))


@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize("other", [3.0, 0.1])
def test_nan_is_not_projected_away(p, other):
    # The other entry is inside the ball or outside.
    x = jnp.array([[math.nan, other, 0.0]])
    assert np.isnan(linalg.project_ball(x, p, 1.0)).any()
    assert np.isnan(linalg.project_sphere(x, p, 1.0)).any()


def test_a_small_l1_radius_is_not_lost_in_large_entries():
    # Equal entries share the radius, even a tiny one; a near entry gets a share, too.
    x = np.float32([[1e20, 3e19, 1], [-1e20, 1e20, 0], [1, 1 - 2**-20, 0], [1, 0, 0]])
    radius = np.float32([1e-20, 1e-30, 3e-6, 3e-8])
    near = (3e-6 - 2**-20) / 2
    expected = [
        [1e-20, 0, 0],
        [-5e-31, 5e-31, 0],
        [near + 2**-20, near, 0],
        [3e-8, 0, 0],
    ]
    for project in (linalg.project_ball, linalg.project_sphere):
        found = project(jnp.asarray(x), 1.0, jnp.asarray(radius))
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("p", EXPONENTS)
def test_a_far_point_projects_to_the_steepest_vertex_direction(p):
    # By Lemma 2, the projection of c z is T_{p*}(z) for large c.
    with jax.enable_x64(True):
        z = jnp.array([[3.0, -1.0, 0.5]])
        found = linalg.project_ball(1e12 * z, p, 1.0)
        expected = linalg.dual_map(z, linalg.conjugate_exponent(p))
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("p", EXPONENTS)
def test_radius_of_each_example(p):
    x = np.float32(5 * np.random.default_rng(1).normal(size=(3, 4)))
    radius = np.float32([0.5, 1.0, 100.0])
    found = np.asarray(linalg.project_ball(jnp.asarray(x), p, jnp.asarray(radius)))
    for i in range(3):
        # A batch of copies has the same shape, so that nothing is compiled again.
        same = [i] * 3
        alone = linalg.project_ball(jnp.asarray(x[same]), p, jnp.asarray(radius[same]))
        np.testing.assert_allclose(found[same], alone, rtol=1e-6)
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
        x = np.array([[2.0, -1.1, 0.31, 0.7], [0.1, 0.05, -0.02, 0.01]])
        given = (x, np.ones(2))
        rng = np.random.default_rng(0)
        directions = tuple(rng.normal(size=a.shape) for a in given)

        @jax.jit
        def everything(given, directions, pulled):
            def project(x, radius):
                return linalg.project_ball(x, p, radius)

            value, pushed = jax.jvp(project, given, directions)
            _, pull = jax.vjp(project, *given)
            inner = jax.grad(lambda x: jnp.sum(linalg.project_sphere(x, p) ** 3))
            return value, pushed, pull(pulled), inner(given[0])

        pulled = rng.normal(size=x.shape)
        _, pushed, back, inner = everything(given, directions, pulled)
        ahead, behind = (
            everything(
                tuple(a + s * v for a, v in zip(given, directions, strict=True)),
                directions,
                pulled,
            )[0]
            for s in (1e-6, -1e-6)
        )
        change = (np.asarray(ahead) - np.asarray(behind)) / 2e-6
        np.testing.assert_allclose(pushed, change, rtol=1e-6, atol=1e-7)
        returned = sum(map(np.vdot, back, directions))
        np.testing.assert_allclose(returned, np.vdot(pulled, pushed), rtol=1e-10)
        assert np.all(np.isfinite(inner))
        zero = (np.zeros_like(x), np.ones(2))
        _, _, (at_zero, _), inner = everything(zero, directions, np.ones_like(x))
        np.testing.assert_array_equal(at_zero, 1)
        assert np.all(np.isfinite(inner))


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 4.0, math.inf])
def test_samples_fill_the_ball_uniformly(p):
    like = jnp.zeros((20_000, 3))
    drawn = np.asarray(linalg.sample_ball(jax.random.key(0), like, p, 2.0))
    size = lengths(drawn, p) / 2
    assert size.max() <= 1 + 1e-6
    # For uniform samples P(||y|| <= r) = r^n.
    for r in (0.5, 0.8):
        assert np.mean(size <= r) == pytest.approx(r**3, abs=0.02)
    # Each octant has its share of the points.
    octants = (drawn > 0).dot([1, 2, 4])
    assert np.all(abs(np.bincount(octants, minlength=8) / 20_000 - 1 / 8) < 0.02)
    on_sphere = linalg.sample_sphere(jax.random.key(1), jnp.zeros((100, 3)), p)
    np.testing.assert_allclose(lengths(on_sphere, p), 1.0, rtol=1e-5)


@pytest.mark.parametrize("radius", [-1.0, math.nan, jnp.ones((3, 1)), jnp.ones(5)])
def test_bad_radii_are_refused(radius):
    with pytest.raises(ValueError, match="radius"):
        linalg.project_ball(jnp.ones((2, 3)), 2.0, radius)
