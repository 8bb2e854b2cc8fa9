"""The figures of experiments.spectral_normalization.

Distributions over images are drawn as the part of the images with less. For margins
this part is the margin loss of the paper's Eqs. 1 and 8; no width of bins is needed.
Networks of several seeds are drawn as means with bands, and titles say of what.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.common import figures
from experiments.common.records import Record
from experiments.spectral_normalization import averages
from experiments.spectral_normalization.networks import WITHOUT
from experiments.spectral_normalization.tables import (
    LABELS,
    bound_label,
    label,
    log_released_unit,
    log_unit,
    random_labels,
    ways,
)
from opnorm import papers, runs, training

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


def draw(
    out: runs.RunDirectory, results: Record, others: Sequence[Record] = ()
) -> None:
    """Draws all figures.

    Args:
      out: gets them.
      results: the content of results.json.
      others: that of other directories, whose gains are drawn beside.
    """
    _draw_accuracy(out, results)
    _draw_curves(out, results)
    _draw_random_labels(out, results)
    _draw_ways(out, results)
    _draw_gains(out, [results, *others])
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


def _draw_accuracy(out: runs.RunDirectory, results: Record) -> None:
    """Test and training accuracy against the bound, a panel for each way to bound."""
    schemes, kinds = results["schemes"], results["methods"]
    figure, panels = _new_panels(
        results,
        "Accuracy under the attack trained with",
        [f"bounded: {LABELS[kind]}" if len(kinds) > 1 else "" for kind in kinds],
        bands="bands",
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
            place = np.arange(len(shown))
            test, train = (_accuracies(shown, part) for part in ("test", "train"))
            text = f"{label(name)}: test"
            figures.curve(axes, place, test, times=100, **style, label=text)
            dashed = {**style, "linestyle": "--", "markerfacecolor": "none"}
            text = f"{label(name)}: training"
            figures.curve(axes, place, train, times=100, **dashed, label=text)
            axes.set_xticks(place, [bound_label(network) for network in shown])
        axes.set_xlabel("bound on the layers' spectral norms, $\\beta$")
    columns = min(4, len(schemes))
    _save(out, "accuracy", figure, panels, "accuracy (%)", columns)


def _draw_curves(out: runs.RunDirectory, results: Record) -> None:
    """Training accuracy against steps, with the test accuracy at their end."""
    schemes, kind = results["schemes"], results["methods"][0]
    figure, panels = _new_panels(
        results,
        "Training accuracy under the attack trained with, mean of each epoch's "
        f"minibatches; stars: test accuracy{_validated(results)}",
        [label(name) for name in schemes],
    )
    styles = _styles(results)
    for axes, scheme in zip(panels, schemes.values(), strict=True):
        for network in _bounded_by(kind, scheme):
            _draw_training(axes, network, styles(network))
        _label_steps(axes)
    _save(out, "curves", figure, panels, "accuracy (%)")


def _draw_random_labels(out: runs.RunDirectory, results: Record) -> None:
    """Training accuracy on random labels beside that on true ones (Fig. 4)."""
    kind = results["methods"][0]
    shown = {
        name: found
        for name in results["schemes"]
        if (found := random_labels(results, name))
    }
    if not shown:
        return
    figure, panels = _new_panels(
        results,
        "Training accuracy on random and on true labels under the attack trained with",
        [label(name) for name in shown],
    )
    for axes, (name, relabelled) in zip(panels, shown.items(), strict=True):
        scheme = results["schemes"][name]
        for each, network in relabelled.items():
            style = dict(_WITHOUT if each == WITHOUT else _WITH)
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
    _save(out, "random_labels", figure, panels, "training accuracy (%)")


def _draw_ways(out: runs.RunDirectory, results: Record) -> None:
    """Curves of each way to regularise a scheme, a figure for each (Figs. 10, 11)."""
    for name, scheme in results["schemes"].items():
        shown = ways(results, scheme)
        if len(shown) < 3:
            continue
        figure, panels = _new_panels(
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
        _save(out, f"regularised_{place}", figure, panels, "accuracy (%)")


def _draw_gains(out: runs.RunDirectory, all_results: Sequence[Record]) -> None:
    """Gain of the test accuracy against that without a bound, by scheme (Fig. 6)."""
    points: dict[str, list[tuple[str, Record]]] = {}
    for results in all_results:
        for name in results["schemes"]:
            point = _gain_of(results, name)
            if point is not None:
                points.setdefault(label(name), []).append((_network(name), point))
    if not points:
        return
    figure, panels = _new_panels(
        all_results[0],
        "Gain of the test accuracy by the chosen bound; filled: ours, hollow: the "
        "paper's networks of the scheme",
        list(points),
        bands="bars",
        sizes=len(all_results) == 1,
    )
    named = list(dict.fromkeys(text for found in points.values() for text, _ in found))
    for axes, (scheme, found) in zip(panels, points.items(), strict=True):
        for row in papers.farnia.TABLE_1.rows:
            if _scheme_label(row.scheme) == scheme:
                axes.plot(
                    100 * row.test,
                    100 * (row.bounded_test - row.test),
                    "o",
                    color="0.6",
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
        axes.axhline(0, color="0.5", linewidth=1)
        axes.set_xlabel("test accuracy without a bound (%)")
    _save(out, "gain_by_network", figure, panels, "gain (points)")


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


def _network(name: str) -> str:
    """Returns architecture and data of a preset, as the paper names them."""
    row = training.get_preset(name).row(papers.farnia.Accuracy)
    return name if row is None else f"{row.architecture}, {row.dataset}"


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
) -> None:
    """Draws training and validation accuracy of a network against steps.

    Args:
      axes: the panel.
      network: one network, or several seeds.
      style: with a "color".
      ends: whether validation curves and a star at the test accuracy are drawn too.
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
        found["step"][-1:],
        [100 * network["test"]["mean"]],
        color=style["color"],
        zorder=style.get("zorder", 2),
        marker="*",
        markersize=9,
        linestyle="none",
        clip_on=False,
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
            values = [
                _percentiles(each, quantity) for each in averages.members(network)
            ]
            mean = _draw_distribution(axes, values, styles(network))
            known.append(mean[np.isfinite(mean) & (mean > 0)])
    shown = np.concatenate(known)
    for axes in panels:
        axes.set_ylim(0, 100)
        axes.set_xlabel(unit)
        if len(shown):
            lowest = max(shown.min(), shown.max() * 10**-_DECADES)
            figures.scale_log(axes, lowest / 1.2, 1.2 * shown.max())
    _save(out, quantity, figure, panels, "images with less (%)")


def _draw_distribution(
    axes: "Axes", values: Sequence[np.ndarray], style: figures.Style
) -> np.ndarray:
    """Draws percentiles, the mean over networks with a band; returns the mean."""
    if not values:
        return np.full_like(_PERCENTS, np.nan)
    # Percentiles that are not finite in one network are not drawn for the others.
    with np.errstate(invalid="ignore"):
        mean: np.ndarray = np.mean(values, axis=0)
        axes.plot(mean, _PERCENTS, **style)
        if len(values) > 1:
            error = np.std(values, axis=0, ddof=1) / math.sqrt(len(values))
            axes.fill_betweenx(
                _PERCENTS,
                mean - error,
                mean + error,
                color=style["color"],
                alpha=0.15,
                lw=0,
            )
    return mean


# The units that margins are drawn in, and the row of panels of each.
_UNITS: tuple[tuple[str, Callable[[Mapping[str, Any]], float | None]], ...] = (
    ("the margin (logits)", lambda network: 0.0),
    ("margin / $\\sqrt{\\Phi}$", log_unit),
    ("margin / unit of the released code", log_released_unit),
)


def _draw_margins(out: runs.RunDirectory, results: Record) -> None:
    """Margins of attacked training images: as they are, and in the paper's units."""
    schemes, kind = results["schemes"], results["methods"][0]
    pairs = {name: _pair(kind, scheme) for name, scheme in schemes.items()}
    networks = [network for pair in pairs.values() for _, network in pair]
    # Earlier measurements have no unit of the released code.
    rows = [
        row for row in _UNITS if any(_known_unit(each, row[1]) for each in networks)
    ]
    titles = [
        f"{label(name)}, $\\beta$ = {bound_label(pair[-1][1])}"
        for name, pair in pairs.items()
    ]
    figure, panels = _new_panels(
        results,
        f"Margins of {results['train_measured']} training images under the attack "
        "trained with, as they are and divided by the paper's unit or the code's",
        titles * len(rows),
        # The units of a single scheme stand in a row.
        columns=len(schemes) if len(schemes) > 1 else len(rows),
    )
    for column, (name, pair) in enumerate(pairs.items()):
        drawn = [
            ({**style, "label": text}, network)
            for text, (style, network) in zip(
                ("without a bound", "with $\\beta$"), pair, strict=False
            )
        ]
        relabelled = random_labels(results, name).values()
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
        for number, (quantity, unit) in enumerate(rows):
            axes = panels[number * len(schemes) + column]
            _draw_margin_panel(axes, drawn, quantity, unit)
            if number and len(schemes) > 1:
                axes.set_title("")
    _save(out, "margins", figure, panels, "images with less (%)", 2)


def _known_unit(
    network: Mapping[str, Any], unit: Callable[[Mapping[str, Any]], float | None]
) -> bool:
    return any(unit(each) is not None for each in averages.members(network))


def _draw_margin_panel(
    axes: "Axes",
    networks: Sequence[tuple[figures.Style, Mapping[str, Any]]],
    quantity: str,
    unit: Callable[[Mapping[str, Any]], float | None],
) -> None:
    """Draws the margins of networks in a unit, as log10."""
    infinite, ends = [], []
    for style, network in networks:
        places = []
        for each in averages.members(network):
            log = unit(each)
            if log is None or not math.isfinite(log):
                infinite.append(style["label"])
                continue
            margins = _percentiles(each, "margins")
            positive = np.where(margins > 0, margins, np.nan)
            places.append(np.log10(positive) - log)
        mean = _draw_distribution(axes, places, style)
        ends += [float(place) for place in mean[-1:] if math.isfinite(place)]
    if ends:
        axes.set_xlim(min(ends) - _MARGIN_DECADES, max(ends) + 0.1)
    else:
        axes.set_xticks([])
    if infinite:
        text = "the unit is infinite:\n" + "\n".join(dict.fromkeys(infinite))
        if not any(_known_unit(network, unit) for _, network in networks):
            text = "the unit is not defined\nfor this scheme"
        axes.text(0.05, 0.95, text, transform=axes.transAxes, va="top", fontsize=8)
    axes.set_ylim(0, 100)
    axes.set_xlabel(f"log$_{{10}}$ of {quantity}")


def _draw_strengths(out: runs.RunDirectory, results: Record) -> None:
    """Test accuracy against the length of each scheme's attack."""
    schemes = results["schemes"]
    attacked = [
        name for name, s in schemes.items() if name in s["strengths"].get(WITHOUT, {})
    ]
    if not attacked:
        return
    figure, panels = _new_panels(
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


def _pair(
    kind: str, scheme: Mapping[str, Any]
) -> list[tuple[figures.Style, Mapping[str, Any]]]:
    """Returns the network without a bound and the best one with a bound, and styles."""
    networks, best = scheme["networks"], scheme["best_bounded"][kind]
    pair = [(_WITHOUT, networks[WITHOUT])]
    return pair if best is None else [*pair, (_WITH, networks[best])]


def _styles(results: Record) -> Callable[[Mapping[str, Any]], figures.Style]:
    """Returns the style of networks by their bound, the same in all figures."""
    bounds = sorted(
        {
            float(network["bound"])
            for scheme in results["schemes"].values()
            for network in scheme["networks"].values()
        }
    )
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
    results: Record,
    title: str,
    titles: Sequence[str],
    columns: int | None = None,
    *,
    bands: str = "",
    sizes: bool = True,
) -> tuple["Figure", list["Axes"]]:
    """Returns a figure with panels of one vertical axis, and the panels.

    Args:
      results: the content of results.json.
      title: title of the figure. Lines below say what its bands are.
      titles: titles of the panels.
      columns: panels in a row; None for as many as fit.
      bands: "bands" or "bars" where networks of one seed have errors over the test
        images; networks of several seeds have bands in any case.
      sizes: whether the title names data, network and numbers of images.
    """
    source = (
        f"{results['data']}, {results['train_examples']} training and "
        f"{results['test_examples']} test images; {results['network']}"
    )
    seeds = results.get("seeds", [0])
    if len(seeds) > 1:
        counts = _counts(results)
        errors = figures.bands("networks", min(counts), max(counts))
    elif bands:
        errors = figures.bands("examples", results["test_examples"])
    else:
        errors = "one network each"
    errors = errors.replace("bands", bands or "bands")
    lines = [title, source, errors] if sizes else [title, errors]
    return figures.new_panels("\n".join(lines), titles, columns=columns, sharey=True)


def _counts(results: Record) -> list[int]:
    """Returns the numbers of networks that means are over, without those of none."""
    return [
        len(averages.members(network))
        for scheme in results["schemes"].values()
        for network in scheme["networks"].values()
        if averages.members(network)
    ] or [0]


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
