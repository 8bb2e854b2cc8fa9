"""The parts that figures share, such as curves with bands and panels with one legend.

Example::

  figure, panels = figures.new_panels("Title", ("left", "right"))
  for axes in panels:
      figures.curves(axes, {"standard": (x, {"mean": m, "standard_error": e})})
      axes.set(xlabel="length", ylabel="accuracy", ylim=(0, None))
  figures.save_panels(figure, panels, path)

Colours follow Okabe & Ito's palette, which colour-blind readers can tell apart; every
method keeps its colour and marker in all figures. Matplotlib is imported when a figure
is made.
"""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.common import cli, records
from opnorm import runs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Figures are drawn at the end; a command without matplotlib must not get that far.
cli.require("matplotlib", extra="figures")

# Keyword arguments of matplotlib's ``plot``.
Style = dict[str, Any]

UNTRAINED = "untrained"
BLACK = "#000000"
LABELS = {
    "standard": "standard",
    "adversarial": "adversarial training",
    "adversarial_only": "adversarial training (adversarial only)",
    "data_dependent_snr": "data-dependent SNR",
    "data_dependent_onr": "data-dependent ONR",
    "global_snr": "global SNR",
    "interpolated": "adversarial training and SNR, interpolated",
    "gradient_regularization": "input-gradient regularisation",
    "wrm": "WRM",
}
# The unit of lengths unless another one is given.
PIXELS = "pixels in [0, 1]"
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("s", "^", "D", "P", "o", "v")
# Colour, marker and line of each method.
STYLES = {
    "best known": ("#000000", "x", ":"),
    "standard": ("#000000", "o", "-"),
    "adversarial": ("#0072B2", "s", "-"),
    "adversarial_only": ("#56B4E9", "v", "-"),
    "data_dependent_snr": ("#D55E00", "^", "-"),
    "data_dependent_onr": ("#CC79A7", "P", "-"),
    "global_snr": ("#009E73", "D", "--"),
    "interpolated": ("#E69F00", "o", "-."),
    "gradient_regularization": ("#999999", "X", "-."),
}
# Marker and line of the second and of further networks of one method; the first has
# those of the method.
_VARIANTS = (("", ""), ("x", ":"), ("+", "-."), ("*", "--"))
# Curves with more points than this have a marker at some only.
_MARKED_POINTS = 12
# Decades below the largest value that are shown, and on either side of zero where some
# values are negative.
_DECADES = 6
_SIGNED_DECADES = 2


def label(name: str) -> str:
    """Returns the reader's name of a network: a method, perhaps with its run behind."""
    method, *rest = name.split(" (", 1)
    return " (".join([LABELS.get(method, method), *rest])


def styles(names: Sequence[str]) -> dict[str, Style]:
    """Returns the style of each network or attack, the same in all panels.

    Methods have styles of their own, also with a text in parentheses behind them:
    several of one method share its colour and differ in marker and line. Other names
    take colours that no method among them has.
    """
    found = _method_styles(names)
    taken = {color for color, _, _ in found.values()}
    pairs = list(zip(PALETTE, MARKERS, strict=True))
    free = [pair for pair in pairs if pair[0] not in taken] or pairs
    others = [name for name in names if name not in found]
    for place, name in enumerate(others):
        found[name] = (*free[place % len(free)], "-")
        if name.startswith(UNTRAINED):
            found[name] = ("0.5", "x", "-")
    return {
        name: {
            "color": color,
            "marker": marker,
            "markersize": 4,
            "linestyle": line,
            "label": label(name),
        }
        for name, (color, marker, line) in found.items()
    }


def _method_styles(names: Sequence[str]) -> dict[str, tuple[str, str, str]]:
    """Returns the styles of names that begin with a method."""
    found: dict[str, tuple[str, str, str]] = {}
    seen: dict[str, int] = {}
    for name in names:
        method = name.split(" (", 1)[0]
        if method not in STYLES:
            continue
        place = seen.setdefault(method, 0)
        seen[method] += 1
        if place >= len(_VARIANTS):
            continue
        color, marker, line = STYLES[method]
        found[name] = (color, marker, line)
        if place:
            found[name] = (color, *_VARIANTS[place])
    return found


def curve(
    axes: "Axes", x: Any, found: Mapping[str, Any], *, times: float = 1, **style: Any
) -> None:
    """Draws a mean, with its standard error as a band.

    Args:
      axes: the panel.
      x: ``(N,)``.
      found: "mean" and "standard_error", ``(N,)``; an error of None or NaN has no band.
      times: factor in front of both; 100 for percents.
      **style: as :func:`styles` returns it, with a "color".
    """
    x = np.asarray(x)
    mean, error = (
        times * np.asarray(found[part], float) for part in ("mean", "standard_error")
    )
    every = max(1, len(x) // _MARKED_POINTS)
    axes.plot(x, mean, **{"markevery": every, **style})
    axes.fill_between(
        x, mean - error, mean + error, color=style["color"], alpha=0.15, lw=0
    )


def distribution(axes: "Axes", values: Any, **style: Any) -> None:
    """Draws the percentage of values up to each value, as steps from (0, 0) on.

    Args:
      axes: the panel.
      values: ``(N,)``, at least 0; an infinite one is counted, and is never reached.
      **style: keyword arguments of ``plot``.
    """
    values = np.asarray(values, float)
    reached = np.sort(values[np.isfinite(values)])
    percent = 100 * np.arange(1, len(reached) + 1) / len(values)
    x, y = np.concatenate([[0.0], reached]), np.concatenate([[0.0], percent])
    axes.step(x, y, where="post", **style)


def curves(
    axes: "Axes",
    drawn: Mapping[str, tuple[Any, Mapping[str, Any]]],
    *,
    times: float = 1,
    names: Sequence[str] | None = None,
) -> None:
    """Draws (x, mean with error) of each network or attack by name, in its style.

    Args:
      axes: the panel.
      drawn: for each name x, and the mean with its error as for :func:`curve`.
      times: as for :func:`curve`.
      names: the names of all panels, where some are not in this one; their order
        decides the styles.
    """
    styled = styles(list(drawn) if names is None else names)
    for name, (x, found) in drawn.items():
        curve(axes, x, found, times=times, **styled[name])


def by_rank(found: Mapping[str, Any]) -> tuple[np.ndarray, Mapping[str, Any]]:
    """Returns the ranks 1, 2, ... of values, and the values."""
    return np.arange(1, len(found["mean"]) + 1), found


def bands(over: str, count: int | None, most: int | None = None) -> str:
    """Returns the line of a title that says what the bands of a figure are.

    Args:
      over: "networks" that differ in the seed, or "examples", the images of one
        network.
      count: their number, for each curve; None where panels have different images.
      most: the largest number, where it differs between the curves.
    """
    if over == "examples":
        images = ("the", "images of the panel") if count is None else (count, "images")
        return f"one network each; bands: {records.error_over(*images)}"
    number = f"{count}" if most in (None, count) else f"{count} to {most}"
    return f"bands: {records.error_over(number, 'networks each')}"


def source_line(results: Mapping[str, Any], count: str = "examples") -> str:
    """Returns the data that results are of, and the number of images under a key."""
    return f"{results['data']}, {results[count]} images"


def plot_accuracy(
    accuracies: Mapping[str, Mapping[str, Sequence[float]]],
    path: Path,
    *,
    training_epsilon: float | None,
    norm: str,
    title: str,
    rate: str = "accuracy",
    unit: str = PIXELS,
) -> None:
    """Draws accuracy against epsilon, one curve per method, with standard errors.

    Args:
      accuracies: by method: "epsilon", "mean" and "standard_error", fractions.
      path: the PNG to write.
      training_epsilon: drawn as a dashed line, or None.
      norm: name of the norm on the axis, such as "L2".
      title: the measurement and its data.
      rate: name of the fractions.
      unit: unit of the lengths.
    """
    figure, axes = new_figure(title)
    drawn = {name: (found["epsilon"], found) for name, found in accuracies.items()}
    curves(axes, drawn, times=100)
    if training_epsilon is not None:
        mark_training(axes, training_epsilon)
    label_lengths(axes, norm, unit)
    axes.set(ylabel=f"{rate} (%)", ylim=(0, None))
    save_figure(figure, axes, path)


def label_lengths(axes: "Axes", norm: str, unit: str = PIXELS) -> None:
    """Labels a horizontal axis of lengths; Linf lengths of pixels are levels of 255."""
    if norm == "Linf" and unit == PIXELS:
        unit = "levels of 255"
        axes.xaxis.set_major_formatter(lambda x, _: f"{255 * x:.3g}")
        ends = [np.max(np.asarray(line.get_xdata(), float)) for line in axes.lines]
        last = float(max(ends, default=1.0))
        if 255 * last >= 2:
            step = next((s for s in (1, 2, 4, 8) if 255 * last <= 8 * s), 32)
            levels = range(0, round(255 * last) + 1, step)
            axes.set_xticks([level / 255 for level in levels])
    axes.set_xlabel(f"{norm} length of the perturbation, $\\epsilon$ ({unit})")


def plot_singular_values(
    spectra: Mapping[str, Mapping[str, Sequence[float]]], path: Path, *, title: str
) -> None:
    """Draws the mean singular values of the Jacobian by rank, one curve per method.

    Args:
      spectra: by method: "mean" and "standard_error", one number per rank.
      path: the PNG to write.
      title: the measurement and its data.
    """
    figure, axes = new_figure(title)
    curves(axes, {name: by_rank(found) for name, found in spectra.items()})
    most = max(len(found["mean"]) for found in spectra.values())
    axes.set(
        yscale="log",
        xticks=range(1, most + 1),
        xlabel="rank",
        ylabel="singular value of the logits' Jacobian",
    )
    save_figure(figure, axes, path)


def mark_training(axes: "Axes", *epsilons: float) -> None:
    """Draws each epsilon that networks were trained with as a dashed line."""
    for epsilon in epsilons:
        mark(axes, epsilon, "training $\\epsilon$")


def mark(axes: "Axes", place: float, text: str) -> None:
    """Draws a dashed line at a place of the horizontal axis, with a text beside it."""
    axes.axvline(place, color="0.5", linestyle="--", linewidth=1)
    axes.annotate(
        text,
        (place, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(3, -3),
        textcoords="offset points",
        va="top",
        color="0.35",
        fontsize=8,
    )


def pyplot() -> Any:
    """Returns matplotlib.pyplot, with a backend that needs no screen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def new_figure(title: str) -> tuple["Figure", "Axes"]:
    """Returns a figure of one panel with a title."""
    figure, axes = pyplot().subplots(figsize=(6, 4), layout="constrained")
    axes.set_title(title, fontsize=9)
    return figure, axes


def new_panels(
    title: str,
    titles: Sequence[str],
    *,
    columns: int | None = None,
    sharey: bool | str = False,
) -> tuple["Figure", list["Axes"]]:
    """Returns a figure of panels in rows, and the panels.

    Args:
      title: title of the figure.
      titles: titles of the panels, which they count.
      columns: panels in a row; None for two by two where they are four, otherwise at
        most three.
      sharey: as in ``matplotlib.pyplot.subplots``: True for one vertical axis, "row"
        for one in each row.
    """
    count = len(titles)
    if columns is None:
        columns = 2 if count == 4 else min(count, 3)
    rows = -(-count // columns)
    size = (7.0, 4.5) if count == 1 else (1.0 + 3.5 * columns, 1.2 + 2.7 * rows)
    figure, grid = pyplot().subplots(
        rows,
        columns,
        figsize=size,
        layout="constrained",
        sharey=sharey,
        squeeze=False,
    )
    figure.suptitle(title, fontsize=9)
    panels = list(grid.flat)
    for axes in panels[count:]:
        axes.set_visible(False)
    for axes, text in zip(panels, titles, strict=False):
        axes.set_title(text, fontsize=9)
    return figure, panels[:count]


def scale_log(axes: "Axes", low: float, high: float) -> None:
    """Makes the horizontal axis logarithmic, with labels that do not run together."""
    from matplotlib import ticker

    axes.set_xscale("log")
    axes.set_xlim(low, high)
    if high < 50 * low:
        axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())


def scale_asinh(axes: "Axes", width: float, low: float, high: float) -> None:
    """Makes the horizontal axis logarithmic on both sides of zero.

    Args:
      axes: the panel.
      width: half the width of the part that is linear.
      low: left end.
      high: right end.
    """
    largest = max(width, abs(low), abs(high))
    powers = range(round(math.log10(width)), math.floor(math.log10(largest)) + 1)
    ticks = sorted({0.0, *(s * 10.0**power for power in powers for s in (-1, 1))})
    axes.set_xscale("asinh", linear_width=width)
    axes.set(xticks=[tick for tick in ticks if low <= tick <= high], xlim=(low, high))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()


def scale_decades(axes: "Axes", low: float, high: float) -> None:
    """Makes the vertical axis logarithmic, on both sides of zero for negative values.

    Args:
      axes: the panel, with its curves.
      low: smallest value; where it is negative, two decades of either sign are shown,
        otherwise at most six below the largest value.
      high: largest value.
    """
    from matplotlib import ticker

    if low < 0:
        width = max(high, -low) / 10**_SIGNED_DECADES
        axes.set_yscale("asinh", linear_width=width)
    else:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(
            ticker.LogLocator(subs=(1.0, 2.0, 5.0), numticks=12)
        )
        axes.set_ylim(bottom=max(axes.get_ylim()[0], high / 10**_DECADES))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.minorticks_off()


def save_panels(
    figure: "Figure",
    panels: Sequence["Axes"],
    path: Path,
    *,
    columns: int | None = None,
) -> None:
    """Gives panels one legend below them, and writes the figure.

    Args:
      figure: as :func:`new_panels` returns it.
      panels: likewise.
      path: the PNG to write.
      columns: columns of the legend; None for as many as are likely to fit.
    """
    known: dict[str, Any] = {}
    for axes in panels:
        for handle, text in zip(*axes.get_legend_handles_labels(), strict=True):
            known.setdefault(text, handle)
        finish(axes)
        if (legend := axes.get_legend()) is not None:
            legend.remove()
    # Inches that a label takes at this font size, with its line.
    width = 0.55 + 0.056 * max(map(len, known), default=0)
    figure.legend(
        list(known.values()),
        list(known),
        loc="outside lower center",
        ncols=columns or max(1, min(len(known), int(figure.get_figwidth() / width))),
        frameon=False,
        fontsize=8,
    )
    write(figure, path)


def finish(axes: "Axes") -> None:
    """Adds grid and legend, if anything has a label, and takes the frame away."""
    axes.grid(color="0.9", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)


def save_figure(figure: "Figure", axes: "Axes", path: Path) -> None:
    """Finishes the panel, writes the figure and closes it."""
    finish(axes)
    write(figure, path)


def write(figure: "Figure", path: Path) -> None:
    """Writes a PNG whole or not at all, never through a link, and closes the figure."""
    png = io.BytesIO()
    figure.savefig(png, dpi=150, format="png")
    runs.write_whole(path, png.getvalue())
    pyplot().close(figure)
