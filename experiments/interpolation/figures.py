"""Figures of sweeps over a choice in training."""

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from experiments.common import figures
from experiments.common.records import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Axis(NamedTuple):
    """The horizontal axis of a sweep.

    Attributes:
      label: its label.
      usual: the value of the attack of the test, where it has one; the axis is then
        logarithmic.
    """

    label: str
    usual: float | None = None


AXES = {
    "step_size": Axis(
        "step size of the attack in training (multiples of $\\epsilon$ / its steps)",
        usual=2.0,
    ),
    "mix": Axis("from adversarial training (0) to data-dependent SNR (1)"),
}


def draw(results: Record) -> Iterator[figures.Drawing]:
    """Draws clean and adversarial accuracy against the values of a sweep.

    Args:
      results: content of results.json.

    Yields:
      "accuracy".
    """
    points, axis = results["points"], AXES[results["sweep"]]
    figure, (axes,) = figures.new_panels(
        f"Accuracy by the attack in training; {results['data']}, "
        f"{points[0]['examples']:.0f} test images\n"
        f"bands: standard error over {errors(results)}",
        ("",),
    )
    values = np.array([float(point["value"]) for point in points])
    finite = np.isfinite(values)
    labels = {
        "clean": "clean",
        "adversarial": f"L2 PGA, {results['flags']['test_steps']} steps, "
        f"$\\epsilon$ = {results['epsilon']:g}",
    }
    styles = figures.styles(list(labels.values()))
    for name, text in labels.items():
        found = _curve(points, name)
        part = {key: value[finite] for key, value in found.items()}
        figures.curve(axes, values[finite], part, times=100, **styles[text])
    if axis.usual is not None:
        axes.set_xscale("log")
        figures.mark(axes, axis.usual, "step size of the attack at test")
    places = values.copy()
    if not finite.all():
        # Infinity has a place of its own, behind a break of the axis.
        last = float(max(values[finite], default=1.0))
        places[~finite] = 2.5 * last
        for name, text in labels.items():
            part = {k: value[~finite] for k, value in _curve(points, name).items()}
            style = styles[text] | {"label": None}
            figures.curve(axes, places[~finite], part, times=100, **style)
        _break(axes, 1.6 * last)
    ticks = [f"{v:g}" if math.isfinite(v) else "$\\infty$" for v in values]
    axes.set_xticks(places, ticks)
    axes.minorticks_off()
    axes.set(xlabel=axis.label, ylabel="accuracy (%)", ylim=(0, None))
    yield "accuracy", figures.finish(figure, [axes])


def _curve(points: Any, name: str) -> Mapping[str, np.ndarray]:
    return {
        part: np.array([point[name][part] for point in points], float)
        for part in ("mean", "standard_error")
    }


def _break(axes: "Axes", place: float) -> None:
    """Draws two strokes through the horizontal axis, which goes on elsewhere."""
    axes.annotate(
        "//",
        (place, 0.0),
        xycoords=("data", "axes fraction"),
        xytext=(0, -3),
        textcoords="offset points",
        ha="center",
        va="center",
        color=figures.BLACK,
    )


def errors(results: Record) -> str:
    """Returns words on what standard errors are over, and over how many."""
    seeds, point = results["seeds"], results["points"][0]
    if seeds > 1:
        return f"{seeds} networks"
    return f"{point['examples']:.0f} images"
