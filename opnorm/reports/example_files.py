"""Files of sets of adversarial images.

A set is a ``.npz`` file of arrays, or a folder of PNG files for images of 8 bits:

- ``adversarial/000012.png`` and ``clean/000012.png``, the pair at place 12 of the set;
- ``examples.json``, which has the labels and the facts on the attack.

Files are read without pickle, and everything in them is checked.
"""

import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from opnorm import runs
from opnorm.reports.examples import ROWS, ExampleSet, check
from opnorm.runs import files, json_values

_FORMAT = 1
_JSON = "examples.json"
# Folders of the clean and of the attacked images.
_FOLDERS = ("clean", "adversarial")
_REQUIRED = ("images", "x_adv", "labels", "p", "epsilon")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# Larger files are refused before they are unpacked.
_LARGEST = 2**33
_UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)


def check_place(path: str | os.PathLike[str], *, quantized: bool) -> None:
    """Raises ValueError unless a set can be saved there; nothing is written.

    Args:
      path: as for :func:`save_examples`.
      quantized: whether the images are those of 8 bits.
    """
    place = Path(path)
    for above in place.parents:
        if above.is_file():
            raise ValueError(f"path is {place}; {above} is a file.")
    if place.suffix == ".npz":
        if place.is_dir():
            raise ValueError(f"path is {place}; it is a folder, not a file.")
        return
    if place.is_file():
        raise ValueError(
            f"path is {place}; it must end in .npz, or be a folder for PNG files."
        )
    if not quantized:
        raise ValueError(
            f"path is {place}, a folder for PNG files, and the images are not of 8 "
            "bits; quantize to 255 levels, or give a path that ends in .npz."
        )
    if place.is_dir():
        files.check_links(place)
        if {each.name for each in place.iterdir()} - {_JSON, *_FOLDERS}:
            raise ValueError(
                f"path is {place}; it must be new, empty, or hold a set of examples."
            )


def save_examples(path: str | os.PathLike[str], examples: ExampleSet) -> None:
    """Saves a set as a ``.npz`` file, or as a folder of PNG files.

    Args:
      path: ends in ".npz"; otherwise a folder, which is new, empty, or holds an earlier
        set that is replaced.
      examples: the set; its images are uint8 for PNG files.

    Raises:
      ValueError: for a set that does not hold together, a path that cannot be written
        to, or images that PNG files cannot hold.

    Example:
      >>> import tempfile
      >>> import numpy as np
      >>> from opnorm import reports
      >>> images = np.zeros((1, 2, 2, 3), np.uint8)
      >>> found = reports.ExampleSet(
      ...     images, images + np.uint8(3), np.array([1]), np.array([True]),
      ...     np.array([False]), np.array([7]), p=np.inf, epsilon=4 / 255
      ... )
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     reports.save_examples(f"{folder}/png", found)
      ...     reports.load_examples(f"{folder}/png").x_adv.max()
      np.uint8(3)
    """
    check_place(path, quantized=examples.x_adv.dtype == np.uint8)
    check(examples, "examples")
    place = Path(path)
    if place.suffix == ".npz":
        place.parent.mkdir(parents=True, exist_ok=True)
        runs.write_arrays(place, {"format": _FORMAT, **examples._asdict()})
        return
    _save_images(place, examples)


def load_examples(path: str | os.PathLike[str]) -> ExampleSet:
    """Reads a set that :func:`save_examples`, or another program, has written.

    A ``.npz`` file of another program needs the arrays images, x_adv, labels, p and
    epsilon; without the others all images count as adversarial.

    Args:
      path: a ``.npz`` file, or a folder of PNG files.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: naming the path, for a file that cannot be read, arrays of wrong
        shapes, dtypes or values, or an attacked image outside the budget.
    """
    place = Path(path)
    if not place.exists():
        raise FileNotFoundError(f"path is {place}; there is no such file.")
    fields = _read_images(place) if place.is_dir() else _read_arrays(place)
    if str(fields.pop("format", _FORMAT)) != str(_FORMAT):
        raise ValueError(f"{place} is of another format than {_FORMAT}.")
    missing = [name for name in _REQUIRED if name not in fields]
    if missing:
        raise ValueError(f"{place} has no {', '.join(missing)}.")
    count = len(np.atleast_1d(fields["labels"]))
    defaults: dict[str, Any] = {
        "adversarial": np.ones(count, bool),
        "lost": np.zeros(count, bool),
        "number": np.arange(count),
    }
    known = {name: fields[name] for name in ExampleSet._fields if name in fields}
    try:
        numbers = {name: float(known[name]) for name in ("p", "epsilon")}
        texts = {name: str(known.get(name, "")) for name in ("attack", "data")}
    except (TypeError, ValueError):
        raise ValueError(f"{place}: p and epsilon must be numbers.") from None
    examples = ExampleSet(**{**defaults, **known, **numbers, **texts})
    check(examples, str(place))
    return examples._replace(
        labels=examples.labels.astype(np.int32), number=examples.number.astype(np.int32)
    )


def _read_arrays(place: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(place) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > _LARGEST:
            raise ValueError(f"it unpacks to {size} bytes, more than {_LARGEST}")
        with np.load(place, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except _UNREADABLE as error:
        raise ValueError(f"{place} is no .npz file of plain arrays: {error}.") from None


def _save_images(place: Path, examples: ExampleSet) -> None:
    from PIL import Image

    if examples.images.ndim != 4 or examples.images.shape[-1] not in _MODES:
        raise ValueError(
            f"images has shape {examples.images.shape}; PNG files hold (N, H, W, C) "
            f"with C in {', '.join(map(str, _MODES))}."
        )
    mode = _MODES[examples.images.shape[-1]]
    # An old list would describe images that are being replaced.
    (place / _JSON).unlink(missing_ok=True)
    for folder, images in zip(_FOLDERS, (examples.images, examples.x_adv), strict=True):
        (place / folder).mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(images):
            file = _image_file(place, folder, number)
            file.unlink(missing_ok=True)
            array = image[..., 0] if mode == "L" else image
            # A link that somebody else puts there is not followed.
            with file.open("xb") as stream:
                Image.fromarray(array).save(stream, format="png")
    facts = {name: getattr(examples, name) for name in ("attack", "data")}
    listed = {
        "format": _FORMAT,
        "p": examples.p,
        "epsilon": examples.epsilon,
        **facts,
        **{name: getattr(examples, name).tolist() for name in ROWS},
    }
    runs.write_whole(place / _JSON, json.dumps(runs.as_json(listed), indent=1))


def _image_file(place: Path, folder: str, number: int) -> Path:
    return place / folder / f"{number:06d}.png"


def _read_images(place: Path) -> dict[str, Any]:
    if not (place / _JSON).is_file():
        raise ValueError(f"{place} has no {_JSON}; it holds no set of examples.")
    listed = json_values.read(place / _JSON)
    if not isinstance(listed, Mapping) or not isinstance(listed.get("labels"), list):
        raise ValueError(f"{place / _JSON} must hold labels, a list.")
    count = len(listed["labels"])
    fields: dict[str, Any] = dict(listed)
    for name in ROWS:
        if name in fields:
            fields[name] = _as_array(fields[name], name, place)
    for name, folder in zip(("images", "x_adv"), _FOLDERS, strict=True):
        names = [_image_file(place, folder, number) for number in range(count)]
        fields[name] = _stack([_read_image(file) for file in names], place / folder)
    return fields


def _as_array(values: Any, name: str, place: Path) -> np.ndarray:
    try:
        return np.array(values)
    except ValueError:
        raise ValueError(f"{place}: {name} must be a list of numbers.") from None


def _read_image(file: Path) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(file, formats=("PNG",)) as image:
            if image.mode not in _MODES.values():
                raise ValueError(f"its mode is {image.mode}")
            array = np.asarray(image)
    except (*_UNREADABLE, Image.DecompressionBombError, SyntaxError) as error:
        raise ValueError(
            f"{file} is no PNG file of 8 bits in grey, RGB or RGBA: {error}."
        ) from None
    return array[..., None] if array.ndim == 2 else array


def _stack(images: list[np.ndarray], folder: Path) -> np.ndarray:
    shapes = sorted({image.shape for image in images})
    if len(shapes) != 1:
        raise ValueError(
            f"{folder} has images of the shapes {shapes}; they must have one shape."
        )
    return np.stack(images)
