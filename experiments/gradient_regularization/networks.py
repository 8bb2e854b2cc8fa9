"""The networks that experiments.gradient_regularization compares, as rows of tables."""

import dataclasses
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from experiments.common import figures, measure, options
from opnorm import training
from opnorm.training import Config

METHODS = {
    "undefended": "standard",
    "adversarial": "adversarial_only",
    "gradient": "gradient_regularization",
}
# The fields of each method; networks of the others have the defaults.
_OWN: dict[str, tuple[str, ...]] = {
    "undefended": (),
    "adversarial": (
        "p",
        "epsilon",
        "epsilon_unit",
        "num_steps",
        "step_size",
        "random_start",
    ),
    "gradient": ("p", "difference_step", "penalty_fraction"),
}
# Fields that a row decides, and fields that no method here uses.
_NO_FLAGS = ("method", "weight", "seed", "activation", "divide_by_size")
_UNUSED = ("q", "mix", "search", "variant", "init_from")
FIELDS = tuple(
    field.name
    for field in dataclasses.fields(Config)
    if field.name not in (*_NO_FLAGS, *_UNUSED)
)
# Flags of the training that measurements of trained networks use too.
_OF_GIVEN = ("p", "dataset", "data_dir")
# The rows of the paper's tables for CIFAR-10.
DEFAULT = {
    2.0: (
        "undefended",
        "undefended_smooth",
        "adversarial_Linf",
        "gradient_0.1",
        "gradient_0.1_smooth",
        "gradient_1",
    ),
    math.inf: ("undefended", "adversarial", "gradient_0.1", "gradient_1"),
}
_EPSILON = {2.0: 0.5, math.inf: 8 / 255}


class Row(NamedTuple):
    """The common properties of networks that differ only in seed.

    Attributes:
      kind: a key of ``METHODS``, or the name of another method.
      weight: lambda, if the method has one.
      p: exponent of the norm that it is trained against, if it has one.
      smooth: whether its activation is smooth.
      extra: ending that distinguishes rows of one name.
    """

    kind: str
    weight: float | None
    p: float | None
    smooth: bool
    extra: str = ""

    def name(self, p: float | None = None) -> str:
        """Returns the name of the row in --rows, in which the norm p is left out."""
        weight = "" if self.weight is None else f"_{self.weight:g}"
        norm = "" if self.p in (None, p) else f"_{measure.norm_name(self.p or 0)}"
        return self.kind + weight + norm + self.smooth * "_smooth" + self.extra

    def label(self, p: float) -> str:
        """Returns the name of the row for readers, without the smoothness."""
        text = {
            "undefended": "undefended",
            "adversarial": "adversarial training",
            "gradient": "gradient penalty",
        }.get(self.kind, figures.LABELS.get(self.kind, self.kind))
        if self.weight is not None:
            text += f", lambda = {self.weight:.3g}"
        if self.p not in (None, p):
            text += f", against {measure.norm_name(self.p or 0)}"
        return text + self.extra


class Trained(NamedTuple):
    """A network to be, or that is, trained."""

    row: Row
    config: Config
    directory: Path


def planned(
    names: Sequence[str], seeds: Sequence[int], p: float, folder: Path
) -> list[Trained]:
    """Returns the networks to train, row by row.

    Args:
      names: names of the rows.
      seeds: seeds of each row.
      p: exponent of the norm of rows whose name has none.
      folder: where run directories are made.

    Raises:
      ValueError: for a row, seed or configuration that cannot be trained.
    """
    rows = [parse(name, p) for name in names]
    options.check_each_once("rows", [row.name(p) for row in rows])
    options.check_each_once("seeds", list(seeds))
    chosen = [
        Trained(row, _config(row, seed), folder / f"{row.name()}-seed{seed}")
        for row in rows
        for seed in seeds
    ]
    for each in chosen:
        training.validate(each.config)
    return chosen


def parse(text: str, p: float) -> Row:
    """Reads the name of a row, such as "gradient_0.1_Linf_smooth".

    Raises:
      ValueError: for other text; it says how a row is written.
    """
    pattern = r"(undefended|adversarial|gradient_([^_]+))(?:_(L2|Linf))?(_smooth)?"
    found = re.fullmatch(pattern, text)
    try:
        if not found or (found[1] == "undefended" and found[3]):
            raise ValueError
        weight = None if found[2] is None else float(found[2])
    except ValueError:
        raise ValueError(
            f"rows has {text!r}; it may have undefended, adversarial and "
            "gradient_<lambda>, the latter two with _L2 or _Linf, all with _smooth."
        ) from None
    norm = {"L2": 2.0, "Linf": math.inf}.get(found[3], p)
    kind = found[1].split("_")[0]
    return Row(kind, weight, None if kind == "undefended" else norm, bool(found[4]))


def _config(row: Row, seed: int) -> Config:
    method, own = METHODS[row.kind], _OWN[row.kind]
    config = options.config_from_flags(
        Config,
        method=method,
        seed=seed,
        activation="smooth_relu" if row.smooth else "relu",
        divide_by_size=row.kind == "gradient" and row.p == math.inf,
    )
    default, preset = Config(), flags.FLAGS.preset
    # A recipe of another method does not decide the fields of this one.
    if preset is not None and training.get_preset(preset).config.method != method:
        flagged: dict[str, Any] = {name: flags.FLAGS[name].value for name in own}
        config = dataclasses.replace(config, **flagged)
    others = {name for names in _OWN.values() for name in names} - {*own}
    chosen: dict[str, Any] = {name: getattr(default, name) for name in others}
    chosen["weight"] = default.weight if row.weight is None else row.weight
    if row.p is not None:
        chosen["p"] = row.p
    if "epsilon" in own and config.epsilon is None:
        chosen["epsilon"] = _EPSILON[row.p or 2.0]
    return dataclasses.replace(config, **chosen)


def given(runs: Sequence[str]) -> list[Trained]:
    """Returns the networks in run directories, row by row.

    Raises:
      ValueError or FileNotFoundError: for runs that cannot be read or compared, and for
        flags of the training.
    """
    for name in ("rows", "seeds", "preset", *FIELDS):
        if flags.FLAGS[name].present and name not in _OF_GIVEN:
            raise ValueError(
                f"{name} is {flags.FLAGS[name].value}; it is of networks that are "
                "trained here, and run names trained ones."
            )
    places = [Path(run).resolve() for run in runs]
    for run, place in zip(runs, places, strict=True):
        if places.count(place) > 1:
            raise ValueError(f"run {run} is given more than once.")
    configs = [training.load_run(run).config for run in runs]
    names = sorted({config.dataset for config in configs})
    if len(names) > 1 and not flags.FLAGS["dataset"].present:
        raise ValueError(
            f"the runs were trained on {', '.join(names)}; choose one with --dataset."
        )
    alike: dict[Row, set[Config]] = {}
    for config in configs:
        same = dataclasses.replace(config, seed=0, data_dir=None, init_from=None)
        alike.setdefault(_row_of(config), set()).add(same)
    chosen = []
    for run, config in zip(runs, configs, strict=True):
        row = _row_of(config)
        if len(alike[row]) > 1:
            row = row._replace(extra=f" ({Path(run).name})")
        chosen.append(Trained(row, config, Path(run)))
    order = list(dict.fromkeys(each.row for each in chosen))
    return sorted(chosen, key=lambda each: order.index(each.row))


def _row_of(config: Config) -> Row:
    kinds = {method: kind for kind, method in METHODS.items()}
    kind = kinds.get(config.method, config.method)
    return Row(
        kind,
        None if kind in ("undefended", "adversarial") else config.weight,
        None if kind == "undefended" else config.p,
        config.activation == "smooth_relu",
    )
