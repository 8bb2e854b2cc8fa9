"""models: networks by name."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from opnorm.models.cnn7 import CNN7
from opnorm.models.mlp import MLP
from opnorm.models.normalization import ChannelStatistic
from opnorm.models.outputs import check_size

NAMES = ("cnn7", "mlp")


def create(
    name: str,
    *,
    num_classes: int = 10,
    width: int | None = None,
    mean: ChannelStatistic = 0.5,
    std: ChannelStatistic = 0.5,
    dtype: Any = jnp.float32,
) -> nn.Module:
    """Builds the network called ``name``; nothing is computed or allocated.

    Args:
      name: one of ``NAMES``.
      num_classes: number of logits.
      width: channels of CNN7's first convolution, or the size of the MLP's two hidden
        layers; None for the model's own default (128 and 512).
      mean: subtracted from the pixels; one number or one per channel, in [0, 1] units.
      std: the pixels are then divided by it; one number or one per channel.
      dtype: what the network computes in.

    Returns:
      A Flax module ``model.apply(variables, x, train=False, outputs="logits")``.

    Raises:
      ValueError: for an unknown name, or a size below 1.
    """
    if name not in NAMES:
        raise ValueError(f"name is {name!r}; it may be one of {', '.join(NAMES)}.")
    check_size("num_classes", num_classes)
    if width is not None:
        check_size("width", width)
    options: dict[str, Any] = {
        "num_classes": num_classes,
        "mean": mean,
        "std": std,
        "dtype": dtype,
    }
    if name == "cnn7":
        return CNN7(**options) if width is None else CNN7(width=width, **options)
    return MLP(**options) if width is None else MLP(hidden=(width, width), **options)
