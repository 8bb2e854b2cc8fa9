"""Scales, ticks and labels of the axes of figures, so that labels never collide."""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The unit of lengths unless another one is given.
PIXELS = "pixels in [0, 1]"
# Decades that are shown on either side of zero, where some values are negative.
_SIGNED_DECADES = 2


def label_lengths(axes: "Axes", norm: str, unit: str = PIXELS) -> None:
    """Labels a horizontal axis of lengths; Linf lengths of pixels are in 1/255.

    Args:
      axes: the panel, with its curves and limits.
      norm: name of the norm, such as "Linf".
      unit: unit of the lengths.
    """
    if norm == "Linf" and unit == PIXELS:
        unit = "in 1/255"
        last = float(axes.get_xlim()[1])
        axes.xaxis.set_major_formatter(lambda x, _: f"{255 * x:.3g}")
        if 255 * last >= 2:
            step = next((s for s in (1, 2, 4, 8) if 255 * last <= 9 * s), 32)
            levels = range(0, math.floor(255 * last + 1e-6) + 1, step)
            axes.set_xticks([level / 255 for level in levels])
    axes.set_xlabel(f"{norm} length of the perturbation, $\\epsilon$ ({unit})")


def log_ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Returns ticks of a logarithmic axis: at least two, where it is not a point.

    Args:
      low: lower end, above 0.
      high: upper end.
      most: the largest number of ticks.
    """
    from matplotlib import ticker

    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    stride = max(1, -(-(last - first + 1) // most))
    decades = [10.0**power for power in range(first, last + 1, stride)]
    finer = [s * 10.0**power for power in range(first, last + 1) for s in (1, 2, 5)]
    even = ticker.MaxNLocator(4).tick_values(low, high)
    for ticks in (decades, finer, even):
        # The ends may be off by rounding.
        inside = [t for t in ticks if low / 1.0001 <= t <= 1.0001 * high]
        if 3 <= len(inside) <= most:
            break
    return [float(tick) for tick in inside]


def scale_log(axes: "Axes", low: float, high: float) -> None:
    """Makes the horizontal axis logarithmic, with labels that do not run together."""
    axes.set_xscale("log")
    axes.set(xlim=(low, high), xticks=log_ticks(low, high, most=6))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.minorticks_off()


def scale_asinh(axes: "Axes", width: float, low: float, high: float) -> None:
    """Makes the horizontal axis logarithmic on both sides of zero.

    Args:
      axes: the panel.
      width: half the width of the part that is linear.
      low: left end.
      high: right end.
    """
    axes.set_xscale("asinh", linear_width=width)
    axes.set(xticks=asinh_ticks(width, low, high), xlim=(low, high))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.minorticks_off()


def asinh_ticks(width: float, low: float, high: float, most: int = 7) -> list[float]:
    """Returns powers of ten of both signs and zero, as far apart as labels need.

    Args:
      width: half the width of the part of the axis that is linear.
      low: lower end, at most 0.
      high: upper end, at least 0.
      most: the number of labels that the axis has room for.
    """
    span = math.asinh(high / width) - math.asinh(low / width)
    largest = max(width, abs(low), abs(high))
    # From the ends inwards, since these labels say how far the axis goes.
    powers = range(math.floor(math.log10(largest)), round(math.log10(width)) - 2, -1)
    kept = [0.0] if low <= 0 <= high else []
    for tick in (sign * 10.0**power for power in powers for sign in (1, -1)):
        places = [math.asinh(other / width) for other in kept]
        apart = min((abs(math.asinh(tick / width) - p) for p in places), default=span)
        if low <= tick <= high and apart >= span / most:
            kept.append(tick)
    return sorted(kept)


def scale_values(axes: "Axes", low: float, high: float, decades: int = 6) -> None:
    """Makes the horizontal axis logarithmic, on both sides of zero where need be.

    Args:
      axes: the panel.
      low: smallest value; where it is negative, two decades of either sign are shown.
      high: largest value.
      decades: decades below the largest value that are shown at most.
    """
    if low < 0:
        scale_asinh(axes, max(high, -low) / 10**_SIGNED_DECADES, low, max(high, 0.0))
    elif high > 0:
        scale_log(axes, max(low, high / 10**decades) / 1.2, 1.2 * high)


def label_log(axes: "Axes") -> None:
    """Gives a logarithmic vertical axis ticks that are read at once."""
    low, high = axes.get_ylim()
    axes.set_yticks(log_ticks(low, high))
    if low > 1e-4 and high < 1e5:
        axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.minorticks_off()
    axes.set_ylim(low, high)
