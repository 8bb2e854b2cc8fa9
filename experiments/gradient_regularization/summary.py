"""Sums up the measurements of each network, and of the networks of each row.

Errors, distances and bounds are computed from the values by image that results.json
holds, so that they can be computed from the file again.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.common.records import Record
from experiments.gradient_regularization.measure import Measured, Settings
from opnorm import analysis

UNDEFENDED = "undefended"
# Pixels up to 1 are rounded, and so is the distance between two images: in Linf an
# attack of budget 1/255 may find a point 6e-8 beyond it.
_ROUNDING = float(np.finfo(np.float32).eps)


def card(found: Measured, settings: Settings) -> Record:
    """Sums up the measurements of one network, as plain numbers and lists."""
    attacked = len(found.distance)
    correct = found.correct[:attacked]
    # A later attack, which may begin at the best point, has to find a nearer one.
    winner = np.where(np.isinf(found.distance), -1, found.by_attack.argmin(axis=0))
    slope = found.slope.gradient_norm
    bounds = {
        "lipschitz": analysis.lipschitz_bound(found.slope.loss, slope.max()),
        **_curvature_bounds(found.curved),
    }
    return of_images(
        {
            "distances": _listed(found.distance),
            "attacks": {
                str(spec): {
                    "found": _part(np.isfinite(found.by_attack[place])[correct]),
                    "nearest": _part((winner == place)[correct]),
                    "seconds": float(found.seconds[place]),
                }
                for place, spec in enumerate(settings.attacks)
            },
            "slope": _mean_and_max(slope),
            "curvature": {
                name: {
                    "signed": _mean_and_max(regularity.curvature),
                    "absolute": _mean_and_max(regularity.absolute_curvature),
                    "largest_error": float(regularity.curvature_error.max()),
                }
                for name, regularity in found.curved.items()
            },
            "bounds": {
                name: {"values": _listed(bound[:attacked])}
                for name, bound in bounds.items()
            },
        },
        settings.epsilons,
        settings.largest,
    )


def of_images(
    one: Mapping[str, Any], epsilons: Sequence[float], largest: float
) -> Record:
    """Computes errors, distances and bounds from the values by image of a card.

    Args:
      one: a card, also of an earlier results.json: "distances", and "values" of each of
        "bounds". Other entries are kept.
      epsilons: errors are computed within these distances.
      largest: the distance of an image that no attack broke.

    Returns:
      The card with "clean_error", "distance", "standard_error", "median", "unbroken"
      and "error_at", all of the same images, and each bound with "mean",
      "standard_error" and "violations".
    """
    distance = np.asarray(one["distances"], np.float64)
    capped = np.minimum(distance, largest)
    mean = analysis.average(capped)
    return {
        **one,
        # An image that is wrong already is at distance 0, and no other is.
        "clean_error": float(np.mean(distance == 0)),
        "distance": float(mean.mean),
        "standard_error": float(mean.standard_error),
        "median": float(np.median(capped)),
        "unbroken": float(np.isinf(distance).mean()),
        "error_at": {
            f"{epsilon:g}": float(np.mean(distance <= epsilon * (1 + 1e-6) + _ROUNDING))
            for epsilon in epsilons
        },
        "bounds": {
            name: _bound(np.asarray(bound["values"], np.float64), distance)
            for name, bound in one["bounds"].items()
        },
    }


def of_rows(rows: Mapping[str, Record], largest: float) -> dict[str, Record]:
    """Adds to each row the mean and the spread of its networks, and its improvement.

    Args:
      rows: rows by name; "seeds" holds the cards of the networks.
      largest: the distance of an image that no attack broke.

    Returns:
      The rows with "mean", "spread" (None for one network), "ratio" over the undefended
      networks, its "ratio_error" over images, and "ratios", one for each seed; a ratio
      that does not exist is None.
    """
    before = rows[UNDEFENDED]["seeds"] if UNDEFENDED in rows else []
    summed = {}
    for name, row in rows.items():
        networks = row["seeds"]
        mean, spread, ratio, error = _combined(networks, np.mean), None, None, None
        if len(networks) > 1:
            spread = _combined(networks, _deviation)
        if before:
            ratio = _ratio(mean, _combined(before, np.mean))
        if ratio is not None:
            error = analysis.improvement_error(
                _distances(networks), _distances(before), largest=largest
            )
        summed[name] = {
            **row,
            "mean": mean,
            "spread": spread,
            "ratio": ratio,
            "ratio_error": error,
            "ratios": [
                _ratio(one, other)
                for one in networks
                for other in before
                if one["seed"] == other["seed"]
            ],
            "seeds": networks,
        }
    return summed


def _ratio(one: Record, other: Record) -> float | None:
    found = analysis.improvement(
        *(each[name] for each in (one, other) for name in ("distance", "clean_error"))
    )
    return None if np.isnan(found.ratio) else found.ratio


def _distances(cards: Sequence[Record]) -> np.ndarray:
    return np.array([one["distances"] for one in cards], np.float64)


def _deviation(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1))


def _combined(cards: Sequence[Record], combine: Callable[[list[float]], Any]) -> Record:
    """The numbers of several networks as one, part by part."""
    combined: Record = {}
    for name, value in cards[0].items():
        values = [each[name] for each in cards]
        if isinstance(value, dict):
            combined[name] = _combined(values, combine)
        elif all(isinstance(v, float) for v in values):
            combined[name] = float(combine(values))
    return combined


def _bound(values: np.ndarray, distance: np.ndarray) -> Record:
    mean = analysis.average(values)
    return {
        "mean": float(mean.mean),
        "standard_error": float(mean.standard_error),
        "violations": analysis.violations(values, distance),
        "values": _listed(values),
    }


def _curvature_bounds(
    curved: Mapping[str, analysis.Regularity],
) -> dict[str, np.ndarray]:
    return {
        f"{name}_{kind}": analysis.curvature_bound(
            regularity.loss, regularity.gradient_norm, largest
        )
        for name, regularity in curved.items()
        for kind, largest in (
            ("signed", regularity.curvature.max()),
            ("absolute", regularity.absolute_curvature.max()),
        )
    }


def _listed(values: np.ndarray) -> list[float]:
    """Numbers with the nine digits that tell every float32 from its neighbours."""
    return [float(f"{value:.9g}") for value in values]


def _mean_and_max(values: np.ndarray) -> Record:
    return {"mean": float(values.mean()), "max": float(values.max())}


def _part(chosen: np.ndarray) -> float | None:
    return float(chosen.mean()) if chosen.size else None
