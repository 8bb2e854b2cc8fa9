"""The figures of experiments.spectral_normalization.

Distributions over images are drawn as the part of the images with less. For margins
this part is the margin loss of the paper's Eqs. 1 and 8; no width of bins is needed.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.common import figures
from experiments.common.records import Record
from experiments.spectral_normalization.networks import WITHOUT
from experiments.spectral_normalization.tables import (
    LABELS,
    bound_label,
    label,
    log_unit,
)
from opnorm import runs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PERCENTS = np.linspace(0, 100, 101)
# Decades below the largest value that are drawn.
_DECADES = 6.0
_MARGIN_DECADES = 2.0
# Networks without and with a bound; the former on top, where they are alike.
_WITHOUT: figures.Style = {"color": figures.BLACK, "linewidth": 1.2, "zorder": 3}
_WITH: figures.Style = {"color": figures.PALETTE[0], "linewidth": 2.4}


def draw(out: runs.RunDirectory, results: Record) -> None:
    """Draws all figures.

    Args:
      out: gets them.
      results: the content of results.json.
    """
    _draw_accuracy(out, results)
    _draw_curves(out, results)
    _draw_distributions(
        out,
        results,
        "gains",
        "$\\Vert f(x) \\Vert / \\Vert x \\Vert$",
        f"Gain of {results['test_examples']} test images, x as it enters the first "
        "layer",
    )
    _draw_distributions(
        out,
        results,
        "gradient_norms",
        "L2 norm (1 / pixels in [0, 1])",
        f"Gradient of the loss in {results['train_measured']} clean training images",
    )
    _draw_margins(out, results)
    _draw_strengths(out, results)


def _draw_accuracy(out: runs.RunDirectory, results: Record) -> None:
    """Test and training accuracy against the bound, a panel for each way to bound."""
    schemes, kinds = results["schemes"], results["methods"]
    figure, panels = _new_panels(
        results,
        "Accuracy under the attack trained with",
        [f"bounded: {LABELS[kind]}" if len(kinds) > 1 else "" for kind in kinds],
    )
    colors = (figures.BLACK, *figures.PALETTE)
    for axes, kind in zip(panels, kinds, strict=True):
        for number, (name, scheme) in enumerate(schemes.items()):
            shown = sorted(_bounded_by(kind, scheme), key=lambda n: float(n["bound"]))
            style: figures.Style = {
                "color": colors[number % len(colors)],
                "marker": figures.MARKERS[number % len(figures.MARKERS)],
                "markersize": 4,
            }
            test = {
                part: [network["test"][part] for network in shown]
                for part in ("mean", "standard_error")
            }
            place = np.arange(len(shown))
            text = f"{label(name)}: test"
            figures.curve(axes, place, test, times=100, **style, label=text)
            axes.plot(
                place,
                [100 * network["train"]["mean"] for network in shown],
                linestyle="--",
                markerfacecolor="none",
                label=f"{label(name)}: training",
                **style,
            )
            axes.set_xticks(place, [bound_label(network) for network in shown])
        axes.set_xlabel("bound on the layers' spectral norms, $\\beta$")
    columns = min(4, len(schemes))
    _save(out, "accuracy", figure, panels, "accuracy (%)", columns)


def _draw_curves(out: runs.RunDirectory, results: Record) -> None:
    """Training accuracy against steps, with the test accuracy at their end."""
    kind = results["methods"][0]
    shown = {
        label(name): _bounded_by(kind, scheme)
        for name, scheme in results["schemes"].items()
    }
    if results["random_labels"]:
        title = f"{label(results['first'])}, random labels"
        shown[title] = list(results["random_labels"].values())
    figure, panels = _new_panels(
        results,
        "Training accuracy under the attack trained with, mean of each epoch's "
        "minibatches; stars: test accuracy",
        list(shown),
    )
    styles = _styles(results)
    for axes, networks in zip(panels, shown.values(), strict=True):
        for network in networks:
            style, curve = styles(network), network["training"]
            axes.plot(curve["step"], 100 * np.asarray(curve["accuracy"]), **style)
            axes.plot(
                curve["step"][-1:],
                [100 * network["test"]["mean"]],
                color=style["color"],
                zorder=style.get("zorder", 2),
                marker="*",
                markersize=9,
                linestyle="none",
                clip_on=False,
            )
        axes.set_xlabel("training steps")
        axes.set_xlim(left=0)
        axes.set_ylim(0, 102)
    _save(out, "curves", figure, panels, "accuracy (%)")


def _draw_distributions(
    out: runs.RunDirectory, results: Record, quantity: str, unit: str, title: str
) -> None:
    """The part of the images with less of a quantity, by bound."""
    schemes, kind = results["schemes"], results["methods"][0]
    figure, panels = _new_panels(results, title, [label(name) for name in schemes])
    styles = _styles(results)
    known = []
    for axes, scheme in zip(panels, schemes.values(), strict=True):
        for network in _bounded_by(kind, scheme):
            values = _percentiles(network, quantity)
            axes.plot(values, _PERCENTS, **styles(network))
            known.append(values[np.isfinite(values) & (values > 0)])
    shown = np.concatenate(known)
    for axes in panels:
        axes.set_ylim(0, 100)
        axes.set_xlabel(unit)
        if len(shown):
            lowest = max(shown.min(), shown.max() * 10**-_DECADES)
            figures.scale_log(axes, lowest / 1.2, 1.2 * shown.max())
    _save(out, quantity, figure, panels, "images with less (%)")


def _draw_margins(out: runs.RunDirectory, results: Record) -> None:
    """Margins of attacked training images, as they are and in units of sqrt(Phi)."""
    schemes, kind = results["schemes"], results["methods"][0]
    pairs = {name: _pair(kind, scheme) for name, scheme in schemes.items()}
    titles = [
        f"{label(name)}, $\\beta$ = {bound_label(bounded)}"
        for name, (_, (_, bounded)) in pairs.items()
    ]
    figure, panels = _new_panels(
        results,
        f"Margins of {results['train_measured']} training images under the attack "
        "trained with",
        [*titles, *titles],
        columns=len(schemes),
    )
    for column, (name, pair) in enumerate(pairs.items()):
        drawn = [
            ({**style, "label": text}, network)
            for text, (style, network) in zip(
                ("without a bound", "with $\\beta$"), pair, strict=True
            )
        ]
        if name == results["first"]:
            relabelled = results["random_labels"].values()
            drawn += [
                (
                    {
                        **style,
                        "label": f"{style['label']}, random labels",
                        "linestyle": "--",
                    },
                    network,
                )
                for (style, _), network in zip(drawn, relabelled, strict=False)
            ]
        above, below = panels[column :: len(schemes)]
        _draw_margin_panel(above, drawn, in_units=False)
        _draw_margin_panel(below, drawn, in_units=True)
        below.set_title("")
    _save(out, "margins", figure, panels, "images with less (%)", 2)


def _draw_margin_panel(
    axes: "Axes",
    networks: Sequence[tuple[figures.Style, Mapping[str, Any]]],
    *,
    in_units: bool,
) -> None:
    """Draws the margins of networks, as they are or in units of sqrt(Phi)."""
    infinite, ends = [], []
    for style, network in networks:
        margins = _percentiles(network, "margins")
        positive = margins > 0
        unit = log_unit(network) if in_units else 0.0
        if unit is None or not math.isfinite(unit):
            infinite.append(style["label"])
            unit = math.nan
        places = np.log10(margins[positive]) - unit
        axes.plot(places, _PERCENTS[positive], **style)
        ends += [float(place) for place in places[-1:] if math.isfinite(place)]
    if ends:
        axes.set_xlim(min(ends) - _MARGIN_DECADES, max(ends) + 0.1)
    else:
        axes.set_xticks([])
    if infinite:
        text = "$\\Phi$ is infinite:\n" + "\n".join(infinite)
        if networks[0][1]["capacity"] is None:
            text = "$\\Phi$ is defined for attacks in L2"
        axes.text(0.05, 0.95, text, transform=axes.transAxes, va="top", fontsize=8)
    axes.set_ylim(0, 100)
    quantity = "margin / $\\sqrt{\\Phi}$" if in_units else "the margin"
    axes.set_xlabel(f"log$_{{10}}$ of {quantity} (logits)")


def _draw_strengths(out: runs.RunDirectory, results: Record) -> None:
    """Test accuracy against the length of each scheme's attack."""
    schemes = results["schemes"]
    attacked = [name for name, s in schemes.items() if name in s["strengths"][WITHOUT]]
    if not attacked:
        return
    figure, panels = _new_panels(
        results,
        "Accuracy against the strength of the attack; dotted: that of the training",
        [f"attack: {label(name)}" for name in attacked],
    )
    for axes, attack in zip(panels, attacked, strict=True):
        for name in schemes:
            _draw_strength(axes, results, name, attack)
        config = schemes[attack]["config"]
        curve = schemes[attack]["strengths"][WITHOUT][attack]
        trained_at = curve["length"][0] / curve["strength"][0]
        axes.axvline(trained_at, color="0.5", linestyle=":", linewidth=1)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        if config["method"] == "wrm":
            axes.set_xlabel("$1 / 2 \\gamma$ (squared pixels per cross-entropy)")
        else:
            norm = f"L{float(config['p']):g}"
            axes.set_xlabel(f"{norm} length, $\\epsilon$ (pixels in [0, 1])")
    _save(out, "attack_strength", figure, panels, "test accuracy (%)", 2)


def _draw_strength(axes: "Axes", results: Record, name: str, attack: str) -> None:
    """Draws the networks of one scheme under the attack of one scheme."""
    scheme, own = results["schemes"][name], name == attack
    trained = "trained with it" if own else f"{label(name)}-trained"
    bounded = scheme["best_bounded"][results["methods"][0]]
    for each, style, beta, size in (
        (WITHOUT, _WITHOUT, "without", 3),
        (bounded, _WITH, "with", 5),
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


def _bounded_by(kind: str, scheme: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the networks of a scheme with one way to bound, and the one without."""
    return [n for n in scheme["networks"].values() if n["method"] in (None, kind)]


def _pair(
    kind: str, scheme: Mapping[str, Any]
) -> tuple[
    tuple[figures.Style, Mapping[str, Any]], tuple[figures.Style, Mapping[str, Any]]
]:
    """Returns the network without a bound and the best one with a bound, and styles."""
    networks = scheme["networks"]
    best = networks[scheme["best_bounded"][kind]]
    return (_WITHOUT, networks[WITHOUT]), (_WITH, best)


def _styles(results: Record) -> Callable[[Mapping[str, Any]], figures.Style]:
    """Returns the style of networks by their bound, the same in all figures."""
    first = results["schemes"][results["first"]]
    bounds = sorted({float(n["bound"]) for n in first["networks"].values()})
    palette = figures.PALETTE

    def style(network: Mapping[str, Any]) -> figures.Style:
        if network["method"] is None:
            # On top, since a bound that is not reached changes nothing.
            return {
                "color": figures.BLACK,
                "linestyle": (0, (3, 3)),
                "zorder": 3,
                "label": "without a bound",
            }
        number = bounds.index(float(network["bound"]))
        return {
            "color": palette[number % len(palette)],
            "linestyle": "-" if number < len(palette) else "-.",
            "label": f"$\\beta$ = {bound_label(network)}",
        }

    return style


def _percentiles(network: Mapping[str, Any], quantity: str) -> np.ndarray:
    return np.asarray([float(v) for v in network[quantity]["percentiles"]])


def _new_panels(
    results: Record, title: str, titles: Sequence[str], columns: int | None = None
) -> tuple["Figure", list["Axes"]]:
    """Returns a figure with panels of one vertical axis, and the panels."""
    source = (
        f"{results['data']}, {results['train_examples']} training and "
        f"{results['test_examples']} test images; {results['network']}"
    )
    return figures.new_panels(
        f"{title}\n{source}", titles, columns=columns, sharey=True
    )


def _save(
    out: runs.RunDirectory,
    name: str,
    figure: "Figure",
    panels: Sequence["Axes"],
    quantity: str,
    columns: int | None = None,
) -> None:
    """Names the vertical axis at the left panels, and writes the figure."""
    for axes in panels:
        place = axes.get_subplotspec()
        if place is not None and place.is_first_col():
            axes.set_ylabel(quantity)
    figures.save_panels(figure, panels, out.figure_path(name), columns=columns)
