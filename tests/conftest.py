"""What every test shares: eight devices, a compilation cache, forked processes."""

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parent.parent
_CACHE = ROOT / ".cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# Decompositions of small blocks, one after another: threads that wait for each other
# take the core of the other test process.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# "default" leaves JAX as a user has it: for the smoke set, on any backend.
DEFAULT_FLAGS = os.environ.get("OPNORM_TEST_FLAGS") == "default"
if not DEFAULT_FLAGS:
    os.environ["JAX_PLATFORMS"] = "cpu"
    # Most of the suite's time is compilation of programs that run once.
    _FLAGS = "--xla_backend_optimization_level=0"
    _FLAGS += " --xla_llvm_disable_expensive_passes=true"
    # Cut into parts for threads, a program takes longer where every core has a process.
    _FLAGS += " --xla_cpu_parallel_codegen_split_count=1"
    if metadata.version("jaxlib").startswith("0.10."):
        # The older way to compile fusions takes a third less time; later releases have
        # dropped the flag, and end a process that sets it.
        _FLAGS += " --xla_cpu_use_fusion_emitters=false"
    os.environ.setdefault("XLA_FLAGS", _FLAGS)

import jax  # noqa: E402

if not DEFAULT_FLAGS:
    jax.config.update("jax_num_cpu_devices", 8)

import gc  # noqa: E402
from collections.abc import Iterator  # noqa: E402

import pytest  # noqa: E402


def _share_contexts(programs: int) -> None:
    """Has so many programs in a row lowered in one MLIR context.

    JAX makes one for each program, and loads all dialects into it: a quarter of the
    time that lowering takes here. Attributes, such as constants, live as long as their
    context. Where a release has no such function, every program has its own.
    """
    try:
        from jax._src.interpreters import mlir

        make = mlir.make_ir_context
    except (ImportError, AttributeError):
        return
    context, left = None, 0

    def shared():
        nonlocal context, left
        if left == 0:
            context, left = make(), programs
        left -= 1
        return context

    mlir.make_ir_context = shared


_share_contexts(programs=100)


def pytest_collection_finish() -> None:
    """What is imported stays, and need not be looked through for garbage again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(autouse=True, scope="module")
def _release_compiled_programs() -> Iterator[None]:
    """Programs map memory, and a process may map only so many pieces of it.

    With all of the suite's programs alive, XLA's compiler ended in a segmentation
    fault, at Linux's usual limit of 65,530.
    """
    yield
    maps = Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") > 40_000:
        jax.clear_caches()
        gc.collect()


# Forks before anything has started a thread; the child is as ``python -m`` from there
# on, and ends as such, with its exit code and traceback. What most binaries load is
# there already: the pictures alone take as long to decode as a tiny run takes.
_FORKING = """
import gc, json, os, runpy, signal, sys
import jax
import opnorm.training
import experiments.common.cli
from experiments.common import figures
from opnorm.data import cifar10_mini

figures.pyplot()
for split in cifar10_mini.SPLITS:
    cifar10_mini.load(split)
# Or every child would look through all of it, and copy it, to collect garbage.
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
        jax.config.update("jax_num_cpu_devices", request["devices"])
        sys.argv = [request["module"], *request["arguments"]]
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        break
    print(child, flush=True)
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


class _Forked:
    """As much of ``subprocess.Popen`` as tests of a process need."""

    def __init__(self, ask, folder, **request):
        self._ask, self._folder, self.returncode = ask, folder, None
        streams = {name: str(folder / name) for name in ("stdout", "stderr")}
        self.pid = ask(request | streams)

    def poll(self, options=os.WNOHANG):
        if self.returncode is None:
            self.returncode = self._ask({"pid": self.pid, "options": options})
        return self.returncode

    def wait(self):
        return self.poll(0)

    def send_signal(self, number):
        os.kill(self.pid, number)

    def communicate(self):
        """Waits for the end; what was written to stdout, and to stderr."""
        self.wait()
        return tuple((self._folder / n).read_text() for n in ("stdout", "stderr"))


@pytest.fixture(scope="session")
def start(serve, tmp_path_factory):
    """``(name, *arguments, devices=1) ->`` a process of a binary, which has just begun.

    Every binary gets a process of its own, forked from one that has imported the
    libraries and run nothing: most binaries of the tests take less time than that.
    """
    ask = serve(_FORKING)

    def start(name, *arguments, devices=1):
        return _Forked(
            ask,
            tmp_path_factory.mktemp("output"),
            module=f"experiments.{name}",
            arguments=[str(argument) for argument in arguments],
            devices=devices,
        )

    return start
