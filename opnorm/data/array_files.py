"""Examples of any shape in files of NumPy arrays, such as tables."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from opnorm.data.dataset import Dataset, interleave_classes

# The arrays of a split; those of the test split have the short names.
_NAMES = {"test": ("x", "y"), "train": ("x_train", "y_train")}


def load(path: str, split: str) -> Dataset:
    """Reads one split of a ``.npz`` file; nothing in the file is executed.

    Args:
      path: a file with the arrays ``x``, ``(N, ...)`` uint8 or floating in [0, 1], and
        ``y``, ``(N,)`` integers, which are the test split. ``x_train`` and ``y_train``
        are the train split, and ``class_names``, ``(K,)`` strings, the names of the
        classes; without them each class is named by its number, up to the largest
        label of the file. ``~`` is expanded.
      split: "train" or "test".

    Returns:
      The split, with one example of each class in turn. Floating examples are float32.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: for a file of another kind, arrays that are missing or of another
        shape, kind or range, or labels that are no classes.
    """
    name = f"npz:{path}"
    arrays = _read(path)
    wanted = _NAMES[split]
    missing = [entry for entry in wanted if entry not in arrays]
    if missing:
        raise ValueError(
            f"dataset {name!r} has no array {' and no array '.join(missing)} for the "
            f"split {split!r}; it has {', '.join(sorted(arrays)) or 'none'}."
        )
    images, labels = (arrays[entry] for entry in wanted)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{wanted[1]} of {name!r} is {labels.dtype} of shape {labels.shape}; it "
            "must be (N,) integers, the class of each example."
        )
    if images.dtype.kind == "f":
        images = images.astype(np.float32)
    dataset = Dataset(
        images=images,
        labels=labels.astype(np.int64),
        class_names=_class_names(arrays, name),
        name=name,
        description=Path(path).name,
    )
    order = interleave_classes(dataset.labels)
    return Dataset(
        images=images[order],
        labels=dataset.labels[order].astype(np.int32),
        class_names=dataset.class_names,
        name=name,
        description=dataset.description,
    )


def _read(path: str) -> dict[str, np.ndarray]:
    place = Path(path).expanduser()
    if not place.is_file():
        raise FileNotFoundError(f"dataset is npz:{path}; there is no such file.")
    try:
        with np.load(place, allow_pickle=False) as found:
            return dict(found)
    # A file .npy has no names, and a damaged archive raises errors of its own.
    except Exception as error:
        raise ValueError(
            f"dataset is npz:{path}; it is no .npz file of plain arrays: {error}"
        ) from error


def _class_names(arrays: Mapping[str, np.ndarray], name: str) -> tuple[str, ...]:
    if "class_names" in arrays:
        names = arrays["class_names"]
        if names.ndim != 1 or names.dtype.kind != "U":
            raise ValueError(
                f"class_names of {name!r} is {names.dtype} of shape {names.shape}; it "
                "must be (K,) strings."
            )
        return tuple(names.tolist())
    labels = [arrays[y] for _, y in _NAMES.values() if y in arrays and arrays[y].size]
    count = 1 + max((int(each.max()) for each in labels), default=-1)
    return tuple(map(str, range(count)))
