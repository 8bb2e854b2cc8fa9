"""The figures of experiments.spectral_normalization.

Networks of several seeds are drawn as means with bands, and titles say of what.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.common import figures
from experiments.common.records import Record
from experiments.spectral_normalization import averages, distributions, layout
from experiments.spectral_normalization.networks import WITHOUT
from experiments.spectral_normalization.tables import (
    LABELS,
    bound_label,
    label,
    random_labels,
    ways,
)
from opnorm import papers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw(results: Record, others: Sequence[Record] = ()) -> Iterator[figures.Drawing]:
    """Draws all figures.

    Args:
      results: the content of results.json.
      others: that of other directories, whose gains are drawn beside.

    Yields:
      Those for which there are measurements.
    """
    yield "accuracy", _draw_accuracy(results)
    yield "curves", _draw_curves(results)
    yield from _draw_random_labels(results)
    yield from _draw_ways(results)
    yield from _draw_gains([results, *others])
    yield (
        "gains",
        distributions.draw_distributions(
            results,
            "gains",
            "$\\Vert f(x) \\Vert / \\Vert x \\Vert$",
            f"Gain of {results['test_examples']} test images, x as it enters the first "
            "layer",
        ),
    )
    yield (
        "gradient_norms",
        distributions.draw_distributions(
            results,
            "gradient_norms",
            "L2 norm (nats per pixel unit)",
            f"Gradient of the loss in {results['train_measured']} clean training "
            "images",
        ),
    )
    yield "margins", distributions.draw_margins(results)
    yield from _draw_strengths(results)


def read_results(directory: str) -> Record:
    """Reads the results of another directory of this experiment.

    Raises:
      ValueError: if it holds none.
    """
    file = Path(directory) / "results.json"
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"others has {directory}, whose results.json cannot be read ({error})."
        ) from error
    if not isinstance(found, dict) or not {"schemes", "methods"} <= set(found):
        raise ValueError(
            f"others has {directory}, whose results.json is not one of this experiment."
        )
    results: Record = found
    return results


def _draw_accuracy(results: Record) -> "Figure":
    """Test and training accuracy against the bound, a panel for each way to bound."""
    schemes, kinds = results["schemes"], results["methods"]
    figure, panels = layout.new_panels(
        results,
        "Accuracy under the attack trained with",
        [f"bounded: {LABELS[kind]}" if len(kinds) > 1 else "" for kind in kinds],
        bands="bands",
    )
    looks = _looks(schemes)
    for axes, kind in zip(panels, kinds, strict=True):
        for name, scheme in schemes.items():
            shown = sorted(
                layout.bounded_by(kind, scheme), key=lambda n: float(n["bound"])
            )
            style = looks[name]
            place = np.arange(len(shown))
            test, train = (_accuracies(shown, part) for part in ("test", "train"))
            text = f"{label(name)}: test"
            figures.curve(axes, place, test, times=100, **style, label=text)
            dashed = {**style, "linestyle": "--", "markerfacecolor": "white"}
            text = f"{label(name)}: training"
            figures.curve(axes, place, train, times=100, **dashed, label=text)
            axes.set_xticks(place, [bound_label(network) for network in shown])
        axes.set_xlabel("bound on the layers' spectral norms, $\\beta$")
    columns = min(4, len(schemes))
    return layout.finish(figure, panels, "accuracy (%)", columns)


def _looks(schemes: Mapping[str, Any]) -> dict[str, figures.Style]:
    """Returns colour and marker of each scheme: those of its method, as everywhere.

    A second scheme of one method has another colour.
    """
    methods = {name: scheme["config"]["method"] for name, scheme in schemes.items()}
    names = {
        name: method
        if method not in list(methods.values())[:number]
        else f"{method}_{number}"
        for number, (name, method) in enumerate(methods.items())
    }
    styles = figures.styles(list(names.values()))
    parts = ("color", "marker")
    return {
        name: {part: styles[text][part] for part in parts} | {"markersize": 5.5}
        for name, text in names.items()
    }


def _draw_curves(results: Record) -> "Figure":
    """Training accuracy against steps, with the test accuracy at their end."""
    schemes, kind = results["schemes"], results["methods"][0]
    figure, panels = layout.new_panels(
        results,
        "Training accuracy under the attack trained with, mean of each epoch's "
        f"minibatches; stars: test accuracy{_validated(results)}",
        [label(name) for name in schemes],
    )
    styles = layout.styles(results)
    for axes, scheme in zip(panels, schemes.values(), strict=True):
        for number, network in enumerate(layout.bounded_by(kind, scheme)):
            _draw_training(axes, network, styles(network), star=number)
        _label_steps(axes)
    return layout.finish(figure, panels, "accuracy (%)")


def _draw_random_labels(results: Record) -> Iterator[figures.Drawing]:
    """Training accuracy on random labels beside that on true ones (Fig. 4)."""
    kind = results["methods"][0]
    shown = {
        name: found
        for name in results["schemes"]
        if (found := random_labels(results, name))
    }
    if not shown:
        return
    figure, panels = layout.new_panels(
        results,
        "Training accuracy on random and on true labels under the attack trained with",
        [label(name) for name in shown],
    )
    for axes, (name, relabelled) in zip(panels, shown.items(), strict=True):
        scheme = results["schemes"][name]
        for each, network in relabelled.items():
            style = dict(layout.WITHOUT_STYLE if each == WITHOUT else layout.WITH_STYLE)
            text = "without a bound" if each == WITHOUT else "with $\\beta$"
            style["label"] = f"random labels, {text}"
            _draw_training(axes, network, style, ends=False)
        bounded = scheme["best_bounded"][kind]
        if bounded is not None:
            network = scheme["networks"][bounded]
            axes.set_title(f"{label(name)}, $\\beta$ = {bound_label(network)}")
            axes.title.set_fontsize(9)
            style = {"color": figures.PALETTE[1], "linestyle": "--"}
            style["label"] = "true labels, with $\\beta$"
            _draw_training(axes, network, style, ends=False)
        _label_steps(axes)
    yield (
        "random_labels",
        layout.finish(figure, panels, "training accuracy (%)"),
    )


def _draw_ways(results: Record) -> Iterator[figures.Drawing]:
    """Curves of each way to regularise a scheme, a figure for each (Figs. 10, 11)."""
    for name, scheme in results["schemes"].items():
        shown = ways(results, scheme)
        if len(shown) < 3:
            continue
        figure, panels = layout.new_panels(
            results,
            f"{label(name)}: accuracy while training; stars: test accuracy under the "
            f"attack trained with{_validated(results)}",
            list(shown),
        )
        for axes, network in zip(panels, shown.values(), strict=True):
            style = {"color": figures.PALETTE[0], "label": "training"}
            _draw_training(axes, network, style)
            if not averages.members(network):
                axes.text(0.5, 0.5, "missing", transform=axes.transAxes, ha="center")
            _label_steps(axes)
        place = label(name).lower().replace(" ", "_")
        yield f"regularised_{place}", layout.finish(figure, panels, "accuracy (%)")


def _draw_gains(all_results: Sequence[Record]) -> Iterator[figures.Drawing]:
    """Gain of the test accuracy against that without a bound, by scheme (Fig. 6)."""
    points: dict[str, list[tuple[str, Record]]] = {}
    for results in all_results:
        for name in results["schemes"]:
            point = _gain_of(results, name)
            if point is not None:
                text = _network(results, name)
                points.setdefault(label(name), []).append((text, point))
    if not points:
        return
    figure, panels = layout.new_panels(
        all_results[0],
        "Gain of the test accuracy by the chosen bound; filled: ours, hollow: the "
        "paper's networks",
        list(points),
        errors="bars: standard error over what the legend names",
    )
    named = list(dict.fromkeys(text for found in points.values() for text, _ in found))
    for axes, (scheme, found) in zip(panels, points.items(), strict=True):
        for row in papers.farnia.TABLE_1.rows:
            if _scheme_label(row.scheme) == scheme:
                axes.plot(
                    100 * row.test,
                    100 * (row.bounded_test - row.test),
                    "o",
                    color=figures.GREY,
                    markerfacecolor="none",
                    markersize=5,
                    label="the paper's",
                )
        for text, point in found:
            place = named.index(text)
            axes.errorbar(
                point["test"]["mean"],
                point["gain"]["mean"],
                xerr=_finite(point["test"]["standard_error"]),
                yerr=_finite(point["gain"]["standard_error"]),
                color=figures.PALETTE[place % len(figures.PALETTE)],
                marker=figures.MARKERS[place % len(figures.MARKERS)],
                markersize=6,
                linestyle="none",
                label=text,
            )
        axes.axhline(0, color=figures.GREY, linewidth=1)
        axes.set_xlabel("test accuracy without a bound (%)")
    yield "gain_by_network", layout.finish(figure, panels, "gain (points)")


def _gain_of(results: Record, name: str) -> Record | None:
    """Returns test accuracy and gain of a scheme in percent, None if one is missing."""
    scheme = results["schemes"][name]
    chosen = scheme["chosen"][results["methods"][0]]
    without = scheme["networks"][WITHOUT]
    if chosen is None or without["test"] is None:
        return None
    gain = averages.gain(without, scheme["networks"][chosen])
    if gain is None:
        return None
    test = {
        part: None if value is None else 100 * value
        for part in ("mean", "standard_error")
        for value in (without["test"][part],)
    }
    return {"test": test, "gain": gain}


def _network(results: Record, name: str) -> str:
    """Returns network, data and the kind of error of a scheme, for the legend."""
    count = len(averages.members(results["schemes"][name]["networks"][WITHOUT]))
    over = f"{count} networks"
    if len(results.get("seeds", [0])) == 1:
        over = f"{results['test_examples']} test images"
    return (
        f"{results['network']}, {results['train_examples']} images of "
        f"{results['data']}; {over}"
    )


def _scheme_label(scheme: str) -> str:
    first, *rest = scheme.split("_")
    return " ".join([first.upper(), *(text.capitalize() for text in rest)])


def _finite(error: float | None) -> float:
    """Returns an error bar; one that is not known has no length."""
    return 0.0 if error is None or math.isnan(error) else error


def _draw_training(
    axes: "Axes",
    network: Mapping[str, Any],
    style: figures.Style,
    *,
    ends: bool = True,
    star: int = 0,
) -> None:
    """Draws training and validation accuracy of a network against steps.

    Args:
      axes: the panel.
      network: one network, or several seeds.
      style: with a "color".
      ends: whether validation curves and a star at the test accuracy are drawn too.
      star: the number of stars that the star stands to the right of.
    """
    curves = [each["training"] for each in averages.members(network)]
    found = averages.curves(curves)
    if found is None:
        return
    figures.curve(axes, found["step"], found, times=100, **style)
    if not ends:
        return
    held_out = averages.curves(
        [each["validation"] for each in curves if "validation" in each]
    )
    if held_out is not None:
        thin = {"linewidth": 1.0, "linestyle": ":", "marker": ".", "markersize": 3}
        thin |= {"color": style["color"], "zorder": style.get("zorder", 2)}
        figures.curve(axes, held_out["step"], held_out, times=100, **thin)
    axes.plot(
        [found["step"][-1] * (1.03 + 0.04 * star)],
        [100 * network["test"]["mean"]],
        color=style["color"],
        zorder=style.get("zorder", 2),
        marker="*",
        markersize=8,
        linestyle="none",
    )


def _validated(results: Record) -> str:
    """Returns the text on validation curves, if a network has any."""
    metrics = {
        each["training"]["validation"]["metric"]
        for scheme in results["schemes"].values()
        for network in scheme["networks"].values()
        for each in averages.members(network)
        if "validation" in each["training"]
    }
    if not metrics:
        return ""
    kinds = {
        "validation_accuracy": "clean",
        "validation_pga_accuracy": "PGA-10 away from the true labels for FGM and PGM",
    }
    return "\ndotted: validation, " + ", ".join(
        kinds[metric] for metric in sorted(metrics, reverse=True)
    )


def _label_steps(axes: "Axes") -> None:
    axes.set_xlabel("training steps")
    axes.set_xlim(left=0)
    axes.set_ylim(0, 102)


def _draw_strengths(results: Record) -> Iterator[figures.Drawing]:
    """Test accuracy against the length of each scheme's attack."""
    schemes = results["schemes"]
    attacked = [
        name for name, s in schemes.items() if name in s["strengths"].get(WITHOUT, {})
    ]
    if not attacked:
        return
    figure, panels = layout.new_panels(
        results,
        "Accuracy against the strength of the attack; dotted: that of the training",
        [f"attack: {label(name)}" for name in attacked],
        bands="bars",
    )
    for axes, attack in zip(panels, attacked, strict=True):
        for name in schemes:
            _draw_strength(axes, results, name, attack)
        config = schemes[attack]["config"]
        curve = schemes[attack]["strengths"][WITHOUT][attack]
        trained_at = curve["length"][0] / curve["strength"][0]
        axes.axvline(trained_at, color=figures.GREY, linestyle=":", linewidth=1)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        if config["method"] == "wrm":
            axes.set_xlabel("$1 / 2 \\gamma$ (squared pixels per cross-entropy)")
        else:
            norm = f"L{float(config['p']):g}"
            axes.set_xlabel(f"{norm} length, $\\epsilon$ (pixels in [0, 1])")
    yield (
        "attack_strength",
        layout.finish(figure, panels, "test accuracy (%)", 2),
    )


def _draw_strength(axes: "Axes", results: Record, name: str, attack: str) -> None:
    """Draws the networks of one scheme under the attack of one scheme."""
    scheme, own = results["schemes"][name], name == attack
    trained = "trained with it" if own else f"{label(name)}-trained"
    bounded = scheme["best_bounded"][results["methods"][0]]
    for each, style, beta, size in (
        (WITHOUT, layout.WITHOUT_STYLE, "without", 3),
        (bounded, layout.WITH_STYLE, "with", 5),
    ):
        curve = scheme["strengths"].get(each, {}).get(attack)
        if curve is None:
            continue
        clean = scheme["networks"][each]["clean"]
        mean, error = (
            100 * np.array([clean[part], *curve[part]], float)
            for part in ("mean", "standard_error")
        )
        axes.errorbar(
            [0.0, *curve["length"]],
            mean,
            error,
            linestyle="-" if own else "--",
            marker="o" if own else "^",
            elinewidth=1,
            markersize=size,
            **style,
            label=f"{trained}, {beta} $\\beta$",
        )


def _accuracies(networks: Sequence[Mapping[str, Any]], part: str) -> Record:
    """Returns an accuracy of networks as a curve; NaN where all seeds are missing."""
    missing = {"mean": math.nan, "standard_error": math.nan}
    return {
        each: [
            math.nan if value is None else value
            for network in networks
            for value in ((network[part] or missing)[each],)
        ]
        for each in missing
    }
