"""The boxes that views are cut from, against their specification."""

import numpy as np
import pytest
from scipy import stats

from opnorm.data import views


def _boxes(count: int, width: int, height: int, least_area: float) -> np.ndarray:
    draws = np.random.default_rng(0).random((count, 10, 4))
    return np.array([views.random_box(d, width, height, least_area) for d in draws])


def test_boxes_have_the_areas_and_aspect_ratios_of_the_specification() -> None:
    left, top, width, height = _boxes(4000, 1000, 1000, 0.08).T
    assert (left >= 0).all()
    assert (left + width <= 1000).all()
    assert (top >= 0).all()
    assert (top + height <= 1000).all()
    area, ratio = width * height / 1e6, width / height
    assert 0.079 < area.min() < 0.09
    assert area.max() > 0.95
    assert 0.745 < ratio.min() < 0.76
    assert 1.32 < ratio.max() < 1.34
    # Every aspect ratio fits into a square image up to three quarters of its area.
    fits = area < 0.75
    uniform = stats.uniform(0.08, 0.67).cdf
    assert stats.kstest(area[fits], uniform).pvalue > 0.01
    logarithm = stats.uniform(np.log(3 / 4), 2 * np.log(4 / 3)).cdf
    assert stats.kstest(np.log(ratio[fits]), logarithm).pvalue > 0.01
    for place, room in ((left, 1000 - width), (top, 1000 - height)):
        assert stats.kstest((place / (room + 1))[fits], "uniform").pvalue > 0.01


def test_a_box_lies_at_each_place_equally_often() -> None:
    left, top, width, height = _boxes(3000, 8, 8, 0.3).T
    for place, size in ((left, width), (top, height)):
        shares = np.bincount(place[size == 6].astype(int)) / (size == 6).sum()
        np.testing.assert_allclose(shares, [1 / 3] * 3, atol=0.06)


def test_no_box_is_smaller_than_the_least_area() -> None:
    _, _, width, height = _boxes(500, 300, 200, 0.5).T
    assert (width * height >= 0.99 * 0.5 * 300 * 200).all()


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((1000, 60), (460, 0, 80, 60)),
        ((60, 1000), (0, 460, 60, 80)),
        ((1, 1), (0, 0, 1, 1)),
    ],
)
def test_the_middle_is_taken_where_no_box_fits(size: tuple, box: tuple) -> None:
    # Ten draws of the whole area with the largest or the smallest aspect ratio.
    draws = np.full((10, 4), 0.999)
    draws[:, 1] = 0 if size[0] > size[1] else 0.999
    assert views.random_box(draws, *size, 0.08) == box
