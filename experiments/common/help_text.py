"""The text of ``--help``: a command's description, and its flags in groups."""

import dataclasses
import functools
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from absl import flags

from experiments.common import cli

# The flags of each group in the order of the help. A flag that is in none of them is
# one of the command's own.
OWN = "This command"
GROUPS: dict[str, tuple[str, ...]] = {
    "Networks and directories": (
        *(
            "run",
            "checkpoint",
            "network",
            "variables",
            "binary",
            "seeds",
            "out",
            "directory",
        ),
        *("preset", "presets", "list_presets", "init_from", "baseline", "fresh"),
        *("train", "summarize"),
    ),
    OWN: (),
    "Data": (
        *("dataset", "data_dir", "download", "check_data", "split", "examples"),
        *("train_examples", "test_examples", "validation_fraction", "random_labels"),
        *("augment", "padding", "cutout", "image_size", "least_area", "phases"),
    ),
    "Network that is trained": (
        *("model", "width", "depth", "activation", "logit_activation", "dropout"),
        *("scalar_biases", "scalar_multipliers", "normalization", "compute_dtype"),
        "rematerialize",
    ),
    "Training method": (
        *("method", "p", "q", "epsilon", "epsilon_unit", "weight", "mix"),
        *("num_steps", "step_size", "random_start", "attack_labels", "search"),
        *("variant", "penalty_fraction", "difference_step", "divide_by_size"),
        *("gamma", "spectral_norm_bound", "spectral_norm_method"),
        "spectral_norm_steps",
    ),
    "Optimisation": (
        *("epochs", "batch_size", "accumulation_steps", "optimizer"),
        *("learning_rate", "schedule", "milestones", "decay_factor"),
        *("learning_rates", "warmup_epochs", "momentum", "nesterov"),
        *("weight_decay", "decayed", "clip_norm", "seed"),
    ),
}
# Groups of the training: a command that trains nothing has such flags of its own.
_TRAINING = ("Network that is trained", "Training method", "Optimisation")
_WIDTH = 80
# A call in the examples of a docstring, which are indented.
_CALL = re.compile(r"(?<=^  )opnorm (\w+)", re.MULTILINE)
_ROLE = re.compile(r":\w+:`~?([^`]+)`")
# Text that absl adds to the help: the values of an enum, and that a flag is repeated.
_ADDED = re.compile(r"^<[^>]*>: |;\s+repeat this option to specify a list of values")


def make() -> str:
    """Returns the help of the command that runs."""
    found = flags.FLAGS.get_key_flags_for_module(sys.argv[0])
    summary = str(sys.modules["__main__"].__doc__)
    return describe(_CALL.sub(lambda hit: cli.call(hit[1]), summary), found)


def describe(summary: str, found: Iterable[flags.Flag[Any]]) -> str:
    """Returns the help of a command.

    Args:
      summary: the docstring of the command's module.
      found: its flags.
    """
    blocks = [plain(summary).strip()]
    for group, shown in entries(found).items():
        lines = [f"  {head}\n{_filled(text)}" for head, text in shown]
        blocks.append("\n".join([f"{group}:", *lines]))
    blocks.append(
        "Numbers may be fractions such as 8/255. --helpfull lists flags of logging too."
    )
    return "\n\n".join(blocks)


def entries(found: Iterable[flags.Flag[Any]]) -> dict[str, list[tuple[str, str]]]:
    """Returns the flags of a command by group, each as it is given and its meaning."""
    known = {flag.name: flag for flag in found}
    placed = {name for names in _groups(known).values() for name in names}
    shown = {}
    for group, names in _groups(known).items():
        if group == OWN:
            names = [*names, *sorted(set(known) - placed)]
        if names:
            shown[group] = [_entry(known[name]) for name in names]
    return shown


def _groups(known: dict[str, Any]) -> dict[str, list[str]]:
    """Returns the names of the flags that are there, by group."""
    trains = "method" in known or "model" in known
    return {
        group: [n for n in names if n in known and (trains or group not in _TRAINING)]
        for group, names in GROUPS.items()
    }


def _entry(flag: flags.Flag[Any]) -> tuple[str, str]:
    """Returns a flag as it is given, and its meaning."""
    if flag.boolean:
        head = f"--[no]{flag.name}"
    elif flag.default is None:
        head = f"--{flag.name}"
    else:
        head = f"--{flag.name}={_default(flag)}"
    body = plain(_ADDED.sub("", flag.help or "")).rstrip(".")
    body = f"{body} ({'; '.join(_notes(flag))})" if _notes(flag) else body
    return head, f"{body}."


def _filled(text: str) -> str:
    indent = " " * 6
    return textwrap.fill(
        text,
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _default(flag: flags.Flag[Any]) -> str:
    """Returns the default as it is written on the command line."""
    if isinstance(flag.default, list):
        return ",".join(map(str, flag.default))
    return str(flag.default)


def _notes(flag: flags.Flag[Any]) -> list[str]:
    """Returns the allowed values or their kind, the default, and repetition."""
    notes = []
    if flag.boolean:
        notes.append(f"by default {'true' if flag.default else 'false'}")
    elif values := _allowed(flag):
        notes.append(f"one of {', '.join(values)}")
    elif flag.parser.syntactic_help:
        notes.append(flag.parser.syntactic_help)
    if isinstance(flag, flags.MultiFlag) and "several times" not in (flag.help or ""):
        notes.append("may be given several times")
    return notes


def _allowed(flag: flags.Flag[Any]) -> Sequence[str]:
    """Returns the names that a flag may have, where they are known."""
    if isinstance(flag, flags.EnumFlag):
        return list(flag.parser.enum_values)
    from opnorm import attacks, data, training

    if flag.name == "dataset":
        return data.NAMES
    if flag.name == "attack":
        return attacks.NAMES
    fields = {field.name: field for field in dataclasses.fields(training.Config)}
    field = fields.get(flag.name)
    if field is None or field.type is not str or flag.default is None:
        return ()
    return _names_of_field(flag.name)


@functools.cache
def _names_of_field(name: str) -> tuple[str, ...]:
    """Returns the names that a field of a configuration may have.

    The error for another name lists them, so that help and errors agree.
    """
    from opnorm import training

    for method in ("standard", "data_dependent_snr", "adversarial"):
        try:
            given: dict[str, Any] = {"method": method, name: "?"}
            training.validate(training.Config(**given))
        except ValueError as error:
            found = re.fullmatch(r".* may be (.*)\.", str(error))
            if found:
                return tuple(found.group(1).split(", "))
    return ()


def plain(given: str) -> str:
    """Returns text without markup."""
    return _ROLE.sub(r"\1", given).replace("``", "")
