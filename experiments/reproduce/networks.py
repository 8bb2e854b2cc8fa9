"""The rows of the table, their configurations, and the directories of their runs."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.common import jobs
from experiments.common.measure import norm_name
from experiments.common.records import Record
from opnorm import runs, training
from opnorm.training import Config

# An ending of the names of rows whose lambda was searched for.
MATCHED = "matched"


class Network(NamedTuple):
    """A network of a row.

    Attributes:
      seed: its seed.
      config: the configuration of its training.
      directory: its run directory.
    """

    seed: int
    config: Config
    directory: Path


class Row(NamedTuple):
    """A row of the table, with a network for each seed.

    Attributes:
      name: its name in results.
      preset: name of the preset that its configuration comes from.
      networks: its networks, at least one.
    """

    name: str
    preset: str
    networks: tuple[Network, ...]

    @property
    def config(self) -> Config:
        """The configuration of the first network."""
        return self.networks[0].config


class Plan(NamedTuple):
    """The choices that the rows are made of.

    Attributes:
      folder: directory of the job; each network has a run directory in it.
      first: the preset of the network that others start from.
      seeds: the seeds of each row.
      several: whether names of new run directories end with the seed.
      changes: fields of the configuration that replace those of every preset.
      first_epochs: epochs of the first preset; None for as many as the others.
    """

    folder: Path
    first: str
    seeds: tuple[int, ...]
    several: bool
    changes: Mapping[str, Any]
    first_epochs: int | None

    def row(self, preset: str, weight: float | None = None) -> Row:
        """Returns the row of a preset.

        Args:
          preset: its name.
          weight: lambda instead of the preset's, of a row of its own; None for the
            preset's.

        Raises:
          ValueError: for an unknown preset.
        """
        networks = tuple(self._network(preset, seed, weight) for seed in self.seeds)
        ending = "" if weight is None else f"_{MATCHED}"
        return Row(preset + ending, preset, networks)

    def _network(self, preset: str, seed: int, weight: float | None) -> Network:
        found = training.get_preset(preset)
        changes = dict(self.changes)
        # The preset's own seed, 0, unless one is given.
        changes["seed"] = seed
        if preset == self.first and self.first_epochs is not None:
            changes["epochs"] = self.first_epochs
        if "init_from" in found.needs and preset != self.first:
            start = find_directory(self.folder, self.first, seed, self.several)
            changes.setdefault("init_from", str(start))
        config = dataclasses.replace(found.config, **changes)
        name = preset
        if weight is not None and weight != config.weight:
            config = dataclasses.replace(config, weight=weight)
            name = f"{preset}-weight{weight:g}"
        directory = find_directory(self.folder, name, seed, self.several)
        return Network(seed, config, directory)


def find_directory(folder: Path, name: str, seed: int, several: bool) -> Path:
    """Returns the run directory of a network, also where an earlier command made it.

    A command without --seeds makes ``name``, one with --seeds makes ``name-seed0`` and
    so on; each finds the networks of the other.

    Args:
      folder: directory of the job.
      name: name of the row.
      seed: seed of the network.
      several: whether a new directory ends with the seed.

    Raises:
      ValueError: if the flags of a run are damaged.
    """
    plain, own = folder / name, folder / f"{name}-seed{seed}"
    if own.exists():
        return own
    held = runs.RunDirectory(plain)
    if held.is_begun() and held.flags().get("seed") == seed:
        return plain
    return own if several else plain


def check(rows: Sequence[Row]) -> None:
    """Raises a ValueError for a network that cannot be trained, or other data."""
    for row in rows:
        for network in row.networks:
            training.validate(network.config)
    # The data are loaded once.
    jobs.check_alike({row.name: row.config for row in rows}, training.DATA_FIELDS)


def reference(row: Row, rows: Sequence[Row]) -> Row | None:
    """Returns the row of adversarial training in the norm of a regularised row.

    Returns:
      None for a row without a penalty, or where no row is trained so.
    """
    if not row.config.method.endswith(("_snr", "_onr")):
        return None
    fitting = (
        other
        for other in rows
        if other.config.method == "adversarial" and other.config.p == row.config.p
    )
    return next(fitting, None)


def control(row: Row, rows: Sequence[Row]) -> Row | None:
    """Returns the standard network that was trained on as a row was.

    Returns:
      None for a row that starts from no network, or where there is no control.
    """
    if row.config.init_from is None or row.config.method == "standard":
        return None
    fitting = (
        other
        for other in rows
        if other.config.method == "standard"
        and other.config.init_from == row.config.init_from
        and other.config.epochs == row.config.epochs
    )
    return next(fitting, None)


def titles(configs: Mapping[str, Record]) -> dict[str, str]:
    """Returns the names of rows in figures: a method, and how it differs from others.

    Args:
      configs: the configuration of each row by name, as results hold it.
    """
    methods = [config["method"] for config in configs.values()]
    found = {
        name: f"{config['method']} ({_distinction(name, config)})"
        if methods.count(config["method"]) > 1 and _distinction(name, config)
        else config["method"]
        for name, config in configs.items()
    }
    texts = list(found.values())
    return {
        name: text if texts.count(text) == 1 else f"{configs[name]['method']} ({name})"
        for name, text in found.items()
    }


def _distinction(name: str, config: Record) -> str:
    """The text that tells a row from others of its method."""
    if config["method"] == "standard":
        return "trained on" if config["init_from"] is not None else ""
    if config["method"] == "global_snr":
        steps = config["num_steps"]
        text = f"{steps} iteration{'s' if steps > 1 else ''}"
    elif config["method"].endswith(("_snr", "_onr")):
        text = f"$\\lambda$ = {config['weight']:g}"
    else:
        text = norm_title(config["p"])
    return f"{text}, {MATCHED}" if name.endswith(MATCHED) else text


def norm_title(p: float | str) -> str:
    """Returns the name of a norm; files hold its exponent as text where infinite."""
    return norm_name(float(p))
