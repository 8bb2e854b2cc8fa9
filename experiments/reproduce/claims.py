"""Differences between rows, and verdicts on the paper's claim computed from them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.common import records
from experiments.common.records import Record

# Points of accuracy within which two networks are equally robust here, a fraction.
LIMIT = 0.03
# Standard errors that a verdict has to hold within.
_ERRORS = 2.0
# Allowance for rounding in a difference of fractions, such as 0.5 - 0.47.
_ROUNDING = 1e-9


def difference(
    row: Sequence[Record], other: Sequence[Record], kind: str, norm: str
) -> Record | None:
    """Subtracts the accuracy of a row from that of another, seed by seed.

    Args:
      row: measurements of the networks of a row.
      other: those of the other row.
      kind: "accuracy", under PGA, or "auto_attack".
      norm: the norm of the attack, such as "L2".

    Returns:
      "epsilon", from 0 on; "larger", the larger accuracy of both at each length, a mean
      over the pairs; and the entries of :func:`records.over_networks`, of the pairs of
      networks with one seed. The error of one pair takes its networks as
      independent, and is too large for images that both get right or wrong. None
      without a pair.
    """
    mine, others = (
        {each["seed"]: each[kind][norm] for each in networks if norm in each[kind]}
        for networks in (row, other)
    )
    seeds = [seed for seed in mine if seed in others]
    if not seeds:
        return None
    differences = [_subtract(mine[seed], others[seed]) for seed in seeds]
    epsilon = mine[seeds[0]]["epsilon"]
    pairs = [np.maximum(mine[seed]["mean"], others[seed]["mean"]) for seed in seeds]
    larger = np.mean(pairs, axis=0).tolist()
    return {
        "epsilon": epsilon,
        "larger": larger,
        **records.over_networks(differences),
    }


def judge(found: Mapping[str, Any], largest: float) -> Record:
    """Judges whether two rows are equally robust at every length up to the training's.

    Lengths at which both rows keep three points of accuracy or less cannot differ by
    more, so they say nothing and are left out.

    Args:
      found: as :func:`difference` returns it.
      largest: the length in training; larger ones are not judged.

    Returns:
      "verdict", see below; "largest", the largest difference with its "error" and its
      "epsilon"; "clean", the difference on clean images with its error; "networks" and
      "over". The verdict is None where no length is judged, "open: both fall" where
      both rows keep three points or less at all of them, and otherwise "yes" where
      all differences are at most three points, "no" where one is larger. ", within
      error" ends it where differences two standard errors smaller or larger would
      change it.
    """
    names = ("mean", "standard_error", "epsilon", "larger")
    points = zip(*(found[name] for name in names), strict=True)
    reached = [point for point in points if is_judged(point[2], largest)]
    if not reached:
        return {"verdict": None}
    telling = [point[:3] for point in reached if point[3] > LIMIT]
    judged = telling or [point[:3] for point in reached]
    mean, error, epsilon = max(judged, key=lambda point: abs(point[0]))
    verdict = "open: both fall"
    if telling:
        yes = abs(mean) <= LIMIT + _ROUNDING
        verdict = "yes" if yes else "no"
        verdict += "" if _is_clear(judged, yes) else ", within error"
    return {
        "verdict": verdict,
        "largest": {"mean": mean, "standard_error": error},
        "epsilon": epsilon,
        "clean": {part: found[part][0] for part in ("mean", "standard_error")},
        "networks": found["networks"],
        "over": found["over"],
    }


def is_judged(epsilon: float, largest: float) -> bool:
    """Returns whether a length is at most that in training, and above 0."""
    # Flags give lengths with few digits, 0.01569 for 4/255.
    return 0 < epsilon <= largest * (1 + 1e-3)


def _subtract(one: Mapping[str, Any], two: Mapping[str, Any]) -> Record:
    mean = np.subtract(one["mean"], two["mean"])
    errors = [np.array(c["standard_error"], np.float64) for c in (one, two)]
    return {"mean": mean.tolist(), "standard_error": np.hypot(*errors).tolist()}


def _is_clear(judged: Sequence[tuple[float, float | None, float]], yes: bool) -> bool:
    """Whether the verdict stands at the ends of the error bars."""
    reach = [
        (abs(mean), _ERRORS * (math.inf if error is None else error))
        for mean, error, _ in judged
    ]
    if yes:
        return all(mean + error <= LIMIT + _ROUNDING for mean, error in reach)
    return any(mean - error > LIMIT + _ROUNDING for mean, error in reach)
