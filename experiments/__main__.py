"""Runs a command by its name, or lists the commands."""

import ast
import difflib
import os
import runpy
import sys
from pathlib import Path

_ROOT = Path(__file__).parent
# Folders and files that are no commands.
_OTHERS = ("common", "results", "__init__", "__main__")
_HELP = ("--help", "-h", "-help", "-?", "--helpfull")
_USAGE_ERROR = 2


def commands() -> dict[str, str]:
    """Returns the beginning of each command's description, by name.

    The files are read and not imported, so that the list is there at once.
    """
    found = {}
    for path in sorted(_ROOT.iterdir()):
        file = path / "__main__.py" if path.is_dir() else path
        if path.stem in _OTHERS or file.suffix != ".py" or not file.exists():
            continue
        summary = ast.get_docstring(ast.parse(file.read_text())) or ""
        sentence = " ".join(summary.split("\n\n")[0].split())
        # The claim behind a colon is long, and --help gives it.
        found[path.stem] = sentence.split(": ")[0].rstrip(".")
    return found


def main(arguments: list[str]) -> int:
    """Runs the command that the first argument names; without one, lists them all.

    A command ends the process itself, as under ``python -m experiments.NAME``.

    Args:
      arguments: the name of a command and its flags, or nothing.

    Returns:
      The exit code.
    """
    known = commands()
    if not arguments or arguments[0] in _HELP:
        try:
            print(_listing(known), flush=True)
        # A reader such as ``head`` has gone; Python writes once more when it ends.
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    name = arguments[0]
    if name not in known:
        print(f"opnorm: {_unknown(name, known)}", file=sys.stderr)
        return _USAGE_ERROR
    # As ``python -m`` does: the module is ``__main__``, and its file is sys.argv[0].
    sys.argv = [name, *arguments[1:]]
    runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)
    return 0


def _listing(known: dict[str, str]) -> str:
    """Returns the text of the list of commands."""
    from experiments.common import cli

    width = max(map(len, known))
    lines = [f"{cli.call('NAME')} runs a command; with --help it lists its flags.", ""]
    lines += [f"  {name.ljust(width)}  {summary}" for name, summary in known.items()]
    return "\n".join(lines)


def _unknown(name: str, known: dict[str, str]) -> str:
    """Returns the words on an argument that names no command."""
    if name.startswith("-"):
        return f"{name} stands before the name of a command; flags stand behind it."
    similar = difflib.get_close_matches(name.replace("-", "_"), known, n=1)
    others = f"it may be {', '.join(known)}."
    remedy = f"did you mean {similar[0]}?" if similar else others
    return f"unknown command {name!r}; {remedy}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
