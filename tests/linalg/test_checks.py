"""Functions refuse keys, counts, arrays and networks that are not valid."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from opnorm import analysis, attacks, linalg, operators

BAD_KEYS = {
    "raw": (lambda: jax.random.PRNGKey(0), "key has dtype uint32; it must be a typed"),
    "number": (lambda: 0, r"0; it must be a typed key, such as jax\.random\.key\(0\)"),
    "five": (lambda: jax.random.split(jax.random.key(0), 5), r"key has shape \(5,\)"),
}


def square():
    # The batch has two examples, since a raw key has two numbers.
    return linalg.from_matrix(jnp.ones((2, 3, 3)))


TAKERS = {
    "sample_ball": lambda key: linalg.sample_ball(key, jnp.ones((2, 3)), 2.0, 1.0),
    "sample_sphere": lambda key: linalg.sample_sphere(key, jnp.ones((2, 3)), math.inf),
    "operator_norm": lambda key: linalg.operator_norm(square(), key=key),
    "spectral_density": lambda key: linalg.spectral_density(
        square(), num_steps=2, key=key
    ),
    "trace": lambda key: linalg.trace(square(), key=key),
    "squared_frobenius_norm": lambda key: linalg.squared_frobenius_norm(
        square(), key=key
    ),
    "adjoint_error": lambda key: linalg.adjoint_error(square(), key),
}


@pytest.mark.parametrize("bad", BAD_KEYS)
@pytest.mark.parametrize("name", TAKERS)
def test_keys_that_are_not_typed_or_too_many_are_refused(name, bad):
    make, message = BAD_KEYS[bad]
    with pytest.raises(ValueError, match=message):
        TAKERS[name](make())


def test_a_key_for_each_example_passes_where_it_is_allowed():
    keys = jax.random.split(jax.random.key(0), 2)
    linalg.check_key(jax.random.key(0, impl="rbg"))
    linalg.check_key(keys, 2)
    jax.eval_shape(linalg.check_key, keys[0])
    jax.eval_shape(jax.vmap(lambda key: linalg.check_key(key)), keys)
    with pytest.raises(ValueError, match=r"key has shape \(2,\); it must be \(\)\.$"):
        linalg.check_key(keys)
    with pytest.raises(ValueError, match=r"it must be \(\) or \(3,\)"):
        linalg.check_key(keys, 3)


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), np.array(3)])
def test_whole_numbers_of_every_kind_are_counts(value):
    found = linalg.check_count("k", value, 1, 3)
    assert type(found) is int
    assert found == 3


@pytest.mark.parametrize("value", [True, np.True_, 2.0, np.float32(2), "2", None, 0, 4])
def test_what_is_no_count_is_refused(value):
    with pytest.raises(ValueError, match=r"k is .*; it must be an int from 1 to 3"):
        linalg.check_count("k", value, 1, 3)


def test_a_traced_count_is_refused():
    with pytest.raises(ValueError, match=r"k is .*; it must be an int of 1 or more"):
        jax.eval_shape(lambda k: linalg.check_count("k", k, 1), 3)


def test_counts_of_numpy_pass_through_searches():
    def searches(key):
        steps, one = np.int64(2), np.int32(1)
        found = linalg.operator_norm(
            square(), num_steps=steps, num_restarts=one, key=key
        )
        density = linalg.spectral_density(
            square(), num_probes=steps, key=key, num_steps=2
        )
        trace = linalg.trace(square(), num_probes=steps, key=key)
        return found.value, density.nodes, trace.mean

    shapes = jax.tree.map(jnp.shape, jax.eval_shape(searches, jax.random.key(0)))
    assert shapes == ((2,), (2, 2, 2), (2,))


class Tensor:
    """Stands for a tensor of PyTorch, which need not be installed."""

    __module__ = "torch"
    dtype, shape, ndim = "torch.float32", (2, 3, 4, 4), 4


def test_a_tensor_of_pytorch_is_answered_with_its_conversion():
    given = r"x\.detach\(\)\.cpu\(\)\.numpy\(\) with channels last"
    for function in (
        lambda: linalg.check_array("x", Tensor()),
        lambda: operators.jacobian_norm(np.sum, Tensor()),
        lambda: attacks.fgm(p=2, epsilon=1)(np.sum, Tensor(), np.arange(2)),
    ):
        with pytest.raises(ValueError, match=f"x is a PyTorch tensor; give {given}"):
            function()
    with pytest.raises(ValueError, match="images is a PyTorch tensor"):
        analysis.evaluate_accuracy(np.sum, Tensor(), np.arange(2))


@pytest.mark.parametrize(
    "layer",
    [
        lambda rngs: nnx.BatchNorm(3, rngs=rngs),
        lambda rngs: nnx.Dropout(0.5, rngs=rngs),
    ],
)
def test_a_module_in_training_mode_is_refused(layer):
    rngs = nnx.Rngs(0)
    module = nnx.Sequential(nnx.Linear(4, 3, rngs=rngs), layer(rngs))
    x = np.ones((2, 4), np.float32)
    for measure in (
        lambda: linalg.output_shapes(module, x),
        lambda: analysis.evaluate_accuracy(module, x, np.arange(2)),
    ):
        with pytest.raises(ValueError, match=r"training mode .*call its method \.eval"):
            measure()
    module.eval()
    assert linalg.output_shapes(module, x).shape == (2, 3)
    # A layer that drops nothing is the same in both modes.
    still = nnx.Sequential(nnx.Linear(4, 3, rngs=rngs), nnx.Dropout(0.0, rngs=rngs))
    assert linalg.output_shapes(still, x).shape == (2, 3)
