"""WideResNet's size, start and limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import models


def test_has_the_parameters_and_maps_of_wrn_28_10():
    module = models.WideResNet()
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    weights = jax.eval_shape(module.init, jax.random.key(0), x)
    sizes = [leaf.size for leaf in jax.tree.leaves(weights["params"])]
    assert sum(sizes) == 36_479_194
    found = jax.eval_shape(lambda v, x: module.apply(v, x, outputs="all"), weights, x)
    assert found.logits.shape == (2, 10)
    assert found.features.shape == (2, 640)
    shapes = [unit.shape[1:] for unit in found.preactivations]
    # The first activation of a group still has the map of the group before.
    assert shapes == [
        (32, 32, 16),
        *[(32, 32, 160)] * 8,
        *[(16, 16, 320)] * 8,
        *[(8, 8, 640)] * 8,
    ]


def test_depth_counts_the_convolutions():
    for depth in (10, 16, 40):
        module = models.WideResNet(depth=depth, width=2)
        x = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
        weights = jax.eval_shape(module.init, jax.random.key(0), x)
        kernels = [
            path
            for path, _ in jax.tree_util.tree_leaves_with_path(weights["params"])
            if path[-1].key == "kernel" and path[-2].key != "logits"
        ]
        assert len(kernels) == depth


def test_kernels_start_with_the_variance_of_their_fan_out():
    module = models.WideResNet(depth=10, width=2)
    weights = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    block = weights["params"]["group3_block1"]
    for name, taps in (("conv1", 9), ("conv2", 9), ("shortcut", 1)):
        kernel = np.asarray(block[name]["kernel"])
        np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (taps * 128)), rtol=0.03)
        assert abs(kernel.mean()) < 0.1 * kernel.std()
    np.testing.assert_array_equal(block["norm1"]["scale"], 1)
    np.testing.assert_array_equal(weights["params"]["logits"]["bias"], 0)


def test_rejects_unknown_paddings():
    with pytest.raises(ValueError, match="padding is 'valid'; it may be symmetric or"):
        models.WideResNet(padding="valid").init(
            jax.random.key(0), jnp.zeros((1, 8, 8, 3))
        )


@pytest.mark.parametrize("depth", [4, 27, 29, 28.0])
def test_rejects_depths_that_blocks_do_not_divide(depth):
    with pytest.raises(ValueError, match=f"depth is {depth}"):
        models.WideResNet(depth=depth).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
