"""Trends over groups of networks."""

import math

import numpy as np
import pytest

from opnorm import analysis


@pytest.mark.parametrize(
    ("groups", "direction"),
    [
        ([[1.0, 1.1], [2.0, 2.1], [3.0, 3.1]], 1),
        ([[3.0, 3.1], [2.0, 2.1], [1.0, 1.1]], -1),
        # The last step goes back.
        ([[1.0, 1.1], [3.0, 3.1], [2.0, 2.1]], 0),
        # The change is within two standard errors, sqrt(2) here.
        ([[0.0, 2.0], [2.0, 4.0]], 0),
        # A group of one network has no standard error.
        ([[1.0], [2.0]], 1),
        ([[1.0], [1.0]], 0),
    ],
)
def test_the_direction_is_that_of_every_step_and_beyond_the_noise(groups, direction):
    found = analysis.trend(groups)
    assert found.direction == direction
    ends = np.array(groups[0]), np.array(groups[-1])
    assert found.change == pytest.approx(ends[1].mean() - ends[0].mean())
    if len(groups[0]) > 1:
        variance = sum(np.var(end, ddof=1) / len(end) for end in ends)
        assert found.change_error == pytest.approx(math.sqrt(variance))
    else:
        assert math.isnan(found.change_error)


def test_the_number_of_standard_errors_decides():
    groups = [[0.0, 2.0], [2.0, 4.0]]
    assert analysis.trend(groups, num_errors=1.4).direction == 1
    assert analysis.trend(groups, num_errors=1.5).direction == 0


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([[1.0]], "at least two"),
        ([[1.0], []], r"shapes \[\(1,\), \(0,\)\]"),
        ([[1.0], 2.0], "at least two"),
        ([[1.0], [math.nan]], "all must be finite"),
    ],
)
def test_groups_that_have_no_trend_are_refused(groups, message):
    with pytest.raises(ValueError, match=message):
        analysis.trend(groups)
    with pytest.raises(ValueError, match="num_errors is -1"):
        analysis.trend([[1.0], [2.0]], num_errors=-1.0)
