"""The smooth ReLU against closed forms, and the table of activations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.polynomial import Polynomial

from opnorm import models
from opnorm.models import activations

# -(x + 1/2)^4 / 2 + (x + 1/2)^3
CURVE = Polynomial([0, 0, 0, 1, -0.5])(Polynomial([0.5, 1]))


def derivatives(x):
    """Returns value, slope and curvature, by forward and by reverse mode."""
    slope = jax.grad(models.smooth_relu)
    curvature = jax.grad(slope)
    forward = jax.jvp(models.smooth_relu, (x,), (jnp.ones_like(x),))[1]
    return models.smooth_relu(x), slope(x), curvature(x), forward


everywhere = jax.jit(jax.vmap(derivatives))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_has_the_published_values_at_the_joins_and_at_zero(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        value, slope, curvature, forward = everywhere(jnp.array([-0.5, 0, 0.5], dtype))
        assert value.dtype == dtype
        np.testing.assert_array_equal(value, [0, 0.09375, 0.5])
        np.testing.assert_array_equal(slope, [0, 0.5, 1])
        np.testing.assert_array_equal(forward, slope)
        np.testing.assert_array_equal(curvature, [0, 1.5, 0])


def test_is_the_polynomial_inside_and_relu_outside_with_two_derivatives():
    x = np.linspace(-2, 2, 801)
    inside = np.abs(x) < 0.5
    with jax.enable_x64(True):
        value, slope, curvature, forward = everywhere(jnp.asarray(x))
    expected = np.where(inside, CURVE(x), np.maximum(x, 0))
    np.testing.assert_allclose(value, expected, atol=1e-15)
    expected = np.where(inside, CURVE.deriv()(x), x > 0)
    np.testing.assert_allclose(slope, expected, atol=1e-14)
    np.testing.assert_allclose(forward, slope, atol=1e-14)
    expected = np.where(inside, CURVE.deriv(2)(x), 0)
    np.testing.assert_allclose(curvature, expected, atol=1e-14)


def test_value_slope_and_curvature_are_continuous_at_the_joins():
    step = 1e-9
    x = np.array([-0.5, 0.5])
    with jax.enable_x64(True):
        below, above = everywhere(jnp.asarray(x - step)), everywhere(x + step)
    for left, right in zip(below, above, strict=True):
        np.testing.assert_allclose(left, right, atol=20 * step)


def test_stays_finite_where_powers_overflow():
    for dtype in (jnp.bfloat16, jnp.float32):
        largest = float(jnp.finfo(dtype).max)
        x = jnp.array([-np.inf, -largest, largest, np.inf], dtype)
        value, slope, curvature, forward = everywhere(x)
        assert value.dtype == dtype
        np.testing.assert_array_equal(
            value.astype(jnp.float32), np.maximum(x.astype(jnp.float32), 0)
        )
        for found in (slope, forward):
            np.testing.assert_array_equal(found.astype(jnp.float32), [0, 0, 1, 1])
        np.testing.assert_array_equal(curvature.astype(jnp.float32), 0)
    assert jnp.isnan(models.smooth_relu(jnp.array(jnp.nan)))


def test_hessian_vector_products_are_those_of_the_polynomial():
    rng = np.random.default_rng(0)
    weights, x, v = (
        rng.normal(size=(3, 4)),
        rng.uniform(-0.3, 0.3, 4),
        rng.normal(size=4),
    )
    with jax.enable_x64(True):

        def f(x):
            return models.smooth_relu(jnp.asarray(weights) @ x).sum()

        product = jax.jit(lambda x: jax.jvp(jax.grad(f), (x,), (jnp.asarray(v),))[1])(x)
    z = weights @ x
    curvature = np.where(np.abs(z) < 0.5, CURVE.deriv(2)(z), 0)
    assert np.count_nonzero(curvature) >= 2
    np.testing.assert_allclose(product, weights.T @ (curvature * (weights @ v)))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_elu_has_bounded_slope_and_curvature_everywhere(dtype):
    elu = models.ACTIVATIONS["elu"]
    largest = float(jnp.finfo(dtype).max)
    x = np.array([-np.inf, -largest, -2, -1, 0, 1, largest, np.inf])
    slope = jax.grad(elu)
    derivatives = jax.vmap(lambda x: (elu(x), slope(x), jax.grad(slope)(x)))
    found = jax.jit(derivatives)(jnp.asarray(x, dtype))
    assert {leaf.dtype for leaf in found} == {jnp.dtype(dtype)}
    value, slope, curvature = (leaf.astype(jnp.float32) for leaf in found)
    x, tolerance = x.astype(dtype).astype(np.float64), 2 * float(jnp.finfo(dtype).eps)
    below = np.exp(np.minimum(x, 0))
    np.testing.assert_allclose(value, np.where(x > 0, x, below - 1), rtol=tolerance)
    np.testing.assert_allclose(slope, np.where(x > 0, 1, below), rtol=tolerance)
    np.testing.assert_allclose(curvature, np.where(x > 0, 0, below), rtol=tolerance)


def test_names_are_checked():
    assert set(models.ACTIVATIONS) == {"relu", "smooth_relu", "elu", "swish"}
    for name in models.ACTIVATIONS:
        activations.check_activation(name)
    with pytest.raises(ValueError, match="'gelu'; it may be relu, smooth_relu, elu"):
        activations.check_activation("gelu")
