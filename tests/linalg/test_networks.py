"""Networks of one structure compile once, and a changed network gives new results."""

import functools
import gc
import weakref

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from opnorm import linalg

X = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
MATRIX = np.arange(12, dtype=np.float32).reshape(4, 3)
Partial = jax.tree_util.Partial


def affine(variables, x):
    return x @ variables


def counted():
    """A program that scales the outputs, and the list of the factors of its traces."""
    traces = []

    @linalg.network_program
    def scaled(f, x, *, factor):
        traces.append(factor)
        return factor * f(x)

    return scaled, traces


def test_a_callable_pytree_compiles_once_whatever_its_arrays():
    scaled, traces = counted()
    for weight in (1.0, 2.0, 3.0):
        found = scaled(Partial(affine, weight * MATRIX), X, factor=2)
        np.testing.assert_allclose(found, 2 * weight * X @ MATRIX, rtol=1e-6)
    assert traces == [2]
    scaled(Partial(affine, MATRIX), X, factor=3)
    # Another shape and another function are two more structures.
    scaled(Partial(affine, MATRIX[:, :2]), X, factor=3)
    scaled(Partial(lambda variables, x: -x @ variables, MATRIX), X, factor=3)
    assert traces == [2, 3, 3, 3]


def test_a_plain_function_is_traced_again_unless_it_is_prepared():
    scaled, traces = counted()
    weights = {"matrix": MATRIX}

    def f(x):
        return x @ weights["matrix"]

    for weight in (1.0, 2.0):
        weights["matrix"] = weight * MATRIX
        found = scaled(f, X, factor=1)
        np.testing.assert_allclose(found, weight * X @ MATRIX, rtol=1e-6)
    assert len(traces) == 2
    prepared = linalg.prepare_network(f)
    for _ in range(3):
        scaled(prepared, X, factor=1)
    assert len(traces) == 3


def test_nothing_keeps_a_plain_function_alive():
    scaled, _ = counted()

    class Weights(np.ndarray):
        pass

    weights = MATRIX.view(Weights)
    alive = weakref.ref(weights)
    f = functools.partial(lambda weights, x: x @ np.asarray(weights), weights)
    scaled(linalg.prepare_network(f), X, factor=1)
    scaled(f, X, factor=1)
    del f, weights
    gc.collect()
    assert alive() is None


def test_an_nnx_module_that_is_updated_in_place_gives_fresh_results():
    scaled, traces = counted()
    module = nnx.Linear(4, 3, use_bias=False, rngs=nnx.Rngs(0))
    for weight in (1.0, 2.0):
        module.kernel[...] = weight * jnp.asarray(MATRIX)
        found = scaled(module, X, factor=1)
        np.testing.assert_allclose(found, weight * X @ MATRIX, rtol=1e-6)
    assert len(traces) == 1


def test_leaves_that_are_no_arrays_are_a_part_of_the_structure():
    scaled, traces = counted()

    @jax.tree_util.register_pytree_node_class
    class Layer:
        """A module with a function as a leaf, like an activation in Equinox."""

        def __init__(self, matrix, activation):
            self.matrix, self.activation = matrix, activation

        def __call__(self, x):
            return self.activation(x @ self.matrix)

        def tree_flatten(self):
            return (self.activation, self.matrix), None

        @classmethod
        def tree_unflatten(cls, _, children):
            return cls(children[1], children[0])

    for activation in (jnp.abs, jnp.negative, jnp.abs):
        found = scaled(Layer(MATRIX, activation), X, factor=1)
        np.testing.assert_allclose(found, activation(X @ MATRIX), rtol=1e-6)
    assert len(traces) == 2


def test_gradients_flow_to_the_arrays_of_a_network_and_vmap_goes_over_them():
    scaled, _ = counted()

    def total(variables):
        return scaled(Partial(affine, variables), X, factor=2).sum()

    expected = 2 * np.repeat(X.sum(0)[:, None], 3, 1)
    np.testing.assert_allclose(jax.grad(total)(MATRIX), expected, rtol=1e-6)
    pair = np.stack([MATRIX, -MATRIX])
    np.testing.assert_allclose(
        jax.vmap(total)(pair), 2 * (X @ pair).sum((1, 2)), rtol=1e-5
    )


def test_arrays_are_placed_where_they_are_told():
    module = nn.Dense(3)
    variables = module.init(jax.random.key(0), X)
    device = jax.devices()[-1]
    placed = linalg.place_network(
        Partial(module.apply, variables), lambda tree: jax.device_put(tree, device)
    )
    assert {leaf.device for leaf in jax.tree.leaves(placed)} == {device}
    np.testing.assert_allclose(placed(X), module.apply(variables, X), rtol=1e-6)
    plain = linalg.prepare_network(lambda x: x)
    assert linalg.place_network(plain, jax.device_put) is plain


def test_objects_that_cannot_be_called_are_refused():
    with pytest.raises(ValueError, match="f is a dict; it must be a function"):
        linalg.prepare_network({"params": MATRIX})
