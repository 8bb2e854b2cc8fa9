"""data: datasets by name."""

from opnorm.data import cifar10_mini, folder, tfds_source
from opnorm.data.dataset import Dataset, take_balanced

NAMES = ("cifar10_mini", *tfds_source.DESCRIPTIONS, "folder:/path")
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
) -> Dataset:
    """Loads one split of a dataset into host memory, as bytes.

    Nothing is downloaded unless ``download`` is true.

    Args:
      name: "cifar10_mini", embedded in the package; "cifar10", "cifar100", "mnist" or
        "svhn_cropped", as TensorFlow Datasets prepares them; or "folder:/path", a
        folder with ``train/<class>/`` and ``test/<class>/`` (or ``val``), or with
        ``<class>/`` alone, of which a fixed fifth is then the test split.
      split: "train" or "test".
      data_dir: where TensorFlow Datasets keeps its data; None for ``TFDS_DATA_DIR`` or
        ``~/tensorflow_datasets``. Other sources have no use for it.
      download: whether a TensorFlow dataset that is not there may be downloaded and
        prepared; this needs TensorFlow.
      limit: keep at most this many examples, drawn at random, as many of each class as
        possible; None keeps all.
      seed: which examples ``limit`` keeps; at least 0.

    Returns:
      The split. ``cifar10_mini``, folders and limited datasets take one example of
      each class in turn, so that any prefix is balanced.

    Raises:
      ValueError: for an unknown name or split, a bad limit or seed, damaged pictures.
      FileNotFoundError: if the data are not there; it lists the ways to get some.
    """
    check_name(name)
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; it may be {' or '.join(SPLITS)}.")
    if name.startswith(_FOLDER):
        dataset = folder.load(name.removeprefix(_FOLDER), split)
    elif name == "cifar10_mini":
        dataset = cifar10_mini.load(split)
    else:
        dataset = tfds_source.load(name, split, data_dir, download)
    return dataset if limit is None else take_balanced(dataset, limit, seed)


def check_name(name: str) -> None:
    """Raises a ValueError unless ``load`` knows ``name``; reads no data."""
    if name.startswith(_FOLDER) and name != _FOLDER:
        return
    if name not in NAMES or name.startswith(_FOLDER):
        raise ValueError(f"dataset {name!r} is unknown; use one of {', '.join(NAMES)}.")
