"""Encoded images to arrays, upright as their EXIF orientation says."""

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import numpy as np

EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

GREY_MODES = ("1", "L", "LA")
"""Pillow's names for what has one channel besides transparency."""

_ORIENTATION = 0x0112
# Pillow's name of the transposition that undoes each EXIF orientation.
_TRANSPOSITIONS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


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


def orientation(image: Any) -> int:
    """Returns the EXIF orientation of an open image: 1 for upright, 2 to 8 for others.

    5 to 8 exchange width and height. An image whose EXIF data cannot be read counts as
    upright.

    Args:
      image: a ``PIL.Image.Image`` of :func:`open_picture`. A JPEG is not decoded by
        this; other formats are.
    """
    # PNG may keep its EXIF data behind the pixels, and Pillow turns TIFF itself when it
    # decodes. Only a JPEG can be decoded at a part of its size, which must come later.
    if image.format != "JPEG":
        image.load()
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    # Whatever damaged EXIF data make Pillow raise; the pixels are whole.
    except Exception:
        return 1
    return found if found in _TRANSPOSITIONS else 1


def upright(image: Any, orientation: int) -> Any:
    """Turns an image of an EXIF orientation as people see it; 1 returns it as it is."""
    if orientation == 1:
        return image
    from PIL import Image

    return image.transpose(Image.Transpose[_TRANSPOSITIONS[orientation]])


def decode(encoded: bytes, name: str) -> np.ndarray:
    """Decodes one image, turned as its EXIF orientation says.

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
        turned = upright(image, orientation(image))
        pixels = np.asarray(turned.convert("L" if turned.mode in GREY_MODES else "RGB"))
    return pixels.reshape(*pixels.shape[:2], -1)


def stack(pictures: list[np.ndarray], names: list[str]) -> np.ndarray:
    """Stacks images of one size; grey ones become RGB if any other is RGB.

    Args:
      pictures: at least one array (H, W, 1) or (H, W, 3), uint8.
      names: what an error calls each.

    Returns:
      (N, H, W, C) uint8.

    Raises:
      ValueError: naming the first image whose size differs from that of the first, and
        how many differ.
    """
    size = pictures[0].shape[:2]
    differing = [i for i, picture in enumerate(pictures) if picture.shape[:2] != size]
    if differing:
        first = differing[0]
        raise ValueError(
            f"{names[first]} has height and width {pictures[first].shape[:2]}, but "
            f"{names[0]} has {size} ({len(differing)} of {len(pictures)} images differ "
            "from it); all images of a dataset must have one size. image_folder:/path "
            "reads images of any size and resizes them."
        )
    channels = max(picture.shape[2] for picture in pictures)
    images = np.empty((len(pictures), *size, channels), np.uint8)
    for image, picture in zip(images, pictures, strict=True):
        image[...] = picture
    return images
