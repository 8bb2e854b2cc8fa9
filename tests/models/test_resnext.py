"""ResNeXt34's size, start and limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import models


@pytest.mark.parametrize(
    ("width", "num_classes", "size"), [(32, 10, 3_892_298), (64, 100, 15_569_636)]
)
def test_has_the_parameters_and_maps_of_the_paper(width, num_classes, size):
    module = models.ResNeXt34(width=width, num_classes=num_classes)
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    weights = jax.eval_shape(module.init, jax.random.key(0), x)
    sizes = [leaf.size for leaf in jax.tree.leaves(weights["params"])]
    assert sum(sizes) == size
    found = jax.eval_shape(lambda v, x: module.apply(v, x, outputs="all"), weights, x)
    assert found.logits.shape == (2, num_classes)
    assert found.features.shape == (2, 4 * width)
    shapes = [unit.shape[1:] for unit in found.preactivations]
    blocks = [
        [(n, n, 2 * c), (n, n, c)] * 5
        for n, c in ((32, width), (16, 2 * width), (8, 4 * width))
    ]
    assert shapes == [
        (32, 32, width),
        *blocks[0],
        (32, 32, 2 * width),
        *blocks[1],
        (16, 16, 4 * width),
        *blocks[2],
    ]


def test_kernels_and_biases_start_within_the_root_of_their_fan_in():
    module = models.ResNeXt34(width=8, stage_sizes=(1, 1))
    weights = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    params = weights["params"]
    block = params["stage2_block1"]
    for leaf, fan_in in (
        (params["conv1"]["kernel"], 27),
        (params["norm1"]["bias"], 27),
        (params["norm2"]["bias"], 8),
        (block["conv1"]["kernel"], 9 * 16),
        # A group sees half of the channels.
        (block["conv2"]["kernel"], 9 * 16),
        (params["logits"]["kernel"], 16),
        (params["logits_norm"]["bias"], 16),
    ):
        largest = np.abs(leaf).max() * np.sqrt(fan_in)
        assert 0.6 < largest <= 1
        assert largest > 0.98 or leaf.size < 200
        assert np.min(leaf) < 0 < np.max(leaf)


def test_logits_have_either_sign_unless_they_are_activated():
    x = np.random.default_rng(0).uniform(size=(4, 4, 4, 3)).astype(np.float32)
    module = models.ResNeXt34(width=2, stage_sizes=(1,))
    weights = jax.jit(module.init)(jax.random.key(0), x)
    official = module.clone(logit_activation=True)
    plain, activated = jax.jit(
        lambda x: (module.apply(weights, x), official.apply(weights, x, outputs="all"))
    )(x)
    assert np.min(plain) < 0 < np.max(plain)
    np.testing.assert_allclose(activated.preactivations[-1], plain, rtol=1e-5)
    expected = np.maximum(activated.preactivations[-1], 0)
    np.testing.assert_allclose(activated.logits, expected, rtol=1e-5)


def test_names_the_smallest_image_it_takes():
    with pytest.raises(ValueError, match=r"\(1, 3, 32, 3\).*at least 4"):
        models.ResNeXt34().init(jax.random.key(0), jnp.zeros((1, 3, 32, 3)))
