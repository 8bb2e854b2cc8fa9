"""ResNeXt34, the residual network of Finlay & Oberman with two branches."""

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

# Two poolings halve the map.
MIN_SIZE = 4
# U(+-1 / sqrt(fan-in)), PyTorch's default.
KERNEL_INIT = initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class ResNeXt34(nn.Module):
    """ResNeXt34-2x32: three stages of five blocks with two branches each.

    With w the width: ``conv3x3(w)``, blocks of w channels, ``conv1x1(2w)``, 2x2 average
    pooling, blocks of 2w channels, ``conv1x1(4w)``, pooling, blocks of 4w, the average
    over all places, linear. The first convolution and the 1x1 ones are followed by
    BatchNorm without scale or shift, a bias, and the activation, the linear layer by
    such a BatchNorm and a bias. A block of c channels is ``conv3x3(2c), BN, activation,
    conv3x3(2c) in two groups, BN``, the mean of the first and the last c channels, plus
    its input, activation; its BatchNorms have a scale and a shift. Epsilon is 1e-5 and
    momentum 0.9 (PyTorch's 0.1). The network has 3,892,298 parameters at width 32 with
    10 classes, and 15,569,636 at width 64 (2x64) with 100 classes.

    The official network also applies the activation to its logits, which are then at
    least 0; ``logit_activation=True`` does so. Without it logits can have either sign,
    as losses suppose.

    Kernels and these biases start from U(-1, 1) / sqrt(fan-in).

    Attributes:
      width: w, channels of the first convolution.
      num_classes: number of logits.
      mean: subtracted from the pixels; one number or one per channel, in [0, 1] units.
        Finlay & Oberman do not normalise: mean 0 and std 1.
      std: the pixels are then divided by it; one number or one per channel.
      dtype: dtype of the computation. Parameters, BatchNorm statistics and logits are
        at least float32.
      activation: a name in ``ACTIVATIONS``; "smooth_relu" makes the network twice
        differentiable.
      rematerialize: if true, derivatives compute each block again instead of storing
        the values inside it.
      logit_activation: if true, the activation is applied to the logits as well.
      stage_sizes: number of blocks in each stage.

    Source: Finlay & Oberman 2019, Section 5, and its code for details that the text
    leaves out.
    """

    width: int = 32
    num_classes: int = 10
    mean: normalization.ChannelStatistic = 0.5
    std: normalization.ChannelStatistic = 0.5
    dtype: DTypeLike = jnp.float32
    activation: str = "relu"
    rematerialize: bool = False
    logit_activation: bool = False
    stage_sizes: tuple[int, ...] = (5, 5, 5)

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, outputs: str = "logits"
    ) -> jax.Array | outputs_lib.Outputs:
        """Computes the logits of a batch of images.

        Args:
          x: (B, H, W, C), floating, pixels in [0, 1]; H and W at least 4.
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

        h = entrance.enter(self, x, outputs, min_size=MIN_SIZE)
        act = activations.ACTIVATIONS[self.activation]
        preactivations: list[jax.Array] = []
        block = nn.remat(BranchBlock) if self.rematerialize else BranchBlock
        for stage, size in enumerate(self.stage_sizes, start=1):
            taps = 3 if stage == 1 else 1
            fan_in = taps * taps * h.shape[-1]
            h = layers.convolution(
                f"conv{stage}",
                self.width * 2 ** (stage - 1),
                taps,
                kernel_init=KERNEL_INIT,
                dtype=self.dtype,
            )(h)
            h = BiasedNorm(fan_in, train, self.dtype, name=f"norm{stage}")(h)
            preactivations.append(h)
            h = act(h) if stage == 1 else layers.average_pool(act(h))
            for index in range(1, size + 1):
                h, inside = block(
                    train,
                    self.dtype,
                    self.activation,
                    name=f"stage{stage}_block{index}",
                )(h)
                preactivations.extend(inside)
        features = jnp.mean(h, axis=(1, 2))
        logits = layers.linear(
            features,
            self.num_classes,
            self.dtype,
            kernel_init=KERNEL_INIT,
            use_bias=False,
        )
        logits = BiasedNorm(
            features.shape[-1], train, logits.dtype, name="logits_norm"
        )(logits)
        if self.logit_activation:
            preactivations.append(logits)
            logits = act(logits)
        return outputs_lib.select(outputs, logits, features, preactivations)


class BiasedNorm(nn.Module):
    """BatchNorm without scale or shift, and then a bias.

    The bias starts like that of the layer before it, from U(-1, 1) / sqrt(fan_in).

    Attributes:
      fan_in: fan-in of the layer before it.
      train, dtype: those of the network.
    """

    fan_in: int
    train: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns an array like ``x``, (B, ..., C)."""

        def init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
            bound = self.fan_in**-0.5
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        norm = layers.batch_norm(
            "norm", train=self.train, dtype=self.dtype, affine=False
        )
        dtype = outputs_lib.parameter_dtype(self.dtype)
        bias = self.param("bias", init, x.shape[-1:], dtype)
        bias = bias.astype(self.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
        shifted: jax.Array = norm(x) + bias
        return shifted


class BranchBlock(nn.Module):
    """A residual block whose two branches are the groups of its second convolution.

    Attributes:
      train, dtype, activation: those of the network.
    """

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
        channels = x.shape[-1]
        first = batch_norm("norm1")(convolution("conv1", 2 * channels, 3)(x))
        h = convolution("conv2", 2 * channels, 3, groups=2)(act(first))
        h = batch_norm("norm2")(h)
        second = x + (h[..., :channels] + h[..., channels:]) / 2
        return act(second), (first, second)
