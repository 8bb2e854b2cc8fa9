"""Figures of eigenvalues in the parameters, and of curvatures in the input."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.common import figures, seeds
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
# Smallest part of one eigenvalue that is drawn.
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


def draw_densities(out: runs.RunDirectory, results: Mapping[str, Any]) -> None:
    """Draws the eigenvalue densities in the parameters, on logarithmic axes.

    Args:
      out: directory for parameter_spectrum.png.
      results: content of results.json.
    """
    networks = results["networks"]
    figure, panels = figures.new_panels(
        "Eigenvalues in the parameters, mean cross-entropy of "
        f"{results['train_examples']} training images\n{results['data']}, "
        f"{results['num_probes']} probes of {results['num_steps']} Lanczos steps; "
        f"bands: {_density_errors(results)}",
        tuple(MATRICES.values()),
        sharey="row",
    )
    styles = figures.styles(list(networks))
    for axes, matrix in zip(panels, MATRICES, strict=True):
        for name, network in networks.items():
            found = network[matrix]
            curve = found["density"]
            # One eigenvalue, seen by all probes alike, has a bell of height 1.
            bell = found["parameters"] * curve["width"] * math.sqrt(2 * math.pi)
            x = curve["scale"] * np.sinh(curve["asinh"])
            style = styles[name] | {"marker": "", "linewidth": 1}
            figures.curve(axes, x, curve, times=bell, **style)
        figures.scale_asinh(axes, curve["scale"], x[0], x[-1])
        axes.set(yscale="log", xlabel="eigenvalue")
    panels[0].set(
        ylim=(_FEWEST, 3 * found["parameters"]), ylabel="number of eigenvalues around"
    )
    figures.save_panels(figure, panels, out.figure_path("parameter_spectrum"))


def draw_input_curvature(out: runs.RunDirectory, results: Mapping[str, Any]) -> None:
    """Draws each quantity in the inputs, images in rising order.

    Axes are logarithmic, on both sides of zero for a quantity with negative values,
    which only networks have that are not piecewise linear.

    Args:
      out: directory for input_curvature.png.
      results: content of results.json.
    """
    inputs = {name: found["inputs"] for name, found in results["networks"].items()}
    titles = dict(QUANTITIES)
    if any(found["curved"] for found in inputs.values()):
        titles["trace"] += f", partly by {results['num_probes']} random probes"
    averaged = ""
    if results.get("seeds"):
        averaged = f"; means over {seeds.networks(results)}, rank by rank"
    figure, panels = figures.new_panels(
        "Derivatives of the cross-entropy and of the logits in the input\n"
        f"{figures.source_line(results)}{averaged}",
        tuple(titles.values()),
    )
    styles = figures.styles(list(inputs))
    for axes, quantity in zip(panels, QUANTITIES, strict=True):
        curves = {
            name: found[quantity]["percentiles"] for name, found in inputs.items()
        }
        for name, values in curves.items():
            axes.plot(values, **styles[name] | {"marker": ""})
        lowest = min(0.0, *(values[0] for values in curves.values()))
        highest = max(0.0, *(values[-1] for values in curves.values()))
        figures.scale_decades(axes, lowest, highest)
        axes.set_ylabel(_UNITS[quantity], fontsize=8)
        axes.set_xlim(0, 100)
    for axes in panels[-2:]:
        axes.set_xlabel("images with less (%)")
    figures.save_panels(figure, panels, out.figure_path("input_curvature"))
