"""Figures of deviations from linearity, and of activation patterns."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from experiments.common import figures, seeds
from experiments.common.records import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LENGTH = "length $\\|z\\|_2$ (pixels in [0, 1])"
_NORMS = ("L2", "Linf")
_ROWS = {
    "deviation": "deviation from linearity D = $\\|\\phi(x+z) - \\phi(x) - J(x)z\\|_2$",
    "relative_deviation": "relative deviation D / $\\|\\phi(x+z) - \\phi(x)\\|_2$",
    "sigma": "largest singular value of J(x+z) (features per pixel unit)",
}


def draw(results: Record) -> Iterator[figures.Drawing]:
    """Draws deviations from linearity, and the ReLU units that keep their state.

    Args:
      results: content of results.json.

    Yields:
      "linearity_<norm>" of each norm, and "activations" where pre-activations are
      known.
    """
    (first, *_) = results["networks"].values()
    for norm in _NORMS:
        if norm in first:
            yield f"linearity_{norm}", _draw_linearity(results, norm)
    # Networks whose pre-activations are not known are left out.
    known = {n: found for n, found in results["networks"].items() if "noise" in found}
    if known:
        yield "activations", _draw_activations(results, known)


def _draw_linearity(results: Record, norm: str) -> "Figure":
    """Draws deviation from linearity and the top singular value against the length."""
    kinds = {
        "random": "random z of the same lengths",
        "adversarial": f"adversarial z ({norm} PGA)",
    }
    figure, panels = figures.new_panels(
        "Linearity of the features $\\phi$ around images x: $\\phi(x) + J(x)z$ beside "
        f"$\\phi(x+z)$\n{figures.source_line(results)}; bands: {seeds.bands(results)}",
        (*kinds.values(), *[""] * (2 * len(_ROWS) - 2)),
        columns=2,
        sharey="row",
    )
    for row, (quantity, meaning) in enumerate(_ROWS.items()):
        pair = panels[2 * row : 2 * row + 2]
        for axes, kind in zip(pair, kinds, strict=True):
            drawn = {}
            for name, network in results["networks"].items():
                curve = network[norm][kind]
                # Nothing changes at length 0.
                lengths = np.asarray(curve["length"]["mean"], float)
                found = {
                    part: np.asarray(values, float)[lengths > 0]
                    for part, values in curve[quantity].items()
                }
                drawn[name] = (lengths[lengths > 0], found)
                if quantity == "sigma":
                    drawn[name] = (lengths, curve[quantity])
            figures.curves(axes, drawn)
            axes.set_xlim(left=0)
            if norm == "L2":
                figures.mark_training(axes, *_training_epsilons(results))
        if quantity != "relative_deviation":
            # Networks differ by orders of magnitude.
            pair[0].set_yscale("log")
        else:
            pair[0].set_ylim(bottom=0)
        pair[0].set_ylabel(meaning)
    for axes in panels[-2:]:
        axes.set_xlabel(_LENGTH)
    return figures.finish(figure, panels)


def _training_epsilons(results: Record) -> tuple[float, ...]:
    """Returns the L2 lengths of perturbations in training, as far as they are known."""
    return tuple(results.get("training_epsilons", {}).get("L2", ()))


def _draw_activations(results: Record, networks: Record) -> "Figure":
    """Draws the percentage of ReLU units that keep their state."""
    groups = next(iter(networks.values()))
    titles = {
        ("noise", "pictures"): "uniform noise z at images x",
        ("noise", "random_inputs"): "uniform noise z at uniformly random x",
        **{
            (norm, "adversarial"): f"adversarial z ({norm} PGA) at images x"
            for norm in groups
            if norm in _NORMS
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
        if group == "L2":
            figures.mark_training(axes, *_training_epsilons(results))
    figure.supylabel("units in the same state (%)", fontsize=9)
    panels[0].set_ylim(top=100)
    return figures.finish(figure, panels)
