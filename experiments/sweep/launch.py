"""experiments: the runs of a sweep, one after the other or as jobs of a cluster.

A run's directory alone says how far it is: its result, or why there is none, lies in
``sweep_result.json``, and the job that it was last submitted as in ``sweep_job.json``.
Both launchers call :func:`run_point`.
"""

import dataclasses
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.common import cli, measure, pieces
from opnorm import data, runs, training
from opnorm.training import DATA_FIELDS, Config

_RESULT = "sweep_result.json"
_JOB = "sweep_job.json"
_BATCH_SIZE = 100
_POLL_SECONDS = 5.0
# What training raises because of the values of one point.
_FAILURES = (FloatingPointError, ValueError, jax.errors.JaxRuntimeError)


class Point(NamedTuple):
    """One run of a sweep.

    Attributes:
      name: of its directory, from its axes and seed.
      axes: what the grid chose, without the seed.
      config: what is trained.
      directory: absolute path of the run directory.
    """

    name: str
    axes: dict[str, Any]
    config: Config
    directory: str


class Measurement(NamedTuple):
    """How every network is measured.

    Attributes:
      p: exponent of the attack's norm.
      epsilons: lengths of the attack, in [0, 1] pixel units.
      num_steps: steps of the attack, PGA.
      test_examples: how many test pictures; None for all.
    """

    p: float
    epsilons: tuple[float, ...]
    num_steps: int
    test_examples: int | None


class Cluster(NamedTuple):
    """Where jobs run.

    Attributes:
      kind: "slurm", "local" (processes on this machine) or "debug" (this process).
      partition: of SLURM, or None.
      gpus: on each job's machine.
      cpus: cores of each job.
      hours: time limit of each job; one that reaches it is queued again.
      jobs_at_once: of SLURM, how many of them run at the same time, or None.
    """

    kind: str
    partition: str | None
    gpus: int
    cpus: int
    hours: float
    jobs_at_once: int | None


def check_directory(point: Point) -> None:
    """Raises a ValueError if the point's directory holds another run."""
    if (Path(point.directory) / "flags.json").exists():
        runs.RunDirectory.create(
            point.directory,
            dataclasses.asdict(point.config),
            defaults=dataclasses.asdict(Config()),
        )


def read_result(
    point: Point, measurement: Measurement, *, warn: bool = False
) -> dict[str, Any] | None:
    """The result of a run that ended, unless it was measured in another way.

    One that was damaged or edited counts as missing, with a warning if ``warn``.
    """
    found = _read(point, _RESULT)
    if found is not None:
        file = Path(point.directory) / _RESULT
        found = pieces.checked(file, found, warn=warn)
    if found is None or found["status"] == "failed":
        return found
    return found if found["measurement"] == _as_json(measurement) else None


def describe_state(point: Point, measurement: Measurement) -> str:
    """How far a run is, as its directory says."""
    found = read_result(point, measurement)
    if found is not None:
        return found["status"]
    job = _read(point, _JOB)
    if job is not None:
        return f"submitted, job {job['job_id']}"
    return "begun" if Path(point.directory).exists() else "new"


def run_point(point: Point, measurement: Measurement, download: bool) -> dict[str, Any]:
    """Trains and measures one network, or goes on where an earlier call ended.

    Returns:
      What is then in the run's directory: "status" is "done" or "failed"; "clean" and
      "attacked" are means and standard errors over the test pictures.

    Raises:
      FileNotFoundError: if the data, or a run to start from, are not there.
      ValueError: if the directory is not one that opnorm writes into.
      RunInUse: an OSError, if another process is at work on the point.
    """
    run = runs.RunDirectory(point.directory)
    # A failure must not be noted in somebody else's directory.
    run.mark([_JOB])
    start = time.monotonic()
    try:
        found = {"status": "done", **_train_and_measure(point, measurement, download)}
    except _FAILURES as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        found = {"status": "failed", "reason": reason[0]}
    found |= {
        "measurement": _as_json(measurement),
        "seconds": time.monotonic() - start,
        "environment": runs.environment(),
        "git_revision": runs.git_revision(),
    }
    run.write_json(_RESULT, pieces.with_digest(found))
    return found


def launch_here(
    points: Sequence[Point], measurement: Measurement, *, download: bool
) -> Iterator[tuple[Point, str | None]]:
    """Runs the points in this process, and yields each when it has ended."""
    for number, point in enumerate(points, start=1):
        print(f"run {number} of {len(points)}: {point.name}", file=sys.stderr)
        run_point(point, measurement, download)
        yield point, None


def launch_jobs(
    points: Sequence[Point],
    measurement: Measurement,
    *,
    download: bool,
    cluster: Cluster,
    folder: Path,
    wait: bool,
    retry: bool,
) -> Iterator[tuple[Point, str | None]]:
    """Submits the points that no job is at work on, and yields each when it has ended.

    Args:
      points: runs that have not ended.
      measurement: how they are measured.
      download: whether data may be downloaded.
      cluster: where jobs run.
      folder: for submitit's files and the jobs' logs.
      wait: False yields nothing and leaves the jobs to themselves.
      retry: True submits points again whatever became of their jobs.

    Yields:
      A point, and where to look if its job left no result.

    Raises:
      ValueError: without submitit, or where it cannot submit.
    """
    submitit = cli.import_optional("submitit", "cluster")
    jobs: dict[str, tuple[Point, Callable[[], bool], str]] = {}
    waiting = []
    for point in points:
        job = None if retry else _job_at_work(submitit, point)
        if job is None:
            waiting.append(point)
        else:
            jobs[point.name] = (point, *job)
    submitted = _submit(submitit, waiting, measurement, download, cluster, folder)
    print(f"{len(jobs)} jobs are at work, {len(submitted)} submitted", file=sys.stderr)
    for point, job in zip(waiting, submitted, strict=True):
        jobs[point.name] = (point, job.done, str(job.paths.stderr))
        if cluster.kind != "debug":
            run = runs.RunDirectory(point.directory)
            run.mark([_JOB])
            run.write_json(
                _JOB,
                {
                    "cluster": cluster.kind,
                    "job_id": job.job_id,
                    "folder": str(job.paths.folder),
                },
            )
    while jobs and wait:
        for name, (point, done, log) in list(jobs.items()):
            if done():
                del jobs[name]
                lost = read_result(point, measurement) is None
                yield point, f"its job left no result; see {log}" if lost else None
        if jobs:
            time.sleep(_POLL_SECONDS)


class Task:
    """What a job runs. Queued again by SLURM, it goes on from its last checkpoint."""

    def __call__(self, point: Point, measurement: Measurement, download: bool) -> None:
        """Runs one point."""
        cli.use_compilation_cache()
        run_point(point, measurement, download)

    def checkpoint(self, *arguments: Any) -> Any:
        """Called by submitit when the job's time is over: what to queue again."""
        submitit = cli.import_optional("submitit", "cluster")
        return submitit.helpers.DelayedSubmission(self, *arguments)


def _submit(
    submitit: Any,
    points: Sequence[Point],
    measurement: Measurement,
    download: bool,
    cluster: Cluster,
    folder: Path,
) -> list[Any]:
    if not points:
        return []
    given = {
        "slurm_partition": cluster.partition,
        "slurm_array_parallelism": cluster.jobs_at_once,
    }
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster.kind)
        executor.update_parameters(
            name="opnorm",
            nodes=1,
            tasks_per_node=1,
            gpus_per_node=cluster.gpus,
            cpus_per_task=cluster.cpus,
            timeout_min=max(1, round(60 * cluster.hours)),
            **{name: value for name, value in given.items() if value is not None},
        )
        with executor.batch():
            return [
                executor.submit(Task(), point, measurement, download)
                for point in points
            ]
    # What submitit raises without a cluster, or where that refuses the jobs.
    except RuntimeError as error:
        raise ValueError(f"cluster {cluster.kind} takes no jobs: {error}") from error


def _job_at_work(submitit: Any, point: Point) -> tuple[Callable[[], bool], str] | None:
    """Whether a point's job has ended, as a function, and its log; None if it has."""
    record = _read(point, _JOB)
    if record is None:
        return None
    if record["cluster"] == "slurm":
        job = submitit.SlurmJob(record["folder"], record["job_id"])
        done = functools.partial(job.done, force_check=True)
    else:
        # A process that another one started: submitit itself knows only its own.
        job = submitit.LocalJob(record["folder"], record["job_id"])
        done = functools.partial(_has_ended, job)
    return None if done() else (done, str(job.paths.stderr))


def _has_ended(job: Any) -> bool:
    if job.paths.result_pickle.exists():
        return True
    try:
        os.kill(int(job.job_id), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        # Somebody else's process has got its number.
        return True
    return False


def _train_and_measure(
    point: Point, measurement: Measurement, download: bool
) -> dict[str, Any]:
    config = point.config
    start = time.monotonic()
    train_set = _train_set(_source(config), download)
    # Before hours of training, not after them.
    test_set = _test_set(
        _source(config),
        training.image_size(config),
        measurement.test_examples,
        download,
    )
    data.check_splits(train_set, test_set)
    result = training.train(
        config, directory=point.directory, train_set=train_set, download=download
    )
    trained = time.monotonic()
    curve = measure.accuracy_curve(
        result.network,
        test_set,
        p=measurement.p,
        epsilons=measurement.epsilons,
        num_steps=measurement.num_steps,
        batch_size=_BATCH_SIZE,
        seed=config.seed,
    )
    clean, *attacked = (
        {"mean": mean, "standard_error": error}
        for mean, error in zip(curve["mean"], curve["standard_error"], strict=True)
    )
    return {
        "step": result.step,
        "data": test_set.description,
        "examples": len(test_set),
        "clean": clean,
        "attacked": attacked,
        "training_seconds": trained - start,
        "measuring_seconds": time.monotonic() - trained,
    }


def _source(config: Config) -> Config:
    """The part of a configuration that says what data there are."""
    return Config(**{field: getattr(config, field) for field in DATA_FIELDS})


@functools.lru_cache(maxsize=1)
def _train_set(source: Config, download: bool) -> Any:
    return training.load_train_set(source, download=download)


@functools.lru_cache(maxsize=1)
def _test_set(
    source: Config, image_size: int | None, limit: int | None, download: bool
) -> data.Dataset:
    return data.load(
        source.dataset,
        split="test",
        data_dir=source.data_dir,
        download=download,
        limit=limit,
        image_size=image_size,
    )


def _read(point: Point, name: str) -> dict[str, Any] | None:
    file = Path(point.directory) / name
    if not file.exists():
        return None
    try:
        found: Any = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: {error}; remove it.") from error
    needed = {_RESULT: ("status", "measurement"), _JOB: ("cluster", "job_id", "folder")}
    if not isinstance(found, dict) or not set(needed[name]) <= set(found):
        raise ValueError(
            f"{file} is damaged: it must hold {', '.join(needed[name])}; remove it."
        )
    return found


def _as_json(measurement: Measurement) -> dict[str, Any]:
    """As it is when it was written to a file and read."""
    found = measurement._asdict() | {"epsilons": list(measurement.epsilons)}
    return found | {"p": str(found["p"])}
