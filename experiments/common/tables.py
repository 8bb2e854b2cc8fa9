"""Tables as columns and rows, written as Markdown.

A table is made of columns (title, place of the value in a row, format) and of rows,
which are parts of the results as files hold them::

  COLUMNS = (
      Column("network", "name"),
      Column("accuracy", "clean", with_error("{:.1f}", times=100, unit=" %")),
      Column("sigma_1", ("singular_values", "mean", 0), number()),
      Column("epochs", lambda row: row["steps"] // row["steps_per_epoch"]),
  )
  text = tables.table(tables.named(results["networks"]), COLUMNS)
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Row = Mapping[str, Any]
Path = str | tuple[str | int, ...]
Format = Callable[[Any], str]

# Stands for a value that is not known: None, or NaN.
MISSING = "-"


class Column(NamedTuple):
    """One column of a table.

    Attributes:
      title: the text above it.
      value: where the value is in a row: a key, a path of keys and of places in lists,
        or a function of the row. A path that ends early gives None.
      form: makes text of the value.
    """

    title: str
    value: Path | Callable[[Any], Any]
    form: Format = str


def table(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """Returns a Markdown table without a newline at its end.

    A bar in a cell is escaped and a line break is a space, so that neither ends it.
    """
    cells = [[_cell(column.title) for column in columns]]
    cells += [
        [_cell(column.form(find(row, column.value))) for column in columns]
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]

    def line(values: Sequence[str]) -> str:
        return "| " + " | ".join(map(str.ljust, values, widths)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([line(cells[0]), rule, *map(line, cells[1:])])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def find(row: Row, value: Path | Callable[[Any], Any]) -> Any:
    """Returns the value of a row at a path, or the value of a function of it.

    Args:
      row: part of the results.
      value: as in :class:`Column`.

    Returns:
      The value; None where a key is missing, or where None is on the way to it.
    """
    if callable(value):
        return value(row)
    found: Any = row
    for key in (value,) if isinstance(value, str) else value:
        if found is None:
            return None
        found = found.get(key) if isinstance(key, str) else found[key]
    return found


def named(parts: Mapping[str, Row], key: str = "name") -> list[Row]:
    """Returns a row for each part of the results, which holds its name under ``key``.

    Raises:
      ValueError: if a part has that key already.
    """
    for part in parts.values():
        if key in part:
            raise ValueError(f"key is {key!r}; it must not be a key of the parts.")
    return [{key: name, **part} for name, part in parts.items()]


def number(text: str = "{:.3g}", *, times: float = 1, missing: str = MISSING) -> Format:
    """Returns a format of numbers, such as "0.462".

    Args:
      text: template of one number, such as ``"{:.0f} s"``.
      times: factor in front of the number; 100 for percents.
      missing: text for None and NaN.
    """

    def form(value: Any) -> str:
        known = _known(value)
        return missing if known is None else text.format(_times(known, times))

    return form


def percent(
    text: str = "{:.1f}", *, unit: str = " %", missing: str = MISSING
) -> Format:
    """Returns a format of fractions, such as "44.5 %"; None and NaN are ``missing``."""
    return number(text + unit, times=100, missing=missing)


def several(each: Format, *, between: str = " / ", unit: str = "") -> Format:
    """Returns a format of a list, such as "44.5 / 46.2 %": ``unit`` ends it."""

    def form(values: Any) -> str:
        return between.join(map(each, values)) + unit

    return form


def numbers(text: str = "{:.3g}") -> Format:
    """Returns a format of a list of numbers, such as "11 / 12.3"."""
    return several(number(text))


def percents(text: str = "{:.1f}") -> Format:
    """Returns a format of a list of fractions, such as "44.5 / 46.2 %"."""
    return several(number(text, times=100), unit=" %")


def with_error(
    text: str = "{:.3g}",
    error: str | None = None,
    *,
    times: float = 1,
    unit: str = "",
    names: tuple[str, str] = ("mean", "standard_error"),
    alone: bool = False,
    missing: str = MISSING,
) -> Format:
    """Returns a format of a number with its error, such as "44.5 ± 1.2 %".

    The value is a mapping that holds both, or a pair; None is ``missing``.

    Args:
      text: template of the number.
      error: template of the error; None for the same.
      times: factor in front of both; 100 for percents.
      unit: text behind them.
      names: keys of both in the mapping.
      alone: whether a number whose error is not known stands without "±"; otherwise
        "-" stands for the error.
      missing: text where the number itself is not known.
    """

    def form(value: Any) -> str:
        if value is None:
            return missing
        pair = [value[n] for n in names] if isinstance(value, Mapping) else value
        mean, spread = map(_known, pair)
        if mean is None:
            return missing
        shown = text.format(_times(mean, times))
        if spread is not None:
            shown += " ± " + (error or text).format(_times(spread, times))
        elif not alone:
            shown += f" ± {MISSING}"
        return shown + unit

    return form


def _known(value: Any) -> Any:
    """The number, or None for NaN; files hold infinity as text."""
    if isinstance(value, str):
        value = float(value)
    return None if value is None or math.isnan(value) else value


def _times(value: Any, times: float) -> Any:
    """The product; whole numbers stay whole for templates such as ``{:d}``."""
    return value if times == 1 else times * value
