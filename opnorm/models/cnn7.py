"""models: CNN7, the convolutional network of Roth et al. 2020."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from opnorm.models import normalization
from opnorm.models import outputs as outputs_lib

# Three poolings leave a map of a third of these or more for the last 3x3 kernel.
MIN_SIZE = 24


class CNN7(nn.Module):
    """Seven 3x3 convolutions, each with BatchNorm and ReLU, and a linear layer.

    With w the width: ``[w, w, pool, 2w, 2w, pool, 4w, 4w, pool, 8w, pool, linear]``.
    The first six convolutions keep the size of the map, the last has no padding;
    ``pool`` is 2x2 max-pooling that drops an odd last row or column. Convolutions have
    biases; BatchNorm has no learned scale or shift, epsilon 1e-5 and momentum 0.9
    (PyTorch's 0.1). 32x32 pictures end in 8w features, as in the paper; 28x28 ones too:
    their last map is 1x1 already and is not pooled. Larger ones end in more features.
    At width 128, 32x32x3 and 10 classes: 9,306,250 parameters, 462,848 ReLU units.

    Kernels start from Flax's default (LeCun normal), biases from zero.

    Attributes:
      width: channels of the first convolution.
      num_classes: number of logits.
      mean: subtracted from the pixels; one number or one per channel, in [0, 1] units.
      std: the pixels are then divided by it; one number or one per channel. The
        defaults map [0, 1] to [-1, 1], as Roth et al. 2020 do.
      dtype: what the network computes in. Parameters, BatchNorm statistics and logits
        are at least float32.

    Source: Roth et al. 2020, experimental set-up (CNN7).
    """

    width: int = 128
    num_classes: int = 10
    mean: normalization.ChannelStatistic = 0.5
    std: normalization.ChannelStatistic = 0.5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, outputs: str = "logits"
    ) -> Any:
        """Computes the logits of a batch of pictures.

        Args:
          x: (B, H, W, C), floating, pixels in [0, 1]; H and W at least 24.
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
        normalization.check_images(x, min_size=MIN_SIZE)

        h = normalization.normalize(x, self.mean, self.std, self.dtype)
        preactivations = []
        for index, factor in enumerate((1, 1, 2, 2, 4, 4, 8), start=1):
            padding = "VALID" if index == 7 else "SAME"
            h = self._convolution(index, factor * self.width, padding)(h)
            h = self._batch_norm(index, train)(h)
            preactivations.append(h)
            h = nn.relu(h)
            if index in (2, 4, 6, 7) and min(h.shape[1:3]) >= 2:
                h = max_pool(h)
        features = h.reshape(h.shape[0], -1)
        param_dtype = outputs_lib.parameter_dtype(self.dtype)
        logits = nn.Dense(
            self.num_classes,
            dtype=self.dtype,
            param_dtype=param_dtype,
            name="logits",
        )(features).astype(param_dtype)
        if outputs == "logits":
            return logits
        return outputs_lib.Outputs(logits, features, tuple(preactivations))

    def _convolution(self, index: int, channels: int, padding: str) -> nn.Conv:
        return nn.Conv(
            channels,
            (3, 3),
            padding=padding,
            dtype=self.dtype,
            param_dtype=outputs_lib.parameter_dtype(self.dtype),
            name=f"conv{index}",
        )

    def _batch_norm(self, index: int, train: bool) -> nn.BatchNorm:
        param_dtype = outputs_lib.parameter_dtype(self.dtype)
        return nn.BatchNorm(
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            use_bias=False,
            use_scale=False,
            # The fast way loses digits by cancellation and saves 4% of a step.
            use_fast_variance=False,
            dtype=self.dtype,
            param_dtype=param_dtype,
            # Flax would start float64 statistics as float32 and change their dtype
            # with the first update.
            force_float32_reductions=param_dtype == jnp.float32,
            name=f"norm{index}",
        )


def max_pool(x: jax.Array) -> jax.Array:
    """Computes 2x2 max-pooling with stride 2; an odd last row or column is dropped.

    Args:
      x: (B, H, W, C), H and W at least 2.

    Returns:
      (B, H // 2, W // 2, C), like ``x``.
    """
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    # Windows do not overlap, so a reshape separates them. The derivatives of the
    # maxima are far cheaper than those of reduce_window (ten transposed passes under
    # vmap: 3 to 5 times), and a little cheaper than those of a reduction.
    windows = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    rows = jnp.maximum(windows[:, :, 0], windows[:, :, 1])
    return jnp.maximum(rows[:, :, :, 0], rows[:, :, :, 1])
