"""Lists the commands of this package."""

import ast
import sys
from pathlib import Path

_ROOT = Path(__file__).parent
# Folders and files that are no commands.
_OTHERS = ("common", "results", "__init__", "__main__")


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
    """Prints the commands; returns the exit code."""
    known = commands()
    if arguments and arguments[0] not in ("--help", "-h", "-help", "-?", "--helpfull"):
        name = arguments[0]
        remedy = "python -m experiments lists the commands"
        if name in known:
            remedy = f"write python -m experiments.{name}"
        print(f"experiments: unexpected argument {name!r}; {remedy}.", file=sys.stderr)
        return 2
    width = max(map(len, known))
    print(
        "python -m experiments.NAME runs a command; with --help it lists its flags.\n"
    )
    for name, summary in known.items():
        print(f"  {name.ljust(width)}  {summary}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
