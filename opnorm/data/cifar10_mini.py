"""The default data set, a subset of CIFAR-10 inside the package.

``assets/README.md`` states the source and the terms of the images.
"""

import functools
import importlib.resources
import io
import tarfile

import numpy as np

from opnorm.data import decoding
from opnorm.data.dataset import Dataset, interleave_classes

ARCHIVE = "assets/cifar10_mini.tar.xz"
DESCRIPTION = "CIFAR-10 (JPEG-75), embedded subset"
SPLITS = ("train", "test")


@functools.lru_cache(maxsize=len(SPLITS))
def load(split: str) -> Dataset:
    """Decodes one split and keeps it in memory, so the second call costs nothing.

    Args:
      split: "train" (850 images per class) or "test" (100 per class).

    Returns:
      The split, one image of each class following the other, with read-only arrays.
    """
    resource = importlib.resources.files("opnorm.data").joinpath(ARCHIVE)
    members: list[tuple[str, str, bytes]] = []
    with tarfile.open(fileobj=io.BytesIO(resource.read_bytes()), mode="r:xz") as tar:
        for member in tar:
            member_split, class_name, _ = member.name.split("/")
            file = tar.extractfile(member)
            if member_split == split and file is not None:
                members.append((class_name, member.name, file.read()))
    class_names = tuple(sorted({class_name for class_name, _, _ in members}))
    names = [name for _, name, _ in members]
    images = decoding.stack(
        [decoding.decode(encoded, name) for _, name, encoded in members], names
    )
    labels = np.array([class_names.index(c) for c, _, _ in members], np.int32)
    order = interleave_classes(labels)
    images, labels = images[order], labels[order]
    # All callers get these arrays, so none may write to them.
    images.flags.writeable = labels.flags.writeable = False
    return Dataset(images, labels, class_names, "cifar10_mini", DESCRIPTION)
