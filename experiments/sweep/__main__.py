r"""Trains one network for every point of a grid and every seed, and ranks them.

  opnorm sweep --method=data_dependent_snr --directory=runs/sweep_snr \
    --grid=weight=0.3,1,3 --grid=penalty_fraction=0.5,1 --seeds=0,1 \
    --validation_fraction=0.1
  opnorm sweep --preset=roth_cnn7_snr --init_from=runs/standard \
    --grid=roth_snr --directory=runs/roth_snr --launcher=submitit --partition=gpu \
    --validation_fraction=0.1

A grid is field=value,value,... for a field of the configuration (values with commas in
them are separated by semicolons), step_ratio=... for the attack's step in multiples of
epsilon / num_steps, or the name of a published grid (--list_presets); several grids are
multiplied. Every other flag of the configuration holds for all points.

Each point is a run in a directory of its own, which says how far the run is. Called
again, the sweep leaves out what has ended and continues what has begun. With
--launcher=submitit it collects the jobs that have ended, and submits only the points
that no job is at work on. A point that cannot be trained is in the table with the
reason; --retry trains it again. Writes table.md and results.json whenever a run ends.

Points are compared on a validation split, which --validation_fraction=0.1 holds out of
the training: clean accuracy, and accuracy against PGA at --epsilons. The test split is
used for the best point alone, once all points have ended. Without a validation split
all points are measured on the test split, and are not ranked: the best of them by the
test split would look better than it is. --keep_best measures the checkpoint of each run
that is the best on the validation split in place of the last one.
"""

import dataclasses
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import flags

from experiments.common import cache, cli, options, records
from experiments.common import tables as common_tables
from experiments.common.tables import Column
from experiments.sweep import grid, launch, tables
from experiments.sweep.points import (
    Measurement,
    Point,
    check,
    describe_state,
    measure_chosen,
    read_result,
)
from opnorm import runs, training

options.define_config_flags(
    training.Config,
    only=tuple(
        field.name
        for field in dataclasses.fields(training.Config)
        if field.name != "seed"
    ),
)
options.define_preset_flags()
_GRID = flags.DEFINE_multi_string(
    "grid", [], "field=value,value,... or a name; may be given several times"
)
_SEEDS = flags.DEFINE_list("seeds", ["0"], "seeds, one network per point each")
_DIRECTORY = flags.DEFINE_string("directory", None, "where to write (required)")
_EPSILONS = flags.DEFINE_list(
    "epsilons",
    None,
    "lengths of the measuring attack, in [0, 1] pixel units; by default --epsilon",
)
_TEST_P = flags.DEFINE_float(
    "test_p", None, "norm of the measuring attack; by default --p"
)
_TEST_STEPS = flags.DEFINE_integer("test_steps", 10, "steps of the measuring attack")
_TEST_EXAMPLES = flags.DEFINE_integer(
    "test_examples",
    1000,
    "test images that the chosen point is measured on, or all without a validation "
    "split",
)
_VALIDATION_EXAMPLES = flags.DEFINE_integer(
    "validation_examples",
    1000,
    "validation images that each network is measured on; 0 for all",
)
_KEEP_BEST = flags.DEFINE_boolean(
    "keep_best",
    False,
    "measure the checkpoint of each run with the largest accuracy on the validation "
    "split, as --keep_best of experiments.train keeps it, instead of the last one",
)
_SORT_BY = flags.DEFINE_string(
    "sort_by",
    None,
    "the accuracy on the validation split that ranks the points: clean, or one of "
    "--epsilons; by default the first of them",
)
cache.define_fresh_flag()
_RETRY = flags.DEFINE_boolean(
    "retry", False, "train failed points again, and submit points again despite jobs"
)
_DRY_RUN = flags.DEFINE_boolean("dry_run", False, "print the points and do nothing")
_DOWNLOAD = options.define_download_flag()
_LAUNCHER = flags.DEFINE_enum(
    "launcher",
    "local",
    ["local", "submitit"],
    "one after the other in this process, or as jobs of a cluster",
)
_CLUSTER = flags.DEFINE_enum(
    "cluster",
    "slurm",
    ["slurm", "local", "debug"],
    "where submitit runs jobs: SLURM, processes on this machine, or this process",
)
_PARTITION = flags.DEFINE_string("partition", None, "partition of SLURM")
_GPUS = flags.DEFINE_integer("gpus", 1, "GPUs of each job", lower_bound=0)
_CPUS = flags.DEFINE_integer("cpus", 8, "cores of each job", lower_bound=1)
_HOURS = flags.DEFINE_float("hours", 24.0, "time limit of each job")
_JOBS_AT_ONCE = flags.DEFINE_integer(
    "jobs_at_once", None, "jobs that SLURM runs at the same time", lower_bound=1
)
_WAIT = flags.DEFINE_boolean(
    "wait", True, "wait for the jobs of submitit, and collect each when it ends"
)


def main() -> None:
    """Runs what has not ended, writes and prints the table."""
    if not _DIRECTORY.value:
        raise ValueError("directory is not given; it is the directory to write to.")
    directory = Path(_DIRECTORY.value).absolute()
    base = options.config_from_flags(training.Config)
    seeds = options.parse_integers("seeds", _SEEDS.value)
    axes = grid.parse(_GRID.value, base)
    options.check_each_once("seeds", seeds)
    points = grid.points(directory, base, axes, seeds)
    measurement = _read_measurement(base)
    column = _read_sort_by(measurement)
    for point in points:
        check(point)
    if _DRY_RUN.value:
        state = Column("state", lambda row: describe_state(row["point"], measurement))
        rows = [{"run": point.name, "point": point} for point in points]
        print(common_tables.table(rows, [Column("run", "run"), state]))
        return
    run = runs.RunDirectory.create(
        directory,
        dataclasses.asdict(base),
        defaults=dataclasses.asdict(training.Config()),
    )
    cli.hold(run)
    if column is None:
        print(tables.UNRANKED, file=sys.stderr)
    notes: dict[str, str] = {}
    table = tables.write(run, points, measurement, column, notes)
    for point, note in _launch(directory, points, measurement):
        if note is not None:
            notes[point.name] = note
        table = tables.write(run, points, measurement, column, notes)
    chosen = tables.choose(points, measurement, column)
    if chosen:
        tests = {
            point.name: measure_chosen(
                point, measurement, _DOWNLOAD.value, fresh=flags.FLAGS.fresh
            )
            for point in chosen
        }
        table = tables.write(run, points, measurement, column, notes, tests)
    records.report(run, table)


def _launch(
    directory: Path, points: Sequence[Point], measurement: Measurement
) -> Iterator[tuple[Point, str | None]]:
    """Launches the points that have no result, and yields each when it has ended."""
    waiting = []
    for point in points:
        found = read_result(point, measurement, warn=True)
        failed = found is not None and found["status"] == "failed"
        if found is None or flags.FLAGS.fresh or (failed and _RETRY.value):
            waiting.append(point)
    if len(waiting) < len(points):
        count = f"{len(points) - len(waiting)} of {len(points)} points"
        print(f"{count} were measured earlier", file=sys.stderr)
    if _LAUNCHER.value == "local":
        for point in waiting:
            state = describe_state(point, measurement)
            if state.startswith("submitted") and not _RETRY.value:
                raise ValueError(
                    f"{point.name} was {state}; collect it with --launcher=submitit, "
                    "or take it over with --retry once no job is at work on it."
                )
        return launch.launch_here(waiting, measurement, download=_DOWNLOAD.value)
    return launch.launch_jobs(
        waiting,
        measurement,
        download=_DOWNLOAD.value,
        cluster=launch.Cluster(
            _CLUSTER.value,
            _PARTITION.value,
            _GPUS.value,
            _CPUS.value,
            _HOURS.value,
            _JOBS_AT_ONCE.value,
        ),
        folder=directory / "jobs",
        wait=_WAIT.value,
        retry=_RETRY.value,
    )


def _read_measurement(base: training.Config) -> Measurement:
    epsilons: Sequence[float] = (training.in_pixels(base).epsilon,)
    if _EPSILONS.value is not None:
        epsilons = options.parse_floats("epsilons", _EPSILONS.value)
    if not epsilons or not all(0 < e < math.inf for e in epsilons):
        raise ValueError(f"epsilons is {epsilons}; each must be positive and finite.")
    p = base.p if _TEST_P.value is None else _TEST_P.value
    if not p >= 1:
        raise ValueError(f"test_p is {p}; it must be in [1, inf].")
    options.check_at_least(1, _TEST_EXAMPLES, _TEST_STEPS)
    options.check_at_least(0, _VALIDATION_EXAMPLES)
    if _KEEP_BEST.value and not base.validation_fraction:
        raise ValueError("keep_best is True; it needs --validation_fraction.")
    if not 0 < _HOURS.value < math.inf:
        raise ValueError(f"hours is {_HOURS.value}; it must be positive and finite.")
    return Measurement(
        p,
        tuple(sorted(set(epsilons))),
        _TEST_STEPS.value,
        _TEST_EXAMPLES.value,
        _VALIDATION_EXAMPLES.value if base.validation_fraction else None,
        "best" if _KEEP_BEST.value else "last",
    )


def _read_sort_by(measurement: Measurement) -> int | None:
    """The place of the accuracy that ranks the points, 0 for clean; None for none."""
    name = _SORT_BY.value
    if name is not None and measurement.split == "test":
        raise ValueError(
            f"sort_by is {name!r}; points are ranked on a validation split, which "
            "--validation_fraction=0.1 holds out of the training."
        )
    if measurement.split == "test":
        return None
    if name is None:
        return 1
    names = ["clean", *(f"{epsilon:g}" for epsilon in measurement.epsilons)]
    if name not in names:
        raise ValueError(f"sort_by is {name!r}; it may be {', '.join(names)}.")
    return names.index(name)


if __name__ == "__main__":
    cli.run(main)
