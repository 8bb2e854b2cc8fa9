"""Times functions in turns, and counts compilations."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import jax

P = ParamSpec("P")
R = TypeVar("R")

# Slower functions are timed once, not in every round.
_LONG = 5.0
# Waits until all arrays of a pytree are computed.
wait: Callable[[Any], Any] = jax.block_until_ready


class Compilations:
    """Counts compilations of each function that is compiled while it is active."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def wrap(self, name: str, fun: Callable[P, R]) -> Callable[P, R]:
        """Returns ``fun``, counting how often it is traced under ``name``."""

        def counted(*args: P.args, **kwargs: P.kwargs) -> R:
            self.counts[name] = self.counts.get(name, 0) + 1
            return fun(*args, **kwargs)

        return counted


def take_turns(
    functions: Mapping[str, Callable[[], Any]], num_rounds: int
) -> dict[str, list[float]]:
    """Returns seconds of each function in interleaved rounds, after a warm-up.

    A function that takes longer than 5 s is timed once, and the time counts in every
    round.
    """
    for run in functions.values():
        wait(run())
    rounds: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(num_rounds):
        for name, run in functions.items():
            if number and rounds[name][0] > _LONG:
                rounds[name].append(rounds[name][0])
                continue
            start = time.perf_counter()
            wait(run())
            rounds[name].append(time.perf_counter() - start)
    return rounds


def ratio(rounds: Mapping[str, list[float]], above: str, below: str) -> float:
    """Computes the median of the rounds' own ratios."""
    pairs = zip(rounds[above], rounds[below], strict=True)
    return statistics.median(a / b for a, b in pairs)


def ratios(
    rounds: Mapping[str, list[float]], *pairs: tuple[str, str]
) -> dict[str, float]:
    """Computes the ratio of each pair of functions, under the name "above / below"."""
    return {f"{above} / {below}": ratio(rounds, above, below) for above, below in pairs}


def medians(rounds: Mapping[str, list[float]]) -> dict[str, float]:
    """Computes the median seconds of each function."""
    return {name: statistics.median(times) for name, times in rounds.items()}
