"""Small networks with random variables, and the layers of them."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from opnorm import models, operators


class Chain(nn.Module):
    """A chain with a BatchNorm that can be folded, and one after a ReLU."""

    def setup(self):
        self.conv = nn.Conv(6, (3, 2), strides=2, feature_group_count=2)
        self.norm = nn.BatchNorm(use_running_average=True)
        self.after = nn.BatchNorm(use_running_average=True, use_scale=False)
        self.twice = nn.Dense(6)
        self.head = nn.Dense(3)

    def normalized(self, x):
        return self.norm(self.conv(x))

    def __call__(self, x):
        h = self.after(nn.relu(self.normalized(x)))
        h = nn.relu(self.twice(nn.relu(self.twice(h))))
        return self.head(h.reshape(len(h), -1))


def random_variables(module, shape, seed=0):
    """Random parameters and statistics."""
    dtype = getattr(module, "dtype", jnp.float32)
    abstract = jax.eval_shape(
        module.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, dtype)
    )
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: Any) -> jax.Array:
        if path[-1].key == "kernel":
            size = np.prod(leaf.shape[:-1]) ** -0.5
            return jnp.asarray(rng.normal(0, size, leaf.shape), leaf.dtype)
        return jnp.asarray(rng.uniform(0.3, 2, leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract)


@functools.cache
def chain():
    module = Chain()
    return module, random_variables(module, (1, 5, 6, 4))


def chain_layers(**options):
    module, variables = chain()
    x = jax.ShapeDtypeStruct((7, 5, 6, 4), jnp.float32)
    return operators.layers(module, variables, x, **options)


RESIDUAL = {
    "wide": models.WideResNet(depth=10, width=2),
    "resnet": models.ResNet50(width=2, stage_sizes=(1, 2)),
    "resnext": models.ResNeXt34(width=2, stage_sizes=(1, 1)),
}


@functools.cache
def residual(name):
    """Layers of a small residual network by name, and its variables."""
    module, shape = RESIDUAL[name], (1, 19, 18, 3)
    variables = random_variables(module, shape)
    found = operators.layers(module, variables, jnp.zeros(shape))
    layers = {layer.name: layer for layer in found}
    assert len(layers) == len(found)
    kernels = {
        jax.tree_util.keystr(path[:-1], simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(variables["params"])
        if path[-1].key == "kernel"
    }
    separate = {layer.name for layer in found if layer.kind == "batch_norm"}
    assert set(layers) == kernels | separate
    return layers, variables, separate


def matrix(linear_map):
    columns = jax.jit(jax.vmap(lambda v: linear_map.matvec(v[None])[0]))(
        np.eye(linear_map.in_size, dtype=np.float32).reshape(-1, *linear_map.in_shape)
    )
    return np.asarray(columns).reshape(linear_map.in_size, -1).T.astype(np.float64)


class Factor(nn.Module):
    """A dense layer, followed by a function that is not a layer."""

    then: Any

    @nn.compact
    def __call__(self, x):
        return self.then(self, nn.Dense(3)(x))


def parameter(module, *shape):
    return module.param("gain", nn.initializers.constant(5.0), shape)
