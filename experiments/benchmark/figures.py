"""The figure of how costs grow."""

from experiments.benchmark import machine
from experiments.common import figures
from experiments.common.records import Record
from opnorm import runs


def draw_scaling(run: runs.RunDirectory, results: Record) -> None:
    """Draws times against sizes, on logarithmic axes.

    Args:
      run: directory for scaling.png.
      results: content of benchmark.json.
    """
    axes_of = results["scaling"]
    figure, panels = figures.new_panels(
        "Time, as a multiple of that at the smallest size\n" + machine.line(results),
        [found["title"] for found in axes_of.values()],
    )
    names = [name for found in axes_of.values() for name in found["seconds"]]
    styles = figures.styles(list(dict.fromkeys(names)))
    for axes, found in zip(panels, axes_of.values(), strict=True):
        sizes = found["sizes"]
        for name, seconds in found["seconds"].items():
            axes.plot(sizes, [s / seconds[0] for s in seconds], **styles[name])
        linear = [size / sizes[0] for size in sizes]
        axes.plot(sizes, linear, "--", label="proportional", color="0.6", linewidth=1)
        axes.set_yscale("log")
        figures.scale_log(axes, sizes[0], sizes[-1])
        axes.set(xlabel=found["title"], ylabel="time")
    figures.save_panels(figure, panels, run.figure_path("scaling"), columns=2)
