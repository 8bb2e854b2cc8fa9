"""models: WideResNet50, wide bottlenecks for pictures of about 56x56."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from opnorm.models import activations, layers, normalization
from opnorm.models import outputs as outputs_lib
from opnorm.models.resnet import Bottleneck

KERNEL_INIT = nn.initializers.xavier_uniform()
# 3x3 convolutions of twice the usual width, so outputs of twice theirs, not four times.
EXPANSION = 2


class WideResNet50(nn.Module):
    """WRN-50-2 with bottlenecks, for Tiny-ImageNet: no stride or pooling at the start.

    ``conv3x3(64), BN, act``, four stages of 3, 4, 6 and 3 bottlenecks, whose 3x3
    convolutions have 128, 256, 512 and 1024 channels (at width 64) and strides 1, 2, 2,
    2, and whose outputs have twice as many, the average over all places, linear.
    Convolutions have no bias and start from Xavier's uniform distribution, BatchNorm
    has a scale and a shift. With 200 classes: 67,236,360 parameters.

    Attributes:
      width: channels of the first convolution.
      num_classes: number of logits.
      mean: subtracted from the pixels; one number or one per channel, in [0, 1] units.
      std: the pixels are then divided by it; one number or one per channel.
      dtype: what the network computes in. Parameters, BatchNorm statistics and logits
        are at least float32.
      activation: a name in ``ACTIVATIONS``.
      rematerialize: if true, derivatives compute each block again instead of storing
        what happens in it.
      stage_sizes: number of bottlenecks in each stage.

    Source: Zagoruyko & Komodakis 2016; "Towards Understanding the Regularization of
    Adversarial Robustness on Neural Networks" 2020, Appendix D.
    """

    width: int = 64
    num_classes: int = 200
    mean: normalization.ChannelStatistic = 0.5
    std: normalization.ChannelStatistic = 0.5
    dtype: Any = jnp.float32
    activation: str = "relu"
    rematerialize: bool = False
    stage_sizes: tuple[int, ...] = (3, 4, 6, 3)

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, outputs: str = "logits"
    ) -> Any:
        """Computes the logits of a batch of pictures.

        Args:
          x: (B, H, W, C), floating, pixels in [0, 1]; H and W at least 8.
          train: if true, BatchNorm uses the statistics of this batch and updates the
            running ones (``mutable=["batch_stats"]``), and the rows of the result
            depend on each other; if false, it uses the running statistics.
          outputs: "logits", or "all" for features and pre-activations as well.

        Returns:
          logits (B, num_classes), or ``Outputs``.

        Raises:
          ValueError: if ``x`` or an attribute cannot be used.
        """
        outputs_lib.check_outputs(outputs)
        outputs_lib.check_size("width", self.width)
        outputs_lib.check_size("num_classes", self.num_classes)
        outputs_lib.check_stage_sizes(self.stage_sizes)
        activations.check_activation(self.activation)
        normalization.check_images(x, min_size=8)

        h = normalization.normalize(x, self.mean, self.std, self.dtype)
        h = layers.convolution(
            "conv", self.width, 3, kernel_init=KERNEL_INIT, dtype=self.dtype
        )(h)
        h = layers.batch_norm("norm", train=train, dtype=self.dtype)(h)
        preactivations = [h]
        h = activations.ACTIVATIONS[self.activation](h)
        block = nn.remat(Bottleneck) if self.rematerialize else Bottleneck
        for stage, size in enumerate(self.stage_sizes, start=1):
            for index in range(1, size + 1):
                h, inside = block(
                    self.width * 2**stage,
                    2 if stage > 1 and index == 1 else 1,
                    train,
                    self.dtype,
                    self.activation,
                    expansion=EXPANSION,
                    kernel_init=KERNEL_INIT,
                    last_scale_init=nn.initializers.ones,
                    name=f"stage{stage}_block{index}",
                )(h)
                preactivations.extend(inside)
        features = jnp.mean(h, axis=(1, 2))
        logits = layers.linear(features, self.num_classes, self.dtype)
        return outputs_lib.select(outputs, logits, features, preactivations)
