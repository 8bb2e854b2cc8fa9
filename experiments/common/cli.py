"""experiments: what every binary shares: flags, errors, compilation cache, results."""

import contextlib
import dataclasses
import importlib
import inspect
import math
import os
import re
import signal
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from absl import app, flags, logging

# Flags defined by the functions below belong to the binary that calls them, so that
# they show in its --help.
flags.disclaim_key_flags()

# Directories that this process keeps others out of, until the binary ends.
_HELD = contextlib.ExitStack()
# For errors of the environment: a full disk, a directory in use by another process.
_ENVIRONMENT_ERROR = 1
_USAGE_ERROR = 2
_INTERRUPTED = 128 + signal.SIGINT

_SERIALIZER: flags.ArgumentSerializer[Any] = flags.ArgumentSerializer()


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
    """Reads fractions, too."""

    syntactic_help = "a number or a fraction such as 8/255"

    def convert(self, argument: Any) -> float:
        return parse_number(argument)


class _OrNone(flags.ArgumentParser[Any]):
    """Reads "none" as None, which takes back what a preset says."""

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
        "a published recipe to start from; flags given beside it replace what it says, "
        "and none takes an optional setting back, as in --milestones=none",
    )
    flags.DEFINE_boolean(
        "list_presets", False, "list the presets, or show --preset in full, and exit"
    )


def config_from_flags(config: type, **values: Any) -> Any:
    """Builds a configuration from the flags that were defined, and from ``values``.

    With a preset: its configuration, then the flags given on the command line.

    Raises:
      ValueError: for an unknown preset, or one that needs a data set to be given.
    """
    names = {field.name for field in dataclasses.fields(config)}
    defined = {name: flags.FLAGS[name] for name in names if name in flags.FLAGS}
    if "preset" not in flags.FLAGS or flags.FLAGS.preset is None:
        flagged = {name: flag.value for name, flag in defined.items()}
        return config(**{**flagged, **values})
    from opnorm import training

    preset = training.get_preset(flags.FLAGS.preset)
    given: dict[str, Any] = dict(values)
    for name, flag in defined.items():
        if flag.present:
            given.setdefault(name, flag.value)
    if "dataset" in preset.needs and "dataset" not in given:
        raise ValueError(
            f"dataset is not given, and the preset {preset.name} needs it; give "
            "--dataset=image_folder:/path."
        )
    for name in sorted(set(preset.needs) - set(given)):
        print(
            f"warning: {preset.source} gives {name}, a trained network to start from, "
            f"for {preset.name}; without --{name} it is trained from scratch.",
            file=sys.stderr,
        )
    return dataclasses.replace(preset.config, **given)


def run(main: Callable[[], None]) -> None:
    """Parses flags and calls ``main``; errors of usage or environment are one line.

    Exit codes: 2 for a usage error; 1 for an operating system error, such as a full
    disk or a directory that another process writes into; 130 after Ctrl-C.
    """

    def parse(argv: list[str]) -> list[str]:
        try:
            rest = flags.FLAGS(argv)
            if len(rest) > 1:
                raise flags.Error(f"unexpected argument {rest[1]!r}; flags begin --.")
            return rest
        except flags.Error as error:
            _fail(error)

    def guarded(argv: list[str]) -> None:
        del argv
        # Orbax tells of every file at INFO.
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)
        use_compilation_cache()
        try:
            if "list_presets" in flags.FLAGS and flags.FLAGS.list_presets:
                from opnorm import training

                print(training.describe_presets(flags.FLAGS.preset))
                return
            with _HELD:
                main()
        except (ValueError, FileNotFoundError, FloatingPointError) as error:
            if os.environ.get("OPNORM_TRACEBACK"):
                raise
            _fail(error)
        except OSError as error:
            if os.environ.get("OPNORM_TRACEBACK"):
                raise
            _fail(error, _ENVIRONMENT_ERROR)
        except KeyboardInterrupt as interrupt:
            _fail(Exception(str(interrupt) or "interrupted"), _INTERRUPTED)

    app.run(guarded, flags_parser=parse)


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
    try:
        return tuple(parse_number(item) for item in text)
    except ValueError:
        raise ValueError(
            f"{name} is {','.join(text)!r}; it must be numbers or fractions such as "
            "8/255, with commas between."
        ) from None


def parse_integers(name: str, text: list[str]) -> tuple[int, ...]:
    """Reads a list flag as whole numbers; ValueError names the flag."""
    try:
        return tuple(int(item) for item in text)
    except ValueError:
        raise ValueError(
            f"{name} is {','.join(text)!r}; it must be whole numbers with commas "
            "between."
        ) from None


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Formats rows with the same keys as a Markdown table."""
    header = list(rows[0])
    cells = [header] + [[str(row[name]) for name in header] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]

    def line(values: list[str]) -> str:
        padded = map(str.ljust, values, widths)
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([line(cells[0]), rule, *map(line, cells[1:])])


def import_optional(name: str, extra: str) -> Any:
    """Imports a package that only some experiments need.

    Raises:
      ValueError: if it is not installed; it says how to install it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"{name} cannot be imported ({error}); install it with "
            f"pip install -e '.[{extra}]'."
        ) from error


def versions(*packages: str) -> dict[str, str]:
    """The installed versions of packages."""
    return {package: metadata.version(package) for package in packages}


def hold(run: Any, own: Sequence[str] = ()) -> Any:
    """Keeps other processes out of a run directory until the binary ends.

    Args:
      run: a :class:`opnorm.runs.RunDirectory`; it is made if need be.
      own: as for ``RunDirectory.check``.

    Returns:
      The same.

    Raises:
      ValueError: if the directory is not one that opnorm writes into.
      RunInUse: an OSError, if another process writes into it.
      OSError: if it cannot be made or written into.
    """
    _HELD.enter_context(run.locked(own))
    return run


def _fail(error: Exception, code: int = _USAGE_ERROR) -> typing.NoReturn:
    text = str(error)
    if isinstance(error, OSError) and error.filename and error.strerror:
        text = f"{error.filename}: {error.strerror}"
    message = " ".join(text.split())
    print(f"{program()}: {message}", file=sys.stderr)
    sys.exit(code)


def program() -> str:
    """The name of the experiment that runs, such as ``"spectrum"``.

    An experiment of several files is a package; Python then runs its ``__main__.py``.
    """
    path = Path(sys.argv[0])
    return path.parent.name if path.name == "__main__.py" else path.stem


def use_compilation_cache() -> None:
    """Compiled programs are kept between runs, unless the user chose otherwise."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(cache / "opnorm" / "jax"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def plain_type(annotation: Any) -> type:
    """The type without ``| None``."""
    if isinstance(annotation, types.UnionType):
        return next(t for t in typing.get_args(annotation) if t is not type(None))
    return annotation


def _field_descriptions(config: type) -> dict[str, str]:
    text = inspect.getdoc(config) or ""
    section = text.split("Attributes:", 1)[1]
    found = re.findall(r"^  (\w+): (.+?)(?=^  \w+:|\Z)", section, re.S | re.M)
    return {name: " ".join(body.split()) for name, body in found}


def parse_split(text: str) -> tuple[str, int | None, int | None]:
    """Reads a split or a slice of one: ``"test[10:20]"`` is ("test", 10, 20).

    Raises:
      ValueError: saying what a split may look like.
    """
    found = re.fullmatch(r"(\w+)(?:\[(\d*):(\d*)\])?", text)
    if not found:
        raise ValueError(
            f"split is {text!r}; it must be a split, or a slice of one such as "
            "test[500:1000]."
        )
    name, first, last = found.groups()
    return name, int(first) if first else None, int(last) if last else None


def percents(values: Sequence[float]) -> str:
    """Fractions as text, such as "44.5 / 46.2 %"."""
    return " / ".join(number(v, "{:.1f}", times=100) for v in values) + " %"


def numbers(values: Sequence[float]) -> str:
    """Numbers as text, three digits each."""
    return " / ".join(map(number, values))


def number(value: float | None, text: str = "{:.3g}", *, times: float = 1) -> str:
    """A number as text; "-" where it is not known: None or NaN."""
    if value is None or math.isnan(value):
        return "-"
    return text.format(times * value)
