"""The improvement ratio, and its standard error over examples."""

import math

import numpy as np
import pytest

from opnorm import analysis


def test_the_ratio_is_the_gain_over_the_rise() -> None:
    # The distance is 3 times as large, for 6 % of errors in place of 5 %.
    found = analysis.improvement(0.6, 0.06, 0.2, 0.05)
    np.testing.assert_allclose(found, (2.0, 0.2, 10.0))


@pytest.mark.parametrize(
    ("numbers", "undefined"),
    [
        ((0.5, 0.1, 0.2, 0.1), (False, False, True)),
        ((0.5, 0.1, 0.2, 0.0), (False, True, True)),
        ((0.5, 0.1, 0.0, 0.2), (True, False, True)),
        ((math.nan, 0.1, 0.2, 0.2), (True, False, True)),
    ],
)
def test_a_ratio_that_does_not_exist_is_nan(numbers, undefined) -> None:
    found = analysis.improvement(*numbers)
    np.testing.assert_array_equal(np.isnan(found), undefined)


def test_the_error_of_a_ratio_is_that_over_examples() -> None:
    rng = np.random.default_rng(3)

    def draw(chance, length):
        # The same images for two seeds, so that these agree on which are hard.
        hard = rng.uniform(size=400) < chance
        return np.where(hard, 0.0, length * rng.gamma(2, 0.5, (2, 400)))

    def ratio(after, before):
        means = [(each.mean(), np.mean(each == 0)) for each in (after, before)]
        return analysis.improvement(*means[0], *means[1]).ratio

    def pair():
        return draw(0.5, 4.0), draw(0.3, 1.0)

    draws = [ratio(*pair()) for _ in range(300)]
    found = analysis.improvement_error(*pair())
    assert found == pytest.approx(np.std(draws), rel=0.3)


def test_the_error_is_infinite_where_one_example_decides() -> None:
    # Without the second image the clean error does not rise.
    before, after = np.array([[[0.0, 1, 1]], [[0.0, 0, 1]]])
    assert analysis.improvement_error(after, before, largest=8.0) == math.inf


def test_distances_count_at_most_with_the_largest() -> None:
    rng = np.random.default_rng(4)
    after, before = rng.uniform(1, 9, (2, 1, 30))
    after[:, :9] = before[:, :4] = 0
    unbroken = np.where(after > 5, np.inf, after), np.where(before > 5, np.inf, before)
    capped = analysis.improvement_error(*unbroken, largest=5.0)
    expected = analysis.improvement_error(np.minimum(after, 5), np.minimum(before, 5))
    assert capped == pytest.approx(expected)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((3,), (1, 3)), r"shapes \(3,\) and \(1, 3\)"),
        (((1, 1), (1, 1)), "with N at least 2"),
        (((2, 3), (2, 4)), "distances has 3 examples and before 4"),
    ],
)
def test_distances_that_do_not_fit_are_refused(shapes, message) -> None:
    with pytest.raises(ValueError, match=message):
        analysis.improvement_error(*(np.ones(shape) for shape in shapes))
