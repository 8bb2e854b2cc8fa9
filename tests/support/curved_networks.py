"""A small network in float64, whose dense second derivatives are cheap."""

import jax
import jax.numpy as jnp
import numpy as np

_RNG = np.random.default_rng(5)
IMAGES = _RNG.uniform(0.1, 0.9, (7, 2, 3))
LABELS = _RNG.integers(0, 3, 7)


def hidden(variables, x):
    return (x.reshape(len(x), -1) - variables["shift"]) @ variables["params"]["first"]


def logits_of(variables, h):
    return h @ variables["params"]["second"] + variables["params"]["bias"]


def apply(variables, x):
    return logits_of(variables, jax.nn.relu(hidden(variables, x)))


def variables(scale=3.0):
    shapes = {"first": (6, 5), "second": (5, 3), "bias": (3,)}
    rng = np.random.default_rng(1)
    params = {name: scale * rng.normal(size=shape) for name, shape in shapes.items()}
    return {"params": params, "shift": np.full(6, 0.5)}


def cross_entropy(logits, labels):
    return -jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels]
