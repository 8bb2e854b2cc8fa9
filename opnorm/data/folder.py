"""Folders of class folders of images.

There are two layouts::

    path/train/<class>/<image>, path/test/<class>/<image>    (test or val)
    path/<class>/<image>

The second has no splits: a fifth of the images, chosen by a hash of
``<class>/<image>``, is the test split, and the others are the training split. Adding
images moves none of the old ones.

As in torchvision's ``ImageFolder``, an image may lie in folders below its class folder.
Links are followed. Names that begin with a dot are left out. A warning counts the other
files that are left out.
"""

import collections
import hashlib
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging

from opnorm.data import decoding
from opnorm.data.dataset import Dataset, interleave_classes

SPLITS = ("train", "test")

_SPLIT_FOLDERS = {"train": ("train",), "test": ("test", "val")}
# Folders of these names are probably splits that should be called train, test or val.
_OTHER_SPLIT_NAMES = frozenset(
    ["train", "training", "test", "testing", "val", "valid", "validation"]
)
_TEST_FRACTION = 5
# Largest number of names in an error or a warning.
_SHOWN = 5


class Listing(NamedTuple):
    """The images of one split, with one example of each class in turn.

    Attributes:
      files: the N paths.
      labels: (N,) int32, the numbers of the classes.
      class_names: the sorted names of the class folders (of the training split, where
        there is one).
    """

    files: list[str]
    labels: np.ndarray
    class_names: tuple[str, ...]


class _Found(NamedTuple):
    """The files of one class folder, relative to it, in torchvision's order."""

    images: list[str]
    others: list[str]


def load(path: str, split: str) -> Dataset:
    """Reads every image of one split.

    Args:
      path: the folder; ``~`` is expanded.
      split: "train" or "test".

    Returns:
      The split, with one example of each class in turn. Labels number the sorted names
      of the class folders (of the training split, where there is one).

    Raises:
      FileNotFoundError: if the folder, the split or an image in it does not exist.
      ValueError: for the reasons of :func:`list_images`; naming the files, if images
        are damaged or have different sizes.
    """
    listing = list_images(path, split)
    images, damaged = [], []
    for file in listing.files:
        try:
            images.append(decoding.decode(read(file), file))
        except ValueError as error:
            damaged.append(str(error))
    check_readable(damaged, len(listing.files))
    return Dataset(
        images=decoding.stack(images, listing.files),
        labels=listing.labels,
        class_names=listing.class_names,
        name=f"folder:{path}",
        description=describe(path),
    )


def check_readable(damaged: Sequence[str], count: int) -> None:
    """Raises a ValueError with the messages of damaged images, if there are any."""
    if len(damaged) == 1:
        raise ValueError(damaged[0])
    if damaged:
        shown = " ".join(damaged[:_SHOWN])
        more = f" {len(damaged) - _SHOWN} more." if len(damaged) > _SHOWN else ""
        raise ValueError(f"{len(damaged)} of {count} images are damaged: {shown}{more}")


def list_images(path: str, split: str) -> Listing:
    """Lists the images of one split; opens none.

    A warning counts the files that are left out, by their extensions, and another one
    names the classes that the split lacks.

    Args:
      path: the folder; ``~`` is expanded.
      split: "train" or "test".

    Returns:
      The files with their labels.

    Raises:
      FileNotFoundError: if the folder, the split or an image in it does not exist.
      ValueError: naming the class, if the training split lacks a class of the test
        split or a class has no images to train on; naming the folder, if it cannot be
        listed, contains itself, or seems to hold splits or classes one level further
        down; naming the link, if an image is a link to a file that does not exist.
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
        _check_no_splits(root)
    elif split_roots[split]:
        # ImageNet has a test folder without labels beside val.
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
    found = {name: _walk(split_root / name) for name in class_names}
    files, labels = [], []
    for label, (name, (images, _)) in enumerate(found.items()):
        for file in images:
            if hashed and _is_test(name, file) != (split == "test"):
                continue
            files.append(str(split_root / name / file))
            labels.append(label)
    if not files:
        raise FileNotFoundError(
            f"dataset folder {root} has no images for split {split!r}; expected"
            f" <class>/<image> with one of {', '.join(decoding.EXTENSIONS)}."
        )
    # The test images may lack a class.
    empty = [name for name in class_names if not found[name].images]
    if empty and (hashed or split == "train"):
        raise ValueError(
            f"{split_root / empty[0]} is a class without images; remove it, or put "
            f"some there ({', '.join(decoding.EXTENSIONS)})."
        )
    _check_depth(split_root, found)
    _warn_of_left_out(root, split_root, found)
    _warn_of_missing_classes(split, root, class_names, set(labels))
    order = interleave_classes(labels)
    return Listing(
        [files[i] for i in order], np.array(labels, np.int32)[order], class_names
    )


def read(file: str) -> bytes:
    """Reads a file that holds an image.

    Raises:
      ValueError: naming the file, if it is empty or cannot be read.
    """
    try:
        encoded = Path(file).read_bytes()
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}.") from error
    if not encoded:
        raise ValueError(f"{file} cannot be read as an image: it is empty.")
    return encoded


def describe(path: str) -> str:
    """Returns the name of the data in results; stored results have its wording."""
    return f"pictures in {Path(path).expanduser().resolve().name}"


def _folder_names(path: Path) -> tuple[str, ...]:
    return tuple(
        sorted(
            entry.name
            for entry in _entries(str(path))
            if entry.is_dir() and not entry.name.startswith(".")
        )
    )


def _entries(path: str) -> list[os.DirEntry[str]]:
    # A folder may have a million files: `Path` objects and their status would take
    # minutes.
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except OSError as error:
        raise ValueError(f"folder {path} cannot be read: {error.strerror}.") from error


def _walk(path: Path) -> _Found:
    """Returns the files below a class folder, sorted by folder, then by name."""
    found = _Found([], [])
    if not path.is_dir():
        return found
    for folder, names in sorted(_folders(str(path), ())):
        below = os.path.relpath(folder, path)
        for name in sorted(names):
            kind = found.images if _is_image(name) else found.others
            kind.append(name if below == "." else f"{below}/{name}")
    return found


def _folders(
    path: str, above: Collection[tuple[int, int]]
) -> Iterator[tuple[str, list[str]]]:
    """Yields a folder and those below it, with the names of the files in each."""
    status = os.stat(path)
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        raise ValueError(f"{path} is a link to a folder that contains it.")
    names = []
    for entry in _entries(path):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _folders(entry.path, (*above, identity))
        elif _is_image(entry.name) and not entry.is_file():
            # Tools that manage data leave such links until files are fetched.
            raise ValueError(
                f"{entry.path} is a link to a file that does not exist, or no file."
            )
        else:
            names.append(entry.name)
    yield path, names


def _is_image(name: str) -> bool:
    return name.lower().endswith(decoding.EXTENSIONS)


def _check_no_splits(root: Path) -> None:
    """Refuses a folder of splits that are not called train, test or val."""
    splits = [n for n in _folder_names(root) if n.lower() in _OTHER_SPLIT_NAMES]
    if splits:
        raise ValueError(
            f"dataset folder {root} has folders {', '.join(splits)}, which look like "
            "splits but would be read as classes; call splits train and test (or val)."
        )


def _check_depth(split_root: Path, found: dict[str, _Found]) -> None:
    """Refuses a single class whose images all lie in folders below it."""
    if len(found) > 1:
        return
    ((name, (images, _)),) = found.items()
    if all("/" in image for image in images):
        raise ValueError(
            f"{split_root} has one class folder, {name}, and all images lie in folders "
            f"below it; if those are the classes, they must be in {split_root} itself."
        )


def _warn_of_left_out(root: Path, split_root: Path, found: dict[str, _Found]) -> None:
    left_out = [
        f"{name}/{file}" for name, each in found.items() for file in each.others
    ]
    outside = [
        entry.name
        for entry in _entries(str(split_root))
        if not entry.name.startswith(".")
        and _is_image(entry.name)
        and not entry.is_dir()
    ]
    left_out += outside
    if left_out:
        count = len(left_out) + sum(len(each.images) for each in found.values())
        kinds = collections.Counter(os.path.splitext(file)[1] for file in left_out)
        shown = ", ".join(
            f"{number} {suffix or 'without extension'}"
            for suffix, number in kinds.most_common(_SHOWN)
        )
        more = " and others" if len(kinds) > _SHOWN else ""
        logging.warning(
            "%d of %d files in %s are left out: %s%s, such as %s; read are %s in class "
            "folders.",
            len(left_out),
            count,
            split_root,
            shown,
            more,
            left_out[0],
            ", ".join(decoding.EXTENSIONS),
        )
    if split_root != root:
        splits = {name for names in _SPLIT_FOLDERS.values() for name in names}
        beside = [name for name in _folder_names(root) if name not in splits]
        if beside:
            logging.warning(
                "%d folders in %s are left out, because they are no split: %s%s.",
                len(beside),
                root,
                ", ".join(beside[:_SHOWN]),
                ", ..." if len(beside) > _SHOWN else "",
            )


def _warn_of_missing_classes(
    split: str, root: Path, class_names: Sequence[str], labels: Collection[int]
) -> None:
    missing = [name for i, name in enumerate(class_names) if i not in labels]
    if missing:
        logging.warning(
            "The %s split of %s has no images of %d of %d classes: %s%s.",
            split,
            root,
            len(missing),
            len(class_names),
            ", ".join(missing[:_SHOWN]),
            ", ..." if len(missing) > _SHOWN else "",
        )


def _is_test(class_name: str, file_name: str) -> bool:
    # The digest takes bytes, since a name on disk may not be valid text.
    digest = hashlib.sha256(os.fsencode(f"{class_name}/{file_name}")).digest()
    return digest[0] % _TEST_FRACTION == 0
