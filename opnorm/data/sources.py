"""Data sets by name."""

import numpy as np

from opnorm.data import cifar10_mini, folder, streaming, tfds_source
from opnorm.data.dataset import Dataset, crop_middles, take_balanced

NAMES = (
    "cifar10_mini",
    *tfds_source.DESCRIPTIONS,
    "folder:/path",
    *streaming.NAMES,
)
SPLITS = ("train", "test")

_FOLDER = "folder:"


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
) -> Dataset:
    """Loads one split of a dataset into host memory, as bytes.

    Nothing is downloaded unless ``download`` is true.

    Args:
      name: "cifar10_mini", embedded in the package; "cifar10", "cifar100", "mnist" or
        "svhn_cropped", as TensorFlow Datasets prepares them; or "folder:/path", a
        folder with ``train/<class>/`` and ``test/<class>/`` (or ``val``), or with
        ``<class>/`` alone, a fixed fifth of which is the test split; or "imagenet2012",
        "image_folder:/path" or "tiny_imagenet:/path", as for :func:`open_stream`, whose
        images may have any size: the middles of these images are loaded.
      split: "train" or "test".
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

    Returns:
      The split. ``cifar10_mini``, folders and limited datasets take one example of
      each class in turn, so any prefix is balanced.

    Raises:
      ValueError: for an unknown name or split, a bad limit, seed or size, or damaged
        images.
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
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; it may be {' or '.join(SPLITS)}.")
    if streaming.is_streamed(name):
        return _load_crops(name, split, data_dir, limit, seed, image_size, resize)
    if resize is not None:
        raise ValueError(
            f"resize is {resize}, but the images of {name!r} have one size already;"
            " leave it out."
        )
    if name.startswith(_FOLDER):
        dataset = folder.load(name.removeprefix(_FOLDER), split)
    elif name == "cifar10_mini":
        dataset = cifar10_mini.load(split)
    else:
        dataset = tfds_source.load(name, split, data_dir, download)
    if image_size is not None:
        dataset = crop_middles(dataset, image_size)
    return dataset if limit is None else take_balanced(dataset, limit, seed)


def _load_crops(
    name: str,
    split: str,
    data_dir: str | None,
    limit: int | None,
    seed: int,
    image_size: int | None,
    resize: int | None,
) -> Dataset:
    if image_size is None:
        raise ValueError(
            f"image_size is None, but the images of {name!r} have different sizes;"
            " give the side of the crops in pixels, such as 224."
        )
    stream = streaming.open_stream(
        name, split=split, data_dir=data_dir, limit=limit, seed=seed
    )
    return stream.centre_crops(
        np.arange(len(stream)), image_size=image_size, resize=resize
    )


def check_name(name: str) -> None:
    """Raises a ValueError unless ``load`` knows ``name``; reads no data."""
    if streaming.is_streamed(name) or (name.startswith(_FOLDER) and name != _FOLDER):
        return
    if name not in ("cifar10_mini", *tfds_source.DESCRIPTIONS):
        raise ValueError(f"dataset {name!r} is unknown; use one of {', '.join(NAMES)}.")
