"""BatchNorm against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm.models import layers


@pytest.mark.parametrize(
    ("dtype", "digits"), [(jnp.bfloat16, 2**-8), (jnp.float16, 2**-11)]
)
def test_half_precision_loses_its_own_digits_and_no_others(dtype, digits):
    # The values are far from zero, where a difference of mean squares cancels.
    x = 20 + np.random.default_rng(0).normal(size=(64, 8, 8, 5))
    x = jnp.asarray(x, dtype)
    exact = np.asarray(x, np.float64)
    mean, variance = exact.mean((0, 1, 2)), exact.var((0, 1, 2))
    module = layers.batch_norm("norm", train=True, dtype=dtype)
    variables = module.init(jax.random.key(0), x)
    y, updated = module.apply(variables, x, mutable=["batch_stats"])
    statistics = updated["batch_stats"]
    assert statistics["mean"].dtype == statistics["var"].dtype == jnp.float32
    np.testing.assert_allclose(statistics["mean"], 0.1 * mean, rtol=1e-6)
    np.testing.assert_allclose(statistics["var"], 0.9 + 0.1 * variance, rtol=1e-5)
    assert y.dtype == dtype
    normalized = (exact - mean) / np.sqrt(variance + 1e-5)
    error = np.abs(np.asarray(y, np.float64) - normalized)
    assert np.all(error <= digits * np.abs(normalized) + 1e-4)
