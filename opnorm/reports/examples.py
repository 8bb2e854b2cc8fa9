"""Sets of adversarial images, and their files.

A set is a ``.npz`` file of arrays, or a folder of PNG files for images of 8 bits:

- ``adversarial/000012.png`` and ``clean/000012.png``, the pair at place 12 of the set;
- ``examples.json``, which has the labels and the facts on the attack.

Files are read without pickle, and everything in them is checked.
"""

import io
import json
import math
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from opnorm import analysis, linalg, runs
from opnorm.runs import files, json_values

_FORMAT = 1
_JSON = "examples.json"
# Folders of the clean and of the attacked images.
_FOLDERS = ("clean", "adversarial")
_REQUIRED = ("images", "x_adv", "labels", "p", "epsilon")
_ROWS = ("labels", "adversarial", "lost", "number")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# Larger files are refused before they are unpacked.
_LARGEST = 2**33
# A budget such as 8/255 may have been rounded to float32.
_ROUNDING = 1e-6
_UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)


class ExampleSet(NamedTuple):
    """N images with their attacked versions.

    Attributes:
      images: ``(N, ...)``, the clean images: uint8, or float32 in [0, 1].
      x_adv: the attacked images, shape and dtype of ``images``; the clean image where
        the attack failed.
      labels: ``(N,)`` int32, the true classes.
      adversarial: ``(N,)`` bool: the attacked network is wrong at ``x_adv``.
      lost: ``(N,)`` bool: an adversarial point was found, and no rounded image within
        the budget is adversarial. False everywhere unless the set was quantized.
      number: ``(N,)`` int32, number of each image among those that were attacked.
      p: exponent of the norm, in [1, inf].
      epsilon: budget in [0, 1] pixel units; inf for an attack without a budget.
      attack: name of the attack, with its options.
      data: name of the data.
    """

    images: np.ndarray
    x_adv: np.ndarray
    labels: np.ndarray
    adversarial: np.ndarray
    lost: np.ndarray
    number: np.ndarray
    p: float
    epsilon: float
    attack: str = ""
    data: str = ""


def adversarial_examples(
    f: linalg.Network,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    attack: analysis.AttackFactory,
    epsilon: float | None,
    quantize: int | None = None,
    data: str = "",
    batch_size: int = 100,
    key: jax.Array,
) -> ExampleSet:
    """Attacks every example and returns the attacked images as a set.

    Args:
      f: ``(B, ...) -> (B, K)``, in inference mode; best a callable pytree, see
        :mod:`opnorm.analysis`.
      images: ``(N, ...)``, uint8 or float in [0, 1].
      labels: ``(N,)`` int, the true classes.
      attack: ``epsilon -> attack``, not targeted; see
        :func:`opnorm.analysis.attack_examples`.
      epsilon: budget in [0, 1] pixel units; None for an attack without a budget, whose
        points then count at any distance.
      quantize: steps from 0 to 1 to round the images to, 255 for files of 8 bits; None
        for float32.
      data: name of the data.
      batch_size: rows per compiled call.
      key: typed key of the attack.

    Raises:
      ValueError: for a targeted attack, and for the reasons of
        :func:`opnorm.analysis.attack_examples` and :func:`quantize_examples`.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from opnorm import attacks, reports
      >>> def f(x):
      ...     return jnp.concatenate([x - 0.5, 0.5 - x], axis=1)
      >>> def fgm(epsilon):
      ...     return attacks.fgm(p=2, epsilon=epsilon)
      >>> images, labels = np.uint8([[130], [250], [3]]), np.zeros(3, int)
      >>> found = reports.adversarial_examples(
      ...     f, images, labels, attack=fgm, epsilon=0.1, quantize=255,
      ...     key=jax.random.key(0)
      ... )
      >>> found.x_adv.ravel(), found.adversarial
      (array([105, 250,   3], dtype=uint8), array([ True, False,  True]))
    """
    pattern = attack(jax.numpy.zeros(1)) if callable(attack) else attack
    if pattern.stages[0].targeted:
        raise ValueError("attack is targeted; its labels would be classes to reach.")
    found = analysis.attack_examples(
        f,
        images,
        labels,
        attack=attack,
        epsilons=None if epsilon is None else [epsilon],
        batch_size=batch_size,
        key=key,
        keep_points=True,
    )
    assert found.x_adv is not None
    examples = ExampleSet(
        images=images if images.dtype == np.uint8 else images.astype(np.float32),
        x_adv=found.x_adv[0],
        labels=np.asarray(labels, np.int32),
        adversarial=found.success[0],
        lost=np.zeros(len(images), bool),
        number=np.arange(len(images), dtype=np.int32),
        p=pattern.p,
        epsilon=math.inf if epsilon is None else float(epsilon),
        attack=pattern.name,
        data=data,
    )
    if quantize is None:
        return _as_float(examples)
    return quantize_examples(f, examples, levels=quantize, batch_size=batch_size)


def _as_float(examples: ExampleSet) -> ExampleSet:
    """Returns a set whose clean images are float32 in [0, 1], as its attacked ones."""
    images = np.asarray(analysis.to_pixels(examples.images), np.float32)
    return examples._replace(images=images)


def quantize_examples(
    f: linalg.Network,
    examples: ExampleSet,
    *,
    levels: int = 255,
    batch_size: int = 100,
) -> ExampleSet:
    """Rounds a set so that its images stay adversarial and within the budget.

    Args:
      f: the attacked network.
      examples: a set whose attacked images are float32. Its clean images are best
        uint8.
      levels: number of steps from 0 to 1. With 255 the images of the result are uint8.
      batch_size: images in a compiled call.

    Returns:
      The rounded set. ``lost`` is True where an adversarial point was found and no
      rounded one is adversarial; these rows are the clean image.

    Raises:
      ValueError: for clean images of uint8 and other levels than 255, clean images
        that are not multiples of ``1 / levels``, and for the reasons of
        :func:`opnorm.analysis.quantize`.
    """
    levels = linalg.check_count("levels", levels, 1)
    if examples.images.dtype == np.uint8 and levels != 255:
        raise ValueError(f"levels is {levels}; images of uint8 have 255.")
    steps = _steps(examples.images, levels)
    if steps is None:
        raise ValueError(
            f"images have values that are no multiples of 1/{levels}; rounding the "
            "clean images would change the budget."
        )
    found = analysis.quantize(
        f,
        examples.images,
        examples.x_adv,
        examples.labels,
        p=examples.p,
        epsilon=None if examples.epsilon == math.inf else examples.epsilon,
        levels=levels,
        batch_size=batch_size,
    )
    kept = found.kept & examples.adversarial
    keep = kept.reshape(-1, *[1] * (steps.ndim - 1))
    whole = np.where(keep, np.round(levels * found.x_adv.astype(np.float64)), steps)

    def typed(array: np.ndarray) -> np.ndarray:
        if levels == 255:
            return array.astype(np.uint8)
        return (array / levels).astype(np.float32)

    return examples._replace(
        images=typed(steps),
        x_adv=typed(whole),
        adversarial=kept,
        lost=examples.adversarial & ~kept,
    )


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
    _check(examples, "examples")
    place = Path(path)
    if place.suffix == ".npz":
        place.parent.mkdir(parents=True, exist_ok=True)
        stream = io.BytesIO()
        arrays = {"format": _FORMAT, **examples._asdict()}
        np.savez_compressed(stream, **{k: np.asarray(v) for k, v in arrays.items()})  # type: ignore[arg-type]
        runs.write_whole(place, stream.getvalue())
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
    _check(examples, str(place))
    return examples._replace(
        labels=examples.labels.astype(np.int32), number=examples.number.astype(np.int32)
    )


def _check(examples: ExampleSet, name: str) -> None:
    """Raises ValueError unless the arrays of a set hold together."""
    images, x_adv = examples.images, examples.x_adv
    count = len(np.atleast_1d(images))
    if images.ndim < 2 or not count or images.dtype not in (np.uint8, np.float32):
        raise ValueError(
            f"{name}: images has shape {images.shape} and dtype {images.dtype}; it "
            "must be (N, ...), N at least 1, uint8 or float32."
        )
    if x_adv.shape != images.shape or x_adv.dtype != images.dtype:
        raise ValueError(
            f"{name}: x_adv has shape {x_adv.shape} and dtype {x_adv.dtype}; it must "
            f"be {images.dtype} of shape {images.shape}, as images."
        )
    for field in _ROWS:
        array = getattr(examples, field)
        kinds = "b" if field in ("adversarial", "lost") else "iu"
        if array.shape != (count,) or array.dtype.kind not in kinds:
            raise ValueError(
                f"{name}: {field} has shape {array.shape} and dtype {array.dtype}; it "
                f"must be ({count},) and {'bool' if kinds == 'b' else 'integer'}."
            )
        if kinds == "iu" and (array.min() < 0 or array.max() >= 2**31):
            raise ValueError(f"{name}: {field} has values outside [0, 2^31).")
    linalg.check_exponent(f"{name}: p", examples.p)
    if not examples.epsilon >= 0:
        raise ValueError(f"{name}: epsilon is {examples.epsilon}; it must be >= 0.")
    _check_values(examples, name)


def _check_values(examples: ExampleSet, name: str) -> None:
    """Raises ValueError for pixels outside [0, 1], or images outside the budget."""
    beyond = 0
    # A few images at a time, since float64 takes eight times the memory of uint8.
    for first in range(0, len(examples.labels), 100):
        pair = [
            _wide(each[first : first + 100])
            for each in (examples.images, examples.x_adv)
        ]
        for field, pixels in zip(("images", "x_adv"), pair, strict=True):
            if not (pixels.min() >= 0 and pixels.max() <= 1):
                raise ValueError(
                    f"{name}: {field} has values from {pixels.min():g} to "
                    f"{pixels.max():g}; they must be in [0, 1]."
                )
        difference = (pair[1] - pair[0]).reshape(len(pair[0]), -1)
        length = np.linalg.norm(difference, examples.p, axis=1)
        beyond += int(np.sum(length > _limit(examples, pair[0])))
    if beyond:
        raise ValueError(
            f"{name}: {beyond} of {len(examples.labels)} attacked images are further "
            f"than epsilon = {examples.epsilon:g} from the clean ones."
        )


def _wide(images: np.ndarray) -> np.ndarray:
    """Returns pixels in [0, 1] as float64, so that steps of 8 bits are exact."""
    return images / 255.0 if images.dtype == np.uint8 else images.astype(np.float64)


def _limit(examples: ExampleSet, clean: np.ndarray) -> np.ndarray:
    """The budget of each image, with an allowance for rounding.

    A float32 entry is rounded at most by half a unit of itself, as in
    :func:`opnorm.attacks.parts.within_budget`. Images of 8 bits are exact.
    """
    rows = clean.reshape(len(clean), -1)
    limit = examples.epsilon * (1 + _ROUNDING) * np.ones(len(rows))
    if examples.images.dtype == np.uint8 or examples.epsilon == math.inf:
        return limit
    unit = linalg.machine_epsilon(np.float32)
    size = np.linalg.norm(rows, examples.p, axis=1)
    widened: np.ndarray = limit + unit * (2 * size + math.sqrt(rows.shape[1]) * limit)
    return widened


def _steps(images: np.ndarray, levels: int) -> np.ndarray | None:
    """Returns images as multiples of ``1 / levels``; None if they are none."""
    if images.dtype == np.uint8:
        return images.astype(np.float64)
    scaled = levels * images.astype(np.float64)
    steps = np.round(scaled)
    return steps if np.all(np.abs(scaled - steps) <= 1e-6 * levels) else None


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
        **{name: getattr(examples, name).tolist() for name in _ROWS},
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
    for name in _ROWS:
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
