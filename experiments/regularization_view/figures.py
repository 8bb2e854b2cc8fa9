"""The figures of experiments.regularization_view, numbered as in the paper.

Bands and error bars are standard errors over networks that differ in seed; a single
network has none. The paper's values are open markers with dotted lines.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from experiments.common import figures
from experiments.common.records import Record
from experiments.regularization_view import claims
from experiments.regularization_view.networks import FGSM, PGD
from experiments.regularization_view.tables import (
    ARCHITECTURES,
    DATASETS,
    architecture_label,
    clip_label,
)
from opnorm import papers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

view = papers.regularization_view
Row = Mapping[str, Any]

_MARKERS = ("o", *figures.MARKERS)
_COLORS = (figures.BLACK, *figures.PALETTE)
_DENSITY_UNITS = {"margin": " (1 / logit)", "loss": " (1 / nat)"}
_MISSING = "missing: no such networks"
_TABLES = {
    "cifar10": view.TABLE_3,
    "cifar100": view.TABLE_4,
    "tiny_imagenet": view.TABLE_5,
}
_STRENGTH = "strength of the training attack"


class _Curve(NamedTuple):
    """Quantities of a series of networks against the strength.

    Attributes:
      label: for the legend.
      color: of the curve.
      marker: likewise.
      levels: strengths, rising.
      values: ``name -> (mean, standard error)``, one number for each strength.
      printed: whether it is the paper's.
    """

    label: str
    color: str
    marker: str
    levels: Sequence[float]
    values: Callable[[str], tuple[np.ndarray, np.ndarray]]
    printed: bool


def draw(results: Record) -> Iterator[figures.Drawing]:
    """Draws Figs. 1 and 3 to 11.

    Args:
      results: the content of results.json.

    Yields:
      "figure_01" and so on.
    """
    pgd = _curves(results, PGD)
    clipped = _clipped_curves(results)
    fgsm = _curves(results, FGSM)
    trained = {
        attack: any(_attacked(results, recipe, attack) for recipe in results["recipes"])
        for attack in (PGD, FGSM)
    }
    title = "training with PGD, clipped spectral norms"
    # Figures without any curve are left out.
    yield "figure_01", _draw_overview(results)
    if pgd:
        yield "figure_03", _draw_gaps(results, 3, "training with PGD", pgd)
    if trained[PGD]:
        yield "figure_04", _draw_margins(results, 4, PGD)
        yield "figure_05", _draw_confidence(results, 5, PGD)
    if clipped:
        yield "figure_06", _draw_gaps(results, 6, title, clipped)
    if trained[PGD]:
        yield "figure_07", _draw_variation(results)
    if fgsm:
        yield "figure_08", _draw_gaps(results, 8, "training with FGSM", fgsm)
    if trained[FGSM]:
        yield "figure_09", _draw_margins(results, 9, FGSM)
        yield "figure_10", _draw_confidence(results, 10, FGSM)
    if pgd:
        yield "figure_11", _draw_robustness(results, pgd)


def _draw_overview(results: Record) -> "Figure":
    """Fig. 1 of the first recipe: singular values, margins, accuracies."""
    recipe = next(iter(results["recipes"]))
    figure, panels = figures.new_panels(
        _title(results, "Fig. 1: what adversarial training changes", recipe),
        ("singular values of each layer", "margins", "accuracies"),
    )
    rows = claims.series(results["rows"], recipe, PGD)
    _spread_panel(panels[0], results, rows)
    _density_panel(panels[1], results, rows, recipe, "test_margin")
    panels[1].set_xlabel("margin of the test images (logits)")
    levels = [row["level"] for row in rows]
    for number, (name, text) in enumerate(
        (("test_accuracy", "clean test images"), ("robust", "the same under PGD"))
    ):
        color, marker = _look(4 + number)
        style = {"color": color, "marker": marker, "label": text}
        mean, error = _mean_and_error(rows, name)
        _errorbar(panels[2], levels, 100 * mean, 100 * error, **style)
    _strength_axis(panels[2], results, levels)
    panels[2].set_ylabel("accuracy (%)")
    _from_zero(panels[2])
    return figures.finish(figure, panels)


def _draw_gaps(
    results: Record,
    number: int,
    title: str,
    curves: Sequence[_Curve],
) -> "Figure":
    """Figs. 3, 6 and 8: gaps, losses and errors against the strength.

    The networks here are in the upper row and those of the paper in the lower one.
    """
    quantities = ("loss gap", "error gap", "losses", "errors")
    shown = [
        (column, printed)
        for printed in (False, True)
        for column in range(4)
        if any(_is_known(c, column) for c in curves if c.printed == printed)
    ]
    sources = {False: "networks here", True: "the paper"}
    figure, panels = figures.new_panels(
        _title(results, f"Fig. {number}: {title}"),
        [f"{quantities[column]}, {sources[printed]}" for column, printed in shown],
        columns=2 if len(shown) % 2 == 0 else None,
    )
    levels = [level for curve in curves for level in curve.levels]
    units = (
        "test - training loss (nats)",
        "test - training error (points)",
        "cross-entropy (nats)",
        "error (%)",
    )
    for axes, (column, printed) in zip(panels, shown, strict=True):
        own = [curve for curve in curves if curve.printed == printed]
        times = 100 if column % 2 else 1
        quantity = ("loss", "error")[column % 2]
        for curve in own:
            if column < 2:
                _draw_curve(axes, curve, f"{quantity}_gap", times=times)
                continue
            _draw_curve(axes, curve, f"test_{quantity}", times=times)
            _draw_curve(axes, curve, f"train_{quantity}", times=times, dashes=True)
        axes.set_ylabel(units[column])
        _strength_axis(axes, results, levels)
        if column > 1:
            _from_zero(axes)
            for line, text in (("-", "test images"), ("--", "training images")):
                axes.plot([], [], color=figures.GREY, linestyle=line, label=text)
    return figures.finish(figure, panels)


def _is_known(curve: _Curve, column: int) -> bool:
    """Whether a curve has values of a column of the figures of gaps."""
    name = ("loss_gap", "error_gap", "test_loss", "test_error")[column]
    return not np.all(np.isnan(curve.values(name)[0]))


def _draw_margins(results: Record, number: int, attack: str) -> "Figure":
    """Figs. 4 and 9: densities of the margins of test and training images."""
    recipes = [r for r in results["recipes"] if _attacked(results, r, attack)]
    parts = [(recipe, part) for recipe in recipes for part in ("test", "train")]
    texts = {"test": "test images", "train": "training images"}
    figure, panels = figures.new_panels(
        _title(results, f"Fig. {number}: margins, training with {attack.upper()}"),
        [f"{_name(results, recipe)}{texts[part]}" for recipe, part in parts],
        columns=2,
    )
    for axes, (recipe, part) in zip(panels, parts, strict=True):
        rows = _attacked(results, recipe, attack)
        _density_panel(axes, results, rows, recipe, f"{part}_margin")
        axes.set_xlabel("margin (logits)")
    return figures.finish(figure, panels)


def _draw_confidence(results: Record, number: int, attack: str) -> "Figure":
    """Figs. 5 and 10: probabilities, losses, and spreads of singular values.

    Panels of the middle range stand for the paper's insets; their densities are the
    same.
    """
    recipes = [r for r in results["recipes"] if _attacked(results, r, attack)]
    quantities = {
        "probability": "probability",
        "probability_middle": "probability, middle range",
        "loss": "loss",
        "loss_middle": "loss, middle range",
    }
    parts = (*quantities.values(), "singular values of each layer")
    figure, panels = figures.new_panels(
        _title(
            results,
            f"Fig. {number}: confidence on test images, training with {attack.upper()}",
        ),
        [f"{_name(results, recipe)}{part}" for recipe in recipes for part in parts],
        columns=3,
    )
    for place, recipe in enumerate(recipes):
        rows = _attacked(results, recipe, attack)
        *own, spread = panels[len(parts) * place : len(parts) * (place + 1)]
        for axes, quantity in zip(own, quantities, strict=True):
            _density_panel(axes, results, rows, recipe, quantity)
            probability = quantity.startswith("probability")
            axes.set_xlabel(
                "estimated probability of the label"
                if probability
                else "cross-entropy (nats)"
            )
        _spread_panel(spread, results, rows)
    return figures.finish(figure, panels)


def _draw_variation(results: Record) -> "Figure":
    """Fig. 7: the loss variation against the length of the attack."""
    lengths = results["settings"]["variation_levels"]
    recipes = [r for r in results["recipes"] if _attacked(results, r, PGD)]
    known = {found["dataset"] for found in results["recipes"].values()}
    printed = [name for name in ("cifar10", "cifar100") if name in known]
    figure, panels = figures.new_panels(
        _title(
            results,
            "Fig. 7: largest rise of the loss under an attack, test images",
        ),
        [
            *(f"{_name(results, recipe)}networks here" for recipe in recipes),
            *(f"{DATASETS[dataset]}, the paper" for dataset in printed),
        ],
    )
    for axes, recipe in zip(panels, recipes, strict=False):
        rows = _attacked(results, recipe, PGD)
        for row in rows:
            means = [row["mean"][f"variation_{length:g}"] for length in lengths]
            mean, error = (
                np.array([_number(pair[part]) for pair in means])
                for part in ("mean", "standard_error")
            )
            _errorbar(axes, lengths, mean, error, **_level_style(results, row["level"]))
    for axes, dataset in zip(panels[len(recipes) :], printed, strict=True):
        levels = dict.fromkeys(
            row.trained_with for row in view.TABLE_1.select(dataset=dataset)
        )
        for level in levels:
            cells = view.TABLE_1.select(dataset=dataset, trained_with=level)
            style = _level_style(results, level)
            axes.plot(
                [cell.attacked_with for cell in cells],
                [cell.mean for cell in cells],
                **style | {"linestyle": ":", "markerfacecolor": "none"},
            )
    for axes in panels:
        drawn = {float(x) for line in axes.lines for x in np.ravel(line.get_xdata())}
        axes.set(
            xlabel="length of the attack\n" + _unit(results),
            ylabel="mean rise of the loss (nats)",
            ylim=(0, None),
            xlim=(0, None),
            xticks=sorted({0.0, *drawn}),
        )
    return figures.finish(figure, panels)


def _draw_robustness(results: Record, curves: Sequence[_Curve]) -> "Figure":
    """Fig. 11: accuracy under PGD against the strength.

    The stars of the paper are results of others, and it prints no numbers for them.
    """
    settings = results["settings"]
    figure, panels = figures.new_panels(
        _title(
            results,
            f"Fig. 11: accuracy under PGD of length {settings['level']:g}, test images",
        ),
        ("among the images that are correct without it", "among all images"),
    )
    for axes, quantity in zip(panels, ("conditional", "robust"), strict=True):
        for curve in curves:
            _draw_curve(axes, curve, quantity, times=100)
        _strength_axis(axes, results, [s for curve in curves for s in curve.levels])
        axes.set_ylabel("accuracy (%)")
        _from_zero(axes)
    return figures.finish(figure, panels)


def _curves(results: Record, attack: str) -> list[_Curve]:
    """The networks of each recipe that are not clipped, and those of the paper."""
    recipes = results["recipes"]
    curves: dict[str, _Curve] = {}
    datasets = {found["dataset"] for found in recipes.values()}
    for number, (recipe, found) in enumerate(recipes.items()):
        rows = _attacked(results, recipe, attack)
        own = architecture_label(found)
        if rows:
            label = f"{_name(results, recipe)}{own}, here"
            curves[label] = _measured(label, *_look(number), rows)
        table = view.TABLE_2 if attack == FGSM else _TABLES.get(found["dataset"])
        printed = table.select(dataset=found["dataset"]) if table else ()
        # The colour of the network here where it has the same architecture.
        others = itertools.count(number + len(recipes), len(recipes))
        for architecture in dict.fromkeys(row.architecture for row in printed):
            name = ARCHITECTURES[architecture]
            look = _look(number if name == own else next(others))
            if len(datasets) > 1:
                name = f"{DATASETS[found['dataset']]}, {name}"
            label = f"{name}, paper"
            chosen = [row for row in printed if row.architecture == architecture]
            # Recipes of one data set share the curves of the paper.
            curves.setdefault(label, _printed(label, *look, chosen))
    return list(curves.values())


def _clipped_curves(results: Record) -> list[_Curve]:
    """The networks of the first recipe by clip, and those of the paper's Table 6."""
    recipe = next(iter(results["recipes"]))
    curves = []
    clips = [*claims.clips(results["rows"], recipe), None]
    bounds = [1.0, 3.0, 5.0, None]
    looks: dict[float | None, tuple[str, str]] = {
        bound: _look(number) for number, bound in enumerate(reversed(bounds))
    }
    for clip in clips:
        rows = claims.series(results["rows"], recipe, PGD, clip)
        if not rows:
            continue
        bound = rows[0]["bound"]
        look = looks.setdefault(bound, _look(len(looks)))
        curves.append(_measured(f"{clip_label(clip)}, here", *look, rows))
    if results["recipes"][recipe]["dataset"] == "cifar10":
        for bound in bounds:
            own = view.TABLE_6.select(bound=bound)
            name = "not clipped" if bound is None else f"clipped to {bound:g}"
            curves.append(_printed(f"{name}, paper", *looks[bound], own))
    return curves


def _measured(label: str, color: str, marker: str, rows: Sequence[Row]) -> _Curve:
    levels = [row["level"] for row in rows]
    return _Curve(
        label,
        color,
        marker,
        levels,
        lambda name: _mean_and_error(rows, name),
        printed=False,
    )


def _printed(
    label: str, color: str, marker: str, rows: Sequence[view.Generalization]
) -> _Curve:
    def values(name: str) -> tuple[np.ndarray, np.ndarray]:
        mean = np.array([_number(_cell(row, name)) for row in rows])
        return mean, np.full(len(mean), np.nan)

    levels = [float(row.trained_with) for row in rows]
    return _Curve(label, color, marker, levels, values, printed=True)


def _cell(row: view.Generalization, name: str) -> float | None:
    """A quantity of a printed row, or None where the paper does not print it."""
    known = {
        "loss_gap": row.loss_gap,
        "error_gap": row.accuracy_gap,
        "test_loss": row.test_loss,
        "train_loss": row.train_loss,
        "test_error": 1 - row.test_accuracy,
        "conditional": row.robust,
    }
    if row.train_accuracy is not None:
        known["train_error"] = 1 - row.train_accuracy
    if row.robust is not None:
        known["robust"] = row.robust * row.test_accuracy
    return known.get(name)


def _draw_curve(
    axes: Any, curve: _Curve, name: str, *, times: float, dashes: bool = False
) -> None:
    """Draws a quantity of a curve; training values are dashed."""
    mean, error = (times * part for part in curve.values(name))
    if np.all(np.isnan(mean)):
        return
    style: figures.Style = {
        "color": curve.color,
        "marker": curve.marker,
        "label": None if dashes else curve.label,
        "linestyle": "--" if dashes else "-",
    }
    if curve.printed:
        style |= {"markerfacecolor": "none", "linewidth": 0.9, "alpha": 0.8}
        style["linestyle"] = (0, (4, 3)) if dashes else ":"
    _errorbar(axes, curve.levels, mean, error, **style)


def _errorbar(
    axes: Any, x: Sequence[float], mean: np.ndarray, error: np.ndarray, **style: Any
) -> None:
    """Draws points with their errors, where those are known."""
    known = np.where(np.isnan(error), 0.0, error)
    style = {"markersize": 4, **style}
    if known.any():
        axes.errorbar(x, mean, known, capsize=2, elinewidth=1, **style)
    else:
        axes.plot(x, mean, **style)


def _density_panel(
    axes: Any, results: Record, rows: Sequence[Row], recipe: str, quantity: str
) -> None:
    """Draws the density of a quantity for each strength, with bands."""
    unit = next((text for word, text in _DENSITY_UNITS.items() if word in quantity), "")
    if not rows:
        _note(axes, _MISSING)
        return
    edges = np.asarray(results["recipes"][recipe]["edges"][quantity])
    centers = (edges[:-1] + edges[1:]) / 2
    for row in rows:
        style = _level_style(results, row["level"]) | {"marker": "", "linewidth": 1.2}
        found = row["densities"][quantity]
        error = [_number(e) for e in found["standard_error"]]
        figures.curve(
            axes, centers, {"mean": found["mean"], "standard_error": error}, **style
        )
    axes.set_ylabel(f"density{unit}")
    axes.set_ylim(bottom=0)


def _spread_panel(axes: Any, results: Record, rows: Sequence[Row]) -> None:
    """Draws the spread of singular values by layer, weakest and strongest attack."""
    attacked = [row for row in rows if row["level"] > 0]
    chosen = [*attacked[:1], *attacked[1:][-1:]]
    if not chosen:
        _note(axes, _MISSING)
        return
    for row in chosen:
        x, found = figures.by_rank(row["layers"]["operator"])
        error = [_number(e) for e in found["standard_error"]]
        style = _level_style(results, row["level"]) | {"markersize": 3}
        drawn = {"mean": found["mean"], "standard_error": error}
        figures.curve(axes, x, drawn, **style)
    axes.set(
        xlabel="convolutional layer, from the input",
        ylabel="their standard deviation",
    )
    _from_zero(axes)


def _attacked(results: Record, recipe: str, attack: str) -> list[Row]:
    """The series of an attack; empty where it has nothing but level 0."""
    rows = claims.series(results["rows"], recipe, attack)
    return rows if any(row["attack"] == attack for row in rows) else []


def _level_style(results: Record, level: float) -> figures.Style:
    """The style of a strength, the same in all figures."""
    levels = sorted(
        {0.0, 4.0, 8.0, 16.0} | {float(row["level"]) for row in results["rows"]}
    )
    number = levels.index(float(level))
    text = "no attack" if level == 0 else f"strength {level:g}"
    color, marker = _look(number)
    return {"color": color, "marker": marker, "label": text}


def _look(number: int) -> tuple[str, str]:
    return _COLORS[number % len(_COLORS)], _MARKERS[number % len(_MARKERS)]


def _mean_and_error(rows: Sequence[Row], name: str) -> tuple[np.ndarray, np.ndarray]:
    mean, error = (
        np.array([_number(row["mean"][name][part]) for row in rows])
        for part in ("mean", "standard_error")
    )
    return mean, error


def _number(value: Any) -> float:
    """A number of a file, in which NaN is null and infinity is text."""
    return math.nan if value is None else float(value)


def _strength_axis(axes: Any, results: Record, levels: Sequence[float]) -> None:
    ticks = sorted(set(levels))
    if not ticks:
        _note(axes, _MISSING)
        return
    axes.set_xlabel(f"{_STRENGTH}\n{_unit(results)}")
    margin = max(0.04 * (ticks[-1] - ticks[0]), 0.2)
    axes.set(xticks=ticks, xlim=(ticks[0] - margin, ticks[-1] + margin))


def _unit(results: Record) -> str:
    unit = {"pixels": "pixels", "standardized": "standardised pixels"}
    return f"(Linf, in 1/255 of {unit[results['settings']['unit']]})"


def _name(results: Record, recipe: str) -> str:
    """The beginning of a label: the recipe's name where there are several."""
    return f"{recipe}: " if len(results["recipes"]) > 1 else ""


def _from_zero(axes: Any) -> None:
    """Begins the vertical axis at 0, with room above curves that are nearly level."""
    axes.set_ylim(0, 1.05 * axes.get_ylim()[1])


def _note(axes: Any, text: str) -> None:
    """Writes into an empty panel why it is empty."""
    axes.set(xticks=[], yticks=[])
    axes.text(
        0.5,
        0.5,
        text,
        transform=axes.transAxes,
        ha="center",
        va="center",
        color=figures.GREY,
        fontsize=9,
    )


def _title(results: Record, text: str, recipe: str | None = None) -> str:
    """The title of a figure, with its data and the meaning of its bars."""
    chosen = [results["recipes"][recipe]] if recipe is not None else []
    chosen = chosen or list(results["recipes"].values())
    data = " and ".join(dict.fromkeys(found["data"] for found in chosen))
    networks = " and ".join(dict.fromkeys(found["title"] for found in chosen))
    counts = sorted({len(row["networks"]) for row in results["rows"]})
    several = " or ".join(str(count) for count in counts if count > 1)
    errors = "one network each, so no errors are known"
    if several:
        errors = f"bars and bands: standard error over {several} networks"
        if counts[0] == 1:
            errors += "; points of one network have none"
    return f"{text}\n{data}; {networks}\n{errors}"
