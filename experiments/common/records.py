"""Results as files hold them, with their origin: hardware, versions, revision, time."""

import datetime
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags

from experiments.common import cli
from opnorm import analysis, linalg, runs

# The content of a JSON file: numbers, text, lists and further records, by name.
Record = dict[str, Any]


class Start(NamedTuple):
    """The beginning of a binary.

    Attributes:
      clock: ``time.monotonic()`` at that time, in seconds.
      revision: the revision of the code, which may change while the binary runs.
    """

    clock: float
    revision: str | None

    @property
    def seconds(self) -> float:
        """The seconds since then."""
        return time.monotonic() - self.clock


def start() -> Start:
    """Returns the present time, and the revision of the code."""
    return Start(time.monotonic(), runs.git_revision())


def origin(started: Start | None = None) -> Record:
    """Returns the part of results on their origin.

    Args:
      started: the beginning of the binary, or None.

    Returns:
      "experiment", the name of the command; "given", the flags that were given to it;
      "written", the time in UTC; "environment" and "git_revision"; with ``started`` its
      revision, and "seconds", the time since then. The environment says whether oneDNN
      convolves, since the last digits of results depend on it.
    """
    found: Record = {
        "experiment": cli.program(),
        "given": _given_flags(),
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "environment": {**runs.environment(), "onednn": linalg.uses_onednn()},
    }
    if started is None:
        return {**found, "git_revision": runs.git_revision()}
    return {**found, "git_revision": started.revision, "seconds": started.seconds}


def _given_flags() -> Record:
    """The values of the flags on the command line; none where nothing was parsed."""
    if not flags.FLAGS.is_parsed():
        return {}
    every = flags.FLAGS.flag_values_dict()
    return {name: v for name, v in every.items() if flags.FLAGS[name].present}


def report(run: runs.RunDirectory, text: str, started: Start | None = None) -> None:
    """Prints results, the directory that they were written to, and the time taken."""
    print(text)
    took = "" if started is None else f" in {started.seconds:.0f} s"
    print(f"written to {run.path}{took}")


def mean_and_error(values: Any, where: Any = True) -> Record:
    """Returns the mean over the first axis and its standard error, as plain numbers.

    Args:
      values: ``(N, ...)``, one row per example.
      where: which of them count; broadcasts to ``values``.

    Returns:
      "mean" and "standard_error". The standard error of fewer than two examples is not
      known: NaN, which files hold as null.
    """
    found = analysis.average(values, where)
    return {
        "mean": found.mean.tolist(),
        "standard_error": found.standard_error.tolist(),
    }


def error_over(number: object, unit: str) -> str:
    """Returns words on a standard error: over how many images or networks it is."""
    return f"standard error over {number} {unit}"


def over_networks(measured: Sequence[Mapping[str, Any]]) -> Record:
    """Averages one quantity over networks that differ in the seed.

    Args:
      measured: "mean" and "standard_error" over the examples of each network, numbers
        or lists of one length.

    Returns:
      "mean" and "standard_error" over the networks, with "over" "networks" and their
      number under "networks". The error of one network over networks is not known:
      it keeps the error over its examples, and "over" is "examples".

    Raises:
      ValueError: for no network.
    """
    if not measured:
        raise ValueError("measured is empty; it must have a network or more.")
    if len(measured) == 1:
        (one,) = measured
        found = {part: one[part] for part in ("mean", "standard_error")}
        return {**found, "networks": 1, "over": "examples"}
    found = mean_and_error([each["mean"] for each in measured])
    return {**found, "networks": len(measured), "over": "networks"}
