"""Normalisation of images before the first layer, and checks of images.

Networks take pixels in [0, 1] and normalise inside, so epsilon, steps and gradients are
in pixel units everywhere outside.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

ChannelStatistic = float | tuple[float, ...]

# Means and standard deviations of pixels in [0, 1]. "half" maps pixels to [-1, 1] (Roth
# et al. 2020), "none" leaves them as they are (Finlay & Oberman 2019), "cifar10"
# is from Zagoruyko & Komodakis 2016, and "imagenet" from torchvision.
STATISTICS: dict[str, tuple[ChannelStatistic, ChannelStatistic]] = {
    "half": (0.5, 0.5),
    "none": (0.0, 1.0),
    "cifar10": (
        (125.3 / 255, 123.0 / 255, 113.9 / 255),
        (63.0 / 255, 62.1 / 255, 66.7 / 255),
    ),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def normalize(
    images: jax.Array,
    mean: ChannelStatistic | Sequence[float],
    std: ChannelStatistic | Sequence[float],
    dtype: DTypeLike = jnp.float32,
) -> jax.Array:
    """Computes ``(images - mean) / std``, channel by channel.

    Args:
      images: (B, H, W, C), floating, pixels in [0, 1].
      mean: one number for all channels, or C of them, in pixel units.
      std: one positive number for all channels, or C of them, in pixel units.
      dtype: the floating dtype of the result.

    Returns:
      (B, H, W, C) of ``dtype``.

    Raises:
      ValueError: if ``mean`` or ``std`` has neither 1 nor C entries, or if ``std`` has
        an entry that is not positive.
    """
    channels = images.shape[-1]
    shift = _per_channel("mean", mean, channels)
    scale = _per_channel("std", std, channels)
    if min(scale) <= 0:
        raise ValueError(f"std is {std!r}; every entry must be positive.")

    def row(entries: tuple[float, ...]) -> jax.Array:
        return jnp.asarray(entries, dtype).reshape(1, 1, 1, -1)

    return (images.astype(dtype) - row(shift)) / row(scale)


def check_images(images: jax.Array, *, min_size: int = 1) -> None:
    """Raises a ValueError unless a network can take the images.

    Args:
      images: an object with a shape and a dtype.
      min_size: smallest height and width that the network can take.

    Raises:
      ValueError: unless ``images`` is floating, of shape (B, H, W, C) without an empty
        axis, and H and W are at least ``min_size``.
    """
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images has dtype {images.dtype}; it must be floating with pixels in"
            " [0, 1] (opnorm.data.to_float converts uint8 images)."
        )
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(
            f"images has shape {images.shape}; it must be (batch, height, width,"
            " channels) without an empty axis."
        )
    if min(images.shape[1:3]) < min_size:
        raise ValueError(
            f"images has shape {images.shape}; height and width must be at least"
            f" {min_size}."
        )


def _per_channel(
    name: str, value: ChannelStatistic | Sequence[float], channels: int
) -> tuple[float, ...]:
    entries = (value,) if isinstance(value, (int, float)) else tuple(value)
    if len(entries) not in (1, channels):
        raise ValueError(
            f"{name} is {value!r}; it must be one number, or one for each of the"
            f" {channels} channels of images."
        )
    return entries
