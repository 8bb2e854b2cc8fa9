"""Figures of sweeps over a choice in training."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.common import figures
from opnorm import runs


def draw_sweep(
    out: runs.RunDirectory,
    points: Sequence[Mapping[str, Any]],
    *,
    axis: str,
    usual: float | None,
    title: str,
    labels: Mapping[str, str],
) -> None:
    """Draws clean and adversarial accuracy against the values of a sweep.

    Args:
      out: directory for accuracy.png.
      points: "value", and for each key of ``labels`` "mean" and "standard_error",
        fractions; one value may be inf.
      axis: label of the horizontal axis.
      usual: the value of the attack of the test, a dashed line on a logarithmic axis;
        None for a linear axis.
      title: title of the figure.
      labels: names of the curves.
    """
    figure, axes = figures.new_figure(title)
    values = [point["value"] for point in points]
    finite = [value for value in values if math.isfinite(value)] or [1.0]
    # Infinity has a place of its own, a little beyond the last value.
    places = [v if math.isfinite(v) else 2 * max(finite) for v in values]
    drawn = {}
    for name, label in labels.items():
        found = {
            part: [point[name][part] for point in points]
            for part in ("mean", "standard_error")
        }
        drawn[label] = (places, found)
    figures.curves(axes, drawn, times=100)
    if usual is not None:
        axes.set_xscale("log")
        figures.mark(axes, usual, "at test")
    ticks = [f"{v:g}" if math.isfinite(v) else "$\\infty$" for v in values]
    axes.set_xticks(places, ticks)
    axes.minorticks_off()
    axes.set(xlabel=axis, ylabel="accuracy (%)", ylim=(0, None))
    figures.save_figure(figure, axes, out.figure_path("accuracy"))
