"""The table of attacks in several libraries."""

from collections.abc import Sequence

from experiments.common import tables
from experiments.common.records import Record
from experiments.common.tables import Column

_FRACTION = tables.number("{:.1%}")
_DISTANCE = tables.number("{:.4g}")
_COLUMNS = (
    Column("attack", "attack"),
    Column("library", "library"),
    Column("accuracy", "accuracy", _FRACTION),
    Column("difference", "difference", tables.number("{:+.1f}")),
    Column("found", "found", _FRACTION),
    Column("mean distance", "mean_distance", _DISTANCE),
    Column("median", "median_distance", _DISTANCE),
    Column("images/s", "examples_per_second", tables.number("{:.1f}")),
    Column("opnorm is faster by", "times_opnorm", tables.number("{:.2f}x")),
)


def text(attacks: Sequence[Record]) -> str:
    """Returns a line for each library of each attack in "rows" of the results."""
    lines = []
    for attack in attacks:
        title = f"{attack['attack']}, eps {attack['epsilon']:.3g}"
        ours = attack["found"]["opnorm"]["accuracy"]
        for line in tables.named(attack["found"], "library"):
            difference = 100 * ours - 100 * line["accuracy"]
            lines.append({"attack": title, "difference": difference, **line})
    return tables.table(lines, _COLUMNS)
