"""Figures of deviations from linearity, and of activation patterns."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.common import figures, seeds
from opnorm import runs

_LENGTH = "length $\\|z\\|_2$ (pixels in [0, 1])"


def draw_linearity(
    out: runs.RunDirectory,
    results: Mapping[str, Any],
    norm: str,
    training_epsilons: Sequence[float],
) -> None:
    """Draws deviation from linearity and the top singular value against the length.

    Args:
      out: directory for linearity_<norm>.png.
      results: content of results.json.
      norm: norm of the attack, "L2" or "Linf".
      training_epsilons: L2 lengths that are drawn as dashed lines.
    """
    kinds = {
        "random": "random z of the same lengths",
        "adversarial": f"adversarial z ({norm} PGA)",
    }
    rows = {
        "deviation": "deviation from linearity\n"
        "$\\|\\phi(x+z) - \\phi(x) - J(x)z\\|_2$",
        "relative_deviation": "its part of the change\n"
        "deviation / $\\|\\phi(x+z) - \\phi(x)\\|_2$",
        "sigma": "largest singular value of J(x+z)\n(features per pixel unit)",
    }
    figure, panels = figures.new_panels(
        f"Linearity of the features $\\phi$ around images x\n"
        f"{figures.source_line(results)}; bands: {seeds.bands(results)}",
        (*kinds.values(), *[""] * (2 * len(rows) - 2)),
        columns=2,
        sharey="row",
    )
    for row, (quantity, meaning) in enumerate(rows.items()):
        # Nothing changes at length 0, so there is no part of the change.
        first = 1 if quantity == "relative_deviation" else 0
        pair = panels[2 * row : 2 * row + 2]
        for axes, kind in zip(pair, kinds, strict=True):
            drawn = {}
            for name, network in results["networks"].items():
                curve = network[norm][kind]
                found = {part: c[first:] for part, c in curve[quantity].items()}
                drawn[name] = (curve["length"]["mean"][first:], found)
            figures.curves(axes, drawn)
            axes.set_xlim(left=0)
            figures.mark_training(axes, *training_epsilons)
        pair[0].set(ylabel=meaning, ylim=(0, None))
    for axes in panels[-2:]:
        axes.set_xlabel(_LENGTH)
    figures.save_panels(figure, panels, out.figure_path(f"linearity_{norm}"))


def draw_activations(
    out: runs.RunDirectory,
    results: Mapping[str, Any],
    training_epsilons: Sequence[float],
) -> None:
    """Draws the percentage of ReLU units that keep their state.

    Networks whose pre-activations are not known are left out; there is no figure where
    none are known.

    Args:
      out: directory for activations.png.
      results: content of results.json.
      training_epsilons: L2 lengths that are drawn as dashed lines.
    """
    networks = {
        name: found for name, found in results["networks"].items() if "noise" in found
    }
    if not networks:
        return
    groups = next(iter(networks.values()))
    titles = {
        ("noise", "pictures"): "uniform noise z at images x",
        ("noise", "random_inputs"): "uniform noise z at uniformly random x",
        **{
            (norm, "adversarial"): f"adversarial z ({norm} PGA) at images x"
            for norm in groups
            if norm != "noise"
        },
    }
    figure, panels = figures.new_panels(
        "ReLU units in the same state at x and x + z\n"
        f"{figures.source_line(results)}; bands: {seeds.bands(results)}",
        tuple(titles.values()),
        sharey=True,
    )
    for axes, (group, kind) in zip(panels, titles, strict=True):
        curves = {name: found[group][kind] for name, found in networks.items()}
        drawn = {
            name: (curve["length"]["mean"], curve["shared_activations"])
            for name, curve in curves.items()
        }
        figures.curves(axes, drawn, times=100)
        axes.set(xlabel=_LENGTH, xlim=(0, None))
        figures.mark_training(axes, *training_epsilons)
    figure.supylabel("units in the same state (%)", fontsize=10)
    panels[0].set_ylim(top=100)
    figures.save_panels(figure, panels, out.figure_path("activations"))
