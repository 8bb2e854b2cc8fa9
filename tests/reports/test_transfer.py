"""Accuracy on adversarial images of another network."""

import math

import jax
import numpy as np
import pytest

from opnorm import reports


def two_classes(weights, x):
    z = x @ weights
    return jax.numpy.stack([z, -z], axis=1)


def test_accuracies_are_those_of_the_other_network():
    """A row for each case: fooled, not fooled, wrong before, not adversarial."""
    images = np.array([[0.9, 0.1], [0.9, 0.2], [0.1, 0.9], [0.8, 0.1]], np.float32)
    x_adv = np.array([[0.2, 0.6], [0.5, 0.4], [0.0, 0.9], [0.1, 0.3]], np.float32)
    adversarial = np.array([True, True, True, False])
    none = np.zeros(4, bool)
    examples = reports.ExampleSet(
        images, x_adv, np.zeros(4, int), adversarial, none, np.arange(4), math.inf, 0.7
    )
    f = jax.tree_util.Partial(two_classes, np.array([1.0, -1.0], np.float32))
    found = reports.transfer(f, examples)
    assert found.clean.correct.tolist() == [True, True, False, True]
    assert found.attacked.correct.tolist() == [False, True, False, False]
    assert found.clean.mean == 0.75
    assert found.attacked.mean == 0.25
    assert float(found.success.mean) == 0.5
    assert int(found.success.counted) == 2
    labels = np.array([0, 1, 5, 0])
    with pytest.raises(ValueError, match="labels has values from 0 to 5"):
        reports.transfer(f, examples._replace(labels=labels))
