"""Tiny-ImageNet in the layout of its own archive.

The archive ``tiny-imagenet-200.zip`` unpacks to::

    path/wnids.txt                           (the 200 classes, one a line)
    path/train/<class>/images/<image>        (500 images of each class)
    path/val/images/<image>                  (10,000 images)
    path/val/val_annotations.txt             (<image> TAB <class> TAB ... for each)

``test/images`` has no labels, so that "test" is the archive's ``val``, as elsewhere.
Images are 64 x 64, most of them in colour.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from opnorm.data import decoding
from opnorm.data.dataset import interleave_classes
from opnorm.data.folder import Listing

DESCRIPTION = "Tiny-ImageNet"

_CLASSES = "wnids.txt"
_ANNOTATIONS = "val_annotations.txt"
# The folder that the archive unpacks to.
_UNPACKED = "tiny-imagenet-200"


def list_images(path: str, split: str) -> Listing:
    """Lists the images of one split; opens none.

    Args:
      path: the unpacked archive; ``~`` is expanded.
      split: "train" or "test", which is the archive's ``val``.

    Returns:
      The files with their labels, which number the sorted classes.

    Raises:
      FileNotFoundError: naming the folder, file or image of the layout that is missing.
      ValueError: naming the file, if it cannot be read or does not fit the images.
    """
    root = Path(path).expanduser()
    _check_root(root)
    class_names = _read_classes(root / _CLASSES)
    numbers = {name: label for label, name in enumerate(class_names)}
    found = _train(root, numbers) if split == "train" else _val(root, numbers)
    files, labels = zip(*found, strict=True)
    order = interleave_classes(labels)
    return Listing(
        [files[i] for i in order], np.array(labels, np.int32)[order], class_names
    )


def _check_root(root: Path) -> None:
    if not root.is_dir():
        raise FileNotFoundError(f"dataset folder {root} does not exist.")
    if not (root / _CLASSES).is_file():
        inside = root / _UNPACKED
        found = f"; {inside} has one" if (inside / _CLASSES).is_file() else ""
        raise FileNotFoundError(
            f"dataset folder {root} has no {_CLASSES}{found}. It must be the unpacked "
            f"tiny-imagenet-200.zip, with {_CLASSES}, train/<class>/images and "
            f"val/{_ANNOTATIONS}; images in other folders of classes are read with "
            "--dataset=image_folder:/path."
        )


def _read_classes(file: Path) -> tuple[str, ...]:
    names = [line.strip() for line in _lines(file) if line.strip()]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"{file} has {len(names)} classes, {len(set(names))} of them different; it "
            "must have one or more, each once."
        )
    return tuple(sorted(names))


def _train(root: Path, numbers: dict[str, int]) -> list[tuple[str, int]]:
    folder = root / "train"
    unknown = sorted(set(_names(folder, folders=True)) - set(numbers))
    if unknown:
        raise ValueError(f"{folder / unknown[0]} is a class that {_CLASSES} lacks.")
    found = []
    for name, label in numbers.items():
        images = folder / name / "images"
        files = _names(images)
        if not files:
            raise ValueError(f"{images} has no images; unpack the archive again.")
        found += [(str(images / file), label) for file in files]
    return found


def _val(root: Path, numbers: dict[str, int]) -> list[tuple[str, int]]:
    images, annotations = root / "val" / "images", root / "val" / _ANNOTATIONS
    if not annotations.is_file():
        raise FileNotFoundError(
            f"{annotations} is missing. If the images of val were moved to folders of "
            "classes, read the data with --dataset=image_folder:/path, or unpack the "
            "archive again."
        )
    there = set(_names(images))
    classes: dict[str, int] = {}
    for number, line in enumerate(_lines(annotations), 1):
        if not line.strip():
            continue
        file, _, rest = line.partition("\t")
        name = rest.partition("\t")[0].strip()
        if name not in numbers:
            raise ValueError(
                f"{annotations}, line {number}, is {line[:80]!r}; it must begin with "
                f"an image, a tab, and a class that {_CLASSES} has."
            )
        if file in classes:
            raise ValueError(f"{annotations}, line {number}, names {file} again.")
        if file not in there:
            raise FileNotFoundError(
                f"{images / file} is missing; {annotations}, line {number}, names it."
            )
        classes[file] = numbers[name]
    without = sorted(there - set(classes))
    if without or not classes:
        first = f", such as {without[0]}" if without else ""
        raise ValueError(
            f"{annotations} has classes for {len(classes)} images, and {images} has "
            f"{len(without)} others{first}; unpack the archive again."
        )
    return [(str(images / file), label) for file, label in sorted(classes.items())]


def _names(folder: Path, *, folders: bool = False) -> Sequence[str]:
    """Returns the sorted names of the images in a folder, or of the folders in it."""
    try:
        with os.scandir(folder) as entries:
            return sorted(
                entry.name
                for entry in entries
                if not entry.name.startswith(".")
                and (
                    entry.is_dir()
                    if folders
                    else entry.name.lower().endswith(decoding.EXTENSIONS)
                )
            )
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{folder} is missing; unpack the archive again."
        ) from error
    except OSError as error:
        raise ValueError(f"{folder} cannot be read: {error.strerror}.") from error


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read: {error}.") from error
