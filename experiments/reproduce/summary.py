"""Sums the measurements of all networks up, by row."""

import dataclasses
from collections.abc import Mapping, Sequence

from experiments.common.measure import norm_name
from experiments.common.records import Record
from experiments.reproduce import claims, measure, networks
from experiments.reproduce.networks import Row
from opnorm import training


def summarize(
    rows: Sequence[Row], found: Mapping[str, list[Record]], test_steps: int
) -> Record:
    """Sums up the measurements of networks.

    Args:
      rows: the rows, which have one seed after another.
      found: by row the measurements of its networks, as far as they are there.
      test_steps: number of steps of PGA.

    Returns:
      "seeds"; "training_epsilons" by norm; "rows" by name, with means and standard
      errors over networks; "verdicts" and "controls", comparisons of rows.
    """
    epsilons = training_epsilons(rows)
    return {
        "seeds": [each.seed for each in rows[0].networks],
        "training_epsilons": {norm_name(p): e for p, e in epsilons.items()},
        "rows": {row.name: _summary(row, found.get(row.name, [])) for row in rows},
        "verdicts": _verdicts(rows, found, test_steps),
        "controls": _controls(rows, found),
    }


def training_epsilons(rows: Sequence[Row]) -> dict[float, float]:
    """Returns the largest length of adversarial training, by the norm."""
    used = training.methods_with("random_start", "search")
    found: dict[float, float] = {}
    for row in rows:
        if row.config.method in used:
            epsilon = training.in_pixels(row.config).epsilon
            found[row.config.p] = max(epsilon, found.get(row.config.p, 0.0))
    return found


def _summary(row: Row, measured: list[Record]) -> Record:
    summary: Record = {
        "preset": row.preset,
        "config": dataclasses.asdict(row.config),
        "networks": measured,
    }
    for kind in ("accuracy", "auto_attack"):
        summary[kind] = measure.average(measured, kind) if measured else {}
    if measured:
        summary["steps"] = measured[0]["steps"]
    return summary


def _verdicts(
    rows: Sequence[Row], found: Mapping[str, list[Record]], test_steps: int
) -> list[Record]:
    """Compares every row with a penalty with adversarial training in its norm."""
    attacks = {
        "accuracy": f"PGA-{test_steps}",
        "auto_attack": "AutoAttack",
    }
    verdicts = []
    for row in rows:
        other = networks.reference(row, rows)
        # Global SNR has no length, and the claim is not about it.
        if other is None or row.config.method == "global_snr":
            continue
        norm = norm_name(row.config.p)
        epsilon = training.in_pixels(other.config).epsilon
        pair = (found.get(row.name, []), found.get(other.name, []))
        for kind, attack in attacks.items():
            difference = claims.difference(*pair, kind, norm)
            if difference is None:
                continue
            judged = claims.judge(difference, epsilon)
            if judged["verdict"] is not None:
                verdicts.append(
                    {
                        "row": row.name,
                        "reference": other.name,
                        "attack": f"{attack} {norm}",
                        **judged,
                        "differences": difference,
                    }
                )
    return verdicts


def _controls(rows: Sequence[Row], found: Mapping[str, list[Record]]) -> list[Record]:
    """Compares the clean accuracy of every row with that of its control."""
    compared = []
    for row in rows:
        other = networks.control(row, rows)
        if other is None:
            continue
        pair = (found.get(row.name, []), found.get(other.name, []))
        difference = claims.difference(*pair, "accuracy", "L2")
        if difference is not None:
            compared.append(
                {
                    "row": row.name,
                    "control": other.name,
                    "difference": {
                        part: difference[part][0] for part in ("mean", "standard_error")
                    },
                    "networks": difference["networks"],
                    "over": difference["over"],
                }
            )
    return compared
