"""The command ``opnorm``, which runs a command by its name or lists all of them.

The commands are the package ``experiments``. A checkout has it beside ``opnorm``; an
installed wheel has it in ``opnorm/commands``, so that it cannot collide with a folder
``experiments`` of the user's own. It is put first on the path of this process alone.
"""

import importlib
import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent


def main() -> None:
    """Runs the command that the arguments name, and ends with its exit code."""
    installed = _HERE / "commands"
    home = installed if installed.is_dir() else _HERE.parent
    sys.path.insert(0, str(home))
    listing = importlib.import_module("experiments.__main__")
    sys.exit(listing.main(sys.argv[1:]))


if __name__ == "__main__":
    main()
