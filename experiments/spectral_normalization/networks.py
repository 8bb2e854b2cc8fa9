"""The networks that experiments.spectral_normalization compares."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.common import jobs, options, timing
from experiments.common.records import Record
from opnorm import data, runs, training
from opnorm.training import DATA_FIELDS, SPECTRAL_NORM_METHODS, Config

# Name of the network without a bound.
WITHOUT = "none"
# Networks that are regularised in another way than by a bound, and the fields that make
# them. The paper's code keeps 0.8 of the entries, and decays weights but not biases.
CONTROLS: dict[str, dict[str, Any]] = {
    "batch_norm": {"model": "alexnet_bn"},
    "dropout": {"dropout": 0.2},
    "no_lrn": {"model": "alexnet_no_lrn"},
    "weight_decay": {"weight_decay": 5e-4, "decayed": "kernels_and_scales"},
}
_TIMED_ROUNDS = 5
_WITH_PGA = ("adversarial", "adversarial_only")
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
    "dropout",
    "normalization",
)


class Planned(NamedTuple):
    """A network to be trained.

    Attributes:
      name: its name in results, among those of its scheme.
      config: configuration of its training.
      directory: directory of its run.
      control: its name among ``CONTROLS``, or None.
    """

    name: str
    config: Config
    directory: Path
    control: str | None = None


# The networks of a scheme: those of each seed by name.
Seeds = dict[int, Planned]


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
    seeds: Sequence[int] = (),
    controls: Sequence[str] = (),
    labels: str = "true",
) -> dict[str, Seeds]:
    """Returns the networks of a scheme by name, the one without a bound first.

    Args:
      scheme: configuration without a bound.
      bounds: inf, which is no bound, and others.
      methods: keys of ``SPECTRAL_NORM_METHODS``.
      folder: where run directories are made.
      seeds: the seeds; none for that of the scheme.
      controls: keys of ``CONTROLS``.
      labels: "true", or "random".

    Raises:
      ValueError: for bounds, methods, controls or a configuration that cannot be
        trained, and for a directory that holds another run.
    """
    finite = _finite(bounds)
    _check_names("methods", methods, SPECTRAL_NORM_METHODS)
    if controls:
        _check_names("controls", controls, CONTROLS)
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
    configs |= {name: _control(name, scheme) for name in controls}
    ending = "" if labels == "true" else f"-{labels}_labels"
    found = {
        name: {
            seed: Planned(
                name,
                dataclasses.replace(config, seed=seed),
                _directory(folder / (name + ending), seed, alone=not seeds),
                name if name in controls else None,
            )
            for seed in seeds or (scheme.seed,)
        }
        for name, config in configs.items()
    }
    for each in (each for group in found.values() for each in group.values()):
        training.validate(each.config)
        if each.directory.exists():
            runs.RunDirectory.create(
                each.directory,
                dataclasses.asdict(each.config),
                defaults=dataclasses.asdict(Config()),
            )
    return found


def _finite(bounds: Sequence[float]) -> list[float]:
    """Returns the finite bounds in rising order; ValueError without any, or inf."""
    given = [f"{bound:g}" for bound in bounds]
    finite = sorted(bound for bound in bounds if bound != math.inf)
    if math.inf not in bounds or not finite or len(set(given)) < len(given):
        raise ValueError(
            f"bounds is {given}; give inf, that is without, and one or more numbers, "
            "each once."
        )
    if not all(bound > 0 for bound in finite):
        raise ValueError(f"bounds is {given}; each must be positive.")
    return finite


def _check_names(flag: str, given: Sequence[str], known: Iterable[str]) -> None:
    """Raises a ValueError unless names are some of the known ones, each once."""
    unknown = [name for name in given if name not in known]
    if not given or unknown or len(set(given)) < len(given):
        raise ValueError(
            f"{flag} is {list(given)}; give some of {', '.join(known)}, each once."
        )


def _control(name: str, scheme: Config) -> Config:
    """Returns a scheme with another way to regularise; ValueError if it has it."""
    changes = CONTROLS[name]
    if "model" in changes and scheme.model != "alexnet":
        raise ValueError(
            f"controls has {name}, a variant of alexnet; the model is {scheme.model}."
        )
    control = dataclasses.replace(scheme, **changes)
    if control == scheme:
        raise ValueError(
            f"controls has {name}, which all networks have: "
            f"{', '.join(f'{field} is {value}' for field, value in changes.items())}."
        )
    return control


def _directory(plain: Path, seed: int, *, alone: bool) -> Path:
    """Returns the run directory of a seed.

    A network that is alone has the plain one, as have those of earlier versions. Among
    several seeds it belongs to the seed of the run that is there, or else to seed 0.
    """
    if alone:
        return plain
    run = runs.RunDirectory(plain)
    owner = run.flags().get("seed") if run.is_begun() else 0
    return plain if seed == owner else plain.with_name(f"{plain.name}-seed{seed}")


def is_complete(each: Planned, num_examples: int) -> bool:
    """Whether the run of a network is there and has taken all of its steps.

    Args:
      each: the network.
      num_examples: in its training set.
    """
    try:
        step = training.load_run(each.directory).step
    except FileNotFoundError:
        return False
    return step == training.make_plan(each.config, num_examples).total_steps


def choose(
    measured: Mapping[str, Record], method: str, *, finite: bool = False
) -> str | None:
    """Chooses the bound of a scheme by the accuracy on the validation images.

    The accuracy is that under the attack of the training, its mean over the seeds. One
    bound is chosen for all seeds. Test images decide nothing.

    Args:
      measured: networks by name, with "bound", "method" (None without a bound) and
        "validation", which is None where all networks of that name are missing.
      method: how norms are bounded; the network without a bound is a candidate too.
      finite: whether the network without a bound is left out.

    Returns:
      The name; if several are equal, the one with the largest bound. None if all
      candidates are missing.
    """
    candidates = {
        name: (each["validation"]["mean"], float(each["bound"]))
        for name, each in measured.items()
        if (each["method"] == method or (each["method"] is None and not finite))
        and each["validation"] is not None
    }
    return max(candidates, key=lambda name: candidates[name], default=None)


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


def training_curve(directory: Path) -> Record:
    """Reads the training accuracy of each epoch, the mean of the logged minibatches.

    Returns:
      "step", the last logged step of the epoch, and "accuracy", under the attack of the
      training; where the run has measured a validation split, "validation": its "step"
      and "accuracy", and the "metric", "validation_pga_accuracy" for a method that
      trains with PGA and "validation_accuracy" for others.
    """
    by_epoch: dict[int, list[dict[str, float]]] = {}
    lines = runs.read_metrics(directory)
    for line in lines:
        by_epoch.setdefault(int(np.ceil(line["epoch"])), []).append(line)
    found: Record = {
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
    metrics = ["validation_accuracy"]
    if runs.RunDirectory(directory).flags().get("method") in _WITH_PGA:
        metrics = ["validation_pga_accuracy", *metrics]
    for metric in metrics:
        measured = [line for line in lines if metric in line]
        if measured:
            found["validation"] = {
                "metric": metric,
                "step": [line["step"] for line in measured],
                "accuracy": [line[metric] for line in measured],
            }
            break
    return found


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
