"""Derivatives at zero, and where a maximum is attained more than once."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np

from opnorm import linalg

PAIRS = [(1.0, 3.0), (2.0, math.inf), (2.0, 2.0), (2.0, 1.0), (3.0, 1.5)]
RNG = np.random.default_rng(0)
# Matrices with equal or zero singular values, with equal rows, and of zeros.
TIES = np.stack(
    [np.eye(3), np.diag([2.0, 2.0, 0.0]), np.ones((3, 3)), np.zeros((3, 3))]
)


def test_matrix_norms_have_subgradients():
    others = RNG.normal(size=(50, 3, 3))

    @jax.jit
    def everything(matrices):
        found = []
        for p, q in PAIRS:

            def norm(matrix, p=p, q=q):
                options = {"num_restarts": 3, "num_steps": 20}
                return linalg.matrix_norm(matrix, p, q, **options).value

            value, pull = jax.vjp(norm, matrices)
            found.append((value, *pull(jnp.ones_like(value))))
        return found

    with jax.enable_x64(True):
        found = everything(np.concatenate([TIES, others]))
    for (p, q), (values, slopes) in zip(PAIRS, found, strict=True):
        chex.assert_tree_all_finite(slopes)
        count = len(TIES)
        value, beyond, slope = values[:count], values[count:], slopes[:count]
        np.testing.assert_array_equal(slope[-1], 0)
        # A subgradient has <G, A> = ||A|| and ||A|| + <G, B - A> <= ||B||.
        inner = np.einsum("bij,bij->b", slope, TIES)
        np.testing.assert_allclose(inner, value, rtol=1e-9)
        plane = np.einsum("bij,cij->bc", slope, others)
        slack = 1e-3 if (p, q) == (3.0, 1.5) else 1e-9
        assert np.all(plane <= np.asarray(beyond) * (1 + slack) + 1e-12)


def test_clipping_has_the_derivative_of_the_nearest_matrix():
    shapes = [(3, 5), (5, 3), (4, 4)]
    rng = np.random.default_rng(1)
    matrices = [rng.normal(size=shape) for shape in shapes]
    directions = [rng.normal(size=shape) for shape in shapes]
    weight = rng.normal(size=(3, 3))

    def clipped(matrix, bound):
        return linalg.clip_singular_values(matrix, bound)

    @jax.jit
    def everything(matrices, directions, weight):
        bound = jnp.asarray(1.3)
        pushed = [
            jax.jvp(clipped, (m, bound), (d, jnp.ones(())))[1]
            for m, d in zip(matrices, directions, strict=True)
        ]
        changes = []
        for m, d in zip(matrices, directions, strict=True):
            ends = [clipped(m + s * d, bound + s) for s in (1e-6, -1e-6)]
            changes.append((ends[0] - ends[1]) / 2e-6)
        slopes = {
            (name, bound): jax.grad(lambda m, b=bound: jnp.sum(weight * clipped(m, b)))(
                matrix
            )
            for name, matrix in (("I", jnp.eye(3)), ("0", jnp.zeros((3, 3))))
            for bound in (0.5, 2.0)
        }
        return pushed, changes, slopes

    with jax.enable_x64(True):
        pushed, changes, slopes = everything(matrices, directions, weight)
    assert all(np.linalg.norm(m, 2) > 1.3 for m in matrices)
    chex.assert_trees_all_close(pushed, changes, rtol=1e-5, atol=1e-7)
    # Near the identity the clipped matrix is half the polar factor.
    half = 0.25 * (weight - weight.T)
    np.testing.assert_allclose(slopes["I", 0.5], half, atol=1e-12)
    for inside in (("I", 2.0), ("0", 0.5), ("0", 2.0)):
        np.testing.assert_allclose(slopes[inside], weight, atol=1e-12)


def test_norms_maps_and_bounds_have_finite_derivatives_at_zero_and_ties():
    shape = (4, 4, 2)

    def functions(kernel):
        rows = kernel.reshape(2, -1)
        for p in (1.0, 1.5, 2.0, math.inf):
            yield linalg.norm(rows, p)
            yield linalg.dual_map(rows, p)
        for p in (1.0, 1.5):
            yield linalg.project_ball(rows, p, 1.0)
        yield linalg.project_ball_box(rows, 1.0, 1.0, -0.5, 0.5)
        yield linalg.kernel_matrix_singular_values(kernel)
        yield linalg.circular_singular_values(kernel, 4)
        yield linalg.convolution_norm(kernel, shape, num_steps=2).value
        yield linalg.convolution_frobenius_norm(kernel, shape)
        for method in ("svd", "gram_iteration"):
            yield linalg.convolution_upper_bound(kernel, shape, method=method)

    @jax.jit
    def slopes(kernels):
        def total(kernel):
            return sum(jnp.sum(value) for value in functions(kernel))

        # The sum is finite only if every derivative is finite.
        return jax.lax.map(jax.grad(total), kernels)

    centre = np.zeros((3, 3, 2, 2), np.float32)
    centre[1, 1] = np.eye(2)
    found = slopes(np.stack([np.zeros_like(centre), centre, np.ones_like(centre)]))
    chex.assert_tree_all_finite(found)
