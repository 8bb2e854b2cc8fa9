"""Writes a data set of TensorFlow Datasets, such as CIFAR-10, as a folder of images.

The folder is read with ``--dataset=folder:OUTPUT``, without TensorFlow Datasets::

    python scripts/make_image_folder.py --output=cifar10
    python scripts/make_image_folder.py --output=cifar10_jpeg75 --jpeg_quality=75

The data have to be prepared (``tfds build cifar10``), or ``--download`` is given, which
needs TensorFlow. Each image becomes ``OUTPUT/<split>/<class>/<number>.png``, with its
number in the prepared split. PNG keeps every pixel. With ``--jpeg_quality`` the images
are JPEG files, which do not: results on them are of other images, so the folder should
be named for it. Files that are there are left as they are, so that the script can be
called again after an interruption; a folder that holds anything else is refused.
"""

import io
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import app, flags
from PIL import Image

from opnorm import data, runs

_DATASET = flags.DEFINE_enum(
    "dataset",
    "cifar10",
    ["cifar10", "cifar100", "mnist", "svhn_cropped"],
    "Data set of TensorFlow Datasets.",
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Folder of TensorFlow Datasets; by default ~/tensorflow_datasets."
)
_DOWNLOAD = flags.DEFINE_boolean(
    "download", False, "Prepare the data set if it is missing; needs TensorFlow."
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write.", required=True)
_JPEG_QUALITY = flags.DEFINE_integer(
    "jpeg_quality",
    None,
    "Write JPEG files of this quality instead of PNG files.",
    lower_bound=1,
    upper_bound=95,
)


def encode(image: np.ndarray, jpeg_quality: int | None) -> bytes:
    """Returns the file of an image.

    Args:
      image: ``(H, W, C)`` uint8, C 1 or 3.
      jpeg_quality: quality of a JPEG file with 4:2:0 chroma subsampling; None for PNG.
    """
    stream = io.BytesIO()
    pixels = image[..., 0] if image.shape[-1] == 1 else image
    if jpeg_quality is None:
        Image.fromarray(pixels).save(stream, "PNG")
    else:
        Image.fromarray(pixels).save(
            stream, "JPEG", quality=jpeg_quality, subsampling="4:2:0"
        )
    return stream.getvalue()


def write(dataset: data.Dataset, folder: Path, jpeg_quality: int | None) -> int:
    """Writes the images of a split into class folders.

    Args:
      dataset: the split.
      folder: its folder, such as ``OUTPUT/train``.
      jpeg_quality: as for :func:`encode`.

    Returns:
      The number of files that were written; the others were there.

    Raises:
      ValueError: if the folder holds a file that this call would not write so.
    """
    ending = "png" if jpeg_quality is None else "jpg"
    files = [
        folder / dataset.class_names[label] / f"{number:05d}.{ending}"
        for number, label in enumerate(dataset.labels)
    ]
    # A process that was killed may leave a file whose name begins with a dot.
    found = {
        path
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }
    _check(sorted(found - set(files)))
    written = 0
    for file, image in zip(files, dataset.images, strict=True):
        content = encode(image, jpeg_quality)
        if file not in found:
            file.parent.mkdir(parents=True, exist_ok=True)
            runs.write_whole(file, content)
            written += 1
        elif file.read_bytes() != content:
            _check([file])
    return written


def _check(strangers: Sequence[Path]) -> None:
    if strangers:
        raise ValueError(
            f"{strangers[0]} is no file of this data set; give another folder."
        )


def main(argv: Sequence[str]) -> None:
    """Writes both splits."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    output = Path(_OUTPUT.value or "").expanduser()
    for split in ("train", "test"):
        try:
            dataset = data.load(
                _DATASET.value,
                split=split,
                data_dir=_DATA_DIR.value,
                download=_DOWNLOAD.value,
            )
            written = write(dataset, output / split, _JPEG_QUALITY.value)
        except (ValueError, FileNotFoundError) as error:
            print(f"make_image_folder: {error}", file=sys.stderr)
            sys.exit(2)
        print(f"{output / split}: {len(dataset)} images, {written} written now")


if __name__ == "__main__":
    app.run(main)
