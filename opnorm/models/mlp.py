"""A multilayer perceptron."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from opnorm.models import (
    activations,
    entrance,
    initializers,
    layers,
    normalization,
)
from opnorm.models import outputs as outputs_lib


class MLP(nn.Module):
    """Linear layers with an activation between them, on flattened images.

    The network has no BatchNorm, so it is the same function in training and inference.
    Kernels start from Flax's default (LeCun normal), biases from zero.

    Attributes:
      hidden: width of each hidden layer; the empty tuple gives a linear model.
      num_classes: number of logits.
      mean: subtracted from the pixels; one number or one per channel, in [0, 1] units.
      std: the pixels are then divided by it; one number or one per channel.
      dtype: dtype of the computation. Parameters and logits are at least float32.
      activation: a name in ``ACTIVATIONS``.
    """

    hidden: tuple[int, ...] = (512, 512)
    num_classes: int = 10
    mean: normalization.ChannelStatistic = 0.5
    std: normalization.ChannelStatistic = 0.5
    dtype: DTypeLike = jnp.float32
    activation: str = "relu"

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, outputs: str = "logits"
    ) -> jax.Array | outputs_lib.Outputs:
        """Computes the logits of a batch of images.

        Args:
          x: (B, H, W, C), floating, pixels in [0, 1].
          train: ignored, since the network is the same in training and inference.
          outputs: "logits", or "all" for features and pre-activations as well.

        Returns:
          logits (B, num_classes), or ``Outputs``.

        Raises:
          ValueError: if ``x`` or an attribute cannot be used.
        """
        del train
        for width in self.hidden:
            outputs_lib.check_size("hidden", width)

        h = entrance.enter(self, x, outputs)
        param_dtype = outputs_lib.parameter_dtype(self.dtype)
        h = h.reshape(h.shape[0], -1)
        preactivations = []
        for index, width in enumerate(self.hidden, start=1):
            h = nn.Dense(
                width,
                dtype=self.dtype,
                param_dtype=param_dtype,
                kernel_init=initializers.LECUN_NORMAL,
                name=f"dense{index}",
            )(h)
            preactivations.append(h)
            h = activations.ACTIVATIONS[self.activation](h)
        logits = layers.linear(h, self.num_classes, self.dtype)
        return outputs_lib.select(outputs, logits, h, preactivations)
