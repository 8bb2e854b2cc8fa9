"""Ending a run on request, by SIGTERM of a cluster, Ctrl-C or a closed terminal.

The running step is finished, a checkpoint written, and the process ends with exit code
143 after SIGTERM, 130 after Ctrl-C (SIGINT) and 129 after SIGHUP. Should that take too
long, because a program is being compiled or the devices are stuck, the process ends
without it: the last checkpoint is whole in any case. A second Ctrl-C ends it at once.
"""

import contextlib
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import NoReturn

# Clusters and container engines wait ten seconds before they kill.
GRACE_SECONDS = 8.0

# Windows has no SIGHUP.
_HANGUP = getattr(signal, "SIGHUP", signal.SIGTERM)


class Preempted(SystemExit):
    """The run ended on request; it can be resumed.

    The exit code is 128 and the number of the signal, as a shell reports it: 143 after
    SIGTERM, 129 after SIGHUP.

    Attributes:
      step: updates done, all of them in the checkpoint.
    """

    def __init__(self, step: int, number: int = signal.SIGTERM) -> None:
        super().__init__(128 + number)
        self.step = step


class Request:
    """Whether the process was asked to end, and by which signal.

    Attributes:
      number: number of the first signal, or None.
    """

    def __init__(self) -> None:
        self.number: int | None = None

    def __bool__(self) -> bool:
        return self.number is not None

    def end(self, step: int) -> NoReturn:
        """Ends as asked, once the checkpoint of a step is written.

        Raises:
          KeyboardInterrupt: after Ctrl-C, as Python programs and notebooks expect.
          Preempted: after any other signal, of this process or another one.
        """
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt(
                f"ended by Ctrl-C after step {step}, which is in a checkpoint"
            )
        raise Preempted(step, self.number or signal.SIGTERM)


@contextlib.contextmanager
def on_signals(
    grace_seconds: float | None = GRACE_SECONDS, *, pass_on: bool = False
) -> Iterator[Request]:
    """Catches SIGTERM, SIGINT and SIGHUP inside a ``with`` block.

    Signals that the process ignores, as under ``nohup``, stay ignored. Outside the main
    thread, where Python allows no handlers, nothing is caught.

    Args:
      grace_seconds: after a signal, the process ends at the latest after this time;
        None for any time.
      pass_on: SIGINT and SIGHUP become SIGTERM, for JAX's service that has several
        processes end together, and SIGTERM itself is left to that service.

    Yields:
      True once a signal has come.
    """
    request = Request()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    numbers = {signal.SIGINT, _HANGUP, signal.SIGTERM}
    if pass_on:
        numbers -= {signal.SIGTERM}
    caught = {n for n in numbers if signal.getsignal(n) is not signal.SIG_IGN}
    # Python's handlers wait for the interpreter, and so for XLA's compiler; the bytes
    # that the C handler writes do not.
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def watch() -> None:
        deadline = None
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([reader], [], [], left)[0]:
                os._exit(128 + (request.number or 0))
            received = reader.recv(1)
            if not received:
                return
            if (number := received[0]) not in caught:
                continue
            if request and number == signal.SIGINT:
                os._exit(128 + number)
            if request:
                continue
            request.number = number
            if grace_seconds is not None:
                deadline = time.monotonic() + grace_seconds
            if number == signal.SIGINT:
                _say("Ctrl-C: ends after this step with a checkpoint; again, at once.")
            if pass_on:
                os.kill(os.getpid(), signal.SIGTERM)

    watcher = threading.Thread(target=watch, daemon=True)
    before_fd = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    before = {number: signal.signal(number, lambda *_: None) for number in caught}
    watcher.start()
    try:
        yield request
    finally:
        signal.set_wakeup_fd(before_fd)
        for number, handler in before.items():
            # None stands for a handler of another library, in C.
            if handler is not None:
                signal.signal(number, handler)
        writer.close()
        watcher.join()
        reader.close()


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)
