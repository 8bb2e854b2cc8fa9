"""Panels, styles and titles of the figures of experiments.spectral_normalization."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from experiments.common import figures
from experiments.common.records import Record
from experiments.spectral_normalization import averages
from experiments.spectral_normalization.networks import WITHOUT
from experiments.spectral_normalization.tables import bound_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Networks without and with a bound; the former on top, where they are alike.
WITHOUT_STYLE: figures.Style = {"color": figures.BLACK, "linewidth": 1.2, "zorder": 3}
WITH_STYLE: figures.Style = {"color": figures.PALETTE[0], "linewidth": 2.4}


def bounded_by(kind: str, scheme: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the networks of a scheme with one way to bound, and the one without."""
    return [n for n in scheme["networks"].values() if n["method"] in (None, kind)]


def pair_of(
    kind: str, scheme: Mapping[str, Any]
) -> list[tuple[figures.Style, Mapping[str, Any]]]:
    """Returns the network without a bound and the best one with a bound, and styles."""
    networks, best = scheme["networks"], scheme["best_bounded"][kind]
    pair = [(WITHOUT_STYLE, networks[WITHOUT])]
    return pair if best is None else [*pair, (WITH_STYLE, networks[best])]


def styles(results: Record) -> Callable[[Mapping[str, Any]], figures.Style]:
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
            "marker": figures.MARKERS[number % len(figures.MARKERS)],
            "markersize": 4,
            "linestyle": "-" if number < len(palette) else "-.",
            "label": f"$\\beta$ = {bound_label(network)}",
        }

    return style


def new_panels(
    results: Record,
    title: str,
    titles: Sequence[str],
    columns: int | None = None,
    *,
    bands: str = "",
    errors: str | None = None,
) -> tuple["Figure", list["Axes"]]:
    """Returns a figure with panels of one vertical axis, and the panels.

    Args:
      results: the content of results.json.
      title: title of the figure. Lines below say what its bands are.
      titles: titles of the panels.
      columns: panels in a row; None for as many as fit.
      bands: "bands" or "bars" where networks of one seed have errors over the test
        images; networks of several seeds have bands in any case.
      errors: the only line below the title; None for one on data, network and numbers
        of images, and one on bands.
    """
    if errors is None:
        source = (
            f"{results['data']}, {results['train_examples']} training and "
            f"{results['test_examples']} test images; {results['network']}"
        )
        errors = f"{source}\n{_errors(results, bands)}"
    return figures.new_panels(
        f"{title}\n{errors}", titles, columns=columns, sharey=True
    )


def _errors(results: Record, bands: str) -> str:
    """Returns the line on bands; see :func:`new_panels`."""
    if len(results.get("seeds", [0])) > 1:
        counts = _counts(results)
        text = figures.bands("networks", min(counts), max(counts))
    elif bands:
        text = figures.bands("examples", results["test_examples"])
    else:
        text = "one network each, without errors"
    return text.replace("bands", bands or "bands")


def _counts(results: Record) -> list[int]:
    """Returns the numbers of networks that means are over, without those of none."""
    return [
        len(averages.members(network))
        for scheme in results["schemes"].values()
        for network in scheme["networks"].values()
        if averages.members(network)
    ] or [0]


def finish(
    figure: "Figure",
    panels: Sequence["Axes"],
    quantity: str,
    columns: int | None = None,
) -> "Figure":
    """Names the vertical axis at the left panels, and returns the finished figure."""
    for axes in panels:
        place = axes.get_subplotspec()
        if place is not None and place.is_first_col():
            axes.set_ylabel(quantity)
    return figures.finish(figure, panels, columns=columns)
