"""The figures of an evaluation."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import figures, seeds
from experiments.evaluate import goals
from opnorm import runs


def draw(
    out: runs.RunDirectory,
    card: Mapping[str, Any],
    nearest: np.ndarray,
    training_epsilon: float | None,
    suffix: str,
) -> None:
    """Draws accuracies, distances and, where they were measured, singular values.

    Args:
      out: the directory to write to.
      card: the results.
      nearest: ``(N,)`` distances of the nearest points that these attacks found.
      training_epsilon: drawn as a dashed line, or None.
      suffix: end of the names of the figures.
    """
    source = figures.source_line(card)
    title = f"{source}\nbands: {seeds.bands(card)}"
    norm = card["norm"]
    curves = {
        name: found for name, found in card["attacks"].items() if "epsilon" in found
    }
    figures.plot_accuracy(
        {**curves, "best known": card["best_known"][norm]},
        out.figure_path(f"accuracy{suffix}"),
        training_epsilon=training_epsilon,
        norm=norm,
        title=title,
        rate=goals.rate(card),
        unit=goals.unit(card),
    )
    labels = (
        f"{norm} distance of the nearest point found ({goals.unit(card)})",
        "target reached (%)" if "targets" in card else "error (%)",
    )
    path = out.figure_path(f"distances{suffix}")
    _plot_distances(nearest, path, training_epsilon, labels, source)
    if "spectrum" in card:
        figures.plot_singular_values(
            {"network": card["spectrum"]["singular_values"]},
            out.figure_path(f"singular_values{suffix}"),
            title=title,
        )


def _plot_distances(
    distances: np.ndarray,
    path: Path,
    training_epsilon: float | None,
    labels: tuple[str, str],
    title: str,
) -> None:
    """Draws how many images have a nearest point of success within each distance."""
    figure, axes = figures.new_figure(title)
    figures.distribution(axes, distances, color=figures.PALETTE[0], label="all attacks")
    if training_epsilon is not None:
        figures.mark_training(axes, training_epsilon)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.set_ylim(0, 100)
    axes.set_xlim(left=0)
    figures.save_figure(figure, axes, path)
