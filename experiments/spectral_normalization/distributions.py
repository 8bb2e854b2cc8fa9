"""Figures of distributions over images, of experiments.spectral_normalization.

Distributions are drawn as the part of the images with less. For margins this part is
the margin loss of the paper's Eqs. 1 and 8; no width of bins is needed.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.common import figures
from experiments.common.records import Record
from experiments.spectral_normalization import averages, layout
from experiments.spectral_normalization.tables import (
    bound_label,
    label,
    log_released_unit,
    log_unit,
    random_labels,
)
from opnorm import runs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PERCENTS = np.linspace(0, 100, 101)
# Decades below the largest value that are drawn.
_DECADES = 6.0
_MARGIN_DECADES = 2.0


def draw_distributions(
    out: runs.RunDirectory, results: Record, quantity: str, unit: str, title: str
) -> None:
    """The part of the images with less of a quantity, by bound."""
    schemes, kind = results["schemes"], results["methods"][0]
    figure, panels = layout.new_panels(
        results, title, [label(name) for name in schemes]
    )
    styles = layout.styles(results)
    known = []
    for axes, scheme in zip(panels, schemes.values(), strict=True):
        for network in layout.bounded_by(kind, scheme):
            values = [
                _percentiles(each, quantity) for each in averages.members(network)
            ]
            mean = _draw_distribution(axes, values, styles(network))
            known.append(mean[np.isfinite(mean) & (mean > 0)])
    shown = np.concatenate(known)
    for axes in panels:
        axes.set_ylim(0, 100)
        axes.set_xlabel(unit)
        if len(shown):
            lowest = max(shown.min(), shown.max() * 10**-_DECADES)
            figures.scale_log(axes, lowest / 1.2, 1.2 * shown.max())
    layout.save(out, quantity, figure, panels, "images with less (%)")


def _draw_distribution(
    axes: "Axes", values: Sequence[np.ndarray], style: figures.Style
) -> np.ndarray:
    """Draws percentiles, the mean over networks with a band; returns the mean."""
    if not values:
        return np.full_like(_PERCENTS, np.nan)
    # Percentiles that are not finite in one network are not drawn for the others.
    with np.errstate(invalid="ignore"):
        mean: np.ndarray = np.mean(values, axis=0)
        axes.plot(mean, _PERCENTS, **style)
        if len(values) > 1:
            error = np.std(values, axis=0, ddof=1) / math.sqrt(len(values))
            axes.fill_betweenx(
                _PERCENTS,
                mean - error,
                mean + error,
                color=style["color"],
                alpha=0.15,
                lw=0,
            )
    return mean


# The units that margins are drawn in, and the row of panels of each.
_UNITS: tuple[tuple[str, Callable[[Mapping[str, Any]], float | None]], ...] = (
    ("the margin (logits)", lambda network: 0.0),
    ("margin / $\\sqrt{\\Phi}$", log_unit),
    ("margin / unit of the released code", log_released_unit),
)


def draw_margins(out: runs.RunDirectory, results: Record) -> None:
    """Margins of attacked training images: as they are, and in the paper's units."""
    schemes, kind = results["schemes"], results["methods"][0]
    pairs = {name: layout.pair_of(kind, scheme) for name, scheme in schemes.items()}
    networks = [network for pair in pairs.values() for _, network in pair]
    # Earlier measurements have no unit of the released code.
    plain, *units = _UNITS
    rows = [plain]
    rows += [
        row for row in units if any(_known_unit(each, row[1]) for each in networks)
    ]
    titles = [
        f"{label(name)}, $\\beta$ = {bound_label(pair[-1][1])}"
        for name, pair in pairs.items()
    ]
    figure, panels = layout.new_panels(
        results,
        f"Margins of {results['train_measured']} training images under the attack "
        "trained with, as they are and divided by the paper's unit or the code's",
        titles * len(rows),
        # The units of a single scheme stand in a row.
        columns=len(schemes) if len(schemes) > 1 else len(rows),
    )
    for column, (name, pair) in enumerate(pairs.items()):
        drawn = [
            ({**style, "label": text}, network)
            for text, (style, network) in zip(
                ("without a bound", "with $\\beta$"), pair, strict=False
            )
        ]
        relabelled = random_labels(results, name).values()
        drawn += [
            (
                {
                    **style,
                    "label": f"{style['label']}, random labels",
                    "linestyle": "--",
                },
                network,
            )
            for (style, _), network in zip(drawn, relabelled, strict=False)
        ]
        for number, (quantity, unit) in enumerate(rows):
            axes = panels[number * len(schemes) + column]
            _draw_margin_panel(axes, drawn, quantity, unit)
            if number and len(schemes) > 1:
                axes.set_title("")
    layout.save(out, "margins", figure, panels, "images with less (%)", 2)


def _known_unit(
    network: Mapping[str, Any], unit: Callable[[Mapping[str, Any]], float | None]
) -> bool:
    return any(unit(each) is not None for each in averages.members(network))


def _draw_margin_panel(
    axes: "Axes",
    networks: Sequence[tuple[figures.Style, Mapping[str, Any]]],
    quantity: str,
    unit: Callable[[Mapping[str, Any]], float | None],
) -> None:
    """Draws the margins of networks in a unit, as log10."""
    infinite, ends = [], []
    for style, network in networks:
        places = []
        for each in averages.members(network):
            log = unit(each)
            if log is None or not math.isfinite(log):
                infinite.append(style["label"])
                continue
            margins = _percentiles(each, "margins")
            positive = np.where(margins > 0, margins, np.nan)
            places.append(np.log10(positive) - log)
        mean = _draw_distribution(axes, places, style)
        ends += [float(place) for place in mean[-1:] if math.isfinite(place)]
    if ends:
        axes.set_xlim(min(ends) - _MARGIN_DECADES, max(ends) + 0.1)
    else:
        axes.set_xticks([])
    if infinite:
        text = "the unit is infinite:\n" + "\n".join(dict.fromkeys(infinite))
        if not any(_known_unit(network, unit) for _, network in networks):
            text = "the unit is not defined\nfor this scheme"
        axes.text(
            0.05,
            0.9,
            text,
            transform=axes.transAxes,
            va="top",
            fontsize=8,
            bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0},
        )
    axes.set_ylim(0, 100)
    axes.set_xlabel(f"log$_{{10}}$ of {quantity}")


def _percentiles(network: Mapping[str, Any], quantity: str) -> np.ndarray:
    return np.asarray([float(v) for v in network[quantity]["percentiles"]])
