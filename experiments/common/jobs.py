"""Data and directories of jobs that train several networks."""

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opnorm import data, runs, training
from opnorm.training import Config


def dataset_name(given: str | None, config: Config) -> str:
    """Returns the data set to measure a network on.

    A line on stderr says so where the folder is that of the run, which may come from
    another user.

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
    for name, there in (dataclasses.asdict(Config()) | stored).items():
        here = given.get(name)
        # Files hold infinity as text.
        if isinstance(here, float) and math.isinf(here):
            here = str(here)
        # The folder of the data decides no result.
        if there != here and name != "data_dir":
            changes[name] = f"{name} is {there} there and {here} here"
    return changes
