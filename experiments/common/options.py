"""Flags that several binaries define, and the meaning of their values.

Fields of a configuration are flags of the same names; :func:`config_from_flags` makes
a configuration of their values. Values that are lists or slices are read by functions
whose errors name the flag.
"""

import dataclasses
import inspect
import math
import re
import sys
import types
import typing
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from absl import flags

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# Flags defined by the functions below belong to the binary that calls them, so that
# they show in its --help.
flags.disclaim_key_flags()

_SERIALIZER: flags.ArgumentSerializer[Any] = flags.ArgumentSerializer()
_Value = TypeVar("_Value")
_Config = TypeVar("_Config", bound="DataclassInstance")


def define_config_flags(
    config: type, *, only: tuple[str, ...] | None = None, **defaults: Any
) -> None:
    """Defines one flag per field of a configuration dataclass.

    Args:
      config: a dataclass whose docstring describes its fields under "Attributes".
      only: the fields to define flags for; None for all.
      **defaults: defaults that differ from the dataclass's own.
    """
    helps = _field_descriptions(config)
    for field in dataclasses.fields(config):
        if only is not None and field.name not in only:
            continue
        default = defaults.get(field.name, field.default)
        kind = plain_type(field.type)
        if kind is bool:
            flags.DEFINE_boolean(field.name, default, helps[field.name])
            continue
        parser = {
            int: flags.IntegerParser,
            float: _FloatParser,
            str: flags.ArgumentParser,
        }[kind]()
        if kind is not field.type:
            parser = _OrNone(parser)
        flags.DEFINE(
            parser, field.name, default, helps[field.name], serializer=_SERIALIZER
        )


class _FloatParser(flags.FloatParser):
    """Reads numbers and fractions."""

    syntactic_help = "a number or a fraction such as 8/255"

    def convert(self, argument: Any) -> float:
        return parse_number(argument)


@typing.overload
def define_number(
    name: str, default: float, help_text: str
) -> flags.FlagHolder[float]: ...


@typing.overload
def define_number(
    name: str, default: None, help_text: str
) -> flags.FlagHolder[float | None]: ...


def define_number(
    name: str, default: float | None, help_text: str
) -> flags.FlagHolder[Any]:
    """Defines a flag whose value is a number or a fraction, such as 8/255."""
    return flags.DEFINE(
        _FloatParser(), name, default, help_text, serializer=_SERIALIZER
    )


class _OrNone(flags.ArgumentParser[Any]):
    """Reads "none" as None, which takes back the value of a preset."""

    def __init__(self, parser: flags.ArgumentParser[Any]) -> None:
        self._parser = parser
        self.syntactic_help = f"{parser.syntactic_help or 'a string'} or none"

    def parse(self, argument: Any) -> Any:
        if isinstance(argument, str) and argument.lower() == "none":
            return None
        return self._parser.parse(argument)

    def flag_type(self) -> str:
        return f"{self._parser.flag_type()} or none"


def define_preset_flags() -> None:
    """Defines --preset, which :func:`config_from_flags` reads, and --list_presets."""
    flags.DEFINE_string(
        "preset",
        None,
        "a published recipe to start from; flags given beside it replace its values, "
        "and none takes an optional one back, as in --milestones=none",
    )
    flags.DEFINE_boolean(
        "list_presets", False, "list the presets, or show --preset in full, and exit"
    )


def config_from_flags(config: type[_Config], **values: Any) -> _Config:
    """Builds a configuration from the flags that were defined, and from ``values``.

    With --preset they are those of the preset, unless a flag is on the command line.

    Raises:
      ValueError: for an unknown preset, or one that needs a data set to be given.
    """
    if "preset" not in flags.FLAGS or flags.FLAGS.preset is None:
        flagged = {flag.name: flag.value for flag in _fields(config)}
        return config(**flagged | values)
    from opnorm import training

    preset = training.get_preset(flags.FLAGS.preset)
    given = given_fields(config) | values
    if "dataset" in preset.needs and "dataset" not in given:
        raise ValueError(
            f"dataset is not given, and the preset {preset.name} needs it; give "
            f"--dataset={preset.config.dataset}:/path."
        )
    for name in sorted(set(preset.needs) - set(given)):
        print(
            f"warning: {preset.source} gives {name}, a trained network to start from, "
            f"for {preset.name}; without --{name} it is trained from scratch.",
            file=sys.stderr,
        )
    chosen = dataclasses.replace(preset.config, **given)
    if not isinstance(chosen, config):
        raise TypeError(f"config is {config}; presets are of {type(chosen)}.")
    return chosen


def given_fields(config: type) -> dict[str, Any]:
    """Returns the fields of a configuration whose flags are on the command line."""
    return {flag.name: flag.value for flag in _fields(config) if flag.present}


def _fields(config: type) -> list[flags.Flag[Any]]:
    """Returns the flags of a configuration's fields, as far as they are defined."""
    names = [field.name for field in dataclasses.fields(config)]
    return [flags.FLAGS[name] for name in names if name in flags.FLAGS]


def define_download_flag() -> flags.FlagHolder[bool]:
    """Defines --download."""
    return flags.DEFINE_boolean("download", False, "download the data if missing")


def check_at_least(
    least: int,
    *chosen: flags.FlagHolder[int] | flags.FlagHolder[int | None] | flags.Flag[int],
) -> None:
    """Raises a ValueError that names the first flag whose value is below ``least``."""
    for flag in chosen:
        if flag.value is not None and flag.value < least:
            raise ValueError(
                f"{flag.name} is {flag.value}; it must be at least {least}."
            )


def check_positive(name: str, value: float) -> None:
    """Raises a ValueError, naming the flag, unless a number is positive and finite."""
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is {value}; it must be positive and finite.")


def check_each_once(name: str, values: Sequence[Any]) -> None:
    """Raises a ValueError if a list flag is empty or has a value twice."""
    if not values or len(set(values)) < len(values):
        raise ValueError(f"{name} is {values}; give one or more, each once.")


def parse_number(text: str) -> float:
    """Reads a number or a fraction, such as ``"0.5"``, ``"8/255"`` or ``"inf"``.

    Raises:
      ValueError: for other text, and for a fraction of zero.
    """
    above, slash, below = str(text).partition("/")
    if not slash:
        return float(above)
    if float(below) == 0:
        raise ValueError(f"{text!r} divides by zero.")
    return float(above) / float(below)


def parse_floats(name: str, text: list[str]) -> tuple[float, ...]:
    """Reads a list flag as numbers or fractions; ValueError names the flag."""
    allowed = "numbers or fractions such as 8/255, with commas between"
    return _parse_list(name, text, parse_number, allowed)


def parse_integers(name: str, text: list[str]) -> tuple[int, ...]:
    """Reads a list flag as whole numbers; ValueError names the flag."""
    return _parse_list(name, text, int, "whole numbers with commas between")


def parse_lengths(name: str, text: list[str]) -> list[float]:
    """Reads a list flag as lengths of perturbations, and returns them in rising order.

    Raises:
      ValueError: if one is not positive or not finite; it names the flag.
    """
    lengths = sorted(set(parse_floats(name, text)))
    if not all(0 < length < math.inf for length in lengths):
        raise ValueError(f"{name} is {text}; each must be positive and finite.")
    return lengths


def parse_split(text: str) -> tuple[str, int | None, int | None]:
    """Reads a split or a slice of one: ``"test[10:20]"`` is ("test", 10, 20).

    Raises:
      ValueError: for other text; it says how a split is written.
    """
    found = re.fullmatch(r"(\w+)(?:\[(\d*):(\d*)\])?", text)
    if not found:
        raise ValueError(
            f"split is {text!r}; it must be a split, or a slice of one such as "
            "test[500:1000]."
        )
    name, first, last = found.groups()
    return name, int(first) if first else None, int(last) if last else None


def plain_type(annotation: Any) -> type:
    """Returns the type of an annotation without ``| None``."""
    if isinstance(annotation, types.UnionType):
        annotation = next(t for t in typing.get_args(annotation) if t is not type(None))
    found: type = annotation
    return found


def _parse_list(
    name: str, text: Sequence[str], parse: Callable[[str], _Value], allowed: str
) -> tuple[_Value, ...]:
    try:
        return tuple(parse(item) for item in text)
    except ValueError:
        raise ValueError(
            f"{name} is {','.join(text)!r}; it must be {allowed}."
        ) from None


def _field_descriptions(config: type) -> dict[str, str]:
    text = inspect.getdoc(config) or ""
    section = text.split("Attributes:", 1)[1]
    found = re.findall(r"^  (\w+): (.+?)(?=^  \w+:|\Z)", section, re.S | re.M)
    return {name: " ".join(body.split()) for name, body in found}
