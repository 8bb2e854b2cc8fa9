"""Standard data sets as TensorFlow Datasets prepares them on disk.

Prepared data are read without TensorFlow and without a network connection, in either
file format. Only preparing them (``download=True``) needs both.

TensorFlow Datasets imports the module of every class that ``features.json`` names, so a
folder received from somebody else could run that person's code. Therefore the file is
read here first, and a folder is refused if its file names a class that does not belong
to TensorFlow Datasets.
"""

import importlib.util
import itertools
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from opnorm import extras
from opnorm.data.dataset import Dataset

DESCRIPTIONS = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "mnist": "MNIST",
    "svhn_cropped": "SVHN",
}
SPLITS = ("train", "test")

_MODULE = "tensorflow_datasets.core.features."
# The classes of the features that are read here; none is a program or a path.
_FEATURES = frozenset(
    _MODULE + name
    for name in (
        "class_label_feature.ClassLabel",
        "features_dict.FeaturesDict",
        "image_feature.Image",
        "scalar.Scalar",
        "sequence_feature.Sequence",
        "tensor_feature.Tensor",
        "text_feature.Text",
    )
)
# Keys that name a class: today's two spellings, and that of earlier versions.
_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")


def load(name: str, split: str, data_dir: str | None, download: bool) -> Dataset:
    """Reads one split of a data set into memory, and prepares it before if asked.

    Args:
      name: a key of ``DESCRIPTIONS``.
      split: "train" or "test".
      data_dir: where TensorFlow Datasets keeps its data; None for ``TFDS_DATA_DIR`` or
        ``~/tensorflow_datasets``.
      download: whether data that are not there may be downloaded and prepared.

    Returns:
      The split in its order on disk (shuffled when it was prepared).

    Raises:
      FileNotFoundError: if the data or the split are not there and ``download`` is
        false.
      ValueError: if they should be downloaded and TensorFlow is not installed, or for
        the reasons of :func:`open_prepared`.
    """
    root = data_root(data_dir)
    prepared = find_prepared(root / name)
    if prepared is None and download:
        _prepare(name, root)
        prepared = find_prepared(root / name)
    if prepared is None:
        raise FileNotFoundError(
            f"dataset {name!r} is not prepared in {root}. Ways to get data: download it"
            f" (--download, or download=True; needs `pip install tensorflow` and the"
            f" network); prepare it elsewhere with `tfds build {name}` and give that"
            " folder (--data_dir; a folder that a run names is not used unless it is"
            " given); use a folder of class folders of images"
            f" (--dataset=folder:/path); use the embedded --dataset=cifar10_mini."
        )
    return _read(name, split, prepared)


def data_root(data_dir: str | None) -> Path:
    """Returns the folder of TensorFlow Datasets, ``data_dir`` unless it is None."""
    default = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    return Path(data_dir or default).expanduser()


def find_prepared(root: Path) -> Path | None:
    """Returns the newest version of the data set in ``root`` that is complete."""
    versions = {}
    for info in root.glob("*/dataset_info.json"):
        parts = info.parent.name.split(".")
        if all(part.isdigit() for part in parts):
            versions[tuple(map(int, parts))] = info.parent
    return versions[max(versions)] if versions else None


def open_prepared(prepared: Path) -> Any:
    """Opens a prepared data set after a check of the classes that it names.

    Args:
      prepared: the folder of one version of the data set.

    Returns:
      The ``tfds.core.DatasetBuilder``.

    Raises:
      FileNotFoundError: if ``features.json`` is missing.
      ValueError: if that file cannot be read, or names a class that does not belong to
        TensorFlow Datasets; nothing has been imported then.
    """
    file = prepared / "features.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; prepare the dataset again.")
    _check_features(file)
    with extras.needed("opnorm.data.load", extra="train"):
        import tensorflow_datasets as tfds

    return tfds.builder_from_directory(str(prepared))


def _check_features(file: Path) -> None:
    """Refuses a ``features.json`` that names classes besides those of ``_FEATURES``."""
    try:
        content = json.loads(file.read_text())
        named = set(_named_classes(content))
    # Deep nesting raises RecursionError in Python's parser or in the search.
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read: {error}.") from error
    unknown = sorted(named - _FEATURES)
    if unknown or not named:
        problem = f"names the class {unknown[0]!r}" if unknown else "names no class"
        raise ValueError(
            f"{file} {problem}; a dataset is read only if it consists of TensorFlow "
            "Datasets' own features, because others would be imported and run."
        )


def _named_classes(content: object) -> Iterator[str]:
    """Yields every class that a part of ``features.json`` names, at any depth."""
    if isinstance(content, list):
        for item in content:
            yield from _named_classes(item)
    if isinstance(content, dict):
        for key, value in content.items():
            # A feature may be called "type"; it is a dict then.
            if key in _CLASS_KEYS and not isinstance(value, dict):
                yield value if isinstance(value, str) else repr(value)
            # Features without a format of their own are JSON inside JSON.
            elif key == "json" and isinstance(value, str):
                yield from _named_classes(json.loads(value))
            else:
                yield from _named_classes(value)


def _prepare(name: str, root: Path) -> None:
    # Checked first, since a download that cannot be prepared wastes minutes.
    if importlib.util.find_spec("tensorflow") is None:
        raise ValueError(
            f"download: preparing {name!r} needs TensorFlow, which is not installed"
            " (`pip install tensorflow`; reading the prepared data does not need it)."
        )
    # Preparing may read the files of an earlier preparation.
    for file in root.glob(f"{name}/**/features.json"):
        _check_features(file)
    with extras.needed("opnorm.data.load", extra="train"):
        import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=str(root), file_format="array_record")
    builder.download_and_prepare()


def _read(name: str, split: str, prepared: Path) -> Dataset:
    builder = open_prepared(prepared)
    features = builder.info.features
    file_format = read_file_format(prepared)
    if split not in builder.info.splits:
        raise FileNotFoundError(f"{prepared} has no split {split!r}.")
    if not {"image", "label"} <= set(features) or None in features["image"].shape:
        raise ValueError(
            f"{prepared} has the features {', '.join(sorted(features))}; images of one "
            "size ('image') and their classes ('label') are needed."
        )
    if file_format == "array_record":
        examples: Any = builder.as_data_source(split=split)
    elif file_format == "tfrecord":
        files = builder.info.splits[split].filepaths
        examples = (
            features.deserialize_example_np(record)
            for file in files
            for record in _tfrecords(Path(file))
        )
    else:
        raise ValueError(
            f"{prepared} is in file format {file_format!r}; array_record and tfrecord"
            " can be read."
        )
    dtype = np.dtype(features["image"].np_dtype)
    if dtype != np.uint8:
        # Converted to bytes, 16-bit images would wrap, and floats be black.
        raise ValueError(f"{prepared} has images of dtype {dtype}; it must be uint8.")
    images = np.empty(
        (builder.info.splits[split].num_examples, *features["image"].shape), np.uint8
    )
    labels = np.empty(len(images), np.int32)
    count = 0
    for example in itertools.islice(examples, len(images)):
        images[count] = example["image"]
        labels[count] = example["label"]
        count += 1
    if count < len(images):
        raise ValueError(
            f"{prepared} is damaged: split {split!r} has {count} examples where its"
            f" dataset_info.json says {len(images)}."
        )
    return Dataset(
        images=images,
        labels=labels,
        class_names=tuple(features["label"].names),
        name=name,
        description=DESCRIPTIONS[name],
    )


def read_file_format(prepared: Path) -> str:
    """Returns the format of the files of a data set, such as "array_record"."""
    file = prepared / "dataset_info.json"
    try:
        return str(json.loads(file.read_text())["fileFormat"])
    except (ValueError, RecursionError, TypeError, KeyError) as error:
        raise ValueError(f"{file} cannot be read: {error!r}.") from error


def _tfrecords(file: Path) -> Iterator[bytes]:
    """Yields the records of one file: length, its checksum, bytes, their checksum."""
    with file.open("rb") as stream:
        while header := stream.read(12):
            (length,) = struct.unpack("<Q", header[:8])
            record = stream.read(length)
            if len(record) < length or len(stream.read(4)) < 4:
                raise ValueError(f"{file} is damaged: it ends inside a record.")
            yield record
