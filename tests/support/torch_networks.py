"""Residual networks and CNN7 in PyTorch, with the names that common files have.

They are written from the papers' descriptions. Import this file only where PyTorch is.
"""

import numpy as np
import torch

nn = torch.nn


def conv(inside, outside, size, stride=1, groups=1, padding=None):
    pad = size // 2 if padding is None else padding
    return nn.Conv2d(inside, outside, size, stride, pad, groups=groups, bias=False)


class Activation(nn.Module):
    """A function as a module, so that its inputs can be seen."""

    def __init__(self, fun):
        super().__init__()
        self.fun = fun

    def forward(self, x):
        return self.fun(x)


class WideBlock(nn.Module):
    """A pre-activation block; ``gowal`` chooses names and TensorFlow's padding."""

    def __init__(self, inside, outside, stride, act, gowal):
        super().__init__()
        self.act, self.stride, self.gowal = act, stride, gowal
        first = 0 if gowal else 1
        norm, convolution = ("batchnorm_", "conv_") if gowal else ("bn", "conv")
        self.norms = [f"{norm}{first}", f"{norm}{first + 1}"]
        self.convs = [f"{convolution}{first}", f"{convolution}{first + 1}"]
        self.add_module(self.norms[0], nn.BatchNorm2d(inside))
        self.add_module(self.norms[1], nn.BatchNorm2d(outside))
        self.add_module(self.convs[0], conv(inside, outside, 3, stride, padding=0))
        self.add_module(self.convs[1], conv(outside, outside, 3))
        self.short = None
        if inside != outside:
            self.short = "shortcut" if gowal else "convShortcut"
            self.add_module(self.short, conv(inside, outside, 1, stride))

    def forward(self, x):
        norms, convs = (
            [getattr(self, name) for name in names]
            for names in (self.norms, self.convs)
        )
        o = self.act(norms[0](x))
        before = 0 if self.gowal and self.stride == 2 else 1
        h = convs[0](nn.functional.pad(o, (before, 1, before, 1)))
        h = convs[1](self.act(norms[1](h)))
        return h + (x if self.short is None else getattr(self, self.short)(o))


class Wide(nn.Module):
    def __init__(self, depth, width, fun, gowal):
        super().__init__()
        self.act = Activation(fun)
        self.names = (
            ("init_conv", "batchnorm", "logits") if gowal else ("conv1", "bn1", "fc")
        )
        self.add_module(self.names[0], conv(3, 16, 3))
        inside, groups = 16, []
        for stride, channels in ((1, 16 * width), (2, 32 * width), (2, 64 * width)):
            blocks = []
            for index in range((depth - 4) // 6):
                blocks.append(
                    WideBlock(inside, channels, 1 if index else stride, self.act, gowal)
                )
                inside = channels
            group = nn.Module()
            group.add_module("block" if gowal else "layer", nn.Sequential(*blocks))
            groups.append(group)
        if gowal:
            self.layer = nn.Sequential(*groups)
        else:
            self.block1, self.block2, self.block3 = groups
        self.add_module(self.names[1], nn.BatchNorm2d(inside))
        self.add_module(self.names[2], nn.Linear(inside, 10))
        self.gowal = gowal

    def forward(self, x):
        first, norm, linear = (getattr(self, name) for name in self.names)
        x = first(x)
        groups = self.layer if self.gowal else (self.block1, self.block2, self.block3)
        for group in groups:
            x = (group.block if self.gowal else group.layer)(x)
        return linear(self.act(norm(x)).mean((2, 3)))


class ResidualBlock(nn.Module):
    """A post-activation block: two 3x3 convolutions, or a bottleneck."""

    def __init__(self, inside, channels, stride, act, bottleneck, shortcut):
        super().__init__()
        self.act, self.short = act, None
        outside = 4 * channels if bottleneck else channels
        widths = (
            [inside, channels, channels, outside]
            if bottleneck
            else [inside, channels, channels]
        )
        sizes = (1, 3, 1) if bottleneck else (3, 3)
        strides = (1, stride, 1) if bottleneck else (stride, 1)
        self.count = len(sizes)
        for i, (size, step) in enumerate(zip(sizes, strides, strict=True)):
            self.add_module(f"conv{i + 1}", conv(widths[i], widths[i + 1], size, step))
            self.add_module(f"bn{i + 1}", nn.BatchNorm2d(widths[i + 1]))
        if inside != outside or stride != 1:
            self.short = shortcut
            path = (conv(inside, outside, 1, stride), nn.BatchNorm2d(outside))
            self.add_module(shortcut, nn.Sequential(*path))

    def forward(self, x):
        h = x
        for i in range(1, self.count + 1):
            h = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(h))
            h = self.act(h) if i < self.count else h
        return self.act(h + (x if self.short is None else getattr(self, self.short)(x)))


class Residual(nn.Module):
    """ResNet with torchvision's names, or those of networks for CIFAR-10."""

    def __init__(self, width, sizes, bottleneck, small):
        super().__init__()
        self.act, self.small, self.sizes = Activation(torch.relu), small, sizes
        self.conv1 = conv(3, width, 3 if small else 7, 1 if small else 2)
        self.bn1 = nn.BatchNorm2d(width)
        inside = width
        for stage, size in enumerate(sizes):
            blocks = []
            for index in range(size):
                stride = 2 if stage and not index else 1
                channels = width * 2**stage
                shortcut = "shortcut" if small else "downsample"
                blocks.append(
                    ResidualBlock(
                        inside, channels, stride, self.act, bottleneck, shortcut
                    )
                )
                inside = 4 * channels if bottleneck else channels
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.last = "linear" if small else "fc"
        self.add_module(self.last, nn.Linear(inside, 10))

    def forward(self, x):
        x = self.act(self.bn1(self.conv1(x)))
        if not self.small:
            x = nn.functional.max_pool2d(x, 3, 2, 1)
        for stage in range(len(self.sizes)):
            x = getattr(self, f"layer{stage + 1}")(x)
        return getattr(self, self.last)(x.mean((2, 3)))


def smooth(x):
    z = torch.relu(x + 0.5)
    return torch.maximum(z**3 - z**4 / 2, torch.relu(x))


class Biased(nn.Module):
    """A convolution or linear layer, BatchNorm without scale, a bias, an activation."""

    def __init__(self, weight, act, norm):
        super().__init__()
        self.act = act
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(len(weight)))
        self.bn = norm(len(weight), affine=False)

    def forward(self, x):
        if self.weight.ndim == 4:
            pad = self.weight.shape[2] // 2
            h = nn.functional.conv2d(x, self.weight, padding=pad)
        else:
            h = x @ self.weight.T
        return self.act(self.bn(h) + self.bias.reshape(-1, *[1] * (h.ndim - 2)))


class BranchBlock(nn.Module):
    def __init__(self, c, act):
        super().__init__()
        self.act = act
        self.conv0, self.conv1 = conv(c, 2 * c, 3), conv(2 * c, 2 * c, 3, groups=2)
        self.bn0, self.bn1 = nn.BatchNorm2d(2 * c), nn.BatchNorm2d(2 * c)

    def forward(self, x):
        h = self.bn1(self.conv1(self.act(self.bn0(self.conv0(x)))))
        return self.act(sum(h.chunk(2, dim=1)) / 2 + x)


class Branches(nn.Module):
    """The ResNeXt of Finlay & Oberman."""

    def __init__(self, width, sizes):
        super().__init__()
        act = Activation(smooth)
        self.layer0 = Biased(torch.zeros(width, 3, 3, 3), act, nn.BatchNorm2d)
        stages = []
        for stage, size in enumerate(sizes):
            c = width * 2**stage
            blocks = [BranchBlock(c, act) for _ in range(size)]
            if stage:
                weight = torch.zeros(c, c // 2, 1, 1)
                first = Biased(weight, act, nn.BatchNorm2d)
                blocks = [first, nn.AvgPool2d(2), *blocks]
            stages.append(nn.Sequential(*blocks))
        self.layers = nn.Sequential(*stages)
        self.fc = Biased(torch.zeros(10, c), act, nn.BatchNorm1d)

    def forward(self, x):
        return self.fc(self.layers(self.layer0(x)).mean((2, 3)))


def cnn7(width):
    """CNN7 as a chain of numbered layers."""
    act, parts, inside = Activation(torch.relu), [], 3
    for index, factor in enumerate((1, 1, 2, 2, 4, 4, 8), 1):
        c = factor * width
        parts += [nn.Conv2d(inside, c, 3, padding=int(index < 7))]
        parts += [nn.BatchNorm2d(c, affine=False), act]
        parts += [nn.MaxPool2d(2)] if index in (2, 4, 6, 7) else []
        inside = c
    network = nn.Module()
    network.features = nn.Sequential(*parts)
    network.classifier = nn.Sequential(nn.Linear(inside, 10))
    network.forward = lambda x: network.classifier(network.features(x).flatten(1))
    return network


def randomize(network, seed=0):
    """Random parameters and running statistics, in inference mode."""
    generator = torch.Generator().manual_seed(seed)
    for name, leaf in network.state_dict().items():
        if leaf.ndim >= 2:
            leaf.normal_(0, leaf[0].numel() ** -0.5, generator=generator)
        elif name.endswith(("running_var", "weight")):
            leaf.uniform_(0.5, 1.5, generator=generator)
        elif leaf.ndim == 1:
            leaf.uniform_(-0.3, 0.3, generator=generator)
    return network.eval()


def layers(network, x):
    """The inputs of all activations in their order, and the outputs, as (B, ..., C)."""
    seen = []
    hooks = [
        part.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
        for part in network.modules()
        if isinstance(part, Activation)
    ]
    with torch.no_grad():
        out = network(torch.tensor(np.moveaxis(x, 3, 1)))
    for hook in hooks:
        hook.remove()
    return [np.moveaxis(array.numpy(), 1, -1) for array in (*seen, out)]
