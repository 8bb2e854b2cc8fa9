"""The recipes of the papers, as data in this library's units.

The printed numbers are in :mod:`opnorm.papers`. Epsilon, steps and penalties are
converted to [0, 1] pixel units; each file says how. A mark [?] stands beside each
choice that a paper leaves open.
"""

from opnorm.training.recipes import farnia, finlay, regularization_view, roth
from opnorm.training.recipes.preset import Preset

__all__ = ["PRESETS", "Preset"]

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for paper in (roth, farnia, regularization_view, finlay)
    for preset in paper.presets()
}
