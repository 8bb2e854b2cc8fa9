"""experiments: the table of a sweep."""

import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.common import cli, measure
from experiments.sweep import launch
from opnorm import runs

_LONGEST_REASON = 200


def text(value: Any) -> str:
    """A value of a grid as tables and directories show it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def write(
    run: runs.RunDirectory,
    points: Sequence[launch.Point],
    measurement: launch.Measurement,
    column: int,
    notes: Mapping[str, str],
) -> str:
    """Writes results.json and table.md, and returns the table.

    Args:
      run: the sweep's directory.
      points: all of them; seeds of one point of the grid follow each other.
      measurement: how they were measured.
      column: what the best is best at: 0 for clean accuracy, then the epsilons.
      notes: of runs without a result, by name.
    """
    norm = measure.norm_name(measurement.p)
    columns = ["clean"] + [
        f"{norm} PGA-{measurement.num_steps}, eps {epsilon:g}"
        for epsilon in measurement.epsilons
    ]
    groups: dict[tuple[str, ...], list[launch.Point]] = {}
    for point in points:
        key = tuple(map(text, point.axes.values()))
        groups.setdefault(key, []).append(point)
    entries = [_entry(group, measurement, columns, notes) for group in groups.values()]
    entries.sort(key=lambda entry: -_sort_value(entry, columns[column]))
    rows = [
        {
            **{name: text(value) for name, value in entry["point"].items()},
            **{name: _percent(entry["accuracy"].get(name)) for name in columns},
            "runs": entry["state"],
        }
        for entry in entries
    ]
    number = sum(len(group) for group in groups.values())
    ended = sum(entry["ended"] for entry in entries)
    seeds = len(next(iter(groups.values())))
    table = (
        f"{cli.table(rows)}\n\n{ended} of {number} runs have ended; best first by "
        f"{columns[column]}; mean{' ± standard deviation' if seeds > 1 else ''} over "
        f"{seeds} seed{'s' if seeds > 1 else ''}.\n"
    )
    run.write_text("table.md", table)
    run.write_json(
        "results.json",
        {
            "sorted_by": columns[column],
            "measurement": measurement._asdict(),
            "base": run.flags(),
            "environment": runs.environment(),
            "git_revision": runs.git_revision(),
            "command": sys.argv,
            "points": entries,
        },
    )
    return table


def _entry(
    group: Sequence[launch.Point],
    measurement: launch.Measurement,
    columns: Sequence[str],
    notes: Mapping[str, str],
) -> dict[str, Any]:
    """One point of the grid: its seeds together."""
    results = {p.name: launch.read_result(p, measurement) for p in group}
    found = [r for r in results.values() if r is not None and r["status"] == "done"]
    failed = [r for r in results.values() if r is not None and r["status"] == "failed"]
    accuracy = {}
    for place, column in enumerate(columns):
        means = [[r["clean"], *r["attacked"]][place]["mean"] for r in found]
        if means:
            several = len(means) > 1
            accuracy[column] = {
                "mean": statistics.fmean(means),
                "standard_deviation": statistics.stdev(means) if several else None,
                "seeds": means,
            }
    state = [f"{len(found)} of {len(group)} done"]
    if failed:
        state.append(f"{len(failed)} failed: {_cell(failed[0]['reason'])}")
    state += [notes[p.name] for p in group if p.name in notes]
    return {
        "point": group[0].axes,
        "accuracy": accuracy,
        "state": "; ".join(state),
        "ended": len(found) + len(failed),
        "runs": results,
    }


def _sort_value(entry: Mapping[str, Any], column: str) -> float:
    return entry["accuracy"].get(column, {"mean": -1.0})["mean"]


def _percent(accuracy: Mapping[str, Any] | None) -> str:
    if accuracy is None:
        return ""
    spread = accuracy["standard_deviation"]
    spread = "" if spread is None else f" ± {100 * spread:.1f}"
    return f"{100 * accuracy['mean']:.1f}{spread} %"


def _cell(reason: str) -> str:
    """Text that does not end a table's cell."""
    return reason.replace("|", "/")[:_LONGEST_REASON]
