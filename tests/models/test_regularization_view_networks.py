"""Sizes, starts and outputs of Fixup ResNets and WRN-50-2."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import models


def count(module, size):
    variables = jax.eval_shape(
        lambda key: module.init(key, jnp.zeros((1, size, size, 3))), jax.random.key(0)
    )
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize(
    ("name", "classes", "size", "parameters"),
    [
        ("fixup56", 10, 32, 848_954),
        ("fixup110", 10, 32, 1_719_866),
        ("fixup56", 100, 32, 848_954 + 90 * 65),
        ("wrn50_2", 200, 56, 67_236_360),
    ],
)
def test_parameters_are_as_many_as_published(name, classes, size, parameters):
    assert count(models.create(name, num_classes=classes), size) == parameters


def random_like(variables, seed):
    keys = iter(jax.random.split(jax.random.key(seed), 200))
    return jax.tree.map(
        lambda leaf: 0.3 * jax.random.normal(next(keys), leaf.shape), variables
    )


def test_a_fixup_network_is_zero_at_first_and_then_what_its_layers_say():
    module = models.FixupResNet(depth=8, width=4, num_classes=3, mean=0.0, std=1.0)
    x = jax.random.uniform(jax.random.key(1), (2, 8, 8, 3))
    variables = jax.jit(module.init)(jax.random.key(0), x)
    apply = jax.jit(lambda v, x: module.apply(v, x, outputs="all"))
    np.testing.assert_array_equal(apply(variables, x).logits, 0.0)
    variables = random_like(variables, 2)
    params = variables["params"]
    found = apply(variables, x)

    def convolve(h, kernel, stride=1):
        padded = np.pad(h, ((0, 0), (1, 1), (1, 1), (0, 0)))
        rows, columns = h.shape[1] // stride, h.shape[2] // stride
        out = np.zeros((len(h), rows, columns, kernel.shape[-1]))
        for i in range(rows):
            for j in range(columns):
                top, left = stride * i, stride * j
                window = padded[:, top : top + 3, left : left + 3]
                out[:, i, j] = np.einsum("bhwc,hwco->bo", window, kernel)
        return out

    def kernel(*path):
        leaf = params
        for name in path:
            leaf = leaf[name]
        return np.asarray(leaf["kernel"], np.float64)

    h = np.maximum(convolve(np.asarray(x, np.float64), kernel("conv")), 0)
    for stage, stride in ((1, 1), (2, 2), (3, 2)):
        block = f"stage{stage}_block1"
        inner = np.maximum(convolve(h, kernel(block, "conv1"), stride), 0)
        out = convolve(inner, kernel(block, "conv2"))
        shortcut = h[:, ::stride, ::stride]
        out[..., : shortcut.shape[-1]] += shortcut
        h = np.maximum(out, 0)
    features = h.mean((1, 2))
    np.testing.assert_allclose(found.features, features, rtol=1e-4, atol=1e-5)
    logits = features @ kernel("logits") + np.asarray(params["logits"]["bias"])
    np.testing.assert_allclose(found.logits, logits, rtol=1e-4, atol=1e-4)
    assert len(found.preactivations) == 7


@pytest.mark.parametrize(
    "make",
    [
        lambda **o: models.FixupResNet(depth=8, width=4, **o),
        lambda **o: models.WideResNet50(width=4, stage_sizes=(1, 1), **o),
    ],
    ids=["fixup", "wrn50_2"],
)
def test_rematerialised_networks_have_the_same_values_and_gradients(make):
    x = jax.random.uniform(jax.random.key(1), (2, 8, 8, 3))
    results = []
    for rematerialize in (False, True):
        module = make(num_classes=3, rematerialize=rematerialize)
        shapes = jax.eval_shape(module.init, jax.random.key(0), x)
        variables = jax.tree.map(jnp.abs, random_like(shapes, 3))

        def loss(variables, x, module=module):
            return jnp.sum(module.apply(variables, x) ** 2)

        results.append(jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(variables, x))
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_other_depths_are_refused():
    with pytest.raises(ValueError, match=r"depth is 57.*6 n"):
        count(models.FixupResNet(depth=57), 32)
