"""Linear maps given by their products, against dense matrices in NumPy."""

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
        assert linear_map.T.T == linear_map


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
    (
        jnp.ones(3),
        jnp.ones((2, 3), jnp.int32),
        jnp.ones((0, 3)),
        jnp.ones((1, 1, 1, 1)),
    ),
    ids=("rank one", "integers", "empty", "rank four"),
)
def test_bad_matrices_are_refused(matrix):
    with pytest.raises(ValueError, match="matrix has shape"):
        linalg.from_matrix(matrix)
