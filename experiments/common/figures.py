"""experiments: the figures, one function each. Matplotlib is imported when one is made.

Colours follow Okabe & Ito's palette, which colour-blind readers can tell apart; every
method keeps its colour and marker in all figures.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from opnorm import runs

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
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("s", "^", "D", "P", "o", "v")
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


def plot_accuracy(
    curves: Mapping[str, Mapping[str, Sequence[float]]],
    path: Path,
    *,
    training_epsilon: float | None,
    norm: str,
    title: str,
) -> None:
    """Draws accuracy against epsilon, one curve per method, with standard errors.

    Args:
      curves: by method: "epsilon", "mean" and "standard_error", fractions.
      path: the PNG to write.
      training_epsilon: drawn as a dashed line, or None.
      norm: what the axis calls the norm, such as "L2".
      title: what was measured, on which data.
    """
    figure, axes = new_figure(title)
    for method, curve in curves.items():
        band(
            axes,
            method,
            np.asarray(curve["epsilon"]),
            100 * np.asarray(curve["mean"]),
            100 * np.asarray(curve["standard_error"], float),
        )
    mark_training_epsilon(axes, training_epsilon)
    axes.set_xlabel(
        f"{norm} length of the perturbation, $\\epsilon$ (pixels in [0, 1])"
    )
    axes.set_ylabel("accuracy (%)")
    axes.set_ylim(bottom=0)
    save_figure(figure, axes, path)


def plot_distances(
    distances: Mapping[str, np.ndarray],
    path: Path,
    *,
    training_epsilon: float | None,
    norm: str,
    title: str,
) -> None:
    """Draws the error against the distance of the nearest misclassified points.

    Args:
      distances: by attack: ``(N,)``, 0 where the network errs at x, inf if not found.
      path: the PNG to write.
      training_epsilon: drawn as a dashed line, or None.
      norm: what the axis calls the norm, such as "L2".
      title: what was measured, on which data.
    """
    figure, axes = new_figure(title)
    for number, (name, values) in enumerate(distances.items()):
        reached = np.sort(values[np.isfinite(values)])
        error = 100 * np.arange(1, len(reached) + 1) / len(values)
        axes.step(
            np.concatenate([[0.0], reached]),
            np.concatenate([[0.0], error]),
            where="post",
            color=PALETTE[number % len(PALETTE)],
            label=name,
        )
    mark_training_epsilon(axes, training_epsilon)
    axes.set_xlabel(f"{norm} distance of the nearest point found (pixels in [0, 1])")
    axes.set_ylabel("error (%)")
    axes.set_ylim(0, 100)
    axes.set_xlim(left=0)
    save_figure(figure, axes, path)


def plot_singular_values(
    spectra: Mapping[str, Mapping[str, Sequence[float]]], path: Path, *, title: str
) -> None:
    """Draws the mean singular values of the Jacobian by rank, one curve per method.

    Args:
      spectra: by method: "mean" and "standard_error", one number per rank.
      path: the PNG to write.
      title: what was measured, on which data.
    """
    figure, axes = new_figure(title)
    for method, spectrum in spectra.items():
        mean = np.asarray(spectrum["mean"])
        rank = np.arange(1, len(mean) + 1)
        band(axes, method, rank, mean, np.asarray(spectrum["standard_error"], float))
    axes.set_yscale("log")
    axes.set_xticks(np.arange(1, max(len(s["mean"]) for s in spectra.values()) + 1))
    axes.set_xlabel("rank")
    axes.set_ylabel("singular value of the logits' Jacobian")
    save_figure(figure, axes, path)


def plot_training(
    metrics: Sequence[Mapping[str, float]], path: Path, title: str
) -> None:
    """Draws loss and accuracies of a run against the epoch.

    Args:
      metrics: lines of a run's metrics.jsonl.
      path: the PNG to write.
      title: what was trained.
    """
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    figure.suptitle(LABELS.get(title, title), fontsize=10)
    epoch = [line["epoch"] for line in metrics]
    for axes, names in (
        (left, ("loss", "adversarial_loss", "penalty")),
        (right, ("accuracy", "adversarial_accuracy")),
    ):
        for name, color in zip(names, ("#000000", "#0072B2", "#D55E00"), strict=False):
            if metrics and name in metrics[0]:
                values = [line[name] for line in metrics]
                axes.plot(epoch, values, color=color, label=name.replace("_", " "))
        axes.set_xlabel("epoch")
        finish(axes)
    right.set_ylim(0, 1)
    write(figure, path)


def mark_training_epsilon(axes: Any, training_epsilon: float | None) -> None:
    """Draws the epsilon that was trained with as a dashed line, if there is one."""
    if training_epsilon is not None:
        mark(axes, training_epsilon, "training $\\epsilon$")


def mark(axes: Any, place: float, text: str) -> None:
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


def new_figure(title: str) -> tuple[Any, Any]:
    """Returns a figure of one panel with a title."""
    figure, axes = pyplot().subplots(figsize=(6, 4), layout="constrained")
    axes.set_title(title, fontsize=9)
    return figure, axes


def new_panels(
    title: str,
    titles: Sequence[str],
    *,
    columns: int | None = None,
    sharey: bool = False,
) -> tuple[Any, list[Any]]:
    """Returns a figure of several panels in rows, each with its title.

    Args:
      title: of the figure.
      titles: of the panels.
      columns: of panels; None for two by two of four, otherwise at most three.
      sharey: whether all have one vertical axis.
    """
    count = len(titles)
    if columns is None:
        columns = 2 if count == 4 else min(count, 3)
    rows = -(-count // columns)
    size = (7.0, 4.5) if count == 1 else (1.0 + 3.0 * columns, 1.4 + 2.4 * rows)
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


def scale_log(axes: Any, low: float, high: float) -> None:
    """Makes the horizontal axis logarithmic, with labels that do not run together."""
    from matplotlib import ticker

    axes.set_xscale("log")
    axes.set_xlim(low, high)
    if high < 50 * low:
        axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())


def save_panels(
    figure: Any, panels: Sequence[Any], path: Path, *, columns: int | None = None
) -> None:
    """Finishes panels, which share one legend below them, and writes the figure.

    Args:
      figure: of :func:`new_panels`.
      panels: of the same.
      path: the PNG to write.
      columns: of the legend; None for as many as are likely to fit.
    """
    known: dict[str, Any] = {}
    for axes in panels:
        for handle, text in zip(*axes.get_legend_handles_labels(), strict=True):
            known.setdefault(text, handle)
        finish(axes)
        axes.get_legend().remove()
    # In inches, of a label at this font size with its line.
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


def band(axes: Any, method: str, x: Any, mean: Any, error: Any) -> None:
    """Draws a curve in its method's style, its standard error shaded."""
    number = len(axes.lines)
    color = PALETTE[number % len(PALETTE)]
    marker = MARKERS[number % len(MARKERS)]
    color, marker, line = STYLES.get(method, (color, marker, "-"))
    axes.plot(
        x,
        mean,
        color=color,
        marker=marker,
        markersize=4,
        linestyle=line,
        label=LABELS.get(method, method),
    )
    axes.fill_between(x, mean - error, mean + error, color=color, alpha=0.15, lw=0)


def finish(axes: Any) -> None:
    """Adds grid and legend, and takes the frame away."""
    axes.grid(color="0.9", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)


def save_figure(figure: Any, axes: Any, path: Path) -> None:
    """Finishes the panel, writes the figure and closes it."""
    finish(axes)
    write(figure, path)


def write(figure: Any, path: Path) -> None:
    """Writes a PNG whole or not at all, never through a link, and closes the figure."""
    png = io.BytesIO()
    figure.savefig(png, dpi=150, format="png")
    runs.write_whole(path, png.getvalue())
    pyplot().close(figure)
