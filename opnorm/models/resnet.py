"""ResNet50, a residual network of bottlenecks."""

import functools
from collections.abc import Callable
from typing import Any

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

# Smaller images have maps of a single place in the last stage but one, where only the
# central tap of a kernel does not see padding.
MIN_SIZE = 17
# The output of a bottleneck has this many times the channels of its 3x3 convolution.
EXPANSION = 4
KERNEL_INIT = initializers.variance_scaling(2.0, "fan_out", "normal")


class ResNet50(nn.Module):
    """ResNet-50 as torchvision and most of today's libraries build it (v1.5).

    ``conv7x7/2, BN, activation, maxpool3x3/2``, four stages of bottlenecks with strides
    1, 2, 2, 2 and twice the channels each, the average over all places, linear. A
    bottleneck is ``act(BN(conv1x1(act(BN(conv3x3_stride(act(BN(conv1x1(x)))))))) +
    shortcut)``; the first one of a stage has the shortcut ``BN(conv1x1_stride(x))``.
    The stride is that of the 3x3 convolution. Convolutions have no bias, BatchNorm a
    scale and a shift, epsilon 1e-5 and momentum 0.9 (PyTorch's 0.1). With 1000 classes
    the network has 25,557,032 parameters and 2048 features.

    Convolutions start from N(0, 2 / (taps C_out)) (He et al., fan-out), the scale of
    each block's last BatchNorm from zero, the linear layer from N(0, 0.01^2) and biases
    from zero.

    With ``activation="smooth_relu"`` the network still has max-pooling, so it is not
    twice differentiable everywhere.

    Attributes:
      width: channels of the first stage's 3x3 convolutions.
      num_classes: number of logits.
      mean: subtracted from the pixels; one number or one per channel, in [0, 1] units.
      std: the pixels are then divided by it; one number or one per channel.
      dtype: dtype of the computation. Parameters, BatchNorm statistics and logits are
        at least float32.
      activation: a name in ``ACTIVATIONS``.
      rematerialize: if true, derivatives compute each block again instead of storing
        the values inside it.
      stage_sizes: number of bottlenecks in each stage; four for ResNet-50.

    Source: He et al. 2016; Goyal et al. 2017 for the stride and the initial scales;
    used by Finlay & Oberman 2019.
    """

    width: int = 64
    num_classes: int = 1000
    mean: normalization.ChannelStatistic = 0.5
    std: normalization.ChannelStatistic = 0.5
    dtype: DTypeLike = jnp.float32
    activation: str = "relu"
    rematerialize: bool = False
    stage_sizes: tuple[int, ...] = (3, 4, 6, 3)

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, outputs: str = "logits"
    ) -> jax.Array | outputs_lib.Outputs:
        """Computes the logits of a batch of images.

        Args:
          x: (B, H, W, C), floating, pixels in [0, 1]; H and W at least 17.
          train: if true, BatchNorm uses the statistics of this batch and updates the
            running ones (``mutable=["batch_stats"]``), and the rows of the result
            depend on each other; if false, it uses the running statistics.
          outputs: "logits", or "all" for features and pre-activations as well.

        Returns:
          logits (B, num_classes), or ``Outputs``.

        Raises:
          ValueError: if ``x`` or an attribute cannot be used.
        """
        outputs_lib.check_stage_sizes(self.stage_sizes)

        h = entrance.enter(self, x, outputs, min_size=self._min_size())
        first, h = self._stem(h, train)
        preactivations = [first]
        kind = self._block_type()
        block = nn.remat(kind) if self.rematerialize else kind
        for stage, size in enumerate(self.stage_sizes, start=1):
            for index in range(1, size + 1):
                h, inside = block(
                    stride=2 if stage > 1 and index == 1 else 1,
                    train=train,
                    dtype=self.dtype,
                    activation=self.activation,
                    name=f"stage{stage}_block{index}",
                    **self._bottleneck(stage),
                )(h)
                preactivations.extend(inside)
        features = jnp.mean(h, axis=(1, 2))
        logits = layers.linear(
            features, self.num_classes, self.dtype, kernel_init=self._linear_init()
        )
        return outputs_lib.select(outputs, logits, features, preactivations)

    # The parts that subclasses replace.

    def _min_size(self) -> int:
        """Returns the smallest number of rows and columns of an image."""
        return MIN_SIZE

    def _stem(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """Returns the first pre-activation and the input of the first stage."""
        h = layers.convolution(
            "conv", self.width, 7, stride=2, kernel_init=KERNEL_INIT, dtype=self.dtype
        )(x)
        h = layers.batch_norm("norm", train=train, dtype=self.dtype)(h)
        act = activations.ACTIVATIONS[self.activation]
        return h, layers.overlapping_max_pool(act(h))

    def _block_type(self) -> type[nn.Module]:
        return Bottleneck

    def _bottleneck(self, stage: int) -> dict[str, Any]:
        """Returns the attributes of the blocks of a stage, counted from 1."""
        return {"channels": self.width * 2 ** (stage - 1)}

    def _linear_init(self) -> Callable[..., jax.Array]:
        return nn.initializers.normal(0.01)


class Bottleneck(nn.Module):
    """A block of a 1x1, a 3x3 and a 1x1 convolution.

    Attributes:
      channels: number of output channels of the 3x3 convolution.
      stride: stride of the 3x3 convolution.
      train, dtype, activation: those of the network.
      expansion: number of output channels, in units of ``channels``.
      kernel_init: initialises the kernels.
      last_scale_init: initialises the scale of the last BatchNorm.
    """

    channels: int
    stride: int
    train: bool
    dtype: DTypeLike
    activation: str
    expansion: int = EXPANSION
    kernel_init: Callable[..., jax.Array] = KERNEL_INIT
    last_scale_init: Callable[..., jax.Array] = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Returns the block's output and its three pre-activations."""
        act = activations.ACTIVATIONS[self.activation]
        convolution = functools.partial(
            layers.convolution, kernel_init=self.kernel_init, dtype=self.dtype
        )
        batch_norm = functools.partial(
            layers.batch_norm, train=self.train, dtype=self.dtype
        )
        out = self.expansion * self.channels
        first = batch_norm("norm1")(convolution("conv1", self.channels, 1)(x))
        h = convolution("conv2", self.channels, 3, stride=self.stride)(act(first))
        second = batch_norm("norm2")(h)
        h = convolution("conv3", out, 1)(act(second))
        h = batch_norm("norm3", scale_init=self.last_scale_init)(h)
        shortcut = x
        if x.shape[-1] != out or self.stride != 1:
            shortcut = convolution("shortcut", out, 1, stride=self.stride)(x)
            shortcut = batch_norm("shortcut_norm")(shortcut)
        third = shortcut + h
        return act(third), (first, second, third)
