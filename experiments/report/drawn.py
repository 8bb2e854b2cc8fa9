"""The figures of results, drawn anew from the file, or else the images beside it."""

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from experiments.common import drawings, figures, run_figures
from experiments.report import entries, search
from experiments.report.blocks import Block, Figure, Note
from experiments.report.search import Found, Run

if TYPE_CHECKING:
    from matplotlib import figure as matplotlib_figure

# The attributes of a drawing that are places, and numbers with many digits in them.
_PLACES = re.compile(r' (?:d|x|y|transform|points|width|height)="[^"<>]*"')
_LONG = re.compile(r"\d+\.\d{3,}")


def of_results(found: Found, anchor: str) -> list[Block]:
    """Returns the figures of results.

    Args:
      found: the file of results.
      anchor: the anchor of its section, which begins the ids of all parts.
    """
    drawn, problem = _draw(drawings.draw(found.results), anchor)
    entry = entries.ENTRIES[found.kind]
    names = {figure.name.removeprefix(f"{anchor}-") for figure in drawn}
    images = []
    for file in sorted(found.file.parent.glob("*.png")):
        if file.stem in names or not entries.fits(entry, file.stem):
            continue
        png = search.read_png(file)
        if png is not None:
            images.append(_image(file.stem, anchor, png))
    parts: list[Block] = [*drawn, *images]
    if problem:
        instead = "; the images beside the file are shown" if images else ""
        parts.append(Note(f"Figures could not be drawn: {problem}{instead}."))
    return parts


def of_run(run: Run, anchor: str) -> list[Block]:
    """Returns the figure of a training."""
    drawn, problem = _draw(
        run_figures.draw_training(run.metrics, run.card["flags"], {}), anchor
    )
    parts: list[Block] = list(drawn)
    if problem:
        parts.append(Note(f"The figure could not be drawn: {problem}."))
    return parts


def _draw(
    made: Iterable[figures.Drawing], anchor: str
) -> tuple[list[Figure], str | None]:
    """Figures as SVG, and the reason why there are no more, if there is one."""
    drawn: list[Figure] = []
    try:
        for name, figure in made:
            # Formulas are written for TeX.
            alt = re.sub(r"[$\\{}]", "", " ".join(_words(figure)))
            svg = _shorten(figures.inline_svg(figure, f"{anchor}-{name}"))
            caption = name.replace("_", " ")
            drawn.append(Figure(f"{anchor}-{name}", caption, alt, svg=svg))
    # A file that somebody else has written may hold anything.
    except Exception as error:
        figures.pyplot().close("all")
        return drawn, describe(error)
    return drawn, None


def _shorten(svg: str) -> str:
    """A drawing with places to the hundredth of a point, which are half as long."""
    return _PLACES.sub(lambda found: _LONG.sub(_rounded, found[0]), svg)


def _rounded(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")


def describe(error: Exception) -> str:
    """Returns an error on one line."""
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _image(stem: str, anchor: str, png: bytes) -> Figure:
    caption = stem.replace("_", " ")
    return Figure(f"{anchor}-{stem}", caption, f"figure: {caption}", png=png)


def _words(figure: "matplotlib_figure.Figure") -> Iterator[str]:
    """Words on a figure, for readers who do not see it."""
    if figure.get_suptitle():
        yield f"{' '.join(figure.get_suptitle().split())}."
    curves: dict[str, None] = {}
    for axes in figure.axes:
        if not axes.get_visible():
            continue
        title = axes.get_title()
        labels = [" ".join(axes.get_ylabel().split()), axes.get_xlabel()]
        shown = " against ".join(label for label in labels if label)
        yield f"{' '.join(title.split())}: {shown}." if title else f"{shown}."
        curves |= dict.fromkeys(axes.get_legend_handles_labels()[1])
    if curves:
        yield f"Curves: {', '.join(curves)}."
