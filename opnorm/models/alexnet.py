"""The small AlexNet of Zhang et al. 2017 for 28x28 images."""

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

# The two poolings leave 3 and 1 of 7 places.
MIN_SIZE = 7


class AlexNet(nn.Module):
    """Two 5x5 convolutions with pooling and LRN, and three linear layers.

    With w the width: ``[conv5x5(w), act, pool, LRN, conv5x5(8w/3), act, pool, LRN,
    dense(4w), act, dense(2w), act, linear]``. Convolutions keep the size of the map;
    ``pool`` is 3x3 max-pooling with stride 2 and no padding, which drops the last row
    and column of an even map; LRN is ``layers.local_response_normalization``, over
    nine channels. All layers have biases. The last map of 28x28 images is 6x6, as in
    the paper, and that of larger images is larger. The network has 4,237,130 parameters
    at width 96 with 28x28x3 images and 10 classes.

    The pooling overlaps and has the l2 Lipschitz constant 2, so the product of the
    layers' norms does not bound the norm of the network: the two poolings can amplify
    by another factor of 4.

    Kernels start from Xavier's uniform distribution, biases from zero.

    The attributes ``batch_norm``, ``dropout`` and ``response_normalization`` make the
    networks that spectral normalisation is compared with. BatchNorm has a scale and a
    shift, and the constants of the library's other networks (epsilon 1e-5, momentum
    0.9; the paper's code has 1e-3 and 0.99).

    Attributes:
      width: channels of the first convolution.
      num_classes: number of logits.
      mean: subtracted from the pixels; one number or one per channel, in [0, 1] units.
      std: the pixels are then divided by it; one number or one per channel.
      dtype: dtype of the computation. Parameters and logits are at least float32.
      activation: a name in ``ACTIVATIONS``; "elu" makes it the ELU-AlexNet of Farnia et
        al. 2019.
      rematerialize: if true, derivatives compute each convolution with its activation,
        pooling and LRN again instead of storing the values inside them.
      batch_norm: if true, BatchNorm follows each convolution, before the activation.
      dropout: part of the entries that training sets to zero after each block of a
        convolution, in [0, 1); the others are divided by ``1 - dropout``. In inference
        nothing is dropped.
      response_normalization: if false, the network has no LRN.

    Source: Zhang et al. 2017, Appendix A (their Small AlexNet); used by Farnia et al.
    2019, with the variants in their Appendix A.2 (Fig. 11).
    """

    width: int = 96
    num_classes: int = 10
    mean: normalization.ChannelStatistic = 0.5
    std: normalization.ChannelStatistic = 0.5
    dtype: DTypeLike = jnp.float32
    activation: str = "relu"
    rematerialize: bool = False
    batch_norm: bool = False
    dropout: float = 0.0
    response_normalization: bool = True

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, outputs: str = "logits"
    ) -> jax.Array | outputs_lib.Outputs:
        """Computes the logits of a batch of images.

        Args:
          x: (B, H, W, C), floating, pixels in [0, 1]; H and W at least 7.
          train: if true, BatchNorm uses the statistics of this batch and updates the
            running ones (``mutable=["batch_stats"]``), and entries are dropped, which
            needs ``rngs={"dropout": key}``. Without ``batch_norm`` and ``dropout`` the
            network is the same in training and inference.
          outputs: "logits", or "all" for features and pre-activations as well.

        Returns:
          logits (B, num_classes), or ``Outputs``.

        Raises:
          ValueError: if ``x`` or an attribute cannot be used.
        """
        h = entrance.enter(self, x, outputs, min_size=MIN_SIZE)
        outputs_lib.check_dropout(self.dropout)
        preactivations: list[jax.Array] = []
        for index, channels in enumerate((self.width, round(8 * self.width / 3)), 1):
            block = functools.partial(
                AlexNet._block, index=index, channels=channels, train=train
            )
            h, inside = (nn.remat(block) if self.rematerialize else block)(self, h)
            preactivations.append(inside)
        h = h.reshape(h.shape[0], -1)
        for index, factor in enumerate((4, 2), start=1):
            h = nn.Dense(
                factor * self.width,
                kernel_init=initializers.XAVIER_UNIFORM,
                dtype=self.dtype,
                param_dtype=outputs_lib.parameter_dtype(self.dtype),
                name=f"dense{index}",
            )(h)
            preactivations.append(h)
            h = activations.ACTIVATIONS[self.activation](h)
        logits = layers.linear(
            h, self.num_classes, self.dtype, kernel_init=initializers.XAVIER_UNIFORM
        )
        return outputs_lib.select(outputs, logits, h, preactivations)

    def _block(
        self, h: jax.Array, *, index: int, channels: int, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the output and the pre-activation of a convolution's block."""
        preactivation = layers.biased_convolution(
            f"conv{index}", channels, 5, dtype=self.dtype
        )(h)
        if self.batch_norm:
            preactivation = layers.batch_norm(
                f"norm{index}", train=train, dtype=self.dtype
            )(preactivation)
        h = activations.ACTIVATIONS[self.activation](preactivation)
        h = layers.overlapping_max_pool(h, padding="VALID")
        if self.response_normalization:
            h = layers.local_response_normalization(h)
        if self.dropout:
            h = nn.Dropout(
                self.dropout, deterministic=not train, name=f"dropout{index}"
            )(h)
        return h, preactivation
