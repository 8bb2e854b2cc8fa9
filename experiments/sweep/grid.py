"""The values of each axis of a sweep's grid, and the points that they make."""

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.common import options
from experiments.sweep.points import Point
from opnorm import training

# The values of each field of the configuration that the sweep varies.
Axes = Mapping[str, tuple[Any, ...]]


def text(value: Any) -> str:
    """Returns a value of a grid as tables and names of directories show it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def parse(texts: Sequence[str], base: training.Config) -> Axes:
    """Reads the flag --grid.

    Args:
      texts: ``"field=value,value,..."`` or the name of a published grid, each.
      base: the configuration whose fields may be varied.

    Returns:
      The values of each axis, in the order of the configuration's fields.

    Raises:
      ValueError: for an axis that does not exist or is there twice, or a value that is
        not of its type or is there twice.
    """
    fields = {field.name: field for field in dataclasses.fields(base)}
    axes: dict[str, tuple[Any, ...]] = {}
    for given in texts:
        name, equals, values = given.partition("=")
        if equals:
            found: Axes = {name: _parse_values(name, values, fields)}
        else:
            found = training.get_grid(name).values
        for axis, items in found.items():
            if axis in axes:
                raise ValueError(f"grid has {axis} more than once.")
            if len(set(map(text, items))) < len(items):
                raise ValueError(
                    f"grid is {given!r}; each value of {axis} may be given once."
                )
            axes[axis] = tuple(items)
    if "step_size" in axes and training.STEP_RATIO in axes:
        raise ValueError(
            f"grid has step_size and {training.STEP_RATIO}; give one of them."
        )
    order = [*fields, training.STEP_RATIO]
    return {name: axes[name] for name in sorted(axes, key=order.index)}


def _parse_values(
    name: str, values: str, fields: Mapping[str, dataclasses.Field[Any]]
) -> tuple[Any, ...]:
    given = f"grid is '{name}={values}';"
    is_ratio = name == training.STEP_RATIO
    if name == "seed":
        raise ValueError(f"{given} seeds are given with --seeds.")
    if name == "validation_fraction":
        raise ValueError(
            f"{given} points are compared on one validation split; give "
            "--validation_fraction."
        )
    if not is_ratio and name not in fields:
        raise ValueError(
            f"{given} {name!r} is no field of the configuration. There are "
            f"{training.STEP_RATIO}, {', '.join(fields)}."
        )
    annotation: Any = float if is_ratio else fields[name].type
    kind = options.plain_type(annotation)
    items = [item.strip() for item in values.split(";" if ";" in values else ",")]
    if "" in items:
        raise ValueError(f"{given} it has an empty value.")
    found = []
    for item in items:
        try:
            found.append(_parse_value(item, kind, optional=annotation is not kind))
        except (ValueError, KeyError):
            raise ValueError(
                f"{given} {item!r} is not of type {kind.__name__}."
            ) from None
    if is_ratio and not all(value > 0 for value in found):
        raise ValueError(f"{given} each must be positive.")
    return tuple(found)


def _parse_value(item: str, kind: type, *, optional: bool) -> Any:
    if optional and item.lower() == "none":
        return None
    if kind is bool:
        return {"true": True, "false": False}[item.lower()]
    return kind(item)


def points(
    directory: Path, base: training.Config, axes: Axes, seeds: Sequence[int]
) -> list[Point]:
    """Returns a point for each combination of the axes' values and each seed.

    The seeds of one combination follow each other: networks that differ in nothing else
    share a compiled step.

    Args:
      directory: the sweep's directory.
      base: the configuration of all points, up to the axes and the seed.
      axes: the result of :func:`parse`.
      seeds: the seeds.
    """
    found = []
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        fields = {n: v for n, v in chosen.items() if n != training.STEP_RATIO}
        config = dataclasses.replace(base, **fields)
        if training.STEP_RATIO in chosen:
            ratio = chosen[training.STEP_RATIO]
            step = ratio * config.epsilon / max(config.num_steps, 1)
            config = dataclasses.replace(config, step_size=step)
        for seed in seeds:
            named = {**chosen, "seed": seed}
            name = "_".join(f"{key}={_slug(value)}" for key, value in named.items())
            seeded = dataclasses.replace(config, seed=seed)
            found.append(Point(name, chosen, seeded, str(directory / name)))
    return found


def _slug(value: Any) -> str:
    """A value as part of a directory's name, the same each time."""
    shown = text(value)
    plain = re.sub(r"[^\w.+-]+", "-", shown)
    if plain == shown and len(plain) <= 40:
        return plain
    return f"{plain[:32]}-{hashlib.sha256(shown.encode()).hexdigest()[:6]}"
