"""Figures of singular values, and of the alignment of perturbations."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.common import figures
from opnorm import runs


def draw_spectra(
    out: runs.RunDirectory, results: Mapping[str, Any], names: Sequence[str]
) -> None:
    """Draws singular values by rank, at clean and at adversarial examples.

    Args:
      out: gets spectrum_features.png and spectrum_logits.png.
      results: results of experiments.spectrum.
      names: the networks to draw.
    """
    for quantity in ("features", "logits"):
        figure, panels = figures.new_panels(
            f"Singular values of the Jacobian of the {quantity}\n"
            f"{figures.source_line(results)}",
            ("at the images", f"after L2 PGA, $\\epsilon$ = {results['epsilon']:g}"),
            sharey="row",
        )
        styles = figures.styles(names)
        highest = 0.0
        for axes, kind in zip(panels, ("clean", "adversarial"), strict=True):
            for name in names:
                found = results["networks"][name]["singular_values"][quantity][kind]
                figures.curve(axes, figures.ranks(found), found, **styles[name])
                highest = max(highest, found["mean"][0])
            axes.set_yscale("log")
            axes.set_xlabel("rank")
        # Ranks that few examples reach end in rounding.
        low = min(
            value
            for line in panels[0].lines + panels[1].lines
            for value in line.get_ydata()
            if value > 1e-5 * highest
        )
        panels[0].set_ylim(low / 1.5, 1.5 * highest)
        panels[0].set_ylabel(f"singular value ({quantity} per pixel unit)")
        figures.save_panels(figure, panels, out.figure_path(f"spectrum_{quantity}"))


def draw_alignment_by_rank(out: runs.RunDirectory, results: Mapping[str, Any]) -> None:
    """Draws how perturbations align with each right singular vector.

    Args:
      out: gets alignment_by_rank.png.
      results: results of experiments.spectrum.
    """
    names = list(results["networks"])
    epsilon = results["epsilon"]
    figure, panels = figures.new_panels(
        f"Alignment of perturbations (L2 PGA, $\\epsilon$ = {epsilon:g}) with the right"
        f" singular vectors of the features' Jacobian\n{figures.source_line(results)}",
        ("cosine", "Pearson correlation"),
        sharey="row",
    )
    styles = figures.styles(names)
    # Vectors that few examples have are not those of an average example.
    enough = results["examples"] / 4
    for axes, kind in zip(panels, ("cosine", "pearson"), strict=True):
        random = []
        for name in names:
            curves = results["networks"][name]["alignment_by_rank"][kind]
            reached = np.asarray(curves["adversarial"]["counted"]) >= enough
            drawn = {
                perturbation: {
                    part: np.asarray(v)[reached] for part, v in curve.items()
                }
                for perturbation, curve in curves.items()
            }
            attacked = drawn["adversarial"]
            figures.curve(axes, figures.ranks(attacked), attacked, **styles[name])
            random.append((figures.ranks(drawn["random"]), drawn["random"]))
        _draw_random(axes, random)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("rank of the singular vector")
        axes.set_ylim(bottom=0)
    panels[0].set_ylabel("absolute alignment")
    figures.save_panels(figure, panels, out.figure_path("alignment_by_rank"))


def draw_alignment_by_length(
    out: runs.RunDirectory,
    results: Mapping[str, Any],
    norm: str,
    training_epsilons: Sequence[float],
) -> None:
    """Draws alignment with the dominant vector against the perturbation's length.

    Args:
      out: gets alignment_by_length_<norm>.png.
      results: results of experiments.spectrum.
      norm: of the perturbations, "L2" or "Linf".
      training_epsilons: drawn as dashed lines.
    """
    curves = {
        name: found["alignment_by_length"][norm]
        for name, found in results["networks"].items()
    }
    figure, panels = figures.new_panels(
        "Alignment of perturbations with the dominant right singular vector of the\n"
        f"features' Jacobian. {figures.source_line(results, 'alignment_examples')}",
        ("",),
    )
    (axes,) = panels
    styles = figures.styles(list(curves))
    for name, found in curves.items():
        figures.curve(axes, found["epsilon"], found["adversarial"], **styles[name])
    _draw_random(axes, [(c["epsilon"], c["random"]) for c in curves.values()])
    figures.mark_training(axes, *training_epsilons)
    axes.set_xlabel(
        f"{norm} length of the PGA perturbation, $\\epsilon$ (pixels in [0, 1])"
    )
    axes.set_ylabel("absolute cosine")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    figures.save_panels(figure, panels, out.figure_path(f"alignment_by_length_{norm}"))


def _draw_random(
    axes: Any, curves: Sequence[tuple[Any, Mapping[str, Sequence[float]]]]
) -> None:
    """Draws (x, curve) of random perturbations, alike for all networks."""
    for place, (x, curve) in enumerate(curves):
        axes.plot(
            x,
            curve["mean"],
            color="0.6",
            linestyle=":",
            linewidth=1,
            label=None if place else "random perturbations",
        )
