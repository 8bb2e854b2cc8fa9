"""Figures of distributions over images, of experiments.spectral_normalization.

Distributions are drawn as the share of the images up to a value. For margins it is
the margin loss of the paper's Eqs. 1 and 8; no width of bins is needed.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.common import figures, scales
from experiments.common.records import Record
from experiments.spectral_normalization import averages, layout
from experiments.spectral_normalization.tables import (
    bound_label,
    label,
    log_released_unit,
    log_unit,
    random_labels,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SHARE = "images up to the value (%)"
_PERCENTS = np.linspace(0, 100, 101)
# Decades below the largest value that are drawn.
_DECADES = 6.0
_MARGIN_DECADES = 2.0


def draw_distributions(
    results: Record, quantity: str, unit: str, title: str
) -> "Figure":
    """Draws the share of the images up to each value of a quantity, by bound."""
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
            scales.scale_log(axes, lowest / 1.2, 1.2 * shown.max())
    return layout.finish(figure, panels, _SHARE)


def _draw_distribution(
    axes: "Axes", values: Sequence[np.ndarray], style: figures.Style
) -> np.ndarray:
    """Draws percentiles, the mean over networks with a band; returns the mean."""
    if not values:
        return np.full_like(_PERCENTS, np.nan)
    # Percentiles that are not finite in one network are not drawn for the others.
    with np.errstate(invalid="ignore"):
        mean: np.ndarray = np.mean(values, axis=0)
        axes.plot(mean, _PERCENTS, **{"markevery": 10, **style})
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
_Unit = Callable[[Mapping[str, Any]], float | None]
_UNITS: tuple[tuple[str, _Unit], ...] = (
    ("the margin (logits)", lambda network: 0.0),
    ("margin / $\\sqrt{\\Phi}$", log_unit),
    ("margin / unit of the released code", log_released_unit),
)


def draw_margins(results: Record) -> "Figure":
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
    unknown = [
        label(name)
        for name, pair in pairs.items()
        if any(_unit_of(pair, unit) is None for _, unit in rows)
    ]
    note = f"; the unit of {', '.join(unknown)} is infinite" if unknown else ""
    figure, panels = layout.new_panels(
        results,
        f"Margins of {results['train_measured']} training images under the attack "
        "trained with, as they are and divided by the paper's unit or the code's"
        f"{note}",
        [title for title in titles for _ in rows],
        # A row for each scheme.
        columns=len(rows),
    )
    for place, (name, pair) in enumerate(pairs.items()):
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
            axes = panels[place * len(rows) + number]
            axes.set_visible(_unit_of(pair, unit) is not None)
            _draw_margin_panel(axes, drawn, quantity, unit)
    return layout.finish(figure, panels, _SHARE, 2)


def _known_unit(network: Mapping[str, Any], unit: _Unit) -> bool:
    return any(unit(each) is not None for each in averages.members(network))


def _unit_of(
    pair: Sequence[tuple[figures.Style, Mapping[str, Any]]], unit: _Unit
) -> float | None:
    """Returns a unit of one of the networks; None where none has a finite one."""
    logs = (unit(each) for _, one in pair for each in averages.members(one))
    return next((log for log in logs if log is not None and math.isfinite(log)), None)


def _draw_margin_panel(
    axes: "Axes",
    networks: Sequence[tuple[figures.Style, Mapping[str, Any]]],
    quantity: str,
    unit: _Unit,
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
        # Networks may be many decades apart.
        room = 0.05 * (max(ends) - min(ends))
        axes.set_xlim(min(ends) - max(_MARGIN_DECADES, room), max(ends) + 0.1 + room)
    if infinite and ends:
        text = "the unit is infinite:\n" + "\n".join(dict.fromkeys(infinite))
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
