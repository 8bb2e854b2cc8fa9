"""Kernels of every room under pmap on eight devices: what one device computes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import attacks, linalg, operators, regularizers

WEIGHTS = [
    jax.random.normal(jax.random.key(number), shape) / shape[0] ** 0.5
    for number, shape in enumerate(((12, 8), (8, 4)))
]
PICTURES = jax.random.uniform(jax.random.key(2), (16, 2, 2, 3))
LABELS = jnp.arange(16) % 4


def network(x):
    hidden = x.reshape(len(x), -1) @ WEIGHTS[0]
    return jax.nn.softplus(4 * hidden) @ WEIGHTS[1]


def losses(labels, x):
    return attacks.cross_entropy(network(x), labels)


def gradient_penalty(x, labels):
    loss = functools.partial(losses, labels)
    return regularizers.gradient_penalty(loss, x, method="central").value


def difference_penalty(x, labels):
    penalty = regularizers.jacobian_norm(epsilon=0.1, method="dense")
    return penalty(network, x).value


def hessian_norm(x, labels):
    hessian = operators.input_hessian_map(functools.partial(losses, labels), x)
    # As many steps as pixels: exact, wherever it starts.
    return linalg.eigenpairs(hessian, k=1, num_steps=12, key=jax.random.key(0)).values


def curvature(x, labels):
    found = operators.cross_entropy_gauss_newton(network, x).values
    curved = operators.is_curved(network, x, key=jax.random.key(0))
    return jnp.where(curved[:, None], found, 0.0)


def attacked(x, labels):
    attack = attacks.pga(
        p=2.0, epsilon=0.2, num_steps=5, momentum=0.5, random_start=False
    )
    return attack(network, x, labels, jax.random.key(0))


def nearest(x, labels):
    return (
        attacks.deepfool(num_steps=3).run(network, x, labels, jax.random.key(0)).x_adv
    )


@pytest.mark.parametrize(
    "kernel",
    [gradient_penalty, difference_penalty, hessian_norm, curvature, attacked, nearest],
)
def test_eight_devices_compute_what_one_does(kernel):
    whole = jax.jit(kernel)(PICTURES, LABELS)
    split = jax.tree.map(lambda a: a.reshape(8, 2, *a.shape[1:]), (PICTURES, LABELS))
    parallel = jax.pmap(kernel)(*split)
    np.testing.assert_allclose(
        parallel.reshape(whole.shape), whole, rtol=2e-4, atol=1e-5
    )
    assert np.std(np.asarray(whole)) > 0
