"""Linear maps that are given by products, against dense matrices in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import linalg


def matrices(d, n, seed=0, batch=3):
    return np.random.default_rng(seed).normal(size=(batch, d, n))


def test_products_are_those_of_the_matrices():
    with jax.enable_x64(True):
        a, v, u = matrices(5, 7), matrices(1, 7, 1)[:, 0], matrices(1, 5, 2)[:, 0]
        linear_map = linalg.from_matrix(jnp.asarray(a))
        assert (linear_map.batch_size, linear_map.in_shape) == (3, (7,))
        assert (linear_map.in_size, linear_map.out_size) == (7, 5)
        expected = np.einsum("bdn,bn->bd", a, v)
        np.testing.assert_allclose(linear_map.matvec(jnp.asarray(v)), expected)
        expected = np.einsum("bdn,bd->bn", a, u)
        np.testing.assert_allclose(linear_map.rmatvec(jnp.asarray(u)), expected)
        np.testing.assert_allclose(linear_map.T.matvec(jnp.asarray(u)), expected)
        assert linear_map == linear_map.T.T


def test_one_matrix_is_a_batch_of_one():
    linear_map = linalg.from_matrix(jnp.ones((4, 6)))
    assert linear_map.batch_size == 1
    np.testing.assert_array_equal(linear_map.matvec(jnp.ones((1, 6))), [[6.0] * 4])


def test_composition_applies_the_right_hand_map_first():
    with jax.enable_x64(True):
        a, b, v = matrices(5, 7), matrices(7, 4, 1), matrices(1, 4, 2)[:, 0]
        both = linalg.from_matrix(jnp.asarray(a)) @ linalg.from_matrix(jnp.asarray(b))
        assert (both.in_shape, both.out_shape) == ((4,), (5,))
        expected = np.einsum("bdn,bnm,bm->bd", a, b, v)
        found = jax.jit(both.matvec)(jnp.asarray(v))
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_gram_is_symmetric_and_matches():
    with jax.enable_x64(True):
        a, v = matrices(5, 7), matrices(1, 7, 1)[:, 0]
        gram = linalg.from_matrix(jnp.asarray(a)).gram()
        expected = np.einsum("bdn,bdm,bm->bn", a, a, v)
        np.testing.assert_allclose(gram.matvec(jnp.asarray(v)), expected, rtol=1e-12)
        np.testing.assert_allclose(gram.rmatvec(jnp.asarray(v)), expected, rtol=1e-12)


def test_maps_that_do_not_fit_are_refused():
    a, b = (linalg.from_matrix(jnp.ones(s)) for s in ((2, 5, 7), (2, 6, 4)))
    with pytest.raises(ValueError, match="outer takes"):
        linalg.compose(a, b)


@pytest.mark.parametrize(
    "matrix",
    [
        jnp.ones(3),
        jnp.ones((2, 3), jnp.int32),
        jnp.ones((0, 3)),
        jnp.ones((1, 1, 1, 1)),
    ],
    ids=("rank one", "integers", "empty", "rank four"),
)
def test_bad_matrices_are_refused(matrix):
    with pytest.raises(ValueError, match="matrix has shape"):
        linalg.from_matrix(matrix)


def test_sums_multiples_and_shifts_are_those_of_the_matrices():
    with jax.enable_x64(True):
        a, b, v, u = (matrices(4, 4, seed) for seed in range(4))
        v, u, each = v[:, 0], u[:, 0], np.array([1.0, -2.0, 0.5])
        first, second = (linalg.from_matrix(jnp.asarray(m)) for m in (a, b))
        unit = linalg.identity((3, 4), jnp.float64)
        eye = np.eye(4)
        cases = [
            (first + second, a + b),
            (first - second, a - b),
            (-first, -a),
            (2 * first, 2 * a),
            (first * np.float64(0.3), 0.3 * a),
            (np.float64(0.3) * first, 0.3 * a),
            (each * first, each[:, None, None] * a),
            (jnp.asarray(each) * first, each[:, None, None] * a),
            (first + 0.1 * unit, a + 0.1 * eye),
            (first.T @ second - each * unit, a.mT @ b - each[:, None, None] * eye),
        ]

        @jax.jit
        def products(v, u):
            return [(found @ v, found.T @ u) for found, _ in cases]

        for (_, expected), (image, pulled) in zip(cases, products(v, u), strict=True):
            exact = np.einsum("bdn,bn->bd", expected, v)
            np.testing.assert_allclose(image, exact, rtol=1e-12, atol=1e-14)
            exact = np.einsum("bdn,bd->bn", expected, u)
            np.testing.assert_allclose(pulled, exact, rtol=1e-12, atol=1e-14)


def test_a_traced_factor_can_be_differentiated():
    linear_map, v = linalg.from_matrix(jnp.ones((4, 6))), jnp.ones((1, 6))
    slope = jax.jit(jax.grad(lambda c: jnp.sum((c * linear_map) @ v)))(0.5)
    assert slope == 24


def test_arithmetic_promotes_dtypes_and_keeps_mesh_axes():
    half = linalg.identity((2, 3), jnp.bfloat16)
    assert (half + linalg.identity((2, 3), jnp.float32)).dtype == jnp.float32
    assert (np.float64(0.5) * half).dtype == jnp.bfloat16
    assert ((np.float32(0.5) * half) @ jnp.ones((2, 3), half.dtype)).dtype == half.dtype
    seen = []

    def body(factor):
        unit = linalg.identity((1, 3), jnp.float32)
        scaled = factor * unit
        seen.extend([unit.axes, scaled.axes, (unit + scaled).axes])
        return scaled @ jnp.ones((1, 3))

    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.P("data")
    mapped = jax.shard_map(body, mesh=mesh, in_specs=rows, out_specs=rows)
    assert jax.eval_shape(mapped, jnp.ones(2)).shape == (2, 3)
    assert seen == [frozenset(), {"data"}, {"data"}]


def test_arithmetic_that_makes_no_sense_is_refused():
    a, b = (linalg.from_matrix(jnp.ones(s)) for s in ((2, 5, 7), (3, 5, 7)))
    wide = linalg.from_matrix(jnp.ones((2, 7, 5)))
    for other, message in ((b, "3 maps from .7,. to .5,."), (wide, "from .5,. to .7,")):
        with pytest.raises(
            ValueError, match=f"2 maps from .7,. to .5,. and .*{message}"
        ):
            a + other
        with pytest.raises(ValueError, match=message):
            a - other
    for factor in (jnp.ones(3), np.ones((2, 1)), jnp.ones(2, jnp.complex64)):
        with pytest.raises(ValueError, match="a factor of shape"):
            factor * a
    for compute in (
        lambda: a + 0.1,
        lambda: 0.1 + a,
        lambda: a + (1,),  # noqa: RUF005
        lambda: a + jnp.ones((2, 5)),
        lambda: jnp.ones((2, 5)) + a,
        lambda: a * a,
        lambda: a * "2",
        lambda: a @ 2.0,
        lambda: jnp.ones((2, 5)) @ a,
    ):
        with pytest.raises(TypeError):
            compute()
    with pytest.raises(ValueError, match=r"v has shape \(2, 5\); it must be \(2, 7\)"):
        a @ jnp.ones((2, 5))


@pytest.mark.parametrize(
    ("shape", "dtype"), [((), float), ((0, 2), float), ((2,), int)]
)
def test_identities_of_nothing_are_refused(shape, dtype):
    with pytest.raises(ValueError, match=r"shape is .* and dtype"):
        linalg.identity(shape, dtype)


def test_the_adjoint_error_is_that_of_the_matrices():
    with jax.enable_x64(True):
        a, b = matrices(5, 7, batch=4), matrices(5, 7, 1, batch=4)
        # Four adjoints: right, slightly wrong, wrong, and zero.
        a[3], b[0], b[1], b[3] = 0, a[0], a[1] + 1e-3 * b[1], 0

        @jax.jit
        @jax.vmap
        def errors(key):
            forward, backward = (linalg.from_matrix(jnp.asarray(m)) for m in (a, b))
            mixed = forward._replace(rmatvec=backward.rmatvec)
            return linalg.adjoint_error(mixed, key)

        found = np.asarray(errors(jax.random.split(jax.random.key(0), 400)))
        assert found[:, 0].max() < 1e-14
        np.testing.assert_array_equal(found[:, 3], 0)
        size = np.maximum(*(np.linalg.norm(m[1:3], axis=(1, 2)) for m in (a, b)))
        expected = np.linalg.norm((a - b)[1:3], axis=(1, 2)) / size
        spread = np.sqrt(np.mean(found[:, 1:3] ** 2, axis=0))
        np.testing.assert_allclose(spread, expected, rtol=0.3)


def test_the_adjoint_error_of_nan_is_nan_and_wrong_shapes_are_refused():
    key = jax.random.key(0)
    bad = linalg.from_matrix(jnp.ones((2, 5, 7)).at[0].set(jnp.nan))
    np.testing.assert_array_equal(
        np.isnan(linalg.adjoint_error(bad, key)), [True, False]
    )
    with pytest.raises(ValueError, match=r"rmatvec returns shape \(2, 5\).*\(2, 7\)"):
        linalg.adjoint_error(bad._replace(rmatvec=lambda u: u), key)
