"""WideResNet50, a residual network of wide bottlenecks for images of about 56x56."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from opnorm.models import activations, initializers, layers
from opnorm.models.resnet import ResNet50

KERNEL_INIT = initializers.XAVIER_UNIFORM
# The 3x3 convolutions have twice the usual width, so outputs have twice their channels
# in place of four times.
EXPANSION = 2


class WideResNet50(ResNet50):
    """WRN-50-2 with bottlenecks, for Tiny-ImageNet: no stride or pooling at the start.

    ``conv3x3(64), BN, act``, then the stages of ``ResNet50``, with 3x3 convolutions of
    128, 256, 512 and 1024 channels (at width 64); outputs of their blocks have twice as
    many. Convolutions start from Xavier's uniform distribution, the scales of BatchNorm
    from one. Images have a height and width of at least 8. With 200 classes the network
    has 67,236,360 parameters.

    Attributes:
      width: channels of the first convolution.
      num_classes: number of logits.
      mean, std, dtype, activation, rematerialize, stage_sizes: see ``ResNet50``.

    Source: Zagoruyko & Komodakis 2016; "Towards Understanding the Regularization of
    Adversarial Robustness on Neural Networks" 2020, Appendix D.
    """

    num_classes: int = 200

    def _min_size(self) -> int:
        return 8

    def _stem(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        h = layers.convolution(
            "conv", self.width, 3, kernel_init=KERNEL_INIT, dtype=self.dtype
        )(x)
        h = layers.batch_norm("norm", train=train, dtype=self.dtype)(h)
        return h, activations.ACTIVATIONS[self.activation](h)

    def _bottleneck(self, stage: int) -> dict[str, Any]:
        return {
            "channels": self.width * 2**stage,
            "expansion": EXPANSION,
            "kernel_init": KERNEL_INIT,
            "last_scale_init": nn.initializers.ones,
        }

    def _linear_init(self) -> Callable[..., jax.Array]:
        return initializers.LECUN_NORMAL
