"""The table of a sweep over a choice in training."""

from collections.abc import Sequence

from experiments.common import tables
from experiments.common.records import Record
from experiments.common.tables import Column
from experiments.interpolation.figures import errors

# The title of the column of values, by sweep.
TITLES = {
    "step_size": "training step x num_steps / eps",
    "mix": "mix (0 AT, 1 SNR)",
}


def make_table(results: Record, seconds: Sequence[float | None] | None = None) -> str:
    """Returns the table, with the values of all seeds side by side.

    Args:
      results: the content of results.json.
      seconds: training time of each value; None where it is not known, which is the
        case for results that were read from the file.
    """
    # Earlier versions gave errors over the images for several seeds, too.
    says = "over_networks" in results["points"][0]
    over = f" over {errors(results)}" if says else ""
    columns = (
        Column(TITLES[results["sweep"]], "value", tables.number("{:g}")),
        Column("clean", ("seeds", "clean_accuracy"), tables.percents()),
        Column(
            f"PGA-{results['flags']['test_steps']}, eps {results['epsilon']:g}",
            lambda row: [each[1] for each in row["seeds"]["accuracy"]],
            tables.percents(),
        ),
        Column(
            f"standard error{over}",
            lambda row: [row[n]["standard_error"] for n in ("clean", "adversarial")],
            tables.percents(),
        ),
        Column("sigma(J)", ("seeds", "sigma"), tables.numbers()),
        Column("alignment with v1", ("seeds", "alignment"), tables.numbers()),
        Column("training time", "seconds", tables.number("{:.0f} s")),
    )
    rows = [
        {**point, "seconds": taken}
        for point, taken in zip(
            results["points"], seconds or [None] * len(results["points"]), strict=True
        )
    ]
    return tables.table(rows, columns)
