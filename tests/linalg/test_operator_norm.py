"""(p, q) norms of matrices and maps, against closed forms and brute force."""

import functools
import itertools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import linalg
from tests.support.matrices import exact_norm

INF = math.inf
PAIRS = list(itertools.product((1.0, 2.0, INF), repeat=2))


@functools.cache
def compiled(**options):
    """Norms of dense matrices as one program for each set of options."""

    def found(matrix, key=None, init=None):
        linear_map = linalg.from_matrix(matrix)
        return linalg.operator_norm(linear_map, key=key, init=init, **options)

    return jax.jit(found)


def matrix(d=5, n=7, seed=0, batch=3):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(batch, d, n)))


def starts():
    return jnp.asarray(np.random.default_rng(10).normal(size=(3, 7)))


def lengths(vectors, p):
    return np.linalg.norm(vectors, p, axis=1)


def test_matrix_norm_enumerates_where_corners_are_few():
    a = jnp.ones((30, 40))
    found = linalg.matrix_norm(a, INF, 2)
    assert (found.method, found.exact) == ("iteration", False)
    assert found.value.shape == ()
    assert found.right.shape == (40,)
    # The norm of a matrix of ones is ||1||_q ||1||_{p*}.
    np.testing.assert_allclose(found.value, 30**0.5 * 40, rtol=1e-5)
    assert linalg.matrix_norm(a[:, :6], INF, 2).method == "enumeration"
    assert linalg.matrix_norm(a[:6], 2, 1).method == "enumeration"


@pytest.mark.parametrize(("p", "q"), [*PAIRS, (1.5, 3.0), (4.0, 1.2)])
def test_power_method_rises_to_a_stationary_point(p, q):
    with jax.enable_x64(True):
        a, start = matrix(), starts()
        # Every call continues from the last result.
        run = compiled(p=p, q=q, num_steps=2)
        right = np.asarray(start) / lengths(start, p)[:, None]
        value = lengths(np.einsum("bdn,bn->bd", a, right), q)
        for _ in range(1000):
            found = run(a, init=jnp.asarray(right))
            assert np.all(found.value >= value - 1e-12)
            right, value = np.asarray(found.right), np.asarray(found.value)
            np.testing.assert_allclose(lengths(right, p), 1, rtol=1e-12)
            if np.all(found.residual < 1e-8):
                break
        assert np.all(found.residual < 1e-8)
        image = np.einsum("bdn,bn->bd", a, right)
        np.testing.assert_allclose(lengths(image, q), value, rtol=1e-12)
        if (p, q) in PAIRS:
            best = [exact_norm(one, p, q) for one in np.asarray(a)]
        else:
            best = linalg.matrix_norm(a, p, q).value
        assert np.all(value <= np.asarray(best) * (1 + 1e-9))

        # The same program on a zero map.
        zero = run(jnp.zeros_like(a), init=start)
        np.testing.assert_array_equal(zero.value, 0)
        np.testing.assert_array_equal(zero.residual, 0)
        np.testing.assert_allclose(lengths(zero.right, p), 1, rtol=1e-12)


@pytest.mark.parametrize(("p", "q"), PAIRS)
def test_many_restarts_reach_the_norm(p, q):
    with jax.enable_x64(True):
        a = matrix()
        run = compiled(p=p, q=q, num_steps=100, num_restarts=60)
        expected = [exact_norm(one, p, q) for one in np.asarray(a)]
        found = run(a, jax.random.key(2))
        np.testing.assert_allclose(found.value, expected, rtol=1e-6)


@pytest.mark.parametrize(("p", "q"), [(2.0, 2.0), (INF, 2.0), (3.0, 2.0)])
def test_gradient_ascent_reaches_a_stationary_point_too(p, q):
    with jax.enable_x64(True):
        a = matrix()
        run = compiled(p=p, q=q, num_steps=3000, step_size=0.5)
        found = run(a, jax.random.key(1))
        assert np.all(found.residual < 1e-6)
        np.testing.assert_allclose(lengths(found.right, p), 1, rtol=1e-9)
        if p == q == 2:
            exact = np.linalg.norm(a, 2, axis=(1, 2))
            np.testing.assert_allclose(found.value, exact, rtol=1e-6)


def test_a_long_step_is_the_power_step():
    with jax.enable_x64(True):
        a, start = matrix(), starts()
        for p, q in [(2.0, 2.0), (2.0, 1.0), (INF, 2.0)]:
            options = {"p": p, "q": q, "num_steps": 2}
            power = compiled(**options)(a, init=start)
            ascent = compiled(step_size=1e12, **options)(a, init=start)
            np.testing.assert_allclose(ascent.right, power.right, atol=1e-9)


def test_tolerance_stops_early_and_a_warm_start_earlier():
    a = matrix()
    run = compiled(num_steps=500, tolerance=1e-5)
    cold = run(a, init=starts())
    assert 0 < cold.num_steps < 500
    assert np.all(cold.residual <= 1e-5)
    warm = run(a, init=cold.right)
    assert warm.num_steps == 0
    np.testing.assert_allclose(warm.value, cold.value, rtol=1e-5)


class TestVariants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_operator_norm(self):
        a = matrix().astype(jnp.float32)

        def sigma(a, key):
            return linalg.operator_norm(
                linalg.from_matrix(a), num_steps=300, key=key
            ).value

        found = self.variant(sigma)(a, jax.random.key(0))
        expected = np.linalg.norm(np.asarray(a), 2, axis=(1, 2))
        np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "key is None"),
        ({"p": 0.5}, "p is 0.5"),
        ({"num_steps": -1}, "num_steps"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"step_size": -1.0}, "step_size"),
        ({"num_restarts": 0}, "num_restarts"),
        ({"num_steps": True}, "num_steps is True"),
        ({"num_restarts": 2.0}, "num_restarts is 2.0"),
        ({"init": jnp.ones((1, 2))}, "init has shape"),
        ({"init": jnp.ones((3, 7)), "num_restarts": 2}, "key is None"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        linalg.operator_norm(linalg.from_matrix(matrix()), **options)


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_a_start_without_direction_spoils_no_example(bad):
    with jax.enable_x64(True):
        a = matrix()
        start = np.array(starts())
        start[1] = bad
        found = compiled(num_steps=2000)(a, init=jnp.asarray(start))
        expected = np.linalg.norm(a, 2, axis=(1, 2))
        np.testing.assert_allclose(found.value, expected, rtol=1e-9)
        np.testing.assert_allclose(lengths(found.right, 2), 1, rtol=1e-12)


def test_a_map_of_nan_has_norm_nan_and_leaves_the_others_alone():
    with jax.enable_x64(True):
        a = np.array(matrix())
        run = compiled(num_restarts=2)
        clean = run(jnp.asarray(a), jax.random.key(0))
        a[1, 2, 3] = np.nan
        found = run(jnp.asarray(a), jax.random.key(0))
        assert np.isnan(found.value[1])
        np.testing.assert_allclose(found.value[::2], clean.value[::2], rtol=1e-12)
        np.testing.assert_allclose(lengths(found.right, 2), 1, rtol=1e-12)


def test_a_start_of_unit_norm_is_used_as_it_is():
    with jax.enable_x64(True):
        start = np.asarray(starts())
        start = jnp.asarray(start / lengths(start, 3)[:, None])
        found = compiled(p=3.0, num_steps=0)(matrix(), init=start)
        np.testing.assert_allclose(found.right, start, rtol=1e-14)
