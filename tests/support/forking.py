"""Binaries under test as processes that are forked, not started.

A binary gets a process of its own, forked from one that has imported the libraries and
run nothing: most binaries of the tests take less time than the imports.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.compiler import ROOT

# It forks before anything has started a thread. The child is as ``python -m`` from
# there on, and ends as such, with its exit code and traceback. Most of what binaries
# load is there already: the embedded images alone take as long to decode as a tiny run.
BINARIES = """
import gc, importlib, json, os, runpy, signal, sys
import jax
import opnorm.training
import experiments.common.cli
from experiments.common import figures
from opnorm.data import cifar10_mini

figures.pyplot()
for split in cifar10_mini.SPLITS:
    cifar10_mini.load(split)
# Every child would otherwise look through all of it for garbage, and so copy it.
gc.collect()
gc.freeze()
gc.set_threshold(20_000, 20, 20)
for line in sys.stdin:
    request = json.loads(line)
    if "pid" in request:
        ended, status = os.waitpid(request["pid"], request["options"])
        code = os.waitstatus_to_exitcode(status) if ended else None
        print(json.dumps(code), flush=True)
        continue
    child = os.fork()
    if child == 0:
        signal.alarm(300)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, name in ((1, "stdout"), (2, "stderr")):
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            os.dup2(os.open(request[name], flags), number)
        if "cwd" in request:
            sys.path.insert(0, os.getcwd())
            os.chdir(request["cwd"])
        jax.config.update("jax_num_cpu_devices", request["devices"])
        for module, constants in request["constants"].items():
            vars(importlib.import_module(module)).update(constants)
        sys.argv = [request["module"], *request["arguments"]]
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        break
    print(child, flush=True)
"""


class Servers:
    """Processes of Python on one device, each of which answers lines of JSON."""

    def __init__(self) -> None:
        self._running: list[subprocess.Popen] = []

    def serve(self, code: str) -> Callable[[Any], Any]:
        """Starts a process that runs ``code``.

        Returns:
          ``ask(request)``: gives the process a line of JSON, and returns the line that
          it prints, decoded.
        """
        server = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._running.append(server)

        def ask(request):
            server.stdin.write(json.dumps(request) + "\n")
            server.stdin.flush()
            return json.loads(server.stdout.readline())

        return ask

    def close(self) -> None:
        """Ends the processes.

        Raises:
          RuntimeError: where one had failed.
        """
        for server in self._running:
            server.stdin.close()
            if server.wait(60) != 0:
                raise RuntimeError(f"A server ended with code {server.returncode}.")


class Forked:
    """The part of ``subprocess.Popen`` that tests of a process need."""

    def __init__(self, ask: Callable[[Any], Any], folder: Path, **request: Any) -> None:
        self._ask, self._folder = ask, folder
        self.returncode: int | None = None
        streams = {name: str(folder / name) for name in ("stdout", "stderr")}
        self.pid = ask(request | streams)

    def poll(self, options: int = os.WNOHANG) -> int | None:
        if self.returncode is None:
            self.returncode = self._ask({"pid": self.pid, "options": options})
        return self.returncode

    def wait(self) -> int | None:
        return self.poll(0)

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def communicate(self) -> tuple[str, ...]:
        """Waits for the end; returns the text of stdout and of stderr."""
        self.wait()
        return tuple((self._folder / n).read_text() for n in ("stdout", "stderr"))
