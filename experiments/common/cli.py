"""The frame of every binary, from the parsing of flags to the exit code."""

import contextlib
import importlib
import os
import signal
import sys
import types
import typing
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from absl import app, flags, logging

from opnorm import extras

if TYPE_CHECKING:
    from opnorm import runs

# The extras of packages that the modules of this binary need, by the package's module.
_NEEDED: dict[str, str] = {}
# Directories that this process keeps others out of, until the binary ends.
_HELD = contextlib.ExitStack()
# For errors of the environment: a full disk, a directory in use by another process.
_ENVIRONMENT_ERROR = 1
_USAGE_ERROR = 2
_USAGE_ERRORS = (
    ValueError,
    FileNotFoundError,
    FloatingPointError,
    extras.MissingPackage,
)
_INTERRUPTED = 128 + signal.SIGINT
_HELP = frozenset(("--help", "-help", "--helpshort", "-helpshort", "-h", "-?"))


def run(main: Callable[[], None]) -> None:
    """Parses flags and calls ``main``; errors of usage or environment are one line.

    ``--help`` prints the flags in groups and ends with exit code 0. Other exit codes: 2
    for a usage error; 1 for an operating system error, such as a full disk or a
    directory that another process writes into; 130 after Ctrl-C.
    """

    def parse(argv: list[str]) -> list[str]:
        if _HELP & {*argv[1:]}:
            from experiments.common import help_text

            print(help_text.make())
            sys.exit(0)
        try:
            rest = flags.FLAGS(argv)
            if len(rest) > 1:
                raise flags.Error(f"unexpected argument {rest[1]!r}; flags begin --.")
            return rest
        except flags.Error as error:
            _fail(error)
        except SystemExit:
            # The other flags that print a help end with exit code 1 in absl.
            sys.exit(0)

    def guarded(argv: list[str]) -> None:
        del argv
        # Orbax logs every file at INFO.
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)
        from opnorm.runs import keep_freed_memory

        keep_freed_memory()
        use_compilation_cache()
        try:
            for module, extra in _NEEDED.items():
                extras.check(call(program()), module, extra)
            if "list_presets" in flags.FLAGS and flags.FLAGS.list_presets:
                from opnorm import training

                print(training.describe_presets(flags.FLAGS.preset))
                return
            with _HELD:
                main()
        except _USAGE_ERRORS as error:
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


def import_optional(name: str, extra: str) -> types.ModuleType:
    """Imports a package that only some experiments need.

    Raises:
      MissingPackage: an ImportError, if it is not installed.
    """
    with extras.needed(call(program()), extra):
        return importlib.import_module(name)


def require(module: str, extra: str) -> None:
    """Makes :func:`run` refuse to begin where a package is not installed.

    A module that needs the package only after hours of computation calls this when it
    is imported.

    Args:
      module: the name under which the package is imported.
      extra: the extra of opnorm that brings it.
    """
    _NEEDED[module] = extra


def call(name: str) -> str:
    """Returns how a command is called in the way that started this process.

    Returns:
      ``"python -m experiments.NAME"`` where Python ran the package of the commands,
      elsewhere ``"opnorm NAME"``.
    """
    words = sys.orig_argv
    module = words[words.index("-m") + 1] if "-m" in words[:-1] else ""
    from_checkout = module.partition(".")[0] == "experiments"
    return f"python -m experiments.{name}" if from_checkout else f"opnorm {name}"


def versions(*packages: str) -> dict[str, str]:
    """Returns the installed versions of packages."""
    return {package: metadata.version(package) for package in packages}


def hold(run: "runs.RunDirectory", own: Sequence[str] = ()) -> "runs.RunDirectory":
    """Keeps other processes out of a run directory until the binary ends.

    Args:
      run: the directory; it is made if need be.
      own: names that it may hold, as for ``RunDirectory.check``.

    Returns:
      The directory.

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
    """Returns the name of the experiment that runs, such as ``"spectrum"``.

    An experiment of several files is a package; Python then runs its ``__main__.py``.
    """
    path = Path(sys.argv[0])
    return path.parent.name if path.name == "__main__.py" else path.stem


def use_compilation_cache() -> None:
    """Keeps compiled programs between runs, unless the user chose otherwise."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        update: Callable[[str, object], None] = jax.config.update
        update("jax_compilation_cache_dir", str(cache / "opnorm" / "jax"))
        update("jax_persistent_cache_min_compile_time_secs", 0.5)
