"""Finds results below folders that somebody else may have written.

Files are read as JSON and never executed. Links are not followed, and a file that is
not one of ours is named instead of read into the report.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.common import kinds
from experiments.common.records import Record
from opnorm import runs

# Larger files are no results of ours.
_LARGEST_BYTES = 64_000_000
_LARGEST_PNG = 8_000_000
_PNG = b"\x89PNG\r\n\x1a\n"
_FLAGS, _METRICS = "flags.json", "metrics.jsonl"
# A folder and a file of checkpoints, which hold many files and no results.
_CHECKPOINTS, _CHECKPOINT = "checkpoints", "_CHECKPOINT_METADATA"
# Files of JSON that commands keep for themselves.
_OWN = (
    *("accuracies", "checkpoints", "examples", "flags", "iterations", "measured"),
    *("seconds_per_step", "sweep_job", "sweep_result", "sweep_test", "training"),
    *("validation",),
)
_OWN_BEGIN = ("strengths-",)


class Found(NamedTuple):
    """A file of results.

    Attributes:
      file: the file.
      name: its folder as the report names it.
      kind: as ``kinds.kind`` returns it.
      results: its content.
      card: the content of the flags.json beside it; empty if there is none.
    """

    file: Path
    name: str
    kind: str
    results: Record
    card: Record


class Run(NamedTuple):
    """The directory of a training.

    Attributes:
      directory: the directory.
      name: it as the report names it.
      card: the content of flags.json.
      metrics: the lines of metrics.jsonl.
      inside: whether a file of results sums it up, in a folder above it.
    """

    directory: Path
    name: str
    card: Record
    metrics: list[Record]
    inside: bool


class Problem(NamedTuple):
    """A file or a directory that the report does not show.

    Attributes:
      name: it as the report names it.
      reason: why.
    """

    name: str
    reason: str


class Findings(NamedTuple):
    """All that lies below the folders.

    Attributes:
      results: files of results, in the order of their names.
      runs: trainings.
      unfinished: directories of commands that wrote flags and no results.
      problems: files that cannot be shown.
    """

    results: list[Found]
    runs: list[Run]
    unfinished: list[tuple[str, Record]]
    problems: list[Problem]


def find(folders: Sequence[str]) -> Findings:
    """Finds all results below folders.

    Raises:
      ValueError: for a folder that is not there.
    """
    for folder in folders:
        if not Path(folder).is_dir():
            raise ValueError(f"runs has {folder}; it must be a folder of results.")
    found = Findings([], [], [], [])
    seen: set[Path] = set()
    for folder in folders:
        for directory, names in _walk(Path(folder)):
            if directory.resolve() in seen:
                continue
            seen.add(directory.resolve())
            _read(directory, _name(directory, folder, folders), names, found)
    above = {each.file.parent for each in found.results}
    # Its networks lie beside the folders of both norms.
    above |= {
        each.file.parents[1] / "networks"
        for each in found.results
        if each.kind == "gradient_regularization"
    }
    trained = [
        run._replace(inside=bool(above & {*run.directory.parents}))
        for run in found.runs
    ]
    return found._replace(runs=trained)


def _walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    for directory, folders, names in os.walk(folder):
        if _CHECKPOINT in names:
            folders.clear()
            continue
        folders[:] = sorted(
            name for name in folders if name != _CHECKPOINTS and name[0] != "."
        )
        yield Path(directory), sorted(names)


def _name(directory: Path, folder: str, folders: Sequence[str]) -> str:
    """The directory below its folder, with the folder where there are several."""
    below = directory.relative_to(folder).as_posix()
    top = Path(folder).name or Path(folder).resolve().name
    if len(folders) > 1:
        top = Path(folder).as_posix()
        return top if below == "." else f"{top}/{below}"
    return top if below == "." else below


def _read(directory: Path, name: str, names: list[str], found: Findings) -> None:
    """Reads the files of one directory."""
    card: Record = {}
    if _FLAGS in names:
        content = _json(directory / _FLAGS, name, found.problems)
        if isinstance(content, dict) and isinstance(content.get("flags"), dict):
            card = content
        elif content is not None:
            found.problems.append(Problem(f"{name}/{_FLAGS}", "it holds no flags"))
    before = len(found.results)
    for each in names:
        stem = each.removesuffix(".json")
        own = stem in _OWN or stem.startswith(_OWN_BEGIN)
        if stem == each or each.startswith(".") or each == _FLAGS:
            continue
        if own and stem != "iterations":
            continue
        content = _json(directory / each, name, found.problems)
        if content is None:
            continue
        kind = kinds.kind(content)
        if kind is not None:
            found.results.append(Found(directory / each, name, kind, content, card))
        elif not own:
            found.problems.append(Problem(f"{name}/{each}", _unknown(content)))
    if card and _METRICS in names:
        found.runs.append(Run(directory, name, card, _metrics(directory), inside=False))
    elif card and len(found.results) == before:
        found.unfinished.append((name, card))


def _unknown(content: Any) -> str:
    """Why the content of a JSON file is not shown."""
    if isinstance(content, dict) and isinstance(content.get("experiment"), str):
        return f"results of {content['experiment']!r} in a form that is not known here"
    return "its form is not known"


def _json(file: Path, name: str, problems: list[Problem]) -> Any:
    """The content of a JSON file; None, and a problem, if it cannot be read."""
    try:
        if reason := _refused(file, _LARGEST_BYTES):
            raise ValueError(reason)
        return runs.read_json(file)
    except (OSError, ValueError) as error:
        reason = str(error).removeprefix(f"{file} is damaged: ")
        if isinstance(error, OSError):
            reason = error.strerror or type(error).__name__
        problems.append(Problem(f"{name}/{file.name}", reason.rstrip(".")))
        return None


def _refused(file: Path, largest: int) -> str:
    """Why a file is not opened; empty for one that is."""
    status = file.lstat()
    if stat.S_ISLNK(status.st_mode):
        return "it is a symbolic link"
    if not stat.S_ISREG(status.st_mode):
        return "it is no file"
    if status.st_size > largest:
        return f"it has {status.st_size / 1e6:.0f} MB; {largest / 1e6:.0f} are read"
    return ""


def _metrics(directory: Path) -> list[Record]:
    file = directory / _METRICS
    if _refused(file, _LARGEST_BYTES):
        return []
    try:
        return runs.read_metrics(directory)
    except OSError:
        return []


def read_text(file: Path) -> str | None:
    """Returns the content of a text file; None if there is none that can be read."""
    try:
        if _refused(file, _LARGEST_BYTES):
            return None
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def read_png(file: Path) -> bytes | None:
    """Returns the content of an image; None for anything but a PNG."""
    try:
        if _refused(file, _LARGEST_PNG):
            return None
        content = file.read_bytes()
    except OSError:
        return None
    whole = content.startswith(_PNG) and content[12:16] == b"IHDR" and len(content) > 24
    return content if whole else None
