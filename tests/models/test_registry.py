"""Networks by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import models

CLASSES = {
    "cnn7": models.CNN7,
    "mlp": models.MLP,
    "wrn28": models.WideResNet,
    "resnet50": models.ResNet50,
    "resnet18": models.ResNet18,
    "resnext34": models.ResNeXt34,
    "alexnet": models.AlexNet,
    "inception": models.Inception,
    "resnet32": models.ResNet32,
}
CONVOLUTIONAL = sorted(set(CLASSES) - {"mlp"})


def test_builds_each_model_with_its_own_default_width() -> None:
    assert set(CLASSES) <= set(models.NAMES)
    for name, network in CLASSES.items():
        assert models.create(name, num_classes=7) == network(num_classes=7)
    assert models.create("wrn28").depth == 28
    assert models.create("resnet50").num_classes == 10
    assert models.create("mlp1") == models.MLP(hidden=(512,))
    assert models.create("resnet18_cifar") == models.ResNet18(
        small_images=True, num_classes=10
    )
    assert models.create("wrn28_gowal") == models.WideResNet(padding="same")


def test_relu_is_the_default_of_every_model() -> None:
    assert models.ELUNet().activation == "elu"
    for name in models.NAMES:
        assert models.create(name).activation == "relu"
    assert models.create("elu_net", activation="elu") == models.ELUNet()


def test_width_means_channels_or_hidden_units() -> None:
    assert models.create("mlp", width=16) == models.MLP(hidden=(16, 16))
    assert models.create("mlp1", width=16) == models.MLP(hidden=(16,))
    assert models.create("elu_net", width=16).width == 16
    for name in CONVOLUTIONAL:
        expected = CLASSES[name](width=16, std=0.25, num_classes=10)
        assert models.create(name, width=16, std=0.25) == expected


def test_options_reach_every_model_that_has_them() -> None:
    options = {"activation": "smooth_relu", "dtype": jnp.bfloat16, "num_classes": 10}
    assert models.create("mlp", **options) == models.MLP(**options)
    options["rematerialize"] = True
    for name in CONVOLUTIONAL:
        assert models.create(name, **options) == CLASSES[name](**options)
    official = models.create("resnext34", logit_activation=True)
    assert official == models.ResNeXt34(logit_activation=True)
    scalars = {"scalar_biases": True, "scalar_multipliers": True}
    assert models.create("fixup", depth=20, **scalars) == models.FixupResNet(
        depth=20, **scalars
    )
    assert models.create("fixup110", **scalars) == models.FixupResNet(
        depth=110, **scalars
    )
    assert models.create("fixup") == models.create("fixup56")
    assert models.create("alexnet_bn", dropout=0.2) == models.AlexNet(
        batch_norm=True, dropout=0.2
    )
    assert models.create("alexnet_no_lrn") == models.AlexNet(
        response_normalization=False
    )


def test_statistics_fit_into_every_model_of_colour_images() -> None:
    x = jax.ShapeDtypeStruct((1, 4, 4, 3), jnp.float32)
    for name, (mean, std) in models.STATISTICS.items():
        model = models.create("mlp", width=1, mean=mean, std=std)
        jax.eval_shape(model.init, jax.random.key(0), x)
        if name == "whitened":
            continue
        extremes = (np.array([[0.0], [1.0]]) - mean) / std
        low, high = {"half": (-1, 1), "none": (0, 1)}.get(name, (-2.5, 2.8))
        assert np.all((low <= extremes) & (extremes <= high))


def test_rejects_unknown_names_and_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'resnet'.*cnn7, mlp, wrn28"):
        models.create("resnet")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cnn7", {"width": 0}),
        ("cnn7", {"num_classes": 0}),
        ("wrn28", {"width": 1.5}),
        ("resnet50", {"activation": "gelu"}),
        ("mlp", {"rematerialize": True}),
        ("mlp1", {"rematerialize": True}),
        ("elu_net", {"rematerialize": True}),
        ("alexnet", {"logit_activation": True}),
        ("cnn7", {"logit_activation": True}),
        ("cnn7", {"scalar_biases": True}),
        ("wrn28", {"scalar_multipliers": True}),
        ("wrn28", {"depth": 26}),
        ("cnn7", {"dropout": 0.2}),
        ("alexnet", {"dropout": 1.0}),
        ("fixup56", {"depth": 56}),
        ("fixup", {"depth": 57}),
        ("fixup", {"depth": 2}),
        ("fixup", {"depth": 0}),
        ("fixup", {"depth": 20.0}),
    ],
)
def test_rejects_what_a_model_cannot_have(name: str, options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        models.create(name, **options)


@pytest.mark.parametrize("name", models.NAMES)
def test_bad_attributes_and_images_are_named(name: str) -> None:
    x, key = jnp.zeros((1, 32, 32, 3)), jax.random.key(0)
    module = models.create(name)
    size = {"hidden": (4, 0)} if "mlp" in name else {"width": 0}
    for options, message in (
        ({"num_classes": 0}, "num_classes is 0"),
        ({"activation": "tanh"}, "activation is 'tanh'"),
        ({"std": (0.1, 0.2)}, "std is"),
        (size, f"{next(iter(size))} is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            module.clone(**options).init(key, x)
    with pytest.raises(ValueError, match="images has dtype int32"):
        module.init(key, x.astype(jnp.int32))
    with pytest.raises(ValueError, match="outputs is 'features'"):
        module.init(key, x, outputs="features")
