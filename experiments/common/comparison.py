"""Trained networks side by side, for the binaries that compare them."""

import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

import opnorm
from experiments.common import (
    cli,
    figures,
    jobs,
    measure,
    options,
    own_networks,
    records,
    seeds,
)
from experiments.common.records import Record
from opnorm import data, linalg, models, runs, training
from opnorm.training import Config

# Flags defined here belong to the binary that calls for them.
flags.disclaim_key_flags()

# Fields in which networks of one recipe may differ: a network that starts from another
# one starts from that of its own seed.
_OF_SEEDS = ("seed", "init_from", "data_dir")


class NamedNetwork(NamedTuple):
    """A network and its name in results and figures.

    Attributes:
      name: its method, with the directory of the run where several share the method,
        or the name of a network of the user's own code; with seeds also its seed.
      config: the configuration of its training; None for one of the user's own code.
      f: ``(B, ...) -> (B, K)`` logits, in inference mode.
      features: ``(B, ...) -> (B, F)``, the inputs of the last linear layer; f for a
        network of the user's own code that does not name them.
      preactivations: ``(B, ...)`` to the inputs of each layer of nonlinearities; None
        for a network of the user's own code that does not name them.
      source: the run directory and the step of the checkpoint, or the function and the
        file of variables.
    """

    name: str
    config: Config | None
    f: linalg.Network
    features: linalg.Network
    preactivations: linalg.Network | None
    source: Record


# Networks that differ in the seed alone by the name that they share: one for each seed,
# or a single one.
Groups = dict[str, list[NamedNetwork]]


class Comparison(NamedTuple):
    """Networks and the examples that they are compared on.

    Attributes:
      groups: the networks, at least one.
      examples: the examples, of one data set.
      out: the directory for results, locked until the binary ends.
      seeds: the seeds of the networks in each group; None for groups of one.
    """

    groups: Groups
    examples: data.Dataset
    out: runs.RunDirectory
    seeds: tuple[int, ...] | None = None

    @property
    def networks(self) -> list[NamedNetwork]:
        """The networks of all groups."""
        return [network for group in self.groups.values() for network in group]

    @property
    def configs(self) -> list[Config]:
        """The configurations of the networks that are runs."""
        return [n.config for n in self.networks if n.config is not None]


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
        "networks (--run or --network is required)",
    )
    own_networks.define_flags()
    seeds.define_flag()
    flags.DEFINE_string(
        "out",
        None,
        f"directory to write to; by default {folder}/ inside the first run, required "
        "with --network alone",
    )
    flags.DEFINE_string(
        "dataset",
        None,
        "data set to measure on; by default the one trained on, required with "
        "--network alone",
    )
    flags.DEFINE_string(
        "data_dir",
        None,
        "folder of TensorFlow Datasets; the one in a run's configuration is not used",
    )
    options.define_download_flag()
    flags.DEFINE_string(
        "split",
        "test",
        "split to measure on: test, train or validation, the images that the runs' "
        "trainings held out; or a slice of one such as test[500:1000]",
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
    """Reads the networks and the examples that the flags name.

    Args:
      folder: as for :func:`define_flags`.
      examples: number of examples to load.

    Raises:
      ValueError or FileNotFoundError: for flags out of range, runs and networks that
        cannot be read or that do not fit each other, or a folder to write to that
        another program uses.
      RunInUse: an OSError, if another process writes into that folder.
    """
    given = flags.FLAGS
    options.check_at_least(2, given["examples"])
    options.check_at_least(1, given["num_steps"], given["batch_size"])
    numbers = seeds.read()
    directories = _directories(numbers)
    if not (directories or given.network):
        raise ValueError(
            "run is not given; it is the run directory to measure, and --network is a "
            "network of your own."
        )
    first = Path(directories[0][0]) if directories else None
    if given.out is None and first is None:
        raise ValueError("out is not given; with --network alone it is required.")
    options.parse_split(given.split)
    own = own_networks.given(numbers)
    loaded = [[training.load_run(run) for run in group] for group in directories]
    configs = [[found.config for found in group] for group in loaded]
    if numbers is not None:
        for paths, group in zip(directories, configs, strict=True):
            check_seeds(paths, group, numbers)
    chosen = _examples([config for group in configs for config in group], examples)
    groups: Groups = {}
    texts = [str(Path(run)) for run in given.run or []]
    labels = _labels(texts, [group[0] for group in configs])
    for paths, label, found in zip(directories, labels, loaded, strict=True):
        groups[label] = [
            _of_run(path, _member(label, number), run, chosen)
            for path, number, run in zip(paths, numbers or [None], found, strict=True)
        ]
    for label, members in zip(_own_labels(), own, strict=True):
        groups[label] = [
            _of_own(_member(label, number), each, chosen)
            for number, each in zip(numbers or [None], members, strict=True)
        ]
    runs.RunDirectory.for_results(given.out or str(first))
    out = cli.hold(runs.RunDirectory(given.out or Path(first or "") / folder))
    return Comparison(groups, chosen, out, numbers)


def say_which_have_no_features(compared: Comparison) -> None:
    """Prints a line on each network whose logits stand for its features."""
    for name, members in compared.groups.items():
        if members[0].features is members[0].f:
            print(
                f"network {name} has no attribute features; its logits stand for them.",
                file=sys.stderr,
            )


def _of_run(
    path: str, name: str, run: training.Run, examples: data.Dataset
) -> NamedNetwork:
    """Returns the network of a run, after it was compared with the examples."""
    f = run.network
    check_fit(path, run.config, f, examples)
    source = {"run": path, "step": run.step, "method": run.config.method}
    return NamedNetwork(name, run.config, f, f.features, f.preactivations, source)


def _of_own(name: str, own: own_networks.Own, examples: data.Dataset) -> NamedNetwork:
    """Returns a network of the user's own code, after the same comparison."""
    own_networks.check(own, examples)
    source = {
        "network": own.name,
        "variables": own.variables,
        "features": own.features is not own.f,
    }
    return NamedNetwork(name, None, own.f, own.features, own.preactivations, source)


def _member(label: str, seed: int | None) -> str:
    """Returns the name of the network of one seed."""
    return label if seed is None else f"{label}, seed {seed}"


def _own_labels() -> list[str]:
    """Returns each network's function; where networks share it, with its variables."""
    given = flags.FLAGS
    texts = list(given.network or [])
    files = list(given.variables or [""] * len(texts))
    labels = [
        f"{text} ({file})" if texts.count(text) > 1 else text
        for text, file in zip(texts, files, strict=True)
    ]
    if labels:
        options.check_each_once("network", labels)
    return labels


def _directories(numbers: Sequence[int] | None) -> list[list[str]]:
    """Returns the directories that each --run names, one for each seed, each once."""
    groups = [
        seeds.names("run", str(Path(run)), numbers) for run in flags.FLAGS.run or []
    ]
    directories = [run for group in groups for run in group]
    places = [Path(run).resolve() for run in directories]
    for run, place in zip(directories, places, strict=True):
        if places.count(place) > 1:
            raise ValueError(f"run {run} is given more than once.")
    return groups


def check_seeds(
    paths: Sequence[str], configs: Sequence[Config], numbers: Sequence[int]
) -> None:
    """Raises a ValueError unless runs are those of the seeds and alike otherwise.

    Args:
      paths: the run directories.
      configs: the configurations of their trainings.
      numbers: the seed that each stands for.
    """
    for path, config, number in zip(paths, configs, numbers, strict=True):
        if config.seed != number:
            raise ValueError(
                f"run {path} was trained with seed {config.seed}, and seeds has "
                f"{number} in its place."
            )
        for field in dataclasses.fields(Config):
            one, other = (getattr(each, field.name) for each in (configs[0], config))
            if one != other and field.name not in _OF_SEEDS:
                raise ValueError(
                    f"run {path} has {field.name} {other}, and {paths[0]} has {one}; "
                    "networks that are averaged must differ in the seed alone."
                )


def _examples(configs: Sequence[Config], count: int) -> data.Dataset:
    """Loads the examples that the flags name, by default of the runs' data set."""
    given = flags.FLAGS
    names = {config.dataset for config in configs}
    if given.dataset is None and len(names) > 1:
        raise ValueError(
            f"the runs were trained on {', '.join(sorted(names))}; choose one with "
            "--dataset."
        )
    if configs and given.image_size is not None:
        raise ValueError(
            f"image_size is {given.image_size}; the runs decide the size of images."
        )
    split, first, last = options.parse_split(given.split)
    found = data.load(
        dataset_name(configs),
        split=split,
        validation_fraction=validation_fraction(split, configs),
        data_dir=given.data_dir,
        download=given.download,
        # Drawn at random unless a slice is given.
        limit=count if (first, last) == (None, None) else None,
        image_size=image_size(configs),
    ).slice(first, last)
    found = found.slice(0, count)
    if len(found) < 2:
        raise ValueError(f"split {given.split} has 1 example; it must have 2 or more.")
    return found


def validation_fraction(split: str, configs: Sequence[Config]) -> float:
    """Returns the fraction of the train split that the runs were not trained on.

    Args:
      split: the split to measure on.
      configs: configurations of the runs that are measured on it.

    Returns:
      The fraction of the split "validation"; 0 for the other splits, which are whole.

    Raises:
      ValueError: for the validation split of runs that have none, or different ones.
    """
    if split != "validation":
        return 0.0
    if not configs:
        raise ValueError(
            "split is validation; only a run names the images that its training held "
            "out, and with --network alone there is none. Give train or test."
        )
    fractions = sorted({config.validation_fraction for config in configs})
    if not fractions[0]:
        raise ValueError(
            "split is validation; a run was trained without validation_fraction, so "
            "it has no validation split. Give train or test."
        )
    if len(fractions) > 1:
        raise ValueError(
            "split is validation; the runs were trained with validation_fraction "
            f"{', '.join(map(str, fractions))}, and their validation splits differ."
        )
    return fractions[0]


def dataset_name(configs: Sequence[Config]) -> str:
    """Returns the data set to measure on: that of --dataset, or of the runs."""
    if not configs:
        return own_networks.dataset_name(flags.FLAGS.dataset)
    return jobs.dataset_name(flags.FLAGS.dataset, configs[0])


def image_size(configs: Sequence[Config]) -> int | None:
    """Returns the size of images that the runs take, or that of --image_size."""
    if not configs:
        size: int | None = flags.FLAGS.image_size
        return size
    return training.image_size(configs[0], flags.FLAGS.dataset)


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


def untrained(comparison: Comparison, seed: int) -> Groups:
    """Returns networks with random weights for each architecture that is compared.

    Args:
      comparison: the networks that are compared; those of the user's own code have no
        untrained version.
      seed: the seed of the weights, where the comparison has none.
    """
    found: dict[tuple[str, int | None], list[NamedNetwork]] = {}
    for network in comparison.networks:
        config, f = network.config, network.f
        if config is None or not isinstance(f, models.Network):
            continue
        if (config.model, config.width) in found:
            continue
        found[config.model, config.width] = [
            _untrained(f.module, config, comparison.examples, number)
            for number in comparison.seeds or [seed]
        ]
    if len(found) == 1:
        (members,) = found.values()
        return {figures.UNTRAINED: members}
    return {
        f"{figures.UNTRAINED}, {model} {width}": members
        for (model, width), members in found.items()
    }


def _untrained(
    module: Any, config: Config, examples: data.Dataset, seed: int
) -> NamedNetwork:
    params, batch_stats = _objective(config, examples).init(jax.random.key(seed))
    f = opnorm.network(module, {"params": params, "batch_stats": batch_stats})
    source = {"seed": seed, "model": config.model, "width": config.width}
    name = f"{figures.UNTRAINED}, {config.model} {config.width}, seed {seed}"
    return NamedNetwork(name, config, f, f.features, f.preactivations, source)


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


def training_epsilons(configs: Sequence[Config], p: float) -> list[float]:
    """Returns the lengths of perturbations in training, in the norm p, rising.

    Methods without perturbations are passed over.
    """
    used = training.methods_with("random_start", "search")
    found = {
        training.in_pixels(config).epsilon
        for config in configs
        if config.method in used and config.p == p
    }
    return sorted(found)


def card(comparison: Comparison, count: int) -> Record:
    """Returns the part of results that names the data, the networks and the flags."""
    names = ("split", "num_steps", "seed")
    averaged = {} if comparison.seeds is None else {"seeds": list(comparison.seeds)}
    return {
        "data": comparison.examples.description,
        "examples": count,
        **{name: flags.FLAGS[name].value for name in names},
        **averaged,
        "runs": {network.name: network.source for network in comparison.networks},
        # For the figures.
        "training_epsilons": {
            measure.norm_name(p): training_epsilons(comparison.configs, p)
            for p in (2.0, math.inf)
        },
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
