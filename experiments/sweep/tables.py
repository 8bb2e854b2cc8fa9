"""The results of a sweep and their table."""

import statistics
import sys
from collections.abc import Mapping, Sequence

from experiments.common import cli, records, tables
from experiments.common.records import Record
from experiments.common.tables import Column
from experiments.sweep import grid
from experiments.sweep.points import Measurement, Point, columns, read_result
from opnorm import runs

UNRANKED = (
    "points are not ranked, since there is no validation split to choose one by "
    "(--validation_fraction=0.1); accuracies are those on the test split"
)
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
    column: int | None,
    notes: Mapping[str, str],
    tests: Mapping[str, Record] | None = None,
) -> str:
    """Writes results.json and table.md, and returns the table.

    Args:
      run: the sweep's directory.
      points: all points; seeds of one point of the grid follow each other.
      measurement: how the networks were measured.
      column: the accuracy that ranks the points: 0 for clean, then the epsilons; None
        leaves them in the order of the grid.
      notes: the states of runs without a result, by name.
      tests: results on the test split of the runs of the chosen point, by name.
    """
    names = columns(measurement)
    entries = _entries(points, measurement, column, notes)
    if tests:
        entries[0]["test"] = _accuracies(list(tests.values()), names)
        entries[0]["test_runs"] = tests
    results = {
        "split": measurement.split,
        "sorted_by": None if column is None else names[column],
        "measurement": measurement._asdict(),
        "base": run.flags(),
        **records.origin(),
        "command": [*cli.call("sweep").split(), *sys.argv[1:]],
        "points": entries,
    }
    table = text(results)
    run.write_text("table.md", table)
    run.write_json("results.json", results)
    return table


def choose(
    points: Sequence[Point], measurement: Measurement, column: int | None
) -> list[Point]:
    """Returns the runs of the best point, once all points have ended.

    Args:
      points: all points.
      measurement: how the networks were measured, on the validation split.
      column: as for :func:`write`; None chooses none.

    Returns:
      The runs that were trained; none while some have not ended.
    """
    if column is None:
        return []
    entries = _entries(points, measurement, column, {})
    if any(entry["ended"] < len(entry["runs"]) for entry in entries):
        return []
    best = entries[0]["runs"]
    return [p for p in points if p.name in best and best[p.name]["status"] == "done"]


def text(results: Record) -> str:
    """Returns the table of results, the best point first."""
    measured = results["measurement"]
    names = columns(Measurement(**{**measured, "p": float(measured["p"])}))
    points = results["points"]
    tested = [name for name in names if "test" in points[0]]
    table = tables.table(
        points,
        [
            *(Column(axis, ("point", axis), grid.text) for axis in points[0]["point"]),
            *(Column(name, ("accuracy", name), _ACCURACY) for name in names),
            *(Column(f"test: {name}", ("test", name), _ACCURACY) for name in tested),
            Column("runs", "state"),
        ],
    )
    ended = sum(point["ended"] for point in points)
    count = sum(len(point["runs"]) for point in points)
    seeds = len(points[0]["runs"])
    mean, plural = ("mean ± standard deviation", "s") if seeds > 1 else ("mean", "")
    order = f"best first by {results['sorted_by']}"
    # Results of earlier versions have no split: points were ranked on the test split.
    if results.get("split") == "validation":
        order += " on the validation split; the chosen point alone on the test split"
    elif "split" in results:
        order = UNRANKED
    return (
        f"{table}\n\n{ended} of {count} runs have ended; {order}; {mean} over {seeds} "
        f"seed{plural}.\n"
    )


def _entries(
    points: Sequence[Point],
    measurement: Measurement,
    column: int | None,
    notes: Mapping[str, str],
) -> list[Record]:
    """The results of each point of the grid, the best one first."""
    names = columns(measurement)
    groups: dict[tuple[str, ...], list[Point]] = {}
    for point in points:
        key = tuple(map(grid.text, point.axes.values()))
        groups.setdefault(key, []).append(point)
    entries = [_entry(group, measurement, names, notes) for group in groups.values()]
    if column is not None:
        name, unknown = names[column], {"mean": -1.0}
        entries.sort(key=lambda each: -each["accuracy"].get(name, unknown)["mean"])
    return entries


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
    state = [f"{len(found)} of {len(group)} done"]
    if failed:
        state.append(f"{len(failed)} failed: {failed[0]['reason'][:_LONGEST_REASON]}")
    state += [notes[p.name] for p in group if p.name in notes]
    return {
        "point": group[0].axes,
        "accuracy": _accuracies(found, names),
        "state": "; ".join(state),
        "ended": len(found) + len(failed),
        "runs": results,
    }


def _accuracies(found: Sequence[Record], names: Sequence[str]) -> Record:
    """Averages the accuracies of runs that differ in the seed, by name."""
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
    return accuracy
