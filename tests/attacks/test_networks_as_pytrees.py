"""Attacks and norms compile once for networks of one structure, and are never stale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from opnorm import attacks, operators

X = np.random.default_rng(0).uniform(0.3, 0.7, (3, 4)).astype(np.float32)
MATRIX = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
LABELS = np.argmax(X @ MATRIX, 1)
KEY = jax.random.key(0)
PGA = attacks.pga(p=2, epsilon=0.1, num_steps=2, random_start=False)


def attacked(f):
    return PGA(f, X, LABELS, KEY)


def norms(f):
    return operators.jacobian_norm(f, X).value


def triplets(f):
    return operators.singular_triplets(f, X).values


def hessians(f):
    return operators.cross_entropy_hessian(f, X).values


def jacobians(f):
    return operators.dense_jacobian(f, X)


def regressed(f):
    return operators.regressed_jacobian(f, X, num_samples=8, radius=0.1, key=KEY)


def apply_matrix(matrix, x):
    return x @ matrix


CALLS = (attacked, norms, triplets, hessians, jacobians, regressed)


@pytest.mark.parametrize("call", CALLS)
def test_an_eager_loop_compiles_once(call):
    traces = []

    def apply(matrix, x):
        traces.append(1)
        return x @ matrix

    first = call(jax.tree_util.Partial(apply, MATRIX))
    seen = len(traces)
    again = [call(jax.tree_util.Partial(apply, c * MATRIX)) for c in (1.0, -2.0)]
    assert len(traces) == seen
    np.testing.assert_array_equal(first, again[0])
    assert np.abs(first - again[1]).max() > 1e-3


@pytest.mark.parametrize("call", [attacked, norms])
def test_a_plain_function_and_an_nnx_module_are_never_stale(call):
    weights = {"matrix": MATRIX}
    module = nnx.Linear(4, 3, use_bias=False, rngs=nnx.Rngs(0))
    for scale in (1.0, -2.0):
        weights["matrix"] = scale * MATRIX
        module.kernel[...] = jnp.asarray(scale * MATRIX)
        expected = call(jax.tree_util.Partial(apply_matrix, scale * MATRIX))
        np.testing.assert_allclose(
            call(lambda x: x @ weights["matrix"]), expected, rtol=1e-5
        )
        np.testing.assert_allclose(call(module), expected, rtol=1e-5)
