"""Data sets too large for memory, decoded by threads ahead of their use."""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from opnorm import extras
from opnorm.data import folder, holding_out, tiny_imagenet, views
from opnorm.data.dataset import Dataset, check_limit, interleave_classes
from opnorm.data.encoded import (
    IMAGENET,
    EncodedImages,
    FolderImages,
    ImagenetImages,
)

NAMES = (IMAGENET, "image_folder:/path", "tiny_imagenet:/path")
SPLITS = ("train", "validation", "test")

_FOLDER = "image_folder:"
_TINY_IMAGENET = "tiny_imagenet:"
# Examples that are read at once where the caller gives no number.
_BLOCK = 256
# Number of batches that are decoded ahead.
_BATCHES_AHEAD = 2

Task = tuple[int, np.ndarray]
Batch = tuple[np.ndarray, np.ndarray]
View = Callable[..., np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
    """One split of a data set of labelled images on disk; its examples have numbers.

    Attributes:
      encoded: the images on disk, not decoded.
      kept: (N,) int64, the numbers of the examples in ``encoded``; None for all.
      name: the name that ``open_stream`` was given, such as "imagenet2012".
    """

    encoded: EncodedImages
    kept: np.ndarray | None
    name: str

    def __len__(self) -> int:
        return len(self.encoded) if self.kept is None else len(self.kept)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each label."""
        return self.encoded.class_names

    @property
    def num_classes(self) -> int:
        """The number of classes, whether or not this split has examples of each."""
        return len(self.class_names)

    @property
    def description(self) -> str:
        """The name of the data in results."""
        return self.encoded.description

    def batches(
        self,
        tasks: Sequence[Task],
        *,
        image_size: int,
        augment: bool = True,
        least_area: float = 0.08,
        flip: bool = True,
        num_threads: int | None = None,
    ) -> Iterator[Batch]:
        """Decodes batches for training: random resized crops, mirrored at random.

        The view of an example is a function of the seed of its task and of its number
        alone: it depends neither on threads, nor on the other examples of the batch,
        nor on the first task.

        Args:
          tasks: for each batch the seed of its views, at least 0, and the numbers of
            its examples, (b,) integers in [0, len(stream)). b is the same for all but
            the last. Items are read when needed, so the sequence may compute them.
          image_size: side of the views in pixels.
          augment: if false, views are those of ``evaluation_batches``.
          least_area: smallest fraction of its image that a view shows, in (0, 1].
          flip: whether half of the views are mirrored left to right.
          num_threads: threads that decode; None for one per core.

        Returns:
          An iterator of images (b, image_size, image_size, 3) uint8 and labels (b,)
          int32. Closing it ends its threads.

        Raises:
          ValueError: if an argument is out of range; from the iterator, naming the
            image, if one is damaged.

        Source: Szegedy et al., "Going Deeper with Convolutions" (2015), section 6;
        Finlay & Oberman (2019) train with ``least_area`` 0.08 to 0.5.
        """
        _check_at_least("image_size", image_size, 1)
        if not 0 < least_area <= 1:
            raise ValueError(f"least_area is {least_area}; it must be in (0, 1].")
        view: View
        if augment:
            view = functools.partial(
                views.training_view,
                image_size=image_size,
                least_area=least_area,
                flip=flip,
            )
        else:
            view = functools.partial(_central_view, size=image_size, resize=None)
        return self._decode(tasks, view, image_size, num_threads)

    def evaluation_batches(
        self,
        batch_size: int,
        *,
        image_size: int,
        resize: int | None = None,
        num_threads: int | None = None,
    ) -> Iterator[Batch]:
        """Decodes all examples in order: the middle of each image, never mirrored.

        Args:
          batch_size: examples per batch, at least 1; the last batch may have fewer.
          image_size: side of the views in pixels.
          resize: length of the shorter side of an image before the crop, at least
            ``image_size``; None for ``image_size`` times 256 / 224.
          num_threads: threads that decode; None for one per core.

        Returns:
          An iterator of images (b, image_size, image_size, 3) uint8 and labels (b,)
          int32. Closing it ends its threads.

        Raises:
          ValueError: if an argument is out of range; from the iterator, naming the
            image, if one is damaged.
        """
        _check_at_least("batch_size", batch_size, 1)
        return self._evaluation_batches(
            np.arange(len(self)), batch_size, image_size, resize, num_threads
        )

    def centre_crops(
        self, indices: np.ndarray, *, image_size: int, resize: int | None = None
    ) -> Dataset:
        """Decodes some examples into memory, with the views of ``evaluation_batches``.

        Args:
          indices: (n,) integers in [0, len(stream)), n at least 1.
          image_size: side of the views in pixels.
          resize: see ``evaluation_batches``.

        Returns:
          The n examples.

        Raises:
          ValueError: if an argument is out of range or an image is damaged.
        """
        indices = np.asarray(indices)
        batches = self._evaluation_batches(indices, _BLOCK, image_size, resize, None)
        images = np.empty((len(indices), image_size, image_size, 3), np.uint8)
        labels = np.empty(len(indices), np.int32)
        for number, (some_images, some_labels) in enumerate(batches):
            block = slice(number * _BLOCK, (number + 1) * _BLOCK)
            images[block], labels[block] = some_images, some_labels
        return Dataset(images, labels, self.class_names, self.name, self.description)

    def _evaluation_batches(
        self,
        indices: np.ndarray,
        batch_size: int,
        image_size: int,
        resize: int | None,
        num_threads: int | None,
    ) -> Iterator[Batch]:
        _check_at_least("image_size", image_size, 1)
        if resize is not None:
            _check_at_least("resize", resize, image_size)
        if not len(indices):
            raise ValueError("indices is empty; there must be at least one example.")
        tasks = [
            (0, indices[first : first + batch_size])
            for first in range(0, len(indices), batch_size)
        ]
        view = functools.partial(_central_view, size=image_size, resize=resize)
        return self._decode(tasks, view, image_size, num_threads)

    def _decode(
        self,
        tasks: Sequence[Task],
        view: View,
        image_size: int,
        num_threads: int | None,
    ) -> Iterator[Batch]:
        if num_threads is None:
            num_threads = num_cores()
        _check_at_least("num_threads", num_threads, 1)
        if not len(tasks):
            return iter(())
        return _assemble(_Examples(self, tasks, view), image_size, num_threads)


def _central_view(
    encoded: bytes, name: str, *, seed: int, index: int, size: int, resize: int | None
) -> np.ndarray:
    del seed, index
    shorter = round(size * 256 / 224) if resize is None else resize
    return views.central_view(encoded, name, image_size=size, resize=shorter)


def is_streamed(name: str) -> bool:
    """Tells whether the images of a data set stay on disk until they are needed.

    Args:
      name: name of a data set, known or not.

    Returns:
      Whether ``open_stream`` takes the name.
    """
    return name == IMAGENET or any(
        name.startswith(prefix) and name != prefix
        for prefix in (_FOLDER, _TINY_IMAGENET)
    )


def open_stream(
    name: str,
    *,
    split: str,
    data_dir: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    validation_fraction: float = 0.0,
) -> Stream:
    """Lists the examples of one split; decodes none.

    Args:
      name: "imagenet2012", which the user prepares with TensorFlow Datasets, or
        "image_folder:/path", a folder with the layout of "folder:/path" and images of
        any size; or "tiny_imagenet:/path", the unpacked archive of Tiny-ImageNet.
      split: "train", "validation" or "test". ImageNet's and Tiny-ImageNet's "test" is
        the split that they call validation; "validation" is a part of the train split.
      data_dir: where TensorFlow Datasets keeps its data; None for ``TFDS_DATA_DIR`` or
        ``~/tensorflow_datasets``. Folders ignore it.
      limit: keep at most this many examples, drawn at random, as many of each class as
        possible; None keeps all. Labels of ImageNet are stored with the images; about
        eight images for each class are read to find one of each.
      seed: random seed of the examples that ``limit`` keeps; at least 0.
      validation_fraction: fraction of the train split, in [0, 1), that is the split
        "validation" and left out of "train". A hash of the name of each file below the
        folder chooses it, and for ImageNet a hash of the number of each record, so that
        no image is read. Copies of an image under two names may be on both sides.

    Returns:
      The stream. Folders and limited streams take one example of each class in turn.

    Raises:
      ValueError: for an unknown name or split, a bad limit, seed or
        validation_fraction, or ImageNet in a format without random access.
      FileNotFoundError: if the data are not there; the error says how to get them, or
        which layout a folder should have.
    """
    if not is_streamed(name):
        raise ValueError(
            f"dataset {name!r} is not read from disk image by image; that is done"
            f" with {' and '.join(NAMES)}."
        )
    holding_out.check_split(split, SPLITS, validation_fraction)
    if limit is not None:
        check_limit(limit, seed)
    images: EncodedImages
    stored = "test" if split == "test" else "train"
    if name == IMAGENET:
        images = ImagenetImages(stored, data_dir)
    elif name.startswith(_TINY_IMAGENET):
        path = name.removeprefix(_TINY_IMAGENET)
        listing = tiny_imagenet.list_images(path, stored)
        images = FolderImages(path, listing, tiny_imagenet.DESCRIPTION)
    else:
        path = name.removeprefix(_FOLDER)
        listing = folder.list_images(path, stored)
        images = FolderImages(path, listing, folder.describe(path))
    kept = None
    if validation_fraction and stored == "train":
        held_out = holding_out.choose(
            images.identities(), len(images), validation_fraction
        )
        kept = np.flatnonzero(held_out if split == "validation" else ~held_out)
        if name != IMAGENET:
            # ImageNet's labels are stored with its images, and its order is another.
            kept = kept[interleave_classes(images.labels(kept))]
    if limit is not None and limit < len(images if kept is None else kept):
        kept = _draw(images, limit, seed, kept)
    return Stream(images, kept, name)


def _draw(
    images: EncodedImages, limit: int, seed: int, among: np.ndarray | None = None
) -> np.ndarray:
    """Returns the numbers that ``take_balanced`` would keep, with few labels read."""
    count = len(images) if among is None else len(among)
    order = np.random.default_rng(seed).permutation(count)
    order = order if among is None else among[order]
    num_classes = len(images.class_names)
    wanted = math.ceil(limit / num_classes)
    labels = np.empty(0, np.int32)
    while (
        len(labels) < len(order)
        and np.bincount(labels, minlength=num_classes).min() < wanted
    ):
        block = order[len(labels) : len(labels) + _BLOCK]
        labels = np.concatenate([labels, images.labels(block)])
    drawn: np.ndarray = order[interleave_classes(labels)][:limit]
    return drawn


class _Examples:
    """The decoded examples of all tasks in order, a source that grain reads."""

    def __init__(self, stream: Stream, tasks: Sequence[Task], view: View) -> None:
        self.batch_size = len(tasks[0][1])
        self._length = self.batch_size * (len(tasks) - 1) + len(tasks[-1][1])
        self._stream, self._tasks, self._view = stream, tasks, view
        # A task is read for each of its examples, and reading may compute it.
        self._checked_task = functools.lru_cache(maxsize=8)(self._check_task)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, position: int) -> tuple[np.ndarray, int]:
        task, place = divmod(position, self.batch_size)
        seed, numbers = self._checked_task(task)
        number = int(numbers[place])
        kept = self._stream.kept
        image = self._stream.encoded[number if kept is None else int(kept[number])]
        if not 0 <= image.label < self._stream.num_classes:
            raise ValueError(
                f"{image.name} has the label {image.label}; labels must be in "
                f"[0, {self._stream.num_classes})."
            )
        view = self._view(image.content, image.name, seed=seed, index=number)
        return view, image.label

    def _check_task(self, index: int) -> Task:
        seed, numbers = self._tasks[index]
        first = index * self.batch_size
        count = min(self.batch_size, self._length - first)
        if len(numbers) != count:
            raise ValueError(
                f"tasks[{index}] has {len(numbers)} examples; all but the last must"
                f" have as many as the first, {self.batch_size}."
            )
        if seed < 0:
            raise ValueError(f"the seed of tasks[{index}] is {seed}; it must be >= 0.")
        if np.min(numbers) < 0 or np.max(numbers) >= len(self._stream):
            raise ValueError(
                f"tasks[{index}] has examples {np.min(numbers)} to {np.max(numbers)};"
                f" they must be in [0, {len(self._stream)})."
            )
        return seed, numbers


def _assemble(
    examples: _Examples, image_size: int, num_threads: int
) -> Iterator[Batch]:
    # Imported here, since data sets in memory do not need it.
    with extras.needed("opnorm.data.open_stream", extra="train"):
        import grain

    options = grain.ReadOptions(
        num_threads=num_threads,
        prefetch_buffer_size=max(_BATCHES_AHEAD * examples.batch_size, num_threads),
    )
    decoded = iter(grain.MapDataset.source(examples).to_iter_dataset(options))
    try:
        for first in range(0, len(examples), examples.batch_size):
            count = min(examples.batch_size, len(examples) - first)
            images = np.empty((count, image_size, image_size, 3), np.uint8)
            labels = np.empty(count, np.int32)
            for place in range(count):
                images[place], labels[place] = next(decoded)
            yield images, labels
    finally:
        decoded.close()


def num_cores() -> int:
    """Returns the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _check_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} is {value}; it must be at least {least}.")
