"""Jacobians as maps and as matrices, against dense matrices in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import operators
from tests.support.jacobians import conv_network, data, mlp, mlp_matrices, mlp_params


def test_map_is_the_jacobian_and_its_transpose():
    f, x, matrix = conv_network()
    rng = np.random.default_rng(2)
    v = rng.normal(size=x.shape).astype(np.float32)
    u = rng.normal(size=(8, 3)).astype(np.float32)

    @jax.jit
    def products(x, v, u):
        linear_map = operators.jacobian_map(f, x)
        derivative = operators.directional_derivative(f, x, v)
        return linear_map.matvec(v), linear_map.rmatvec(u), derivative

    image, pulled, derivative = products(x, v, u)
    expected = np.einsum("bdn,bn->bd", matrix, v.reshape(8, -1))
    np.testing.assert_allclose(image, expected, atol=1e-4)
    np.testing.assert_allclose(
        pulled.reshape(8, -1), np.einsum("bdn,bd->bn", matrix, u), atol=1e-4
    )
    np.testing.assert_allclose(derivative, image, atol=1e-5)


@pytest.mark.parametrize(("n", "d"), [(12, 4), (3, 9)])
def test_dense_jacobian_by_rows_and_by_columns(n, d):
    with jax.enable_x64(True):
        params, x = mlp_params(n=n, d=d), data(n=n)
        found = operators.dense_jacobian(functools.partial(mlp, params), x)
        np.testing.assert_allclose(found, mlp_matrices(params, x), atol=1e-12)


def test_dense_jacobian_in_pieces_under_a_memory_limit():
    f, x, matrices = conv_network()
    one = 3 * 72 * 4
    pieces = list(operators.dense_jacobian_chunks(f, x, max_bytes=3 * one))
    assert [piece.stop - piece.start for piece, _ in pieces] == [3, 3, 2]
    assert all(matrix.nbytes <= 3 * one for _, matrix in pieces)
    whole = np.concatenate([matrix for _, matrix in pieces]).reshape(8, 3, -1)
    np.testing.assert_allclose(whole, matrices, atol=1e-5)
    with pytest.raises(ValueError, match="max_bytes"):
        operators.dense_jacobian(f, x, max_bytes=one)
    with pytest.raises(ValueError, match="one example"):
        operators.dense_jacobian_chunks(f, x, max_bytes=one - 1)


def test_functions_that_break_the_contract_are_refused():
    with pytest.raises(ValueError, match="f returns"):
        operators.jacobian_norm(jnp.sum, jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="a batch axis is missing"):
        operators.jacobian_norm(lambda z: z, jnp.ones(6))


@pytest.mark.parametrize(
    "f",
    [
        lambda x: jnp.round(x).astype(int),
        lambda x: x > 0,
        lambda x: x * 1j,
        lambda x: x[:, :0],
    ],
    ids=("integer", "bool", "complex", "empty"),
)
@pytest.mark.parametrize(
    "call",
    [
        operators.jacobian_norm,
        operators.singular_triplets,
        operators.dense_jacobian,
        operators.jacobian_map,
        lambda f, x: operators.directional_derivative(f, x, x),
        operators.cross_entropy_hessian,
        operators.cross_entropy_gauss_newton,
        lambda f, x: operators.is_curved(f, x, key=jax.random.key(0)),
    ],
)
def test_outputs_without_derivatives_are_refused(call, f):
    with pytest.raises(ValueError, match=r"f returns .*floating point.*d at least 1"):
        call(f, jnp.ones((2, 3)))


@pytest.mark.parametrize(
    "x", [jnp.ones((2, 3), jnp.int32), jnp.ones((0, 3)), jnp.ones(3)]
)
def test_bad_inputs_are_refused(x):
    with pytest.raises(ValueError, match="x has"):
        operators.jacobian_norm(lambda z: z, x)


def test_a_network_replaced_by_one_of_other_outputs_is_looked_at_again():
    closed_over = {"w": jnp.ones((3, 2))}

    def f(x):
        return x @ closed_over["w"]

    x = jnp.ones((1, 3))
    assert operators.dense_jacobian(f, x).shape == (1, 2, 3)
    closed_over["w"] = jnp.ones((3, 4))
    assert operators.dense_jacobian(f, x).shape == (1, 4, 3)
