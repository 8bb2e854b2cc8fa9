"""Rises of the loss against closed forms and the exact maximum in a ball."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import analysis

RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=6)
IMAGES = RNG.uniform(0.3, 0.7, (5, 3, 2)).astype(np.float32)
LABELS = RNG.integers(0, 2, 5)
EPSILONS = [0.0, 0.02, 0.1]
KEY = jax.random.key(0)


def logits(z):
    return jnp.stack([z, -z], axis=1)


def linear(weight, x):
    return logits((x.reshape(len(x), -1) - 0.5) @ weight)


def peaked(scale, x):
    """The loss of class 0 is the largest where the first pixel is 0.55."""
    return logits(scale * (x.reshape(len(x), -1)[:, 0] - 0.55) ** 2)


LINEAR = jax.tree_util.Partial(linear, WEIGHT.astype(np.float32))
PEAKED = jax.tree_util.Partial(peaked, np.float32(30))


@pytest.mark.parametrize("p", [2.0, math.inf])
def test_linear_networks_reach_the_corner(p) -> None:
    sign = np.where(LABELS == 0, 1, -1)
    z = sign * ((IMAGES.reshape(5, 6).astype(np.float64) - 0.5) @ WEIGHT)
    steep = np.linalg.norm(WEIGHT, 1 if p == math.inf else 2)
    worst = z - np.array(EPSILONS)[:, None] * steep
    expected = np.logaddexp(0, -2 * worst) - np.logaddexp(0, -2 * z)
    options = {"p": p, "epsilons": EPSILONS, "key": KEY, "num_steps": 24}
    found = analysis.loss_variation(LINEAR, IMAGES, LABELS, batch_size=2, **options)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-6)
    assert (found[0] == 0).all()
    assert (z < 0).any()


def test_the_highest_point_of_the_path_counts() -> None:
    images = np.full((8, 1), 0.5, np.float32)
    images[0] = 0.55
    labels = np.zeros(8, int)
    options = {"epsilons": [0.2], "relative_step": 0.8, "key": KEY}

    def rises(**counts):
        return analysis.loss_variation(PEAKED, images, labels, **options, **counts)[0]

    start, path = rises(num_steps=0), rises(num_steps=4)
    restarts = rises(num_steps=4, num_restarts=2)
    # Steps of 0.16 jump to and fro over the peak. After an even number of them a path
    # is where it started, so only points between the ends can be higher than both.
    assert (path >= start).all()
    assert (path > start).any()
    assert (restarts >= path).all()
    at_most = math.log(2) - np.logaddexp(0, -60 * (images[:, 0] - 0.55) ** 2.0)
    assert (restarts <= at_most + 1e-6).all()
    # The first image is at the peak already, so every other point is lower.
    assert restarts[0] == 0


def test_losses_that_are_not_numbers() -> None:
    broken = jax.tree_util.Partial(linear, np.full(6, np.nan, np.float32))
    options = {"epsilons": [0.1], "key": KEY, "num_steps": 24, "batch_size": 2}
    assert np.isnan(analysis.loss_variation(broken, IMAGES, LABELS, **options)).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epsilons": None}, "epsilons is None"),
        ({"epsilons": []}, "epsilons is"),
        ({"epsilons": [-0.1]}, "epsilons is"),
        ({"num_steps": -1}, "num_steps is -1"),
        ({"num_restarts": 0}, "num_restarts is 0"),
        ({"relative_step": 0.0}, "relative_step is 0.0"),
        ({"p": 0.5}, "p is 0.5"),
        ({"key": None}, "key is None"),
        ({"labels": np.full(5, 2)}, "labels"),
        ({"images": IMAGES + 1}, "images"),
    ],
)
def test_bad_arguments_are_named(changes, message) -> None:
    given = {"images": IMAGES, "labels": LABELS, "epsilons": [0.1], "key": KEY}
    with pytest.raises(ValueError, match=message):
        analysis.loss_variation(LINEAR, **{**given, **changes})
