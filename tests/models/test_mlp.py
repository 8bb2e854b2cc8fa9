"""The MLP against NumPy."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import models


def test_has_the_parameters_of_a_two_layer_cifar_network() -> None:
    model = models.MLP()
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    sizes = [leaf.size for leaf in jax.tree.leaves(variables)]
    assert sum(sizes) == 3072 * 512 + 512 + 512 * 512 + 512 + 512 * 10 + 10


@pytest.mark.parametrize("hidden", [(), (5,), (6, 4)])
@pytest.mark.parametrize(
    ("activation", "jit"), [("relu", False), ("smooth_relu", True)]
)
def test_matches_an_independent_forward_pass(
    hidden: tuple[int, ...], activation: str, jit: bool
) -> None:
    model: Any = models.MLP(
        hidden=hidden, num_classes=3, mean=0.3, std=(0.2, 0.4), activation=activation
    )
    images = np.random.default_rng(0).uniform(0, 1, (4, 3, 5, 2)).astype(np.float32)
    variables = model.init(jax.random.key(0), images)
    parameters = variables["params"]

    h = ((images - 0.3) / np.array([0.2, 0.4])).reshape(4, -1)
    preactivations = []
    for index in range(1, len(hidden) + 1):
        layer = parameters[f"dense{index}"]
        h = h @ layer["kernel"] + layer["bias"]
        preactivations.append(h)
        rounded = (h + 0.5) ** 3 - (h + 0.5) ** 4 / 2
        corner = (activation == "smooth_relu") & (np.abs(h) < 0.5)
        h = np.where(corner, rounded, np.maximum(h, 0))
    logits = h @ parameters["logits"]["kernel"] + parameters["logits"]["bias"]

    def apply(x: jax.Array) -> models.Outputs:
        return model.apply(variables, x, outputs="all")

    actual = (jax.jit(apply) if jit else apply)(jnp.asarray(images))
    chex.assert_trees_all_close(
        actual, models.Outputs(logits, h, tuple(preactivations)), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        model.apply(variables, images, train=True), logits, rtol=1e-4, atol=1e-5
    )


def test_rejects_integer_images_and_empty_layers() -> None:
    images = jnp.zeros((1, 4, 4, 1))
    with pytest.raises(ValueError, match="images has dtype int32"):
        models.MLP().init(jax.random.key(0), images.astype(jnp.int32))
    with pytest.raises(ValueError, match="hidden is 0"):
        models.MLP(hidden=(4, 0)).init(jax.random.key(0), images)
    with pytest.raises(ValueError, match="activation is 'gelu'"):
        models.MLP(activation="gelu").init(jax.random.key(0), images)
