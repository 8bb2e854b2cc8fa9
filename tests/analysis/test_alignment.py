"""Alignment of perturbations with directions."""

import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import analysis


def test_alignment_is_the_modulus_of_the_cosine() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 3, 4)).astype(np.float32)
    expected = [
        abs(np.vdot(u, v)) / np.linalg.norm(u) / np.linalg.norm(v)
        for u, v in zip(a, b, strict=True)
    ]
    np.testing.assert_allclose(analysis.alignment(a, b), expected, rtol=1e-5)
    np.testing.assert_allclose(analysis.alignment(-3 * a, 1e-20 * a), 1.0, rtol=1e-6)
    assert np.max(analysis.alignment(a, a)) <= 1


def test_zero_is_aligned_with_nothing() -> None:
    zero, one = jnp.zeros((2, 3)), jnp.ones((2, 3))
    np.testing.assert_array_equal(analysis.alignment(zero, one), 0.0)
    np.testing.assert_array_equal(analysis.pearson_alignment(zero, one), 0.0)


def test_pearson_alignment_is_that_of_numpy() -> None:
    a, b = np.random.default_rng(0).normal(1.0, 1.0, size=(2, 5, 12))
    expected = [abs(np.corrcoef(u, v)[0, 1]) for u, v in zip(a, b, strict=True)]
    np.testing.assert_allclose(analysis.pearson_alignment(a, b), expected, rtol=1e-4)


def test_a_constant_has_no_correlation() -> None:
    other = jnp.arange(7.0)[None]
    for value in (0.1, 1 / 3, 1e6):
        constant = jnp.full((1, 7), value)
        assert analysis.pearson_alignment(constant, other)[0] == 0


@pytest.mark.parametrize("size", [1, 2, 10, 3072])
def test_random_directions_have_the_expected_alignment(size: int) -> None:
    draws = 4000
    a = np.random.default_rng(0).normal(size=(draws, size))
    cosine = np.abs(a[:, 0]) / np.linalg.norm(a, axis=1)
    error = 4 * cosine.std() / np.sqrt(draws)
    expected = analysis.expected_random_alignment(size)
    assert abs(cosine.mean() - expected) <= error + 1e-12
    if size > 1000:
        assert expected == pytest.approx(np.sqrt(2 / (np.pi * size)), rel=1e-3)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        analysis.alignment(jnp.ones((2, 3)), jnp.ones((2, 4)))
    with pytest.raises(ValueError, match="size"):
        analysis.expected_random_alignment(0)
