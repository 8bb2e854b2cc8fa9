"""data: encoded pictures to arrays."""

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import numpy as np

EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

GREY_MODES = ("1", "L", "LA")
"""Pillow's names for what has one channel besides transparency."""


@contextlib.contextmanager
def open_picture(encoded: bytes, name: str) -> Iterator[Any]:
    """Opens one picture; its pixels may be decoded inside the ``with`` block.

    Args:
      encoded: the bytes of an image file.
      name: what an error calls it.

    Yields:
      The ``PIL.Image.Image``, of at most 8 bits per channel.

    Raises:
      ValueError: if the bytes cannot be decoded, in the block too, or the picture has
        more than 8 bits per channel.
    """
    # Loaded here: `import opnorm` decodes nothing.
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(encoded)) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError("it has more than 8 bits per channel")
            yield image
    except UnidentifiedImageError as error:
        raise ValueError(
            f"{name} cannot be read as a picture: its format is not known."
        ) from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} cannot be read as a picture: {error}.") from error


def decode(encoded: bytes, name: str) -> np.ndarray:
    """Decodes one picture.

    Args:
      encoded: the bytes of an image file.
      name: what an error calls it.

    Returns:
      uint8, (H, W, 1) for a grey picture and (H, W, 3) for any other; transparency is
      dropped and palettes are resolved.

    Raises:
      ValueError: if the bytes cannot be decoded, or the picture has more than 8 bits
        per channel.
    """
    with open_picture(encoded, name) as image:
        pixels = np.asarray(image.convert("L" if image.mode in GREY_MODES else "RGB"))
    return pixels.reshape(*pixels.shape[:2], -1)


def stack(pictures: list[np.ndarray], names: list[str]) -> np.ndarray:
    """Stacks pictures of one size; grey ones become RGB if any other is RGB.

    Args:
      pictures: at least one array (H, W, 1) or (H, W, 3), uint8.
      names: what an error calls each.

    Returns:
      (N, H, W, C) uint8.

    Raises:
      ValueError: naming the first picture whose size differs from that of the first.
    """
    size = pictures[0].shape[:2]
    for picture, name in zip(pictures, names, strict=True):
        if picture.shape[:2] != size:
            raise ValueError(
                f"{name} has height and width {picture.shape[:2]}, but {names[0]} has"
                f" {size}; all pictures of a dataset must have one size."
            )
    channels = max(picture.shape[2] for picture in pictures)
    images = np.empty((len(pictures), *size, channels), np.uint8)
    for image, picture in zip(images, pictures, strict=True):
        image[...] = picture
    return images
