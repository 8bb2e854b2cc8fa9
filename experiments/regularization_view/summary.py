"""Sums the measurements of all networks up, by row."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.common import records
from experiments.common.cache import Arrays
from experiments.common.records import Record
from experiments.regularization_view import claims
from experiments.regularization_view.measure import (
    FORMS,
    GAMMA,
    TERMS,
    Examples,
    Settings,
)
from experiments.regularization_view.networks import (
    FGSM,
    PGD,
    STANDARD,
    Trained,
    paper_names,
    title,
)
from opnorm import analysis


class _Histogram(NamedTuple):
    """The values of a histogram, its number of bins, and its ends.

    Ends of None are those of all values.
    """

    values: str
    num_bins: int
    limits: tuple[float, float] | None


# The middle ranges are those of the paper's insets.
_HISTOGRAMS = {
    "test_margin": _Histogram("test_margin", 30, None),
    "train_margin": _Histogram("train_margin", 30, None),
    "probability": _Histogram("test_probability", 40, (0.0, 1.0)),
    "probability_middle": _Histogram("test_probability", 16, (0.1, 0.9)),
    "loss": _Histogram("test_loss", 40, (0.0, 8.0)),
    "loss_middle": _Histogram("test_loss", 14, (0.5, 4.0)),
}
_ORDER = (STANDARD, PGD, FGSM)
_OUTCOMES = analysis.Outcomes._fields


def summarize(
    networks: Sequence[tuple[Trained, Arrays]],
    examples: Mapping[str, Examples],
    settings: Settings,
) -> Record:
    """Sums up the measurements of networks.

    Args:
      networks: networks with their measurements.
      examples: the examples by recipe.
      settings: how they were measured.

    Returns:
      "recipes", by name, with the data and the histograms' edges; "rows", with means
      and standard errors over networks; "changes" and "claims".
    """
    groups: dict[str, list[tuple[Trained, Arrays]]] = {}
    for each, found in networks:
        groups.setdefault(each.row.recipe, []).append((each, found))
    rows, recipes = [], {}
    for recipe, members in groups.items():
        densities, edges = _histograms([found for _, found in members])
        recipes[recipe] = _recipe(members[0][0], examples[recipe], edges)
        rows += _rows(members, densities, settings)
    return {
        "recipes": recipes,
        "rows": rows,
        "changes": [
            change
            for recipe in recipes
            for attack in (PGD, FGSM)
            for change in claims.changes(rows, recipe, attack)
        ],
        "claims": [
            claim
            for recipe in recipes
            for claim in claims.judge(rows, recipe, settings.variation_levels)
        ],
    }


def _recipe(
    each: Trained, examples: Examples, edges: Mapping[str, np.ndarray]
) -> Record:
    dataset, architecture = paper_names(each.config)
    return {
        "title": title(each.config),
        "data": examples.test.description,
        "dataset": dataset,
        "architecture": architecture,
        "train_examples": examples.trained_on,
        "train_measured": len(examples.train),
        "test_examples": len(examples.test),
        "edges": {name: values.tolist() for name, values in edges.items()},
    }


def _rows(
    members: Sequence[tuple[Trained, Arrays]],
    densities: Sequence[Mapping[str, np.ndarray]],
    settings: Settings,
) -> list[Record]:
    places: dict[object, list[int]] = {}
    for place, (each, _) in enumerate(members):
        places.setdefault(each.row, []).append(place)
    rows = []
    for own in places.values():
        first = members[own[0]][0].row
        networks = [
            {
                "run": str(members[place][0].directory),
                "seed": members[place][0].config.seed,
                **scalars(members[place][1], settings),
            }
            for place in own
        ]
        layers = [members[place][1] for place in own]
        rows.append(
            {
                "name": first.name,
                **first._asdict(),
                "clip": first.clip,
                "networks": networks,
                "mean": _means(networks),
                "layers": {
                    "names": layers[0]["layers"].tolist(),
                    **{
                        form: records.mean_and_error([each[form] for each in layers])
                        for form in FORMS
                    },
                },
                "densities": {
                    name: records.mean_and_error([densities[n][name] for n in own])
                    for name in densities[own[0]]
                },
            }
        )
    return sorted(
        rows,
        key=lambda row: (row["clip"] or "", _ORDER.index(row["attack"]), row["level"]),
    )


def scalars(found: Arrays, settings: Settings) -> Record:
    """Returns the quantities of one number of a network.

    Args:
      found: its measurements.
      settings: how they were measured.

    Returns:
      Accuracies, errors and losses on clean examples, their gaps, all as in Tables 2
      to 6; "conditional" and "robust", the accuracies under PGD among the examples that
      are correct without it, and among all; mean and standard deviation of the margin
      in the logits, of the standard deviations of singular values over the layers, and
      of the loss variation for each level.
    """
    train, test = (
        analysis.Outcomes(**{name: found[f"{part}_{name}"] for name in _OUTCOMES})
        for part in ("train", "test")
    )
    gaps = analysis.generalization_gaps(train, test)
    clean, robust = (_accuracy(found[name]) for name in ("test_correct", "robust"))
    conditional = analysis.conditional_accuracy(clean, robust)
    margins = analysis.margin_distribution(test.margin)
    return {
        "train_accuracy": 1 - gaps.error.train,
        "test_accuracy": 1 - gaps.error.test,
        "test_error": gaps.error.test,
        "train_error": gaps.error.train,
        "error_gap": gaps.error.difference,
        "train_loss": gaps.loss.train,
        "test_loss": gaps.loss.test,
        "loss_gap": gaps.loss.difference,
        "conditional": float(conditional.mean),
        "robust": robust.mean,
        "margin_mean": float(margins.mean),
        "margin_std": float(margins.standard_deviation),
        "margin_modulus": float(margins.mean_modulus),
        "ramp_gap": _ramp_risk(test) - _ramp_risk(train),
        **{name: float(found[name]) for name in TERMS},
        **{
            f"variation_{level:g}": float(rises.mean(dtype=np.float64))
            for level, rises in zip(
                settings.variation_levels, found["variation"], strict=True
            )
        },
        **{
            f"variation_std_{level:g}": float(rises.std(dtype=np.float64))
            for level, rises in zip(
                settings.variation_levels, found["variation"], strict=True
            )
        },
    }


def _ramp_risk(outcomes: analysis.Outcomes) -> float:
    return float(analysis.ramp_risk(outcomes.margin, GAMMA).mean)


def _accuracy(correct: np.ndarray) -> analysis.Accuracy:
    found = analysis.average(correct)
    return analysis.Accuracy(float(found.mean), float(found.standard_error), correct)


def _means(networks: Sequence[Record]) -> Record:
    """Means and standard errors over networks of every quantity."""
    names = [name for name in networks[0] if name not in ("run", "seed")]
    return {
        name: records.mean_and_error([network[name] for network in networks])
        for name in names
    }


def _histograms(
    networks: Sequence[Arrays],
) -> tuple[list[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Densities of each network, and the edges that all of them share."""
    densities: list[dict[str, np.ndarray]] = [{} for _ in networks]
    edges = {}
    for name, (values, num_bins, limits) in _HISTOGRAMS.items():
        found = analysis.histograms(
            [each[values] for each in networks], num_bins=num_bins, limits=limits
        )
        edges[name] = found.edges
        for own, density in zip(densities, found.densities, strict=True):
            own[name] = density
    return densities, edges
