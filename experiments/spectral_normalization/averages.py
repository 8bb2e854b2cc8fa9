"""Measurements of one network, or of several that differ in the seed alone.

A network of one seed is its measurements. One of several seeds, or one that is missing,
has "seeds": the measurements by seed, None for a network that is missing, and
"missing": the reason by seed.
"""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.common import records
from experiments.common.records import Record

# The accuracies of a network.
PARTS = ("train", "validation", "test", "clean")

Network = Mapping[str, Any]


def combine(
    found: Mapping[int, Record | None],
    missing: Mapping[int, str],
    origin: Mapping[str, Any],
) -> Record:
    """Returns the measurements of a network of one or of several seeds.

    Args:
      found: measurements by seed; None where the network is missing.
      missing: the reason by seed.
      origin: values that networks of all seeds share.

    Returns:
      The measurements themselves for one seed. Otherwise "seeds", "missing", and the
      accuracies over the networks, None where all are missing.
    """
    (first, *others) = found.values()
    if first is not None and not others:
        return {**origin, **first}
    network = {
        **origin,
        "seeds": {str(seed): each for seed, each in found.items()},
        "missing": {str(seed): reason for seed, reason in missing.items()},
    }
    return network | {part: over(network, operator.itemgetter(part)) for part in PARTS}


def members(network: Network) -> list[Network]:
    """Returns the measurements of the networks that are there, one for each seed."""
    seeds = network.get("seeds")
    if seeds is None:
        return [network]
    return [each for each in seeds.values() if each is not None]


def planned(network: Network) -> int:
    """Returns the number of networks, those that are missing among them."""
    return len(network["seeds"]) if "seeds" in network else 1


def count(network: Network) -> str:
    """Returns the number of networks as text: "3", or "2 of 3" if one is missing."""
    there, all_of_them = len(members(network)), planned(network)
    return f"{there}" if there == all_of_them else f"{there} of {all_of_them}"


def over(network: Network, value: Callable[[Network], Any]) -> Record | None:
    """Averages a quantity over the networks of a cell.

    Args:
      network: the cell.
      value: returns the quantity of one network: a number, a list, a "mean" with its
        "standard_error" over images, or None.

    Returns:
      "mean" and "standard_error" over the networks; for a cell of one seed those over
      its images. None if no network has the quantity. The error is None where it is not
      known, such as that of the only network of several that is there.
    """
    known = [found for each in members(network) if (found := value(each)) is not None]
    if not known:
        return None
    measured = [
        each
        if isinstance(each, Mapping)
        else {"mean": each, "standard_error": _unknown(each)}
        for each in known
    ]
    found = records.over_networks(measured)
    if planned(network) > 1 and len(measured) == 1:
        found["standard_error"] = _unknown(found["mean"])
    return found


def gain(before: Network, after: Network) -> Record | None:
    """Returns the gain of the test accuracy from one network to another, in points.

    Args:
      before: a network.
      after: another one, of the same seeds.

    Returns:
      "mean" and "standard_error": of the differences by image for one seed, and of
      those by seed for several. None if no seed has both.
    """
    if "seeds" not in before and "seeds" not in after:
        hits = [
            np.array([hit == "1" for hit in each["correct"]], float)
            for each in (before, after)
        ]
        return records.mean_and_error(100 * (hits[1] - hits[0]))
    ours, theirs = (_by_seed(each) for each in (before, after))
    gains = [
        100 * (theirs[seed]["test"]["mean"] - each["test"]["mean"])
        for seed, each in ours.items()
        if seed in theirs
    ]
    return records.mean_and_error(gains) if gains else None


def curves(found: Sequence[Mapping[str, Sequence[float]]]) -> Record | None:
    """Averages curves of accuracy by step, as far as all of them go.

    Args:
      found: "step" and "accuracy" of each network.

    Returns:
      "step", and "mean" and "standard_error" over the networks, which is None for each
      step of a single network. None without a curve.
    """
    if not found:
        return None
    length = min(len(each["step"]) for each in found)
    if len(found) == 1:
        mean = list(found[0]["accuracy"])
        average = {"mean": mean, "standard_error": _unknown(mean)}
    else:
        average = records.mean_and_error([each["accuracy"][:length] for each in found])
    return {"step": list(found[0]["step"][:length]), **average}


def _by_seed(network: Network) -> dict[str, Network]:
    seeds = network.get("seeds", {})
    return {seed: each for seed, each in seeds.items() if each is not None}


def _unknown(like: Any) -> Any:
    """Returns None, or a list of NaN for a list."""
    return [math.nan] * len(like) if isinstance(like, Sequence) else None
