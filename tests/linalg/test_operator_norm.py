"""Linear maps, (p, q) norms of matrices and maps, against closed forms and SciPy."""

import functools
import itertools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import linalg

INF = math.inf
PAIRS = list(itertools.product((1.0, 2.0, INF), repeat=2))


@functools.cache
def compiled(**options):
    """Norms of dense matrices as one program for each set of options."""

    def found(matrix, key):
        return linalg.operator_norm(linalg.from_matrix(matrix), key=key, **options)

    return jax.jit(found)


def matrix(d=5, n=7, seed=0, batch=3):
    return jax.random.normal(
        jax.random.key(seed), (batch, d, n), jnp.result_type(float)
    )


def brute_force(a, p, q):
    """The (p, q) norm for p in {1, inf} by the ball's vertices, else by duality."""
    d, n = a.shape
    if p == 1:
        vertices = np.eye(n)
    elif p == INF:
        vertices = np.array(list(itertools.product((-1, 1), repeat=n)))
    elif q == 2:
        return np.linalg.norm(a, 2)
    else:
        dual = {1.0: INF, 2.0: 2.0, INF: 1.0}
        return brute_force(a.T, dual[q], dual[p])
    return max(np.linalg.norm(a @ v, q) for v in vertices)


@pytest.mark.parametrize(("p", "q"), PAIRS)
def test_matrix_norms_are_exact_where_they_say_so(p, q):
    with jax.enable_x64(True):
        a = matrix()
        found = linalg.matrix_norm(a, p, q)
        assert found.exact
        expected = [brute_force(np.asarray(one), p, q) for one in a]
        np.testing.assert_allclose(found.value, expected, rtol=1e-12)
        image = jnp.einsum("bdn,bn->bd", a, found.right)
        np.testing.assert_allclose(linalg.norm(found.right, p), 1.0, rtol=1e-12)
        np.testing.assert_allclose(linalg.norm(image, q), expected, rtol=1e-12)
        np.testing.assert_allclose(linalg.inner(found.left, image), expected)


def test_matrix_norm_says_how_it_was_found():
    a = jnp.ones((30, 40))
    methods = {
        (1, 3): "column",
        (3, INF): "row",
        (2, 2): "singular_value",
        (INF, 2): "iteration",
        (3, 3): "iteration",
    }
    for (p, q), method in methods.items():
        found = linalg.matrix_norm(a, p, q)
        assert (found.method, found.exact) == (method, method != "iteration")
        assert found.value.shape == () and found.right.shape == (40,)
        # Of a matrix of ones: ||1||_q ||1||_{p*}.
        dual = linalg.conjugate_exponent(p)
        expected = 30 ** (1 / q) * 40 ** (1 / dual)
        np.testing.assert_allclose(found.value, expected, rtol=1e-5)
    assert linalg.matrix_norm(a[:, :6], INF, 2).method == "enumeration"
    assert linalg.matrix_norm(a[:6], 2, 1).method == "enumeration"


@pytest.mark.parametrize(("p", "q"), [*PAIRS, (1.5, 3.0), (4.0, 1.2)])
def test_power_method_rises_to_a_stationary_point(p, q):
    with jax.enable_x64(True):
        a = matrix()
        found = [
            compiled(p=p, q=q, num_steps=k)(a, jax.random.key(1)) for k in (0, 2, 2000)
        ]
        values = np.array([f.value for f in found])
        assert np.all(np.diff(values, axis=0) > -1e-12)
        assert np.all(found[-1].residual < 1e-8)
        best = linalg.matrix_norm(a, p, q).value
        assert np.all(values[-1] <= best * (1 + 1e-9))
        np.testing.assert_allclose(linalg.norm(found[-1].right, p), 1, rtol=1e-12)
        image = jnp.einsum("bdn,bn->bd", a, found[-1].right)
        np.testing.assert_allclose(linalg.norm(image, q), values[-1], rtol=1e-12)


@pytest.mark.parametrize(("p", "q"), PAIRS)
def test_many_restarts_reach_the_norm(p, q):
    with jax.enable_x64(True):
        a = matrix()
        options = {"p": p, "q": q, "num_steps": 100}
        one = compiled(**options)(a, jax.random.key(2))
        many = compiled(num_restarts=60, **options)(a, jax.random.key(2))
        assert np.all(many.value >= one.value - 1e-12)
        expected = linalg.matrix_norm(a, p, q).value
        np.testing.assert_allclose(many.value, expected, rtol=1e-6)


@pytest.mark.parametrize(("p", "q"), [(2.0, 2.0), (INF, 2.0), (3.0, 2.0)])
def test_gradient_ascent_reaches_a_stationary_point_too(p, q):
    with jax.enable_x64(True):
        a = matrix()
        found = linalg.operator_norm(
            linalg.from_matrix(a),
            p=p,
            q=q,
            num_steps=3000,
            step_size=0.5,
            key=jax.random.key(1),
        )
        assert np.all(found.residual < 1e-6)
        np.testing.assert_allclose(linalg.norm(found.right, p), 1, rtol=1e-9)
        if p == q == 2:
            np.testing.assert_allclose(
                found.value, np.linalg.norm(a, 2, axis=(1, 2)), rtol=1e-6
            )


def test_a_long_step_is_the_power_step():
    with jax.enable_x64(True):
        a = linalg.from_matrix(matrix())
        start = jax.random.normal(jax.random.key(1), (3, 7), jnp.float64)
        for p, q in [(2.0, 2.0), (2.0, 1.0), (INF, 2.0)]:
            options = {"p": p, "q": q, "num_steps": 3, "init": start}
            power = linalg.operator_norm(a, **options)
            ascent = linalg.operator_norm(a, step_size=1e12, **options)
            np.testing.assert_allclose(ascent.right, power.right, atol=1e-9)


def test_tolerance_stops_early_and_a_warm_start_earlier():
    a = linalg.from_matrix(matrix().astype(jnp.float32))
    options = {"num_steps": 500, "tolerance": 1e-5}
    cold = linalg.operator_norm(a, key=jax.random.key(0), **options)
    assert 0 < cold.num_steps < 500
    assert np.all(cold.residual <= 1e-5)
    warm = linalg.operator_norm(a, init=cold.right, **options)
    assert warm.num_steps == 0
    np.testing.assert_allclose(warm.value, cold.value, rtol=1e-5)


@pytest.mark.parametrize(("p", "q"), PAIRS)
def test_zero_maps_have_norm_zero_and_unit_vectors(p, q):
    found = compiled(p=p, q=q)(jnp.zeros((2, 3, 4)), jax.random.key(0))
    np.testing.assert_array_equal(found.value, 0)
    np.testing.assert_array_equal(found.residual, 0)
    np.testing.assert_allclose(linalg.norm(found.right, p), 1, rtol=1e-6)
    assert np.all(linalg.matrix_norm(jnp.zeros((3, 4)), p, q).value == 0)


def test_maps_compose_and_transpose():
    a, b = matrix(5, 7), matrix(7, 4, seed=1)
    both = linalg.from_matrix(a) @ linalg.from_matrix(b)
    v = jax.random.normal(jax.random.key(2), (3, 4))
    u = jax.random.normal(jax.random.key(3), (3, 5))
    np.testing.assert_allclose(
        both.matvec(v), jnp.einsum("bdn,bnm,bm->bd", a, b, v), rtol=1e-4
    )
    np.testing.assert_allclose(
        linalg.inner(both.matvec(v), u), linalg.inner(v, both.T.matvec(u)), rtol=1e-4
    )
    gram = linalg.from_matrix(a).gram()
    assert (gram.in_shape, gram.out_shape) == ((7,), (7,))
    with pytest.raises(ValueError, match="outer"):
        linalg.compose(linalg.from_matrix(b), linalg.from_matrix(a))


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
        ({"init": jnp.ones((1, 2))}, "init has shape"),
        ({"init": jnp.ones((3, 7)), "num_restarts": 2}, "key is None"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        linalg.operator_norm(linalg.from_matrix(matrix()), **options)


@pytest.mark.parametrize("bad", (0.0, math.nan, math.inf))
def test_a_start_without_direction_spoils_no_example(bad):
    with jax.enable_x64(True):
        a = matrix()
        start = jax.random.normal(jax.random.key(1), (3, 7)).at[1].set(bad)
        found = linalg.operator_norm(linalg.from_matrix(a), num_steps=2000, init=start)
        expected = np.linalg.norm(a, 2, axis=(1, 2))
        np.testing.assert_allclose(found.value, expected, rtol=1e-9)
        np.testing.assert_allclose(linalg.norm(found.right, 2.0), 1, rtol=1e-12)


def test_a_map_of_nan_has_norm_nan_and_leaves_the_others_alone():
    with jax.enable_x64(True):
        a = matrix()
        clean = compiled(num_restarts=2)(a, jax.random.key(0))
        spoilt = a.at[1, 2, 3].set(jnp.nan)
        found = compiled(num_restarts=2)(spoilt, jax.random.key(0))
        assert np.isnan(found.value[1])
        np.testing.assert_allclose(found.value[::2], clean.value[::2], rtol=1e-12)
        np.testing.assert_allclose(linalg.norm(found.right, 2.0), 1, rtol=1e-12)


def test_a_start_of_unit_norm_is_used_as_it_is():
    with jax.enable_x64(True):
        start = linalg.sample_sphere(jax.random.key(1), jnp.zeros((3, 7)), 3.0)
        found = linalg.operator_norm(
            linalg.from_matrix(matrix()), p=3.0, num_steps=0, init=start
        )
        np.testing.assert_allclose(found.right, start, rtol=1e-14)
