"""The small Inception network of Zhang et al. 2017 for 28x28 images."""

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

# Each stage has the number of channels of the convolution that halves the map before
# it, and those of the 1x1 and the 3x3 convolution of each of its blocks, at width 96.
STAGES: tuple[tuple[int | None, tuple[tuple[int, int], ...]], ...] = (
    (None, ((32, 32), (32, 48))),
    (80, ((112, 48), (96, 64), (80, 80), (48, 96))),
    (96, ((176, 160), (176, 160))),
)
WIDTH = 96
POOL_SIZE = 7


class Inception(nn.Module):
    """Three stages of blocks of two parallel convolutions, without BatchNorm.

    ``conv3x3(96), act``, the stages, a 7x7 average around every place, linear. A block
    of (a, b) channels lays the outputs of ``conv1x1(a), act`` and ``conv3x3(b), act``
    side by side; the stages have blocks of (32, 32), (32, 48), then (112, 48),
    (96, 64), (80, 80), (48, 96), then (176, 160) twice. The second and the third stage
    begin by halving the map: ``conv3x3(80)`` or ``conv3x3(96)`` with stride 2 and the
    activation beside 3x3 max-pooling with stride 2. Convolutions have biases; all
    padding is TensorFlow's SAME. At other widths than 96, all numbers of channels are
    scaled in proportion and rounded to at least 1.

    The average keeps the size of the map (its windows end at the border, and places
    outside do not count), so that the linear layer sees every place: a 28x28 image
    has 7x7x336 = 16,464 features. With three channels and 10 classes the network has
    1,810,682 parameters.

    The product of the layers' norms is no bound here. Max-pooling that overlaps has the
    l2 Lipschitz constant 2, the average around every place slightly more than 1, and
    two parallel layers have up to the root of the sum of their squared norms.

    Kernels start from Xavier's uniform distribution, biases from zero.

    Attributes:
      width: channels of the first convolution.
      num_classes: number of logits.
      mean: subtracted from the pixels; one number or one per channel, in [0, 1] units.
      std: the pixels are then divided by it; one number or one per channel.
      dtype: dtype of the computation. Parameters and logits are at least float32.
      activation: a name in ``ACTIVATIONS``.
      rematerialize: if true, derivatives compute each block again instead of storing
        the values inside it.

    Source: Zhang et al. 2017, Appendix A (Small Inception, there with BatchNorm); used
    by Farnia et al. 2019.
    """

    width: int = WIDTH
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
          x: (B, H, W, C), floating, pixels in [0, 1].
          train: ignored, since the network is the same in training and inference.
          outputs: "logits", or "all" for features and pre-activations as well.

        Returns:
          logits (B, num_classes), or ``Outputs``.

        Raises:
          ValueError: if ``x`` or an attribute cannot be used.
        """
        del train
        h = entrance.enter(self, x, outputs)
        h = layers.biased_convolution("conv", self.width, 3, dtype=self.dtype)(h)
        preactivations = [h]
        h = activations.ACTIVATIONS[self.activation](h)
        block, halve = ParallelBlock, HalvingBlock
        if self.rematerialize:
            block, halve = nn.remat(block), nn.remat(halve)
        for stage, (halving_channels, blocks) in enumerate(STAGES, start=1):
            if halving_channels is not None:
                h, inside = halve(
                    self._scaled(halving_channels),
                    self.dtype,
                    self.activation,
                    name=f"stage{stage}_halve",
                )(h)
                preactivations.extend(inside)
            for index, (first, second) in enumerate(blocks, start=1):
                h, inside = block(
                    (self._scaled(first), self._scaled(second)),
                    self.dtype,
                    self.activation,
                    name=f"stage{stage}_block{index}",
                )(h)
                preactivations.extend(inside)
        h = layers.local_average(h, POOL_SIZE)
        features = h.reshape(h.shape[0], -1)
        logits = layers.linear(
            features,
            self.num_classes,
            self.dtype,
            kernel_init=initializers.XAVIER_UNIFORM,
        )
        return outputs_lib.select(outputs, logits, features, preactivations)

    def _scaled(self, channels: int) -> int:
        return max(1, round(channels * self.width / WIDTH))


class ParallelBlock(nn.Module):
    """A 1x1 and a 3x3 convolution of the same input, their outputs side by side.

    Attributes:
      channels: number of output channels of the 1x1 and of the 3x3 convolution.
      dtype, activation: those of the network.
    """

    channels: tuple[int, int]
    dtype: DTypeLike
    activation: str

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Returns the block's output and its two pre-activations."""
        act = activations.ACTIVATIONS[self.activation]
        inside = tuple(
            layers.biased_convolution(f"conv{size}", channels, size, dtype=self.dtype)(
                x
            )
            for size, channels in zip((1, 3), self.channels, strict=True)
        )
        return jnp.concatenate([act(h) for h in inside], axis=-1), inside


class HalvingBlock(nn.Module):
    """A 3x3 convolution and max-pooling, both with stride 2, outputs side by side.

    Attributes:
      channels: number of output channels of the convolution.
      dtype, activation: those of the network.
    """

    channels: int
    dtype: DTypeLike
    activation: str

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Returns the block's output and its pre-activation."""
        act = activations.ACTIVATIONS[self.activation]
        h = layers.biased_convolution(
            "conv3", self.channels, 3, stride=2, dtype=self.dtype
        )(x)
        pooled = layers.overlapping_max_pool(x, padding="SAME")
        return jnp.concatenate([act(h), pooled], axis=-1), (h,)
