"""Numbers as flags give them, and as files of results and tables hold them."""

import json
import math

import numpy as np
import pytest

from experiments.common import measure, options, records, tables
from experiments.evaluate import measure as evaluating
from opnorm import runs


@pytest.mark.parametrize(
    ("text", "number"),
    [("0.5", 0.5), ("8/255", 8 / 255), ("1.5/2", 0.75), ("inf", math.inf)],
)
def test_numbers_may_be_fractions(text, number):
    assert options.parse_floats("epsilons", [text, "0"]) == (number, 0.0)
    assert options._FloatParser().parse(text) == number


@pytest.mark.parametrize("text", ["1/0", "8/", "/255", "1/2/3", "8 of 255", ""])
def test_text_that_is_no_number_is_refused_by_the_name_of_the_flag(text):
    with pytest.raises(ValueError, match=r"epsilons is .* numbers or fractions"):
        options.parse_floats("epsilons", [text])


def test_a_standard_error_of_one_example_is_not_known(tmp_path):
    assert records.mean_and_error([0.0, 1.0, 1.0]) == {
        "mean": pytest.approx(2 / 3),
        "standard_error": pytest.approx(1 / 3),
    }
    one = records.mean_and_error([[1.0, 3.0]])
    assert one["mean"] == [1.0, 3.0]
    assert np.isnan(one["standard_error"]).all()
    card = evaluating.distance_card(np.array([0.5]), [0.25], 0.0)
    assert card["mean"] == 0.5
    names = ("accuracy", "sigma", "singular_values", "alignment")
    found = dict.fromkeys(names, one) | {"clean_accuracy": 1.0, "examples": 1}
    run = runs.RunDirectory(tmp_path)
    run.write_json("measured.json", found | {"random_alignment": 0.5, "card": card})
    read = json.loads((tmp_path / "measured.json").read_text())
    assert read["sigma"] == {"mean": [1.0, 3.0], "standard_error": [None, None]}
    assert read["card"]["standard_error"] is None
    averages = measure.average([read, read])
    assert np.isnan(averages["sigma"]["standard_error"]).all()
    assert tables.numbers()(averages["sigma"]["standard_error"]) == "- / -"


def test_errors_over_networks_are_known_for_several():
    curves = ([0.5, 0.25], [0.75, 0.5])
    found = [
        {
            "sigma": {"mean": 1.0, "standard_error": 1.0},
            "alignment": {"mean": 1.0, "standard_error": 1.0},
            "singular_values": {"mean": [1.0], "standard_error": [1.0]},
            "accuracy": {"mean": curve, "standard_error": [0.0, 0.0]},
            "clean_accuracy": curve[0],
            "random_alignment": 0.5,
            "examples": 400,
        }
        for curve in curves
    ]
    over = measure.average(found)["over_networks"]
    assert over["accuracy"] == {"mean": [0.625, 0.375], "standard_error": [0.125] * 2}
    assert over["sigma"] == {"mean": 1.0, "standard_error": 0.0}
    alone = measure.average(found[:1])["over_networks"]
    assert np.isnan(alone["clean_accuracy"]["standard_error"])
