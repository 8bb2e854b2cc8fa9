"""The figures of the commands of one file: training, equivalence, universal."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.common import figures, records, scales, seeds
from experiments.common.records import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LOSSES = ("loss", "adversarial_loss", "penalty")
_ACCURACIES = {
    "accuracy": "training accuracy",
    "adversarial_accuracy": "training accuracy, adversarial",
    "fgsm_accuracy": "FGSM accuracy",
    "pgd_accuracy": "PGD accuracy",
    "validation_accuracy": "validation accuracy",
    "validation_pga_accuracy": "validation accuracy, PGA",
}
# Lines with fewer points than this have markers; one of a single point is not seen
# without.
_MARKED = 10
KINDS = {
    "universal": "universal perturbation",
    "fitted": "on the images it was computed from",
    "noise": "noise of the same length",
    "per_image": "PGA on each image",
}
BOUNDS = {
    "promised": "bound by the promised change (first order)",
    "measured": "bound by the measured change",
}


def draw_training(
    metrics: Sequence[Mapping[str, float]],
    config: Mapping[str, Any],
    best: Mapping[str, Any],
) -> Iterator[figures.Drawing]:
    """Draws loss and accuracies of a run against the epoch.

    Accuracies on the validation split are dashed, and the best checkpoint has a star.

    Args:
      metrics: lines of the metrics.jsonl of a run.
      config: the configuration of the run, as its flags.json holds it.
      best: "step" and "accuracy" of the best checkpoint; empty where none is kept.

    Yields:
      "training", unless there are no metrics.
    """
    if not metrics:
        return
    figure, (left, right) = figures.new_panels(
        f"{figures.label(config['method'])}, {config['model']} of width "
        f"{config['width']}, {config['dataset']}, seed {config['seed']}\n"
        "one network, without errors; training values are those of single minibatches",
        ("losses", "accuracies"),
    )
    colors = (figures.BLACK, *figures.PALETTE)
    texts = {name: name.replace("_", " ") for name in _LOSSES}
    for axes, names, times in ((left, texts, 1), (right, _ACCURACIES, 100)):
        for name, color in zip(names, colors, strict=False):
            lines = [line for line in metrics if name in line]
            if lines:
                axes.plot(
                    [line["epoch"] for line in lines],
                    [times * line[name] for line in lines],
                    color=color,
                    linestyle="--" if name.startswith("validation") else "-",
                    marker="o" if len(lines) < _MARKED else "",
                    markersize=4,
                    label=names[name],
                )
        axes.set(xlabel="epoch", xlim=(0, None))
    if best:
        chosen = [line for line in metrics if line["step"] == best["step"]]
        right.plot(
            [line["epoch"] for line in chosen],
            [100 * best["accuracy"] for _ in chosen],
            color=figures.BLACK,
            marker="*",
            markersize=12,
            markerfacecolor="none",
            linestyle="",
            label="best checkpoint",
        )
    left.set(ylabel="loss (nats), penalty", ylim=(min(0.0, left.get_ylim()[0]), None))
    right.set(ylabel="accuracy (%)", ylim=(0, 100))
    yield "training", figures.finish(figure, (left, right))


def draw_equivalence(results: Record) -> Iterator[figures.Drawing]:
    """Draws accuracy under PGA, and singular values, of each method.

    Args:
      results: content of results.json.

    Yields:
      "accuracy" and "singular_values".
    """
    methods, flags = results["methods"], results["flags"]
    count = next(iter(methods.values()))["examples"]
    errors = records.error_over(f"{count:g}", "images")
    if results["seeds"] > 1:
        errors += f", mean of {results['seeds']} networks (seeds)"
    source = f"{results['data']}, {count:g} test images; bands: {errors}"
    epsilon = results.get("training_epsilon")
    # Earlier results hold it in the unit of the configuration.
    first = flags["configs"][0]
    if epsilon is None and first.get("epsilon_unit", "pixels") == "pixels":
        epsilon = first["epsilon"]
    yield (
        "accuracy",
        figures.draw_accuracy(
            {method: found["accuracy"] for method, found in methods.items()},
            training_epsilon=epsilon,
            norm="L2",
            title=f"Accuracy under L2 PGA, {flags['test_steps']} steps\n{source}",
        ),
    )
    yield (
        "singular_values",
        figures.draw_singular_values(
            {method: found["singular_values"] for method, found in methods.items()},
            title=f"Singular values of the Jacobian at the images\n{source}",
        ),
    )


def draw_universal(
    results: Record, directions: Mapping[str, np.ndarray]
) -> Iterator[figures.Drawing]:
    """Draws fooling rates with their bounds, and the perturbations as images.

    Args:
      results: content of results.json.
      directions: the perturbation of each network.

    Yields:
      "fooling", and "perturbations" where there are any.
    """
    yield "fooling", _draw_rates(results)
    if directions:
        yield "perturbations", _draw_directions(results, directions)


def _draw_rates(results: Record) -> "Figure":
    """Draws fooling rates and their bound against epsilon, a panel for each network."""
    networks = results["networks"]
    figure, panels = figures.new_panels(
        f"Fooling rates of universal perturbations, {figures.source_line(results)}\n"
        f"computed from {results['fit_examples']} images; bands: "
        f"{seeds.bands(results)}",
        [figures.label(name) for name in networks],
        sharey=True,
    )
    epsilons = results["epsilon"]
    for axes, found in zip(panels, networks.values(), strict=True):
        drawn = {
            words: (epsilons, found["fooling"][kind]) for kind, words in KINDS.items()
        }
        figures.curves(axes, drawn, times=100)
        for (kind, words), line in zip(BOUNDS.items(), (":", "--"), strict=True):
            bound = 100 * np.array(found["bound"][kind])
            axes.plot(epsilons, bound, line, color=figures.BLACK, label=words)
        axes.set(xlim=(0, None))
        scales.label_lengths(axes, results["norm"])
    panels[0].set(ylabel="fooling rate (%)", ylim=(0, 103))
    return figures.finish(figure, panels)


def _draw_directions(
    results: Mapping[str, Any], directions: Mapping[str, np.ndarray]
) -> "Figure":
    """Draws the perturbations as images, grey where they are zero."""
    figure, panels = figures.new_panels(
        f"Universal perturbations, scaled to the largest entry; grey is 0\n"
        f"{results['data']}, {results['norm']}, q = {results['q']:g}, "
        f"{results['layer']}",
        [figures.label(name) for name in directions],
    )
    for axes, v in zip(panels, directions.values(), strict=True):
        shown = 0.5 + 0.5 * v / np.abs(v).max()
        axes.imshow(shown.squeeze(), cmap="gray", vmin=0, vmax=1)
        axes.set_axis_off()
    return figure
