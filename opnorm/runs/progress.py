"""Progress on a terminal as a bar, elsewhere as plain lines."""

import contextlib
import importlib.util
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, SupportsFloat

if TYPE_CHECKING:
    from tqdm import tqdm

# A number, an array of one, or a function that returns one.
Metric = SupportsFloat | Callable[[], SupportsFloat]


class Progress:
    """Shows how far a run is: metrics, examples per second and the time left.

    Metrics are read from the device only when something is shown, so that steps queue
    up behind each other in between.

    Args:
      total_steps: steps of the whole run.
      initial: steps done in an earlier process.
      description: the name of the run, before the colon.
      examples: number of examples of a step, or a function ``(n) ->`` their number in
        the first n steps, for the rate.
      unit: the word for a step.
      enabled: False shows nothing.
      interval: seconds between plain lines; a bar is drawn twice a second.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        initial: int = 0,
        description: str = "",
        examples: int | Callable[[int], int] = 1,
        unit: str = "step",
        enabled: bool = True,
        interval: float = 10.0,
    ) -> None:
        self._total = total_steps
        self._initial = initial
        self._description = description
        self._examples = examples
        self._unit = unit
        self._enabled = enabled
        self._terminal = enabled and sys.stderr.isatty() and _has_bars()
        self._interval = 0.5 if self._terminal else interval
        self._created = self._shown = time.monotonic()
        self._start: float | None = None
        self._bar: tqdm | None = None

    def __enter__(self) -> "Progress":
        if self._terminal:
            from tqdm import tqdm

            self._bar = tqdm(
                total=self._total,
                initial=self._initial,
                desc=self._description,
                unit=self._unit,
                dynamic_ncols=True,
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.close()

    def update(self, step: int, **metrics: Metric) -> None:
        """Reports that ``step`` steps are done.

        Args:
          step: number of steps, those of earlier processes included.
          **metrics: scalars, scalar arrays, or functions that return one; read only
            when something is shown.
        """
        now = time.monotonic()
        last = step == self._total
        if self._start is None and not last:
            # The first step is left out of the rate: it waited for the compiler.
            self._start, self._initial = now, step
        if not self._enabled or (now - self._shown < self._interval and not last):
            return
        self._shown = now
        values = {
            name: f"{float(value() if callable(value) else value):.4g}"
            for name, value in metrics.items()
        }
        # Reading the metrics waited for the device: only now is the step really done.
        elapsed = max(time.monotonic() - (self._start or self._created), 1e-9)
        rate = (step - self._initial) / elapsed
        speed = f"{(self._count(step) - self._count(self._initial)) / elapsed:.0f}"
        left = 0.0 if last else float("inf")
        if rate > 0:
            left = (self._total - step) / rate
        try:
            self._show(step, values, speed, left)
        except OSError:
            # The terminal is closed. The run goes on, or ends with a checkpoint.
            self._enabled, self._bar = False, None

    def _show(self, step: int, values: dict[str, str], speed: str, left: float) -> None:
        if self._bar is not None:
            self._bar.set_postfix(values | {"examples/s": speed})
            self._bar.update(step - self._bar.n)
            return
        shown = ", ".join(f"{name} {value}" for name, value in values.items())
        shown = f"{shown}, " if shown else ""
        print(
            f"{self._description}: {self._unit} {step}/{self._total}, {shown}"
            f"{speed} examples/s, {_duration(left)} left",
            file=sys.stderr,
            flush=True,
        )

    def _count(self, steps: int) -> int:
        """How many examples the first steps have together."""
        if callable(self._examples):
            return self._examples(steps)
        return steps * self._examples


def _duration(seconds: float) -> str:
    if seconds == float("inf"):
        return "unknown time"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


def _has_bars() -> bool:
    """Whether tqdm is installed; without it, a terminal gets plain lines too."""
    return importlib.util.find_spec("tqdm") is not None
