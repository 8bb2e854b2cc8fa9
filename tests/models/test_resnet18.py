"""ResNet18's sizes and limits; its layers are compared in ``tests/torch``."""

import jax
import jax.numpy as jnp
import pytest

from opnorm import models


def maps(module, size):
    """The number of parameters, and the shapes of features and pre-activations."""
    x = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    weights = jax.eval_shape(module.init, jax.random.key(0), x)
    found = jax.eval_shape(lambda v, x: module.apply(v, x, outputs="all"), weights, x)
    count = sum(leaf.size for leaf in jax.tree.leaves(weights["params"]))
    return count, found.features.shape, [p.shape[1:] for p in found.preactivations]


def test_has_the_parameters_and_maps_of_resnet_18():
    count, features, shapes = maps(models.ResNet18(), 224)
    assert count == 11_689_512
    assert features == (2, 512)
    assert shapes == [
        (112, 112, 64),
        *[(56, 56, 64)] * 4,
        *[(28, 28, 128)] * 4,
        *[(14, 14, 256)] * 4,
        *[(7, 7, 512)] * 4,
    ]


def test_small_images_keep_their_size_at_the_beginning():
    module = models.ResNet18(small_images=True, num_classes=10)
    count, features, shapes = maps(module, 32)
    assert count == 11_173_962
    assert features == (2, 512)
    assert shapes[:6] == [*[(32, 32, 64)] * 5, (16, 16, 128)]
    assert shapes[-1] == (4, 4, 512)


def test_names_the_smallest_image_it_takes():
    key = jax.random.key(0)
    for small, size in ((False, 17), (True, 8)):
        module = models.ResNet18(small_images=small)
        with pytest.raises(ValueError, match=f"at least {size}"):
            module.init(key, jnp.zeros((1, size - 1, 32, 3)))
