"""Networks with the weights of PyTorch ones, where PyTorch is installed.

``pip install 'opnorm[oracles]'``; without it, or where a library cannot be imported
for whatever reason, these are skipped.
"""

import functools
import importlib
from typing import Any

import jax
import numpy as np
import pytest

from opnorm import models


def import_or_skip(name):
    try:
        return importlib.import_module(name)
    except Exception as error:  # A broken installation raises more than ImportError.
        pytest.skip(f"{name} cannot be imported: {error}")


@functools.cache
def blocks():
    """The networks of two papers, written down in PyTorch from their descriptions."""
    torch = import_or_skip("torch")
    nn = torch.nn

    class WideBlock(nn.Module):
        def __init__(self, inside, outside, stride):
            super().__init__()
            self.norm1 = nn.BatchNorm2d(inside)
            self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
            self.norm2 = nn.BatchNorm2d(outside)
            self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
            if inside != outside:
                self.shortcut = nn.Conv2d(inside, outside, 1, stride, bias=False)

        def forward(self, x):
            o = torch.relu(self.norm1(x))
            z = self.conv2(torch.relu(self.norm2(self.conv1(o))))
            return z + (self.shortcut(o) if hasattr(self, "shortcut") else x)

    class Wide(nn.Module):
        def __init__(self, depth, width):
            super().__init__()
            self.conv = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
            inside = 16
            for group, channels in enumerate((16, 32, 64), 1):
                for index in range(1, (depth - 4) // 6 + 1):
                    stride = 2 if group > 1 and index == 1 else 1
                    block = WideBlock(inside, channels * width, stride)
                    self.add_module(f"group{group}_block{index}", block)
                    inside = channels * width
            self.norm = nn.BatchNorm2d(inside)
            self.logits = nn.Linear(inside, 10)

        def forward(self, x):
            for name, module in self.named_children():
                if name.startswith(("conv", "group")):
                    x = module(x)
            return self.logits(torch.relu(self.norm(x)).mean((2, 3)))

    def smooth(x):
        z = torch.relu(x + 0.5)
        return torch.maximum(z**3 - z**4 / 2, torch.relu(x))

    class Biased(nn.Module):
        def __init__(self, channels, norm):
            super().__init__()
            self.norm = norm(channels, affine=False)
            self.bias = nn.Parameter(torch.zeros(channels))

        def forward(self, x):
            return self.norm(x) + self.bias.reshape(-1, *[1] * (x.ndim - 2))

    class BranchBlock(nn.Module):
        def __init__(self, c):
            super().__init__()
            self.conv1 = nn.Conv2d(c, 2 * c, 3, 1, 1, bias=False)
            self.norm1 = nn.BatchNorm2d(2 * c)
            self.conv2 = nn.Conv2d(2 * c, 2 * c, 3, 1, 1, groups=2, bias=False)
            self.norm2 = nn.BatchNorm2d(2 * c)

        def forward(self, x):
            h = self.norm2(self.conv2(smooth(self.norm1(self.conv1(x)))))
            return smooth(torch.stack(h.chunk(2, dim=1)).mean(0) + x)

    class ResNeXt(nn.Module):
        def __init__(self, width, size):
            super().__init__()
            inside = 3
            for stage in (1, 2, 3):
                c = width * 2 ** (stage - 1)
                taps = 3 if stage == 1 else 1
                conv = nn.Conv2d(inside, c, taps, 1, taps // 2, bias=False)
                self.add_module(f"conv{stage}", conv)
                self.add_module(f"norm{stage}", Biased(c, nn.BatchNorm2d))
                for index in range(1, size + 1):
                    self.add_module(f"stage{stage}_block{index}", BranchBlock(c))
                inside = c
            self.logits = nn.Linear(inside, 10, bias=False)
            self.logits_norm = Biased(10, nn.BatchNorm1d)

        def forward(self, x):
            for name, module in self.named_children():
                if name == "logits":
                    x = x.mean((2, 3))
                x = module(x)
                if name.startswith(("norm", "logits_norm")):
                    x = smooth(x)
                if name in ("norm2", "norm3"):
                    x = nn.functional.avg_pool2d(x, 2)
            return x

    return Wide, ResNeXt


def randomize(network):
    """Random parameters and running statistics, in inference mode."""
    return import_or_skip("tests.support.torch_networks").randomize(network)


def variables(network, rename=lambda path: path):
    """The network's parameters and statistics as trees with our names and layouts."""
    trees: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for name, leaf in network.state_dict().items():
        *path, kind = rename(name).split(".")
        array = leaf.numpy()
        if kind == "num_batches_tracked":
            continue
        if array.ndim == 4:
            kind, array = "kernel", array.transpose(2, 3, 1, 0)
        elif array.ndim == 2:
            kind, array = "kernel", array.T
        kind = {"weight": "scale", "running_mean": "mean", "running_var": "var"}.get(
            kind, kind
        )
        node = trees["batch_stats" if kind in ("mean", "var") else "params"]
        for part in path:
            node = node.setdefault(part, {})
        node[kind] = array
    return trees


def compare(module, network, trees, shape):
    """Returns the logits of both networks on random images; all leaves are used."""
    torch = import_or_skip("torch")
    images = np.random.default_rng(0).uniform(0, 1, shape).astype(np.float32)
    expected = jax.eval_shape(module.init, jax.random.key(0), images)
    assert jax.tree.map(np.shape, trees) == jax.tree.map(np.shape, expected)
    ours = jax.jit(module.apply)(trees, images)
    mean, std = (np.asarray(value, np.float32) for value in (module.mean, module.std))
    normalised = ((images - mean) / std).transpose(0, 3, 1, 2).copy()
    with torch.no_grad():
        theirs = network(torch.from_numpy(normalised)).numpy()
    assert np.abs(theirs).max() > 1e-2
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


def our_name(theirs):
    """Turns PyTorch's names, such as ``layer2.0.downsample.1.weight``, into ours."""
    parts = theirs.split(".")
    if parts[0].startswith("layer"):
        parts[:2] = [f"stage{parts[0][5:]}_block{int(parts[1]) + 1}"]
        if parts[1] == "downsample":
            parts[1:3] = ["shortcut" if parts[2] == "0" else "shortcut_norm"]
        parts[1] = parts[1].replace("bn", "norm")
    names = {"conv1": "conv", "bn1": "norm", "fc": "logits"}
    return ".".join([names.get(parts[0], parts[0]), *parts[1:]])


@pytest.mark.parametrize("library", ["torchvision.models", "timm.models"])
def test_resnet50_is_that_of_other_libraries(library):
    network = randomize(import_or_skip(library).resnet50())
    mean, std = models.STATISTICS["imagenet"]
    module = models.ResNet50(mean=mean, std=std)
    compare(module, network, variables(network, our_name), (2, 64, 75, 3))


def test_wide_resnet_is_the_one_described():
    network = randomize(blocks()[0](28, 2))
    mean, std = models.STATISTICS["cifar10"]
    module = models.WideResNet(width=2, mean=mean, std=std)
    compare(module, network, variables(network), (2, 32, 32, 3))


def test_resnext_is_the_one_described():
    network = randomize(blocks()[1](8, 5))
    module = models.ResNeXt34(
        width=8,
        mean=0.0,
        std=1.0,
        activation="smooth_relu",
        logit_activation=True,
    )
    compare(module, network, variables(network), (2, 32, 32, 3))
