"""The networks that experiments.spectral_normalization compares."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.common import jobs, options, timing
from experiments.common.records import Record
from opnorm import data, runs, training
from opnorm.training import DATA_FIELDS, SPECTRAL_NORM_METHODS, Config

# Name of the network without a bound.
WITHOUT = "none"
_TIMED_ROUNDS = 5
# Fields that networks in one table share.
_COMMON = (
    *DATA_FIELDS,
    "model",
    "width",
    "activation",
    "logit_activation",
    "depth",
    "scalar_biases",
    "scalar_multipliers",
    "normalization",
)


class Planned(NamedTuple):
    """A network to be trained.

    Attributes:
      name: its name in results, among those of its scheme.
      config: configuration of its training.
      directory: directory of its run.
    """

    name: str
    config: Config
    directory: Path


def schemes(names: Sequence[str], given: Mapping[str, Any]) -> dict[str, Config]:
    """Returns the configuration of each preset, without a bound.

    Args:
      names: names of the presets.
      given: values of fields that replace those of all presets.

    Raises:
      ValueError: for unknown presets, or ones that do not fit each other.
    """
    options.check_each_once("presets", list(names))
    found = {
        name: dataclasses.replace(training.get_preset(name).config, **given)
        for name in names
    }
    jobs.check_alike(found, _COMMON)
    dataset = found[names[0]].dataset
    if data.is_streamed(dataset):
        raise ValueError(f"dataset is {dataset!r}; it must fit into memory.")
    return found


def planned(
    scheme: Config,
    bounds: Sequence[float],
    methods: Sequence[str],
    folder: Path,
    *,
    labels: str = "true",
) -> dict[str, Planned]:
    """Returns the networks of a scheme by name, the one without a bound first.

    Args:
      scheme: configuration without a bound.
      bounds: inf, which is no bound, and others.
      methods: keys of ``SPECTRAL_NORM_METHODS``.
      folder: where run directories are made.
      labels: "true", or "random".

    Raises:
      ValueError: for bounds, methods or a configuration that cannot be trained, and for
        a directory that holds another run.
    """
    given = [f"{bound:g}" for bound in bounds]
    finite = sorted(bound for bound in bounds if bound != math.inf)
    if math.inf not in bounds or not finite or len(set(given)) < len(given):
        raise ValueError(
            f"bounds is {given}; give inf, that is without, and one or more numbers, "
            "each once."
        )
    if not all(bound > 0 for bound in finite):
        raise ValueError(f"bounds is {given}; each must be positive.")
    unknown = [name for name in methods if name not in SPECTRAL_NORM_METHODS]
    if not methods or unknown or len(set(methods)) < len(methods):
        raise ValueError(
            f"methods is {list(methods)}; give some of "
            f"{', '.join(SPECTRAL_NORM_METHODS)}, each once."
        )
    ending = "" if labels == "true" else f"-{labels}_labels"
    scheme = dataclasses.replace(
        scheme,
        spectral_norm_bound=None,
        spectral_norm_method=Config().spectral_norm_method,
        random_labels=float(labels == "random"),
    )
    configs = {WITHOUT: scheme} | {
        f"{method}_{bound:g}": dataclasses.replace(
            scheme, spectral_norm_bound=bound, spectral_norm_method=method
        )
        for method in methods
        for bound in finite
    }
    found = {
        name: Planned(name, config, folder / (name + ending))
        for name, config in configs.items()
    }
    for each in found.values():
        training.validate(each.config)
        if each.directory.exists():
            runs.RunDirectory.create(
                each.directory,
                dataclasses.asdict(each.config),
                defaults=dataclasses.asdict(Config()),
            )
    return found


def choose(measured: Mapping[str, Record], method: str, *, finite: bool = False) -> str:
    """Chooses a network of a scheme by its accuracy on the validation images.

    Args:
      measured: networks by name, with "bound", "method" (None without a bound) and
        "validation".
      method: how norms are bounded; the network without a bound is a candidate too.
      finite: whether the network without a bound is left out.

    Returns:
      The name; if several are equal, the one with the largest bound.
    """
    candidates = {
        name: (each["validation"]["mean"], float(each["bound"]))
        for name, each in measured.items()
        if each["method"] == method or (each["method"] is None and not finite)
    }
    return max(candidates, key=lambda name: candidates[name])


def time_steps(
    configs: Mapping[str, Config], train_set: data.Dataset
) -> dict[str, dict[str, float]]:
    """Times train steps of configurations in turns, after a warm-up.

    Args:
      configs: configurations by name, one of them ``WITHOUT``.
      train_set: the training set.

    Returns:
      By name "seconds", a median, and "ratio" to ``WITHOUT``, the median of the ratios
      of the rounds. A few steps are timed, so that both are rough.
    """
    functions = {
        name: _train_steps(config, train_set) for name, config in configs.items()
    }
    rounds = timing.take_turns(functions, _TIMED_ROUNDS)
    return {
        name: {"seconds": seconds, "ratio": timing.ratio(rounds, name, WITHOUT)}
        for name, seconds in timing.medians(rounds).items()
    }


def training_curve(directory: Path) -> dict[str, list[float]]:
    """Reads the training accuracy of each epoch, the mean of the logged minibatches.

    Returns:
      "step", the last logged step of the epoch, and "accuracy", under the attack of the
      training.
    """
    by_epoch: dict[int, list[dict[str, float]]] = {}
    for line in runs.read_metrics(directory):
        by_epoch.setdefault(int(np.ceil(line["epoch"])), []).append(line)
    return {
        "step": [lines[-1]["step"] for lines in by_epoch.values()],
        "accuracy": [
            float(
                np.mean(
                    [
                        line.get("adversarial_accuracy", line["accuracy"])
                        for line in lines
                    ]
                )
            )
            for lines in by_epoch.values()
        ],
    }


def _train_steps(config: Config, train_set: data.Dataset) -> Callable[[], Any]:
    """Returns a function that takes one train step after another, with one batch."""
    program = training.make_program(config, train_set, training.data_mesh())
    # Compiled already where the network has just been trained.
    step = program.step
    state = program.initial_state(config.seed)
    state = training.place(state, program.shardings(state))
    batch = next(program.batches(train_set, config.seed))

    def take() -> Any:
        nonlocal state
        state, metrics = step(state, *batch)
        return metrics["loss"]

    return take
