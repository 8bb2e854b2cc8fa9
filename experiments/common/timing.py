"""Functions are timed in turns, and compilations are counted."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

# Slower functions are timed once, not in every round.
_LONG = 5.0


class Compilations:
    """Counts compilations of each function that is compiled while it is active."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def wrap(self, name: str, fun: Callable[..., Any]) -> Callable[..., Any]:
        """Returns ``fun``, counting how often it is traced under ``name``."""

        def counted(*args: Any) -> Any:
            self.counts[name] = self.counts.get(name, 0) + 1
            return fun(*args)

        return counted


def take_turns(
    functions: Mapping[str, Callable[[], Any]], num_rounds: int
) -> dict[str, list[float]]:
    """Seconds of each function in each of the interleaved rounds, after a warm-up.

    One that takes longer than ``_LONG`` is timed once and counts in every round.
    """
    for run in functions.values():
        jax.block_until_ready(run())
    rounds: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(num_rounds):
        for name, run in functions.items():
            if number and rounds[name][0] > _LONG:
                rounds[name].append(rounds[name][0])
                continue
            start = time.perf_counter()
            jax.block_until_ready(run())
            rounds[name].append(time.perf_counter() - start)
    return rounds


def pick(rounds: Mapping[str, list[float]], *names: str) -> list[list[float]]:
    """Returns the times of some functions."""
    return [rounds[name] for name in names]


def ratio(rounds: Mapping[str, list[float]], above: str, below: str) -> float:
    """Computes the median of the rounds\' own ratios."""
    pairs = zip(rounds[above], rounds[below], strict=True)
    return statistics.median(a / b for a, b in pairs)


def medians(rounds: Mapping[str, list[float]]) -> dict[str, float]:
    """Computes the median seconds of each function."""
    return {name: statistics.median(times) for name, times in rounds.items()}
