"""The figures of an evaluation."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import figures, seeds
from opnorm import runs


def draw(
    out: runs.RunDirectory,
    card: Mapping[str, Any],
    nearest: np.ndarray,
    training_epsilon: float | None,
) -> None:
    """Draws accuracies, distances and, where they were measured, singular values.

    Args:
      out: the directory to write to.
      card: the results.
      nearest: ``(N,)`` distances of the nearest points that these attacks found.
      training_epsilon: drawn as a dashed line, or None.
    """
    source = figures.source_line(card)
    title = f"{source}\nbands: {seeds.bands(card)}"
    norm = card["norm"]
    curves = {
        name: found for name, found in card["attacks"].items() if "epsilon" in found
    }
    figures.plot_accuracy(
        {**curves, "best known": card["best_known"][norm]},
        out.figure_path("accuracy"),
        training_epsilon=training_epsilon,
        norm=norm,
        title=title,
    )
    _plot_distances(
        nearest, out.figure_path("distances"), training_epsilon, norm, source
    )
    if "spectrum" in card:
        figures.plot_singular_values(
            {"network": card["spectrum"]["singular_values"]},
            out.figure_path("singular_values"),
            title=title,
        )


def _plot_distances(
    distances: np.ndarray,
    path: Path,
    training_epsilon: float | None,
    norm: str,
    title: str,
) -> None:
    """Draws the error against the distance of the nearest misclassified points."""
    figure, axes = figures.new_figure(title)
    figures.distribution(axes, distances, color=figures.PALETTE[0], label="all attacks")
    if training_epsilon is not None:
        figures.mark_training(axes, training_epsilon)
    axes.set_xlabel(f"{norm} distance of the nearest point found (pixels in [0, 1])")
    axes.set_ylabel("error (%)")
    axes.set_ylim(0, 100)
    axes.set_xlim(left=0)
    figures.save_figure(figure, axes, path)
