"""The figure of how costs grow."""

from collections.abc import Iterator

from experiments.benchmark import machine
from experiments.common import figures, scales
from experiments.common.records import Record


def draw(results: Record) -> Iterator[figures.Drawing]:
    """Draws times against sizes, on logarithmic axes.

    Args:
      results: content of benchmark.json.

    Yields:
      "scaling", where it was measured.
    """
    if "scaling" not in results:
        return
    axes_of = results["scaling"]
    figure, panels = figures.new_panels(
        "Time, as a multiple of that at the smallest size; medians, without errors\n"
        + machine.line(results),
        [found["title"] for found in axes_of.values()],
    )
    names = [name for found in axes_of.values() for name in found["seconds"]]
    styles = figures.styles(list(dict.fromkeys(names)))
    for axes, found in zip(panels, axes_of.values(), strict=True):
        sizes = found["sizes"]
        for name, seconds in found["seconds"].items():
            axes.plot(sizes, [s / seconds[0] for s in seconds], **styles[name])
        linear = [size / sizes[0] for size in sizes]
        axes.plot(
            sizes, linear, "--", label="proportional", color=figures.GREY, linewidth=1
        )
        axes.set_yscale("log")
        scales.scale_log(axes, sizes[0], sizes[-1])
        axes.set(xlabel=found["title"], ylabel="time / time at the smallest size")
    yield "scaling", figures.finish(figure, panels, columns=2)
