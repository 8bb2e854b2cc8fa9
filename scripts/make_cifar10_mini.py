"""Packs the embedded dataset, opnorm/data/assets/cifar10_mini.tar.xz.

The script is needed only to make that archive again, from CIFAR-10 as JPEG files in
class folders::

    python scripts/make_cifar10_mini.py --source=DIR

with ``DIR/train/<class>/*.jpg`` and ``DIR/test/<class>/*.jpg``. The first images of
each class, in the order of their names, are taken byte for byte. The archive depends on
these images and on the version of liblzma alone.
"""

import io
import lzma
import tarfile
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

_SOURCE = flags.DEFINE_string(
    "source",
    None,
    "Folder with train/<class>/*.jpg and test/<class>/*.jpg.",
    required=True,
)
_OUTPUT = flags.DEFINE_string(
    "output", "opnorm/data/assets/cifar10_mini.tar.xz", "Archive to write."
)
_TRAIN_PER_CLASS = flags.DEFINE_integer(
    "train_per_class", 850, "Training images of each class.", lower_bound=1
)
_TEST_PER_CLASS = flags.DEFINE_integer(
    "test_per_class", 100, "Test images of each class.", lower_bound=1
)
_MAX_BYTES = flags.DEFINE_integer(
    "max_bytes", 3_000_000, "Refuse to write a larger archive.", lower_bound=1
)


def pack(source: Path, per_class: dict[str, int]) -> bytes:
    """Packs the first images of each class of each split.

    Args:
      source: folder of split folders of class folders of JPEG files.
      per_class: how many images of each class a split gets.

    Returns:
      A ``.tar.xz`` archive with sorted names and without owners or times.

    Raises:
      ValueError: if a class has too few images.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for split, count in sorted(per_class.items()):
            folders = sorted(p for p in (source / split).iterdir() if p.is_dir())
            for folder in folders:
                files = sorted(folder.glob("*.jpg"))[:count]
                if len(files) < count:
                    raise ValueError(f"{folder} has only {len(files)} images.")
                for file in files:
                    content = file.read_bytes()
                    # A fresh TarInfo has no owner and no time.
                    member = tarfile.TarInfo(f"{split}/{folder.name}/{file.name}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return lzma.compress(buffer.getvalue(), preset=9 | lzma.PRESET_EXTREME)


def main(argv: Sequence[str]) -> None:
    """Writes the archive."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    source = Path(_SOURCE.value or "").expanduser()
    for split in ("train", "test"):
        if not (source / split).is_dir():
            raise app.UsageError(f"--source: {source / split} is not a folder.")
    per_class = {"train": _TRAIN_PER_CLASS.value, "test": _TEST_PER_CLASS.value}
    try:
        archive = pack(source, per_class)
    except ValueError as error:
        raise app.UsageError(f"--source: {error}") from error
    if len(archive) > _MAX_BYTES.value:
        raise app.UsageError(
            f"the archive would have {len(archive)} bytes, --max_bytes allows"
            f" {_MAX_BYTES.value}: take fewer images."
        )
    output = Path(_OUTPUT.value or "")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(archive)
    print(f"{output}: {len(archive)} bytes")


if __name__ == "__main__":
    app.run(main)
