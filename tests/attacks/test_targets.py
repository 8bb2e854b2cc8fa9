"""Targets are other classes, which are random, likely, unlikely or given."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import attacks

LOGITS = np.float32(
    [[3, 1, 2, 0], [0, 1, 2, 3], [1, np.nan, -np.inf, 1], [np.inf, 2, 2, 2]]
)
LABELS = np.array([0, 3, 0, 1])


def choose(choice, key=None):
    return attacks.choose_targets(lambda x: x, LOGITS, LABELS, choice, key)


def test_likely_and_unlikely_classes_are_found() -> None:
    np.testing.assert_array_equal(choose("likeliest"), [2, 2, 3, 0])
    np.testing.assert_array_equal(choose("least_likely"), [3, 0, 3, 2])


def test_random_targets_are_every_other_class_alike() -> None:
    x, labels = jnp.zeros((3000, 4)), np.arange(3000) % 4
    key = jax.random.key(0)
    found = attacks.choose_targets(lambda x: x, x, labels, "random", key)
    steps = np.bincount((np.asarray(found) - labels) % 4, minlength=4)
    assert steps[0] == 0
    np.testing.assert_allclose(steps[1:], 1000, atol=100)
    # An example's target does not depend on its batch.
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(np.arange(5))
    alone = attacks.choose_targets(lambda x: x, x[:5], labels[:5], "random", keys)
    np.testing.assert_array_equal(alone, found[:5])


def test_given_targets_are_checked() -> None:
    np.testing.assert_array_equal(choose(np.array([1, 2, 3, 0])), [1, 2, 3, 0])
    np.testing.assert_array_equal(choose(np.int64(2)), [2, 2, 2, 2])
    for choice, message in [
        ("nearest", "choice is 'nearest'; it may be 'random', 'likeliest'"),
        ("random", "key is None"),
        (np.array([1, 2, 0, 0]), "choice gives example 2 its own label, 0"),
        (np.array([1, 2, 3, 4]), "choice: labels has values from 1 to 4"),
        (np.zeros(3, int), r"choice: labels has shape \(3,\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            choose(choice)
