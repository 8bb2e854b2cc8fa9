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
        f"{_bands(measured, results['test_examples'])}",
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
        axes.set_ylim(bottom=0)
    panels[0].set_ylabel("accuracy (%)")
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
    curves = [row["alignment"] for row in rows.values()]
    title = (
        f"Iterations of global SNR; {results['data']}, {results['examples']} images\n"
        f"{_bands(curves, results['examples'])}"
    )
    quantities = {
        "deviation": "deviation from linearity of the features",
        "sigma": "largest singular value of the features' J(x + z)",
    }
    kinds = {"random": "random z", "adversarial": "adversarial z (L2 PGA)"}
    figure, panels = figures.new_panels(
        title,
        [
            f"{meaning}\n{kind}"
            for meaning in quantities.values()
            for kind in kinds.values()
        ],
        columns=2,
        sharey="row",
    )
    places = [(quantity, kind) for quantity in quantities for kind in kinds]
    for axes, (quantity, kind) in zip(panels, places, strict=True):
        drawn = {
            name: (row[kind]["length"]["mean"], row[kind][quantity])
            for name, row in rows.items()
        }
        figures.curves(axes, drawn)
        axes.set(xlabel=_LENGTH, xlim=(0, None), ylim=(0, None))
    figures.save_panels(figure, panels, out.figure_path("figure_10"))

    figure, panels = figures.new_panels(
        title,
        (
            f"accuracy under L2 PGA, {results['test_steps']} steps, "
            f"{results['test_examples']} images",
            "alignment with the dominant vector",
        ),
    )
    accuracy: dict[str, tuple[Any, Any]] = {
        name: (row["accuracy"]["epsilon"], row["accuracy"])
        for name, row in rows.items()
    }
    figures.curves(panels[0], accuracy, times=100)
    panels[0].set(ylabel="accuracy (%)", ylim=(0, None))
    aligned = {
        name: (row["alignment"]["epsilon"], row["alignment"])
        for name, row in rows.items()
    }
    figures.curves(panels[1], aligned)
    panels[1].axhline(
        results["random_alignment"],
        color="0.5",
        linestyle=":",
        label="expected of a random perturbation",
    )
    panels[1].set(ylabel="|cos| of the perturbation and $v_1$ at x", ylim=(0, None))
    for axes in panels:
        figures.label_lengths(axes, "L2")
    figures.save_panels(figure, panels, out.figure_path("figure_11"))


def _bands(curves: Iterable[Mapping[str, Any]], images: int) -> str:
    """Returns the line on the bands; the number of networks may differ by row."""
    counts = sorted({curve["networks"] for curve in curves})
    if counts == [1]:
        return figures.bands("examples", images)
    several = [count for count in counts if count > 1]
    text = figures.bands("networks", several[0], several[-1])
    return text if several == counts else f"{text}, over images where it is one"
