"""A validation split, made of examples of the train split that no training sees.

A hash says of each example by itself whether it is held out, so that the choice depends
neither on the order of the examples, nor on a seed, nor on how many of them are used.
New examples move none of the old ones, and the examples of a smaller fraction are held
out by a larger one too.

Images in memory are hashed by their pixels: copies of an image under other names, or
with other labels, stay on one side. Streamed images are hashed by their names, since a
hash of their content would read the whole data set at every start.
"""

import dataclasses
import hashlib
import struct
from collections.abc import Iterable

import numpy as np

from opnorm.data.dataset import Dataset, interleave_classes

# Folders without splits choose their test images by a hash of names; with this in front
# the two choices are independent.
_SALT = b"opnorm validation split\n"


def split_validation(dataset: Dataset, fraction: float) -> tuple[Dataset, Dataset]:
    """Splits a data set in memory by a hash of the pixels of each image.

    Args:
      dataset: the examples, N of them.
      fraction: expected fraction of the different images that is held out, in (0, 1).

    Returns:
      (train, validation). Both take one example of each class in turn. Every example is
      in one of them, and copies of an image are in the same.

    Raises:
      ValueError: for a fraction out of range, or if one side would be empty.

    Example:
      >>> from opnorm import data
      >>> whole = data.load("cifar10_mini", split="train")
      >>> train, validation = data.split_validation(whole, 0.1)
      >>> len(train) + len(validation) == len(whole)
      True
      >>> 0.08 < len(validation) / len(whole) < 0.12
      True
    """
    shape = struct.pack(f"<{len(dataset.image_shape)}q", *dataset.image_shape)
    identities = (shape + image.tobytes() for image in dataset.images)
    held_out = choose(identities, len(dataset), fraction)
    train, validation = (
        _take(dataset, np.flatnonzero(chosen)) for chosen in (~held_out, held_out)
    )
    return train, validation


def check_disjoint(train_set: Dataset, validation_set: Dataset) -> None:
    """Checks that no image is in both of two sets.

    Raises:
      ValueError: with the number of images of the validation set that the other has.
    """
    trained = {hash(image.tobytes()) for image in train_set.images}
    shared = sum(hash(image.tobytes()) in trained for image in validation_set.images)
    if shared:
        raise ValueError(
            f"{shared} of {len(validation_set)} images of the validation set are in "
            "the training set too; load it with training.load_train_set(config), which "
            "leaves them out."
        )


def choose(identities: Iterable[bytes], count: int, fraction: float) -> np.ndarray:
    """Chooses the examples that are held out, each one by its own identity.

    Args:
      identities: N byte strings; equal ones are on the same side.
      count: N.
      fraction: expected fraction of different identities that is chosen, in (0, 1).

    Returns:
      (N,) bool, true where the example is held out.

    Raises:
      ValueError: for a fraction out of range, or if one side would be empty.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"validation_fraction is {fraction}; it must be in (0, 1).")
    leading = b"".join(
        hashlib.sha256(_SALT + identity).digest()[:8] for identity in identities
    )
    # Numbers in [0, 1) with 53 bits, which float64 holds exactly.
    numbers = (np.frombuffer(leading, ">u8") >> np.uint64(11)) * 2.0**-53
    held_out: np.ndarray = numbers < fraction
    number = int(held_out.sum())
    if number in (0, count):
        raise ValueError(
            f"validation_fraction is {fraction}; it holds out {number} of {count} "
            "examples, and at least one example must be on either side."
        )
    return held_out


def check_split(split: str, splits: tuple[str, ...], fraction: float) -> None:
    """Raises a ValueError for an unknown split, or a fraction that does not fit it."""
    if split not in splits:
        raise ValueError(f"split is {split!r}; it may be {', '.join(splits)}.")
    if not 0 <= fraction < 1:
        raise ValueError(f"validation_fraction is {fraction}; it must be in [0, 1).")
    if split == "validation" and not fraction:
        raise ValueError(
            f"validation_fraction is {fraction}; the split 'validation' needs a "
            "fraction above 0, the one that the network was trained without."
        )


def _take(dataset: Dataset, indices: np.ndarray) -> Dataset:
    order = indices[interleave_classes(dataset.labels[indices])]
    return dataclasses.replace(
        dataset, images=dataset.images[order], labels=dataset.labels[order]
    )
