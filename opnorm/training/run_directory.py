"""training: a run's directory: flags, revision, metrics, results.

The directory alone says how to repeat the run, and nothing in it is half-written.
"""

import datetime
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Collection, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

_FLAGS = "flags.json"
_METRICS = "metrics.jsonl"


class RunDirectory:
    """A directory of results.

    Args:
      path: where it is.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        flags: Mapping[str, Any],
        *,
        may_differ: Collection[str] = (),
        defaults: Mapping[str, Any] | None = None,
    ) -> "RunDirectory":
        """Makes a directory for a run, or opens the one that the same flags made.

        Args:
          path: where.
          flags: what decides the result; plain values that JSON can hold.
          may_differ: names of flags that do not change the result, such as where the
            data are; the directory keeps those it was made with.
          defaults: what a flag was that did not exist yet when the directory was made.

        Raises:
          ValueError: if the directory belongs to a run with other flags, or its flags
            cannot be read.
        """
        run = cls(path)
        if run.path.exists() and not run.path.is_dir():
            raise ValueError(f"{path} is a file, not the directory of a run.")
        given = json.loads(json.dumps(_plain(dict(flags))))
        if (run.path / _FLAGS).exists():
            stored = _plain(dict(defaults or {})) | run.flags()
            names = sorted((set(given) | set(stored)) - set(may_differ))
            differing = [n for n in names if given.get(n) != stored.get(n)]
            if differing:
                changes = "; ".join(
                    f"{n} is {stored.get(n)} there and {given.get(n)} here"
                    for n in differing
                )
                raise ValueError(f"{path} holds another run: {changes}.")
            return run
        run.write_json(
            _FLAGS,
            {
                "flags": given,
                "git_revision": git_revision(),
                "environment": environment(),
                "command": sys.argv,
                "date": datetime.datetime.now(datetime.UTC).isoformat(),
            },
        )
        return run

    def flags(self) -> dict[str, Any]:
        """Returns the flags that the run was made with.

        Raises:
          FileNotFoundError: if the directory is not that of a run.
          ValueError: if the file is damaged.
        """
        file = self.path / _FLAGS
        try:
            return json.loads(file.read_text())["flags"]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{file} is damaged: {error}.") from error

    def log(self, step: int, **scalars: Any) -> None:
        """Appends a line of metrics; what is written survives a kill of the process."""
        line = json.dumps(_plain({"step": step, **scalars}))
        with (self.path / _METRICS).open("ab+") as stream:
            # A kill may have cut the last line short; do not write on behind it.
            if stream.tell():
                stream.seek(-1, os.SEEK_END)
                line = line if stream.read() == b"\n" else "\n" + line
            stream.write(f"{line}\n".encode())

    def read_metrics(self) -> list[dict[str, Any]]:
        """Returns the lines of metrics; one that a kill cut short is left out."""
        file = self.path / _METRICS
        if not file.exists():
            return []
        lines = []
        for text in file.read_text(errors="replace").splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                continue
        return lines

    def truncate_metrics(self, step: int) -> None:
        """Drops lines after ``step``, which a resumed run will write again."""
        file = self.path / _METRICS
        if file.exists():
            kept = [line for line in self.read_metrics() if line["step"] <= step]
            _write(file, "".join(json.dumps(line) + "\n" for line in kept))

    def write_json(self, name: str, value: Any) -> None:
        """Writes a JSON file whole or not at all; NaN is null, infinity a string."""
        self.path.mkdir(parents=True, exist_ok=True)
        text = json.dumps(_plain(value), indent=2, allow_nan=False)
        _write(self.path / name, text + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Writes a text file whole or not at all."""
        self.path.mkdir(parents=True, exist_ok=True)
        _write(self.path / name, text)

    def figure_path(self, name: str) -> Path:
        """Returns where the figure called ``name`` belongs."""
        self.path.mkdir(parents=True, exist_ok=True)
        return self.path / f"{name}.png"


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Returns the lines of metrics of the run in ``path``."""
    return RunDirectory(path).read_metrics()


def git_revision() -> str | None:
    """Returns the revision of the checkout opnorm lies in, "-dirty" if changed."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != here.parent.parent:
            return None
        dirty = "-dirty" if git("status", "--porcelain") else ""
        return git("rev-parse", "HEAD") + dirty
    except (OSError, subprocess.CalledProcessError):
        return None


def environment() -> dict[str, Any]:
    """Returns the hardware and the versions that a result was made with."""
    # Not at the top: opnorm imports this module before it knows its version.
    import opnorm

    devices = jax.devices()
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {
        "device": devices[0].device_kind,
        "platform": devices[0].platform,
        "device_count": len(devices),
        "cpu_count": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "opnorm": opnorm.__version__,
        **{name: metadata.version(name) for name in packages},
    }


def _plain(value: Any) -> Any:
    """Arrays as numbers and lists, NaN as null, infinity as a string."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        array = np.asarray(value)
        # Numbers that are not NumPy's own, such as bfloat16.
        array = array.astype(np.float32) if array.dtype.kind == "V" else array
        return _plain(array.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        # What is not known, such as the standard error of one example, is null.
        return None if math.isnan(value) else str(value)
    if isinstance(value, Path):
        return str(value)
    return value


def _write(file: Path, text: str) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    with temporary.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, file)
