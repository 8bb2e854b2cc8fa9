"""Norms of dense matrices against NumPy, brute force and duality."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import linalg
from tests.support.matrices import exact_norm

CASES = {
    (1.0, 1.0): "column",
    (1.0, 2.0): "column",
    (1.0, 3.0): "column",
    (1.0, math.inf): "column",
    (2.0, math.inf): "row",
    (3.0, math.inf): "row",
    (math.inf, math.inf): "row",
    (2.0, 2.0): "singular_value",
    (math.inf, 1.0): "enumeration",
    (math.inf, 2.0): "enumeration",
    (2.0, 1.0): "enumeration",
    (3.0, 1.0): "enumeration",
    (3.0, 1.5): "iteration",
}


def matrices():
    return np.random.default_rng(0).standard_normal((3, 4, 5))


@pytest.mark.parametrize(("p", "q"), CASES)
def test_norms_are_exact_and_the_vectors_attain_them(p, q):
    with jax.enable_x64(True):
        a = matrices()
        found = linalg.matrix_norm(jnp.asarray(a), p, q, num_restarts=3)
        assert found.method == CASES[p, q]
        assert found.exact == (found.method != "iteration")
        if found.exact:
            expected = [exact_norm(one, p, q) for one in a]
            np.testing.assert_allclose(found.value, expected, rtol=1e-10)
        image = np.einsum("bdn,bn->bd", a, found.right)
        for vectors, exponent, length in (
            (found.right, p, 1.0),
            (image, q, found.value),
        ):
            reached = np.linalg.norm(vectors, exponent, axis=1)
            np.testing.assert_allclose(reached, length, rtol=1e-9)
        inner = np.einsum("bd,bd->b", found.left, image)
        np.testing.assert_allclose(inner, found.value, rtol=1e-9)


def test_iteration_says_so_and_nothing_random_exceeds_it():
    with jax.enable_x64(True):
        a = matrices()
        found = linalg.matrix_norm(jnp.asarray(a), 3.0, 1.5, num_restarts=3)
        assert found.method == "iteration"
        assert not found.exact
        tried = np.random.default_rng(1).normal(size=(20_000, 5))
        tried /= np.linalg.norm(tried, 3, axis=1, keepdims=True)
        for one, value in zip(a, found.value, strict=True):
            reached = np.linalg.norm(tried @ one.T, 1.5, axis=1).max()
            assert 0.9 * value < reached <= value * (1 + 1e-9)


@pytest.mark.parametrize(("p", "q"), [(math.inf, 2.0), (2.0, 1.0)])
def test_the_transpose_has_the_dual_norm(p, q):
    with jax.enable_x64(True):
        a = jnp.asarray(matrices())
        found = linalg.matrix_norm(a, p, q, num_restarts=3).value
        dual = linalg.matrix_norm(
            jnp.swapaxes(a, 1, 2),
            linalg.conjugate_exponent(q),
            linalg.conjugate_exponent(p),
        )
        np.testing.assert_allclose(found, dual.value, rtol=1e-10)


def test_too_many_corners_are_iterated_to_a_lower_bound():
    with jax.enable_x64(True):
        a = jnp.asarray(matrices())
        exact = linalg.matrix_norm(a, math.inf, 2.0, num_restarts=3)
        found = linalg.matrix_norm(a, math.inf, 2.0, max_enumeration=8)
        assert found.method == "iteration"
        assert not found.exact
        assert np.all(found.value <= exact.value * (1 + 1e-10))


def test_an_enumeration_of_several_chunks_misses_no_corner():
    with jax.enable_x64(True):
        a = np.random.default_rng(1).standard_normal((2, 12))
        found = linalg.matrix_norm(jnp.asarray(a), math.inf, 2.0)
        assert found.value.shape == ()
        assert found.right.shape == (12,)
        np.testing.assert_allclose(
            found.value, exact_norm(a, math.inf, 2.0), rtol=1e-10
        )


def test_half_precision_is_computed_in_single():
    a = jnp.asarray(matrices(), jnp.bfloat16)
    found = linalg.matrix_norm(a, 2.0, 2.0).value
    assert found.dtype == jnp.float32
    expected = np.linalg.norm(np.asarray(a, np.float32), 2, axis=(1, 2))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("matrix", "p", "q", "options", "message"),
    [
        (jnp.ones(3), 2.0, 2.0, {}, "matrix"),
        (jnp.ones((2, 2), jnp.int32), 2.0, 2.0, {}, "matrix"),
        (jnp.ones((2, 2)), 0.5, 2.0, {}, "p is"),
        (jnp.ones((2, 2)), 2.0, math.nan, {}, "q is"),
        (jnp.ones((2, 2)), 2.0, 2.0, {"num_steps": -1}, "num_steps"),
        (jnp.ones((2, 2)), 2.0, 2.0, {"num_restarts": 0}, "num_restarts"),
    ],
)
def test_bad_arguments_are_refused(matrix, p, q, options, message):
    with pytest.raises(ValueError, match=message):
        linalg.matrix_norm(matrix, p, q, **options)
