"""Jobs that train and measure several networks."""

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import flags

from experiments.common import cache, cli, measure, options
from experiments.common.records import Record
from opnorm import data, runs, training
from opnorm.training import Config

# Flags defined here belong to the binary that calls for them.
flags.disclaim_key_flags()


class Measured(NamedTuple):
    """Networks that were trained and measured.

    Attributes:
      run: the directory of the job, which stays locked until the binary ends.
      data: name of the data.
      groups: measurements of the networks of each group, one for each seed, as
        :func:`measure.train_and_measure` returns them.
    """

    run: runs.RunDirectory
    data: str
    groups: dict[str, list[Record]]

    @property
    def seeds(self) -> int:
        """The number of seeds."""
        return len(next(iter(self.groups.values())))

    @property
    def averages(self) -> dict[str, Record]:
        """Averages over the seeds, by group."""
        return {name: measure.average(found) for name, found in self.groups.items()}

    @property
    def seconds(self) -> dict[str, float]:
        """Training time of all seeds, by group."""
        return {
            name: sum(each["training_seconds"] for each in found)
            for name, found in self.groups.items()
        }


def define_flags(test_examples: int) -> None:
    """Defines the flags that :func:`train_and_measure` reads."""
    flags.DEFINE_integer(
        "test_examples",
        test_examples,
        "number of test images that each network is measured on",
    )
    flags.DEFINE_integer("test_steps", 10, "number of steps of the measuring attack")
    cache.define_fresh_flag()
    options.define_download_flag()


def check_flags() -> None:
    """Raises a ValueError for a flag of :func:`define_flags` that is out of range."""
    options.check_at_least(1, flags.FLAGS["test_examples"], flags.FLAGS["test_steps"])


def train_and_measure(
    path: str | Path,
    groups: Mapping[str, Mapping[str, Config]],
    settings: Mapping[str, Any],
    *,
    epsilons: Sequence[float],
) -> Measured:
    """Trains and measures networks; after an interruption it goes on.

    Args:
      path: directory of the job.
      groups: for each group the configurations of its networks, which differ in the
        seed, by the name of the run inside ``path``. All have the same data.
      settings: values that decide the result, besides the networks and the flags.
      epsilons: lengths of the measuring attack, in [0, 1] pixel units.

    Raises:
      ValueError: before anything is written, for a configuration that cannot be
        trained; or as :func:`create_run_directory`.
    """
    given = flags.FLAGS
    configs = [config for group in groups.values() for config in group.values()]
    for config in configs:
        training.validate(config)
    train_set, test_set = load_splits(
        configs[0], given.test_examples, download=given.download
    )
    for config in configs:
        plan = training.make_plan(config, len(train_set))
        training.check_devices(plan, jax.device_count(), config.accumulation_steps)
    names = ("test_examples", "test_steps")
    shared = {**settings, **{name: given[name].value for name in names}}
    run = cli.hold(create_run_directory(path, shared, configs))
    measured: dict[str, list[Record]] = {group: [] for group in groups}
    number = 0
    for group, members in groups.items():
        for name, config in members.items():
            number += 1
            print(f"network {number} of {len(configs)}: {name}", file=sys.stderr)
            measured[group].append(
                measure.train_and_measure(
                    config,
                    run.path / name,
                    train_set,
                    test_set,
                    epsilons=epsilons,
                    num_steps=given.test_steps,
                    fresh=given.fresh,
                )
            )
    return Measured(run, test_set.description, measured)


def dataset_name(given: str | None, config: Config) -> str:
    """Returns the data set to measure a network on.

    A line on stderr names a folder of images that comes from the run, which may be
    that of another user.

    Args:
      given: the data set that the user chose, or None.
      config: configuration of the run.
    """
    if given is not None:
        return given
    _, colon, folder = config.dataset.partition(":")
    if colon:
        print(f"images are read from {folder}, which the run names", file=sys.stderr)
    return config.dataset


def load_splits(
    config: Config, test_examples: int, *, download: bool
) -> tuple[data.Dataset | data.Stream, data.Dataset]:
    """Returns the training set of a configuration, and test examples of the same data.

    Raises:
      ValueError or FileNotFoundError: as :func:`opnorm.data.load`, or if the splits
        have other classes or shapes of images.
    """
    train_set = training.load_train_set(config, download=download)
    test_set = data.load(
        config.dataset,
        split="test",
        data_dir=config.data_dir,
        download=download,
        limit=test_examples,
        image_size=training.image_size(config),
    )
    data.check_splits(train_set, test_set)
    return train_set, test_set


def check_alike(configs: Mapping[str, Config], fields: Sequence[str]) -> None:
    """Raises a ValueError unless the configurations of presets agree in some fields.

    Args:
      configs: the configurations by the name of their preset.
      fields: names of fields.
    """
    names = list(configs)
    for name in names:
        for field in fields:
            one, other = (getattr(configs[each], field) for each in (names[0], name))
            if one != other:
                raise ValueError(
                    f"presets is {names}; {field} is {one} in the first and {other} in "
                    f"{name}, and they must be alike in it."
                )


def create_run_directory(
    path: str | Path, settings: Mapping[str, Any], configs: Sequence[Config]
) -> runs.RunDirectory:
    """Makes the directory of a job, or opens it if it is of the same job.

    Args:
      path: the directory.
      settings: the values that decide the result, besides the networks.
      configs: configurations of the networks.

    Raises:
      ValueError: if the directory holds another job; it names the differences. Also as
        ``RunDirectory.create``.
    """
    given = [dataclasses.asdict(config) for config in configs]
    run = runs.RunDirectory.create(
        path, {**settings, "configs": given}, may_differ=("configs",)
    )
    held = run.flags().get("configs")
    if not isinstance(held, list) or not all(isinstance(each, dict) for each in held):
        raise ValueError(f"{path} has a flags.json without configurations of networks.")
    if len(held) != len(given):
        raise ValueError(
            f"{path} holds another run: of {len(held)} networks there and "
            f"{len(given)} here."
        )
    changes: dict[str, str] = {}
    for stored, config in zip(held, given, strict=True):
        changes = _changes(stored, config) | changes
    if changes:
        raise ValueError(f"{path} holds another run: {'; '.join(changes.values())}.")
    return run


def _changes(stored: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, str]:
    """Returns text on each field that differs."""
    changes = {}
    # The directory may be older than some fields; these had their defaults.
    for name, there in {**dataclasses.asdict(Config()), **stored}.items():
        here = given.get(name)
        # Files hold infinity as text.
        if isinstance(here, float) and math.isinf(here):
            here = str(here)
        # The folder of the data decides no result.
        if there != here and name != "data_dir":
            changes[name] = f"{name} is {there} there and {here} here"
    return changes
