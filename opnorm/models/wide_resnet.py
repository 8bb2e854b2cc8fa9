"""WideResNet, the pre-activation residual networks of Zagoruyko & Komodakis."""

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

PADDINGS = ("symmetric", "same")
KERNEL_INIT = initializers.variance_scaling(2.0, "fan_out", "normal")


class WideResNet(nn.Module):
    """Three groups of (depth - 4) / 6 pre-activation blocks.

    ``conv3x3(16)``, the groups with 16, 32 and 64 times ``width`` channels and strides
    1, 2, 2, BatchNorm, activation, the average over all places, linear. A block is
    ``h = act(BN(x)); conv3x3(act(BN(conv3x3_stride(h)))) + shortcut``; the shortcut is
    x where the channels stay the same, else ``conv1x1_stride(h)``. Convolutions have no
    bias, BatchNorm a scale and a shift, epsilon 1e-5 and momentum 0.9 (PyTorch's 0.1).
    With 10 classes, WRN-28-10 has 36,479,194 parameters and 640 features.

    Convolutions start from N(0, 2 / (9 C_out)) (MSRA, fan-out), the linear layer from
    Flax's default (LeCun normal), biases from zero.

    Attributes:
      depth: number of convolutions, ``6 n + 4``, with those of the three shortcuts (two
        where width is 1).
      width: the widening factor.
      num_classes: number of logits.
      mean: subtracted from the pixels; one number or one per channel, in [0, 1] units.
      std: the pixels are then divided by it; one number or one per channel.
      dtype: dtype of the computation. Parameters, BatchNorm statistics and logits are
        at least float32.
      activation: a name in ``ACTIVATIONS``.
      rematerialize: if true, derivatives compute each block again instead of storing
        the values inside it.

      padding: of the 3x3 convolutions with stride 2, by one place on every side
        ("symmetric"), or, where height and width are even, below and to the right alone
        ("same", TensorFlow's). The robust networks of Gowal et al. 2020 have "same" and
        the activation "swish".

    Source: Zagoruyko & Komodakis 2016; used by Roth et al. 2020. "same": Gowal et al.
    2020.
    """

    depth: int = 28
    width: int = 10
    num_classes: int = 10
    mean: normalization.ChannelStatistic = 0.5
    std: normalization.ChannelStatistic = 0.5
    dtype: DTypeLike = jnp.float32
    activation: str = "relu"
    rematerialize: bool = False
    padding: str = "symmetric"

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, outputs: str = "logits"
    ) -> jax.Array | outputs_lib.Outputs:
        """Computes the logits of a batch of images.

        Args:
          x: (B, H, W, C), floating, pixels in [0, 1].
          train: if true, BatchNorm uses the statistics of this batch and updates the
            running ones (``mutable=["batch_stats"]``), and the rows of the result
            depend on each other; if false, it uses the running statistics.
          outputs: "logits", or "all" for features and pre-activations as well.

        Returns:
          logits (B, num_classes), or ``Outputs``.

        Raises:
          ValueError: if ``x`` or an attribute cannot be used.
        """
        check_depth(self.depth)
        if self.padding not in PADDINGS:
            raise ValueError(
                f"padding is {self.padding!r}; it may be {' or '.join(PADDINGS)}."
            )

        h = entrance.enter(self, x, outputs)
        h = layers.convolution(
            "conv", 16, 3, kernel_init=KERNEL_INIT, dtype=self.dtype
        )(h)
        preactivations: list[jax.Array] = []
        block = nn.remat(Block) if self.rematerialize else Block
        for group, channels in enumerate((16, 32, 64), start=1):
            for index in range(1, (self.depth - 4) // 6 + 1):
                h, inside = block(
                    channels * self.width,
                    2 if group > 1 and index == 1 else 1,
                    train,
                    self.dtype,
                    self.activation,
                    self.padding,
                    name=f"group{group}_block{index}",
                )(h)
                preactivations.extend(inside)
        h = layers.batch_norm("norm", train=train, dtype=self.dtype)(h)
        preactivations.append(h)
        act = activations.ACTIVATIONS[self.activation]
        features = jnp.mean(act(h), axis=(1, 2))
        logits = layers.linear(features, self.num_classes, self.dtype)
        return outputs_lib.select(outputs, logits, features, preactivations)


class Block(nn.Module):
    """A pre-activation block of two 3x3 convolutions.

    Attributes:
      channels: number of output channels.
      stride: stride of the first convolution.
      train, dtype, activation, padding: those of the network.
    """

    channels: int
    stride: int
    train: bool
    dtype: DTypeLike
    activation: str
    padding: str

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Returns the block's output and its two pre-activations."""
        act = activations.ACTIVATIONS[self.activation]
        convolution = functools.partial(
            layers.convolution,
            kernel_init=KERNEL_INIT,
            dtype=self.dtype,
            padding=self.padding,
        )
        batch_norm = functools.partial(
            layers.batch_norm, train=self.train, dtype=self.dtype
        )
        first = batch_norm("norm1")(x)
        h = act(first)
        shortcut = x
        if x.shape[-1] != self.channels or self.stride != 1:
            shortcut = convolution("shortcut", self.channels, 1, stride=self.stride)(h)
        h = convolution("conv1", self.channels, 3, stride=self.stride)(h)
        second = batch_norm("norm2")(h)
        h = convolution("conv2", self.channels, 3)(act(second))
        return shortcut + h, (first, second)


def check_depth(depth: int) -> None:
    """Raises a ValueError unless ``depth`` is ``6 n + 4`` for an n of 1 or more."""
    outputs_lib.check_size("depth", depth)
    if depth < 10 or depth % 6 != 4:
        raise ValueError(
            f"depth is {depth}; it must be 6 n + 4 with n at least 1: 10, 16, ..., 28."
        )
