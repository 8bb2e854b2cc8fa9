"""Encoded images that stay on disk and are read one by one.

They lie in folders, of classes or as Tiny-ImageNet's archive has them, or belong to
ImageNet as TensorFlow Datasets prepares it, which is read without TensorFlow.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from opnorm import extras
from opnorm.data import folder, tfds_source

IMAGENET = "imagenet2012"

# ImageNet's own test split has no labels.
_IMAGENET_SPLITS = {"train": "train", "test": "validation"}
# Number of files that may be open for other reasons.
_SPARE_FILES = 256
# A listing reads the sizes of this many files, or of up to twice as many.
_SIZES_READ = 1000


class EncodedImage(NamedTuple):
    """One example, not decoded.

    Attributes:
      content: the bytes of an image file.
      label: the number of its class.
      name: name of the image in errors.
    """

    content: bytes
    label: int
    name: str


class EncodedImages(Protocol):
    """A split on disk. Threads may read from it at the same time."""

    class_names: tuple[str, ...]
    description: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> EncodedImage: ...

    def labels(self, indices: np.ndarray) -> np.ndarray:
        """Returns the labels of some examples, (n,) int32."""
        ...

    def listing(self, indices: np.ndarray) -> Iterator[str]:
        """Yields lines that identify some examples, without decoding them."""
        ...

    def identities(self) -> Iterator[bytes]:
        """Yields the name or number of every example, without reading it."""
        ...


class FolderImages:
    """One split of a folder.

    Args:
      path: the folder; ``~`` is expanded.
      listing: its images, from :func:`opnorm.data.folder.list_images` or
        :func:`opnorm.data.tiny_imagenet.list_images`.
      description: the name of the data in results.
    """

    def __init__(self, path: str, listing: folder.Listing, description: str) -> None:
        self._root = Path(path).expanduser()
        self._listing = listing
        self.class_names = listing.class_names
        self.description = description

    def __len__(self) -> int:
        return len(self._listing.files)

    def __getitem__(self, index: int) -> EncodedImage:
        file = self._listing.files[index]
        return EncodedImage(folder.read(file), int(self._listing.labels[index]), file)

    def labels(self, indices: np.ndarray) -> np.ndarray:
        """Returns the labels of some examples, (n,) int32."""
        labels: np.ndarray = self._listing.labels[indices]
        return labels

    def listing(self, indices: np.ndarray) -> Iterator[str]:
        """Yields names below the folder, labels, and the sizes of some files.

        The sizes distinguish a folder from a copy in another resolution. Reading the
        size of each of a million files would take minutes.
        """
        sized = max(1, len(indices) // _SIZES_READ)
        for place, index in enumerate(indices.tolist()):
            file = self._listing.files[index]
            yield f"{os.path.relpath(file, self._root)} {self._listing.labels[index]}"
            if place % sized == 0:
                yield str(os.stat(file).st_size)

    def identities(self) -> Iterator[bytes]:
        """Yields the path of every file below the folder."""
        # Names on disk may not be valid text. `relpath` would take ten times as long.
        prefix = f"{self._root}{os.sep}"
        for file in self._listing.files:
            yield os.fsencode(file.removeprefix(prefix))


class ImagenetImages:
    """One split of ImageNet (ILSVRC 2012), in its order on disk.

    Args:
      split: "train" or "test", which is ImageNet's validation split.
      data_dir: where TensorFlow Datasets keeps its data; None for ``TFDS_DATA_DIR`` or
        ``~/tensorflow_datasets``.

    Raises:
      FileNotFoundError: if the split is not prepared there; it says how to prepare it.
      ValueError: if it is prepared in a format without random access, or as
        :func:`opnorm.data.tfds_source.open_prepared`.
    """

    description = "ImageNet (ILSVRC 2012)"

    def __init__(self, split: str, data_dir: str | None) -> None:
        root = tfds_source.data_root(data_dir)
        prepared = tfds_source.find_prepared(root / IMAGENET)
        if prepared is None:
            raise FileNotFoundError(
                f"dataset {IMAGENET!r} is not prepared in {root}. Its licence wants the"
                " archives downloaded by hand: get ILSVRC2012_img_train.tar and"
                " ILSVRC2012_img_val.tar from image-net.org, put them into"
                f" {root}/downloads/manual, and prepare them once with `tfds build"
                f" {IMAGENET} --file_format=array_record --data_dir={root}` (needs `pip"
                " install tensorflow`). If they are prepared elsewhere, give that"
                " folder (--data_dir). Unpacked into class folders they can be read as"
                " they are (--dataset=image_folder:/path)."
            )
        with extras.needed("opnorm.data.open_stream", extra="train"):
            import tensorflow_datasets as tfds

        file_format = tfds_source.read_file_format(prepared)
        if file_format != "array_record":
            raise ValueError(
                f"{prepared} is in file format {file_format!r}; images are read one"
                " by one, which needs array_record: `tfds convert_format"
                f" --dataset_version_dir={prepared} --out_file_format=array_record"
                f" --out_dir=/other/{IMAGENET}/{prepared.name}`, then"
                " --data_dir=/other."
            )
        builder = tfds_source.open_prepared(prepared)
        self._split = _IMAGENET_SPLITS[split]
        if self._split not in builder.info.splits:
            raise FileNotFoundError(
                f"{prepared} has no split {self._split!r}; its archive was not there"
                " when it was prepared."
            )
        _allow_open_files(len(builder.info.splits[self._split].filepaths))
        self._shard_lengths = builder.info.splits[self._split].shard_lengths
        self._source: Any = builder.as_data_source(
            split=self._split, decoders={"image": tfds.decode.SkipDecoding()}
        )
        self.class_names = tuple(builder.info.features["label"].names)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> EncodedImage:
        example = self._source[index]
        file_name = example["file_name"]
        name = file_name.decode() if isinstance(file_name, bytes) else str(file_name)
        return EncodedImage(
            example["image"],
            int(example["label"]),
            f"{IMAGENET} {self._split} image {name}",
        )

    def labels(self, indices: np.ndarray) -> np.ndarray:
        """Returns the labels of some examples, (n,) int32; reads their records."""
        examples: Sequence[Any] = self._source.__getitems__(indices.tolist())
        return np.array([example["label"] for example in examples], np.int32)

    def listing(self, indices: np.ndarray) -> Iterator[str]:
        """Yields the number of records of each file and the numbers of examples."""
        yield f"{self._split} {list(self._shard_lengths)}"
        yield str(indices.tolist())

    def identities(self) -> Iterator[bytes]:
        """Yields the number of every record; its file name would have to be read."""
        return (str(number).encode() for number in range(len(self)))


def _allow_open_files(count: int) -> None:
    """Raises the process's limit on open files towards ``count``, if it is too low.

    Each of the thousand files of ImageNet stays open after its first read, and common
    limits are 256 and 1024.
    """
    try:
        import resource
    except ImportError:  # Windows, which has no such limit.
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + _SPARE_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
