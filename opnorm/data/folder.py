"""data: any folder of class folders of pictures.

Two layouts are understood::

    path/train/<class>/<picture>, path/test/<class>/<picture>    (test or val)
    path/<class>/<picture>

The second has no split of its own: a fifth of the pictures, chosen by a hash of
``<class>/<picture>``, is the test split, the others the training split, and adding
pictures moves none of the old ones.
"""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from opnorm.data import decoding
from opnorm.data.dataset import Dataset, interleave_classes

SPLITS = ("train", "test")

_SPLIT_FOLDERS = {"train": ("train",), "test": ("test", "val")}
_TEST_FRACTION = 5


class Listing(NamedTuple):
    """The pictures of one split, one of each class following the other.

    Attributes:
      files: their N paths.
      labels: (N,) int32, the numbers of their classes.
      class_names: the sorted names of the class folders (of the training split, where
        there is one).
    """

    files: list[str]
    labels: np.ndarray
    class_names: tuple[str, ...]


def load(path: str, split: str) -> Dataset:
    """Reads every picture of one split.

    Args:
      path: the folder; ``~`` is expanded.
      split: "train" or "test".

    Returns:
      The split, one picture of each class following the other. Labels number the
      sorted names of the class folders (of the training split, where there is one).

    Raises:
      FileNotFoundError: if the folder, the split or a picture in it does not exist.
      ValueError: naming the file, if a picture is damaged or its size differs; naming
        the class, if the test split has one that the training split lacks, or one has
        no pictures to train on.
    """
    listing = list_pictures(path, split)
    pictures = [decoding.decode(read(file), file) for file in listing.files]
    return Dataset(
        images=decoding.stack(pictures, listing.files),
        labels=listing.labels,
        class_names=listing.class_names,
        name=f"folder:{path}",
        description=describe(path),
    )


def list_pictures(path: str, split: str) -> Listing:
    """Lists the pictures of one split; opens none.

    Args:
      path: the folder; ``~`` is expanded.
      split: "train" or "test".

    Returns:
      The files with their labels.

    Raises:
      FileNotFoundError: if the folder, the split or a picture in it does not exist.
      ValueError: naming the class, if the test split has one that the training split
        lacks, or one has no pictures to train on.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"dataset folder {root} does not exist.")
    split_roots = {
        name: [root / folder for folder in folders if (root / folder).is_dir()]
        for name, folders in _SPLIT_FOLDERS.items()
    }
    hashed = not any(split_roots.values())
    if hashed:
        split_root, class_root = root, root
    elif split_roots[split]:
        # ImageNet comes with a test folder that has no labels, next to val.
        split_root = next(
            filter(_folder_names, split_roots[split]), split_roots[split][0]
        )
        class_root = (split_roots["train"] or [split_root])[0]
    else:
        wanted = " or ".join(_SPLIT_FOLDERS[split])
        raise FileNotFoundError(f"dataset folder {root} has no folder {wanted}.")

    class_names = _folder_names(class_root)
    unknown = sorted(set(_folder_names(split_root)) - set(class_names))
    if unknown:
        raise ValueError(f"{split_root / unknown[0]} is a class that train lacks.")
    files, labels, empty = [], [], []
    for label, class_name in enumerate(class_names):
        found = _picture_files(split_root / class_name)
        if not found:
            empty.append(split_root / class_name)
        for file in found:
            if hashed and _is_test(class_name, file) != (split == "test"):
                continue
            files.append(str(split_root / class_name / file))
            labels.append(label)
    if not files:
        raise FileNotFoundError(
            f"dataset folder {root} has no pictures for split {split!r}; expected"
            f" <class>/<picture> with one of {', '.join(decoding.EXTENSIONS)}."
        )
    # A class need not be among the test pictures.
    if empty and (hashed or split == "train"):
        raise ValueError(
            f"{empty[0]} is a class without pictures; remove it, or put some there "
            f"({', '.join(decoding.EXTENSIONS)})."
        )
    order = interleave_classes(labels)
    return Listing(
        [files[i] for i in order], np.array(labels, np.int32)[order], class_names
    )


def read(file: str) -> bytes:
    """Reads a file that holds a picture; ValueError if it is empty."""
    encoded = Path(file).read_bytes()
    if not encoded:
        raise ValueError(f"{file} cannot be read as a picture: it is empty.")
    return encoded


def describe(path: str) -> str:
    """What results say they were measured on."""
    return f"pictures in {Path(path).expanduser().resolve().name}"


def _folder_names(path: Path) -> tuple[str, ...]:
    return tuple(
        sorted(
            entry.name
            for entry in path.iterdir()
            if entry.is_dir() and not entry.name.startswith(".")
        )
    )


def _picture_files(path: Path) -> list[str]:
    if not path.is_dir():
        return []
    # A million files: `Path` objects and a look at each would take minutes.
    with os.scandir(path) as entries:
        return sorted(
            entry.name
            for entry in entries
            if entry.name.lower().endswith(decoding.EXTENSIONS)
            and not entry.name.startswith(".")
            and entry.is_file()
        )


def _is_test(class_name: str, file_name: str) -> bool:
    digest = hashlib.sha256(f"{class_name}/{file_name}".encode()).digest()
    return digest[0] % _TEST_FRACTION == 0
