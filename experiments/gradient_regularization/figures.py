"""experiments: the figures of experiments.gradient_regularization."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.common import figures
from opnorm import runs

# The bounds that are drawn, with the line of each.
_BOUNDS = {
    "lipschitz": ("L-bound", "--"),
    "soft_signed": ("C-bound, SoftCW", ":"),
    "log_sum_exp_signed": ("C-bound, log-sum-exp", "-."),
    # Of the top k, which has no other.
    "margin_signed": ("C-bound", ":"),
}
# Distances beyond those of this part of the pictures are not drawn.
_SHOWN = 0.95


def draw_errors(out: runs.RunDirectory, results: Mapping[str, Any]) -> None:
    """Draws the error against the distance of the nearest points found, all networks.

    Args:
      out: gets errors.png.
      results: of experiments.gradient_regularization.
    """
    networks = results["networks"]
    norm = results["norm"]
    figure, axes = figures.new_figure(
        f"Error within a distance of {results['examples']} test images\n"
        f"{_source(results)}"
    )
    colors = _colors(networks)
    farthest = 0.0
    for name, network in networks.items():
        distances = _pooled(network, "distances")
        _step(
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
    axes.set_xlabel(f"{norm} distance (pixels in [0, 1])")
    axes.set_ylabel("error (%)")
    axes.set_xlim(0, farthest or None)
    axes.set_ylim(0, 100)
    figures.save_figure(figure, axes, out.figure_path("errors"))


def draw_bounds(out: runs.RunDirectory, results: Mapping[str, Any]) -> None:
    """Draws what slope and curvature promise, and what attacks found.

    Left the bounds of the attacked pictures in rising order; right the part of the
    pictures whose bound is below a distance, which bounds the error within it from
    above as far as the bounds hold, and the error that attacks reach. Of the smooth
    networks, or of all if there is none.

    Args:
      out: gets bounds.png.
      results: of experiments.gradient_regularization.
    """
    networks = results["networks"]
    smooth = {name: n for name, n in networks.items() if n["smooth"]}
    shown = smooth or networks
    figure, (left, right) = figures.new_panels(
        f"Bounds on the {results['norm']} distance of {results['examples']} test "
        f"images\n{_source(results)}",
        ("bounds by image", "errors"),
    )
    colors = _colors(networks)
    lengths = []
    for name, network in shown.items():
        found = np.sort(_pooled(network, "distances"))
        _step(right, found, color=colors[name], label=f"{_label(network)}: attacks")
        lengths.append(found)
        place = 100 * (np.arange(len(found)) + 0.5) / len(found)
        left.plot(place, found, color=colors[name], label=_label(network))
        for bound, (title, line) in _BOUNDS.items():
            if bound not in network["mean"]["bounds"]:
                continue
            values = np.sort(_pooled(network, "bounds", bound, "values"))
            _step(
                right,
                values,
                color=colors[name],
                linestyle=line,
                label=f"{_label(network)}: {title}",
            )
            left.plot(place, values, color=colors[name], linestyle=line)
            lengths.append(values)
    known = np.concatenate(lengths)
    known = known[(known > 0) & np.isfinite(known)]
    if len(known):
        limits = float(np.quantile(known, 0.01)), float(known.max())
        left.set_ylim(*limits)
        right.set_xlim(*limits)
    left.set_yscale("log")
    left.set_xlabel("images with less (%)")
    left.set_ylabel(f"{results['norm']} distance (pixels in [0, 1])")
    left.set_xlim(0, 100)
    right.set_xscale("log")
    right.set_xlabel(f"{results['norm']} distance (pixels in [0, 1])")
    right.set_ylabel("error, and bound of the error (%)")
    right.set_ylim(0, 100)
    for axes in (left, right):
        figures.finish(axes)
        axes.get_legend().remove()
    lines, labels = right.get_legend_handles_labels()
    figure.legend(
        lines, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=8
    )
    figures.write(figure, out.figure_path("bounds"))


def _step(axes: Any, distances: np.ndarray, **style: Any) -> None:
    """The part of the pictures within each distance."""
    reached = np.sort(distances[np.isfinite(distances)])
    error = 100 * np.arange(1, len(reached) + 1) / len(distances)
    x, y = np.concatenate([[0.0], reached]), np.concatenate([[0.0], error])
    axes.step(x, y, where="post", **style)


def _pooled(network: Mapping[str, Any], *path: str) -> np.ndarray:
    """Values by picture of all seeds' networks: their curve is the seeds' mean."""
    pooled = []
    for one in network["seeds"]:
        for name in path:
            one = one[name]
        pooled.append(np.asarray(one, np.float64))
    return np.concatenate(pooled)


def _colors(networks: Mapping[str, Any]) -> dict[str, str]:
    """A colour for each network, the same with both activations."""
    labels: Sequence[str] = list(dict.fromkeys(n["label"] for n in networks.values()))
    palette = ("#000000", *figures.PALETTE)
    return {
        name: palette[labels.index(network["label"]) % len(palette)]
        for name, network in networks.items()
    }


def _label(network: Mapping[str, Any]) -> str:
    return network["label"] + (", smooth" if network["smooth"] else "")


def _source(results: Mapping[str, Any]) -> str:
    seeds = max(len(network["seeds"]) for network in results["networks"].values())
    return f"{results['data']}, {seeds} seed{'s' if seeds > 1 else ''}"
