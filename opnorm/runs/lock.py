"""A lock that keeps two processes from writing into one directory.

The kernel holds it and releases it when the process ends, whatever ends it, so nothing
that a kill leaves behind keeps the next process out. The file stays where it is: it
also marks the directory as one that opnorm writes into.
"""

import contextlib
import datetime
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from absl import logging

try:
    import fcntl
except ImportError:  # Windows has no such locks.
    fcntl = None  # type: ignore[assignment]

FILE = ".opnorm.lock"

# The holder writes who it is right after it gets the lock.
_PATIENCE_SECONDS = 0.1
_LONGEST_DESCRIPTION = 4096


class RunInUse(OSError):
    """Another process writes into the directory."""


@contextlib.contextmanager
def hold(directory: Path, *, keep: bool = True) -> Iterator[None]:
    """Holds the lock of a directory inside a ``with`` block.

    On a file system without locks a warning says so, and the block is entered.

    Args:
      directory: it is there already.
      keep: whether the file stays after the block, as a mark.

    Raises:
      RunInUse: naming the process that holds it.
      OSError: if the lock's file cannot be written.
    """
    descriptor = _open(directory)
    try:
        held = _acquire(descriptor, directory)
        while held and not _is_there(descriptor, directory):
            # The process before has removed the file since it was opened.
            os.close(descriptor)
            descriptor = _open(directory)
            held = _acquire(descriptor, directory)
        if held:
            _describe(descriptor)
        try:
            yield
        finally:
            if held and not keep:
                (directory / FILE).unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def mark(directory: Path) -> None:
    """Marks a directory that is there as one that opnorm writes into."""
    os.close(_open(directory))


def _open(directory: Path) -> int:
    # Through no symbolic link: the file is written over, and a directory may come from
    # somebody else. Programs that this process starts do not inherit the file.
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    return os.open(directory / FILE, flags, 0o666)


def _acquire(descriptor: int, directory: Path) -> bool:
    """Takes the lock and returns True, or False where there are no locks."""
    try:
        if fcntl is None:
            raise OSError("this system has none")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        time.sleep(_PATIENCE_SECONDS)
        raise RunInUse(
            f"{directory} is in use by {_holder(descriptor)}; wait until it ends, end "
            "it, or give another directory."
        ) from None
    except OSError as error:
        logging.warning(
            "%s cannot be locked (%s); let no other process write into it meanwhile.",
            directory,
            error.strerror or error,
        )
        return False
    return True


def _is_there(descriptor: int, directory: Path) -> bool:
    try:
        there = os.lstat(directory / FILE)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), there)


def _describe(descriptor: int) -> None:
    now = datetime.datetime.now(datetime.UTC)
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": now.isoformat(timespec="seconds"),
        "command": sys.argv[:1],
    }
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, (json.dumps(holder) + "\n").encode(), 0)


def _holder(descriptor: int) -> str:
    try:
        found = json.loads(os.pread(descriptor, _LONGEST_DESCRIPTION, 0))
        return (
            f"process {int(found['pid'])} on {str(found['host'])[:100]} since "
            f"{str(found['since'])[:40]}"
        )
    # The file may hold anything.
    except (ValueError, TypeError, KeyError, OSError, RecursionError):
        return "another process"
