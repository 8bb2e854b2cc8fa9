"""Sums of changes over layers."""

import numpy as np
import pytest

from opnorm import operators


def test_falls_and_rises_are_summed_apart() -> None:
    first, second = np.random.default_rng(0).normal(size=(2, 55))
    second[7] = first[7]
    found = operators.layer_change(first, second)
    pairs = list(zip(first, second, strict=True))
    falls = [a - b for a, b in pairs if a > b]
    rises = [b - a for a, b in pairs if b > a]
    np.testing.assert_allclose(found[:2], [sum(falls), sum(rises)], rtol=1e-12)
    assert found[2:] == (len(falls), len(rises))
    assert found.num_fallen + found.num_risen == 54
    assert operators.layer_change(second, first) == (
        found.rise,
        found.fall,
        found.num_risen,
        found.num_fallen,
    )


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([], [], "L at least 1"),
        ([1.0], [1.0, 2.0], "the shapes"),
        ([1.0], [np.nan], "second is"),
        ([np.inf], [1.0], "first is"),
    ],
)
def test_bad_values_are_refused(first, second, message) -> None:
    with pytest.raises(ValueError, match=message):
        operators.layer_change(first, second)
