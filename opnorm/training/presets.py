"""Recipes and grids of the papers by name.

The recipes and their conversions are in :mod:`opnorm.training.recipes`, the grids in
:mod:`opnorm.training.grids`.
"""

import difflib
import textwrap
from collections.abc import Iterable

from opnorm.training.grids import GRIDS, STEP_RATIO, Grid
from opnorm.training.recipes import PRESETS, Preset

__all__ = [
    "GRIDS",
    "PRESETS",
    "STEP_RATIO",
    "Grid",
    "Preset",
    "describe_presets",
    "get_grid",
    "get_preset",
]


def get_preset(name: str) -> Preset:
    """Returns a preset by name::

        >>> from opnorm import training
        >>> preset = training.get_preset("roth_cnn7_snr")
        >>> preset.config.method, preset.config.epsilon
        ('data_dependent_snr', 0.875)
        >>> preset.paper["epsilon"]  # of pixels in [-1, 1]
        '1.75'

    Raises:
      ValueError: for an unknown name; it names the nearest ones.
    """
    if name not in PRESETS:
        raise ValueError(f"preset {_unknown(name, PRESETS, '--list_presets')}")
    return PRESETS[name]


def get_grid(name: str) -> Grid:
    """Returns a grid by name::

        >>> from opnorm import training
        >>> training.get_grid("farnia_beta").values["spectral_norm_bound"]
        (inf, 1.0, 1.3, 1.6, 2.0, 4.0)

    Raises:
      ValueError: for an unknown name; it names the nearest ones.
    """
    if name not in GRIDS:
        raise ValueError(f"grid {_unknown(name, GRIDS, '--list_presets')}")
    return GRIDS[name]


def describe_presets(name: str | None = None) -> str:
    """Returns one preset in full as text, or a line for each preset and each grid.

    Raises:
      ValueError: for an unknown name.
    """
    if name is not None:
        return _describe_one(get_preset(name))
    wide = max(map(len, [*PRESETS, *GRIDS]))
    lines = ["presets (--preset=NAME --list_presets shows one in full):"]
    for preset in PRESETS.values():
        needs = "".join(f"; needs --{need}" for need in preset.needs)
        config = preset.config
        what = f"{config.dataset}, {config.model}, {config.method}"
        lines.append(f"  {preset.name:{wide}}  {what}; {preset.source}{needs}")
    lines.append("grids (--grid=NAME of experiments.sweep):")
    for grid in GRIDS.values():
        axes = ", ".join(f"{len(v)} x {axis}" for axis, v in grid.values.items())
        lines.append(f"  {grid.name:{wide}}  {axes}; {grid.source}")
    return "\n".join(lines)


def _describe_one(preset: Preset) -> str:
    lines = [f"{preset.name}: {preset.source}"]
    for title, values in (("the paper", preset.paper), ("here", preset.settings)):
        lines.append(f"{title}:")
        lines += [f"  {name}: {value}" for name, value in values.items()]
    if preset.needs:
        lines.append("to be given: " + ", ".join(f"--{n}" for n in preset.needs))
    if preset.notes:
        lines.append("notes:")
        lines += textwrap.wrap(
            preset.notes, 84, initial_indent="  ", subsequent_indent="  "
        )
    return "\n".join(lines)


def _unknown(name: str, known: Iterable[str], where: str) -> str:
    close = difflib.get_close_matches(name, known, n=5, cutoff=0.4)
    nearest = f"the nearest are {', '.join(close)}; " if close else ""
    return f"{name!r} is unknown; {nearest}{where} shows all."
