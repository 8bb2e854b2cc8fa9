"""The directory of a run, with its flags, revision, metrics and results.

The directory alone says how to repeat the run, and nothing in it is half-written. A
directory of somebody else is not written into, and one process writes at a time.
"""

import contextlib
import datetime
import json
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from opnorm.runs import files, json_values, lock, ownership
from opnorm.runs.environment import command, environment, git_revision
from opnorm.runs.json_values import JsonObject

_FLAGS = "flags.json"
_METRICS = "metrics.jsonl"
# How many entries of a foreign directory, and characters of a flag, an error shows.
_SHOWN_ENTRIES = 3
_SHOWN_CHARACTERS = 80


class RunDirectory:
    """A directory of results.

    Args:
      path: where it is.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def check(self, own: Collection[str] = ()) -> None:
        """Raises a ValueError unless the directory may be written into.

        It may be if it is new, empty, or one that opnorm has written into before: a
        run, a folder of checkpoints, results with their environment, or a directory
        that :meth:`mark` has marked. Nothing is written.

        Args:
          own: names of files or folders, each of which shows that an earlier version
            has written into the directory.
        """
        _check_place(self.path)
        try:
            names = sorted(os.listdir(self.path))
        except FileNotFoundError:
            return
        foreign = [name for name in names if not ownership.is_temporary(name)]
        if not foreign or ownership.is_ours(self.path, {*foreign}, {_FLAGS, *own}):
            return
        shown = ", ".join(foreign[:_SHOWN_ENTRIES])
        if len(foreign) > _SHOWN_ENTRIES:
            shown += f" and {len(foreign) - _SHOWN_ENTRIES} more"
        raise ValueError(
            f"{self.path} is not the directory of a run: it holds {shown}, and no "
            f"{_FLAGS}; give a new or empty directory, or that of a run."
        )

    def mark(self, own: Collection[str] = ()) -> None:
        """Makes the directory, and marks it as one that opnorm writes into.

        Raises:
          ValueError: as :meth:`check`.
          OSError: if it cannot be made or written into.
        """
        self.check(own)
        self.path.mkdir(parents=True, exist_ok=True)
        lock.mark(self.path)

    @contextlib.contextmanager
    def locked(self, own: Collection[str] = ()) -> Iterator[None]:
        """Keeps other processes out inside a ``with`` block; makes the directory.

        Files that a killed process left half-written are removed.

        Args:
          own: as for :meth:`check`.

        Raises:
          ValueError: as :meth:`check`.
          RunInUse: an OSError, if another process, or this one already, holds the
            directory; it says which.
          OSError: if the directory cannot be made or written into. One that is raised
            in the block and names no file, such as that of a full disk, gets the path.
        """
        self.check(own)
        self.path.mkdir(parents=True, exist_ok=True)
        with lock.hold(self.path), files.naming(self.path):
            ownership.remove_orphans(self.path)
            yield

    @classmethod
    def for_results(cls, path: str | os.PathLike[str]) -> "RunDirectory":
        """Opens a directory to write results into; makes nothing yet.

        Raises:
          ValueError: if ``path`` is a file, or a folder in it is a symbolic link.
        """
        _check_place(Path(path))
        files.check_links(path)
        return cls(path)

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        flags: Mapping[str, object],
        *,
        may_differ: Collection[str] = (),
        defaults: Mapping[str, object] | None = None,
        data: Mapping[str, object] | None = None,
    ) -> "RunDirectory":
        """Makes a directory for a run, or opens the one that the same flags made.

        Args:
          path: where.
          flags: the choices that decide the result; plain values that JSON can hold.
          may_differ: names of flags that do not change the result, such as where the
            data are; the directory keeps those it was made with.
          defaults: values of the flags that did not exist yet when the directory was
            made.
          data: facts about the inputs that the flags only name, kept beside them for
            :meth:`data`; None keeps nothing. A directory that is there already keeps
            its own, and the caller compares.

        Raises:
          ValueError: if the directory belongs to a run with other flags, its flags
            cannot be read, it is not the directory of a run, or as
            :meth:`for_results`.
        """
        run = cls.for_results(path)
        run.check()
        given = json_values.as_json(dict(flags))
        if run.is_begun():
            stored = json_values.plain(dict(defaults or {})) | run.flags()
            names = sorted((set(given) | set(stored)) - set(may_differ))
            differing = [n for n in names if given.get(n) != stored.get(n)]
            if differing:
                changes = "; ".join(
                    f"{n} is {_short(stored.get(n))} there and {_short(given.get(n))} "
                    "here"
                    for n in differing
                )
                raise ValueError(f"{path} holds another run: {changes}.")
            return run
        for name in (ownership.CHECKPOINTS, _METRICS):
            if (run.path / name).exists():
                raise ValueError(
                    f"{path} holds {name} but no {_FLAGS}, so its run is "
                    "unknown; put that file back, or give another directory."
                )
        run.write_json(
            _FLAGS,
            {
                "flags": given,
                "git_revision": git_revision(),
                "environment": environment(),
                "command": command(),
                "date": datetime.datetime.now(datetime.UTC).isoformat(),
            }
            | ({} if data is None else {"data": dict(data)}),
        )
        return run

    def is_begun(self) -> bool:
        """Whether the flags of a run are there."""
        return (self.path / _FLAGS).exists()

    def flags(self) -> JsonObject:
        """Returns the flags that the run was made with.

        Raises:
          FileNotFoundError: if the directory is not that of a run.
          ValueError: if the file is damaged.
        """
        flags: JsonObject = self._made_with()["flags"]
        return flags

    def data(self) -> JsonObject | None:
        """Returns the record of the run's data, or None if there is none.

        Raises:
          FileNotFoundError, ValueError: as :meth:`flags`.
        """
        found = self._made_with().get("data")
        return found if isinstance(found, dict) else None

    def change_flags(self, changes: Mapping[str, object]) -> None:
        """Replaces some flags, and notes when and by which command.

        Args:
          changes: their new values by name.

        Raises:
          FileNotFoundError, ValueError: as :meth:`flags`.
        """
        card = self._made_with()
        earlier = card.get("changes")
        note = {
            "before": {name: card["flags"].get(name) for name in changes},
            "command": command(),
            "date": datetime.datetime.now(datetime.UTC).isoformat(),
        }
        card["flags"] |= json_values.plain(changes)
        card["changes"] = [*(earlier if isinstance(earlier, list) else []), note]
        self.write_json(_FLAGS, card)

    def _made_with(self) -> JsonObject:
        file = self.path / _FLAGS
        card = json_values.read(file)
        if not isinstance(card, dict) or not isinstance(card.get("flags"), dict):
            raise ValueError(f"{file} is damaged: it holds no flags.")
        return card

    def log(self, step: int, **scalars: object) -> None:
        """Appends a line of metrics, which survives a kill of the process."""
        line = json.dumps(json_values.plain({"step": step, **scalars}))
        file, opener = self.path / _METRICS, files.open_without_link
        with files.naming(file), open(file, "ab+", opener=opener) as stream:
            # A kill may have cut the last line short; do not write on behind it.
            if stream.tell():
                stream.seek(-1, os.SEEK_END)
                line = line if stream.read() == b"\n" else "\n" + line
            stream.write(f"{line}\n".encode())

    def read_metrics(self) -> list[JsonObject]:
        """Returns the lines of metrics; one that a kill cut short is left out.

        Lines without a step are left out too.
        """
        file = self.path / _METRICS
        if not file.exists():
            return []
        lines = []
        for text in file.read_text(errors="replace").splitlines():
            try:
                line = json.loads(text)
            except (json.JSONDecodeError, RecursionError):
                continue
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                lines.append(line)
        return lines

    def truncate_metrics(self, step: int) -> None:
        """Drops lines after ``step``, which a resumed run will write again."""
        file = self.path / _METRICS
        if file.is_symlink() and not file.exists():
            file.unlink()
        if file.exists():
            kept = [line for line in self.read_metrics() if line["step"] <= step]
            files.write_whole(file, "".join(json.dumps(line) + "\n" for line in kept))

    def write_json(self, name: str, value: object) -> None:
        """Writes a JSON file whole or not at all; NaN is null, infinity a string."""
        text = json.dumps(json_values.plain(value), indent=2, allow_nan=False)
        self.write_text(name, text + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Writes a text file whole or not at all."""
        self.path.mkdir(parents=True, exist_ok=True)
        files.write_whole(self.path / name, text)

    def figure_path(self, name: str) -> Path:
        """Returns the path of the figure called ``name``."""
        self.path.mkdir(parents=True, exist_ok=True)
        return self.path / f"{name}.png"


def read_metrics(path: str | os.PathLike[str]) -> list[JsonObject]:
    """Returns the lines of metrics of the run in ``path``."""
    return RunDirectory(path).read_metrics()


def _check_place(path: Path) -> None:
    """Raises a ValueError where a file is in the way of the directory."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file, not the directory of a run.")
    for above in path.parents:
        if above.is_dir():
            return
        if above.exists():
            raise ValueError(f"{path} cannot be made: {above} is a file.")


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."
