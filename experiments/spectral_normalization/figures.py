"""experiments: the figures of experiments.spectral_normalization.

Distributions over pictures are drawn as the part of the pictures with less: of margins
that is the margin loss of the paper's Eqs. 1 and 8, and needs no width of bins.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.common import figures
from experiments.spectral_normalization.networks import WITHOUT
from experiments.spectral_normalization.tables import (
    LABELS,
    bound_label,
    label,
    log_unit,
)
from opnorm import runs

_BLACK = "#000000"
_WITH = figures.PALETTE[0]
_PERCENTS = np.linspace(0, 100, 101)
# What lies further below the largest value is not drawn.
_DECADES = 6.0
_MARGIN_DECADES = 2.0
# Networks without and with a bound; the former on top, where they are alike.
_PAIR: dict[str, dict[str, Any]] = {
    _BLACK: {"color": _BLACK, "linewidth": 1.2, "zorder": 3},
    _WITH: {"color": _WITH, "linewidth": 2.4},
}


def draw(out: runs.RunDirectory, results: Mapping[str, Any]) -> None:
    """Draws all figures.

    Args:
      out: gets them.
      results: of experiments.spectral_normalization, as they are read from JSON.
    """
    _draw_accuracy(out, results)
    _draw_curves(out, results)
    _draw_distributions(
        out,
        results,
        "gains",
        "$\\Vert f(x) \\Vert / \\Vert x \\Vert$",
        f"Gain of {results['test_examples']} test pictures, x as it enters the first "
        "layer",
    )
    _draw_distributions(
        out,
        results,
        "gradient_norms",
        "L2 norm (1 / pixels in [0, 1])",
        f"Gradient of the loss in {results['train_measured']} clean training pictures",
    )
    _draw_margins(out, results)
    _draw_strengths(out, results)


def _draw_accuracy(out: runs.RunDirectory, results: Mapping[str, Any]) -> None:
    """Test and training accuracy against the bound, a panel for each way to bound."""
    schemes, kinds = results["schemes"], results["methods"]
    figure, panels = figures.new_panels(
        _title(results, "Accuracy under the attack trained with"),
        [f"bounded: {LABELS[kind]}" if len(kinds) > 1 else "" for kind in kinds],
        sharey=True,
    )
    colors = (_BLACK, *figures.PALETTE)
    for axes, kind in zip(panels, kinds, strict=True):
        for number, (name, scheme) in enumerate(schemes.items()):
            shown = [
                network
                for network in scheme["networks"].values()
                if network["method"] in (None, kind)
            ]
            shown.sort(key=lambda network: float(network["bound"]))
            place = np.arange(len(shown))
            style: dict[str, Any] = {
                "color": colors[number % len(colors)],
                "marker": figures.MARKERS[number % len(figures.MARKERS)],
                "markersize": 4,
            }
            mean, error = (
                100 * np.array([network["test"][part] for network in shown], float)
                for part in ("mean", "standard_error")
            )
            axes.plot(place, mean, label=f"{label(name)}: test", **style)
            axes.fill_between(
                place,
                mean - error,
                mean + error,
                color=style["color"],
                alpha=0.15,
                lw=0,
            )
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
    panels[0].set_ylabel("accuracy (%)")
    figures.save_panels(
        figure, panels, out.figure_path("accuracy"), columns=min(4, len(schemes))
    )


def _draw_curves(out: runs.RunDirectory, results: Mapping[str, Any]) -> None:
    """Training accuracy against steps, with the test accuracy at their end."""
    schemes = results["schemes"]
    titles = [label(name) for name in schemes]
    if results["random_labels"]:
        titles.append(f"{label(results['first'])}, random labels")
    figure, panels = figures.new_panels(
        _title(
            results,
            "Training accuracy under the attack trained with, mean of each epoch's "
            "minibatches; stars: test accuracy",
        ),
        titles,
        sharey=True,
    )
    shown = [_shown(results, scheme) for scheme in schemes.values()]
    if results["random_labels"]:
        shown.append(list(results["random_labels"].values()))
    styles = _styles(results)
    for axes, chosen in zip(panels, shown, strict=True):
        for network in chosen:
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
    _label_rows(panels, "accuracy (%)")
    figures.save_panels(figure, panels, out.figure_path("curves"))


def _draw_distributions(
    out: runs.RunDirectory,
    results: Mapping[str, Any],
    quantity: str,
    unit: str,
    title: str,
) -> None:
    """The part of the pictures with less of a quantity, by bound."""
    schemes = results["schemes"]
    figure, panels = figures.new_panels(
        _title(results, title),
        [label(name) for name in schemes],
        sharey=True,
    )
    styles = _styles(results)
    highest, lowest = 0.0, math.inf
    for axes, scheme in zip(panels, schemes.values(), strict=True):
        for network in _shown(results, scheme):
            values = _percentiles(network, quantity)
            axes.plot(values, _PERCENTS, **styles(network))
            finite = values[np.isfinite(values) & (values > 0)]
            if len(finite):
                highest = max(highest, finite.max())
                lowest = min(lowest, finite.min())
    for axes in panels:
        axes.set_ylim(0, 100)
        axes.set_xlabel(unit)
        if highest:
            figures.scale_log(
                axes, max(lowest, highest * 10**-_DECADES) / 1.2, 1.2 * highest
            )
    _label_rows(panels, "pictures with less (%)")
    figures.save_panels(figure, panels, out.figure_path(quantity))


def _draw_margins(out: runs.RunDirectory, results: Mapping[str, Any]) -> None:
    """Margins of attacked training pictures, as they are and in units of sqrt(Phi)."""
    schemes, kind = results["schemes"], results["methods"][0]
    titles = [
        f"{label(name)}, $\\beta$ = "
        f"{bound_label(scheme['networks'][scheme['best_bounded'][kind]])}"
        for name, scheme in schemes.items()
    ]
    figure, panels = figures.new_panels(
        _title(
            results,
            f"Margins of {results['train_measured']} training pictures under the "
            "attack trained with",
        ),
        [*titles, *titles],
        columns=len(schemes),
        sharey=True,
    )
    for column, (name, scheme) in enumerate(schemes.items()):
        networks = [
            ("without a bound", _BLACK, "-", scheme["networks"][WITHOUT]),
            (
                "with $\\beta$",
                _WITH,
                "-",
                scheme["networks"][scheme["best_bounded"][kind]],
            ),
        ]
        if name == results["first"]:
            networks += [
                (f"{text}, random labels", color, "--", network)
                for (text, color, *_), network in zip(
                    networks, results["random_labels"].values(), strict=False
                )
            ]
        for row, axes in enumerate(panels[column :: len(schemes)]):
            infinite, drawn = [], []
            for text, color, line, network in networks:
                margins = _percentiles(network, "margins")
                positive = margins > 0
                places = np.log10(margins[positive])
                if row:
                    unit = log_unit(network)
                    if unit is None or not math.isfinite(unit):
                        infinite.append(text)
                        places = np.full(len(places), math.nan)
                    else:
                        places = places - unit
                axes.plot(
                    places,
                    _PERCENTS[positive],
                    linestyle=line,
                    label=text,
                    **_PAIR[color],
                )
                if len(places):
                    drawn.append(float(places[-1]))
            drawn = [place for place in drawn if math.isfinite(place)]
            if drawn:
                axes.set_xlim(min(drawn) - _MARGIN_DECADES, max(drawn) + 0.1)
            else:
                axes.set_xticks([])
            if infinite:
                _say_infinite(axes, networks[0][-1], infinite)
            axes.set_ylim(0, 100)
            axes.set_xlabel(
                "log$_{10}$ of margin / $\\sqrt{\\Phi}$ (logits)"
                if row
                else "log$_{10}$ of the margin (logits)"
            )
            if row:
                axes.set_title("")
    _label_rows(panels, "pictures with less (%)")
    figures.save_panels(figure, panels, out.figure_path("margins"), columns=2)


def _say_infinite(
    axes: Any, network: Mapping[str, Any], infinite: Sequence[str]
) -> None:
    text = "$\\Phi$ is infinite:\n" + "\n".join(infinite)
    if network["capacity"] is None:
        text = "$\\Phi$ is of attacks in L2"
    axes.text(0.05, 0.95, text, transform=axes.transAxes, va="top", fontsize=8)


def _draw_strengths(out: runs.RunDirectory, results: Mapping[str, Any]) -> None:
    """Test accuracy against the length of each scheme's attack."""
    schemes, kind = results["schemes"], results["methods"][0]
    attacked = [
        name for name, scheme in schemes.items() if name in _curves(scheme, WITHOUT)
    ]
    if not attacked:
        return
    figure, panels = figures.new_panels(
        _title(
            results,
            "Accuracy against the strength of the attack; dotted: that of the training",
        ),
        [f"attack: {label(name)}" for name in attacked],
        sharey=True,
    )
    for axes, attack in zip(panels, attacked, strict=True):
        for name, scheme in schemes.items():
            own = name == attack
            for each, color in (
                (WITHOUT, _BLACK),
                (scheme["best_bounded"][kind], _WITH),
            ):
                curve = _curves(scheme, each).get(attack)
                if curve is None:
                    continue
                network = scheme["networks"][each]
                trained = "trained with it" if own else f"{label(name)}-trained"
                beta = "with" if network["method"] else "without"
                length, mean, error = (
                    np.array([first, *curve[part]], float)
                    for first, part in (
                        (0.0, "length"),
                        (network["clean"]["mean"], "mean"),
                        (network["clean"]["standard_error"], "standard_error"),
                    )
                )
                axes.errorbar(
                    length,
                    100 * mean,
                    100 * error,
                    linestyle="-" if own else "--",
                    marker="o" if own else "^",
                    elinewidth=1,
                    markersize=3 if color == _BLACK else 5,
                    **_PAIR[color],
                    label=f"{trained}, {beta} $\\beta$",
                )
        config = schemes[attack]["config"]
        curve = _curves(schemes[attack], WITHOUT)[attack]
        trained_at = curve["length"][0] / curve["strength"][0]
        axes.axvline(trained_at, color="0.5", linestyle=":", linewidth=1)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        if config["method"] == "wrm":
            axes.set_xlabel("$1 / 2 \\gamma$ (squared pixels per cross-entropy)")
        else:
            norm = f"L{float(config['p']):g}"
            axes.set_xlabel(f"{norm} length, $\\epsilon$ (pixels in [0, 1])")
    _label_rows(panels, "test accuracy (%)")
    figures.save_panels(figure, panels, out.figure_path("attack_strength"), columns=2)


def _curves(scheme: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = scheme["strengths"].get(name, {})
    return found


def _shown(
    results: Mapping[str, Any], scheme: Mapping[str, Any]
) -> list[Mapping[str, Any]]:
    """The networks of a scheme that figures show, of the first way to bound."""
    kinds = (None, results["methods"][0])
    return [n for n in scheme["networks"].values() if n["method"] in kinds]


def _styles(
    results: Mapping[str, Any],
) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """How networks of each bound are drawn, the same in all figures."""
    first = results["schemes"][results["first"]]
    bounds = sorted({float(n["bound"]) for n in first["networks"].values()})
    palette = figures.PALETTE

    def style(network: Mapping[str, Any]) -> dict[str, Any]:
        if network["method"] is None:
            # On top: a bound that does not bind changes nothing.
            return {
                "color": _BLACK,
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


def _label_rows(panels: Sequence[Any], text: str) -> None:
    for axes in panels:
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel(text)


def _title(results: Mapping[str, Any], text: str) -> str:
    return (
        f"{text}\n{results['data']}, {results['train_examples']} training and "
        f"{results['test_examples']} test pictures; {results['network']}"
    )
