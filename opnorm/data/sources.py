"""Data sets by name."""

import numpy as np

from opnorm.data import (
    array_files,
    cifar10_mini,
    folder,
    holding_out,
    streaming,
    tfds_source,
)
from opnorm.data.dataset import Dataset, crop_middles, take_balanced

NAMES = (
    "cifar10_mini",
    *tfds_source.DESCRIPTIONS,
    "folder:/path",
    "npz:/file.npz",
    *streaming.NAMES,
)
SPLITS = streaming.SPLITS

_FOLDER = "folder:"
_NPZ = "npz:"


def load(
    name: str = "cifar10_mini",
    *,
    split: str,
    data_dir: str | None = None,
    download: bool = False,
    limit: int | None = None,
    seed: int = 0,
    image_size: int | None = None,
    resize: int | None = None,
    validation_fraction: float = 0.0,
) -> Dataset:
    """Loads one split of a dataset into host memory; images as bytes.

    Nothing is downloaded unless ``download`` is true.

    Args:
      name: "cifar10_mini", embedded in the package; "cifar10", "cifar100", "mnist" or
        "svhn_cropped", as TensorFlow Datasets prepares them; or "folder:/path", a
        folder with ``train/<class>/`` and ``test/<class>/`` (or ``val``), or with
        ``<class>/`` alone, a fixed fifth of which is the test split; or
        "npz:/file.npz", arrays ``x`` and ``y`` of any shape (N, ...), floating in
        [0, 1] or uint8, for the test split, and ``x_train`` and ``y_train`` for the
        train split; or "imagenet2012",
        "image_folder:/path" or "tiny_imagenet:/path", as for :func:`open_stream`, whose
        images may have any size: the middles of these images are loaded.
      split: "train", "validation" or "test".
      data_dir: where TensorFlow Datasets keeps its data; None for ``TFDS_DATA_DIR`` or
        ``~/tensorflow_datasets``. Other sources ignore it.
      download: whether a TensorFlow dataset that is not there may be downloaded and
        prepared; this needs TensorFlow.
      limit: keep at most this many examples, drawn at random, as many of each class as
        possible; None keeps all.
      seed: random seed of the examples that ``limit`` keeps; at least 0.
      image_size: side, in pixels, of the middle of each image that is loaded. Needed
        where images have any size; elsewhere None loads whole images.
      resize: length of the shorter side of an image of any size before its middle is
        cropped, at least ``image_size``; None for ``image_size`` times 256 / 224.
        Images that have one size are not resized.
      validation_fraction: fraction of the train split, in [0, 1), that is the split
        "validation" and left out of "train"; see :func:`split_validation` and
        :func:`open_stream`. ``limit`` counts what is left. The test split is the same
        for all fractions.

    Returns:
      The split. ``cifar10_mini``, folders and limited datasets take one example of
      each class in turn, so any prefix is balanced.

    Raises:
      ValueError: for an unknown name or split, a bad limit, seed, size or
        validation_fraction, or damaged images.
      FileNotFoundError: if the data are not there; the error lists the ways to get
        data.

    Example:
      >>> from opnorm import data
      >>> test = data.load("cifar10_mini", split="test", limit=20)
      >>> test.images.shape, test.images.dtype.name
      ((20, 32, 32, 3), 'uint8')
      >>> test.class_names[:3]
      ('airplane', 'automobile', 'bird')
      >>> test.labels[:4].tolist()
      [0, 1, 2, 3]
    """
    check_name(name)
    holding_out.check_split(split, SPLITS, validation_fraction)
    if streaming.is_streamed(name):
        if image_size is None:
            raise ValueError(
                f"image_size is None, but the images of {name!r} have different sizes;"
                " give the side of the crops in pixels, such as 224."
            )
        stream = streaming.open_stream(
            name,
            split=split,
            data_dir=data_dir,
            limit=limit,
            seed=seed,
            validation_fraction=validation_fraction,
        )
        return stream.centre_crops(
            np.arange(len(stream)), image_size=image_size, resize=resize
        )
    if resize is not None:
        raise ValueError(
            f"resize is {resize}, but the images of {name!r} have one size already;"
            " leave it out."
        )
    stored = "test" if split == "test" else "train"
    if name.startswith(_NPZ):
        dataset = array_files.load(name.removeprefix(_NPZ), stored)
    elif name.startswith(_FOLDER):
        dataset = folder.load(name.removeprefix(_FOLDER), stored)
    elif name == "cifar10_mini":
        dataset = cifar10_mini.load(stored)
    else:
        dataset = tfds_source.load(name, stored, data_dir, download)
    if validation_fraction and stored == "train":
        # Before a crop, so that the size of images does not change the choice.
        parts = holding_out.split_validation(dataset, validation_fraction)
        dataset = parts[split == "validation"]
    if image_size is not None:
        dataset = crop_middles(dataset, image_size)
    return dataset if limit is None else take_balanced(dataset, limit, seed)


def check_name(name: str) -> None:
    """Raises a ValueError unless ``load`` knows ``name``; reads no data."""
    for start in (_FOLDER, _NPZ):
        if name.startswith(start) and name != start:
            return
    if streaming.is_streamed(name):
        return
    if name not in ("cifar10_mini", *tfds_source.DESCRIPTIONS):
        raise ValueError(f"dataset {name!r} is unknown; use one of {', '.join(NAMES)}.")
