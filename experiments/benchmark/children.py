"""Libraries in processes of their own, which take turns."""

import contextlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.benchmark.tasks import Task

_ROOT = Path(__file__).parents[2]
# A turn takes at least this many seconds; slower functions are timed once, not in every
# round.
_TURN = 0.3
_LONG = 5.0
_PATIENCE = 10.0


class ChildError(Exception):
    """A process could not build or run its task."""


class Child:
    """A process that runs one task of one library, and does nothing between turns.

    Args:
      module: of the library; see :mod:`experiments.benchmark.worker`.
      task: what it runs.

    Attributes:
      first_seconds: the first call, compilation included; no compiled program is kept
        on disk.
      bytes_before: the largest resident size before the first call.
      peak_bytes: the largest resident size so far.

    Raises:
      ChildError: if the task cannot be built or run.
    """

    def __init__(self, module: str, task: Task) -> None:
        environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "0"}
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        silent = None if "OPNORM_TRACEBACK" in environment else subprocess.DEVNULL
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "experiments.benchmark.worker"),
                *(module, json.dumps(task._asdict())),
            ],
            cwd=_ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=silent,
            text=True,
        )
        try:
            first = self._answer()
        except BaseException:
            self.close()
            raise
        self.first_seconds = float(first["seconds"])
        self.bytes_before = int(first["bytes_before"])
        self.peak_bytes = int(first["peak_bytes"])

    def run(self, number: int = 1) -> float:
        """Returns the mean seconds of so many calls.

        Raises:
          ChildError: if the process has failed.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{number}\n")
            self._process.stdin.flush()
        found = self._answer()
        self.peak_bytes = int(found["peak_bytes"])
        return float(found["seconds"])

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise ChildError(f"its process ended with code {code}")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise ChildError(found["error"])
        return found


def take_turns(
    children: Mapping[str, Child], num_rounds: int
) -> dict[str, list[float]]:
    """Returns the seconds of a call of each child in interleaved rounds.

    Only one of the processes works at a time. A call that takes longer than 5 s is
    timed once, and the time counts in every round.

    Raises:
      ChildError: if a process has failed.
    """
    # The first call may have compiled; the second tells how many make a turn.
    numbers: dict[str, int] = {}
    long: dict[str, float] = {}
    for name, child in children.items():
        seconds = child.run()
        numbers[name] = max(1, math.ceil(_TURN / max(seconds, 1e-9)))
        if seconds > _LONG:
            long[name] = seconds
    rounds: dict[str, list[float]] = {name: [] for name in children}
    for _ in range(num_rounds):
        for name, child in children.items():
            rounds[name].append(
                long[name] if name in long else child.run(numbers[name])
            )
    return rounds
