"""Figures of singular values, and of the alignment of perturbations."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.common import figures, scales, seeds
from experiments.common.records import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CURVE = ("mean", "standard_error")
# Values below this part of the largest one are rounding.
_ROUNDING = 1e-5
# The correlation is drawn beside the cosine where they differ by more than this.
_DIFFERENT = 0.02
_KINDS = {"cosine": "absolute cosine", "pearson": "absolute Pearson correlation"}


def draw(results: Record) -> Iterator[figures.Drawing]:
    """Draws singular values, and alignment by rank and by length.

    Args:
      results: content of results.json.

    Yields:
      "spectrum_features", "spectrum_logits", "alignment_by_rank", and
      "alignment_by_length_<norm>" of each norm.
    """
    for quantity in ("features", "logits"):
        yield f"spectrum_{quantity}", _draw_spectrum(results, quantity)
    yield "alignment_by_rank", _draw_alignment_by_rank(results)
    (first, *_) = results["networks"].values()
    for norm in first["alignment_by_length"]:
        figure = _draw_alignment_by_length(results, norm)
        yield f"alignment_by_length_{norm}", figure


def _draw_spectrum(results: Record, quantity: str) -> "Figure":
    """Draws singular values by rank, at clean and at adversarial examples."""
    figure, panels = figures.new_panels(
        f"Singular values of the Jacobian of the {quantity}\n"
        f"{figures.source_line(results)}; bands: {seeds.bands(results)}",
        ("at the images", f"after L2 PGA, $\\epsilon$ = {results['epsilon']:g}"),
        sharey="row",
    )
    networks = {
        name: network["singular_values"][quantity]
        for name, network in results["networks"].items()
        if not name.startswith(figures.UNTRAINED)
    }
    highest = max(
        float(found[kind]["mean"][0])
        for found in networks.values()
        for kind in ("clean", "adversarial")
    )
    lowest, last = highest, 1
    for axes, kind in zip(panels, ("clean", "adversarial"), strict=True):
        drawn = {}
        for name, found in networks.items():
            mean, error = (np.asarray(found[kind][part], float) for part in _CURVE)
            # Ranks that few examples reach end in rounding, and a logarithmic axis
            # cannot show an error as large as its mean.
            known = np.maximum(_ROUNDING * highest, 2 * np.nan_to_num(error))
            ranks = 1 + np.flatnonzero(mean > known)
            part = dict(zip(_CURVE, (mean[ranks - 1], error[ranks - 1]), strict=True))
            drawn[name] = ranks, part
            lowest = min(lowest, *part["mean"])
            last = max(last, *ranks)
        axes.set(yscale="log", xlabel="rank")
        figures.curves(axes, drawn)
    for axes in panels:
        axes.set_xlim(0.5, last + 0.5)
        axes.locator_params(axis="x", integer=True)
    panels[0].set(
        ylim=(lowest / 1.5, 1.5 * highest),
        ylabel=f"singular value ({quantity} per pixel unit)",
    )
    return figures.finish(figure, panels)


def _draw_alignment_by_rank(results: Record) -> "Figure":
    """Draws how perturbations align with each right singular vector."""
    measured = {
        name: network["alignment_by_rank"]
        for name, network in results["networks"].items()
    }
    difference = max(_difference(found) for found in measured.values())
    kinds = dict(_KINDS)
    note = ""
    if difference < _DIFFERENT:
        del kinds["pearson"]
        note = f"; Pearson correlations differ by at most {difference:.1g}"
    figure, panels = figures.new_panels(
        f"Alignment of perturbations (L2 PGA, $\\epsilon$ = {results['epsilon']:g}) "
        "with the right singular vectors of the features' Jacobian\n"
        f"{figures.source_line(results)}; bands: {seeds.bands(results)}{note}",
        ("",) * len(kinds),
    )
    # Vectors that few examples have are not those of an average example.
    enough = results["examples"] / 4
    for axes, (kind, label) in zip(panels, kinds.items(), strict=True):
        attacked, random = {}, []
        for name, found in measured.items():
            reached = np.asarray(found[kind]["adversarial"]["counted"]) >= enough
            adversarial, baseline = (
                {part: np.asarray(v)[reached] for part, v in found[kind][each].items()}
                for each in ("adversarial", "random")
            )
            attacked[name] = figures.by_rank(adversarial)
            random.append(figures.by_rank(baseline))
        ranks = max((len(ranks) for ranks, _ in attacked.values()), default=1)
        scales.scale_log(axes, 0.9, 1.1 * max(ranks, 1))
        figures.curves(axes, attacked)
        _draw_random(axes, random)
        axes.set(xlabel="rank of the singular vector", ylabel=label, ylim=(0, None))
    return figures.finish(figure, panels)


def _difference(found: Mapping[str, Any]) -> float:
    """Returns the largest difference of the cosine and the correlation."""
    cosine, correlation = (
        np.asarray(found[kind]["adversarial"]["mean"], float) for kind in _KINDS
    )
    return float(np.nanmax(np.abs(cosine - correlation)))


def _draw_alignment_by_length(results: Record, norm: str) -> "Figure":
    """Draws alignment with the dominant vector against the perturbation's length."""
    curves = {
        name: found["alignment_by_length"][norm]
        for name, found in results["networks"].items()
    }
    figure, (axes,) = figures.new_panels(
        "Alignment of PGA perturbations with the dominant right singular vector of the "
        "features' Jacobian\n"
        f"{figures.source_line(results, 'alignment_examples')}; bands: "
        f"{seeds.bands(results, 'alignment_examples')}",
        ("",),
    )
    figures.curves(
        axes, {name: (c["epsilon"], c["adversarial"]) for name, c in curves.items()}
    )
    _draw_random(axes, [(c["epsilon"], c["random"]) for c in curves.values()])
    figures.mark_training(axes, *results.get("training_epsilons", {}).get(norm, ()))
    axes.set(ylabel="absolute cosine", xlim=(0, None), ylim=(0, None))
    scales.label_lengths(axes, norm)
    return figures.finish(figure, [axes])


def _draw_random(axes: "Axes", curves: Sequence[tuple[Any, Mapping[str, Any]]]) -> None:
    """Draws (x, curve) of random perturbations, alike for all networks."""
    for place, (x, curve) in enumerate(curves):
        label = None if place else "random perturbations"
        marker = "_" if len(np.atleast_1d(x)) == 1 else ""
        axes.plot(
            x,
            curve["mean"],
            color=figures.GREY,
            linestyle=":",
            linewidth=1,
            marker=marker,
            label=label,
        )
