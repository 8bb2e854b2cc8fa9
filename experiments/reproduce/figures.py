"""Figures of accuracy against the length of perturbations, and of Figs. 10 and 11."""

from collections.abc import Iterable, Mapping
from typing import Any

from experiments.common import figures
from experiments.common.records import Record
from opnorm import runs

_LENGTH = "length $\\|z\\|_2$ (pixels in [0, 1])"


def draw_accuracy(
    out: runs.RunDirectory, results: Record, norm: str, titles: Mapping[str, str]
) -> None:
    """Draws accuracy under PGA and, where it was measured, under AutoAttack.

    Args:
      out: directory for accuracy_<norm>.png.
      results: content of results.json.
      norm: norm of the attacks, "L2" or "Linf".
      titles: names of the rows in the figure.
    """
    kinds = {
        "accuracy": f"PGA, {results['test_steps']} steps, "
        f"{results['test_examples']} images",
        "auto_attack": f"AutoAttack, {results['auto_attack_examples']} images",
    }
    drawn = {
        kind: {
            titles[name]: row[kind][norm]
            for name, row in results["rows"].items()
            if norm in row[kind]
        }
        for kind in kinds
    }
    kinds = {kind: title for kind, title in kinds.items() if drawn[kind]}
    if not kinds:
        return
    measured = [curve for curves in drawn.values() for curve in curves.values()]
    figure, panels = figures.new_panels(
        f"{results['data']}, {results['train_examples']} training images\n"
        f"{_bands(measured, results['test_examples'] if len(kinds) == 1 else None)}",
        tuple(kinds.values()),
        sharey=True,
    )
    for axes, kind in zip(panels, kinds, strict=True):
        curves = {name: (c["epsilon"], c) for name, c in drawn[kind].items()}
        figures.curves(axes, curves, times=100, names=list(drawn["accuracy"]))
        epsilon = results["training_epsilons"].get(norm)
        if epsilon is not None:
            figures.mark_training(axes, epsilon)
        figures.label_lengths(axes, norm)
    # The panels share the axis, which would stay as it is at its first limit.
    panels[0].set(ylabel="accuracy (%)", ylim=(0, None))
    figures.save_panels(figure, panels, out.figure_path(f"accuracy_{norm}"))


def draw_iterations(
    out: runs.RunDirectory, results: Record, titles: Mapping[str, str]
) -> None:
    """Draws the paper's Figs. 10 and 11, global SNR with 1 and with 10 iterations.

    Args:
      out: directory for figure_10.png and figure_11.png.
      results: content of iterations.json.
      titles: names of the rows in the figures.
    """
    rows = {titles[name]: row for name, row in results["rows"].items()}
    title = (
        f"Global SNR, power iterations for each update; {results['data']}, "
        f"{results['examples']} images\n"
        f"{_bands((row['alignment'] for row in rows.values()), results['examples'])}"
    )
    _draw_linearity(out, rows, title)
    _draw_robustness(out, rows, results, title)


def _draw_linearity(
    out: runs.RunDirectory, rows: Mapping[str, Record], title: str
) -> None:
    quantities = {
        "deviation": "deviation of the features\nfrom linearity",
        "sigma": "largest singular value of J(x + z)\n(features per pixel unit)",
    }
    kinds = {"random": "random z", "adversarial": "adversarial z (L2 PGA)"}
    figure, panels = figures.new_panels(
        title, [*kinds.values(), "", ""], columns=2, sharey="row"
    )
    for number, (quantity, meaning) in enumerate(quantities.items()):
        pair = panels[2 * number : 2 * number + 2]
        for axes, kind in zip(pair, kinds, strict=True):
            drawn = {
                name: (row[kind]["length"]["mean"], row[kind][quantity])
                for name, row in rows.items()
            }
            figures.curves(axes, drawn)
            axes.set(xlabel=_LENGTH, xlim=(0, None))
        pair[0].set(ylabel=meaning, ylim=(0, None))
    figures.save_panels(figure, panels, out.figure_path("figure_10"))


def _draw_robustness(
    out: runs.RunDirectory, rows: Mapping[str, Record], results: Record, title: str
) -> None:
    figure, panels = figures.new_panels(
        title,
        (
            f"accuracy under L2 PGA, {results['test_steps']} steps, "
            f"{results['test_examples']} images",
            "alignment of the perturbation with $v_1$ at x",
        ),
    )
    for axes, quantity, times in zip(
        panels, ("accuracy", "alignment"), (100, 1), strict=True
    ):
        drawn: dict[str, tuple[Any, Any]] = {
            name: (row[quantity]["epsilon"], row[quantity])
            for name, row in rows.items()
        }
        figures.curves(axes, drawn, times=times)
    panels[1].axhline(
        results["random_alignment"],
        color="0.5",
        linestyle=":",
        label="expected of a random perturbation",
    )
    for axes, text in zip(panels, ("accuracy (%)", "|cosine|"), strict=True):
        figures.label_lengths(axes, "L2")
        axes.set(ylabel=text, xlim=(0, None), ylim=(0, None))
    figures.save_panels(figure, panels, out.figure_path("figure_11"))


def _bands(curves: Iterable[Mapping[str, Any]], images: int | None) -> str:
    """Returns the line on the bands; the number of networks may differ by row."""
    counts = sorted({curve["networks"] for curve in curves})
    if counts == [1]:
        return figures.bands("examples", images)
    several = [count for count in counts if count > 1]
    text = figures.bands("networks", several[0], several[-1])
    return text if several == counts else f"{text}, over images where it is one"
