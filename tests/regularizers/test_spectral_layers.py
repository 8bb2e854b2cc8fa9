"""Layers with a bounded operator norm, against dense matrices from Jacobians."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from opnorm import operators, regularizers

SHAPE = (5, 4, 2)


def norm(function, shape=SHAPE):
    """The largest singular value of the Jacobian of a linear layer."""
    jacobian = jax.jit(jax.jacobian(lambda x: function(x[None]).ravel()))
    dense = np.asarray(jacobian(jnp.zeros(shape)), np.float64).reshape(
        -1, np.prod(shape)
    )
    return np.linalg.norm(dense, 2)


def convolution(rngs):
    return nnx.Conv(2, 3, (3, 2), strides=(2, 1), padding=((1, 0), (0, 2)), rngs=rngs)


def transposed(rngs):
    return nnx.ConvTranspose(2, 3, (3, 3), strides=(2, 1), rngs=rngs)


@pytest.mark.parametrize("make", [convolution, transposed])
def test_an_nnx_layer_gets_the_bound_as_its_norm(make):
    rngs = nnx.Rngs(0)
    inner = make(rngs)
    before = norm(inner)
    layer = regularizers.SpectralNorm(inner, SHAPE, bound=0.3, num_steps=50, rngs=rngs)
    x = jnp.ones((2, *SHAPE))

    @nnx.jit
    def call(layer, x):
        return layer(x)

    first = np.asarray(layer.vectors["kernel"][...])
    call(layer, x)
    stored = np.asarray(layer.vectors["kernel"][...])
    assert np.max(np.abs(stored - first)) > 0
    layer.eval()
    output = call(layer, x)
    np.testing.assert_array_equal(layer.vectors["kernel"][...], stored)
    np.testing.assert_allclose(norm(layer), 0.3, rtol=1e-3)
    np.testing.assert_allclose(layer.norms()["kernel"], before, rtol=1e-3)
    # The bias is not divided, and the kernel that is trained is not changed.
    bias = inner.bias[...]
    scaled = (inner(x) - bias) * 0.3 / before + bias
    np.testing.assert_allclose(output, scaled, rtol=2e-3, atol=1e-5)


def test_a_smaller_norm_is_not_changed_and_several_layers_are_bounded_each():
    rngs = nnx.Rngs(0)
    first, second = (nnx.Linear(2, 2, use_bias=False, rngs=rngs) for _ in range(2))
    first.kernel[...] = jnp.diag(jnp.array([4.0, 1.0]))
    second.kernel[...] = jnp.diag(jnp.array([0.5, 0.25]))
    both = nnx.Sequential(first, second)
    layer = regularizers.SpectralNorm(both, (2,), rngs=rngs)
    layer.eval()
    # A kernel that changed at once needs more steps.
    first.kernel[...] = jnp.diag(jnp.array([1.0, 4.0]))
    layer.refine()
    np.testing.assert_allclose(layer(jnp.eye(2)), [[0.125, 0], [0, 0.25]], rtol=1e-5)
    assert set(layer.norms()) == {"layers/0", "layers/1"}


def test_linen_layers_get_the_bound_as_their_norm():
    layer = regularizers.LinenSpectralNorm(nn.Conv(3, (3, 2), strides=2), num_steps=40)
    x = jnp.ones((2, *SHAPE))
    variables = layer.init(jax.random.key(0), x, train=False)
    variables["params"]["parameters"]["kernel"] *= 3.0

    @jax.jit
    def step(variables):
        return layer.apply(variables, x, train=True, mutable=["batch_stats"])[1]

    chosen = {"params": variables["params"], **step(variables)}

    def apply(x):
        return layer.apply(chosen, x, train=False)

    np.testing.assert_allclose(norm(apply), 1.0, rtol=1e-3)
    with pytest.raises(Exception, match="batch_stats"):
        layer.apply(chosen, x, train=True)
    # A network is found with the kernels that it uses, not with those it trains.
    (found,) = operators.find_layers(apply, x)
    map_norm = norm(lambda x: operators.layer_map(found).matvec(x))
    np.testing.assert_allclose(map_norm, 1.0, rtol=1e-3)


def test_the_gradient_is_that_of_division_by_the_norm():
    rngs = nnx.Rngs(0)
    inner = nnx.Linear(3, 3, use_bias=False, rngs=rngs)
    inner.kernel[...] = 2.0 * jnp.diag(jnp.array([2.0, 1.0, 0.5])) + 0.1
    layer = regularizers.SpectralNorm(inner, (3,), num_steps=30, rngs=rngs)
    layer.eval()
    weight = np.arange(9.0, dtype=np.float32).reshape(3, 3)

    @nnx.jit
    @nnx.grad
    def gradient(layer):
        return jnp.sum(weight * layer(jnp.eye(3)))

    found = np.asarray(gradient(layer)["layer"]["kernel"][...])
    kernel = np.asarray(inner.kernel[...], np.float64)
    u, s, v = np.linalg.svd(kernel)
    slope = np.sum(weight * kernel) / s[0] ** 2
    expected = weight / s[0] - slope * np.outer(u[:, 0], v[0])
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_bad_options_are_named():
    rngs = nnx.Rngs(0)
    linear = nnx.Linear(2, 2, rngs=rngs)
    with pytest.raises(ValueError, match="bound"):
        regularizers.SpectralNorm(linear, (2,), bound=0.0, rngs=rngs)
    with pytest.raises(ValueError, match="num_steps"):
        regularizers.SpectralNorm(linear, (2,), num_steps=0, rngs=rngs)
    with pytest.raises(ValueError, match=r"x has shape \(1, 4, 2\)"):
        regularizers.SpectralNorm(linear, (3, 2), rngs=rngs)(jnp.ones((1, 4, 2)))
    with pytest.raises(ValueError, match="without layers"):
        regularizers.SpectralNorm(nnx.Dropout(0.5, rngs=rngs), (2,), rngs=rngs)
    norm = regularizers.LinenSpectralNorm(nn.BatchNorm(use_running_average=True))
    with pytest.raises(ValueError, match="parameters only"):
        norm.init(jax.random.key(0), jnp.ones((1, 2)), train=False)
