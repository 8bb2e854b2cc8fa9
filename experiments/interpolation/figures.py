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
    styles = figures.styles(list(labels.values()))
    values = [point["value"] for point in points]
    finite = [value for value in values if math.isfinite(value)] or [1.0]
    # Infinity has a place of its own, a little beyond the last value.
    places = [v if math.isfinite(v) else 2 * max(finite) for v in values]
    for name, label in labels.items():
        found = {
            part: [point[name][part] for point in points]
            for part in ("mean", "standard_error")
        }
        figures.curve(axes, places, found, times=100, **styles[label])
    if usual is not None:
        axes.set_xscale("log")
    ticks = [f"{v:g}" if math.isfinite(v) else "$\\infty$" for v in values]
    axes.set_xticks(places, ticks)
    axes.minorticks_off()
    if usual is not None:
        figures.mark(axes, usual, "at test")
    axes.set_xlabel(axis)
    axes.set_ylabel("accuracy (%)")
    axes.set_ylim(bottom=0)
    figures.save_figure(figure, axes, out.figure_path("accuracy"))
