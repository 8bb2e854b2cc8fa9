"""Data-dependent penalties on linear models, for which they are known exactly."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import linalg, regularizers

INF = math.inf


def weight():
    return jax.random.normal(jax.random.key(0), (6, 3), jnp.float64)


def inputs():
    return jax.random.normal(jax.random.key(1), (4, 6), jnp.float64)


@pytest.mark.parametrize("variant", ["difference", "derivative"])
def test_squared_penalty_of_a_linear_model(variant):
    with jax.enable_x64(True):
        w = weight()
        penalty = regularizers.jacobian_norm(epsilon=0.3, variant=variant)
        found = penalty(lambda z: z @ w, inputs())
        sigma = np.linalg.norm(w, 2)
        np.testing.assert_allclose(found.value, 0.5 * 0.3**2 * sigma**2, rtol=1e-9)
        np.testing.assert_allclose(linalg.norm(found.direction, 2.0), 1, rtol=1e-12)


@pytest.mark.parametrize("variant", ["difference", "derivative"])
@pytest.mark.parametrize("p", [1.0, 2.0, INF])
@pytest.mark.parametrize("q", [1.0, 2.0, INF])
def test_norm_penalty_of_a_linear_model(variant, p, q):
    with jax.enable_x64(True):
        w = weight()
        penalty = regularizers.jacobian_norm(
            p=p, q=q, epsilon=0.3, variant=variant, squared=False
        )
        found = penalty(lambda z: z @ w, inputs())
        expected = 0.3 * linalg.matrix_norm(w.T, p, q).value
        np.testing.assert_allclose(found.value, expected, rtol=1e-9)


@pytest.mark.parametrize("variant", ["difference", "derivative"])
@pytest.mark.parametrize(("q", "squared"), [(2.0, True), (2.0, False), (1.0, False)])
def test_gradient_is_that_of_finite_differences(variant, q, squared):
    with jax.enable_x64(True):
        penalty = regularizers.jacobian_norm(
            q=q, epsilon=0.3, variant=variant, squared=squared
        )

        def total(w):
            return penalty(lambda z: jnp.tanh(z @ w), inputs()).value.sum()

        # The direction maximises the derivative, not the difference. So the gradient
        # of "difference" is exact for a constant direction, and the gradient of
        # "derivative" is exact for the norm, whose direction depends on w.
        direction = penalty(lambda z: jnp.tanh(z @ weight()), inputs()).direction

        def fixed(w):
            before, after = (
                jnp.tanh(z @ w) for z in (inputs(), inputs() + 0.3 * direction)
            )
            return regularizers.difference_penalty(
                before, after, q=q, squared=squared
            ).sum()

        reference = jax.jit(fixed if variant == "difference" else total)
        w = weight()
        step = 1e-6 * jax.random.normal(jax.random.key(3), w.shape)
        expected = (reference(w + step) - reference(w - step)) / 2
        found = jnp.vdot(jax.grad(total)(w), step)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("squared", [True, False])
def test_gradient_is_finite_where_nothing_moves(squared):
    penalty = regularizers.jacobian_norm(squared=squared)

    def total(w):
        return penalty(lambda z: z @ w, jnp.ones((2, 3))).value.sum()

    assert np.all(np.isfinite(jax.grad(total)(jnp.zeros((3, 2)))))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "both"}, "variant is 'both'"),
        ({"epsilon": -0.1}, "epsilon is -0.1"),
        ({"q": 0.1}, "q is 0.1"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        regularizers.jacobian_norm(**options)
