"""A training recipe of a paper."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from opnorm.training.config import Config

Row = TypeVar("Row", bound=tuple[Any, ...])
# Values of fields of Config by name.
Settings = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Preset:
    """A training recipe of a paper.

    Attributes:
      name: its name for ``--preset``.
      settings: values of the fields of ``Config`` that the recipe decides; the others
        stay at their defaults.
      source: paper, and table or section.
      paper: the statements of the paper, in its own units and words.
      notes: conversions, choices, and where the released code differs.
      needs: fields of ``Config`` that the user has to give: "init_from", the trained
        network that the paper starts from (without it training begins from scratch), or
        "dataset", whose value is a placeholder.
      rows: the rows of tables in :mod:`opnorm.papers` that the paper prints for it.
    """

    name: str
    settings: Settings
    source: str
    paper: Mapping[str, str]
    notes: str = ""
    needs: tuple[str, ...] = ()
    rows: tuple[tuple[Any, ...], ...] = ()

    @property
    def config(self) -> Config:
        """The recipe over the defaults."""
        return Config(**self.settings)

    def row(self, kind: type[Row]) -> Row | None:
        """Returns the printed row of a type, or None if the paper has none.

        Args:
          kind: such as ``papers.roth.Trained``.
        """
        return next((row for row in self.rows if isinstance(row, kind)), None)
