"""Binaries run as a user runs them, and runs that are there without training."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from opnorm import training
from opnorm.training import checkpoints, network

ROOT = Path(__file__).parent.parent.parent
# Forks before anything has started a thread; the child is as ``python -m`` from there
# on, and ends as such, with its exit code and traceback.
_FORKING = """
import json, os, runpy, signal, sys
import opnorm.training
import experiments.cli

for line in sys.stdin:
    request = json.loads(line)
    child = os.fork()
    if child == 0:
        signal.alarm(300)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, name in ((1, "stdout"), (2, "stderr")):
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            os.dup2(os.open(request[name], flags), number)
        sys.argv = [request["module"], *request["arguments"]]
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        break
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


@pytest.fixture(scope="session")
def serve():
    """``(code) -> ask``: code in a process of its own, on one device.

    ``ask(request)`` gives it a line of JSON and returns the one that it prints.
    """
    servers = []

    def serve(code):
        server = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        servers.append(server)

        def ask(request):
            server.stdin.write(json.dumps(request) + "\n")
            server.stdin.flush()
            return json.loads(server.stdout.readline())

        return ask

    yield serve
    for server in servers:
        server.stdin.close()
        assert server.wait(60) == 0


@pytest.fixture(scope="session")
def run(serve, tmp_path_factory):
    """``(name, *arguments) -> CompletedProcess`` of a binary, on one device.

    Every binary gets a process of its own, forked from one that has imported the
    libraries and run nothing: most binaries of the tests take less time than that.
    """
    ask = serve(_FORKING)
    folder = tmp_path_factory.mktemp("output")

    def run(name, *arguments):
        module = f"experiments.{name}"
        request = {
            "module": module,
            "arguments": [str(argument) for argument in arguments],
            "stdout": str(folder / "stdout"),
            "stderr": str(folder / "stderr"),
        }
        code = ask(request)
        out, err = ((folder / stream).read_text() for stream in ("stdout", "stderr"))
        return subprocess.CompletedProcess([module, *arguments], code, out, err)

    return run


@pytest.fixture(scope="session")
def save_untrained():
    """``(folder, config, seed)``: writes a run whose network is as it begins."""

    def save(folder, config, seed):
        module = training.build_model(config, 10)
        params, batch_stats = network.init(module, jax.random.key(seed), (32, 32, 3))
        store = checkpoints.CheckpointStore(folder / "checkpoints")
        state = {"params": params, "batch_stats": batch_stats}
        store.save(0, state, {"config": dataclasses.asdict(config)})
        store.close()

    return save
