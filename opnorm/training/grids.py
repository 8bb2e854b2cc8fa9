"""The grids that the papers searched over, as data in this library's units."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from opnorm import papers

# An axis of grids beside the fields of Config: step_size in multiples of
# epsilon / num_steps, whatever those two are at a point.
STEP_RATIO = "step_ratio"


@dataclasses.dataclass(frozen=True)
class Grid:
    """Values that a paper searched over.

    Attributes:
      name: its name for ``--grid``.
      values: the values of each axis, a field of ``Config`` or ``STEP_RATIO``; the
        search is over their product.
      source: paper and table.
      paper: the axes as the paper states them.
    """

    name: str
    values: Mapping[str, tuple[Any, ...]]
    source: str
    paper: Mapping[str, str]


(_ROTH,) = papers.roth.TABLE_3.rows
# Roth et al. use pixels in [-1, 1], so that lengths are halved.
_AXES: dict[str, tuple[str, tuple[Any, ...], str]] = {
    "epsilon_l2": (
        "epsilon",
        tuple(epsilon / 2 for epsilon in _ROTH.epsilon_l2),
        "0.5 to 4.0, of [-1, 1]",
    ),
    "epsilon_linf": (
        "epsilon",
        tuple(epsilon / 2 for epsilon in _ROTH.epsilon_linf),
        "1/255 to 18/255, of [-1, 1]",
    ),
    "step_ratio": (STEP_RATIO, _ROTH.step_ratio, "alpha 1 to 5 epsilon / iters"),
    "num_steps": ("num_steps", _ROTH.num_steps, "iters 1 to 50"),
    "weight": ("weight", _ROTH.weight, "lambda 1e-5 to 30"),
    "global_num_steps": ("num_steps", _ROTH.global_num_steps, "iters 1, 10"),
}


def _grids() -> Iterable[Grid]:
    # The paper prints the values of each axis; that it searched over their product is
    # our reading of it, so each axis can be had alone.
    for grid, axes in {
        "roth_epsilon_l2": ("epsilon_l2",),
        "roth_epsilon_linf": ("epsilon_linf",),
        "roth_step_ratio": ("step_ratio",),
        "roth_num_steps": ("num_steps",),
        "roth_weight": ("weight",),
        "roth_at_l2": ("epsilon_l2", "step_ratio", "num_steps"),
        "roth_at_linf": ("epsilon_linf", "step_ratio", "num_steps"),
        "roth_snr": ("weight", "num_steps"),
        "roth_global_snr": ("weight", "global_num_steps"),
    }.items():
        used = [_AXES[axis] for axis in axes]
        yield Grid(
            grid,
            {name: values for name, values, _ in used},
            "Roth et al. 2020, Table 3",
            {name: stated for name, _, stated in used},
        )
    yield Grid(
        "farnia_beta",
        {"spectral_norm_bound": (math.inf, 1.0, 1.3, 1.6, 2.0, 4.0)},
        "Farnia et al. 2019, released code (AlexNet)",
        {"beta": "infinity, 1, 1.3, 1.6, 2, 4"},
    )
    yield Grid(
        "farnia_beta_chosen",
        {"spectral_norm_bound": (math.inf, *_chosen_bounds())},
        "Farnia et al. 2019, released notebooks",
        {"beta": "all that were the best of some row of Table 1"},
    )
    yield Grid(
        "regularization_view_spectral_norm",
        {"spectral_norm_bound": (1.0, 3.0, 5.0), "spectral_norm_method": ("clip",)},
        "regularization view, Table 6",
        {"spectral norm": "1, 3, 5"},
    )
    yield Grid(
        "regularization_view_epsilon",
        {"epsilon": (4 / 255, 8 / 255, 16 / 255)},
        "regularization view, Tables 1-6",
        {"epsilon": "4, 8, 16 of 255"},
    )


def _chosen_bounds() -> list[float]:
    return sorted({row.beta for row in papers.farnia.NOTEBOOKS.rows} - {math.inf})


GRIDS: dict[str, Grid] = {grid.name: grid for grid in _grids()}
