"""Figures of accuracy against the length of perturbations, and of Figs. 10 and 11."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from experiments.common import figures, scales
from experiments.common.records import Record
from experiments.reproduce import networks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LENGTH = "length $\\|z\\|_2$ (pixels in [0, 1])"


def draw(results: Record) -> Iterator[figures.Drawing]:
    """Draws accuracy under PGA and, where it was measured, under AutoAttack.

    Args:
      results: content of results.json.

    Yields:
      "accuracy_L2" and "accuracy_Linf", of the norms that were measured.
    """
    measured = results["rows"].values()
    norms = {norm: None for row in measured for norm in row.get("accuracy", {})}
    for norm in norms:
        yield f"accuracy_{norm}", _draw_accuracy(results, norm)


def _draw_accuracy(results: Record, norm: str) -> "Figure":
    titles = networks.titles(
        {name: row["config"] for name, row in results["rows"].items()}
    )
    # Results of earlier versions hold some settings by row.
    (first, *_) = results["rows"].values()
    steps = results.get("test_steps") or first["settings"]["test_steps"]
    kinds = {
        "accuracy": f"PGA, {steps} steps, {results['test_examples']} images",
        "auto_attack": f"AutoAttack, {results.get('auto_attack_examples')} images",
    }
    drawn = {
        kind: {
            titles[name]: row[kind][norm]
            for name, row in results["rows"].items()
            if norm in row.get(kind, {})
        }
        for kind in kinds
    }
    kinds = {kind: title for kind, title in kinds.items() if drawn[kind]}
    measured = [curve for curves in drawn.values() for curve in curves.values()]
    figure, panels = figures.new_panels(
        f"Accuracy under attack; {results['data']}, {results['train_examples']} "
        "training images\n"
        f"{_bands(measured, results['test_examples'] if len(kinds) == 1 else None)}",
        tuple(kinds.values()),
        sharey=True,
    )
    epsilon = _training_epsilons(results).get(norm)
    for axes, kind in zip(panels, kinds, strict=True):
        curves = {name: (c["epsilon"], c) for name, c in drawn[kind].items()}
        figures.curves(axes, curves, times=100, names=list(drawn["accuracy"]))
        if epsilon is not None:
            figures.mark_training(axes, epsilon)
        scales.label_lengths(axes, norm)
    # The panels share the axis, which would stay as it is at its first limit.
    panels[0].set(ylabel="accuracy (%)", ylim=(0, None))
    return figures.finish(figure, panels)


def _training_epsilons(results: Record) -> Mapping[str, float]:
    """Returns the largest length of a perturbation in training, by the norm."""
    if "training_epsilons" in results:
        known: Mapping[str, float] = results["training_epsilons"]
        return known
    found: dict[str, float] = {}
    for row in results["rows"].values():
        config = row["config"]
        if config["method"] in ("adversarial", "data_dependent_snr"):
            norm = networks.norm_title(config["p"])
            found[norm] = max(config["epsilon"], found.get(norm, 0.0))
    return found


def draw_iterations(results: Record) -> Iterator[figures.Drawing]:
    """Draws the paper's Figs. 10 and 11, global SNR with 1 and with 10 iterations.

    Args:
      results: content of iterations.json.

    Yields:
      "figure_10" and "figure_11".
    """
    # A colour for each, where a method would have one.
    rows = {
        f"iterations: {row['num_steps']}" if "num_steps" in row else name: row
        for name, row in results["rows"].items()
    }
    title = (
        f"Global SNR, power iterations for each update; {results['data']}, "
        f"{results['examples']} images\n"
        f"{_bands((row['alignment'] for row in rows.values()), results['examples'])}"
    )
    yield "figure_10", _draw_linearity(rows, title)
    yield "figure_11", _draw_robustness(rows, results, title)


def _draw_linearity(rows: Mapping[str, Record], title: str) -> "Figure":
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
    return figures.finish(figure, panels)


def _draw_robustness(
    rows: Mapping[str, Record], results: Record, title: str
) -> "Figure":
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
        color=figures.GREY,
        linestyle=":",
        label="expected of a random perturbation",
    )
    for axes, text in zip(panels, ("accuracy (%)", "|cosine|"), strict=True):
        axes.set(ylabel=text, xlim=(0, None), ylim=(0, None))
        scales.label_lengths(axes, "L2")
    return figures.finish(figure, panels)


def _bands(curves: Iterable[Mapping[str, Any]], images: int | None) -> str:
    """Returns the line on the bands; the number of networks may differ by row."""
    counts = sorted({curve.get("networks", 1) for curve in curves})
    if counts == [1]:
        return figures.bands("examples", images)
    several = [count for count in counts if count > 1]
    text = figures.bands("networks", several[0], several[-1])
    return text if several == counts else f"{text}, over images where it is one"
