"""The type of a printed table, with its units, its source and doubts about it."""

from collections.abc import Mapping
from typing import Any, Generic, NamedTuple, TypeVar

RowT = TypeVar("RowT", bound=tuple[Any, ...])

FRACTION = "fraction"
PIXELS = "pixels in [0, 1]"
NATS = "nats"


class Table(NamedTuple, Generic[RowT]):
    """A printed table.

    Attributes:
      source: paper and number of the table.
      rows: NamedTuples of one class, in the printed order. None stands for a cell that
        the paper leaves empty.
      units: the unit of each column that has one. Accuracies and errors are fractions,
        with the digits that the paper prints of them as percents.
      doubts: reasons to doubt some of the printed values.
    """

    source: str
    rows: tuple[RowT, ...]
    units: Mapping[str, str]
    doubts: tuple[str, ...] = ()

    def select(self, **columns: Any) -> tuple[RowT, ...]:
        """Returns the rows that have these values in these columns.

        Raises:
          ValueError: for a column that the table does not have.
        """
        known: tuple[str, ...] = getattr(self.rows[0], "_fields", ())
        unknown = [name for name in columns if name not in known]
        if unknown:
            raise ValueError(
                f"column {unknown[0]!r} is unknown; {self.source} has "
                f"{', '.join(known)}."
            )
        return tuple(
            row
            for row in self.rows
            if all(getattr(row, name) == value for name, value in columns.items())
        )

    def row(self, **columns: Any) -> RowT:
        """Returns the only row that has these values in these columns.

        Raises:
          ValueError: for a column that the table does not have, and if no row or more
            than one row fits.
        """
        found = self.select(**columns)
        if len(found) != 1:
            given = ", ".join(f"{name}={value!r}" for name, value in columns.items())
            raise ValueError(
                f"{given} fits {len(found)} rows of {self.source}; it must fit one."
            )
        return found[0]
