"""Trained networks side by side, for the binaries that compare them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import flags

import opnorm
from experiments.common import cli, figures, jobs, measure, options, records
from experiments.common.records import Record
from opnorm import data, models, runs, training
from opnorm.training import Config

# Flags defined here belong to the binary that calls for them.
flags.disclaim_key_flags()


class NamedNetwork(NamedTuple):
    """A network and its name in results and figures.

    Attributes:
      name: its method, with the directory of the run where several share the method.
      config: the configuration of its training.
      f: the network, with ``f.features`` and ``f.preactivations``.
      source: the run directory and the step of the checkpoint.
    """

    name: str
    config: Config
    f: models.Network
    source: Record


class Comparison(NamedTuple):
    """Networks and the examples that they are compared on.

    Attributes:
      networks: the networks, at least one.
      examples: the examples, of one data set.
      out: the directory for results, locked until the binary ends.
    """

    networks: list[NamedNetwork]
    examples: data.Dataset
    out: runs.RunDirectory


def define_flags(folder: str) -> None:
    """Defines the flags that :func:`open_runs` reads.

    Args:
      folder: name of the folder for results inside the first run, unless --out is
        given.
    """
    flags.DEFINE_multi_string(
        "run",
        None,
        "run directory, or a folder of checkpoints; give it several times to compare "
        "networks (required)",
    )
    flags.DEFINE_string(
        "out", None, f"directory to write to; by default {folder}/ inside the first run"
    )
    flags.DEFINE_string(
        "dataset", None, "data set to measure on; by default the one trained on"
    )
    flags.DEFINE_string(
        "data_dir",
        None,
        "folder of TensorFlow Datasets; the one in a run's configuration is not used",
    )
    options.define_download_flag()
    flags.DEFINE_string(
        "split", "test", "split to measure on, or a slice of one such as test[500:1000]"
    )
    flags.DEFINE_integer("examples", 200, "number of examples, at least 2")
    flags.DEFINE_integer("num_steps", 10, "number of steps of the attack, PGA")
    flags.DEFINE_integer("batch_size", 100, "examples per compiled call")
    flags.DEFINE_integer("seed", 0, "random seed")


def define_length_flags(epsilons: Sequence[str], use: str) -> None:
    """Defines --epsilons and --epsilons_inf, which :func:`read_lengths` reads.

    Args:
      epsilons: the default L2 lengths.
      use: the use of the lengths, as part of the help.
    """
    flags.DEFINE_list(
        "epsilons",
        list(epsilons),
        f"L2 lengths {use}, in [0, 1] pixel units; empty for none",
    )
    flags.DEFINE_list(
        "epsilons_inf",
        ["0.002", "0.004", "0.008", "0.016", "0.031"],
        f"Linf lengths {use}; empty for none",
    )


def read_lengths() -> dict[float, list[float]]:
    """Returns the lengths of perturbations by the exponent of their norm.

    A norm without lengths is left out.
    """
    lengths = {
        p: options.parse_lengths(name, flags.FLAGS[name].value or [])
        for p, name in ((2.0, "epsilons"), (math.inf, "epsilons_inf"))
    }
    return {p: epsilons for p, epsilons in lengths.items() if epsilons}


def open_runs(folder: str, examples: int) -> Comparison:
    """Reads the runs and the examples that the flags name.

    Args:
      folder: as for :func:`define_flags`.
      examples: number of examples to load.

    Raises:
      ValueError or FileNotFoundError: for flags out of range, runs that cannot be read
        or that do not fit each other, or a folder to write to that another program
        uses.
      RunInUse: an OSError, if another process writes into that folder.
    """
    given = flags.FLAGS
    options.check_at_least(2, given["examples"])
    options.check_at_least(1, given["num_steps"], given["batch_size"])
    directories = _directories()
    options.parse_split(given.split)
    loaded = [training.load_run(directory) for directory in directories]
    configs = [each.config for each in loaded]
    chosen = _examples(configs, examples)
    networks = []
    labels = _labels(directories, configs)
    for run, name, found in zip(directories, labels, loaded, strict=True):
        check_fit(run, found.config, found.network, chosen)
        source = {"run": run, "step": found.step, "method": found.config.method}
        networks.append(NamedNetwork(name, found.config, found.network, source))
    runs.RunDirectory.for_results(given.out or directories[0])
    out = cli.hold(runs.RunDirectory(given.out or Path(directories[0]) / folder))
    return Comparison(networks, chosen, out)


def _directories() -> list[str]:
    """Returns the directories that --run names, each once."""
    if not flags.FLAGS.run:
        raise ValueError("run is not given; it is the run directory to measure.")
    directories = [str(Path(run)) for run in flags.FLAGS.run]
    places = [Path(run).resolve() for run in directories]
    for run, place in zip(directories, places, strict=True):
        if places.count(place) > 1:
            raise ValueError(f"run {run} is given more than once.")
    return directories


def _examples(configs: Sequence[Config], count: int) -> data.Dataset:
    """Loads the examples that the flags name, by default of the runs' data set."""
    given = flags.FLAGS
    names = {config.dataset for config in configs}
    if given.dataset is None and len(names) > 1:
        raise ValueError(
            f"the runs were trained on {', '.join(sorted(names))}; choose one with "
            "--dataset."
        )
    split, first, last = options.parse_split(given.split)
    found = data.load(
        jobs.dataset_name(given.dataset, configs[0]),
        split=split,
        data_dir=given.data_dir,
        download=given.download,
        # Drawn at random unless a slice is given.
        limit=count if (first, last) == (None, None) else None,
        image_size=training.image_size(configs[0], given.dataset),
    ).slice(first, last)
    found = found.slice(0, count)
    if len(found) < 2:
        raise ValueError(f"split {given.split} has 1 example; it must have 2 or more.")
    return found


def check_fit(
    run: str, config: Config, network: models.Network, examples: data.Dataset
) -> None:
    """Raises a ValueError unless a network takes the examples; nothing is computed.

    Args:
      run: name of the network in the error.
      config: configuration of its training.
      network: the network.
      examples: images and classes to measure it on.
    """
    objective = _objective(config, examples)
    needed = jax.eval_shape(objective.init, jax.random.key(0))
    there, here = (
        {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in ((network.params, network.batch_stats), needed)
    )
    differing = sorted(n for n in there | here if there.get(n) != here.get(n))
    if differing:
        # The first part of a name is the tree's place among the two.
        shapes = "; ".join(
            f"{name.split('/', 1)[1]} is {there.get(name)} there and would be "
            f"{here.get(name)}"
            for name in differing
        )
        raise ValueError(
            f"run {run}, trained on {config.dataset}, does not take {examples.name}: "
            f"images of {examples.image_shape} and {examples.num_classes} classes; "
            f"{shapes}."
        )


def _objective(config: Config, examples: data.Dataset) -> training.Objective:
    return training.make_objective(config, examples.num_classes, examples.image_shape)


def untrained(comparison: Comparison, seed: int) -> list[NamedNetwork]:
    """Returns a network with random weights for each architecture that is compared."""
    found: dict[tuple[str, int | None], NamedNetwork] = {}
    for network in comparison.networks:
        config = network.config
        shape = (config.model, config.width)
        if shape in found:
            continue
        params, batch_stats = _objective(config, comparison.examples).init(
            jax.random.key(seed)
        )
        variables = {"params": params, "batch_stats": batch_stats}
        f = opnorm.network(network.f.module, variables)
        name = f"{figures.UNTRAINED}, {config.model} {config.width}"
        source = {"seed": seed, "model": config.model, "width": config.width}
        found[shape] = NamedNetwork(name, config, f, source)
    if len(found) == 1:
        return [network._replace(name=figures.UNTRAINED) for network in found.values()]
    return list(found.values())


def attacked(
    network: NamedNetwork,
    examples: data.Dataset,
    *,
    p: float,
    epsilon: float,
) -> np.ndarray:
    """Returns the perturbations of PGA on the true labels, ``(N, ...)``.

    The number of steps, the batch size and the seed are those of the flags.
    """
    given = flags.FLAGS
    pga = measure.Pga(p, given.num_steps, given.seed, given.batch_size)
    return pga.perturbations(network.f, examples, epsilon)


def training_epsilons(networks: Sequence[NamedNetwork], p: float) -> list[float]:
    """Returns the lengths of perturbations in training, in the norm p, rising.

    Networks whose method has no perturbations are passed over.
    """
    used = training.methods_with("random_start", "search")
    found = {
        training.in_pixels(network.config).epsilon
        for network in networks
        if network.config.method in used and network.config.p == p
    }
    return sorted(found)


def card(comparison: Comparison, count: int) -> Record:
    """Returns the part of results that names the data, the networks and the flags."""
    names = ("split", "num_steps", "seed")
    return {
        "data": comparison.examples.description,
        "examples": count,
        **{name: flags.FLAGS[name].value for name in names},
        "runs": {network.name: network.source for network in comparison.networks},
        **records.origin(),
    }


def _labels(directories: Sequence[str], configs: Sequence[Config]) -> list[str]:
    """Returns the method of each run; where runs share it, with their directories."""
    methods = [config.method for config in configs]
    shortest = [Path(run).name for run in directories]
    endings = shortest if len(set(shortest)) == len(shortest) else list(directories)
    return [
        f"{method} ({ending})" if methods.count(method) > 1 else method
        for method, ending in zip(methods, endings, strict=True)
    ]
