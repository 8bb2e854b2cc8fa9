"""training: what a preset is."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from opnorm.training.config import Config


@dataclasses.dataclass(frozen=True)
class Preset:
    """A training recipe of a paper.

    Attributes:
      name: what ``--preset`` calls it.
      settings: fields of ``Config`` that the recipe decides; the others stay at their
        defaults.
      source: paper, and table or section.
      paper: what the paper says, in its own units and words.
      notes: conversions, choices, and where the released code differs.
      needs: fields of ``Config`` that the user has to give: "init_from", the trained
        network the paper starts from (without it training begins from scratch), or
        "dataset", a placeholder that no data set is called by.
    """

    name: str
    settings: Mapping[str, Any]
    source: str
    paper: Mapping[str, str]
    notes: str = ""
    needs: tuple[str, ...] = ()

    @property
    def config(self) -> Config:
        """The recipe over the defaults."""
        return Config(**self.settings)
