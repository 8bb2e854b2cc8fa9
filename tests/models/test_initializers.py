"""Initialisers against Flax's, bit by bit."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from opnorm.models import initializers


@pytest.mark.parametrize(
    ("scale", "mode", "distribution"),
    [
        (1.0, "fan_in", "truncated_normal"),
        (1 / 3, "fan_out", "normal"),
        (2.0, "fan_avg", "uniform"),
    ],
)
def test_values_are_those_of_flax(scale, mode, distribution):
    ours, flax = (
        initialisers.variance_scaling(scale, mode, distribution)
        for initialisers in (initializers, nn.initializers)
    )

    @jax.jit
    def draw(key):
        shapes = (3, 2, 5, 4), (7, 3)
        return [(ours(key, shape), flax(key, shape)) for shape in shapes]

    for found, expected in draw(jax.random.key(0)):
        np.testing.assert_array_equal(found, expected)
