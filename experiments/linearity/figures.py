"""Figures of deviations from linearity, and of activation patterns."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.common import figures
from opnorm import runs


def draw_linearity(
    out: runs.RunDirectory,
    results: Mapping[str, Any],
    norm: str,
    training_epsilons: Sequence[float],
) -> None:
    """Draws deviation from linearity and the top singular value against the length.

    Args:
      out: gets linearity_<norm>.png.
      results: results of experiments.linearity.
      norm: of the attack, "L2" or "Linf".
      training_epsilons: L2 lengths, drawn as dashed lines.
    """
    names = list(results["networks"])
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
        f"{figures.source_line(results)}",
        (*kinds.values(), *[""] * (2 * len(rows) - 2)),
        columns=2,
        sharey="row",
    )
    styles = figures.styles(names)
    for row, (quantity, meaning) in enumerate(rows.items()):
        pair = panels[2 * row : 2 * row + 2]
        for axes, kind in zip(pair, kinds, strict=True):
            for name in names:
                curve = results["networks"][name][norm][kind]
                # Nothing moves at length 0, so there is no part of it.
                first = 1 if quantity == "relative_deviation" else 0
                found = {part: c[first:] for part, c in curve[quantity].items()}
                length = curve["length"]["mean"][first:]
                figures.curve(axes, length, found, **styles[name])
        pair[0].set_ylabel(meaning)
        pair[0].set_ylim(bottom=0)
    for axes in panels:
        axes.set_xlim(left=0)
    for axes in panels:
        figures.mark_training(axes, *training_epsilons)
    for axes in panels[-2:]:
        axes.set_xlabel("length $\\|z\\|_2$ (pixels in [0, 1])")
    figures.save_panels(figure, panels, out.figure_path(f"linearity_{norm}"))


def draw_activations(
    out: runs.RunDirectory,
    results: Mapping[str, Any],
    training_epsilons: Sequence[float],
) -> None:
    """Draws which part of the ReLU units keep their state.

    Args:
      out: gets activations.png.
      results: results of experiments.linearity.
      training_epsilons: L2 lengths, drawn as dashed lines.
    """
    names = list(results["networks"])
    first = results["networks"][names[0]]
    titles = {
        ("noise", "pictures"): "uniform noise z at images x",
        ("noise", "random_inputs"): "uniform noise z at uniformly random x",
        **{
            (norm, "adversarial"): f"adversarial z ({norm} PGA) at images x"
            for norm in first
            if norm != "noise"
        },
    }
    figure, panels = figures.new_panels(
        f"ReLU units in the same state at x and x + z\n{figures.source_line(results)}",
        tuple(titles.values()),
        sharey=True,
    )
    styles = figures.styles(names)
    for axes, (group, kind) in zip(panels, titles, strict=True):
        for name in names:
            curve = results["networks"][name][group][kind]
            length, shared = curve["length"]["mean"], curve["shared_activations"]
            figures.curve(axes, length, shared, times=100, **styles[name])
        axes.set_xlabel("length $\\|z\\|_2$ (pixels in [0, 1])")
        axes.set_xlim(left=0)
    for axes in panels:
        figures.mark_training(axes, *training_epsilons)
    figure.supylabel("units in the same state (%)", fontsize=10)
    panels[0].set_ylim(top=100)
    figures.save_panels(figure, panels, out.figure_path("activations"))
