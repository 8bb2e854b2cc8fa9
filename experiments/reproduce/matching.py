r"""The search for the lambda at which a penalty costs what adversarial training costs.

Roth et al. chose lambda so that the clean accuracy is that of adversarial training. The
search does so on the validation split, which neither training nor the tables use:

1. The target is the clean accuracy of the adversarially trained network of the first
   seed, in the norm of the penalty.
2. A lambda is small enough while the clean accuracy is at least the target minus the
   tolerance. The first lambda is that of the preset. Lambda rises tenfold while it is
   small enough, and falls tenfold while it is not.
3. Between the largest lambda that is small enough and the next one that is not, the
   next lambda is their geometric mean: bisection in log lambda, until the two are
   within a factor of 1.5 and a network is within the tolerance on both sides.
4. The search ends there, or after a number of networks. Among the networks within the
   tolerance the one with the largest accuracy under the attack is chosen; if there is
   none, the one whose clean accuracy is nearest, and the record says that lambda is not
   matched.

The first network within the tolerance does not end the search: a small lambda may cost
no accuracy at all, and then the larger ones are as accurate and more robust.

A network whose updates stop being finite counts as one with too large a lambda.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from experiments.common.records import Record

_FACTOR = 10.0
# Ratio of neighbouring lambdas at which bisection ends.
_FINE = 1.5
# Digits of lambda, so that names of runs are short.
_DIGITS = 3


class Trial(NamedTuple):
    """A network of the search; accuracies are fractions of the validation split.

    Attributes:
      weight: its lambda.
      clean: clean accuracy; None if its training failed.
      clean_error: standard error of it over the images.
      attacked: accuracy under the attack.
      attacked_error: standard error of it over the images.
    """

    weight: float
    clean: float | None
    clean_error: float | None = None
    attacked: float | None = None
    attacked_error: float | None = None


class Limits(NamedTuple):
    """When the search ends.

    Attributes:
      tolerance: largest difference to the target, a fraction.
      networks: largest number of networks, at least 1.
    """

    tolerance: float
    networks: int


def search(
    train: Callable[[float], Trial], target: float, start: float, limits: Limits
) -> list[Trial]:
    """Trains networks with one lambda after another.

    Args:
      train: trains and measures the network of one lambda.
      target: the clean accuracy to match.
      start: the first lambda, positive.
      limits: when to end.

    Returns:
      The networks in the order of the search.
    """
    trials: list[Trial] = []
    weight: float | None = start
    while weight is not None and len(trials) < limits.networks:
        trials.append(train(weight))
        weight = _next(trials, target, limits.tolerance)
    return trials


def choose(trials: Sequence[Trial], target: float, tolerance: float) -> Trial | None:
    """Returns the network that the procedure chooses; None if all have failed."""
    measured = [trial for trial in trials if trial.clean is not None]
    within = [trial for trial in measured if is_within(trial, target, tolerance)]
    if within:
        return max(within, key=lambda trial: trial.attacked or 0.0)
    return min(measured, key=lambda trial: _distance(trial, target), default=None)


def is_within(trial: Trial, target: float, tolerance: float) -> bool:
    """Returns whether the clean accuracy of a network is that of the target."""
    # A difference of the tolerance itself may be rounded up.
    return _distance(trial, target) <= tolerance + 1e-9


def record(
    trials: Sequence[Trial], target: Record, limits: Limits, **facts: object
) -> Record:
    """Returns the record of a search.

    Args:
      trials: the networks.
      target: the measurements of the reference: "clean" and its error, "attacked".
      limits: as for :func:`search`.
      **facts: further entries.

    Returns:
      The facts, "target", "tolerance", "most_networks", "trials", "chosen", the lambda,
      or None if all networks have failed, and "matched".
    """
    chosen = choose(trials, target["clean"], limits.tolerance)
    matched = chosen is not None and is_within(
        chosen, target["clean"], limits.tolerance
    )
    return {
        **facts,
        "target": target,
        "tolerance": limits.tolerance,
        "most_networks": limits.networks,
        "trials": [trial._asdict() for trial in trials],
        "chosen": None if chosen is None else chosen.weight,
        "matched": matched,
    }


def _distance(trial: Trial, target: float) -> float:
    return math.inf if trial.clean is None else abs(trial.clean - target)


def _next(trials: Sequence[Trial], target: float, tolerance: float) -> float | None:
    """Returns the next lambda; None if the search is finished."""
    large = [t.weight for t in trials if not _is_small(t, target, tolerance)]
    small = [t.weight for t in trials if _is_small(t, target, tolerance)]
    if not large:
        return _rounded(max(small) * _FACTOR)
    high = min(large)
    # Noise may put a lambda that is small enough above one that is not.
    below = [weight for weight in small if weight < high]
    if not below:
        return _rounded(high / _FACTOR)
    low = max(below)
    found = any(is_within(trial, target, tolerance) for trial in trials)
    if found and high <= _FINE * low:
        return None
    weight = _rounded(math.sqrt(low * high))
    return None if weight in (low, high) else weight


def _is_small(trial: Trial, target: float, tolerance: float) -> bool:
    """Returns whether a network is at least as accurate as asked."""
    return trial.clean is not None and (
        trial.clean > target or is_within(trial, target, tolerance)
    )


def _rounded(weight: float) -> float:
    return float(f"{weight:.{_DIGITS}g}")
