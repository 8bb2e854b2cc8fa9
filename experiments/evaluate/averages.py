"""Results of networks that differ in their seed alone, as one result."""

from collections.abc import Sequence

from experiments.common import records, seeds
from experiments.common.records import Record

# Entries of an attack that are counted over the networks instead of averaged.
_COUNTS = ("pieces", "reused")
_NAMES = ("attacks", "earlier_attacks")


def over_networks(measured: Sequence[Record], names: Sequence[str]) -> Record:
    """Returns means over the networks, with standard errors over the networks.

    Args:
      measured: the results of :func:`experiments.evaluate.measure.measure` for each
        network. Those of a single one come back as they are.
      names: the names of the networks.
    """
    if len(measured) == 1:
        return measured[0]
    clean = records.mean_and_error([each["clean_accuracy"] for each in measured])
    first = measured[0]
    return {
        "clean_accuracy": clean["mean"],
        "clean_standard_error": clean["standard_error"],
        "attacks": {
            name: _attack([each["attacks"][name] for each in measured])
            for name in first["attacks"]
        },
        "best_known": {
            norm: _best_known([each["best_known"][norm] for each in measured])
            for norm in first["best_known"]
        },
        "checks": _checks([each["checks"] for each in measured], names),
    }


def _attack(cards: Sequence[Record]) -> Record:
    counts = {name: sum(card[name] for card in cards) for name in _COUNTS}
    return {**seeds.average([_without(c, _COUNTS) for c in cards]), **counts}


def _best_known(cards: Sequence[Record]) -> Record:
    """Returns the averages, and all attacks that one of the networks had."""
    attacks = {
        part: list(dict.fromkeys(name for card in cards for name in card[part]))
        for part in _NAMES
    }
    return {**seeds.average([_without(c, _NAMES) for c in cards]), **attacks}


def _without(card: Record, names: Sequence[str]) -> Record:
    return {name: value for name, value in card.items() if name not in names}


def _checks(checks: Sequence[Sequence[Record]], names: Sequence[str]) -> list[Record]:
    """Returns each check once; its detail names the networks that do not pass."""
    merged = []
    for kind in dict.fromkeys(check["name"] for each in checks for check in each):
        failing = [
            f"{name}: {check['detail']}"
            for name, each in zip(names, checks, strict=True)
            for check in each
            if check["name"] == kind and not check["passed"]
        ]
        detail = "; ".join(failing) or f"holds for all {len(checks)} networks"
        merged.append({"name": kind, "passed": not failing, "detail": detail})
    return merged
