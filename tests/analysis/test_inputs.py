"""Images are checked against the boxes of attacks before anything is compiled."""

import numpy as np
import pytest

from opnorm import attacks
from opnorm.analysis import inputs
from opnorm.attacks import checks

LOW, HIGH = np.array([0.0, 0.2, -np.inf]), np.array([0.5, 1.0, np.inf])


def test_features_are_compared_with_bounds_of_their_own() -> None:
    images = np.float32([[0.1, 0.2, -7.0], [0.5, 1.0, 9.0]])
    np.testing.assert_array_equal(inputs.check_bounds(images, (LOW, HIGH)), images)
    # Rounding beyond a bound is clipped, entry by entry, in the dtype of the images.
    beyond = images + np.float32([1e-7, 0, 0])
    kept = inputs.check_bounds(beyond, (LOW, HIGH))
    assert kept.dtype == np.float32
    np.testing.assert_array_equal(kept[:, 0], [np.float32(0.1 + 1e-7), 0.5])
    wrong = images + np.float32([0, 0.5, 0])
    with pytest.raises(
        ValueError, match=r"from 0.7 to 1.5 in entry \(1,\).*\(0.2, 1\)"
    ):
        inputs.check_bounds(wrong, (LOW, HIGH))
    with pytest.raises(ValueError, match=r"array of shape \(3,\); it must broadcast"):
        inputs.check_bounds(images[:, :2], (LOW, HIGH))
    bytes_ = np.uint8([[10, 51, 0], [127, 255, 255]])
    np.testing.assert_array_equal(inputs.check_bounds(bytes_, (LOW, HIGH)), bytes_)
    with pytest.raises(ValueError, match=r"from 0.0431373 to 0.501961 in entry \(0,\)"):
        inputs.check_bounds(bytes_ + np.uint8([1, 0, 0]), (LOW, HIGH))


def test_one_infinite_end_does_not_let_the_other_go() -> None:
    images = np.float32([[0.1, 7.0], [-0.5, 9.0]])
    with pytest.raises(ValueError, match=r"images has values from -0.5 to 9, outside"):
        inputs.check_bounds(images, (0.0, np.inf))
    np.testing.assert_array_equal(inputs.check_bounds(images, (-1.0, np.inf)), images)


def test_boxes_of_features_become_static_options() -> None:
    box = checks.hashable((LOW, HIGH))
    assert hash(box) == hash(checks.hashable((LOW.copy(), HIGH.copy())))
    np.testing.assert_array_equal(checks.check_bounds(box), (LOW, HIGH))
    assert checks.hashable((0.0, 1.0)) == (0.0, 1.0)


def test_a_factory_may_derive_lengths_from_its_budget() -> None:
    def pga(epsilon):
        return attacks.pga(p=2, epsilon=epsilon, step_size=epsilon / 5)

    assert inputs.make_pattern(pga).name == "pga"
