"""Tables are columns of rows, with formats that make text of values."""

import importlib
import json
import math
from pathlib import Path

import pytest
from absl import flags

import experiments
from experiments.common import tables
from experiments.common.tables import Column

_ROWS = {
    "first": {"clean": {"mean": 0.445, "standard_error": 0.012}, "values": [1, 12.34]},
    "second": {"clean": {"mean": 0.5, "standard_error": None}, "values": [None]},
    "third": {"clean": None},
}


def test_a_table_is_columns_of_rows():
    columns = (
        Column("name", "name", str.title),
        Column("clean", "clean", tables.with_error("{:.1f}", times=100, unit=" %")),
        Column("first value", ("values", 0), tables.number()),
        Column("parts", len, tables.number("{:d}")),
    )
    assert tables.table(tables.named(_ROWS), columns).splitlines() == [
        "| name   | clean        | first value | parts |",
        "|--------|--------------|-------------|-------|",
        "| First  | 44.5 ± 1.2 % | 1           | 3     |",
        "| Second | 50.0 ± - %   | -           | 3     |",
        "| Third  | -            | -           | 2     |",
    ]
    assert tables.table([], columns[:1]) == "| name |\n|------|"
    # A name ends neither its cell nor its line.
    bars = tables.table([{"name": "a|b\nc"}], (Column("x|y", "name"),))
    assert bars == "| x\\|y   |\n|--------|\n| a\\|b c |"
    with pytest.raises(ValueError, match="key is 'clean'"):
        tables.named(_ROWS, "clean")
    with pytest.raises(IndexError):
        tables.find(_ROWS["second"], ("values", 1))


@pytest.mark.parametrize(
    ("form", "value", "text"),
    [
        (tables.number(), 0.12345, "0.123"),
        (tables.number("{:d} s"), 7, "7 s"),
        (tables.number(missing=""), None, ""),
        (tables.number(), math.nan, "-"),
        # Files of results hold infinity as text.
        (tables.number(), "Infinity", "inf"),
        (tables.percent(), 0.5, "50.0 %"),
        (tables.percent("{:.0f}", unit="%"), None, "-"),
        (tables.numbers(), [11, 12.34, math.nan], "11 / 12.3 / -"),
        (tables.percents(), [0.5, None], "50.0 / - %"),
        (tables.with_error(error="{:.1g}"), (1.234, 0.056), "1.23 ± 0.06"),
        (tables.with_error(alone=True, unit=" s"), (2.0, None), "2 s"),
        (tables.with_error(missing=""), {"mean": None, "standard_error": 1}, ""),
        (tables.with_error(names=("a", "b")), {"a": 1, "b": 2}, "1 ± 2"),
    ],
)
def test_a_format_makes_text_of_a_value(form, value, text):
    assert form(value) == text


@pytest.fixture
def binary():
    """``(name) -> module``, whose flags do not meet those of other binaries."""
    held = flags.FlagValues()
    held.append_flag_values(flags.FLAGS)
    flags.FLAGS.remove_flag_values(held)
    yield lambda name: importlib.import_module(f"experiments.{name}")
    flags.FLAGS.remove_flag_values(list(flags.FLAGS))
    flags.FLAGS.append_flag_values(held)


_RESULTS = Path(experiments.__file__).parent / "results"


@pytest.mark.parametrize(
    ("name", "of"),
    [
        ("equivalence", "equivalence"),
        ("interpolation_mix", "interpolation.tables"),
        ("interpolation_step_size", "interpolation.tables"),
        ("table2", "reproduce.tables"),
        ("table2_50000", "reproduce.tables"),
    ],
)
def test_committed_results_give_the_committed_table(name, of, binary):
    results = json.loads((_RESULTS / name / "results.json").read_text())
    expected = (_RESULTS / name / "table.md").read_text()
    given = [results]
    if of != "reproduce.tables":
        # The training times are in the table alone, in its last column.
        lines = [line.split("|") for line in expected.splitlines()[2:]]
        seconds = [float(line[-2].split()[0]) for line in lines]
        if of == "equivalence":
            given.append(dict(zip(results["methods"], seconds, strict=True)))
        else:
            given.append(seconds)
    assert binary(of).make_table(*given) + "\n" == expected
