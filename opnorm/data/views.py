"""Views of one size, taken from images of any size.

A view is a resized box of the upright image (its EXIF orientation is applied). The box
is known before a JPEG is decoded, so a JPEG that is much larger than the view is
decoded at a half, a quarter or an eighth of its size.
"""

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from opnorm.data import decoding

if TYPE_CHECKING:
    from PIL import Image

_NUM_TRIES = 10
_ASPECT_RATIOS = (3 / 4, 4 / 3)


class Box(NamedTuple):
    """A rectangle of an image, in pixels.

    Attributes:
      left: number of columns to the left of the box.
      top: number of rows above the box.
      width: number of columns of the box.
      height: number of rows of the box.
    """

    left: float
    top: float
    width: float
    height: float


def random_box(draws: np.ndarray, width: int, height: int, least_area: float) -> Box:
    """Draws the box of a random resized crop.

    The area is uniform in [``least_area``, 1] times that of the image, and the
    logarithm of width over height is uniform between those of 3/4 and 4/3; both are
    rounded to whole pixels. The first of ten draws that fits into the image counts, at
    a uniform place. If none fits, the box is the largest one in the middle that has an
    allowed aspect ratio.

    Args:
      draws: (10, 4) floats in [0, 1), independent and uniform.
      width: columns of the image.
      height: rows of the image.
      least_area: smallest fraction of the image that the box covers, in (0, 1].

    Returns:
      The box, in whole pixels.

    Source: Szegedy et al., "Going Deeper with Convolutions" (2015), section 6.
    """
    low, high = _ASPECT_RATIOS
    for area_draw, ratio_draw, column_draw, row_draw in draws.tolist():
        area = width * height * (least_area + (1 - least_area) * area_draw)
        ratio = low * (high / low) ** ratio_draw
        columns = round(math.sqrt(area * ratio))
        rows = round(math.sqrt(area / ratio))
        if 0 < columns <= width and 0 < rows <= height:
            left = math.floor(column_draw * (width - columns + 1))
            top = math.floor(row_draw * (height - rows + 1))
            return Box(left, top, columns, rows)
    columns = max(1, min(width, round(height * high)))
    rows = max(1, min(height, round(width / low)))
    return Box((width - columns) // 2, (height - rows) // 2, columns, rows)


def training_view(
    encoded: bytes,
    name: str,
    *,
    seed: int,
    index: int,
    image_size: int,
    least_area: float,
    flip: bool,
) -> np.ndarray:
    """Decodes a random resized crop, mirrored left to right half of the time.

    Args:
      encoded: the bytes of an image file.
      name: name of the image in errors.
      seed: at least 0.
      index: number of the example, at least 0, a part of the random seed.
      image_size: side of the view in pixels.
      least_area: smallest fraction of the image that the view shows, in (0, 1].
      flip: whether half of the views are mirrored.

    Returns:
      (image_size, image_size, 3) uint8.

    Raises:
      ValueError: naming the image, if it cannot be decoded.
    """
    draws = _uniform(seed, index, 4 * _NUM_TRIES + 1)
    with decoding.open_image(encoded, name) as image:
        orientation = decoding.orientation(image)
        width, height = _upright_size(image, orientation)
        box = random_box(draws[1:].reshape(-1, 4), width, height, least_area)
        factor = _reduce(image, int(min(box.width, box.height)) // image_size)
        box = Box(*(length / factor for length in box))
        turned = decoding.upright(image, orientation)
        return _resize(turned, box, image_size, mirror=flip and draws[0] < 0.5)


def central_view(
    encoded: bytes, name: str, *, image_size: int, resize: int
) -> np.ndarray:
    """Decodes the middle of an image whose shorter side is resized first.

    Args:
      encoded: the bytes of an image file.
      name: name of the image in errors.
      image_size: side of the view in pixels.
      resize: length of the shorter side before the crop, at least ``image_size``.

    Returns:
      (image_size, image_size, 3) uint8.

    Raises:
      ValueError: naming the image, if it cannot be decoded.
    """
    with decoding.open_image(encoded, name) as image:
        orientation = decoding.orientation(image)
        size = _upright_size(image, orientation)
        shorter = min(size)
        resized = [round(side * resize / shorter) for side in size]
        scales = [side / target for side, target in zip(size, resized, strict=True)]
        # Whole pixels of the resized image, since a crop between them would blur it.
        corner = [(target - image_size) // 2 for target in resized]
        box = Box(
            corner[0] * scales[0],
            corner[1] * scales[1],
            image_size * scales[0],
            image_size * scales[1],
        )
        turned = decoding.upright(image, orientation)
        return _resize(turned, box, image_size, mirror=False)


def _upright_size(image: "Image.Image", orientation: int) -> tuple[int, int]:
    """Returns width and height after :func:`decoding.upright`."""
    width, height = image.size
    return (height, width) if orientation >= 5 else (width, height)


def _uniform(seed: int, index: int, count: int) -> np.ndarray:
    # From raw bits, which NumPy keeps across versions. A run must resume under a newer
    # NumPy.
    bits = np.random.PCG64(np.random.SeedSequence((index, seed)))
    return (bits.random_raw(count) >> np.uint64(11)) * 2.0**-53


def _reduce(image: "Image.Image", factor: int) -> int:
    """Decodes an image at a smaller size; returns the factor, at most ``factor``.

    Only JPEG can do that, by powers of two, which saves most of the decoding.
    """
    width, height = image.size
    if factor < 2 or image.format != "JPEG":
        return 1
    drafted = image.draft(image.mode, (width // factor, height // factor))
    return 1 if drafted is None else round(width / drafted[1][2])


def _resize(
    image: "Image.Image", box: Box, image_size: int, *, mirror: bool
) -> np.ndarray:
    from PIL import Image

    # Palettes cannot be interpolated, and transparency would become a weight.
    if image.mode != "RGB":
        image = image.convert("L" if image.mode in decoding.GREY_MODES else "RGB")
    # Rounding may put the box outside of the image.
    right = min(box.left + box.width, image.size[0])
    bottom = min(box.top + box.height, image.size[1])
    view = image.resize(
        (image_size, image_size),
        Image.Resampling.BILINEAR,
        box=(box.left, box.top, right, bottom),
    )
    if mirror:
        # NumPy takes ten times as long.
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(view.convert("RGB"))
