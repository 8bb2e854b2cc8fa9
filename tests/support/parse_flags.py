"""Parses command lines of one binary, without running it.

The arguments are the name of the binary and a JSON list of lists of arguments. It
prints the list of the errors, None for a command line that is right.
"""

import importlib
import json
import sys

from absl import flags

from experiments.common import attack_specs, options
from opnorm import data, training


def main(name: str, lines: list[list[str]]) -> None:
    """Prints an error, or None, for each command line."""
    module = importlib.import_module(f"experiments.{name}")
    if hasattr(module, "__path__"):
        importlib.import_module(f"experiments.{name}.__main__")
    print(json.dumps([error(name, line) for line in lines]))


def error(name: str, line: list[str]) -> str | None:
    """Returns what is wrong with a command line; None if nothing is."""
    if "--help" in line:
        return None
    for flag in flags.FLAGS:
        flags.FLAGS[flag].unparse()
    try:
        rest = flags.FLAGS([name, *line])
        if len(rest) > 1:
            return f"unexpected argument {rest[1]!r}"
        check(name)
    except (ValueError, flags.Error) as failure:
        return str(failure)
    return None


def check(name: str) -> None:
    """Raises a ValueError for values that the command would refuse."""
    given = {flag: flags.FLAGS[flag].value for flag in flags.FLAGS}
    # "NAME" stands for a name of the reader's choice.
    if given.get("attack"):
        given["attack"] = [text for text in given["attack"] if not text.isupper()]
    if str(given.get("preset")).isupper():
        given["preset"] = None
    if given.get("dataset"):
        data.check_name(given["dataset"])
    if given.get("preset"):
        training.get_preset(given["preset"])
    for preset in given.get("presets") or ():
        if preset != "all":
            training.get_preset(preset)
    if name == "sweep":
        for grid in given["grid"]:
            if "=" not in grid:
                training.get_grid(grid)
    if name == "train" and not given["list_presets"]:
        training.validate(options.config_from_flags(training.Config))
    if name == "evaluate":
        for attack in given["attack"]:
            attack_specs.parse_attack(attack)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
