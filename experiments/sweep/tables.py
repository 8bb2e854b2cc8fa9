"""The results of a sweep and their table."""

import statistics
import sys
from collections.abc import Mapping, Sequence

from experiments.common import records, tables
from experiments.common.records import Record
from experiments.common.tables import Column
from experiments.sweep import grid
from experiments.sweep.points import Measurement, Point, columns, read_result
from opnorm import runs

_LONGEST_REASON = 200
_ACCURACY = tables.with_error(
    "{:.1f}",
    times=100,
    unit=" %",
    names=("mean", "standard_deviation"),
    alone=True,
    missing="",
)


def write(
    run: runs.RunDirectory,
    points: Sequence[Point],
    measurement: Measurement,
    column: int,
    notes: Mapping[str, str],
) -> str:
    """Writes results.json and table.md, and returns the table.

    Args:
      run: the sweep's directory.
      points: all points; seeds of one point of the grid follow each other.
      measurement: how the networks were measured.
      column: the accuracy that ranks the points: 0 for clean, then the epsilons.
      notes: the states of runs without a result, by name.
    """
    names = columns(measurement)
    groups: dict[tuple[str, ...], list[Point]] = {}
    for point in points:
        key = tuple(map(grid.text, point.axes.values()))
        groups.setdefault(key, []).append(point)
    entries = [_entry(group, measurement, names, notes) for group in groups.values()]
    unknown = {"mean": -1.0}
    entries.sort(key=lambda each: -each["accuracy"].get(names[column], unknown)["mean"])
    results = {
        "sorted_by": names[column],
        "measurement": measurement._asdict(),
        "base": run.flags(),
        **records.origin(),
        "command": ["python", "-m", "experiments.sweep", *sys.argv[1:]],
        "points": entries,
    }
    table = text(results)
    run.write_text("table.md", table)
    run.write_json("results.json", results)
    return table


def text(results: Record) -> str:
    """Returns the table of results, the best point first."""
    measured = results["measurement"]
    names = columns(Measurement(**{**measured, "p": float(measured["p"])}))
    points = results["points"]
    table = tables.table(
        points,
        [
            *(Column(axis, ("point", axis), grid.text) for axis in points[0]["point"]),
            *(Column(name, ("accuracy", name), _ACCURACY) for name in names),
            Column("runs", "state"),
        ],
    )
    ended = sum(point["ended"] for point in points)
    count = sum(len(point["runs"]) for point in points)
    seeds = len(points[0]["runs"])
    mean, plural = ("mean ± standard deviation", "s") if seeds > 1 else ("mean", "")
    return (
        f"{table}\n\n{ended} of {count} runs have ended; best first by "
        f"{results['sorted_by']}; {mean} over {seeds} seed{plural}.\n"
    )


def _entry(
    group: Sequence[Point],
    measurement: Measurement,
    names: Sequence[str],
    notes: Mapping[str, str],
) -> Record:
    """The results of one point of the grid: its seeds together."""
    results = {p.name: read_result(p, measurement) for p in group}
    found = [r for r in results.values() if r is not None and r["status"] == "done"]
    failed = [r for r in results.values() if r is not None and r["status"] == "failed"]
    accuracy = {}
    for place, name in enumerate(names):
        means = [[r["clean"], *r["attacked"]][place]["mean"] for r in found]
        if means:
            several = len(means) > 1
            accuracy[name] = {
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


def _cell(reason: str) -> str:
    """A text that does not end a cell of the table."""
    return reason.replace("|", "/")[:_LONGEST_REASON]
