"""The tables of the roofline."""

from experiments.common import tables
from experiments.common.records import Record
from experiments.common.tables import Column

_TERA = tables.number("{:.2f}", times=1e-12)
_GIGA = tables.number("{:.1f}", times=1e-9)
_MILLISECONDS = Column("roofline ms", "seconds", tables.number("{:.2f}", times=1e3))
_MOVED = Column("GB moved", "bytes", _GIGA)
_STEPS = (
    Column("step", "name"),
    Column("TFLOP", "flops", _TERA),
    _MOVED,
    Column("kernels", "kernels"),
    Column("memory, GB", "memory_bytes", _GIGA),
    _MILLISECONDS,
    Column("of the rate", "fraction", tables.percent("{:.0f}")),
)


def text(results: Record, largest: int) -> str:
    """Returns the limits of each step, and its kinds of kernels.

    Args:
      results: the content of roofline.json.
      largest: how many kinds to list for each step, the slowest.
    """
    steps = results["steps"]
    blocks = [
        f"{results['chip']['name']}, {results['rate'] / 1e12:g} TFLOP/s, "
        f"{results['bandwidth'] / 1e12:g} TB/s: computed from the compiled programs, "
        "not measured.",
        tables.table(tables.named(steps), _STEPS),
    ]
    for title, step in steps.items():
        kinds = tables.named(step["kinds"])[:largest]
        columns = (
            Column(title, "name"),
            Column("kernels", "kernels"),
            Column("TFLOP", "flops", _TERA),
            _MOVED,
            _MILLISECONDS,
        )
        if kinds:
            blocks.append(tables.table(kinds, columns))
    return "\n\n".join(blocks)
