"""Jacobians by regression are right for tiny noise and many samples only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import operators

INPUTS = 6


def network(x):
    first = jax.random.normal(jax.random.key(0), (INPUTS, 16), jnp.float64)
    second = jax.random.normal(jax.random.key(1), (16, 3), jnp.float64)
    return jax.nn.relu(x.reshape(len(x), -1) @ first + 0.5) @ second


def estimate(x, **options):
    return operators.regressed_jacobian(
        network, x, **{"num_samples": 50, "key": jax.random.key(2), **options}
    )


def test_it_is_exact_inside_a_linear_region_and_blurred_outside():
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(3), (2, 2, 3), jnp.float64)
        exact = operators.dense_jacobian(network, x)
        found = estimate(x, radius=1e-4)
        assert found.shape == (2, 3, 2, 3)
        np.testing.assert_allclose(found, exact, atol=1e-9)
        assert np.abs(estimate(x, radius=3.0) - exact).max() > 0.1


def test_few_samples_see_only_the_span_of_the_noise():
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(3), (2, 2, 3), jnp.float64)
        exact = operators.dense_jacobian(network, x).reshape(2, 3, INPUTS)
        found = estimate(x, radius=1e-4, num_samples=3).reshape(2, 3, INPUTS)
        assert np.all(np.linalg.matrix_rank(found, tol=1e-6) == 2)
        # The estimate is a projection of J: it equals J on its own row space.
        rows = np.linalg.svd(found[0])[2][:2]
        np.testing.assert_allclose(found[0], exact[0] @ rows.T @ rows, atol=1e-8)
        assert np.all(
            np.linalg.norm(found, 2, axis=(1, 2)) < np.linalg.norm(exact, 2, (1, 2))
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 1, "radius": 0.1}, "num_samples is 1"),
        ({"radius": 0.0}, "radius is 0"),
        ({"num_samples": 2.5, "radius": 0.1}, "num_samples is 2.5"),
        ({"key": 0, "radius": 0.1}, "key is 0; it must be a typed key"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        estimate(jnp.ones((2, 2, 3)), **options)
