"""The networks that experiments.regularization_view compares, as rows of tables."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.common import options
from opnorm import training
from opnorm.training import Config

# How a network is trained: without an attack, with PGD, or with FGSM.
STANDARD, PGD, FGSM = "standard", "pgd", "fgsm"
# The ways to bound spectral norms that are the paper's: methods of a configuration.
CLIPPINGS = ("clip", "clip_once")
_LEVELS = 255
# The paper's data sets and architectures by the names of this library.
_DATASETS = {"cifar10_mini": "cifar10", "cifar10": "cifar10", "cifar100": "cifar100"}
_TINY = "tiny_imagenet"
_DEPTHS: dict[int | None, str] = {56: "resnet56", 110: "resnet110"}
# Fields that the row of a network decides.
_OF_ROWS = (
    "method",
    "p",
    "epsilon",
    "epsilon_unit",
    "num_steps",
    "step_size",
    "random_start",
    "spectral_norm_bound",
    "spectral_norm_method",
    "seed",
)
# Fields that may differ between networks that are compared.
_FREE = ("data_dir", "init_from")
# Fields that no network here uses.
_UNUSED = (
    *("q", "weight", "mix", "difference_step", "divide_by_size", "gamma"),
    *("attack_labels", "search", "variant", "penalty_fraction"),
    *("spectral_norm_steps", "random_labels", "logit_activation"),
)
# Fields with flags: the data and the recipe, with the steps of PGD in training.
FIELDS = tuple(
    field.name
    for field in dataclasses.fields(Config)
    if field.name
    not in {*_OF_ROWS, *_UNUSED} - {"num_steps", "step_size", "epsilon_unit"}
)


class Row(NamedTuple):
    """The common properties of networks that differ only in seed.

    Attributes:
      recipe: the differences from other recipes among the networks, such as
        "cifar100, depth 110"; empty where there is one recipe.
      attack: ``STANDARD``, ``PGD`` or ``FGSM``.
      level: length of the attack in training, in levels of 255; 0 without one.
      bound: to which the layers' spectral norms are clipped, or None.
      clipping: "clip" or "clip_once" with a bound, else None.
    """

    recipe: str
    attack: str
    level: float
    bound: float | None
    clipping: str | None

    @property
    def clip(self) -> str | None:
        """The bound and how it is kept, such as "clip3"; None without a bound."""
        return None if self.bound is None else f"{self.clipping}{self.bound:g}"

    @property
    def name(self) -> str:
        """The name of the row in directories of runs and in results."""
        attack = self.attack + (f"{self.level:g}" if self.level else "")
        clip = "" if self.clip is None else f"_{self.clip}"
        return attack + clip + (f" ({self.recipe})" if self.recipe else "")


class Trained(NamedTuple):
    """A network to be, or that is, trained.

    Attributes:
      row: its place in the tables.
      config: configuration of its training.
      directory: directory of its run.
    """

    row: Row
    config: Config
    directory: Path


def planned(
    base: Config,
    levels: Sequence[float],
    seeds: Sequence[int],
    folder: Path,
    *,
    bounds: Sequence[float],
    bound_seeds: Sequence[int],
    fgsm_seeds: Sequence[int],
    clipping: str,
) -> list[Trained]:
    """Returns the networks to train, in the order in which they are trained.

    The first seed of every level comes first, so that an unfinished command has the
    whole range of levels. Clipped networks and those trained with FGSM come last, at
    the levels above 0.

    Args:
      base: the recipe, with the steps of PGD.
      levels: lengths of the attack in levels of 255, 0 for training without one.
      seeds: seeds of the networks that are trained with PGD and not clipped.
      folder: where run directories are made.
      bounds: bounds on the layers' spectral norms.
      bound_seeds: seeds of the clipped networks.
      fgsm_seeds: seeds of the networks trained with FGSM.
      clipping: "clip" or "clip_once".

    Raises:
      ValueError: for lists that are no choice of networks, or a configuration that
        cannot be trained.
    """
    options.check_each_once("strengths", list(levels))
    options.check_each_once("seeds", list(seeds))
    if not all(0 <= level < math.inf for level in levels):
        raise ValueError(f"strengths is {list(levels)}; each must be finite, >= 0.")
    if not all(0 < bound < math.inf for bound in bounds):
        raise ValueError(f"clips is {list(bounds)}; each must be positive and finite.")
    for name, values in (
        ("clips", bounds),
        ("clip_seeds", bound_seeds),
        ("fgsm_seeds", fgsm_seeds),
    ):
        if values:
            options.check_each_once(name, list(values))
    attacked = sorted(level for level in levels if level)
    rows = [
        (Row("", PGD if level else STANDARD, level, None, None), seed)
        for seed in seeds
        for level in sorted(levels)
    ]
    rows += [
        (Row("", PGD, level, bound, clipping), seed)
        for seed in bound_seeds
        for bound in bounds
        for level in attacked
    ]
    rows += [
        (Row("", FGSM, level, None, None), seed)
        for seed in fgsm_seeds
        for level in attacked
    ]
    chosen = [
        Trained(row, _config(base, row, seed), folder / f"{row.name}-seed{seed}")
        for row, seed in rows
    ]
    for each in chosen:
        training.validate(each.config)
    return chosen


def _config(base: Config, row: Row, seed: int) -> Config:
    fields: dict[str, Any] = {"seed": seed, "p": math.inf}
    if row.attack == STANDARD:
        default = Config()
        names = ("method", "p", "epsilon", "epsilon_unit", "num_steps", "step_size")
        fields |= {name: getattr(default, name) for name in names}
    else:
        epsilon = row.level / _LEVELS
        fields |= {"method": "adversarial_only", "epsilon": epsilon}
        if row.attack == FGSM:
            fields |= {"num_steps": 1, "step_size": epsilon, "random_start": False}
    if row.bound is not None:
        fields |= {
            "spectral_norm_bound": row.bound,
            "spectral_norm_method": row.clipping,
        }
    return dataclasses.replace(base, **fields)


def given(directories: Sequence[str]) -> list[Trained]:
    """Returns the networks in run directories.

    Raises:
      ValueError or FileNotFoundError: for runs that cannot be read or have no place in
        the tables.
    """
    places = [Path(run).resolve() for run in directories]
    for run, place in zip(directories, places, strict=True):
        if places.count(place) > 1:
            raise ValueError(f"run {run} is given more than once.")
    configs = {run: training.load_run(run).config for run in directories}
    recipes = _recipes(configs)
    chosen = [
        Trained(_row_of(run, config, recipes[run]), config, Path(run))
        for run, config in configs.items()
    ]
    _check_rows(chosen)
    _check_units(chosen)
    return chosen


def _row_of(run: str, config: Config, recipe: str) -> Row:
    """The row of a trained network; its configuration says how it was trained."""
    bound, clipping = config.spectral_norm_bound, None
    if bound is not None and math.isinf(bound):
        bound = None
    if bound is not None:
        clipping = config.spectral_norm_method
        if clipping not in CLIPPINGS:
            raise ValueError(
                f"run {run} has spectral_norm_method={clipping}; it may be "
                f"{' or '.join(CLIPPINGS)} here, or have no bound."
            )
    if config.method == "standard":
        return Row(recipe, STANDARD, 0.0, bound, clipping)
    if config.method != "adversarial_only" or config.p != math.inf:
        raise ValueError(
            f"run {run} is trained with method={config.method} and p={config.p:g}; it "
            "must be standard, or adversarial_only with p=inf."
        )
    level = float(f"{_LEVELS * config.epsilon:.6g}")
    attack = FGSM if config.num_steps == 1 and not config.random_start else PGD
    return Row(recipe, attack, level, bound, clipping)


def _recipes(configs: Mapping[str, Config]) -> dict[str, str]:
    """The fields in which the recipe of each run differs from others, as text."""
    alike = (*_OF_ROWS, *_FREE)
    recipes = {
        run: {k: v for k, v in dataclasses.asdict(config).items() if k not in alike}
        for run, config in configs.items()
    }
    different = [
        name
        for name in next(iter(recipes.values()))
        if len({str(recipe[name]) for recipe in recipes.values()}) > 1
    ]
    # The names of data sets and models speak for themselves.
    titles = {name: "" if name in ("dataset", "model") else name for name in different}
    return {
        run: ", ".join(f"{titles[name]} {recipe[name]}".strip() for name in different)
        for run, recipe in recipes.items()
    }


def _check_rows(chosen: Sequence[Trained]) -> None:
    """Networks of a row differ in the seed, and in nothing else."""
    first: dict[Row, Trained] = {}
    seeds: dict[tuple[Row, int], Trained] = {}
    for each in chosen:
        other = first.setdefault(each.row, each)
        one, two = map(dataclasses.asdict, (other.config, each.config))
        differing = [
            name
            for name in one
            if one[name] != two[name] and name not in ("seed", *_FREE)
        ]
        if differing:
            name = differing[0]
            raise ValueError(
                f"runs {other.directory} and {each.directory} are both {each.row.name},"
                f" and {name} is {one[name]} there and {two[name]} here; they may "
                "differ in the seed alone."
            )
        twin = seeds.setdefault((each.row, each.config.seed), each)
        if twin is not each:
            raise ValueError(
                f"runs {twin.directory} and {each.directory} are of the same network; "
                "give one of them."
            )


def _check_units(chosen: Sequence[Trained]) -> None:
    """All attacks have one unit, since levels of different units have no order."""
    units = {e.config.epsilon_unit: e for e in chosen if e.row.attack != STANDARD}
    if len(units) > 1:
        shown = ", ".join(f"{unit} in {each.directory}" for unit, each in units.items())
        raise ValueError(
            f"run has attacks in several units, {shown}; compare them one by one."
        )


def unit(chosen: Sequence[Trained]) -> str:
    """Returns the unit of the attacks in training, "pixels" where there is none."""
    for each in chosen:
        if each.row.attack != STANDARD:
            return each.config.epsilon_unit
    return Config().epsilon_unit


def paper_names(config: Config) -> tuple[str | None, str | None]:
    """Returns the paper's names of the data set and the architecture, None if others.

    The width is not compared, since networks here may be narrower than the paper's.
    """
    dataset = _DATASETS.get(config.dataset)
    if config.dataset.startswith(f"{_TINY}:"):
        dataset = _TINY
    if config.model == "wrn50_2":
        return dataset, config.model
    return dataset, _DEPTHS.get(_fixup_depth(config))


def title(config: Config) -> str:
    """Returns the network and its training for readers, without the attack."""
    depth = _fixup_depth(config)
    name = config.model if depth is None else f"Fixup-{depth}"
    width = "" if config.width is None else f", width {config.width}"
    return f"{name}{width}, {config.epochs} epochs"


def _fixup_depth(config: Config) -> int | None:
    """The depth of a Fixup network; None for other networks."""
    depths = {"fixup": config.depth or 56, "fixup56": 56, "fixup110": 110}
    return depths.get(config.model)
