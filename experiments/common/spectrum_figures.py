"""experiments: figures of spectra, alignments and linearity; styles of figures.py."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.common import figures, networks
from opnorm import runs

# Curves with more points than this have a marker on some only.
_MARKED_POINTS = 12


def label(name: str) -> str:
    """What a reader is told of a network's name."""
    method, *rest = name.split(" (", 1)
    return " (".join([figures.LABELS.get(method, method), *rest])


def draw_spectra(
    out: runs.RunDirectory, results: Mapping[str, Any], names: Sequence[str]
) -> None:
    """Draws singular values by rank, at clean and at adversarial examples.

    Args:
      out: gets spectrum_features.png and spectrum_logits.png.
      results: of experiments.spectrum.
      names: the networks to draw.
    """
    for quantity in ("features", "logits"):
        figure, panels = draw_panels(
            f"Singular values of the Jacobian of the {quantity}\n"
            f"{source_line(results)}",
            ("at the pictures", f"after L2 PGA, $\\epsilon$ = {results['epsilon']:g}"),
        )
        style = Styles(names)
        highest = 0.0
        for axes, kind in zip(panels, ("clean", "adversarial"), strict=True):
            for name in names:
                found = results["networks"][name]["singular_values"][quantity][kind]
                style.draw(axes, name, _ranks(found), found)
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
      results: of experiments.spectrum.
    """
    names = list(results["networks"])
    epsilon = results["epsilon"]
    figure, panels = draw_panels(
        f"Alignment of perturbations (L2 PGA, $\\epsilon$ = {epsilon:g}) with the right"
        f" singular vectors of the features' Jacobian\n{source_line(results)}",
        ("cosine", "Pearson correlation"),
    )
    style = Styles(names)
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
            style.draw(axes, name, _ranks(drawn["adversarial"]), drawn["adversarial"])
            random.append(drawn["random"])
        style.draw_random(axes, random)
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
      results: of experiments.spectrum.
      norm: of the perturbations, "L2" or "Linf".
      training_epsilons: drawn as dashed lines.
    """
    names = list(results["networks"])
    figure, panels = draw_panels(
        "Alignment of perturbations with the dominant right singular vector of the\n"
        f"features' Jacobian. {source_line(results, 'alignment_examples')}",
        ("",),
    )
    (axes,) = panels
    style = Styles(names)
    for name in names:
        curve = results["networks"][name]["alignment_by_length"][norm]
        style.draw(axes, name, curve["epsilon"], curve["adversarial"])
    curves = [results["networks"][n]["alignment_by_length"][norm] for n in names]
    style.draw_random(axes, [c["random"] for c in curves], curves[0]["epsilon"])
    _mark(panels, training_epsilons)
    axes.set_xlabel(
        f"{norm} length of the PGA perturbation, $\\epsilon$ (pixels in [0, 1])"
    )
    axes.set_ylabel("absolute cosine")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    figures.save_panels(figure, panels, out.figure_path(f"alignment_by_length_{norm}"))


def draw_linearity(
    out: runs.RunDirectory,
    results: Mapping[str, Any],
    norm: str,
    training_epsilons: Sequence[float],
) -> None:
    """Draws deviation from linearity and the top singular value against the length.

    Args:
      out: gets linearity_<norm>.png.
      results: of experiments.linearity.
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
    figure, panels = draw_panels(
        f"Linearity of the features $\\phi$ around pictures x\n{source_line(results)}",
        tuple(kinds.values()),
        rows=len(rows),
    )
    style = Styles(names)
    for row, (quantity, meaning) in enumerate(rows.items()):
        pair = panels[2 * row : 2 * row + 2]
        for axes, kind in zip(pair, kinds, strict=True):
            for name in names:
                curve = results["networks"][name][norm][kind]
                # Nothing moves at length 0, so there is no part of it.
                first = 1 if quantity == "relative_deviation" else 0
                found = {part: c[first:] for part, c in curve[quantity].items()}
                style.draw(axes, name, curve["length"]["mean"][first:], found)
        pair[0].set_ylabel(meaning)
        pair[0].set_ylim(bottom=0)
    for axes in panels:
        axes.set_xlim(left=0)
    _mark(panels, training_epsilons)
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
      results: of experiments.linearity.
      training_epsilons: L2 lengths, drawn as dashed lines.
    """
    names = list(results["networks"])
    first = results["networks"][names[0]]
    titles = {
        ("noise", "pictures"): "uniform noise z at pictures x",
        ("noise", "random_inputs"): "uniform noise z at uniformly random x",
        **{
            (norm, "adversarial"): f"adversarial z ({norm} PGA) at pictures x"
            for norm in first
            if norm != "noise"
        },
    }
    figure, panels = draw_panels(
        f"ReLU units in the same state at x and x + z\n{source_line(results)}",
        tuple(titles.values()),
        rows=2 if len(titles) == 4 else 1,
        sharey="all",
    )
    style = Styles(names)
    for axes, (group, kind) in zip(panels, titles, strict=True):
        for name in names:
            curve = results["networks"][name][group][kind]
            found: dict[str, Any] = {
                part: 100 * np.asarray(values)
                for part, values in curve["shared_activations"].items()
            }
            style.draw(axes, name, curve["length"]["mean"], found)
        axes.set_xlabel("length $\\|z\\|_2$ (pixels in [0, 1])")
        axes.set_xlim(left=0)
    _mark(panels, training_epsilons)
    figure.supylabel("units in the same state (%)", fontsize=10)
    panels[0].set_ylim(top=100)
    figures.save_panels(figure, panels, out.figure_path("activations"))


class Styles:
    """One colour and marker for each network, the same in all panels.

    Attributes:
      of: (colour, marker, line) by name.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.of = {n: figures.STYLES[n] for n in names if n in figures.STYLES}
        taken = {color for color, _, _ in self.of.values()}
        free = [
            pair
            for pair in zip(figures.PALETTE, figures.MARKERS, strict=True)
            if pair[0] not in taken
        ] or list(zip(figures.PALETTE, figures.MARKERS, strict=True))
        others = [name for name in names if name not in self.of]
        for place, name in enumerate(others):
            self.of[name] = (*free[place % len(free)], "-")
            if name.startswith(networks.UNTRAINED):
                self.of[name] = ("0.5", "x", "-")

    def draw(
        self, axes: Any, name: str, x: Any, curve: Mapping[str, Sequence[float]]
    ) -> None:
        """Draws a mean with its standard error."""
        color, marker, line = self.of[name]
        x, mean = np.asarray(x), np.asarray(curve["mean"])
        error = np.asarray(curve["standard_error"], float)
        axes.plot(
            x,
            mean,
            color=color,
            marker=marker,
            markersize=4,
            markevery=max(1, len(x) // _MARKED_POINTS),
            linestyle=line,
            label=label(name),
        )
        axes.fill_between(x, mean - error, mean + error, color=color, alpha=0.15, lw=0)

    def draw_random(
        self, axes: Any, curves: Sequence[Mapping[str, Any]], x: Any = None
    ) -> None:
        """Draws what random perturbations have, alike for all networks."""
        for place, curve in enumerate(curves):
            axes.plot(
                _ranks(curve) if x is None else x,
                curve["mean"],
                color="0.6",
                linestyle=":",
                linewidth=1,
                label=None if place else "random perturbations",
            )


def draw_panels(
    title: str, titles: Sequence[str], rows: int = 1, sharey: str = "row"
) -> tuple[Any, list[Any]]:
    """A grid of panels, row by row; the titles are those of the first ones."""
    columns = len(titles) if rows == 1 else 2
    figure, grid = figures.pyplot().subplots(
        rows,
        columns,
        figsize=(6 if columns == 1 else 4 * columns, 4 if rows == 1 else 3 * rows),
        layout="constrained",
        sharey=sharey,
        squeeze=False,
    )
    figure.suptitle(title, fontsize=9)
    for axes, text in zip(grid.flat, titles, strict=False):
        axes.set_title(text, fontsize=9)
    return figure, list(grid.flat)


def _ranks(curve: Mapping[str, Sequence[float]]) -> np.ndarray:
    return np.arange(1, len(curve["mean"]) + 1)


def _mark(panels: Sequence[Any], training_epsilons: Sequence[float]) -> None:
    for axes in panels:
        for epsilon in training_epsilons:
            figures.mark_training_epsilon(axes, epsilon)


def source_line(results: Mapping[str, Any], count: str = "examples") -> str:
    """Says which data the results are of, and how many pictures."""
    return f"{results['data']}, {results[count]} pictures"
