"""Trains and measures the points of a sweep, and reads how far each of them is.

The directory of a point alone says how far it is: ``sweep_result.json`` holds its
result, or the reason why there is none, ``sweep_job.json`` the job that it was last
submitted as, and ``sweep_test.json`` its accuracies on the test split if it was chosen.
"""

import dataclasses
import functools
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.common import cache, measure, records
from experiments.common.records import Record
from opnorm import data, models, runs, training
from opnorm.training import Config

RESULT = "sweep_result.json"
JOB = "sweep_job.json"
TEST = "sweep_test.json"
_BATCH_SIZE = 100
# Errors that training raises because of the values of one point.
_FAILURES = (FloatingPointError, ValueError, jax.errors.JaxRuntimeError)


class Point(NamedTuple):
    """One run of a sweep.

    Attributes:
      name: the name of its directory, made of its axes and its seed.
      axes: the values that the grid chose, without the seed.
      config: the configuration to train.
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
      test_examples: the number of test images; None for all.
      validation_examples: the number of validation images that points are compared on,
        0 for all; None where there is no validation split, and points are measured on
        the test split and not compared.
      checkpoint: "last" or "best", the checkpoint of each run that is measured.
    """

    p: float
    epsilons: tuple[float, ...]
    num_steps: int
    test_examples: int | None
    validation_examples: int | None = None
    checkpoint: str = "last"

    @property
    def split(self) -> str:
        """The split that every network is measured on."""
        return "test" if self.validation_examples is None else "validation"


def columns(measurement: Measurement) -> list[str]:
    """Returns the names of the measured accuracies: clean, then each epsilon."""
    norm = measure.norm_name(measurement.p)
    return ["clean"] + [
        f"{norm} PGA-{measurement.num_steps}, eps {epsilon:g}"
        for epsilon in measurement.epsilons
    ]


def check(point: Point) -> None:
    """Raises a ValueError if the point cannot be trained or written.

    That is so if its configuration is not valid, or its directory holds another run.
    """
    try:
        training.validate(point.config)
    except ValueError as error:
        raise ValueError(f"the point {point.name} cannot be trained: {error}") from None
    if (Path(point.directory) / "flags.json").exists():
        runs.RunDirectory.create(
            point.directory,
            dataclasses.asdict(point.config),
            defaults=dataclasses.asdict(Config()),
        )


def read_result(
    point: Point, measurement: Measurement, *, warn: bool = False
) -> Record | None:
    """Returns the result of a run that ended, unless it was measured in another way.

    A result that was damaged or edited counts as missing, with a warning if ``warn``.
    """
    found = read_file(point, RESULT)
    if found is not None:
        found = cache.checked(Path(point.directory) / RESULT, found, warn=warn)
    if found is None or found["status"] == "failed":
        return found
    return found if found["measurement"] == _as_json(measurement) else None


def describe_state(point: Point, measurement: Measurement) -> str:
    """Returns how far a run is, as its directory says."""
    found = read_result(point, measurement)
    if found is not None:
        return str(found["status"])
    job = read_file(point, JOB)
    if job is not None:
        return f"submitted, job {job['job_id']}"
    return "begun" if Path(point.directory).exists() else "new"


def run_point(point: Point, measurement: Measurement, download: bool) -> Record:
    """Trains and measures one network, or continues where an earlier call ended.

    Returns:
      The content of the result in the run's directory: "status" is "done" or "failed";
      "clean" and "attacked" are means and standard errors over the images.

    Raises:
      FileNotFoundError: if the data, or a run to start from, are not there.
      ValueError: if the directory is not one that opnorm writes into.
      RunInUse: an OSError, if another process is at work on the point.
    """
    directory = runs.RunDirectory(point.directory)
    # No failure may be noted in a directory of another program.
    directory.mark([JOB])
    start = time.monotonic()
    try:
        found = {"status": "done", **_train_and_measure(point, measurement, download)}
    except _FAILURES as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        found = {"status": "failed", "reason": reason[0]}
    found |= {
        "measurement": _as_json(measurement),
        "seconds": time.monotonic() - start,
        **records.origin(),
    }
    directory.write_json(RESULT, cache.with_digest(found))
    return found


def read_file(point: Point, name: str) -> Record | None:
    """Reads a file of a point's directory: :data:`RESULT`, :data:`JOB`, :data:`TEST`.

    Returns:
      Its content, or None if it is missing.

    Raises:
      ValueError: if it is damaged; it names the file.
    """
    file = Path(point.directory) / name
    if not file.exists():
        return None
    try:
        found: Any = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: {error}; remove it.") from error
    needed = {
        RESULT: ("status", "measurement"),
        TEST: ("status", "measurement"),
        JOB: ("cluster", "job_id", "folder"),
    }
    if not isinstance(found, dict) or not set(needed[name]) <= set(found):
        raise ValueError(
            f"{file} is damaged: it must hold {', '.join(needed[name])}; remove it."
        )
    return found


def _train_and_measure(
    point: Point, measurement: Measurement, download: bool
) -> Record:
    config = point.config
    start = time.monotonic()
    train_set = _train_set(_source(config), download)
    # Errors of the data are found before hours of training.
    examples = test_set = _test_set(config, measurement, download)
    data.check_splits(train_set, test_set)
    held_out = None
    if measurement.validation_examples is not None:
        # The last phase of a training decides the size of streamed images.
        source = dataclasses.replace(_source(config), phases=config.phases)
        limit = measurement.validation_examples or None
        examples = held_out = _validation_set(source, limit, download)
    result = training.train(
        config,
        directory=point.directory,
        train_set=train_set,
        validation_set=held_out,
        keep_best=measurement.checkpoint == "best",
        download=download,
    )
    trained = time.monotonic()
    network, step = result.network, result.step
    if measurement.checkpoint == "best":
        run = training.load_run(point.directory, checkpoint="best")
        network, step = run.network, run.step
    return {
        "step": step,
        **_measure(network, config, measurement, examples),
        "training_seconds": trained - start,
        "measuring_seconds": time.monotonic() - trained,
    }


def measure_chosen(
    point: Point, measurement: Measurement, download: bool, *, fresh: bool = False
) -> Record:
    """Measures the network of a point on the test split, after it was chosen.

    Args:
      point: a point with a result.
      measurement: the measurement that it was chosen by.
      download: whether the data may be downloaded.
      fresh: whether to measure again in any case.

    Returns:
      As the result of :func:`run_point`. It is kept in the run's directory, and is
      measured again if that result or the measurement has changed.

    Raises:
      FileNotFoundError: if the data or the run are not there.
      ValueError: if they cannot be read.
    """
    chosen = read_result(point, measurement)
    if chosen is None:
        raise FileNotFoundError(f"{point.directory} has no {RESULT}.")
    settings = _attack_as_json(measurement) | {
        "test_examples": measurement.test_examples,
        "checkpoint": measurement.checkpoint,
        # Another result is that of another network.
        "chosen": {name: chosen[name] for name in ("step", "clean", "attacked")},
    }
    kept = read_file(point, TEST)
    if kept is not None:
        kept = cache.checked(Path(point.directory) / TEST, kept, warn=True)
    if kept is not None and kept["measurement"] == settings and not fresh:
        return kept
    run = training.load_run(point.directory, checkpoint=measurement.checkpoint)
    test_set = _test_set(point.config, measurement, download)
    found = {
        "status": "done",
        "step": run.step,
        **_measure(run.network, point.config, measurement, test_set),
        "measurement": settings,
        **records.origin(),
    }
    runs.RunDirectory(point.directory).write_json(TEST, cache.with_digest(found))
    return found


def _measure(
    network: models.Network,
    config: Config,
    measurement: Measurement,
    examples: data.Dataset,
) -> Record:
    """Returns accuracies with their standard errors, and on which examples."""
    curve = measure.accuracy_curve(
        network,
        examples,
        measure.Pga(measurement.p, measurement.num_steps, config.seed, _BATCH_SIZE),
        measurement.epsilons,
    )
    clean, *attacked = (
        {"mean": mean, "standard_error": error}
        for mean, error in zip(curve["mean"], curve["standard_error"], strict=True)
    )
    return {
        "data": examples.description,
        "examples": len(examples),
        "clean": clean,
        "attacked": attacked,
    }


def _source(config: Config) -> Config:
    """A configuration with the fields alone that decide the data."""
    return Config(**{field: getattr(config, field) for field in training.DATA_FIELDS})


@functools.lru_cache(maxsize=1)
def _train_set(source: Config, download: bool) -> Any:
    return training.load_train_set(source, download=download)


@functools.lru_cache(maxsize=1)
def _validation_set(source: Config, limit: int | None, download: bool) -> data.Dataset:
    return training.load_validation_set(source, download=download, limit=limit)


def _test_set(config: Config, measurement: Measurement, download: bool) -> data.Dataset:
    size = training.image_size(config)
    return _load_test_set(_source(config), size, measurement.test_examples, download)


@functools.lru_cache(maxsize=1)
def _load_test_set(
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


def _as_json(measurement: Measurement) -> Record:
    """The measurement of a point as a file holds it."""
    if measurement.validation_examples is None:
        # Results of earlier versions have these fields and no others.
        return _attack_as_json(measurement) | {
            "test_examples": measurement.test_examples
        }
    return _attack_as_json(measurement) | {
        "validation_examples": measurement.validation_examples,
        "checkpoint": measurement.checkpoint,
    }


def _attack_as_json(measurement: Measurement) -> Record:
    return {
        "p": str(measurement.p),
        "epsilons": list(measurement.epsilons),
        "num_steps": measurement.num_steps,
    }
