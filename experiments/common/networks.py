"""Trained networks side by side, for the binaries that compare them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import flags

import opnorm
from experiments.common import cli, measure
from opnorm import analysis, data, models, runs, training
from opnorm.training import Config

UNTRAINED = "untrained"

# Flags defined here belong to the binary that calls for them.
flags.disclaim_key_flags()


class NamedNetwork(NamedTuple):
    """A network and what it is called in results and figures.

    Attributes:
      name: its method, with the run's directory behind it where several share it.
      config: of its training.
      f: the network, with ``f.features`` and ``f.preactivations``.
      source: the run directory and the step of the checkpoint.
    """

    name: str
    config: Config
    f: models.Network
    source: dict[str, Any]


class Comparison(NamedTuple):
    """Networks and the examples that they are compared on.

    Attributes:
      networks: at least one.
      examples: of one data set.
      out: where results go.
    """

    networks: list[NamedNetwork]
    examples: data.Dataset
    out: runs.RunDirectory


def define_flags(folder: str) -> None:
    """Defines the flags that :func:`open_runs` reads.

    Args:
      folder: of the results, inside the first run unless --out is given.
    """
    flags.DEFINE_multi_string(
        "run",
        None,
        "run directory, or a folder of checkpoints; give it several times to compare "
        "networks (required)",
    )
    flags.DEFINE_string(
        "out", None, f"where to write; by default {folder}/ inside the first run"
    )
    flags.DEFINE_string(
        "dataset", None, "data set to measure on; by default the one trained on"
    )
    flags.DEFINE_string(
        "data_dir",
        None,
        "where TensorFlow Datasets keeps data; the folder that a run names is not used",
    )
    flags.DEFINE_boolean("download", False, "download the data if missing")
    flags.DEFINE_string(
        "split", "test", "split to measure on, or a slice of one such as test[500:1000]"
    )
    flags.DEFINE_integer("examples", 200, "how many examples, at least 2")
    flags.DEFINE_integer("num_steps", 10, "steps of the attack, PGA")
    flags.DEFINE_integer("batch_size", 100, "examples per compiled call")
    flags.DEFINE_integer("seed", 0, "of random numbers")


def open_runs(folder: str, examples: int) -> Comparison:
    """Reads the runs and the examples that the flags name.

    Args:
      folder: as for :func:`define_flags`.
      examples: how many to load.

    Raises:
      ValueError or FileNotFoundError: for flags out of range, runs that cannot be read
        or that do not fit each other, or a folder to write to that is somebody else's.
      RunInUse: an OSError, if another process writes into that folder.
    """
    given = flags.FLAGS
    for name, least in (("examples", 2), ("num_steps", 1), ("batch_size", 1)):
        value: Any = given[name].value
        if value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}.")
    if not given.run:
        raise ValueError("run is not given; it is the run directory to measure.")
    directories = [str(Path(run)) for run in given.run]
    places = [Path(run).resolve() for run in directories]
    for run, place in zip(directories, places, strict=True):
        if places.count(place) > 1:
            raise ValueError(f"run {run} is given more than once.")
    split, first, last = cli.parse_split(given.split)
    loaded = [training.load_run(directory) for directory in directories]
    configs = [each.config for each in loaded]
    names = {config.dataset for config in configs}
    if given.dataset is None and len(names) > 1:
        raise ValueError(
            f"the runs were trained on {', '.join(sorted(names))}; choose one with "
            "--dataset."
        )
    chosen = data.load(
        measure.dataset_name(given.dataset, configs[0]),
        split=split,
        data_dir=given.data_dir,
        download=given.download,
        # Drawn at random unless a slice says which.
        limit=examples if (first, last) == (None, None) else None,
        image_size=training.image_size(configs[0], given.dataset),
    ).slice(first, last)
    chosen = chosen.slice(0, examples)
    if len(chosen) < 2:
        raise ValueError(f"split {given.split} has 1 example; it must have 2 or more.")
    networks = []
    labels = _labels(directories, configs)
    for run, name, found in zip(directories, labels, loaded, strict=True):
        measure.check_fit(run, found.config, found.network, chosen)
        source = {"run": run, "step": found.step, "method": found.config.method}
        networks.append(NamedNetwork(name, found.config, found.network, source))
    runs.RunDirectory.for_results(given.out or directories[0])
    out = cli.hold(runs.RunDirectory(given.out or Path(directories[0]) / folder))
    return Comparison(networks, chosen, out)


def untrained(comparison: Comparison, seed: int) -> list[NamedNetwork]:
    """A network with random weights for each architecture among those compared."""
    found: dict[Any, NamedNetwork] = {}
    for network in comparison.networks:
        config = network.config
        shape = (config.model, config.width)
        if shape in found:
            continue
        module = network.f.module
        examples = comparison.examples
        objective = training.make_objective(
            config, examples.num_classes, examples.image_shape
        )
        params, batch_stats = objective.init(jax.random.key(seed))
        f = opnorm.network(module, {"params": params, "batch_stats": batch_stats})
        name = f"{UNTRAINED}, {config.model} {config.width}"
        source = {"seed": seed, "model": config.model, "width": config.width}
        found[shape] = NamedNetwork(name, config, f, source)
    if len(found) == 1:
        return [network._replace(name=UNTRAINED) for network in found.values()]
    return list(found.values())


def attacked(
    network: NamedNetwork,
    examples: data.Dataset,
    *,
    p: float,
    epsilon: float,
    seed: int,
) -> Any:
    """What PGA on the true labels adds to the examples, ``(N, ...)``."""
    return analysis.perturbations(
        network.f,
        examples.images,
        examples.labels,
        attack=measure.usual_attack(p, flags.FLAGS.num_steps),
        epsilon=epsilon,
        batch_size=flags.FLAGS.batch_size,
        key=jax.random.key(seed),
    )


def training_epsilons(networks: Sequence[NamedNetwork], p: float) -> list[float]:
    """The lengths, in the norm p, of the perturbations that networks saw in training.

    Networks whose method has no perturbations have none.
    """
    used = training.methods_with("random_start", "search")
    found = {
        network.config.epsilon
        for network in networks
        if network.config.method in used and network.config.p == p
    }
    return sorted(found)


def card(comparison: Comparison, count: int) -> dict[str, Any]:
    """What results say about where they come from."""
    names = ("split", "num_steps", "seed")
    return {
        "data": comparison.examples.description,
        "examples": count,
        **{name: flags.FLAGS[name].value for name in names},
        "runs": {network.name: network.source for network in comparison.networks},
        "environment": runs.environment(),
        "git_revision": runs.git_revision(),
    }


averaged = measure.averaged


def read_lengths(name: str, text: list[str]) -> list[float]:
    """Reads a list flag as perturbation lengths: positive, finite, rising, any count.

    Raises:
      ValueError: naming the flag.
    """
    lengths = sorted(set(cli.parse_floats(name, text)))
    if not all(0 < length < math.inf for length in lengths):
        raise ValueError(f"{name} is {text}; each must be positive and finite.")
    return lengths


def _labels(directories: Sequence[str], configs: Sequence[Config]) -> list[str]:
    """The method of each run; where runs share it, with their directories."""
    methods = [config.method for config in configs]
    shortest = [Path(run).name for run in directories]
    endings = shortest if len(set(shortest)) == len(shortest) else list(directories)
    return [
        f"{method} ({ending})" if methods.count(method) > 1 else method
        for method, ending in zip(methods, endings, strict=True)
    ]
