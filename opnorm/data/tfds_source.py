"""data: standard datasets as TensorFlow Datasets prepares them on disk.

Prepared data are read without TensorFlow, in either file format, and without a look
at the network. Only preparing them (``download=True``) needs both.
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

from opnorm.data.dataset import Dataset

DESCRIPTIONS = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "mnist": "MNIST",
    "svhn_cropped": "SVHN",
}
SPLITS = ("train", "test")


def load(name: str, split: str, data_dir: str | None, download: bool) -> Dataset:
    """Reads one split of a prepared dataset into memory; prepares it first if asked.

    Args:
      name: a key of ``DESCRIPTIONS``.
      split: "train" or "test".
      data_dir: where TensorFlow Datasets keeps its data; None for ``TFDS_DATA_DIR`` or
        ``~/tensorflow_datasets``.
      download: whether data that are not there may be downloaded and prepared.

    Returns:
      The split in the order in which it lies on disk (shuffled when it was prepared).

    Raises:
      FileNotFoundError: if the data are not there and ``download`` is false.
      ValueError: if they should be downloaded and TensorFlow is not installed.
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
            f" folder (--data_dir); use a folder of class folders of pictures"
            f" (--dataset=folder:/path); use the embedded --dataset=cifar10_mini."
        )
    return _read(name, split, prepared)


def data_root(data_dir: str | None) -> Path:
    """Where TensorFlow Datasets keeps its data, if ``data_dir`` does not say it."""
    default = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    return Path(data_dir or default).expanduser()


def find_prepared(root: Path) -> Path | None:
    """The newest version of the dataset in ``root`` that is complete on disk."""
    versions = {}
    for info in root.glob("*/dataset_info.json"):
        parts = info.parent.name.split(".")
        if all(part.isdigit() for part in parts):
            versions[tuple(map(int, parts))] = info.parent
    return versions[max(versions)] if versions else None


def _prepare(name: str, root: Path) -> None:
    # A download that cannot be prepared afterwards is minutes lost: look first.
    if importlib.util.find_spec("tensorflow") is None:
        raise ValueError(
            f"download: preparing {name!r} needs TensorFlow, which is not installed"
            " (`pip install tensorflow`; reading the prepared data does not need it)."
        )
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=str(root), file_format="array_record")
    builder.download_and_prepare()


def _read(name: str, split: str, prepared: Path) -> Dataset:
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(prepared))
    features = builder.info.features
    file_format = read_file_format(prepared)
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
    """The format of a prepared dataset's files, such as "array_record"."""
    return json.loads((prepared / "dataset_info.json").read_text())["fileFormat"]


def _tfrecords(file: Path) -> Iterator[bytes]:
    """The records of one file: length, its checksum, the bytes, their checksum."""
    with file.open("rb") as stream:
        while header := stream.read(12):
            (length,) = struct.unpack("<Q", header[:8])
            record = stream.read(length)
            if len(record) < length or len(stream.read(4)) < 4:
                raise ValueError(f"{file} is damaged: it ends inside a record.")
            yield record
