"""Random kernels that compile fast.

An array of random numbers is drawn flat and then shaped: the values are the same, entry
by entry. XLA unrolls the counters of a kernel's four short axes on CPU, which took 85 %
of the time that a network's initialisation compiles.
"""

import math
from typing import Literal

import flax.linen as nn
import jax
from jax.typing import DTypeLike

Mode = Literal["fan_in", "fan_out", "fan_avg"]
Distribution = Literal["truncated_normal", "normal", "uniform"]


def variance_scaling(
    scale: float, mode: Mode, distribution: Distribution
) -> nn.initializers.Initializer:
    """Returns an initialiser of kernels with entries of variance ``scale / n``.

    The values are those of ``flax.linen.initializers.variance_scaling``.

    Args:
      scale: positive.
      mode: n is the number of entries that one output reads ("fan_in"), that one input
        is read by ("fan_out"), or the mean of both ("fan_avg").
      distribution: "truncated_normal" (at two standard deviations), "normal" or
        "uniform".

    Returns:
      ``(key, shape, dtype) -> kernel`` for shapes ``(..., inputs, outputs)`` of at
      least two axes.
    """

    def init(
        key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike | None = None
    ) -> jax.Array:
        *window, inputs, outputs = shape
        places = math.prod(window)
        fan_in, fan_out = inputs * places, outputs * places
        fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}
        # One axis of independent entries, which counts neither as input nor as output.
        draw = nn.initializers.variance_scaling(
            scale / fan[mode], mode, distribution, in_axis=(), out_axis=(), batch_axis=0
        )
        return draw(key, (math.prod(shape),), dtype).reshape(shape)

    return init


# The default of Flax.
LECUN_NORMAL = variance_scaling(1.0, "fan_in", "truncated_normal")
# The default of TensorFlow, which calls it Glorot's.
XAVIER_UNIFORM = variance_scaling(1.0, "fan_avg", "uniform")
