"""experiments: figures of curvatures and of sweeps over training choices."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.common import figures, spectrum_figures
from opnorm import runs

MATRICES = {"hessian": "Hessian", "gauss_newton": "Gauss-Newton"}
QUANTITIES = {
    "largest": "largest eigenvalue of the Hessian",
    "trace": "trace of the Hessian",
    "gradient_norm": "length of the gradient",
    "sigma": "largest singular value of J",
}
_UNITS = {
    "largest": "per squared pixel unit",
    "trace": "per squared pixel unit",
    "gradient_norm": "per pixel unit",
    "sigma": "logits per pixel unit",
}
# Decades that a curvature is drawn over: the surest images have next to none.
_DECADES = 6
# Decades on either side of zero, where some values are negative.
_SIGNED_DECADES = 2
# Less than this part of one eigenvalue is not drawn.
_FEWEST = 0.05


def draw_densities(out: runs.RunDirectory, results: Mapping[str, Any]) -> None:
    """Draws the eigenvalue densities in the parameters, on logarithmic axes.

    Args:
      out: gets parameter_spectrum.png.
      results: of experiments.curvature.
    """
    names = list(results["networks"])
    figure, panels = spectrum_figures.draw_panels(
        "Eigenvalues in the parameters, mean cross-entropy of "
        f"{results['train_examples']} training pictures\n{results['data']}, "
        f"{results['num_probes']} probes of {results['num_steps']} Lanczos steps",
        tuple(MATRICES.values()),
    )
    style = spectrum_figures.Styles(names)
    for axes, matrix in zip(panels, MATRICES, strict=True):
        for name in names:
            found = results["networks"][name][matrix]
            curve = found["density"]
            # One eigenvalue, seen by all probes alike, has a bell of height 1.
            bell = found["parameters"] * curve["width"] * math.sqrt(2 * math.pi)
            mean, error = (
                bell * np.asarray(curve[n]) for n in ("mean", "standard_error")
            )
            x = curve["scale"] * np.sinh(curve["asinh"])
            color, _, line = style.of[name]
            axes.plot(
                x,
                mean,
                color=color,
                linestyle=line,
                linewidth=1,
                label=spectrum_figures.label(name),
            )
            axes.fill_between(
                x, mean - error, mean + error, color=color, alpha=0.15, lw=0
            )
        axes.set_xscale("asinh", linear_width=curve["scale"])
        axes.set_xticks(_ticks(curve["scale"], x))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.set_xlim(x[0], x[-1])
        axes.set_yscale("log")
        axes.set_xlabel("eigenvalue")
    panels[0].set_ylim(_FEWEST, 3 * found["parameters"])
    panels[0].set_ylabel("number of eigenvalues around")
    figures.save_panels(figure, panels, out.figure_path("parameter_spectrum"))


def draw_input_curvature(out: runs.RunDirectory, results: Mapping[str, Any]) -> None:
    """Draws each quantity in the inputs, images in rising order.

    Axes are logarithmic; where a network that is not piecewise linear has a negative
    eigenvalue or trace, they are so in both directions from zero.

    Args:
      out: gets input_curvature.png.
      results: of experiments.curvature.
    """
    names = list(results["networks"])
    figure, panels = spectrum_figures.draw_panels(
        "Derivatives of the cross-entropy and of the logits in the input\n"
        f"{spectrum_figures.source_line(results)}",
        tuple(QUANTITIES.values()),
        rows=2,
        sharey="none",
    )
    style = spectrum_figures.Styles(names)
    curved = any(
        network["inputs"]["curved"] for network in results["networks"].values()
    )
    for axes, (quantity, title) in zip(panels, QUANTITIES.items(), strict=True):
        highest, lowest = 0.0, 0.0
        if quantity == "trace" and curved:
            title = f"{title}, partly by {results['num_probes']} random probes"
        axes.set_title(title, fontsize=9)
        for name in names:
            found = results["networks"][name]["inputs"][quantity]
            values = np.asarray(found["percentiles"])
            color, _, line = style.of[name]
            axes.plot(
                values,
                color=color,
                linestyle=line,
                label=spectrum_figures.label(name),
            )
            highest, lowest = max(highest, values[-1]), min(lowest, values[0])
        if lowest < 0:
            width = max(highest, -lowest) / 10**_SIGNED_DECADES
            axes.set_yscale("asinh", linear_width=width)
        else:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(_locator())
            axes.set_ylim(bottom=max(axes.get_ylim()[0], highest / 10**_DECADES))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.minorticks_off()
        axes.set_ylabel(_UNITS[quantity], fontsize=8)
        axes.set_xlim(0, 100)
    for axes in panels[-2:]:
        axes.set_xlabel("images with less (%)")
    figures.save_panels(figure, panels, out.figure_path("input_curvature"))


def draw_sweep(
    out: runs.RunDirectory,
    points: Sequence[Mapping[str, Any]],
    *,
    axis: str,
    mark: float | None,
    logarithmic: bool,
    title: str,
    labels: Mapping[str, str],
) -> None:
    """Draws clean and adversarial accuracy against what was swept.

    Args:
      out: gets accuracy.png.
      points: "value", and for each key of ``labels`` "mean" and "standard_error",
        fractions; one value may be inf.
      axis: what the horizontal axis is.
      mark: where the attack of the test lies, drawn as a dashed line, or None.
      logarithmic: whether values are drawn on a logarithmic axis.
      title: what was measured, on which data.
      labels: what the curves are called.
    """
    figure, axes = figures.new_figure(title)
    values = [point["value"] for point in points]
    finite = [value for value in values if math.isfinite(value)] or [1.0]
    # Infinity has a place of its own, a little beyond the last value.
    places = [v if math.isfinite(v) else 2 * max(finite) for v in values]
    for name, label in labels.items():
        mean, error = (
            # A standard error that is not known may be None.
            100 * np.asarray([point[name][part] for point in points], float)
            for part in ("mean", "standard_error")
        )
        figures.band(axes, label, np.asarray(places), mean, error)
    if logarithmic:
        axes.set_xscale("log")
    ticks = [f"{v:g}" if math.isfinite(v) else "$\\infty$" for v in values]
    axes.set_xticks(places, ticks)
    axes.minorticks_off()
    if mark is not None:
        figures.mark(axes, mark, "at test")
    axes.set_xlabel(axis)
    axes.set_ylabel("accuracy (%)")
    axes.set_ylim(bottom=0)
    figures.save_figure(figure, axes, out.figure_path("accuracy"))


def _ticks(scale: float, x: np.ndarray) -> list[float]:
    """Zero, and powers of ten beyond the scale, among x."""
    largest = max(scale, abs(x[0]), abs(x[-1]))
    powers = range(round(math.log10(scale)), math.floor(math.log10(largest)) + 1)
    ticks = [0.0, *(sign * 10.0**power for power in powers for sign in (-1, 1))]
    return sorted(tick for tick in ticks if x[0] <= tick <= x[-1])


def _locator() -> Any:
    """Ticks at 1, 2 and 5 times powers of ten."""
    from matplotlib import ticker

    return ticker.LogLocator(subs=(1, 2, 5), numticks=12)
