"""Freed memory stays with the process: counted by its page faults."""

import os
import subprocess
import sys

import pytest

from opnorm.runs import memory

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="configures the allocator of glibc"
)
# The heap of a thread other than the first holds less than 64 MiB.
_MEGABYTES = 48
# The file runs alone, since the package takes seconds to import. A thread, as those of
# XLA, has an arena of its own.
_CHILD = f"""
import ctypes, resource, runpy, threading
print(runpy.run_path({memory.__file__!r})["keep_freed_memory"]())
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
library.malloc.argtypes = [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]
def touch():
    block = library.malloc({_MEGABYTES} << 20)
    ctypes.memset(block, 1, {_MEGABYTES} << 20)
    library.free(block)
def twice():
    touch()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    touch()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
twice()
thread = threading.Thread(target=twice)
thread.start()
thread.join()
"""


def _child(**environment: str) -> list[str]:
    names = ("MALLOC", "GLIBC_TUNABLES")
    kept = {name: v for name, v in os.environ.items() if not name.startswith(names)}
    done = subprocess.run(
        [sys.executable, "-c", _CHILD],
        env=kept | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_a_block_that_was_freed_is_not_faulted_in_again():
    configured, *faults = _child()
    if configured == "False":
        pytest.skip("the C library is not glibc")
    pages = (_MEGABYTES << 20) // os.sysconf("SC_PAGE_SIZE")
    assert max(map(int, faults)) < pages // 100


def test_the_choice_of_a_user_stands():
    configured, *faults = _child(MALLOC_ARENA_MAX="4")
    assert configured == "False"
    assert int(faults[0]) > 1000
