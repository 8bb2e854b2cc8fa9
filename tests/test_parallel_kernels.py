"""Kernels of every room under pmap on eight devices, against one program under jit."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import attacks, linalg, operators, regularizers
from tests.support import named_attacks

SHAPE = (2, 2, 3)
KEY = jax.random.key(0)
RANDOM = np.random.default_rng(0)
WEIGHTS = [
    RANDOM.normal(size=shape).astype(np.float32) / shape[0] ** 0.5
    for shape in ((12, 8), (8, 4))
]
IMAGES = RANDOM.uniform(size=(16, *SHAPE)).astype(np.float32)
LABELS = np.arange(16) % 4


def network(x):
    hidden = x.reshape(len(x), -1) @ jnp.asarray(WEIGHTS[0])
    return jax.nn.softplus(4 * hidden) @ jnp.asarray(WEIGHTS[1])


def losses(labels, x):
    return attacks.cross_entropy(network(x), labels)


def on_eight_devices(kernel, *arguments):
    """Applies ``kernel`` to the parts of a batch, each on a device; joins the rows."""
    split = jax.tree.map(lambda a: a.reshape(8, -1, *a.shape[1:]), arguments)
    found = jax.device_get(jax.pmap(kernel)(*split))
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), found)


def gradient_penalty(x, labels):
    loss = functools.partial(losses, labels)
    return regularizers.gradient_penalty(loss, x, method="central").value


def difference_penalty(x, labels):
    penalty = regularizers.jacobian_norm(epsilon=0.1, method="dense")
    return penalty(network, x).value


def lanczos(x, labels):
    hessian = operators.input_hessian_map(functools.partial(losses, labels), x)
    # With as many steps as pixels the result is exact for every start.
    return linalg.eigenpairs(hessian, k=1, num_steps=12, key=KEY).values


def golub_kahan(x, labels):
    jacobian = operators.jacobian_map(network, x)
    return linalg.golub_kahan(jacobian, 2, num_steps=4, key=KEY).values


def power_iteration(x, labels):
    # A start for each example, since random ones depend on its place in the batch.
    found = operators.jacobian_norm(network, x, method="iterative", num_steps=8, init=x)
    return found.value


def curvature(x, labels):
    found = operators.cross_entropy_gauss_newton(network, x).values
    curved = operators.is_curved(network, x, key=KEY)
    return jnp.where(curved[:, None], found, 0.0)


def clipping(x, labels):
    """Clips a convolution for each row, whose kernel is the image."""

    def clip(image):
        return linalg.clip_circular_singular_values(
            image[..., None], 3, 0.5, num_iterations=2
        )

    return jax.lax.map(clip, x)


def spectral_normalization(x, labels):
    """Divides a dense layer for each row, whose kernel is the image."""
    module = nn.Sequential([nn.Dense(3)])

    def divide(image):
        dense = {"kernel": image.reshape(4, 3), "bias": jnp.zeros(3)}
        params = {"layers_0": dense}
        layers = operators.layers(module, {"params": params}, jnp.zeros((1, 4)))
        vectors = regularizers.init_spectral_vectors(params, layers, KEY, num_steps=5)
        found = regularizers.spectral_normalize(params, layers, vectors, bound=0.5)
        return found.params["layers_0"]["kernel"]

    return jax.lax.map(divide, x)


@pytest.mark.parametrize(
    "kernel",
    [
        gradient_penalty,
        difference_penalty,
        lanczos,
        golub_kahan,
        power_iteration,
        curvature,
        clipping,
        spectral_normalization,
    ],
)
def test_eight_devices_compute_what_one_does(kernel):
    whole = jax.device_get(jax.jit(kernel)(IMAGES, LABELS))
    parallel = on_eight_devices(kernel, IMAGES, LABELS)
    chex.assert_trees_all_close(parallel, whole, rtol=2e-4, atol=1e-5)
    chex.assert_tree_all_finite(whole)
    assert np.std(whole) > 0


# The ensemble takes 7 seconds of CPU to compile for this test alone. It is no search of
# its own: a joined attack runs the stages of apgd, fab and square, which are here by
# themselves, and chooses among rows by the same selection.
@pytest.mark.parametrize("name", sorted({*attacks.NAMES} - {"auto_attack"}))
def test_eight_devices_attack_as_one_does(name):
    p = named_attacks.usual_norm(name)

    def kernel(x, labels, epsilon, keys):
        return named_attacks.make(name, p, epsilon).run(network, x, labels, keys)

    # One example lies on each device.
    x, labels = IMAGES[:8], np.argmax(network(IMAGES[:8]), axis=1)
    epsilon = np.linspace(0.1, 0.4, 8, dtype=np.float32)
    given = (x, labels, epsilon, jax.random.split(KEY, 8))
    whole = jax.device_get(jax.jit(kernel)(*given))
    parallel = on_eight_devices(kernel, *given)
    chex.assert_shape(parallel.x_adv, x.shape)
    chex.assert_tree_all_finite(parallel.x_adv)
    chex.assert_trees_all_equal(parallel.success, whole.success)
    chex.assert_trees_all_close(parallel.distance, whole.distance, atol=2e-5)
    # Later points of this search lie on the sphere of the best one, so that rounding
    # decides which of them is kept.
    if name != "fast_minimum_norm":
        chex.assert_trees_all_close(parallel.x_adv, whole.x_adv, atol=2e-5)
    assert np.any(parallel.x_adv != x)
