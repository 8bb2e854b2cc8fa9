"""Decoding of images to arrays, turned upright by their EXIF orientation."""

import contextlib
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

GREY_MODES = ("1", "L", "LA")
"""Pillow's names of the modes that have one channel besides transparency."""

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
def open_image(encoded: bytes, name: str) -> Iterator["Image.Image"]:
    """Opens one image; its pixels may be decoded inside the ``with`` block.

    Args:
      encoded: the bytes of an image file.
      name: name of the image in errors.

    Yields:
      The ``PIL.Image.Image``, with at most 8 bits per channel.

    Raises:
      ValueError: if the bytes cannot be decoded, also in the block, or the image has
        more than 8 bits per channel.
    """
    # Loaded here, since `import opnorm` decodes nothing.
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(encoded)) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError("it has more than 8 bits per channel")
            yield image
    except UnidentifiedImageError as error:
        raise ValueError(
            f"{name} cannot be read as an image: its format is not known."
        ) from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} cannot be read as an image: {error}.") from error


def orientation(image: "Image.Image") -> int:
    """Returns the EXIF orientation of an open image: 1 for upright, 2 to 8 for others.

    Orientations 5 to 8 exchange width and height. An image whose EXIF data cannot be
    read counts as upright.

    Args:
      image: an image of :func:`open_image`. This call decodes it unless it is a JPEG.
    """
    # PNG may keep its EXIF data behind the pixels, and Pillow itself turns TIFF when it
    # decodes. A JPEG is not decoded yet, since it may be decoded at a smaller size.
    if image.format != "JPEG":
        image.load()
    try:
        found: int = image.getexif().get(_ORIENTATION, 1)
    # Damaged EXIF data may raise anything in Pillow; the pixels are whole.
    except Exception:
        return 1
    return found if found in _TRANSPOSITIONS else 1


def upright(image: "Image.Image", orientation: int) -> "Image.Image":
    """Turns an image upright, given its EXIF orientation."""
    if orientation == 1:
        return image
    from PIL import Image

    return image.transpose(Image.Transpose[_TRANSPOSITIONS[orientation]])


def decode(encoded: bytes, name: str) -> np.ndarray:
    """Decodes one image and turns it upright.

    Args:
      encoded: the bytes of an image file.
      name: name of the image in errors.

    Returns:
      uint8, (H, W, 1) for a grey image and (H, W, 3) for any other. Transparency is
      dropped, and palettes are resolved.

    Raises:
      ValueError: if the bytes cannot be decoded, or the image has more than 8 bits
        per channel.
    """
    with open_image(encoded, name) as image:
        turned = upright(image, orientation(image))
        pixels = np.asarray(turned.convert("L" if turned.mode in GREY_MODES else "RGB"))
    return pixels.reshape(*pixels.shape[:2], -1)


def stack(images: list[np.ndarray], names: list[str]) -> np.ndarray:
    """Stacks images of one size; grey ones become RGB if any other is RGB.

    Args:
      images: at least one array (H, W, 1) or (H, W, 3), uint8.
      names: names of the images in errors.

    Returns:
      (N, H, W, C) uint8.

    Raises:
      ValueError: naming the first image whose size differs from that of the first, and
        the number of images that differ.
    """
    size = images[0].shape[:2]
    differing = [i for i, image in enumerate(images) if image.shape[:2] != size]
    if differing:
        first = differing[0]
        raise ValueError(
            f"{names[first]} has height and width {images[first].shape[:2]}, but "
            f"{names[0]} has {size} ({len(differing)} of {len(images)} images differ "
            "from it); all images of a dataset must have one size. image_folder:/path "
            "reads images of any size and resizes them."
        )
    channels = max(image.shape[2] for image in images)
    stacked = np.empty((len(images), *size, channels), np.uint8)
    for place, image in zip(stacked, images, strict=True):
        place[...] = image
    return stacked
