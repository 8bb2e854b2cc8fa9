"""The classes that attacks reach, and units of length: --targets, --scale, --mask."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from experiments.common import attack_specs, cache, scales
from experiments.common.records import Record
from opnorm import analysis, data, linalg

# Flags defined here belong to the binary that calls for them.
flags.disclaim_key_flags()

_CHOICES = ("random", "least_likely", "likeliest")
# Folded into the key of the attacks: the random targets have draws of their own.
_DRAW = 2**32 - 1


class Goals(NamedTuple):
    """The goals of the attacks.

    Attributes:
      targets: how the class to reach is chosen, "random", "least_likely" or
        "likeliest"; or the number of one class for all images. None for attacks that
        leave the class of the image.
      scale: the file of the units, or None.
      mask: the file of the entries that may change, or None.
      units: the content of both; None without either.
    """

    targets: str | int | None = None
    scale: str | None = None
    mask: str | None = None
    units: attack_specs.Units | None = None

    @property
    def suffix(self) -> str:
        """The end of the names of the results, which those of plain attacks lack."""
        targeted = "_targeted" if self.targets is not None else ""
        return targeted + ("_weighted" if self.units is not None else "")

    @property
    def key(self) -> dict[str, Any]:
        """The entries that tell kept results apart; none for plain attacks."""
        found: dict[str, Any] = {}
        if self.targets is not None:
            found["targets"] = self.targets
        if self.units is not None:
            found["units"] = self.units.identity
        return found


def define_flags() -> None:
    """Defines the flags that :func:`read` reads."""
    flags.DEFINE_string(
        "targets",
        None,
        "attacks reach a class instead of leaving that of the image: "
        f"{', '.join(_CHOICES)}, each other than the image's own, or the number of a "
        "class, whose own images are left out; writes evaluation_targeted.json",
    )
    flags.DEFINE_string(
        "scale",
        None,
        ".npy file of the units of length, at least 0, of the entries of an image; "
        "lengths are those of the change divided by it. The shape broadcasts against "
        "one image; writes evaluation_weighted.json",
    )
    flags.DEFINE_string(
        "mask",
        None,
        ".npy file of bool, true for the entries of an image that may change; its "
        "shape broadcasts against one image; writes evaluation_weighted.json",
    )


def read() -> Goals:
    """Returns the goals that the flags ask for.

    Raises:
      ValueError or FileNotFoundError: for other targets, files that cannot be read or
        hold other values, or flags that do not fit these.
    """
    given = flags.FLAGS
    goals = Goals(_read_targets(given.targets), given.scale, given.mask)
    if given.scale or given.mask:
        goals = goals._replace(units=_read_units(given.scale, given.mask))
    named = [name for name in ("targets", "scale", "mask") if given[name].value]
    other = ("card", "save_examples", "transfer", "baseline")
    for name in other if named else ():
        if given[name].value:
            raise ValueError(
                f"{name} is {given[name].value} and {named[0]} is "
                f"{given[named[0]].value}; {name} takes attacks without "
                "targets, scale and mask."
            )
    return goals


def _read_targets(text: str | None) -> str | int | None:
    if text is None or text in _CHOICES:
        return text
    if not (text.isascii() and text.isdigit()):
        raise ValueError(
            f"targets is {text}; it must be {', '.join(_CHOICES)}, or the number of a "
            "class from 0 on."
        )
    return int(text)


def _read_units(scale: str | None, mask: str | None) -> attack_specs.Units:
    """Returns the content of the files of --scale and --mask."""
    arrays: dict[str, np.ndarray] = {}
    if scale:
        sizes = arrays["scale"] = _read_array("scale", scale)
        good = sizes.dtype.kind in "iuf" and bool(np.all(np.isfinite(sizes)))
        if not (good and np.all(sizes >= 0) and np.any(sizes > 0)):
            raise ValueError(
                f"scale is {scale}; its numbers must be finite, at least 0 and not all "
                "0."
            )
    if mask:
        chosen = arrays["mask"] = _read_array("mask", mask)
        if chosen.dtype != bool or not np.any(chosen):
            raise ValueError(
                f"mask is {mask}; it must hold bool with an entry that is true, and "
                f"holds {chosen.dtype}."
            )
    identity = cache.identity({}, arrays)
    return attack_specs.Units(arrays.get("scale"), arrays.get("mask"), identity)


def _read_array(flag: str, path: str) -> np.ndarray:
    """Reads a .npy file; nothing in it is executed."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{flag} is {path}; there is no such file.")
    try:
        with Path(path).open("rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(
            f"{flag} is {path}; it must be a .npy file of one array of numbers."
        ) from error


def select(goals: Goals, examples: data.Dataset) -> data.Dataset:
    """Returns the examples that can be attacked: those of a given target are left out.

    Raises:
      ValueError: for a target that is no class, examples of the target alone, or units
        whose shape does not fit the images.
    """
    _check_units(goals, examples.image_shape)
    if not isinstance(goals.targets, int):
        return examples
    if goals.targets >= examples.num_classes:
        raise ValueError(
            f"targets is {goals.targets}; {examples.name} has the classes 0 to "
            f"{examples.num_classes - 1}."
        )
    kept = examples.labels != goals.targets
    if not kept.any():
        raise ValueError(
            f"targets is {goals.targets}; all {len(examples)} examples are of that "
            "class."
        )
    return dataclasses.replace(
        examples, images=examples.images[kept], labels=examples.labels[kept]
    )


def _check_units(goals: Goals, shape: tuple[int, ...]) -> None:
    if goals.units is None:
        return
    for flag in ("scale", "mask"):
        array = getattr(goals.units, flag)
        if array is None:
            continue
        try:
            fits = np.broadcast_shapes(array.shape, shape) == shape
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(
                f"{flag} is {getattr(goals, flag)} with the shape {array.shape}; it "
                f"must broadcast against one image, {shape}."
            )
    if not _free(goals.units, shape).any():
        raise ValueError("mask and scale leave no entry of an image that may change.")


def _free(units: attack_specs.Units, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the entries of an image that may change, of its shape."""
    scale = 1.0 if units.scale is None else units.scale
    mask = True if units.mask is None else units.mask
    return np.broadcast_to(np.where(mask, np.asarray(scale) > 0, False), shape)


def aim(
    f: linalg.Network, examples: data.Dataset, goals: Goals, *, seed: int, batch: int
) -> data.Dataset:
    """Returns the examples with their targets, where there are any, as labels.

    Args:
      f: the network.
      examples: the examples, from :func:`select`.
      goals: the goals.
      seed: seed of random targets.
      batch: examples per compiled call.
    """
    if goals.targets is None:
        return examples
    targets = analysis.choose_targets(
        f,
        examples.images,
        examples.labels,
        goals.targets if isinstance(goals.targets, str) else np.array(goals.targets),
        batch_size=batch,
        key=jax.random.fold_in(jax.random.key(seed), _DRAW),
    )
    return dataclasses.replace(examples, labels=targets)


def facts(goals: Goals, aimed: Sequence[data.Dataset], left_out: int) -> Record:
    """Returns the part of results on the goals; empty for plain attacks.

    Args:
      goals: the goals.
      aimed: for each network the examples with their targets.
      left_out: number of examples that are of the target class.
    """
    found: Record = {}
    names, shape = aimed[0].class_names, aimed[0].image_shape
    if goals.targets is not None:
        labels = np.concatenate([each.labels for each in aimed])
        counts = np.bincount(labels, minlength=len(names)).tolist()
        found["targets"] = {
            "choice": goals.targets,
            "left_out": left_out,
            "counts": dict(zip(names, counts, strict=True)),
        }
    if goals.units is not None:
        free = _free(goals.units, shape)
        found["weights"] = {
            "scale": goals.scale,
            "mask": goals.mask,
            "free_entries": int(free.sum()),
            "entries": free.size,
        }
    return found


def rate(results: Mapping[str, Any]) -> str:
    """Returns the name of the rates in results."""
    return "target reached" if "targets" in results else "accuracy"


def unit(results: Mapping[str, Any]) -> str:
    """Returns the unit of the lengths in results."""
    scale = results.get("weights", {}).get("scale")
    return f"units of {scale}" if scale else scales.PIXELS


def as_text(results: Mapping[str, Any]) -> list[str]:
    """Returns sentences on the goals of results; none for plain attacks."""
    lines = []
    if "targets" in results:
        targets = results["targets"]
        counts = {name: n for name, n in targets["counts"].items() if n}
        if isinstance(targets["choice"], int):
            (name,) = counts
            chosen = (
                f"class {targets['choice']} ({name}) for every image; "
                f"{targets['left_out']} images of that class are left out"
            )
        else:
            chosen = f"{_PHRASES[targets['choice']]}: {_counted(counts)}"
        lines.append(
            "Attacks are targeted: they succeed where the network chooses the target. "
            f"The target is {chosen}. The rate at epsilon 0 is that of images that the "
            "network takes for the target without an attack. The sanity checks attack "
            "without targets."
        )
    if "weights" in results:
        weights = results["weights"]
        parts = []
        if weights["scale"]:
            parts.append(
                f"the change of each entry is divided by its unit in {weights['scale']}"
            )
        parts.append(
            f"{weights['free_entries']} of the {weights['entries']} entries of an "
            "image may change" + (f" ({weights['mask']})" if weights["mask"] else "")
        )
        lines.append(
            f"Lengths are weighted: {'; '.join(parts)}. The sanity checks and the "
            "spectrum are of plain lengths, so they are left out."
        )
    return lines


_PHRASES = {
    "random": "a random class other than the image's own",
    "least_likely": "the class other than the image's own with the smallest logit",
    "likeliest": "the class other than the image's own with the largest logit",
}
_LISTED = 10


def _counted(counts: Mapping[str, int]) -> str:
    """Returns the classes that most images have as target, with their numbers."""
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    text = ", ".join(f"{name} {count}" for name, count in ranked[:_LISTED])
    if len(ranked) > _LISTED:
        text += f", and {len(ranked) - _LISTED} classes with fewer images"
    return text
