"""ResNet32, pre-activation residual networks without BatchNorm or biases."""

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


class ResNet32(nn.Module):
    """TensorFlow's official ResNet v2 of size 32 for small images, without BatchNorm.

    ``conv3x3(16)``, three stages of five pre-activation blocks with 16, 32 and 128
    channels (at width 16) and strides 1, 2, 2, activation, the average over all places,
    linear. A block is ``h = act(x); conv3x3(act(conv3x3_stride(h))) + shortcut``; the
    shortcut is ``conv1x1_stride(h)`` in the first block of every stage, also where
    nothing changes its shape, and x in the others. Convolutions have no biases and are
    padded by one place on every side, the linear layer has a bias. With 10 classes the
    network has 1,481,146 parameters.

    The 128 channels of the last stage are a mistake in the code that Farnia et al.
    released and measured with: it should double 16 from stage to stage, but multiplies
    the number of the stage before by 2 to the power of the stage, 16 * 1 * 2 * 4. The
    intended network has ``multipliers=(1, 2, 4)`` and 464,698 parameters.

    Convolutions start from a truncated normal distribution of variance 1 / fan-in, the
    linear layer from Xavier's uniform one, its bias from zero.

    Attributes:
      width: channels of the first convolution, the unit of ``multipliers``.
      num_classes: number of logits.
      mean: subtracted from the pixels; one number or one per channel, in [0, 1] units.
      std: the pixels are then divided by it; one number or one per channel.
      dtype: dtype of the computation. Parameters and logits are at least float32.
      activation: a name in ``ACTIVATIONS``.
      rematerialize: if true, derivatives compute each block again instead of storing
        the values inside it.
      multipliers: number of channels of each stage, in units of ``width``.
      stage_sizes: number of blocks in each stage.

    Source: He et al. 2016 (identity mappings); the code of Farnia et al. 2019.
    """

    width: int = 16
    num_classes: int = 10
    mean: normalization.ChannelStatistic = 0.5
    std: normalization.ChannelStatistic = 0.5
    dtype: DTypeLike = jnp.float32
    activation: str = "relu"
    rematerialize: bool = False
    multipliers: tuple[int, ...] = (1, 2, 8)
    stage_sizes: tuple[int, ...] = (5, 5, 5)

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
        outputs_lib.check_stage_sizes(self.stage_sizes)
        for multiplier in self.multipliers:
            outputs_lib.check_size("multipliers", multiplier)
        if len(self.multipliers) != len(self.stage_sizes):
            raise ValueError(
                f"multipliers is {self.multipliers!r}; it must have one entry for each"
                f" of the {len(self.stage_sizes)} stages of stage_sizes."
            )

        h = entrance.enter(self, x, outputs)
        h = layers.convolution(
            "conv",
            self.width,
            3,
            kernel_init=initializers.LECUN_NORMAL,
            dtype=self.dtype,
        )(h)
        preactivations: list[jax.Array] = []
        block = nn.remat(PlainBlock) if self.rematerialize else PlainBlock
        stages = zip(self.multipliers, self.stage_sizes, strict=True)
        for stage, (multiplier, size) in enumerate(stages, start=1):
            for index in range(1, size + 1):
                h, inside = block(
                    multiplier * self.width,
                    2 if stage > 1 and index == 1 else 1,
                    index == 1,
                    self.dtype,
                    self.activation,
                    name=f"stage{stage}_block{index}",
                )(h)
                preactivations.extend(inside)
        preactivations.append(h)
        act = activations.ACTIVATIONS[self.activation]
        features = jnp.mean(act(h), axis=(1, 2))
        logits = layers.linear(
            features,
            self.num_classes,
            self.dtype,
            kernel_init=initializers.XAVIER_UNIFORM,
        )
        return outputs_lib.select(outputs, logits, features, preactivations)


class PlainBlock(nn.Module):
    """A pre-activation block of two 3x3 convolutions.

    Attributes:
      channels: number of output channels.
      stride: stride of the first convolution.
      project: if true, the shortcut is a 1x1 convolution.
      dtype, activation: those of the network.
    """

    channels: int
    stride: int
    project: bool
    dtype: DTypeLike
    activation: str

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Returns the block's output and its two pre-activations."""
        act = activations.ACTIVATIONS[self.activation]
        convolution = functools.partial(
            layers.convolution, kernel_init=initializers.LECUN_NORMAL, dtype=self.dtype
        )
        h = act(x)
        shortcut = x
        if self.project:
            shortcut = convolution("shortcut", self.channels, 1, stride=self.stride)(h)
        second = convolution("conv1", self.channels, 3, stride=self.stride)(h)
        h = convolution("conv2", self.channels, 3)(act(second))
        return shortcut + h, (x, second)
