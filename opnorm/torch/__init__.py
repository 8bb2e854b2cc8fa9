"""PyTorch networks as functions of JAX, and their weights in this library's networks.

PyTorch is imported when a function here needs it; it is the extra ``[torch]``.
"""

from opnorm.torch import calls
from opnorm.torch.functions import TorchNetwork, from_torch
from opnorm.torch.weights import load_network

calls.give_callbacks_a_thread()

__all__ = ["TorchNetwork", "from_torch", "load_network"]
