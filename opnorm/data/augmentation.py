"""Augmentation on the device, inside the compiled step.

A random crop after zero padding and a random horizontal flip are one linear map per
example. The map and its transpose can also be applied to another array of the shape of
the images, such as a perturbation or a singular vector. ``augment`` has variants that
are not linear: other paddings, and cutout.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

PADDINGS = ("zero", "reflect", "grey")

_GREY = 128


class Augmentation(NamedTuple):
    """One transformation per example.

    Attributes:
      offsets: (B, 2) int32 in [0, 2 pad]: the first row and column of the crop in the
        padded image; the value ``pad`` leaves the image where it is.
      flips: (B,) bool: whether the crop is then mirrored left to right.
    """

    offsets: jax.Array
    flips: jax.Array


def sample_augmentation(
    key: jax.Array, batch_size: int, *, pad: int = 4, flip: bool = True
) -> Augmentation:
    """Draws one transformation per example, uniformly.

    Args:
      key: a typed key.
      batch_size: the number of examples B.
      pad: largest number of pixels that an image moves by; at least 0.
      flip: whether half of the examples are mirrored; false for digits.

    Returns:
      The transformations.

    Raises:
      ValueError: if ``pad`` is negative.

    Example:
      A map of an image is undone where the crop has seen the image.

      >>> import jax
      >>> import jax.numpy as jnp
      >>> from opnorm import data
      >>> images = jnp.arange(1.0, 5).reshape(1, 2, 2, 1)
      >>> params = data.Augmentation(jnp.array([[1, 2]]), jnp.array([True]))
      >>> moved = data.apply_augmentation(params, images, pad=1)
      >>> moved[0, :, :, 0].tolist()
      [[0.0, 2.0], [0.0, 4.0]]
      >>> data.invert_augmentation(params, moved, pad=1)[0, :, :, 0].tolist()
      [[0.0, 2.0], [0.0, 4.0]]
    """
    _check_pad(pad)
    offset_key, flip_key = jax.random.split(key)
    offsets = jax.random.randint(offset_key, (batch_size, 2), 0, 2 * pad + 1)
    flips = jax.random.bernoulli(flip_key, 0.5 if flip else 0.0, (batch_size,))
    return Augmentation(offsets.astype(jnp.int32), flips)


def apply_augmentation(
    params: Augmentation, images: jax.Array, *, pad: int = 4
) -> jax.Array:
    """Computes ``A x``: pads with zeros, crops at the offsets, then mirrors.

    Args:
      params: the transformations of B examples.
      images: (B, H, W, C), any dtype.
      pad: the ``pad`` with which ``params`` was drawn.

    Returns:
      (B, H, W, C), like ``images``.

    Raises:
      ValueError: if the shapes do not fit, or ``pad`` is negative.
    """
    _check(params, images, pad)
    return _mirror(_crop(images, params.offsets, pad), params.flips)


def invert_augmentation(
    params: Augmentation, images: jax.Array, *, pad: int = 4
) -> jax.Array:
    """Computes ``A^T y``: mirrors, then moves the crop back to its place.

    This is the transpose of ``apply_augmentation``: ``<A x, y> = <x, A^T y>``. It is
    the best inverse, since ``A^T A x`` is ``x`` inside the crop and zero elsewhere.

    Args:
      params: the transformations of B examples.
      images: (B, H, W, C), any dtype, in the frame of the augmented images.
      pad: the ``pad`` with which ``params`` was drawn.

    Returns:
      (B, H, W, C), like ``images``, in the frame of the original images.

    Raises:
      ValueError: if the shapes do not fit, or ``pad`` is negative.
    """
    _check(params, images, pad)
    return _crop(_mirror(images, params.flips), 2 * pad - params.offsets, pad)


def augment(
    key: jax.Array,
    images: jax.Array,
    *,
    pad: int = 4,
    flip: bool = True,
    padding: str = "zero",
    cutout: int = 0,
) -> jax.Array:
    """Draws a transformation per example and applies it: crop, mirror, cutout.

    Crops and mirror images depend on the key alone, not on ``padding`` and ``cutout``.

    Args:
      key: a typed key.
      images: (B, H, W, C), any dtype; floats in [0, 1], integers up to 255.
      pad: largest number of pixels that an image moves by; at least 0.
      flip: whether half of the examples are mirrored; false for digits.
      padding: values around an image: "zero", "reflect" for its mirror image, in which
        the border itself is not repeated, or "grey" for 128 / 255.
      cutout: side of a square in each image that is filled with the mean colour of the
        pixels it covers; at most the shorter side, 0 for none. Its centre is uniform
        over the pixels, so a part of the square may lie outside.

    Returns:
      (B, H, W, C), like ``images``.

    Raises:
      ValueError: if ``images`` has another rank, ``padding`` is unknown, or ``pad`` or
        ``cutout`` is out of range.

    Source: Zagoruyko & Komodakis, "Wide Residual Networks" (2016), for "reflect";
    DeVries & Taylor, "Improved Regularization of Convolutional Neural Networks with
    Cutout" (2017); the code of Finlay & Oberman, "Scaleable input gradient
    regularization for adversarial robustness" (2019), for "grey" and the colour of the
    square.
    """
    if padding not in PADDINGS:
        raise ValueError(
            f"padding is {padding!r}; it must be one of {', '.join(PADDINGS)}."
        )
    params = sample_augmentation(key, images.shape[0], pad=pad, flip=flip)
    _check(params, images, pad)
    if not 0 <= cutout <= min(images.shape[1:3]):
        raise ValueError(
            f"cutout is {cutout}; it must be between 0 and the shorter side of the "
            f"images, {min(images.shape[1:3])}."
        )
    augmented = _mirror(_crop(images, params.offsets, pad, padding), params.flips)
    if not cutout:
        return augmented
    # 0 and 1 would give the two keys that the key has been split into.
    return _cut_out(jax.random.fold_in(key, 2), augmented, cutout)


def _crop(
    images: jax.Array, offsets: jax.Array, pad: int, padding: str = "zero"
) -> jax.Array:
    widths = ((0, 0), (pad, pad), (pad, pad), (0, 0))
    if padding == "reflect":
        padded = jnp.pad(images, widths, mode="reflect")
    else:
        grey = _GREY if jnp.issubdtype(images.dtype, jnp.integer) else _GREY / 255
        value = grey if padding == "grey" else 0
        padded = jnp.pad(images, widths, constant_values=value)

    # Batched slices keep a sharded batch sharded, where advanced indexing would
    # gather it on every device.
    def crop(image: jax.Array, offset: jax.Array) -> jax.Array:
        return lax.dynamic_slice(image, (offset[0], offset[1], 0), images.shape[1:])

    return jax.vmap(crop)(padded, offsets)


def _cut_out(key: jax.Array, images: jax.Array, side: int) -> jax.Array:
    batch_size, height, width, _ = images.shape
    centres = jax.random.randint(
        key, (batch_size, 2), 0, jnp.array([height, width], jnp.int32)
    )
    first = centres - side // 2

    def inside(axis: int, size: int) -> jax.Array:
        places = jnp.arange(size) - first[:, axis, None]
        return (places >= 0) & (places < side)

    covered = inside(0, height)[:, :, None] & inside(1, width)[:, None, :]
    covered = covered[..., None]
    # Bytes and half precision would overflow or round in the sum.
    wide = images.astype(jnp.promote_types(images.dtype, jnp.float32))
    total = jnp.where(covered, wide, 0).sum((1, 2), keepdims=True)
    colour = total / covered.sum((1, 2), keepdims=True)
    if jnp.issubdtype(images.dtype, jnp.integer):
        colour = jnp.round(colour)
    return jnp.where(covered, colour.astype(images.dtype), images)


def _mirror(images: jax.Array, flips: jax.Array) -> jax.Array:
    return jnp.where(flips[:, None, None, None], images[:, :, ::-1], images)


def _check(params: Augmentation, images: jax.Array, pad: int) -> None:
    _check_pad(pad)
    if images.ndim != 4 or images.shape[0] != params.flips.shape[0]:
        raise ValueError(
            f"images has shape {images.shape}; it must be (batch, height, width,"
            f" channels) with the batch of params, {params.flips.shape[0]}."
        )


def _check_pad(pad: int) -> None:
    if pad < 0:
        raise ValueError(f"pad is {pad}; it must be at least 0.")
