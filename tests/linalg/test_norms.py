"""Norms, dual maps and their laws."""

import math

import chex
import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import linalg

EXPONENTS = (1.0, 1.5, 2.0, 3.0, math.inf)
vectors = hnp.arrays(
    np.float64,
    st.sampled_from([(1, 1), (3, 2, 2), (2, 7)]),
    elements=st.floats(-1e3, 1e3, allow_subnormal=False).map(
        lambda x: 0.0 if abs(x) < 1e-3 else x
    ),
)
settings = hypothesis.settings(max_examples=20, deadline=None)


@pytest.mark.parametrize("p", EXPONENTS)
@settings
@hypothesis.given(x=vectors)
def test_norm_is_numpys(p, x):
    with jax.enable_x64(True):
        found = linalg.norm(jnp.asarray(x), p)
        expected = np.linalg.norm(x.reshape(len(x), -1), p, axis=1)
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("p", EXPONENTS)
@settings
@hypothesis.given(z=vectors)
def test_dual_map_attains_the_dual_norm(p, z):
    with jax.enable_x64(True):
        z = jnp.asarray(z)
        dual = linalg.conjugate_exponent(p)
        direction = linalg.dual_map(z, dual)
        alive = np.asarray(linalg.norm(z, 2.0) > 0)
        np.testing.assert_allclose(
            linalg.norm(direction, p), alive.astype(float), rtol=1e-11
        )
        np.testing.assert_allclose(
            linalg.inner(direction, z), linalg.norm(z, dual), rtol=1e-11, atol=1e-12
        )


@pytest.mark.parametrize("s", [1.0, 2.0, math.inf])
def test_dual_map_is_idempotent_where_the_paper_says_so(s):
    z = jax.random.normal(jax.random.key(0), (5, 7))
    once = linalg.dual_map(z, s)
    np.testing.assert_allclose(linalg.dual_map(once, s), once, atol=1e-6)


def test_ties_share_the_unit_equally():
    z = jnp.array([[3.0, -3.0, 1.0, 0.0]])
    np.testing.assert_allclose(linalg.dual_map(z, math.inf), [[0.5, -0.5, 0, 0]])


@pytest.mark.parametrize("p", EXPONENTS)
def test_gradient_is_the_dual_map_and_zero_at_zero(p):
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(1), (3, 4)).at[1].set(0.0)
        gradient = jax.grad(lambda x: linalg.norm(x, p).sum())(x)
        np.testing.assert_allclose(gradient, linalg.dual_map(x, p), atol=1e-12)
        np.testing.assert_array_equal(gradient[1], 0)
        step = 1e-6 * jax.random.normal(jax.random.key(2), x.shape).at[1].set(0.0)
        moved = linalg.norm(x + step, p) - linalg.norm(x - step, p)
        np.testing.assert_allclose(
            moved, 2 * linalg.inner(gradient, step), rtol=1e-5, atol=1e-13
        )


@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_huge_and_tiny_vectors_neither_overflow_nor_vanish(p, size):
    x = jnp.array([[3.0, 4.0]])
    np.testing.assert_allclose(
        linalg.norm(size * x, p) / size, linalg.norm(x, p), rtol=1e-5
    )
    np.testing.assert_allclose(
        linalg.dual_map(size * x, p), linalg.dual_map(x, p), rtol=1e-5
    )


def test_half_precision_accumulates_in_single():
    x = jnp.full((1, 4096), 0.01, jnp.bfloat16)
    found = linalg.norm(x, 1.0)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, np.asarray(x, np.float32).sum(), rtol=1e-5)
    assert linalg.dual_map(x, 2.0).dtype == jnp.bfloat16


def test_not_a_number_has_no_direction():
    z = jnp.array([[jnp.nan, 1.0], [jnp.inf, 1.0], [1.0, 0.0]])
    np.testing.assert_array_equal(linalg.dual_map(z, 2.0), [[0, 0], [0, 0], [1, 0]])


def test_conjugate_exponents():
    pairs = [(1.0, math.inf), (2.0, 2.0), (4.0, 4 / 3), (math.inf, 1.0)]
    for p, dual in pairs:
        assert linalg.conjugate_exponent(p) == pytest.approx(dual)


@pytest.mark.parametrize("p", [np.int64(2), np.float32(2), np.float64(2), 2])
def test_exponents_of_numpy_are_numbers(p):
    found = linalg.check_exponent("p", p)
    assert type(found) is float
    assert found == 2


@pytest.mark.parametrize(
    "p", [0.5, -1, math.nan, "2", True, np.True_, np.float32(0.5), None]
)
def test_exponents_outside_the_range_are_refused(p):
    with pytest.raises(ValueError, match=r"p is .*\[1, inf\]"):
        linalg.norm(jnp.ones((2, 2)), p)


def test_integers_are_refused():
    with pytest.raises(ValueError, match="int32"):
        linalg.norm(jnp.ones((2, 2), jnp.int32), 2.0)


class TestVariants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
    def test_norm_and_dual_map(self):
        x = jax.random.normal(jax.random.key(0), (3, 2, 2))
        found = self.variant(lambda x: linalg.norm(linalg.dual_map(x, 3.0), 1.5))(x)
        np.testing.assert_allclose(found, np.ones_like(found), rtol=1e-6)


@pytest.mark.parametrize("value", ["8/255", None])
def test_a_length_that_is_no_number_is_named(value):
    with pytest.raises(ValueError, match=r"epsilon is .*; it must be a number"):
        linalg.check_length("epsilon", value)
