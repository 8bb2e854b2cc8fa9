"""data: augmentation on the device, inside the compiled step.

A random crop after zero padding and a random horizontal flip, as one linear map per
example: the same map can be applied to any other array of the pictures' shape (a
perturbation, a singular vector), and so can its transpose.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Augmentation(NamedTuple):
    """One transformation per example.

    Attributes:
      offsets: (B, 2) int32 in [0, 2 pad]: the first row and column of the crop in the
        padded picture; ``pad`` leaves the picture where it is.
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
      pad: by how many pixels a picture moves at most; at least 0.
      flip: whether half of the examples are mirrored; false for digits.

    Returns:
      The transformations.

    Raises:
      ValueError: if ``pad`` is negative.
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
    """Computes ``A^T y``: mirrors, then moves the crop back to where it came from.

    The transpose of ``apply_augmentation``, so ``<A x, y> = <x, A^T y>``. It is also
    the best inverse there is: ``A^T A x`` is ``x`` where the crop saw it, and zero
    elsewhere.

    Args:
      params: the transformations of B examples.
      images: (B, H, W, C), any dtype, in the frame of the augmented pictures.
      pad: the ``pad`` with which ``params`` was drawn.

    Returns:
      (B, H, W, C), like ``images``, in the frame of the original pictures.

    Raises:
      ValueError: if the shapes do not fit, or ``pad`` is negative.
    """
    _check(params, images, pad)
    return _crop(_mirror(images, params.flips), 2 * pad - params.offsets, pad)


def augment(
    key: jax.Array, images: jax.Array, *, pad: int = 4, flip: bool = True
) -> jax.Array:
    """Draws a transformation per example and applies it.

    Args:
      key: a typed key.
      images: (B, H, W, C), any dtype.
      pad: by how many pixels a picture moves at most; at least 0.
      flip: whether half of the examples are mirrored; false for digits.

    Returns:
      (B, H, W, C), like ``images``.

    Raises:
      ValueError: if ``images`` has another rank, or ``pad`` is negative.
    """
    params = sample_augmentation(key, images.shape[0], pad=pad, flip=flip)
    return apply_augmentation(params, images, pad=pad)


def _crop(images: jax.Array, offsets: jax.Array, pad: int) -> jax.Array:
    # Batched slices keep a sharded batch sharded, where advanced indexing would
    # gather it on every device.
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))

    def crop(image: jax.Array, offset: jax.Array) -> jax.Array:
        return lax.dynamic_slice(image, (offset[0], offset[1], 0), images.shape[1:])

    return jax.vmap(crop)(padded, offsets)


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
