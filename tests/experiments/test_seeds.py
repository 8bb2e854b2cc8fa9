"""Measurements of networks that differ in their seed, and their averages."""

import numpy as np
import pytest

from experiments.common import seeds


def test_means_and_errors_are_those_over_the_networks():
    rows = np.array([[1.0, 4.0], [2.0, 5.0], [6.0, np.nan]])
    found = [
        {
            "curve": {
                "epsilon": [0.0, 0.5],
                "mean": row.tolist(),
                "standard_error": [9.0, 9.0],
            },
            "largest": {"value": row[0], "error": 9.0},
            "ranks": list(range(number + 1)),
            "density": {"asinh": np.arange(2.0), "mean": row, "standard_error": row},
        }
        for number, row in enumerate(rows, start=1)
    ]
    averages = seeds.average(found)
    mean = [rows[:, 0].mean(), np.nan]
    error = [rows[:, 0].std(ddof=1) / np.sqrt(3), np.nan]
    for name in ("curve", "density"):
        np.testing.assert_allclose(averages[name]["mean"], mean)
        np.testing.assert_allclose(averages[name]["standard_error"], error)
    assert averages["curve"]["epsilon"] == [0.0, 0.5]
    assert averages["largest"] == pytest.approx({"value": mean[0], "error": error[0]})
    # Only the places that all networks have.
    assert averages["ranks"] == [0, 1]
    assert averages["density"]["asinh"] == [0.0, 1.0]
    assert seeds.average(found[:1]) is found[0]


def test_results_say_what_their_errors_are_over():
    assert seeds.bands({"examples": 6}) == "standard error over 6 images"
    several = {"examples": 6, "seeds": [0, 3]}
    assert seeds.bands(several) == "standard error over 2 networks (seeds 0, 3)"


def test_a_name_stands_for_the_network_of_each_seed():
    assert seeds.names("run", "a-{seed}", (0, 2)) == ["a-0", "a-2"]
    assert seeds.names("run", "a", None) == ["a"]
    with pytest.raises(ValueError, match=r"run is a-\{seed\}; \{seed\} needs --seeds"):
        seeds.names("run", "a-{seed}", None)
    with pytest.raises(ValueError, match=r"run is a; with --seeds it must have"):
        seeds.names("run", "a", (0, 1))
