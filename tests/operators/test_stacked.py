"""Stacked Jacobians of a set, against dense matrices and closed forms."""

import itertools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import linalg, operators
from tests.support.jacobians import conv_network


def stacked(matrix):
    """Dense Jacobians ``(N, d, n)`` as one matrix ``(N d, n)`` in float64."""
    return np.asarray(matrix, np.float64).reshape(-1, matrix.shape[-1])


def test_products_and_singular_values_are_those_of_the_dense_matrix():
    """Eight images in batches of three: the last batch is filled up with copies."""
    f, x, matrix = conv_network()
    dense = stacked(matrix)
    draws = np.random.default_rng(0)
    v = draws.normal(size=(1, *x.shape[1:])).astype(np.float32)
    u = draws.normal(size=(1, 8, 3)).astype(np.float32)
    key = jax.random.key(0)

    @jax.jit
    def products(x, v, u):
        stack = operators.stacked_jacobian_map(f, x, batch_size=3)
        return (
            stack @ v,
            stack.T @ u,
            linalg.adjoint_error(stack, key),
            linalg.golub_kahan(stack, 3, num_steps=20, key=key),
        )

    image, pulled, error, top = products(x, v, u)
    chex.assert_shape(image, (1, 8, 3))
    chex.assert_shape(pulled, v.shape)
    chex.assert_trees_all_close(image.ravel(), dense @ v.ravel(), atol=1e-4)
    chex.assert_trees_all_close(pulled.ravel(), dense.T @ u.ravel(), atol=1e-4)
    assert error[0] < 1e-5
    _, values, rows = np.linalg.svd(dense)
    chex.assert_trees_all_close(top.values[0], values[:3], rtol=1e-5)
    aligned = np.abs(np.sum(np.asarray(top.right).reshape(3, -1) * rows[:3], axis=1))
    chex.assert_trees_all_close(aligned, np.ones(3), atol=1e-4)


def test_a_linear_network_has_the_norm_of_one_image_times_a_power_of_the_number():
    """``||S||_{p,q} = N^{1/q} ||W||_{p,q}``; (inf, q) by all sign vectors."""
    weights = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)
    images = np.random.default_rng(2).integers(0, 256, (5, 6)).astype(np.uint8)
    signs = np.array(list(itertools.product([-1.0, 1.0], repeat=6)))
    effects = signs @ weights.astype(np.float64)

    @jax.jit
    def norms(weights, images):
        stack = operators.stacked_jacobian_map(
            lambda x: x @ weights, images, batch_size=2
        )
        return [
            linalg.operator_norm(
                stack, p=math.inf, q=q, num_restarts=8, key=jax.random.key(0)
            )
            for q in (3.0, math.inf)
        ]

    for q, found in zip((3.0, math.inf), norms(weights, images), strict=True):
        one = np.linalg.norm(effects, q, axis=1).max()
        expected = one * (1.0 if q == math.inf else 5 ** (1 / q))
        assert found.value[0] == pytest.approx(expected, rel=1e-5)
        chex.assert_trees_all_close(np.abs(found.right), np.ones((1, 6)))


def test_bad_sets_are_refused():
    def f(x):
        return x @ jnp.ones((4, 2))

    with pytest.raises(ValueError, match=r"batch_size is 0"):
        operators.stacked_jacobian_map(f, np.zeros((3, 4), np.uint8), batch_size=0)
    with pytest.raises(ValueError, match=r"at least one example"):
        operators.stacked_jacobian_map(f, np.zeros((0, 4), np.float32))
    with pytest.raises(ValueError, match=r"int32.*floating point"):
        operators.stacked_jacobian_map(f, np.zeros((3, 4), np.int32))
