"""A Flax module with its variables is one callable pytree."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import opnorm
from opnorm import models

X = np.linspace(0, 1, 2 * 4 * 4 * 3, dtype=np.float32).reshape(2, 4, 4, 3)


@pytest.fixture(scope="module")
def made():
    """A module of the library, and its variables."""
    module = models.create("mlp", width=5, num_classes=3)
    return module, module.init(jax.random.key(0), X)


def test_a_network_is_its_module_applied(made):
    module, variables = made
    f = opnorm.network(module, variables, train=False)
    np.testing.assert_array_equal(f(X), module.apply(variables, X))
    everything = module.apply(variables, X, outputs="all")
    np.testing.assert_array_equal(f.features(X), everything.features)
    assert len(f.preactivations(X)) == len(everything.preactivations)
    assert f.params is variables["params"]
    assert f.batch_stats == {}


def test_networks_of_one_module_have_one_structure(made):
    module, variables = made
    f = opnorm.network(module, variables)
    doubled = f.replace(variables=jax.tree.map(lambda a: 2 * a, variables))
    assert jax.tree.structure(f) == jax.tree.structure(doubled)
    assert len(jax.tree.leaves(f)) == len(jax.tree.leaves(variables))
    traces = []

    @jax.jit
    def total(f, x):
        traces.append(1)
        return f(x).sum()

    assert total(f, X) != total(doubled, X)
    assert len(traces) == 1


class Noisy(nnx.Module):
    """A module that behaves differently in training mode."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(4, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.norm(self.linear(x)))


def test_an_nnx_module_is_copied_into_evaluation_mode():
    module = Noisy(nnx.Rngs(0))
    x = X.reshape(-1, 4)
    f = opnorm.network(module)
    found = f(x)
    # In evaluation mode rows are independent, and nothing is dropped.
    np.testing.assert_allclose(found[:2], f(x[:2]), rtol=1e-6)
    assert not module.dropout.deterministic
    kernel = jnp.asarray(module.linear.kernel[...])
    np.testing.assert_allclose(found, x @ kernel / np.sqrt(1 + 1e-5), atol=1e-6)
    module.linear.kernel[...] = 0 * kernel
    np.testing.assert_array_equal(found, f(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((lambda x: x,), "module is a function; it must be a Flax module"),
        ((nn.Dense(3),), "variables is a NoneType; it must be a dictionary"),
        ((nn.Dense(3), {"params": X}), "variables is a dict; it must be a dictionary"),
        ((nnx.Linear(2, 2, rngs=nnx.Rngs(0)), {}), "variables is given; an NNX module"),
    ],
)
def test_what_is_no_network_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        opnorm.network(*arguments)
