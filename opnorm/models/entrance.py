"""The checks and the normalisation that every network begins with."""

from typing import Protocol

import jax
from jax.typing import DTypeLike

from opnorm.models import activations, normalization
from opnorm.models import outputs as outputs_lib


class Model(Protocol):
    """The attributes that every network has."""

    num_classes: int
    mean: normalization.ChannelStatistic
    std: normalization.ChannelStatistic
    dtype: DTypeLike
    activation: str


def enter(
    network: Model, x: jax.Array, outputs: str, *, min_size: int = 1
) -> jax.Array:
    """Checks a network's attributes and arguments, and normalises its images.

    Args:
      network: a network, which also has ``width``, unless it is an MLP.
      x: (B, H, W, C), floating, pixels in [0, 1].
      outputs: a name in ``OUTPUTS``.
      min_size: smallest height and width that the network can take.

    Returns:
      ``(x - mean) / std`` in the network's dtype; with "image" for both, each image is
      whitened by itself (:func:`opnorm.models.normalize`).

    Raises:
      ValueError: if an attribute or argument cannot be used.
    """
    outputs_lib.check_outputs(outputs)
    for name in ("width", "num_classes"):
        if hasattr(network, name):
            outputs_lib.check_size(name, getattr(network, name))
    activations.check_activation(network.activation)
    normalization.check_images(x, min_size=min_size)
    return normalization.normalize(x, network.mean, network.std, network.dtype)
