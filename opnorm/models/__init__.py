"""models: Flax networks that also return their features and pre-activations.

A model takes pictures (B, H, W, C) with pixels in [0, 1], normalises them inside and
returns logits. Imports nothing of ours.
"""

from opnorm.models.cnn7 import CNN7
from opnorm.models.mlp import MLP
from opnorm.models.outputs import Outputs
from opnorm.models.registry import NAMES, create

__all__ = ["CNN7", "MLP", "NAMES", "Outputs", "create"]
