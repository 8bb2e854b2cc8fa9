"""Networks of a user's own code, as ``--network=tests.support.own_networks:NAME``."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

import opnorm


def affine(weights, x):
    return x.reshape(len(x), -1) @ weights["last"]["kernel"]


def make(variables):
    """A linear network whose kernel is under "last/kernel" in the file."""
    return jax.tree_util.Partial(affine, variables)


class Hidden(nnx.Module):
    """A network of units that says which its features are; in training mode."""

    def __init__(self, rngs):
        self.first = nnx.Linear(12, 5, rngs=rngs)
        self.norm = nnx.BatchNorm(5, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(5, 3, rngs=rngs)

    def preactivations(self, x):
        return (self.norm(self.first(x.reshape(len(x), -1))),)

    def features(self, x):
        return nnx.relu(self.preactivations(x)[0])

    def __call__(self, x):
        return self.last(self.drop(self.features(x)))


def hidden():
    return Hidden(nnx.Rngs(0))


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x.reshape(len(x), -1))


def linen():
    x = jnp.zeros((1, 2, 2, 3))
    return opnorm.network(Linen(), Linen().init(jax.random.key(0), x))


def unbound():
    return Linen()


def text():
    return "no network"


def fails():
    raise RuntimeError("the layer is missing")


def pair():
    return lambda x: (x, x)


def flat():
    return lambda x: x.reshape(-1)


def single():
    return lambda x: x.reshape(len(x), -1).mean(axis=1, keepdims=True) - 0.5


def whole():
    return lambda x: x.astype(int).reshape(len(x), -1)[:, :3]


def narrow():
    return lambda x: x.reshape(len(x), 3072)
