"""training: an end on request: SIGTERM, as clusters send it before they take a machine.

The running step is finished, a checkpoint written, and the process ends with exit code
143. Should that take too long, because a program is being compiled or the devices are
stuck, the process ends without it: the last checkpoint is whole in any case.
"""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator

# What a shell reports of a process that SIGTERM ended.
EXIT_CODE = 128 + signal.SIGTERM
# Clusters and container engines wait ten seconds before they kill.
GRACE_SECONDS = 8.0


class Preempted(SystemExit):
    """The run was asked to end and did, with exit code 143; it can be resumed.

    Attributes:
      step: updates done, all of them in the checkpoint.
    """

    def __init__(self, step: int) -> None:
        super().__init__(EXIT_CODE)
        self.step = step


class Request:
    """Whether the process was asked to end."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def __bool__(self) -> bool:
        return self._event.is_set()

    def set(self) -> None:
        """Asks it to end."""
        self._event.set()


@contextlib.contextmanager
def on_sigterm(grace_seconds: float = GRACE_SECONDS) -> Iterator[Request]:
    """Catches SIGTERM inside a ``with`` block.

    Outside the main thread, where Python allows no handlers, nothing is caught.

    Args:
      grace_seconds: after a signal, the process ends at the latest after this time.

    Yields:
      True once a signal has come.
    """
    request = Request()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    # Python's handlers wait for the interpreter, and so for XLA's compiler; the bytes
    # that the C handler writes do not.
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    finished = threading.Event()

    def watch() -> None:
        while received := reader.recv(1):
            if received[0] != signal.SIGTERM:
                continue
            request.set()
            if not finished.wait(grace_seconds):
                os._exit(EXIT_CODE)
            return

    watcher = threading.Thread(target=watch, daemon=True)
    before_fd = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    watcher.start()
    try:
        yield request
    finally:
        finished.set()
        signal.set_wakeup_fd(before_fd)
        signal.signal(signal.SIGTERM, before)
        writer.close()
        watcher.join()
        reader.close()
