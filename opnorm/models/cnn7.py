"""CNN7, the convolutional network of Roth et al. 2020."""

import functools

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

# Three poolings leave 3 of 24 places, as many as the last 3x3 kernel needs.
MIN_SIZE = 24


class CNN7(nn.Module):
    """Seven 3x3 convolutions, each with BatchNorm and activation, and a linear layer.

    With w the width: ``[w, w, pool, 2w, 2w, pool, 4w, 4w, pool, 8w, pool, linear]``.
    The first six convolutions keep the size of the map, the last has no padding;
    ``pool`` is 2x2 max-pooling that drops an odd last row or column. Convolutions have
    biases; BatchNorm has no learned scale or shift, epsilon 1e-5 and momentum 0.9
    (PyTorch's 0.1). Images of 32x32 give 8w features, as in the paper. Images of 28x28
    give as many, since their last map is 1x1 already and is not pooled; larger images
    give more. At width 128, with 32x32x3 images and 10 classes, the network has
    9,306,250 parameters and 462,848 ReLU units.

    Kernels start from Flax's default (LeCun normal), biases from zero.

    Attributes:
      width: channels of the first convolution.
      num_classes: number of logits.
      mean: subtracted from the pixels; one number or one per channel, in [0, 1] units.
      std: the pixels are then divided by it; one number or one per channel. The
        defaults map [0, 1] to [-1, 1], as Roth et al. 2020 do.
      dtype: dtype of the computation. Parameters, BatchNorm statistics and logits are
        at least float32.
      activation: a name in ``ACTIVATIONS``; the paper's is "relu".
      rematerialize: if true, derivatives compute each convolution, BatchNorm,
        activation and pooling again instead of storing the values inside them.

    Source: Roth et al. 2020, experimental set-up (CNN7).
    """

    width: int = 128
    num_classes: int = 10
    mean: normalization.ChannelStatistic = 0.5
    std: normalization.ChannelStatistic = 0.5
    dtype: DTypeLike = jnp.float32
    activation: str = "relu"
    rematerialize: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, outputs: str = "logits"
    ) -> jax.Array | outputs_lib.Outputs:
        """Computes the logits of a batch of images.

        Args:
          x: (B, H, W, C), floating, pixels in [0, 1]; H and W at least 24.
          train: if true, BatchNorm uses the statistics of this batch and updates the
            running ones (``mutable=["batch_stats"]``), and the rows of the result
            depend on each other; if false, it uses the running statistics.
          outputs: "logits", or "all" for features and pre-activations as well.

        Returns:
          logits (B, num_classes), or ``Outputs``.

        Raises:
          ValueError: if ``x`` or an attribute cannot be used.
        """
        h = entrance.enter(self, x, outputs, min_size=MIN_SIZE)
        preactivations: list[jax.Array] = []
        for index, factor in enumerate((1, 1, 2, 2, 4, 4, 8), start=1):
            block = functools.partial(
                CNN7._block, index=index, channels=factor * self.width, train=train
            )
            h, inside = (nn.remat(block) if self.rematerialize else block)(self, h)
            preactivations.append(inside)
        features = h.reshape(h.shape[0], -1)
        logits = layers.linear(features, self.num_classes, self.dtype)
        return outputs_lib.select(outputs, logits, features, preactivations)

    def _block(
        self, h: jax.Array, *, index: int, channels: int, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the output and the pre-activation of a convolution's block."""
        h = nn.Conv(
            channels,
            (3, 3),
            padding="VALID" if index == 7 else "SAME",
            kernel_init=initializers.LECUN_NORMAL,
            dtype=self.dtype,
            param_dtype=outputs_lib.parameter_dtype(self.dtype),
            name=f"conv{index}",
        )(h)
        preactivation = layers.batch_norm(
            f"norm{index}", train=train, dtype=self.dtype, affine=False
        )(h)
        h = activations.ACTIVATIONS[self.activation](preactivation)
        if index in (2, 4, 6, 7) and min(h.shape[1:3]) >= 2:
            h = layers.max_pool(h)
        return h, preactivation
