"""Runs the points of a sweep, one after the other or as jobs of a cluster.

Both launchers call :func:`experiments.sweep.points.run_point`.
"""

import functools
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.common import cli
from experiments.sweep.points import (
    JOB,
    Measurement,
    Point,
    read_file,
    read_result,
    run_point,
)
from opnorm import runs

_POLL_SECONDS = 5.0
# The folder that holds the package of the commands.
_ROOT = str(Path(__file__).parents[2])


class Cluster(NamedTuple):
    """Where jobs run.

    Attributes:
      kind: "slurm", "local" (processes on this machine) or "debug" (this process).
      partition: the partition of SLURM, or None.
      gpus: GPUs on each job's machine.
      cpus: cores of each job.
      hours: time limit of each job; a job that reaches it is queued again.
      jobs_at_once: the number of jobs that SLURM runs at the same time, or None.
    """

    kind: str
    partition: str | None
    gpus: int
    cpus: int
    hours: float
    jobs_at_once: int | None


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
      folder: the folder for submitit's files and the jobs' logs.
      wait: whether to wait for the jobs; False yields nothing.
      retry: whether points are submitted again, however their jobs ended.

    Yields:
      A point, and the log to read if its job left no result.

    Raises:
      MissingPackage: without submitit.
      ValueError: where it cannot submit.
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
            run.mark([JOB])
            run.write_json(
                JOB,
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
    """The content of a job; SLURM may queue it again, and it resumes then."""

    def __call__(self, point: Point, measurement: Measurement, download: bool) -> None:
        """Runs one point."""
        cli.use_compilation_cache()
        run_point(point, measurement, download)

    def checkpoint(self, *arguments: Any) -> Any:
        """Returns the job to queue again; submitit calls it when the time is over."""
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
    # A job begins in the user's folder, which may have a package "experiments" too.
    path = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    first = [] if _ROOT in path else [_ROOT]
    os.environ["PYTHONPATH"] = os.pathsep.join([*first, *path])
    os.environ["PYTHONSAFEPATH"] = "1"
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
    # submitit raises it without a cluster, or where the cluster refuses the jobs.
    except RuntimeError as error:
        raise ValueError(f"cluster {cluster.kind} takes no jobs: {error}") from error


def _job_at_work(submitit: Any, point: Point) -> tuple[Callable[[], bool], str] | None:
    """A function that says whether the job has ended, and its log; None if it has."""
    record = read_file(point, JOB)
    if record is None:
        return None
    if record["cluster"] == "slurm":
        job = submitit.SlurmJob(record["folder"], record["job_id"])
        done = functools.partial(job.done, force_check=True)
    else:
        # submitit itself knows only the processes that it started.
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
        # A process of another user has the number now.
        return True
    return False
