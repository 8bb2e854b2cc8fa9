"""ELUNet, the convolutional network of Sinha et al. 2018 for MNIST."""

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

# The first layer leaves 14 places of 27, the second 5, the third 1.
MIN_SIZE = 27


class ELUNet(nn.Module):
    """Three convolutions with large kernels and ELU, without pooling, and a linear one.

    With w the width: ``[conv8x8(w) with stride 2, act, conv6x6(2w) with stride 2, act,
    conv5x5(2w), act, linear]``. The first convolution is padded as TensorFlow's SAME,
    the others not at all; all have biases. Images of 28x28 give 2w features, as in the
    paper; larger images give more. At width 64, with 28x28x1 images and 10 classes, the
    network has 710,218 parameters.

    The network is a chain of linear layers and functions that are 1-Lipschitz, so the
    product of the layers' norms bounds its Lipschitz constant. With ELU its gradient is
    Lipschitz too, as Sinha et al. and Farnia et al. suppose.

    Kernels start from Xavier's uniform distribution, biases from zero.

    Attributes:
      width: channels of the first convolution.
      num_classes: number of logits.
      mean: subtracted from the pixels; one number or one per channel, in [0, 1] units.
        The papers do not normalise MNIST: mean 0 and std 1.
      std: the pixels are then divided by it; one number or one per channel.
      dtype: dtype of the computation. Parameters and logits are at least float32.
      activation: a name in ``ACTIVATIONS``. The default of ``models.create`` is "relu",
        as for every network.

    Source: Sinha et al. 2018, Section 4.2; used by Farnia et al. 2019.
    """

    width: int = 64
    num_classes: int = 10
    mean: normalization.ChannelStatistic = 0.5
    std: normalization.ChannelStatistic = 0.5
    dtype: DTypeLike = jnp.float32
    activation: str = "elu"

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, outputs: str = "logits"
    ) -> jax.Array | outputs_lib.Outputs:
        """Computes the logits of a batch of images.

        Args:
          x: (B, H, W, C), floating, pixels in [0, 1]; H and W at least 27.
          train: ignored, since the network is the same in training and inference.
          outputs: "logits", or "all" for features and pre-activations as well.

        Returns:
          logits (B, num_classes), or ``Outputs``.

        Raises:
          ValueError: if ``x`` or an attribute cannot be used.
        """
        del train
        h = entrance.enter(self, x, outputs, min_size=MIN_SIZE)
        preactivations = []
        for index, (factor, size, stride, padding) in enumerate(
            ((1, 8, 2, "SAME"), (2, 6, 2, "VALID"), (2, 5, 1, "VALID")), start=1
        ):
            h = layers.biased_convolution(
                f"conv{index}",
                factor * self.width,
                size,
                stride=stride,
                padding=padding,
                dtype=self.dtype,
            )(h)
            preactivations.append(h)
            h = activations.ACTIVATIONS[self.activation](h)
        features = h.reshape(h.shape[0], -1)
        logits = layers.linear(
            features,
            self.num_classes,
            self.dtype,
            kernel_init=initializers.XAVIER_UNIFORM,
        )
        return outputs_lib.select(outputs, logits, features, preactivations)
