"""ResNet18, a residual network of two convolutions in each block."""

import functools
from typing import Any

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from opnorm.models import activations, layers
from opnorm.models.resnet import KERNEL_INIT, MIN_SIZE, ResNet50


class ResNet18(ResNet50):
    """ResNet-18, for images of ImageNet's size or of CIFAR's.

    The beginning and end of ``ResNet50`` with four stages of two blocks of 64, 128, 256
    and 512 channels (at width 64). A block is ``act(BN(conv3x3(act(BN(conv3x3_stride(x)
    )))) + shortcut)``; the first one of a stage after the first has the shortcut
    ``BN(conv1x1_stride(x))``. With 1000 classes the network has 11,689,512 parameters.

    With ``small_images`` the first convolution is 3x3 without stride, and no pooling
    follows it, as in most robust networks for CIFAR-10; images have a height and width
    of at least 8. With 10 classes this network has 11,173,962 parameters.

    Attributes:
      width: channels of the first convolution and the first stage.
      num_classes, mean, std, dtype, activation, rematerialize, stage_sizes: see
        ``ResNet50``.
      small_images: if true, the network begins as above.

    Source: He et al. 2016, Table 1.
    """

    stage_sizes: tuple[int, ...] = (2, 2, 2, 2)
    small_images: bool = False

    def _min_size(self) -> int:
        return 8 if self.small_images else MIN_SIZE

    def _stem(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        if not self.small_images:
            return super()._stem(x, train)
        h = layers.convolution(
            "conv", self.width, 3, kernel_init=KERNEL_INIT, dtype=self.dtype
        )(x)
        h = layers.batch_norm("norm", train=train, dtype=self.dtype)(h)
        return h, activations.ACTIVATIONS[self.activation](h)

    def _block_type(self) -> type[nn.Module]:
        return BasicBlock

    def _bottleneck(self, stage: int) -> dict[str, Any]:
        return {"channels": self.width * 2 ** (stage - 1)}


class BasicBlock(nn.Module):
    """A block of two 3x3 convolutions.

    Attributes:
      channels: number of output channels.
      stride: stride of the first convolution.
      train, dtype, activation: those of the network.
    """

    channels: int
    stride: int
    train: bool
    dtype: DTypeLike
    activation: str

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Returns the block's output and its two pre-activations."""
        act = activations.ACTIVATIONS[self.activation]
        convolution = functools.partial(
            layers.convolution, kernel_init=KERNEL_INIT, dtype=self.dtype
        )
        batch_norm = functools.partial(
            layers.batch_norm, train=self.train, dtype=self.dtype
        )
        h = convolution("conv1", self.channels, 3, stride=self.stride)(x)
        first = batch_norm("norm1")(h)
        h = convolution("conv2", self.channels, 3)(act(first))
        h = batch_norm("norm2", scale_init=nn.initializers.zeros)(h)
        shortcut = x
        if x.shape[-1] != self.channels or self.stride != 1:
            shortcut = convolution("shortcut", self.channels, 1, stride=self.stride)(x)
            shortcut = batch_norm("shortcut_norm")(shortcut)
        second = shortcut + h
        return act(second), (first, second)
