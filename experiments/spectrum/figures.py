"""Figures of singular values, and of the alignment of perturbations."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.common import figures, seeds
from opnorm import runs


def draw_spectra(
    out: runs.RunDirectory, results: Mapping[str, Any], names: Sequence[str]
) -> None:
    """Draws singular values by rank, at clean and at adversarial examples.

    Args:
      out: directory for spectrum_features.png and spectrum_logits.png.
      results: content of results.json.
      names: the networks to draw.
    """
    for quantity in ("features", "logits"):
        figure, panels = figures.new_panels(
            f"Singular values of the Jacobian of the {quantity}\n"
            f"{figures.source_line(results)}; bands: {seeds.bands(results)}",
            ("at the images", f"after L2 PGA, $\\epsilon$ = {results['epsilon']:g}"),
            sharey="row",
        )
        highest = 0.0
        for axes, kind in zip(panels, ("clean", "adversarial"), strict=True):
            drawn = {
                name: results["networks"][name]["singular_values"][quantity][kind]
                for name in names
            }
            figures.curves(
                axes, {n: figures.by_rank(found) for n, found in drawn.items()}
            )
            highest = max(highest, *(found["mean"][0] for found in drawn.values()))
            axes.set(yscale="log", xlabel="rank")
        # Ranks that few examples reach end in rounding.
        low = min(
            value
            for axes in panels
            for line in axes.lines
            for value in np.asarray(line.get_ydata())
            if value > 1e-5 * highest
        )
        panels[0].set(
            ylim=(low / 1.5, 1.5 * highest),
            ylabel=f"singular value ({quantity} per pixel unit)",
        )
        figures.save_panels(figure, panels, out.figure_path(f"spectrum_{quantity}"))


def draw_alignment_by_rank(out: runs.RunDirectory, results: Mapping[str, Any]) -> None:
    """Draws how perturbations align with each right singular vector.

    Args:
      out: directory for alignment_by_rank.png.
      results: content of results.json.
    """
    epsilon = results["epsilon"]
    figure, panels = figures.new_panels(
        f"Alignment of perturbations (L2 PGA, $\\epsilon$ = {epsilon:g}) with the right"
        " singular vectors of the features' Jacobian\n"
        f"{figures.source_line(results)}; bands: {seeds.bands(results)}",
        ("cosine", "Pearson correlation"),
        sharey="row",
    )
    # Vectors that few examples have are not those of an average example.
    enough = results["examples"] / 4
    for axes, kind in zip(panels, ("cosine", "pearson"), strict=True):
        attacked, random = {}, []
        for name, network in results["networks"].items():
            found = network["alignment_by_rank"][kind]
            reached = np.asarray(found["adversarial"]["counted"]) >= enough
            adversarial, baseline = (
                {part: np.asarray(v)[reached] for part, v in found[each].items()}
                for each in ("adversarial", "random")
            )
            attacked[name] = figures.by_rank(adversarial)
            random.append(figures.by_rank(baseline))
        figures.curves(axes, attacked)
        _draw_random(axes, random)
        ranks = max((len(ranks) for ranks, _ in attacked.values()), default=1)
        figures.scale_log(axes, 0.9, 1.1 * max(ranks, 1))
        axes.set(xlabel="rank of the singular vector", ylim=(0, None))
        axes.xaxis.set_major_formatter("{x:g}")
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
      out: directory for alignment_by_length_<norm>.png.
      results: content of results.json.
      norm: norm of the perturbations, "L2" or "Linf".
      training_epsilons: lengths that are drawn as dashed lines.
    """
    curves = {
        name: found["alignment_by_length"][norm]
        for name, found in results["networks"].items()
    }
    figure, panels = figures.new_panels(
        "Alignment with the dominant right singular vector of the features' Jacobian\n"
        f"{figures.source_line(results, 'alignment_examples')}; bands: "
        f"{seeds.bands(results, 'alignment_examples')}",
        ("",),
    )
    (axes,) = panels
    figures.curves(
        axes, {name: (c["epsilon"], c["adversarial"]) for name, c in curves.items()}
    )
    _draw_random(axes, [(c["epsilon"], c["random"]) for c in curves.values()])
    figures.mark_training(axes, *training_epsilons)
    axes.set(
        xlabel=f"{norm} length of the PGA perturbation, $\\epsilon$ (pixels in [0, 1])",
        ylabel="absolute cosine",
        xlim=(0, None),
        ylim=(0, None),
    )
    figures.save_panels(figure, panels, out.figure_path(f"alignment_by_length_{norm}"))


def _draw_random(axes: Any, curves: Sequence[tuple[Any, Mapping[str, Any]]]) -> None:
    """Draws (x, curve) of random perturbations, alike for all networks."""
    for place, (x, curve) in enumerate(curves):
        label = None if place else "random perturbations"
        axes.plot(x, curve["mean"], color="0.6", ls=":", lw=1, label=label)
