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


@pytest.mark.parametrize("scalars", [False, True])
def test_a_fixup_network_is_zero_at_first_and_then_what_its_layers_say(scalars):
    module = models.FixupResNet(
        depth=8,
        width=4,
        num_classes=3,
        mean=0.0,
        std=1.0,
        scalar_biases=scalars,
        scalar_multipliers=scalars,
    )
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

    def number(layers, name):
        return float(layers[name]) if scalars else float(name == "scale")

    h = convolve(np.asarray(x, np.float64), kernel("conv"))
    h = np.maximum(h + number(params, "bias1"), 0)
    for stage, stride in ((1, 1), (2, 2), (3, 2)):
        block = f"stage{stage}_block1"
        layers = params[block]
        shifted = h + number(layers, "bias1a")
        inner = convolve(shifted, kernel(block, "conv1"), stride)
        inner = np.maximum(inner + number(layers, "bias1b"), 0)
        out = convolve(inner + number(layers, "bias2a"), kernel(block, "conv2"))
        out = number(layers, "scale") * out + number(layers, "bias2b")
        shortcut = shifted if stride == 2 else h
        shortcut = shortcut[:, ::stride, ::stride]
        out[..., : shortcut.shape[-1]] += shortcut
        h = np.maximum(out, 0)
    features = h.mean((1, 2)) + number(params, "bias2")
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


def test_scalars_are_two_of_the_network_and_five_of_each_block():
    options = {"depth": 20, "num_classes": 10}
    plain = count(models.create("fixup", **options), 32)
    # As in the authors' code: 4 biases and a multiplier in each of 9 blocks.
    biased = count(models.create("fixup", scalar_biases=True, **options), 32)
    scaled = count(models.create("fixup", scalar_multipliers=True, **options), 32)
    assert (biased - plain, scaled - plain) == (2 + 4 * 9, 9)
    pairs = 3 * 16 + 6 * 16**2 + 16 * 32 + 5 * 32**2 + 32 * 64 + 5 * 64**2
    assert plain == 9 * pairs + 65 * 10


def test_other_depths_are_refused():
    with pytest.raises(ValueError, match=r"depth is 57.*6 n"):
        count(models.FixupResNet(depth=57), 32)
