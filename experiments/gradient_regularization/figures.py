"""The figures of experiments.gradient_regularization."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.common import figures, scales
from experiments.common.records import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The bounds that are drawn, with the colour and the line of each.
_BOUNDS = {
    "lipschitz": ("L-bound", figures.PALETTE[1], "--"),
    "soft_signed": ("C-bound, SoftCW", figures.PALETTE[2], ":"),
    "log_sum_exp_signed": ("C-bound, log-sum-exp", figures.PALETTE[3], "-."),
    # The margin of the top k has no other.
    "margin_signed": ("C-bound", figures.PALETTE[2], ":"),
}
# The method of networks by the beginning of their label.
_METHODS = {
    **{text: method for method, text in figures.LABELS.items()},
    "undefended": "standard",
    "gradient penalty": "gradient_regularization",
}
# The part of the images whose distances are inside the figure.
_SHOWN = 0.95


def draw(results: Record) -> Iterator[figures.Drawing]:
    """Draws errors by the distance of the nearest points, and bounds of them.

    Args:
      results: the content of results.json.

    Yields:
      "errors" and "bounds".
    """
    yield "errors", _draw_errors(results)
    yield "bounds", _draw_bounds(results)


def _draw_errors(results: Record) -> "Figure":
    """Draws the error against the distance of the nearest points of all networks."""
    networks = results["networks"]
    figure, (axes,) = figures.new_panels(
        f"Error within a distance of {results['examples']} test images\n"
        f"{_source(results)}",
        ("",),
    )
    styles = _styles(networks)
    farthest = 0.0
    for name, network in networks.items():
        distances = _of_seeds(network, "distances")
        figures.distribution(axes, distances, **styles[name], markevery=0.12)
        known = np.minimum(np.concatenate(distances), results["largest"])
        farthest = max(farthest, float(np.quantile(known, _SHOWN)))
    for epsilon in results["epsilons"]:
        figures.mark(axes, epsilon, "lengths in the tables", ":")
    axes.set_ylabel("error (%)")
    axes.set_xlim(0, farthest or None)
    axes.set_ylim(0, 100)
    scales.label_lengths(axes, results["norm"])
    return figures.finish(figure, [axes])


def _draw_bounds(results: Record) -> "Figure":
    """Draws the share of images whose bound is below a distance, beside the error.

    The share is an upper bound of the error within the distance as far as the bounds
    hold; attacks give a lower bound. The networks are the smooth ones, or all if there
    is none, with a panel for each.
    """
    networks = results["networks"]
    smooth = {name: n for name, n in networks.items() if n["smooth"]}
    shown = smooth or networks
    figure, panels = figures.new_panels(
        "Error within a distance that attacks reach, and bounds of it by slope and "
        f"curvature; {results['examples']} test images\n{_source(results)}",
        [_label(network) for network in shown.values()],
        sharey=True,
    )
    lengths = []
    norm = results["norm"]
    unit = 255 if norm == "Linf" else 1
    for axes, network in zip(panels, shown.values(), strict=True):
        drawn: list[tuple[str, str, str, tuple[str, ...]]] = [
            ("error that attacks reach", figures.BLACK, "-", ("distances",))
        ]
        drawn += [
            (f"bound of the error: {title}", color, line, ("bounds", bound, "values"))
            for bound, (title, color, line) in _BOUNDS.items()
            if bound in network["mean"]["bounds"]
        ]
        for title, color, line, path in drawn:
            values = _of_seeds(network, *path)
            figures.distribution(
                axes, values, times=unit, color=color, linestyle=line, label=title
            )
            lengths += [unit * each for each in values]
    known = np.concatenate(lengths)
    known = known[(known > 0) & np.isfinite(known)]
    for axes in panels:
        if len(known):
            scales.scale_log(axes, float(np.quantile(known, 0.01)), float(known.max()))
        text = "in 1/255" if norm == "Linf" else scales.PIXELS
        axes.set_xlabel(f"{norm} length of the perturbation ({text})")
    panels[0].set(ylim=(0, 100), ylabel="error, and bound of it (%)")
    return figures.finish(figure, panels)


def _of_seeds(network: Mapping[str, Any], *path: str) -> list[np.ndarray]:
    """Values by image of the network of each seed."""
    members = []
    for one in network["seeds"]:
        for name in path:
            one = one[name]
        members.append(np.asarray(one, np.float64))
    return members


def _styles(networks: Mapping[str, Any]) -> dict[str, figures.Style]:
    """Returns the style of each network: that of its method, dashed where smooth."""
    methods = {}
    for network in networks.values():
        label = network["label"]
        fitting = [text for text in _METHODS if label.startswith(text)]
        method = _METHODS[max(fitting, key=len)] if fitting else label
        methods[label] = f"{method} ({label})"
    named = figures.styles(list(methods.values()))
    found = {}
    for name, network in networks.items():
        style = dict(named[methods[network["label"]]])
        style |= {"label": _label(network), "linestyle": "-"}
        if network["smooth"]:
            style |= {"linestyle": "--", "markerfacecolor": "white"}
        found[name] = style
    return found


def _label(network: Mapping[str, Any]) -> str:
    return f"{network['label']}{', smooth' if network['smooth'] else ''}"


def _source(results: Record) -> str:
    count = max(len(network["seeds"]) for network in results["networks"].values())
    errors = "one network each, without errors"
    if count > 1:
        errors = figures.bands("networks", count)
    smooth = any(network["smooth"] for network in results["networks"].values())
    note = "\nsmooth: with a smooth activation in place of ReLU" if smooth else ""
    return f"{results['data']}; {errors}{note}"
