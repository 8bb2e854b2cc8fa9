"""Flax networks that also return their features and pre-activations.

A model takes images ``(B, H, W, C)`` with pixels in [0, 1], normalises them inside and
returns logits ``(B, K)``. This room imports no other room.
"""

from opnorm.models.activations import ACTIVATIONS, smooth_relu
from opnorm.models.alexnet import AlexNet
from opnorm.models.array_files import read_arrays
from opnorm.models.cnn7 import CNN7
from opnorm.models.elu_net import ELUNet
from opnorm.models.fixup import FixupResNet
from opnorm.models.inception import Inception
from opnorm.models.layers import max_pool
from opnorm.models.mlp import MLP
from opnorm.models.network import Network, network
from opnorm.models.normalization import STATISTICS, normalize
from opnorm.models.outputs import Outputs
from opnorm.models.registry import NAMES, create
from opnorm.models.resnet import ResNet50
from opnorm.models.resnet32 import ResNet32
from opnorm.models.resnext import ResNeXt34
from opnorm.models.wide_resnet import WideResNet
from opnorm.models.wide_resnet50 import WideResNet50

__all__ = [
    "ACTIVATIONS",
    "CNN7",
    "MLP",
    "NAMES",
    "STATISTICS",
    "AlexNet",
    "ELUNet",
    "FixupResNet",
    "Inception",
    "Network",
    "Outputs",
    "ResNeXt34",
    "ResNet32",
    "ResNet50",
    "WideResNet",
    "WideResNet50",
    "create",
    "max_pool",
    "network",
    "normalize",
    "read_arrays",
    "smooth_relu",
]
