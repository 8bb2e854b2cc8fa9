"""One library in a process of its own, which runs one task whenever it is asked.

  python -m experiments.benchmark.worker MODULE TASK

``MODULE.build(task)`` returns the function to time. The process calls it once and
answers with a line of JSON; then it answers each line that holds a number of calls with
their mean time. It ends where its input ends. :mod:`experiments.benchmark.children`
starts such processes.
"""

import contextlib
import importlib
import importlib.util
import json
import os
import resource
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.benchmark.tasks import Task

# Threads of OpenMP and of XLA spin for a while after their last work.
_QUIET = 0.01
_LONGEST_WAIT = 2.0


def serve(
    build: Callable[[Task], Callable[[], Any]],
    task: Task,
    requests: Any,
    answer: Callable[[dict[str, Any]], None],
) -> None:
    """Builds the function and runs it as often as asked.

    Args:
      build: returns the function; it waits for its own result.
      task: given to ``build``.
      requests: lines, each a number of calls.
      answer: takes the answers.
    """
    run = build(task)
    before = _peak_bytes()
    seconds = _time(run, 1)
    answer(
        {"seconds": seconds, "bytes_before": before, "peak_bytes": _peak_bytes()},
    )
    for line in requests:
        answer({"seconds": _time(run, int(line)), "peak_bytes": _peak_bytes()})


def _time(run: Callable[[], Any], number: int) -> float:
    """Mean seconds of a call; returns when the threads of this process have stopped."""
    start = time.perf_counter()
    for _ in range(number):
        run()
    seconds = (time.perf_counter() - start) / number
    _rest()
    return seconds


def _rest() -> None:
    """Waits until this process uses no processor, so that others have all of it."""
    deadline = time.monotonic() + _LONGEST_WAIT
    used = time.process_time()
    while time.monotonic() < deadline:
        time.sleep(_QUIET)
        before, used = used, time.process_time()
        if used - before < 0.1 * _QUIET:
            return


def _peak_bytes() -> int:
    """The largest resident size of this process so far."""
    with contextlib.suppress(OSError):
        # Linux hands the value of getrusage on to the processes that a process starts.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts in bytes, others in units of 1024 bytes.
    return peak if sys.platform == "darwin" else 1024 * peak


def _keep_freed_memory() -> None:
    """Configures the allocator as the binaries do, for every library alike.

    Not by an import of opnorm, which would import JAX beside PyTorch.
    """
    package = importlib.util.find_spec("opnorm")
    assert package is not None
    assert package.submodule_search_locations is not None
    file = Path(package.submodule_search_locations[0], "runs", "memory.py")
    runpy.run_path(str(file))["keep_freed_memory"]()


def main() -> None:
    """Serves a task; an error becomes an answer with the key "error"."""
    module, task = sys.argv[1:]
    # Libraries may print; the answers go where standard output went.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(content: dict[str, Any]) -> None:
        print(json.dumps(content), file=answers, flush=True)

    _keep_freed_memory()
    try:
        build = importlib.import_module(module).build
        serve(build, Task(**json.loads(task)), sys.stdin, answer)
    except Exception as error:
        if os.environ.get("OPNORM_TRACEBACK"):
            raise
        answer({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
