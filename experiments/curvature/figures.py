"""Figures of eigenvalues in the parameters, and of curvatures in the input."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.common import figures, scales, seeds
from experiments.common.records import Record
from opnorm import analysis

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MATRICES = {"hessian": "Hessian", "gauss_newton": "Gauss-Newton"}
QUANTITIES = {
    "largest": "largest eigenvalue of the Hessian",
    "trace": "trace of the Hessian",
    "gradient_norm": "length of the gradient",
    "sigma": "largest singular value of J",
}
_UNITS = {
    "largest": "nats per squared pixel unit",
    "trace": "nats per squared pixel unit",
    "gradient_norm": "nats per pixel unit",
    "sigma": "logits per pixel unit",
}
# Smallest part of the peak of one eigenvalue that is drawn.
_FEWEST = 0.05


def parameter_errors(results: Mapping[str, Any]) -> str:
    """Returns words on the errors of eigenvalues and traces in the parameters."""
    if results.get("seeds"):
        return seeds.bands(results)
    return f"bound of an eigenvalue's error; of traces {_over_probes(results)}"


def _density_errors(results: Mapping[str, Any]) -> str:
    if results.get("seeds"):
        return seeds.bands(results)
    return f"{_over_probes(results)} and bound of the quadrature"


def _over_probes(results: Mapping[str, Any]) -> str:
    return f"standard error over {results['num_probes']} probes"


def draw(results: Record) -> Iterator[figures.Drawing]:
    """Draws the spectra in the parameters and the curvatures in the input.

    Args:
      results: content of results.json.

    Yields:
      "input_curvature", and "parameter_spectrum" where it was measured.
    """
    yield "input_curvature", _draw_input_curvature(results)
    if results["train_examples"]:
        yield "parameter_spectrum", _draw_densities(results)


def _draw_densities(results: Record) -> "Figure":
    """Draws the eigenvalue densities in the parameters, on logarithmic axes.

    The Gauss-Newton matrix has no negative eigenvalues, so the part of each blurred
    eigenvalue that lies below 0 is reflected.
    """
    networks = results["networks"]
    figure, panels = figures.new_panels(
        "Eigenvalues in the parameters, mean cross-entropy of "
        f"{results['train_examples']} training images; {results['data']}, "
        f"{results['num_probes']} probes of {results['num_steps']} Lanczos steps\n"
        f"the area below a curve is the number of parameters; bands: "
        f"{_density_errors(results)}",
        tuple(MATRICES.values()),
        sharey="row",
    )
    styles = figures.styles(list(networks))
    most = 0
    for axes, matrix in zip(panels, MATRICES, strict=True):
        for name, network in networks.items():
            found = network[matrix]
            held = found["density"]
            parts = ("asinh", "mean", "standard_error")
            arrays = (np.asarray(held[part]) for part in parts)
            curve = analysis.DensityCurve(held["scale"], held["width"], *arrays)
            if matrix == "gauss_newton":
                curve = curve.reflected()
            style = styles[name] | {"marker": "", "linewidth": 1}
            values = {"mean": curve.mean, "standard_error": curve.standard_error}
            count = found["parameters"]
            figures.curve(axes, curve.eigenvalues, values, times=count, **style)
            most = max(most, count)
        ends = curve.eigenvalues[[0, -1]]
        scales.scale_asinh(axes, curve.scale, float(ends[0]), float(ends[1]))
        axes.set(yscale="log", xlabel=f"eigenvalue $\\lambda$, s = {curve.scale:.2g}")
    # The height of the bell of one eigenvalue.
    bell = 1 / (curve.width * np.sqrt(2 * np.pi))
    panels[0].set(
        ylim=(_FEWEST * bell, 3 * most * bell),
        ylabel="eigenvalues per unit of asinh($\\lambda$ / s)",
    )
    return figures.finish(figure, panels)


def _draw_input_curvature(results: Record) -> "Figure":
    """Draws the share of images up to each value, for each quantity in the inputs.

    Axes are logarithmic, on both sides of zero for a quantity with negative values,
    which only networks have that are not piecewise linear.
    """
    inputs = {name: found["inputs"] for name, found in results["networks"].items()}
    titles = dict(QUANTITIES)
    if any(found.get("curved") for found in inputs.values()):
        titles["trace"] += f", partly by {results['num_probes']} random probes"
    errors = "one network each, without errors"
    if results.get("seeds"):
        errors = f"means over {seeds.networks(results)}, rank by rank"
    figure, panels = figures.new_panels(
        "Derivatives of the cross-entropy and of the logits in the input: images up to "
        f"each value\n{figures.source_line(results)}; {errors}",
        tuple(titles.values()),
        sharey=True,
    )
    styles = figures.styles(list(inputs))
    for axes, quantity in zip(panels, QUANTITIES, strict=True):
        curves = {
            name: np.asarray(found[quantity]["percentiles"], float)
            for name, found in inputs.items()
        }
        for name, values in curves.items():
            axes.plot(values, np.arange(len(values)), **_every(styles[name]))
        lowest = min(float(values[0]) for values in curves.values())
        highest = max(float(values[-1]) for values in curves.values())
        scales.scale_values(axes, lowest, highest)
        axes.set_xlabel(_UNITS[quantity])
    for axes in panels[::2]:
        axes.set_ylabel("images up to the value (%)")
    panels[0].set_ylim(0, 100)
    return figures.finish(figure, panels)


def _every(style: figures.Style) -> figures.Style:
    """Returns the style with a marker at every 10th percentile."""
    return style | {"markevery": 10}
