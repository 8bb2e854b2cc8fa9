r"""Trains one network for every point of a grid and every seed, and ranks them.

  python -m experiments.sweep --method=data_dependent_snr --directory=runs/sweep_snr \
    --grid=weight=0.3,1,3 --grid=penalty_fraction=0.5,1 --seeds=0,1
  python -m experiments.sweep --preset=roth_cnn7_snr --init_from=runs/standard \
    --grid=roth_snr --directory=runs/roth_snr --launcher=submitit --partition=gpu

A grid is field=value,value,... for a field of the configuration (values with commas in
them are separated by semicolons), step_ratio=... for the attack's step in multiples of
epsilon / num_steps, or the name of a published one (--list_presets); several are
multiplied. Every other flag of the configuration holds for all points.

Each point is a run in a directory of its own that says how far it is: called again, the
sweep leaves out what has ended, goes on with what has begun, and with
--launcher=submitit collects jobs that have ended and submits only what no job is at
work on. A point that cannot be trained is in the table with the reason; --retry tries
it again. Networks are measured on the test split: clean accuracy, and accuracy against
PGA at --epsilons. Writes table.md and results.json whenever a run ends.
"""

import dataclasses
import hashlib
import itertools
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments.common import cli, pieces
from experiments.sweep import launch, report
from opnorm import runs, training
from opnorm.training import STEP_RATIO

cli.define_config_flags(
    training.Config,
    only=tuple(
        field.name
        for field in dataclasses.fields(training.Config)
        if field.name != "seed"
    ),
)
cli.define_preset_flags()
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
    "test_examples", 1000, "test pictures that each network is measured on"
)
_SORT_BY = flags.DEFINE_string(
    "sort_by",
    None,
    "what the best point is best at: clean, or one of --epsilons; by default the "
    "first of them",
)
pieces.define_fresh_flag()
_RETRY = flags.DEFINE_boolean(
    "retry", False, "try failed points again, and submit again whatever jobs there are"
)
_DRY_RUN = flags.DEFINE_boolean("dry_run", False, "print the points and do nothing")
_DOWNLOAD = flags.DEFINE_boolean("download", False, "download the data if missing")
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
    "of submitit: SLURM, processes on this machine, or this process",
)
_PARTITION = flags.DEFINE_string("partition", None, "of SLURM")
_GPUS = flags.DEFINE_integer("gpus", 1, "GPUs of each job", lower_bound=0)
_CPUS = flags.DEFINE_integer("cpus", 8, "cores of each job", lower_bound=1)
_HOURS = flags.DEFINE_float("hours", 24.0, "time limit of each job")
_JOBS_AT_ONCE = flags.DEFINE_integer(
    "jobs_at_once", None, "of SLURM: jobs that run at the same time", lower_bound=1
)
_WAIT = flags.DEFINE_boolean(
    "wait", True, "of submitit: wait for the jobs, and collect each when it ends"
)


def main() -> None:
    """Runs what has not ended, writes and prints the table."""
    if not _DIRECTORY.value:
        raise ValueError("directory is not given; it is the directory to write to.")
    directory = Path(_DIRECTORY.value).absolute()
    base = cli.config_from_flags(training.Config)
    points = _points(directory, base, _read_grid(base), _read_seeds())
    measurement = _read_measurement(base)
    column = _read_sort_by(measurement)
    for point in points:
        _check(point)
    if _DRY_RUN.value:
        rows = [
            {
                "run": point.name,
                "state": launch.describe_state(point, measurement),
            }
            for point in points
        ]
        print(cli.table(rows))
        return
    run = runs.RunDirectory.create(
        directory,
        dataclasses.asdict(base),
        defaults=dataclasses.asdict(training.Config()),
    )
    cli.hold(run)
    notes: dict[str, str] = {}
    table = report.write(run, points, measurement, column, notes)
    for point, note in _launch(directory, points, measurement):
        if note is not None:
            notes[point.name] = note
        table = report.write(run, points, measurement, column, notes)
    print(table)
    print(f"written to {run.path}")


def _launch(
    directory: Path,
    points: Sequence[launch.Point],
    measurement: launch.Measurement,
) -> Iterator[tuple[launch.Point, str | None]]:
    waiting = []
    for point in points:
        found = launch.read_result(point, measurement, warn=True)
        failed = found is not None and found["status"] == "failed"
        if found is None or flags.FLAGS.fresh or (failed and _RETRY.value):
            waiting.append(point)
    if len(waiting) < len(points):
        count = f"{len(points) - len(waiting)} of {len(points)} points"
        print(f"{count} were measured earlier", file=sys.stderr)
    if _LAUNCHER.value == "local":
        for point in waiting:
            state = launch.describe_state(point, measurement)
            if state.startswith("submitted") and not _RETRY.value:
                raise ValueError(
                    f"{point.name} was {state}; collect it with --launcher=submitit, "
                    "or take it over with --retry once no job is at work on it."
                )
        return launch.launch_here(waiting, measurement, download=_DOWNLOAD.value)
    cluster = launch.Cluster(
        _CLUSTER.value,
        _PARTITION.value,
        _GPUS.value,
        _CPUS.value,
        _HOURS.value,
        _JOBS_AT_ONCE.value,
    )
    return launch.launch_jobs(
        waiting,
        measurement,
        download=_DOWNLOAD.value,
        cluster=cluster,
        folder=directory / "jobs",
        wait=_WAIT.value,
        retry=_RETRY.value,
    )


def _read_grid(base: training.Config) -> dict[str, tuple[Any, ...]]:
    """The values of each axis, in the order of the configuration's fields."""
    fields = {field.name: field for field in dataclasses.fields(base)}
    axes: dict[str, tuple[Any, ...]] = {}
    for text in _GRID.value:
        name, equals, values = text.partition("=")
        if equals:
            found: Mapping[str, tuple[Any, ...]] = {
                name: _read_values(name, values, fields)
            }
        else:
            found = training.get_grid(name).values
        for axis, items in found.items():
            if axis in axes:
                raise ValueError(f"grid has {axis} more than once.")
            shown = [report.text(item) for item in items]
            if len(set(shown)) < len(shown):
                raise ValueError(
                    f"grid is {text!r}; each value of {axis} may be given once."
                )
            axes[axis] = tuple(items)
    if "step_size" in axes and STEP_RATIO in axes:
        raise ValueError(f"grid has step_size and {STEP_RATIO}; give one of them.")
    order = [*fields, STEP_RATIO]
    return {name: axes[name] for name in sorted(axes, key=order.index)}


def _read_values(
    name: str, text: str, fields: Mapping[str, dataclasses.Field[Any]]
) -> tuple[Any, ...]:
    if name == "seed":
        raise ValueError(f"grid is '{name}={text}'; seeds are given with --seeds.")
    if name != STEP_RATIO and name not in fields:
        raise ValueError(
            f"grid is '{name}={text}'; {name!r} is no field of the configuration. "
            f"There are {STEP_RATIO}, {', '.join(fields)}."
        )
    annotation: Any = float if name == STEP_RATIO else fields[name].type
    kind = cli.plain_type(annotation)
    items = [item.strip() for item in text.split(";" if ";" in text else ",")]
    if "" in items:
        raise ValueError(f"grid is '{name}={text}'; it has an empty value.")
    values = []
    for item in items:
        try:
            values.append(_read_value(item, kind, optional=annotation is not kind))
        except (ValueError, KeyError):
            raise ValueError(
                f"grid is '{name}={text}'; {item!r} is not of type {kind.__name__}."
            ) from None
    if name == STEP_RATIO and not all(value > 0 for value in values):
        raise ValueError(f"grid is '{name}={text}'; each must be positive.")
    return tuple(values)


def _read_value(text: str, kind: type, *, optional: bool) -> Any:
    if optional and text.lower() == "none":
        return None
    if kind is bool:
        return {"true": True, "false": False}[text.lower()]
    return kind(text)


def _read_seeds() -> tuple[int, ...]:
    seeds = cli.parse_integers("seeds", _SEEDS.value)
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds is {seeds}; give one or more, each once.")
    return seeds


def _read_measurement(base: training.Config) -> launch.Measurement:
    epsilons: tuple[float, ...] = (base.epsilon,)
    if _EPSILONS.value is not None:
        epsilons = cli.parse_floats("epsilons", _EPSILONS.value)
    if not epsilons or not all(0 < e < math.inf for e in epsilons):
        raise ValueError(f"epsilons is {epsilons}; each must be positive and finite.")
    p = base.p if _TEST_P.value is None else _TEST_P.value
    if not p >= 1:
        raise ValueError(f"test_p is {p}; it must be in [1, inf].")
    for flag in (_TEST_EXAMPLES, _TEST_STEPS):
        if flag.value < 1:
            raise ValueError(f"{flag.name} is {flag.value}; it must be at least 1.")
    if not 0 < _HOURS.value < math.inf:
        raise ValueError(f"hours is {_HOURS.value}; it must be positive and finite.")
    return launch.Measurement(
        p, tuple(sorted(set(epsilons))), _TEST_STEPS.value, _TEST_EXAMPLES.value
    )


def _read_sort_by(measurement: launch.Measurement) -> int:
    """The place of the column, 0 for clean accuracy."""
    text = _SORT_BY.value
    if text is None:
        return 1
    if text == "clean":
        return 0
    shown = [f"{epsilon:g}" for epsilon in measurement.epsilons]
    for place, epsilon in enumerate(shown, start=1):
        if text == epsilon:
            return place
    raise ValueError(f"sort_by is {text!r}; it may be clean, {', '.join(shown)}.")


def _points(
    directory: Path,
    base: training.Config,
    axes: Mapping[str, tuple[Any, ...]],
    seeds: Sequence[int],
) -> list[launch.Point]:
    """Seeds innermost: networks that differ in nothing else share a compiled step."""
    points = []
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        fields = {name: v for name, v in chosen.items() if name != STEP_RATIO}
        config = dataclasses.replace(base, **fields)
        if STEP_RATIO in chosen:
            step = chosen[STEP_RATIO] * config.epsilon / max(config.num_steps, 1)
            config = dataclasses.replace(config, step_size=step)
        for seed in seeds:
            named = {**chosen, "seed": seed}
            name = "_".join(f"{key}={_slug(value)}" for key, value in named.items())
            points.append(
                launch.Point(
                    name,
                    chosen,
                    dataclasses.replace(config, seed=seed),
                    str(directory / name),
                )
            )
    return points


def _check(point: launch.Point) -> None:
    try:
        training.validate(point.config)
    except ValueError as error:
        raise ValueError(f"the point {point.name} cannot be trained: {error}") from None
    launch.check_directory(point)


def _slug(value: Any) -> str:
    """A value as part of a directory's name, the same each time."""
    text = report.text(value)
    plain = re.sub(r"[^\w.+-]+", "-", text)
    if plain == text and len(plain) <= 40:
        return plain
    return f"{plain[:32]}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


if __name__ == "__main__":
    cli.run(main)
