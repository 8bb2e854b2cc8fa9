"""CNN7 in PyTorch with the weights of opnorm, to compare attacks on it.

PyTorch is imported when a network is built: ``pip install 'opnorm[oracles]'``.
"""

from typing import Any

import numpy as np

from experiments.common import cli


def build(params: Any, batch_stats: Any) -> Any:
    """Builds the network in inference mode.

    Args:
      params: parameters of an :class:`opnorm.models.CNN7` with the default
        normalisation.
      batch_stats: its BatchNorm statistics.

    Returns:
      A ``torch.nn.Module``, ``(B, 3, H, W)`` pixels in [0, 1] to ``(B, K)`` logits.

    Raises:
      MissingPackage: if PyTorch is not installed.
      ValueError: if the parameters are not those of CNN7.
    """
    torch = cli.import_optional("torch", "oracles")
    if "conv7" not in params or "logits" not in params:
        raise ValueError("the network is not a CNN7; only CNN7 is compared.")

    forward = {"forward": lambda self, x: (x - 0.5) / 0.5}
    layers: list[Any] = [type("Normalize", (torch.nn.Module,), forward)()]
    for index in range(1, 8):
        kernel = np.asarray(params[f"conv{index}"]["kernel"])
        padding = 1 if index < 7 else 0
        conv = torch.nn.Conv2d(kernel.shape[2], kernel.shape[3], 3, padding=padding)
        norm = torch.nn.BatchNorm2d(kernel.shape[3], eps=1e-5, affine=False)
        statistics = batch_stats[f"norm{index}"]
        with torch.no_grad():
            conv.weight.copy_(_tensor(kernel.transpose(3, 2, 0, 1)))
            conv.bias.copy_(_tensor(params[f"conv{index}"]["bias"]))
            norm.running_mean.copy_(_tensor(statistics["mean"]))
            norm.running_var.copy_(_tensor(statistics["var"]))
        layers += [conv, norm, torch.nn.ReLU()]
        if index in (2, 4, 6, 7):
            layers.append(torch.nn.MaxPool2d(2))
    weight = np.asarray(params["logits"]["kernel"])
    linear = torch.nn.Linear(*weight.shape)
    with torch.no_grad():
        linear.weight.copy_(_tensor(weight.T))
        linear.bias.copy_(_tensor(params["logits"]["bias"]))
    network = torch.nn.Sequential(*layers, torch.nn.Flatten(), linear).eval()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return network


def to_torch(images: np.ndarray) -> Any:
    """``(B, H, W, C)`` uint8 or float pixels as ``(B, C, H, W)`` float32 in [0, 1]."""
    scaled = images.astype(np.float32)
    if images.dtype == np.uint8:
        scaled = scaled / np.float32(255)
    return _tensor(scaled.transpose(0, 3, 1, 2))


def _tensor(array: Any) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(array, np.float32).copy())
