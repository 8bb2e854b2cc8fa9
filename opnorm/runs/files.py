"""Writing files of results whole or not at all, and never through a symbolic link.

A directory of results may come from somebody else. A link in it would lead to a file or
folder of the user's own.
"""

import contextlib
import io
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np


def write_whole(file: str | os.PathLike[str], content: bytes | str) -> None:
    """Writes a file whole or not at all; a link in its place is replaced.

    Args:
      file: in a folder that exists.
      content: text is written as UTF-8.
    """
    file = Path(file)
    # RunDirectory removes a file of such a name where the process is gone.
    temporary = file.with_name(f".{file.name}.{os.getpid()}.opnorm")
    # A killed process may have left it, and it must not be a link either.
    temporary.unlink(missing_ok=True)
    try:
        with naming(file), temporary.open("xb") as stream:
            stream.write(content if isinstance(content, bytes) else content.encode())
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def write_arrays(file: str | os.PathLike[str], arrays: Mapping[str, Any]) -> None:
    """Writes arrays as a compressed ``.npz`` file, as :func:`write_whole` writes.

    Args:
      file: in a folder that exists.
      arrays: NumPy arrays, or what becomes one, by name; no array of objects.
    """
    stream = io.BytesIO()
    named: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
    np.savez_compressed(stream, **named)
    write_whole(file, stream.getvalue())


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Has an OSError of the ``with`` block name the path; a full disk names none."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def check_links(directory: str | os.PathLike[str]) -> None:
    """Refuses a directory of results that has a link to a folder in it.

    Links to files are let through, since files are replaced. The directory itself may
    be a link, or lie below one: the user has named it.

    Raises:
      ValueError: naming the first link to a folder.
    """
    for folder, names, _ in os.walk(directory):
        for name in sorted(names):
            path = Path(folder, name)
            if path.is_symlink():
                raise ValueError(
                    f"{path} is a symbolic link to a folder, and nothing is written "
                    "through links inside a directory of results; put the folder "
                    "itself there, or write to another directory."
                )


def open_without_link(path: str, flags: int) -> int:
    """Opens a file for ``open(..., opener=...)``; OSError if it is a link."""
    # Windows has no such flag.
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)
