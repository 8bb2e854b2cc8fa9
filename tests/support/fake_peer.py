"""A library whose tasks only sleep, print, spin, allocate or fail.

The benchmark runs it in a process of its own. A call of a task that sleeps or spins
leaves a line in the file "log" of the task's folder: the library, begin and end.
"""

import os
import threading
import time
from pathlib import Path

# Seconds of a call of opnorm's task, and of the others by their layout.
OPNORM = 0.02
LAYOUTS = {False: 0.08, True: 0.04}


def build(task):
    """Returns the function of a task."""
    if task.name == "fails":
        raise ValueError("the task is unknown")
    return lambda: FUNCTIONS.get(task.name, sleep)(task)


def sleep(task):
    begin = time.monotonic()
    print("libraries print")
    time.sleep(OPNORM if task.library == "opnorm" else LAYOUTS[task.channels_last])
    log(task, begin)


def spin(task):
    """Threads of PyTorch use a processor for a while after their work."""

    def turn():
        begin = time.monotonic()
        while time.monotonic() < begin + 0.3:
            pass
        log(task, begin)

    threading.Thread(target=turn).start()


def allocate(task):
    del task
    bytearray(os.urandom(1 << 20) * 64)


def die(task):
    del task
    os._exit(3)


def log(task, begin):
    with (Path(task.folder) / "log").open("a") as file:
        file.write(f"{task.library} {begin} {time.monotonic()}\n")


FUNCTIONS = {"spins": spin, "allocates": allocate, "dies": die}
