"""Data sets in host memory."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """One split of a data set of labelled images, in host memory.

    Other examples, such as rows of a table, are in the place of images. They can be
    measured, and no network of this library is trained on them.

    Attributes:
      images: (N, H, W, C) uint8; for other examples (N, ...) float32 in [0, 1].
      labels: (N,) int32 in [0, num_classes).
      class_names: the name of each label.
      name: the name that ``load`` was given, such as "cifar10_mini".
      description: the name of the data in results, such as
        "CIFAR-10 (JPEG-75), embedded subset".

    Raises:
      ValueError: naming the array, if images or labels have another shape or dtype,
        floating examples are outside of [0, 1], or a label is no class, such as -1,
        which stands for unknown labels in some data sets.

    Example:
      >>> import numpy as np
      >>> from opnorm import data
      >>> images = np.zeros((4, 2, 2, 3), np.uint8)
      >>> labels = np.array([0, 1, 0, 1], np.int32)
      >>> split = data.Dataset(images, labels, ("cat", "dog"), "pets", "my pets")
      >>> len(split), split.num_classes, split.image_shape
      (4, 2, (2, 2, 3))
      >>> split.slice(1, 3).labels.tolist()
      [1, 0]
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    name: str
    description: str

    def __post_init__(self) -> None:
        bytes_ = self.images.ndim == 4 and self.images.dtype == np.uint8
        floats = self.images.ndim >= 2 and self.images.dtype == np.float32
        if not (bytes_ or floats):
            raise ValueError(
                f"images is {self.images.dtype} of shape {self.images.shape}; it must "
                "be uint8 of shape (N, H, W, C), or float32 of shape (N, ...)."
            )
        # NaN is in no range.
        if floats and not np.all((self.images >= 0) & (self.images <= 1)):
            raise ValueError(
                f"images of {self.name!r} has values from {self.images.min():g} to "
                f"{self.images.max():g}; floating examples must be in [0, 1], such as "
                "(x - low) / (high - low), which the network undoes."
            )
        labels, wanted = self.labels, (len(self.images),)
        if labels.shape != wanted or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(
                f"labels is {labels.dtype} of shape {labels.shape}; it must be "
                f"integers of shape {wanted}."
            )
        # JAX would silently take the nearest class for a label that is no class.
        outside = (labels < 0) | (labels >= len(self.class_names))
        if outside.any():
            raise ValueError(
                f"{outside.sum()} of {len(labels)} labels of {self.name!r} are no "
                f"class, such as {labels[outside][0]}; there are "
                f"{len(self.class_names)} classes."
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_classes(self) -> int:
        """The number of classes, whether or not this split has examples of each."""
        return len(self.class_names)

    def slice(self, first: int | None, last: int | None) -> "Dataset":
        """Returns the examples ``first``, ..., ``last - 1``; None stands for an end.

        Raises:
          ValueError: if there is no such example.
        """
        kept = slice(first, last)
        if not len(self.labels[kept]):
            raise ValueError(
                f"the slice {first}:{last} of {len(self)} examples is empty."
            )
        return dataclasses.replace(
            self, images=self.images[kept], labels=self.labels[kept]
        )

    def pixels(self) -> jax.Array:
        """Returns the examples as float32; bytes are divided by 255."""
        if self.images.dtype == np.uint8:
            return to_float(self.images)
        return jnp.asarray(self.images)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape (H, W, C) of one image, or that of another example."""
        return self.images.shape[1:]


def to_float(
    images: jax.Array | np.ndarray, *, dtype: DTypeLike = jnp.float32
) -> jax.Array:
    """Computes ``images / 255``, the pixels that networks and attacks take.

    Args:
      images: uint8, any shape. Under ``jit`` the bytes travel to the device and are
        converted there.
      dtype: floating dtype of the result.

    Returns:
      An array of the same shape with values in [0, 1].

    Raises:
      ValueError: if ``images`` is not uint8.
    """
    if images.dtype != np.uint8:
        raise ValueError(f"images has dtype {images.dtype}; it must be uint8.")
    # bfloat16 has no 255 and would round it to 256 before the division.
    wide = jnp.asarray(images).astype(jnp.promote_types(dtype, jnp.float32))
    return (wide / 255).astype(dtype)


def interleave_classes(labels: np.ndarray | Sequence[int]) -> np.ndarray:
    """Computes the order that takes one example of each class in turn.

    Examples of one class keep their order, and every prefix of the result is as
    balanced as the classes allow.

    Args:
      labels: (N,) integers.

    Returns:
      (N,) int64 indices, a permutation.
    """
    labels = np.asarray(labels)
    by_class = np.argsort(labels, kind="stable")
    first = np.searchsorted(labels[by_class], labels[by_class])
    rank = np.empty(len(labels), np.int64)
    rank[by_class] = np.arange(len(labels)) - first
    return np.lexsort((labels, rank))


def take_balanced(dataset: Dataset, limit: int, seed: int) -> Dataset:
    """Draws at most ``limit`` examples at random, as many of each class as possible.

    Args:
      dataset: the examples to draw from.
      limit: number of examples to keep, at least 1; all if there are fewer.
      seed: random seed of the choice, at least 0.

    Returns:
      A dataset in which one example of each class follows the other.

    Raises:
      ValueError: if ``limit`` is below 1 or ``seed`` below 0.
    """
    check_limit(limit, seed)
    order = np.random.default_rng(seed).permutation(len(dataset))
    order = order[interleave_classes(dataset.labels[order])][:limit]
    return dataclasses.replace(
        dataset, images=dataset.images[order], labels=dataset.labels[order]
    )


def crop_middles(dataset: Dataset, image_size: int) -> Dataset:
    """Keeps the middle ``image_size`` rows and columns of each image.

    Raises:
      ValueError: if the size is below 1 or larger than the images, or the examples are
        no images.
    """
    if len(dataset.image_shape) != 3:
        raise ValueError(
            f"image_size is {image_size}; examples of {dataset.name!r} have the shape "
            f"{dataset.image_shape}, so leave it out."
        )
    height, width, _ = dataset.image_shape
    if not 1 <= image_size <= min(height, width):
        raise ValueError(
            f"image_size is {image_size}; images of {dataset.name!r} are "
            f"{height}x{width}, so it must be from 1 to {min(height, width)}."
        )
    top, left = (height - image_size) // 2, (width - image_size) // 2
    middle = dataset.images[:, top : top + image_size, left : left + image_size]
    return dataclasses.replace(dataset, images=np.ascontiguousarray(middle))


def randomize_labels(dataset: Dataset, fraction: float, seed: int) -> Dataset:
    """Gives some examples labels that are drawn evenly from all classes.

    The examples are drawn at random. Some of them draw their own label again.

    Args:
      dataset: the examples.
      fraction: fraction of the examples that get new labels, in [0, 1].
      seed: random seed of both draws, at least 0.

    Raises:
      ValueError: for a fraction or a seed out of range.

    Source: Zhang et al. 2017; Farnia et al. 2019, Fig. 4, where all labels are random.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction is {fraction}; it must be in [0, 1].")
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must be at least 0.")
    generator = np.random.default_rng(seed)
    chosen = generator.permutation(len(dataset))[: round(fraction * len(dataset))]
    labels = dataset.labels.copy()
    labels[chosen] = generator.integers(dataset.num_classes, size=len(chosen))
    return dataclasses.replace(dataset, labels=labels)


def check_units(dataset: Dataset) -> None:
    """Raises a ValueError if images were divided by 255 before they became bytes."""
    if dataset.images.dtype == np.uint8 and dataset.images.max(initial=0) == 1:
        raise ValueError(
            f"images of {dataset.name!r} have no value above 1; they must be bytes up "
            "to 255, which are divided by 255 for the network."
        )


def check_limit(limit: int, seed: int) -> None:
    """Raises a ValueError if ``limit`` is below 1 or ``seed`` below 0."""
    if limit < 1:
        raise ValueError(f"limit is {limit}; it must be at least 1.")
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must be at least 0.")
