"""models: how every network begins: its checks, and pictures normalised."""

from typing import Any

import jax

from opnorm.models import activations, normalization
from opnorm.models import outputs as outputs_lib


def enter(network: Any, x: jax.Array, outputs: str, *, min_size: int = 1) -> jax.Array:
    """Checks what every network has and is given, and normalises its pictures.

    Args:
      network: with the attributes ``num_classes``, ``activation``, ``mean``, ``std``,
        ``dtype`` and, but for the MLP, ``width``.
      x: (B, H, W, C), floating, pixels in [0, 1].
      outputs: a name in ``OUTPUTS``.
      min_size: the least height and width that the network can take.

    Returns:
      ``(x - mean) / std`` in the network's dtype.

    Raises:
      ValueError: if one of them cannot be used.
    """
    outputs_lib.check_outputs(outputs)
    for name in ("width", "num_classes"):
        if hasattr(network, name):
            outputs_lib.check_size(name, getattr(network, name))
    activations.check_activation(network.activation)
    normalization.check_images(x, min_size=min_size)
    return normalization.normalize(x, network.mean, network.std, network.dtype)
