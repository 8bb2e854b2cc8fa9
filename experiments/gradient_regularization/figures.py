"""The figures of experiments.gradient_regularization."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.common import figures
from experiments.common.records import Record
from opnorm import runs

# The bounds that are drawn, with the line of each.
_BOUNDS = {
    "lipschitz": ("L-bound", "--"),
    "soft_signed": ("C-bound, SoftCW", ":"),
    "log_sum_exp_signed": ("C-bound, log-sum-exp", "-."),
    # The margin of the top k has no other.
    "margin_signed": ("C-bound", ":"),
}
# The part of the images whose distances are inside the figure.
_SHOWN = 0.95


def draw_errors(out: runs.RunDirectory, results: Record) -> None:
    """Draws the error against the distance of the nearest points found, all networks.

    Args:
      out: gets errors.png.
      results: the content of results.json.
    """
    networks = results["networks"]
    figure, axes = figures.new_figure(
        f"Error within a distance of {results['examples']} test images\n"
        f"{_source(results)}"
    )
    colors = _colors(networks)
    farthest = 0.0
    for name, network in networks.items():
        distances = _pooled(network, "distances")
        figures.distribution(
            axes,
            distances,
            color=colors[name],
            linestyle="--" if network["smooth"] else "-",
            label=_label(network),
        )
        known = np.minimum(distances, results["largest"])
        farthest = max(farthest, float(np.quantile(known, _SHOWN)))
    for epsilon in results["epsilons"]:
        axes.axvline(epsilon, color="0.7", linestyle=":", linewidth=1)
    axes.set_xlabel(_distance_label(results))
    axes.set_ylabel("error (%)")
    axes.set_xlim(0, farthest or None)
    axes.set_ylim(0, 100)
    figures.save_figure(figure, axes, out.figure_path("errors"))


def draw_bounds(out: runs.RunDirectory, results: Record) -> None:
    """Draws the bounds by slope and curvature, and the distances that attacks found.

    The left panel shows the bounds of the attacked images in rising order. The right
    panel shows the part of the images whose bound is below a distance, which is an
    upper bound of the error within it as far as the bounds hold, and the error that
    attacks reach. The networks are the smooth ones, or all if there is none.

    Args:
      out: gets bounds.png.
      results: the content of results.json.
    """
    networks = results["networks"]
    smooth = {name: n for name, n in networks.items() if n["smooth"]}
    figure, (left, right) = figures.new_panels(
        f"Bounds on the {results['norm']} distance of {results['examples']} test "
        f"images\n{_source(results)}",
        ("bounds by image", "errors"),
    )
    colors = _colors(networks)
    lengths = []
    for name, network in (smooth or networks).items():
        drawn = [("attacks", "-", _pooled(network, "distances"))]
        drawn += [
            (title, line, _pooled(network, "bounds", bound, "values"))
            for bound, (title, line) in _BOUNDS.items()
            if bound in network["mean"]["bounds"]
        ]
        for title, line, values in drawn:
            style: figures.Style = {
                "color": colors[name],
                "linestyle": line,
                "label": f"{_label(network)}: {title}",
            }
            figures.distribution(right, values, **style)
            place = 100 * (np.arange(len(values)) + 0.5) / len(values)
            left.plot(place, np.sort(values), **style)
            lengths.append(values)
    known = np.concatenate(lengths)
    known = known[(known > 0) & np.isfinite(known)]
    if len(known):
        limits = float(np.quantile(known, 0.01)), float(known.max())
        left.set_ylim(*limits)
        right.set_xlim(*limits)
    left.set_yscale("log")
    left.set_xlabel("images with less (%)")
    left.set_ylabel(_distance_label(results))
    left.set_xlim(0, 100)
    right.set_xscale("log")
    right.set_xlabel(_distance_label(results))
    right.set_ylabel("error, and bound of the error (%)")
    right.set_ylim(0, 100)
    figures.save_panels(figure, (left, right), out.figure_path("bounds"), columns=2)


def _pooled(network: Mapping[str, Any], *path: str) -> np.ndarray:
    """Values by image of all seeds' networks: their curve is the seeds' mean."""
    pooled = []
    for one in network["seeds"]:
        for name in path:
            one = one[name]
        pooled.append(np.asarray(one, np.float64))
    return np.concatenate(pooled)


def _colors(networks: Mapping[str, Any]) -> dict[str, str]:
    """A colour for each network, the same with both activations."""
    labels = list(dict.fromkeys(n["label"] for n in networks.values()))
    palette = (figures.BLACK, *figures.PALETTE)
    return {
        name: palette[labels.index(network["label"]) % len(palette)]
        for name, network in networks.items()
    }


def _label(network: Mapping[str, Any]) -> str:
    return str(network["label"]) + (", smooth" if network["smooth"] else "")


def _distance_label(results: Record) -> str:
    return f"{results['norm']} distance (pixels in [0, 1])"


def _source(results: Record) -> str:
    seeds = max(len(network["seeds"]) for network in results["networks"].values())
    return f"{results['data']}, {seeds} seed{'s' if seeds > 1 else ''}"
