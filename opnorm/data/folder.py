"""data: any folder of class folders of pictures.

Two layouts are understood::

    path/train/<class>/<picture>, path/test/<class>/<picture>    (test or val)
    path/<class>/<picture>

The second has no split of its own: a fifth of the pictures, chosen by a hash of
``<class>/<picture>``, is the test split, the others the training split, and adding
pictures moves none of the old ones.
"""

import hashlib
from pathlib import Path

import numpy as np

from opnorm.data import decoding
from opnorm.data.dataset import Dataset, interleave_classes

SPLITS = ("train", "test")

_SPLIT_FOLDERS = {"train": ("train",), "test": ("test", "val")}
_TEST_FRACTION = 5


def load(path: str, split: str) -> Dataset:
    """Reads every picture of one split.

    Args:
      path: the folder; ``~`` is expanded.
      split: "train" or "test".

    Returns:
      The split, one picture of each class following the other. Labels number the
      sorted names of the class folders (of the training split, where there is one).

    Raises:
      FileNotFoundError: if the folder, the split or a picture in it does not exist.
      ValueError: naming the file, if a picture is damaged or its size differs; naming
        the class, if the test split has one that the training split lacks.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"dataset folder {root} does not exist.")
    split_roots = {
        name: [root / folder for folder in folders if (root / folder).is_dir()]
        for name, folders in _SPLIT_FOLDERS.items()
    }
    hashed = not any(split_roots.values())
    if hashed:
        split_root, class_root = root, root
    elif split_roots[split]:
        split_root = split_roots[split][0]
        class_root = (split_roots["train"] or split_roots["test"])[0]
    else:
        wanted = " or ".join(_SPLIT_FOLDERS[split])
        raise FileNotFoundError(f"dataset folder {root} has no folder {wanted}.")

    class_names = _folder_names(class_root)
    unknown = sorted(set(_folder_names(split_root)) - set(class_names))
    if unknown:
        raise ValueError(f"{split_root / unknown[0]} is a class that train lacks.")
    pictures, labels, names = [], [], []
    for label, class_name in enumerate(class_names):
        for file in _picture_files(split_root / class_name):
            if hashed and _is_test(class_name, file.name) != (split == "test"):
                continue
            pictures.append(decoding.decode(file.read_bytes(), str(file)))
            labels.append(label)
            names.append(str(file))
    if not pictures:
        raise FileNotFoundError(
            f"dataset folder {root} has no pictures for split {split!r}; expected"
            f" <class>/<picture> with one of {', '.join(decoding.EXTENSIONS)}."
        )
    order = interleave_classes(labels)
    return Dataset(
        images=decoding.stack(pictures, names)[order],
        labels=np.array(labels, np.int32)[order],
        class_names=class_names,
        name=f"folder:{path}",
        description=f"pictures in {root.resolve().name}",
    )


def _folder_names(path: Path) -> tuple[str, ...]:
    return tuple(
        sorted(
            entry.name
            for entry in path.iterdir()
            if entry.is_dir() and not entry.name.startswith(".")
        )
    )


def _picture_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    return sorted(
        entry
        for entry in path.iterdir()
        if entry.suffix.lower() in decoding.EXTENSIONS
        and not entry.name.startswith(".")
        and entry.is_file()
    )


def _is_test(class_name: str, file_name: str) -> bool:
    digest = hashlib.sha256(f"{class_name}/{file_name}".encode()).digest()
    return digest[0] % _TEST_FRACTION == 0
