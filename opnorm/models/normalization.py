"""Normalisation of images before the first layer, and checks of images.

Networks take pixels in [0, 1] and normalise inside, so epsilon, steps and gradients are
in pixel units everywhere outside.
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from opnorm.models import outputs as outputs_lib

# One number, one for each channel, or "image": that of each image by itself.
ChannelStatistic = float | tuple[float, ...] | Literal["image"]

# Means and standard deviations of pixels in [0, 1]. "half" maps pixels to [-1, 1] (Roth
# et al. 2020), "none" leaves them as they are (Finlay & Oberman 2019), "cifar10"
# is from Zagoruyko & Komodakis 2016, "imagenet" from torchvision, and "whitened" takes
# the statistics of each image (Farnia et al. 2019).
STATISTICS: dict[str, tuple[ChannelStatistic, ChannelStatistic]] = {
    "half": (0.5, 0.5),
    "none": (0.0, 1.0),
    "cifar10": (
        (125.3 / 255, 123.0 / 255, 113.9 / 255),
        (63.0 / 255, 62.1 / 255, 66.7 / 255),
    ),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "whitened": ("image", "image"),
}


def normalize(
    images: jax.Array,
    mean: ChannelStatistic | Sequence[float],
    std: ChannelStatistic | Sequence[float],
    dtype: DTypeLike = jnp.float32,
) -> jax.Array:
    """Computes ``(images - mean) / std``, channel by channel or image by image.

    With "image" for both, each image is whitened by itself, in at least float32::

        (x - m) / max(s, 1 / sqrt(n))

    where m and s are mean and standard deviation of all n = H W C values of the image.
    Rows stay independent. The derivative includes that of m and s, so the Jacobian of a
    network vanishes along a change of brightness, and along one of contrast where the
    standard deviation is above its floor. The norm of the derivative is one over the
    divisor, so it is at most sqrt(n).

    Args:
      images: (B, H, W, C), floating, pixels in [0, 1].
      mean: one number for all channels, or C of them, in pixel units, or "image".
      std: one positive number for all channels, or C of them, in pixel units, or
        "image".
      dtype: the floating dtype of the result.

    Returns:
      (B, H, W, C) of ``dtype``.

    Raises:
      ValueError: if ``mean`` or ``std`` has neither 1 nor C entries, if ``std`` has an
        entry that is not positive, or if only one of the two is "image".

    Source: the whitening is TensorFlow's ``per_image_standardization``, which Farnia et
    al. 2019 use.
    """
    if isinstance(mean, str) or isinstance(std, str):
        if (mean, std) != ("image", "image"):
            raise ValueError(
                f"mean, std are {mean!r}, {std!r}; they must be numbers, or both "
                "'image'."
            )
        return _whiten(images, dtype)
    channels = images.shape[-1]
    shift = _per_channel("mean", mean, channels)
    scale = _per_channel("std", std, channels)
    if min(scale) <= 0:
        raise ValueError(f"std is {std!r}; every entry must be positive.")

    def row(entries: tuple[float, ...]) -> jax.Array:
        return jnp.asarray(entries, dtype).reshape(1, 1, 1, -1)

    return (images.astype(dtype) - row(shift)) / row(scale)


def input_scale(std: ChannelStatistic, images: np.ndarray) -> tuple[float, ...]:
    """Returns the factors by which a normalisation multiplies pixels.

    Args:
      std: as for :func:`normalize`.
      images: (N, H, W, C) uint8, or floating with pixels in [0, 1]. Whitening by the
        image has a factor for each of them, and the result is one over their mean
        standard deviation. Other normalisations do not read them.

    Returns:
      One factor, or one for each channel, per pixel unit in [0, 1].
    """
    if not isinstance(std, str):
        channels: tuple[float, ...] = std if isinstance(std, tuple) else (std,)
        return tuple(1 / s for s in channels)
    values = np.asarray(images, np.float64).reshape(len(images), -1)
    if images.dtype == np.uint8:
        values = values / 255
    floor = values.shape[1] ** -0.5
    return (float(1 / np.maximum(values.std(axis=1), floor).mean()),)


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


def _whiten(images: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Whitens each image by itself; see :func:`normalize`."""
    # A sum of the squares of all pixels needs more digits than half precision has.
    x = images.astype(outputs_lib.parameter_dtype(dtype))
    axes = (1, 2, 3)
    x = x - jnp.mean(x, axes, keepdims=True)
    variance = jnp.mean(x * x, axes, keepdims=True)
    floor = 1 / (x.shape[1] * x.shape[2] * x.shape[3])
    # The square root of the larger one has a derivative in a constant image, too.
    whitened: jax.Array = x / jnp.sqrt(jnp.maximum(variance, floor))
    return whitened.astype(dtype)


def _per_channel(
    name: str, value: float | Sequence[float], channels: int
) -> tuple[float, ...]:
    entries = (value,) if isinstance(value, (int, float)) else tuple(value)
    if len(entries) not in (1, channels):
        raise ValueError(
            f"{name} is {value!r}; it must be one number, or one for each of the"
            f" {channels} channels of images."
        )
    return entries
