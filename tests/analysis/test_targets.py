"""Targets of a data set do not depend on its batches."""

import jax
import numpy as np
import pytest

from opnorm import analysis

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 4), np.uint8)
LABELS = np.arange(7) % 4


def choose(choice, **options):
    options = {"batch_size": 3, "key": jax.random.key(0)} | options
    return analysis.choose_targets(lambda x: x, IMAGES, LABELS, choice, **options)


def test_targets_are_chosen_in_batches() -> None:
    others = np.where(np.arange(4) == LABELS[:, None], -1, IMAGES.astype(int))
    np.testing.assert_array_equal(choose("likeliest"), others.argmax(axis=1))
    drawn = choose("random")
    assert np.all(drawn != LABELS)
    np.testing.assert_array_equal(choose("random", batch_size=7), drawn)
    given = (LABELS + 1) % 4
    np.testing.assert_array_equal(choose(given), given)
    for choice, options, message in [
        ("worst", {}, "choice is 'worst'"),
        ("random", {"key": None}, "key is None"),
        (LABELS, {}, "choice gives example 0 its own label, 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            choose(choice, **options)
