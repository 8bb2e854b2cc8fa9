"""ResNet50's size, start and limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import models


def test_has_the_parameters_and_maps_of_resnet_50():
    module = models.ResNet50()
    x = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    weights = jax.eval_shape(module.init, jax.random.key(0), x)
    sizes = [leaf.size for leaf in jax.tree.leaves(weights["params"])]
    assert sum(sizes) == 25_557_032
    found = jax.eval_shape(lambda v, x: module.apply(v, x, outputs="all"), weights, x)
    assert found.logits.shape == (2, 1000)
    assert found.features.shape == (2, 2048)
    shapes = [unit.shape[1:] for unit in found.preactivations]
    assert len(shapes) == 1 + 3 * 16
    assert shapes[0] == (112, 112, 64)
    # The stride is that of the 3x3 convolution.
    assert shapes[1 + 3 * 3 :][:3] == [(56, 56, 128), (28, 28, 128), (28, 28, 512)]
    assert shapes[-3:] == [(7, 7, 512), (7, 7, 512), (7, 7, 2048)]


def test_starts_as_the_identity_in_every_block_and_with_small_logits():
    module = models.ResNet50(width=8, stage_sizes=(1, 1))
    weights = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 17, 17, 3)))
    params = weights["params"]
    block = params["stage2_block1"]
    np.testing.assert_array_equal(block["norm3"]["scale"], 0)
    for name in ("norm1", "norm2", "shortcut_norm"):
        np.testing.assert_array_equal(block[name]["scale"], 1)
    for kernel, fan_out in (
        (params["conv"]["kernel"], 49 * 8),
        (block["conv2"]["kernel"], 9 * 16),
        (block["conv3"]["kernel"], 64),
    ):
        np.testing.assert_allclose(np.std(kernel), np.sqrt(2 / fan_out), rtol=0.08)
    np.testing.assert_allclose(np.std(params["logits"]["kernel"]), 0.01, rtol=0.02)
    np.testing.assert_array_equal(params["logits"]["bias"], 0)


def test_names_the_smallest_image_and_stage_it_takes():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"\(1, 16, 32, 3\).*at least 17"):
        models.ResNet50().init(key, jnp.zeros((1, 16, 32, 3)))
    with pytest.raises(ValueError, match="stage_sizes is 0"):
        models.ResNet50(stage_sizes=(3, 0)).init(key, jnp.zeros((1, 32, 32, 3)))
    with pytest.raises(ValueError, match="stage_sizes is empty"):
        models.ResNet50(stage_sizes=()).init(key, jnp.zeros((1, 32, 32, 3)))
