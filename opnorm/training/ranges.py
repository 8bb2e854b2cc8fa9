"""Ranges of the fields of a configuration."""

import math
from collections.abc import Callable, Collection
from typing import NamedTuple

# A value of a field; from_plain and the command line check its type.
Value = str | float | None


class Range(NamedTuple):
    """The allowed values of a field.

    Attributes:
      contains: whether a value is allowed.
      words: the end of the error "name is value; it ...".
    """

    contains: Callable[..., bool]
    words: str

    def check(self, name: str, value: Value) -> None:
        """Raises ValueError for a value that is not allowed."""
        if not self.contains(value):
            raise ValueError(f"{name} is {value!r}; it {self.words}.")


ANY = Range(lambda value: True, "may be anything")
POSITIVE = Range(lambda value: 0 < value < math.inf, "must be positive and finite")
POSITIVE_OR_INFINITE = Range(lambda value: value > 0, "must be positive")
EXPONENT = Range(lambda value: value >= 1, "must be in [1, inf]")
UNIT = Range(lambda value: 0 <= value <= 1, "must be in [0, 1]")
UNIT_WITHOUT_0 = Range(lambda value: 0 < value <= 1, "must be in (0, 1]")
UNIT_WITHOUT_1 = Range(lambda value: 0 <= value < 1, "must be in [0, 1)")


def one_of(allowed: Collection[str]) -> Range:
    """Returns the range of some names."""
    return Range(lambda value: value in allowed, f"may be {', '.join(allowed)}")


def at_least(least: int) -> Range:
    """Returns the range of the finite numbers that are not smaller."""
    return Range(
        lambda value: least <= value < math.inf,
        f"must be finite and at least {least}",
    )


def optional(allowed: Range) -> Range:
    """Returns a range with None in it."""
    return Range(lambda value: value is None or allowed.contains(value), allowed.words)
