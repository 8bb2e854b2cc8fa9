"""Histograms of several networks against counting value by value."""

import itertools
import math

import numpy as np
import pytest

from opnorm import analysis

RNG = np.random.default_rng(0)
VALUES = [RNG.exponential(size=301).astype(np.float32), RNG.normal(size=97)]


def count(values, edges):
    """Counts in half-open bins, the last of which is closed."""
    found = np.zeros(len(edges) - 1, int)
    for value in values:
        for i, (low, high) in enumerate(itertools.pairwise(edges)):
            last = i == len(found) - 1 and value == high
            found[i] += low <= value < high or last
    return found


def test_counts_and_densities_are_those_of_one_set_of_edges() -> None:
    found = analysis.histograms(VALUES, num_bins=7)
    pool = np.concatenate(VALUES)
    np.testing.assert_allclose(found.edges, np.linspace(pool.min(), pool.max(), 8))
    np.testing.assert_allclose(found.centers, found.edges[:-1] + np.ptp(pool) / 14)
    for row, counts, density in zip(VALUES, found.counts, found.densities, strict=True):
        np.testing.assert_array_equal(counts, count(row, found.edges))
        assert counts.sum() == len(row)
        expected, _ = np.histogram(row, found.edges, density=True)
        np.testing.assert_allclose(density, expected)
    np.testing.assert_allclose((found.densities * np.diff(found.edges)).sum(axis=1), 1)


def test_a_middle_range_shows_a_part_of_the_whole_histogram() -> None:
    whole = analysis.histograms(VALUES, num_bins=8, limits=(-4.0, 4.0))
    middle = analysis.histograms(VALUES, num_bins=2, limits=(0.0, 2.0))
    np.testing.assert_array_equal(middle.densities, whole.densities[:, 4:6])
    for i, row in enumerate(VALUES):
        assert middle.num_below[i] == np.sum(row < 0)
        assert middle.num_above[i] == np.sum(row > 2)
        inside = middle.counts[i].sum()
        assert inside + middle.num_below[i] + middle.num_above[i] == len(row)


def test_values_that_are_not_finite_are_counted_apart() -> None:
    first = [0.0, 1.0, np.inf, np.inf, -np.inf, np.nan]
    found = analysis.histograms([first, [np.nan, np.nan]], num_bins=2)
    assert found.edges.tolist() == [0, 0.5, 1]
    assert found.counts.tolist() == [[1, 1], [0, 0]]
    assert found.densities[0].tolist() == [0.4, 0.4]
    assert np.isnan(found.densities[1]).all()
    assert found.num_below.tolist() == [1, 0]
    assert found.num_above.tolist() == [2, 0]
    assert found.num_nan.tolist() == [1, 2]


def test_equal_values_have_a_bin() -> None:
    found = analysis.histograms([[3.0, 3.0], [3.0]], num_bins=1)
    assert found.edges.tolist() == [2.5, 3.5]
    assert found.densities.tolist() == [[1.0], [1.0]]


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([], {}, "values has arrays of the shapes"),
        ([[1.0], []], {}, r"shapes \[\(1,\), \(0,\)\]"),
        ([[[1.0]]], {}, r"shapes \[\(1, 1\)\]"),
        ([[math.inf]], {}, "values has no finite number; limits must be given"),
        ([[1.0]], {"limits": (1.0, 1.0)}, "limits is .1.0, 1.0."),
        ([[1.0]], {"limits": (0.0, math.nan)}, "limits is .0.0, nan."),
        ([[1.0]], {"limits": (0.0, math.inf)}, "limits is .0.0, inf."),
        ([[1.0]], {"num_bins": 0}, "num_bins is 0"),
    ],
)
def test_bad_arguments_are_named(values, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        analysis.histograms(values, **options)
