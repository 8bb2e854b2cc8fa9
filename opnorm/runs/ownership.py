"""Which directories opnorm has written into, and the files that it left half-written.

A directory of somebody else must not be written into. Every directory of a run has a
mark (:mod:`opnorm.runs.lock`); earlier versions left other signs.
"""

import contextlib
import os
import re
import time
from pathlib import Path

from opnorm.runs import json_values, lock

# Files that are being written: ".name.process.opnorm".
_TEMPORARY = re.compile(r"\..+\.(\d+)\.opnorm")
_TEMPORARY_BEFORE = re.compile(r"\.flags\.json\.\d+")
# Writing one takes no longer than this.
_ORPHANED_SECONDS = 60.0
CHECKPOINTS = "checkpoints"


def is_temporary(name: str) -> bool:
    """Whether a file of this name is one that a process of opnorm is writing."""
    return any(p.fullmatch(name) for p in (_TEMPORARY, _TEMPORARY_BEFORE))


def is_ours(path: Path, names: set[str], own: set[str]) -> bool:
    """Whether opnorm has written into a directory before.

    Args:
      path: the directory.
      names: the names of its files and folders.
      own: further names that show it.
    """
    if lock.FILE in names or names & own:
        return True
    # Earlier versions marked runs alone.
    folders = [path / CHECKPOINTS, path]
    saved = (f / n / "meta" for f in folders for n in _digits(f))
    if any(meta.is_dir() for meta in saved):
        return True
    return any(_is_result(path / name) for name in names if name.endswith(".json"))


def _digits(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return [name for name in os.listdir(folder) if name.isdigit()]


def _is_result(file: Path) -> bool:
    """Whether a file says which version of opnorm wrote it."""
    try:
        made = json_values.read(file).get("environment")
        return isinstance(made, dict) and "opnorm" in made
    # The file may hold anything.
    except (OSError, ValueError, AttributeError):
        return False


def remove_orphans(path: Path) -> None:
    """Removes half-written files of processes that are gone, one folder deep."""
    with os.scandir(path) as entries:
        folders = [Path(e) for e in entries if e.is_dir(follow_symlinks=False)]
    for folder in (path, *folders):
        for name in os.listdir(folder):
            found = _TEMPORARY.fullmatch(name)
            if found and not _is_alive(int(found[1])):
                _remove_old(folder / name)


def _remove_old(file: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        # On another machine a process of its number may be alive and at work on it.
        if time.time() - file.lstat().st_mtime > _ORPHANED_SECONDS:
            file.unlink()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
