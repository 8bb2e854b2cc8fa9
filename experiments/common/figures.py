"""The parts that figures share, such as curves with bands and panels with one legend.

Example::

  def draw(results):
      figure, panels = figures.new_panels("Title", ("left", "right"))
      for axes in panels:
          figures.curves(axes, {"standard": (x, {"mean": m, "standard_error": e})})
          axes.set(xlabel="length", ylabel="accuracy", ylim=(0, None))
      yield "accuracy", figures.finish(figure, panels)

  figures.save(run, draw(results))

A function that draws writes nothing: it yields names and figures, which :func:`save`
writes and :func:`inline_svg` makes a part of a page. The legend is below the panels,
where it hides no curve.

Colours follow Okabe & Ito's palette, which colour-blind readers can tell apart; every
method keeps its colour, marker and line in all figures, so that figures can also be
read without colours. Matplotlib is imported when a figure is made.
"""

import io
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.common import cli, records, scales
from opnorm import analysis, runs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Figures are drawn at the end; a command without matplotlib must not get that far.
cli.require("matplotlib", extra="figures")

# Keyword arguments of matplotlib's ``plot``.
Style = dict[str, Any]
# The name of a figure's file, without the suffix, and the figure.
Drawing = tuple[str, "Figure"]
FORMATS = ("png", "svg")

UNTRAINED = "untrained"
_AT_PRESET = re.compile(r"\b\w+_at_(l2|linf)\b")
BLACK = "#000000"
# Lines that are no measurements.
GREY = "#808080"
_GRID = "#e6e6e6"
LABELS = {
    "best known": "nearest point of all attacks",
    "standard": "standard",
    "adversarial": "adversarial training",
    "adversarial_only": "adversarial training (adversarial only)",
    "data_dependent_snr": "data-dependent SNR",
    "data_dependent_onr": "data-dependent ONR",
    "global_snr": "global SNR",
    "interpolated": "adversarial training and SNR, interpolated",
    "gradient_regularization": "input-gradient regularisation",
    "wrm": "WRM",
}
_ATTACKS = {
    "auto_attack": "AutoAttack",
    "carlini_wagner": "Carlini & Wagner",
    "deepfool": "DeepFool",
    "decoupled_direction": "DDN",
    "fast_minimum_norm": "FMN",
    "log_barrier": "LogBarrier",
}
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("s", "^", "D", "P", "o", "v")
# Colour, marker and line of each method.
STYLES = {
    "best known": ("#000000", "x", ":"),
    "standard": ("#000000", "o", "-"),
    "adversarial": ("#0072B2", "s", "-"),
    "adversarial_only": ("#56B4E9", "v", "-"),
    "data_dependent_snr": ("#D55E00", "^", "-"),
    "data_dependent_onr": ("#CC79A7", "P", "-"),
    "global_snr": ("#009E73", "D", "--"),
    "interpolated": ("#E69F00", "o", "-."),
    "gradient_regularization": ("#8B5A2B", "p", "-."),
    "wrm": ("#CC79A7", "P", "--"),
}
# Marker and line of the second and of further networks of one method; the first has
# those of the method.
_VARIANTS = (("", ""), ("x", ":"), ("+", "-."), ("*", "--"))
# Curves with more points than this have a marker at some only, this part of the
# panel's diagonal apart.
_MARKED_POINTS = 12
_MARKER_DISTANCE = 0.09
# Sizes of text in points, and inches that a character takes, on the average.
_LOOK = {
    "font.size": 8.0,
    "axes.titlesize": 9.0,
    "axes.labelsize": 9.0,
    "lines.linewidth": 1.4,
    # Text of an SVG stays text, and its ids are the same in every run.
    "svg.fonttype": "none",
    "svg.hashsalt": "opnorm",
}
# Text that no line break parts: formulas and units.
_WHOLE = re.compile(r"\$[^$]*\$|\(pixels in \[0, 1\]\)|\([\w /]+\)")
_CHARACTER = 0.07
# Width and height of a panel in inches.
_PANEL = (3.0, 2.4)
# Neutral colours of a figure and the CSS variables of a page that replace them.
_NEUTRAL = {
    "#000000": "var(--figure-ink, #000000)",
    "#ffffff": "var(--figure-paper, #ffffff)",
    "#808080": "var(--figure-muted, #808080)",
    "#e6e6e6": "var(--figure-grid, #e6e6e6)",
}


def label(name: str) -> str:
    """Returns the reader's name of a network: a method, perhaps with its run behind."""
    method, *rest = name.split(" (", 1)
    # A preset of adversarial training is named for its norm.
    rest = [_AT_PRESET.sub(lambda found: found[1].capitalize(), text) for text in rest]
    return " (".join([LABELS.get(method, method), *rest])


def attack_label(text: str) -> str:
    """Returns the reader's name of an attack of a flag, "pga num_steps=5"."""
    name, *options = text.split()
    # Short names are abbreviations, as in "PGA" and "APGD CE".
    words = " ".join(w.upper() if len(w) < 5 else w for w in name.split("_"))
    given = [option.replace("_", " ").replace("=", " ") for option in options]
    return ", ".join([_ATTACKS.get(name, words), *given])


def styles(names: Sequence[str]) -> dict[str, Style]:
    """Returns the style of each network or attack, the same in all panels.

    Methods have styles of their own, also with a text in parentheses behind them:
    several of one method share its colour and differ in marker and line. Other names
    take colours that no method among them has.
    """
    found = _method_styles(names)
    taken = {color for color, _, _ in found.values()}
    pairs = list(zip(PALETTE, MARKERS, strict=True))
    free = [pair for pair in pairs if pair[0] not in taken] or pairs
    others = [name for name in names if name not in found]
    for place, name in enumerate(others):
        found[name] = (*free[place % len(free)], "-")
        if name.startswith(UNTRAINED):
            found[name] = (GREY, "x", "-")
    return {
        name: {
            "color": color,
            "marker": marker,
            "markersize": 4,
            "linestyle": line,
            "label": label(name),
        }
        for name, (color, marker, line) in found.items()
    }


def _method_styles(names: Sequence[str]) -> dict[str, tuple[str, str, str]]:
    """Returns the styles of names that begin with a method."""
    found: dict[str, tuple[str, str, str]] = {}
    seen: dict[str, int] = {}
    for name in names:
        method = name.split(" (", 1)[0]
        if method not in STYLES:
            continue
        place = seen.setdefault(method, 0)
        seen[method] += 1
        if place >= len(_VARIANTS):
            continue
        color, marker, line = STYLES[method]
        found[name] = (color, marker, line)
        if place:
            found[name] = (color, *_VARIANTS[place])
    return found


def curve(
    axes: "Axes", x: Any, found: Mapping[str, Any], *, times: float = 1, **style: Any
) -> None:
    """Draws a mean, with its standard error as a band.

    Args:
      axes: the panel.
      x: ``(N,)``.
      found: "mean" and "standard_error", ``(N,)``; an error of None or NaN has no band.
      times: factor in front of both; 100 for percents.
      **style: as :func:`styles` returns it, with a "color".
    """
    x = np.asarray(x)
    mean, error = (
        times * np.asarray(found[part], float) for part in ("mean", "standard_error")
    )
    if len(x) == 1:
        known = np.where(np.isnan(error), 0.0, error)
        axes.errorbar(x, mean, known, capsize=3, **style)
        return
    every = _MARKER_DISTANCE if len(x) > _MARKED_POINTS else None
    axes.plot(x, mean, **{"markevery": every, **style})
    axes.fill_between(
        x, mean - error, mean + error, color=style["color"], alpha=0.15, lw=0
    )


def distribution(
    axes: "Axes", networks: Sequence[Any], *, times: float = 1, **style: Any
) -> None:
    """Draws the percentage of values up to each value, as steps from 0 on.

    Args:
      axes: the panel.
      networks: the values of each network, ``(N,)`` and at least 0. The steps are the
        mean over the networks, with its standard error as a band where they are
        several. An infinite value is counted, and is never reached.
      times: factor in front of the values.
      **style: keyword arguments of ``plot``, with a "color".
    """
    members = [np.sort(np.asarray(values, float)) for values in networks]
    pooled = np.concatenate(members)
    x = np.unique(np.append(pooled[np.isfinite(pooled)], 0.0))
    reached = [
        100 * np.searchsorted(values, x, side="right") / len(values)
        for values in members
    ]
    found = analysis.average(np.array(reached))
    axes.step(times * x, found.mean, where="post", **style)
    if len(members) > 1:
        axes.fill_between(
            times * x,
            found.mean - found.standard_error,
            found.mean + found.standard_error,
            step="post",
            color=style["color"],
            alpha=0.15,
            lw=0,
        )


def curves(
    axes: "Axes",
    drawn: Mapping[str, tuple[Any, Mapping[str, Any]]],
    *,
    times: float = 1,
    names: Sequence[str] | None = None,
) -> None:
    """Draws (x, mean with error) of each network or attack by name, in its style.

    Args:
      axes: the panel.
      drawn: for each name x, and the mean with its error as for :func:`curve`.
      times: as for :func:`curve`.
      names: the names of all panels, where some are not in this one; their order
        decides the styles.
    """
    styled = styles(list(drawn) if names is None else names)
    for name, (x, found) in drawn.items():
        curve(axes, x, found, times=times, **styled[name])


def by_rank(found: Mapping[str, Any]) -> tuple[np.ndarray, Mapping[str, Any]]:
    """Returns the ranks 1, 2, ... of values, and the values."""
    return np.arange(1, len(found["mean"]) + 1), found


def bands(over: str, count: int | None, most: int | None = None) -> str:
    """Returns the line of a title that says what the bands of a figure are.

    Args:
      over: "networks" that differ in the seed, or "examples", the images of one
        network.
      count: their number, for each curve; None where panels have different images.
      most: the largest number, where it differs between the curves.
    """
    if over == "examples":
        images = ("the", "images of the panel") if count is None else (count, "images")
        return f"one network each; bands: {records.error_over(*images)}"
    number = f"{count}" if most in (None, count) else f"{count} to {most}"
    return f"bands: {records.error_over(number, 'networks each')}"


def source_line(results: Mapping[str, Any], count: str = "examples") -> str:
    """Returns the data that results are of, and the number of images under a key."""
    return f"{results['data']}, {results[count]} images"


def draw_accuracy(
    accuracies: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    training_epsilon: float | None,
    norm: str,
    title: str,
    rate: str = "accuracy",
    unit: str = scales.PIXELS,
) -> "Figure":
    """Draws accuracy against epsilon, one curve per method, with standard errors.

    Args:
      accuracies: by method: "epsilon", "mean" and "standard_error", fractions.
      training_epsilon: drawn as a dashed line, or None.
      norm: name of the norm on the axis, such as "L2".
      title: the measurement and its data.
      rate: name of the fractions.
      unit: unit of the lengths.
    """
    figure, (axes,) = new_panels(title, ("",))
    drawn = {name: (found["epsilon"], found) for name, found in accuracies.items()}
    curves(axes, drawn, times=100)
    if training_epsilon is not None:
        mark_training(axes, training_epsilon)
    scales.label_lengths(axes, norm, unit)
    axes.set(ylabel=f"{rate} (%)", ylim=(0, None))
    return finish(figure, [axes])


def draw_singular_values(
    spectra: Mapping[str, Mapping[str, Sequence[float]]], *, title: str
) -> "Figure":
    """Draws the mean singular values of the Jacobian by rank, one curve per method.

    Args:
      spectra: by method: "mean" and "standard_error", one number per rank.
      title: the measurement and its data.
    """
    figure, (axes,) = new_panels(title, ("",))
    curves(axes, {name: by_rank(found) for name, found in spectra.items()})
    most = max(len(found["mean"]) for found in spectra.values())
    axes.set(
        yscale="log",
        xticks=range(1, most + 1, max(1, most // 10)),
        xlabel="rank",
        ylabel="singular value of the logits' Jacobian (logits per pixel unit)",
    )
    return finish(figure, [axes])


def mark_training(axes: "Axes", *epsilons: float) -> None:
    """Draws each epsilon that networks were trained with as a dashed line."""
    for epsilon in epsilons:
        mark(axes, epsilon, "$\\epsilon$ of the training")


def mark(axes: "Axes", place: float, text: str, line: str = "--") -> None:
    """Draws a line at a place of the horizontal axis, which the legend explains."""
    axes.axvline(place, color=GREY, linestyle=line, linewidth=1, zorder=1, label=text)


def pyplot() -> Any:
    """Returns matplotlib.pyplot, with a backend that needs no screen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def new_panels(
    title: str,
    titles: Sequence[str],
    *,
    columns: int | None = None,
    sharey: bool | str = False,
) -> tuple["Figure", list["Axes"]]:
    """Returns a figure of panels in rows, and the panels.

    Args:
      title: title of the figure; long lines are broken.
      titles: titles of the panels, which they count.
      columns: panels in a row; None for two by two where they are four, otherwise at
        most three.
      sharey: as in ``matplotlib.pyplot.subplots``: True for one vertical axis, "row"
        for one in each row.
    """
    count = len(titles)
    if columns is None:
        columns = 2 if count == 4 else min(count, 3)
    rows = -(-count // columns)
    width, height = 0.8 + _PANEL[0] * columns, 1.1 + _PANEL[1] * rows
    size = (5.6, 4.2) if count == 1 else (width, height)
    with pyplot().rc_context(_LOOK):
        figure, grid = pyplot().subplots(
            rows,
            columns,
            figsize=size,
            layout="constrained",
            sharey=sharey,
            squeeze=False,
        )
        figure.suptitle(_wrap(title, size[0]), fontsize=9)
        panels = list(grid.flat)
        for axes in panels[count:]:
            axes.set_visible(False)
        for axes, text in zip(panels, titles, strict=False):
            axes.set_title(_wrap(text, 0.9 * size[0] / columns))
            axes.tick_params(labelsize=8)
    return figure, panels[:count]


def _wrap(text: str, inches: float) -> str:
    """Breaks lines of text that are longer than this, never within a formula."""
    most = int(inches / _CHARACTER)
    lines = []
    for line in text.split("\n"):
        held = _WHOLE.sub(lambda found: found[0].replace(" ", "\0"), line)
        # Parts of a sentence stay together where they fit.
        for part in _packed(held.split("; "), most):
            lines += textwrap.wrap(part, most, break_long_words=False) or [""]
    return "\n".join(lines).replace("\0", " ")


def _packed(parts: Sequence[str], most: int) -> list[str]:
    """Joins parts to lines of at most so many characters, as far as possible."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + 2 + len(part) <= most:
            lines[-1] += f"; {part}"
        else:
            lines.append(part)
    return lines


def finish(
    figure: "Figure", panels: Sequence["Axes"], *, columns: int | None = None
) -> "Figure":
    """Gives panels a grid and one legend below them, and returns the figure.

    Args:
      figure: as :func:`new_panels` returns it.
      panels: likewise.
      columns: columns of the legend; None for as many as are likely to fit.
    """
    known: dict[str, Any] = {}
    for axes in panels:
        for handle, text in zip(*axes.get_legend_handles_labels(), strict=True):
            known.setdefault(text, handle)
        axes.grid(color=_GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        # A curve along the end of an axis is beside its line, not below it.
        axes.spines[["left", "bottom"]].set_position(("outward", 3))
        if axes.get_yscale() == "log":
            scales.label_log(axes)
        place = axes.get_subplotspec()
        box = figure.get_size_inches()
        if place is not None:
            rows, across = place.get_gridspec().get_geometry()
            box = box / (across, rows)
        axes.set_xlabel(_wrap(axes.get_xlabel(), 0.85 * box[0]))
        axes.set_ylabel(_wrap(axes.get_ylabel(), 0.75 * box[1]))
    if not known:
        return figure
    # Inches that a label takes at this font size, with its line.
    width = 0.6 + 0.056 * max(map(len, known))
    figure.legend(
        list(known.values()),
        list(known),
        loc="outside lower center",
        ncols=columns or max(1, min(len(known), int(figure.get_figwidth() / width))),
        frameon=False,
        fontsize=8,
    )
    return figure


def save(
    out: runs.RunDirectory, drawings: Iterable[Drawing], suffix: str = "png"
) -> list[Path]:
    """Writes figures and closes them; each is written whole or not at all.

    Args:
      out: the directory.
      drawings: names and figures. Each is drawn after the one before is closed.
      suffix: "png" or "svg".

    Returns:
      The files.
    """
    written = []
    for name, figure in drawings:
        path = out.figure_path(name).with_suffix(f".{suffix}")
        runs.write_whole(path, _encode(figure, suffix))
        written.append(path)
    return written


def inline_svg(figure: "Figure", prefix: str) -> str:
    """Returns a figure as an SVG element of an HTML page, and closes it.

    The background is transparent. Black, white and greys are the CSS variables
    ``--figure-ink``, ``--figure-paper``, ``--figure-muted`` and ``--figure-grid``, so
    that a dark page can set them; without them the figure is as it is on white.

    Args:
      figure: the figure.
      prefix: put before each id, which must be the only one on the page.
    """
    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
    text = _encode(figure, "svg").decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'href="#', f'href="#{prefix}-', text)
    text = text.replace("url(#", f"url(#{prefix}-")
    # A rule for all elements would be one for the page.
    rule = re.search(r"<style[^>]*>\*{([^}]*)}</style>", text)
    held = rule[1] if rule else ""
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    # Text without a colour of its own is black.
    text = text.replace("<svg ", f'<svg style="fill: #000000; {held}" ', 1)
    for color, variable in _NEUTRAL.items():
        text = re.sub(rf"(?<=: ){color}\b", variable, text)
    return text


def _encode(figure: "Figure", suffix: str) -> bytes:
    """Returns the content of a figure's file, and closes the figure."""
    buffer = io.BytesIO()
    # Files of equal figures are equal.
    metadata = {"Date": None} if suffix == "svg" else None
    with pyplot().rc_context(_LOOK):
        figure.savefig(buffer, dpi=160, format=suffix, metadata=metadata)
    pyplot().close(figure)
    return buffer.getvalue()
