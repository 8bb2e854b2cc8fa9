"""Weights of PyTorch networks, layer by layer, and messages that name tensors."""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest

import opnorm
from opnorm import models
from opnorm.torch import names

IMAGES = np.random.default_rng(0).uniform(0, 1, (2, 32, 32, 3)).astype(np.float32)
WRN = functools.partial(models.WideResNet, depth=16, width=1)
# Our module, the class in tests/support/torch_networks.py, and its arguments.
NETWORKS = {
    "cnn7": (models.CNN7(width=4), "cnn7", (4,)),
    "wide": (WRN(), "Wide", (16, 1, "relu", False)),
    "gowal": (
        WRN(padding="same", activation="swish"),
        "Wide",
        (16, 1, "silu", True),
    ),
    "resnet50": (
        models.ResNet50(width=4, num_classes=10, stage_sizes=(2, 1, 1, 1)),
        "Residual",
        (4, (2, 1, 1, 1), True, False),
    ),
    "resnet18": (
        models.ResNet18(width=4, num_classes=10),
        "Residual",
        (4, (2, 2, 2, 2), False, False),
    ),
    "resnet18_cifar": (
        models.ResNet18(width=4, num_classes=10, small_images=True),
        "Residual",
        (4, (2, 2, 2, 2), False, True),
    ),
    "resnext34": (
        models.ResNeXt34(
            width=4,
            stage_sizes=(2, 1, 2),
            activation="smooth_relu",
            logit_activation=True,
        ),
        "Branches",
        (4, (2, 1, 2)),
    ),
}


def theirs(name):
    torch = pytest.importorskip("torch")
    from tests.support import torch_networks

    torch.set_num_threads(1)
    _, kind, arguments = NETWORKS[name]
    arguments = [
        getattr(torch.nn.functional, a) if isinstance(a, str) else a for a in arguments
    ]
    return torch_networks.randomize(getattr(torch_networks, kind)(*arguments))


def save(kind, network, path):
    """Writes a state dict as users and libraries do."""
    import torch

    state = network.state_dict()
    if kind == "npz":
        path = path / "weights.npz"
        np.savez(path, **{name: leaf.numpy() for name, leaf in state.items()})
    elif kind == "bare":
        path = path / "weights.pth"
        torch.save(state, path)
    else:
        path = path / "weights.pt"
        inside = {f"module.{name}": leaf for name, leaf in state.items()}
        torch.save({"state_dict": inside, "epoch": 3}, path)
    return path


@pytest.mark.parametrize(
    ("name", "kind"),
    list(zip(NETWORKS, ("npz", "bare", "nested") * 3, strict=False)),
)
def test_every_layer_is_that_of_pytorch(name, kind, tmp_path):
    network = theirs(name)
    module = NETWORKS[name][0]
    f = opnorm.torch.load_network(module, save(kind, network, tmp_path))
    # The networks in PyTorch take images that are normalised already.
    from tests.support import torch_networks

    mean, std = np.float32(module.mean), np.float32(module.std)
    expected = torch_networks.layers(network, (IMAGES - mean) / std)
    found = jax.jit(functools.partial(module.apply, outputs="all"))(f.variables, IMAGES)
    layers = [*found.preactivations, found.logits]
    assert len(layers) == len(expected) >= 8
    for ours, other in zip(layers, expected, strict=True):
        scale = np.abs(other).max()
        assert scale > 1e-2
        np.testing.assert_allclose(ours, other, atol=1e-4 * scale)


def state(module):
    """Tensors with our own names and PyTorch's layouts, made without PyTorch."""
    variables = jax.eval_shape(module.init, jax.random.key(0), IMAGES)
    rng = np.random.default_rng(1)
    words = {"kernel": "weight", "scale": "weight"}
    words |= {"mean": "running_mean", "var": "running_var"}
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        parts = [key.key for key in path[1:]]
        array = rng.uniform(0.5, 1, leaf.shape).astype(np.float32)
        turned = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        found[".".join([*parts[:-1], words.get(parts[-1], parts[-1])])] = turned
    return found


def test_own_names_prefixes_and_parts_to_ignore():
    module = NETWORKS["gowal"][0]
    own = state(module)
    kernel = own["group2_block1.conv1.weight"]
    given = {f"model.{name}": array for name, array in own.items()}
    given |= {"normalize.mean": np.zeros(3), "model.sub_block1.weight": np.zeros(3)}
    f = opnorm.torch.load_network(
        module, given, prefix="model.", ignore=("sub_block1.",)
    )
    found = f.params["group2_block1"]["conv1"]["kernel"]
    np.testing.assert_array_equal(found, kernel.transpose(2, 3, 1, 0))
    assert set(f.variables) == {"params", "batch_stats"}
    # Names of one's own, here in capitals.
    capitals = {name.upper(): array for name, array in own.items()}
    again = opnorm.torch.load_network(module, capitals, names=str.upper)
    jax.tree.map(np.testing.assert_array_equal, again.variables, f.variables)


def test_tensors_that_do_not_fit_are_named():
    module = NETWORKS["wide"][0]
    own = state(module)
    own["extra.weight"] = own.pop("norm.bias")
    own["logits.weight"] = np.zeros((100, 64))
    with pytest.raises(ValueError, match="does not fit") as caught:
        opnorm.torch.load_network(module, own)
    message = str(caught.value)
    assert "missing: norm.bias" in message
    assert "unexpected: extra.weight" in message
    assert "another shape: logits.weight (100, 64) (must be (10, 64))" in message
    with pytest.raises(ValueError, match=r"missing: .* and \d+ more"):
        opnorm.torch.load_network(module, {"conv.weight": np.zeros((16, 3, 3, 3))})
    with pytest.raises(ValueError, match=r"prefix is 'net.'; no name begins with it"):
        opnorm.torch.load_network(module, own, prefix="net.")


def test_the_names_of_another_padding_are_refused():
    # Both networks have tensors of the same shapes.
    symmetric, same = NETWORKS["wide"][0], NETWORKS["gowal"][0]
    ours = list(state(symmetric))
    for module, other in ((symmetric, same), (same, symmetric)):
        convention, _ = names.conventions(other)
        theirs = convention(ours, {})
        given = {theirs[name]: array for name, array in state(other).items()}
        opnorm.torch.load_network(other, given)
        with pytest.raises(ValueError, match="source does not fit the module"):
            opnorm.torch.load_network(module, given)


def test_modules_without_known_names_are_refused():
    with pytest.raises(ValueError, match="MLP, for which no names are known"):
        opnorm.torch.load_network(models.MLP(hidden=(2,)), {"a": np.zeros(2)})

    class Scaled(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x * self.param("gain", nn.initializers.ones, (3,))

    with pytest.raises(ValueError, match="Scaled with an array gain"):
        opnorm.torch.load_network(Scaled(), {"a": np.zeros(2)}, names=str)
