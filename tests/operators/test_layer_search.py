"""The layers that are found in networks, and the networks that are refused."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import models, operators
from tests.support.layer_networks import (
    Factor,
    chain,
    chain_layers,
    parameter,
    random_variables,
    residual,
)


def test_calls_are_listed_in_order_with_their_shapes_and_options():
    layers = chain_layers(batch_norm="separate")
    assert [(layer.name, layer.kind) for layer in layers] == [
        ("conv", "convolution"),
        ("norm", "batch_norm"),
        ("after", "batch_norm"),
        ("twice", "dense"),
        ("twice", "dense"),
        ("head", "dense"),
    ]
    shapes = [(5, 6, 4), *[(3, 3, 6)] * 4, (54,)]
    assert [layer.input_shape for layer in layers] == shapes
    assert (layers[0].strides, layers[0].padding, layers[0].groups) == (
        (2, 2),
        "SAME",
        2,
    )
    assert layers[0].kernel.shape == (3, 2, 2, 6)
    _, variables = chain()
    assert layers[3].kernel is variables["params"]["twice"]["kernel"]

    folded = chain_layers()
    assert [layer.name for layer in folded] == [
        "conv",
        "after",
        "twice",
        "twice",
        "head",
    ]
    assert [layer.batch_norm for layer in folded] == ["norm"] + [None] * 4
    ignored = chain_layers(batch_norm="ignore")
    assert [layer.name for layer in ignored] == ["conv", "twice", "twice", "head"]
    assert ignored[0].kernel is variables["params"]["conv"]["kernel"]


def test_every_layer_of_residual_networks_is_found_with_its_options():
    layers, _, separate = residual("wide")
    strided = {"group2_block1", "group3_block1"}
    for name, layer in layers.items():
        if layer.kind == "convolution":
            block, _, which = name.rpartition("/")
            stride = 2 if block in strided and which != "conv2" else 1
            pad = 0 if which == "shortcut" else 1
            assert layer.strides == (stride, stride)
            assert layer.padding == ((pad, pad), (pad, pad))
    # The first BatchNorm takes the output of the first convolution; others take sums.
    assert layers["conv"].batch_norm == "group1_block1/norm1"
    assert layers["group2_block1/conv1"].batch_norm == "group2_block1/norm2"
    assert layers["group2_block1/conv2"].batch_norm is None
    assert separate == {"group2_block1/norm1", "group3_block1/norm1", "norm"}

    layers, _, separate = residual("resnet")
    assert not separate
    assert (layers["conv"].strides, layers["conv"].padding) == ((2, 2), ((3, 3),) * 2)
    for name, stride in (("stage2_block1", 2), ("stage2_block2", 1)):
        found = [layers[f"{name}/conv{i}"] for i in (1, 2, 3)]
        assert [layer.strides[0] for layer in found] == [1, stride, 1]
        assert [layer.batch_norm for layer in found] == [
            f"{name}/norm{i}" for i in (1, 2, 3)
        ]
    shortcut = layers["stage2_block1/shortcut"]
    assert shortcut.strides == (2, 2)
    assert shortcut.batch_norm == "stage2_block1/shortcut_norm"
    assert layers["stage2_block2/conv1"].input_shape == (3, 3, 16)

    layers, _, separate = residual("resnext")
    assert not separate
    assert layers["logits"].batch_norm == "logits_norm/norm"
    assert layers["conv2"].batch_norm == "norm2/norm"
    for name, layer in layers.items():
        assert layer.groups == (2 if name.endswith("block1/conv2") else 1)
    assert layers["stage2_block1/conv2"].input_shape == (9, 9, 8)


def test_a_batch_norm_that_shares_its_input_is_not_folded():
    module = models.WideResNet(depth=10, width=1)
    variables = random_variables(module, (1, 8, 8, 3))
    layers = operators.layers(module, variables, jnp.zeros((1, 8, 8, 3)))
    # At width 1 the first shortcut takes the output of the first convolution, too.
    assert [layer.name for layer in layers[:2]] == ["conv", "group1_block1/norm1"]
    assert layers[0].batch_norm is None


class One(nn.Module):
    """A single layer made by a function."""

    make: Any

    @nn.compact
    def __call__(self, x):
        return self.make()(x)


def one(make):
    module = One(make)
    x = jax.ShapeDtypeStruct((1, 5, 4), jnp.float32)
    variables = jax.tree.map(
        lambda leaf: jnp.ones(leaf.shape, leaf.dtype),
        jax.eval_shape(module.init, jax.random.key(0), x),
    )
    return operators.layers(module, variables, x)


def test_options_of_convolutions_are_translated():
    (layer,) = one(lambda: nn.Conv(2, 3, padding="CAUSAL", kernel_dilation=2))
    assert (layer.padding, layer.kernel_dilation) == (((4, 0),), (2,))
    (layer,) = one(lambda: nn.Conv(2, 3, padding=1, strides=3))
    assert (layer.padding, layer.strides) == (((1, 1),), (3,))
    mask = jnp.zeros((3, 4, 2)).at[1].set(1.0)
    (layer,) = one(lambda: nn.Conv(2, 3, mask=mask))
    np.testing.assert_array_equal(layer.kernel, mask)


class Matrices(nn.Module):
    """A module with three matrices: added, never used, and multiplied by a method."""

    def setup(self):
        draw = nn.initializers.ones
        self.bias = self.param("bias", draw, (5, 4))
        self.spare = self.param("spare", draw, (4, 4))
        self.w = self.param("w", lambda _: {"inner": jnp.ones((4, 4))})
        self.norm = nn.LayerNorm()
        self.dense = nn.Dense(3)

    def multiplied(self, x):
        return self.dense(x @ self.w["inner"])

    def __call__(self, x):
        return self.dense(self.norm(x + self.bias))


def test_matrices_that_are_added_or_not_used_are_no_layers():
    (layer,) = one(Matrices)
    assert layer.name == "Matrices_0/dense"


@pytest.mark.parametrize(
    "then",
    [
        lambda m, x: x + parameter(m),
        lambda m, x: nn.relu(x - jnp.exp(parameter(m, 3))),
        lambda m, x: jnp.maximum(x, parameter(m, 1, 3)),
        lambda m, x: x,
    ],
)
def test_parameters_that_are_added_are_no_factors(then):
    module, x = Factor(then), jnp.ones((1, 4))
    layers = operators.layers(module, random_variables(module, x.shape), x)
    assert [layer.uncounted for layer in layers] == [()]


class Standardised(nn.Dense):
    """A layer with weight standardisation, whose kernel is not the parameter."""

    def param(self, name, *args, **options):
        value = super().param(name, *args, **options)
        return 10 * value if name == "kernel" else value


class Repeated(nn.Module):
    """The body of an nn.scan."""

    @nn.compact
    def __call__(self, x, _):
        return nn.Dense(4)(x), None


def scan():
    wrap = nn.scan(
        Repeated, variable_broadcast="params", split_rngs={"params": False}, length=3
    )
    return lambda x: wrap()(x, None)


def vmap():
    axes = {"variable_axes": {"params": None}, "split_rngs": {"params": False}}
    return nn.vmap(nn.Dense, in_axes=1, **axes)(3)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Matrices().multiplied, r"'Matrices_0/w/inner' .* \(4, 4\)"),
        (lambda: nn.Embed(5, 4).attend, r"'Embed_0/embedding' .* \(5, 4\)"),
        (scan, "'ScanRepeated_0/Dense_0' is called in a transformation"),
        (lambda: nn.RNN(nn.SimpleCell(4)), "is called in a transformation"),
        (vmap, "is called in a transformation"),
        (
            lambda: nn.remat(nn.BatchNorm)(use_running_average=True),
            "is called in a transformation",
        ),
        (lambda: Standardised(3), "Standardised, which has a param of its own"),
        (lambda: nn.DenseGeneral(3), "DenseGeneral"),
        (lambda: nn.ConvTranspose(3, (3,)), "ConvTranspose"),
        (lambda: nn.Conv(3, 3, padding="REFLECT"), "padding"),
        (lambda: nn.Conv(3, 3, padding=1, input_dilation=2), "input_dilation"),
        (lambda: nn.BatchNorm(use_running_average=False), "batch statistics"),
        (lambda: nn.BatchNorm(use_running_average=True, axis=1), "axis"),
        (lambda: nn.remat(nn.Dense)(3), "inside the network"),
        (lambda: nn.LayerNorm(), "must call"),
    ],
)
def test_networks_that_cannot_be_listed_are_refused(make, named):
    with pytest.raises(ValueError, match=named):
        one(make)


def test_a_spectrally_normalised_kernel_is_refused():
    class Normalised(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.SpectralNorm(nn.Dense(3))(x, update_stats=False)

    module, x = Normalised(), jnp.ones((2, 4))
    with pytest.raises(ValueError, match="computed inside"):
        operators.layers(module, random_variables(module, x.shape), x)
