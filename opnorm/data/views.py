"""data: what a network of one input size sees of an image of any size.

A view is a box of the upright image (its EXIF orientation is applied), resized. The box
is known before a JPEG is decoded, so that one much larger than the view is decoded at a
half, a quarter or an eighth of its size.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from opnorm.data import decoding

_NUM_TRIES = 10
_ASPECT_RATIOS = (3 / 4, 4 / 3)


class Box(NamedTuple):
    """A rectangle of a picture, in its pixels.

    Attributes:
      left: columns to the left of it.
      top: rows above it.
      width: its columns.
      height: its rows.
    """

    left: float
    top: float
    width: float
    height: float


def random_box(draws: np.ndarray, width: int, height: int, least_area: float) -> Box:
    """Draws the box of a random resized crop.

    The area is uniform in [``least_area``, 1] of the picture's, the logarithm of width
    over height uniform between those of 3/4 and 4/3, both rounded to whole pixels. The
    first of ten tries that fits into the picture counts, at a uniform place; if none
    does, the largest box of an allowed aspect ratio in the middle.

    Args:
      draws: (10, 4) floats in [0, 1), independent and uniform.
      width: columns of the picture.
      height: rows of the picture.
      least_area: in (0, 1].

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
      name: what an error calls it.
      seed: at least 0.
      index: the example's number, at least 0; the view is drawn from it and ``seed``.
      image_size: side of the view in pixels.
      least_area: least part of the picture that a view shows, in (0, 1].
      flip: whether half of the views are mirrored.

    Returns:
      (image_size, image_size, 3) uint8.

    Raises:
      ValueError: naming the picture, if it cannot be decoded.
    """
    draws = _uniform(seed, index, 4 * _NUM_TRIES + 1)
    with decoding.open_picture(encoded, name) as image:
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
    """Decodes the middle of a picture whose shorter side is resized first.

    Args:
      encoded: the bytes of an image file.
      name: what an error calls it.
      image_size: side of the view in pixels.
      resize: the shorter side before the crop, at least ``image_size``.

    Returns:
      (image_size, image_size, 3) uint8.

    Raises:
      ValueError: naming the picture, if it cannot be decoded.
    """
    with decoding.open_picture(encoded, name) as image:
        orientation = decoding.orientation(image)
        size = _upright_size(image, orientation)
        shorter = min(size)
        resized = [round(side * resize / shorter) for side in size]
        scales = [side / target for side, target in zip(size, resized, strict=True)]
        # Whole pixels of the resized picture: a crop between them would be a blur.
        corner = [(target - image_size) // 2 for target in resized]
        box = Box(
            corner[0] * scales[0],
            corner[1] * scales[1],
            image_size * scales[0],
            image_size * scales[1],
        )
        turned = decoding.upright(image, orientation)
        return _resize(turned, box, image_size, mirror=False)


def _upright_size(image: Any, orientation: int) -> tuple[int, int]:
    """Width and height of an image as :func:`decoding.upright` returns it."""
    width, height = image.size
    return (height, width) if orientation >= 5 else (width, height)


def _uniform(seed: int, index: int, count: int) -> np.ndarray:
    # From raw bits, which NumPy keeps across versions: a run resumes under a newer one.
    bits = np.random.PCG64(np.random.SeedSequence((index, seed)))
    return (bits.random_raw(count) >> np.uint64(11)) * 2.0**-53


def _reduce(image: Any, factor: int) -> int:
    """Asks for a picture smaller by ``factor`` at most; returns by how much it is.

    Only JPEG can do that, by powers of two, which leaves out most of the decoding.
    """
    width, height = image.size
    if factor < 2 or image.format != "JPEG":
        return 1
    drafted = image.draft(image.mode, (width // factor, height // factor))
    return 1 if drafted is None else round(width / drafted[1][2])


def _resize(image: Any, box: Box, image_size: int, *, mirror: bool) -> np.ndarray:
    from PIL import Image

    # Palettes cannot be interpolated, and transparency would be a weight.
    if image.mode != "RGB":
        image = image.convert("L" if image.mode in decoding.GREY_MODES else "RGB")
    # Rounding may have led out of the picture.
    right = min(box.left + box.width, image.size[0])
    bottom = min(box.top + box.height, image.size[1])
    view = image.resize(
        (image_size, image_size),
        Image.Resampling.BILINEAR,
        box=(box.left, box.top, right, bottom),
    )
    if mirror:
        # NumPy would take ten times as long.
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(view.convert("RGB"))
