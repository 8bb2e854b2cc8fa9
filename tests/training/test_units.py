"""Lengths of standardised images, against the attack on such images in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import models, training

CONFIG = training.Config(
    method="adversarial_only",
    p=float("inf"),
    epsilon=8 / 255,
    step_size=2 / 255,
    epsilon_unit="standardized",
    num_steps=1,
    random_start=False,
)


@pytest.mark.parametrize(("name", "pixels"), [("half", 0.5), ("cifar10", 0.2508)])
def test_a_length_is_multiplied_by_what_images_are_divided_by(name, pixels):
    config = dataclasses.replace(CONFIG, normalization=name)
    found = training.in_pixels(config)
    assert found.epsilon == pytest.approx(pixels * 8 / 255, rel=1e-3)
    assert found.step_size == pytest.approx(pixels * 2 / 255, rel=1e-3)
    rest = {"epsilon": 0.0, "step_size": None, "epsilon_unit": "pixels"}
    assert dataclasses.replace(found, **rest) == dataclasses.replace(config, **rest)
    # Lengths in pixels stay as they are, to the bit.
    assert training.in_pixels(found) is found
    free = training.in_pixels(dataclasses.replace(config, step_size=None))
    assert free.step_size is None


def test_one_number_is_within_5_percent_of_every_channel():
    for name in ("cifar10", "imagenet"):
        config = dataclasses.replace(CONFIG, normalization=name, epsilon=1.0)
        channels = np.asarray(models.STATISTICS[name][1])
        epsilon = training.in_pixels(config).epsilon
        np.testing.assert_allclose(channels / epsilon, 1.0, atol=0.05)
        # A random direction of standardised images has the length that is named.
        assert epsilon == pytest.approx(np.sqrt(np.mean(channels**2)))


def test_the_attack_of_training_moves_standardised_images_by_epsilon():
    std = np.float32(0.5)
    weights = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    x = np.random.default_rng(1).uniform(0.3, 0.7, (4, 2, 2, 3)).astype(np.float32)
    labels = np.array([0, 1, 2, 0])

    def f(images):
        return ((images - 0.5) / std).reshape(len(images), -1) @ weights

    attack = training.training_attack(dataclasses.replace(CONFIG, step_size=None))
    found = jax.jit(lambda x: attack(f, x, labels, jax.random.key(0)))(jnp.asarray(x))
    logits = np.asarray(f(x), np.float64)
    wrong = np.exp(logits) / np.exp(logits).sum(1, keepdims=True) - np.eye(3)[labels]
    moved = (np.asarray(found) - x) / std
    expected = 8 / 255 * np.sign(wrong @ weights.T).reshape(x.shape)
    np.testing.assert_allclose(moved, expected, atol=1e-6)
