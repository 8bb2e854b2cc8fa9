"""FixupResNet, residual networks without BatchNorm."""

from collections.abc import Callable

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


class FixupResNet(nn.Module):
    """A ResNet of basic blocks, initialised so that it needs no normalisation.

    ``conv3x3(16), act``, three stages of n basic blocks with 16, 32 and 64 channels (at
    width 16) and strides 1, 2, 2, the average over all places, linear; depth = 6 n + 2.
    A block is ``act(conv3x3(act(conv3x3_stride(x))) + shortcut)``; where the channels
    double, the shortcut is every second place, with zeros for the new channels. Only
    the last layer has a bias of its own. With 10 classes the network has 848,954
    parameters at depth 56 and 1,719,866 at depth 110.

    Zhang et al. have scalar layers, too, which the paper on the regularisation view
    leaves out. With ``scalar_biases`` a learned number is added before and after each
    convolution and before the last layer, with ``scalar_multipliers`` the second
    convolution of each block is multiplied by a learned number::

        h = act(conv1(x + bias1a) + bias1b)
        block(x) = act(scale * conv2(h + bias2a) + bias2b + shortcut)

    Where the channels double, the shortcut is that of ``x + bias1a``. The biases start
    from 0, the multipliers from 1. A multiplier is a factor beside the kernels, so that
    bounds on the whole network (:func:`opnorm.operators.log_lipschitz_bound`) refuse
    a network with one; biases change no norm of a layer.

    The first convolution of a block starts from N(0, 2 / (9 C_out)) / sqrt(number of
    blocks); its second one and the linear layer start from zero. Therefore the logits
    and every gradient in the input are zero at the start.

    Attributes:
      depth: 6 n + 2 with n at least 1, such as 56 or 110.
      width: channels of the first stage.
      num_classes: number of logits.
      mean: subtracted from the pixels; one number or one per channel, in [0, 1] units.
      std: the pixels are then divided by it; one number or one per channel.
      dtype: dtype of the computation. Parameters and logits are at least float32.
      activation: a name in ``ACTIVATIONS``.
      rematerialize: if true, derivatives compute each block again instead of storing
        the values inside it.
      scalar_biases: if true, the network has scalar biases.
      scalar_multipliers: if true, each block has a scalar factor.

    Source: Zhang, Dauphin & Ma 2019 (Fixup); "Towards Understanding the Regularization
    of Adversarial Robustness on Neural Networks" 2020, Appendix D (nets A and B).
    """

    depth: int = 56
    width: int = 16
    num_classes: int = 10
    mean: normalization.ChannelStatistic = 0.5
    std: normalization.ChannelStatistic = 0.5
    dtype: DTypeLike = jnp.float32
    activation: str = "relu"
    rematerialize: bool = False
    scalar_biases: bool = False
    scalar_multipliers: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, outputs: str = "logits"
    ) -> jax.Array | outputs_lib.Outputs:
        """Computes the logits of a batch of images.

        Args:
          x: (B, H, W, C), floating, pixels in [0, 1]; H and W at least 4.
          train: ignored, since the network is the same in training and inference.
          outputs: "logits", or "all" for features and pre-activations as well.

        Returns:
          logits (B, num_classes), or ``Outputs``.

        Raises:
          ValueError: if ``x`` or an attribute cannot be used.
        """
        del train
        check_depth(self.depth)
        blocks = (self.depth - 2) // 6

        h = entrance.enter(self, x, outputs, min_size=4)
        h = layers.convolution(
            "conv",
            self.width,
            3,
            kernel_init=initializers.LECUN_NORMAL,
            dtype=self.dtype,
        )(h)
        if self.scalar_biases:
            h = _add_bias(self, "bias1", h)
        preactivations = [h]
        h = activations.ACTIVATIONS[self.activation](h)
        block = nn.remat(FixupBlock) if self.rematerialize else FixupBlock
        for stage in range(1, 4):
            for index in range(1, blocks + 1):
                h, inside = block(
                    self.width * 2 ** (stage - 1),
                    2 if stage > 1 and index == 1 else 1,
                    3 * blocks,
                    self.dtype,
                    self.activation,
                    self.scalar_biases,
                    self.scalar_multipliers,
                    name=f"stage{stage}_block{index}",
                )(h)
                preactivations.extend(inside)
        features = jnp.mean(h, axis=(1, 2))
        if self.scalar_biases:
            features = _add_bias(self, "bias2", features)
        logits = layers.linear(
            features,
            self.num_classes,
            self.dtype,
            kernel_init=nn.initializers.zeros,
        )
        return outputs_lib.select(outputs, logits, features, preactivations)


class FixupBlock(nn.Module):
    """A block of two 3x3 convolutions.

    Attributes:
      channels: number of output channels of both convolutions.
      stride: stride of the first convolution.
      num_blocks: number of blocks in the network.
      dtype, activation, scalar_biases, scalar_multipliers: those of the network.
    """

    channels: int
    stride: int
    num_blocks: int
    dtype: DTypeLike
    activation: str
    scalar_biases: bool
    scalar_multipliers: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Returns the block's output and its two pre-activations."""
        act = activations.ACTIVATIONS[self.activation]
        scale = 2.0 / self.num_blocks

        def biased(name: str, h: jax.Array) -> jax.Array:
            return _add_bias(self, name, h) if self.scalar_biases else h

        shifted = biased("bias1a", x)
        first = layers.convolution(
            "conv1",
            self.channels,
            3,
            stride=self.stride,
            kernel_init=initializers.variance_scaling(scale, "fan_out", "normal"),
            dtype=self.dtype,
        )(shifted)
        first = biased("bias1b", first)
        h = layers.convolution(
            "conv2",
            self.channels,
            3,
            kernel_init=nn.initializers.zeros,
            dtype=self.dtype,
        )(biased("bias2a", act(first)))
        if self.scalar_multipliers:
            h = _scalar(self, "scale", nn.initializers.ones) * h
        h = biased("bias2b", h)
        new = self.channels - x.shape[-1]
        shortcut = shifted if new else x
        shortcut = shortcut[:, :: self.stride, :: self.stride]
        second = h + jnp.pad(shortcut, ((0, 0), (0, 0), (0, 0), (0, new)))
        return act(second), (first, second)


def check_depth(depth: int) -> None:
    """Raises a ValueError unless ``depth`` is ``6 n + 2`` for an n of 1 or more."""
    outputs_lib.check_size("depth", depth)
    if depth < 8 or depth % 6 != 2:
        raise ValueError(
            f"depth is {depth}; it must be 6 n + 2 with n at least 1: 8, 14, ..., 56, "
            "..., 110."
        )


def _add_bias(module: "FixupResNet | FixupBlock", name: str, h: jax.Array) -> jax.Array:
    """Adds a learned number that starts from zero."""
    return h + _scalar(module, name, nn.initializers.zeros)


def _scalar(
    module: "FixupResNet | FixupBlock", name: str, init: Callable[..., jax.Array]
) -> jax.Array:
    """Returns a learned number in the module's dtype."""
    dtype = outputs_lib.parameter_dtype(module.dtype)
    number: jax.Array = module.param(name, init, (), dtype)
    return number.astype(module.dtype)
