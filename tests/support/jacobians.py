"""Small networks and their Jacobians in NumPy."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def mlp(params, x):
    hidden = jax.nn.relu(x.reshape(len(x), -1) @ params["first"] + params["bias"])
    return hidden @ params["second"]


def mlp_params(n=12, hidden=16, d=4):
    rng = np.random.default_rng(0)
    params = {
        "first": rng.normal(size=(n, hidden)),
        "bias": 0.1 * rng.normal(size=hidden),
        "second": rng.normal(size=(hidden, d)),
    }
    return jax.tree.map(jnp.asarray, params)


def mlp_matrices(params, x):
    """The Jacobians of the perceptron by hand."""
    first, bias, second = (np.asarray(params[k]) for k in ("first", "bias", "second"))
    alive = np.asarray(x) @ first + bias > 0
    return np.einsum("nh,bh,hd->bdn", first, alive, second)


class ConvNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), strides=2)(x))
        return nn.Dense(3)(nn.relu(nn.Conv(4, (3, 3))(x)).reshape(len(x), -1))


@functools.cache
def conv_network():
    """A batch function, its inputs and their Jacobians."""
    module = ConvNet()
    x = jnp.asarray(np.random.default_rng(1).normal(size=(8, 6, 6, 2)), jnp.float32)
    params = jax.jit(module.init)(jax.random.key(0), x)
    f = functools.partial(module.apply, params)
    full = jax.jit(jax.vmap(jax.jacrev(lambda z: f(z[None])[0])))(x)
    return f, x, np.asarray(full).reshape(8, 3, -1)


def data(batch=6, n=12):
    return jnp.asarray(np.random.default_rng(5).normal(size=(batch, n)))
