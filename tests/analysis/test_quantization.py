"""Rounded adversarial images, against integer arithmetic and brute force."""

import math

import chex
import jax
import numpy as np
import pytest

from opnorm import analysis

COUNT, SHAPE = 40, (4, 4, 3)
SIZE = math.prod(SHAPE)


def network(weights, x):
    z = x.reshape(len(x), -1) @ weights
    return jax.numpy.stack([z, -z], axis=1)


def make():
    """Images of 8 bits in class 0 of a linear network, and its weights."""
    draws = np.random.default_rng(0)
    weights = draws.normal(size=SIZE).astype(np.float32)
    images = draws.integers(20, 236, (COUNT, *SHAPE)).astype(np.uint8)
    z = (images.reshape(COUNT, -1) / 255) @ weights
    # The threshold of a linear network is in the mean: shift the images to class 0.
    images = images[z > 0]
    return jax.tree_util.Partial(network, weights), images, weights


@pytest.mark.parametrize(("p", "epsilon"), [(math.inf, 8 / 255), (2.0, 0.6), (1.0, 3)])
def test_rounded_images_stay_within_the_budget_and_adversarial(p, epsilon):
    """The points just behind the boundary, where plain rounding loses some."""
    f, images, weights = make()
    labels = np.zeros(len(images), np.int32)
    pixels = images / 255.0
    margin = pixels.reshape(len(images), -1) @ weights
    # The shortest perturbation in Lp moves along the dual direction.
    if p == math.inf:
        unit = -np.sign(weights)
    elif p == 2:
        unit = -weights / np.linalg.norm(weights)
    else:
        unit = -np.sign(weights) * (np.abs(weights) == np.abs(weights).max())
    reach = -(weights @ unit)
    steps = (1 + 1e-3) * margin / reach
    near = steps < (0.9 if p == math.inf else 0.8) * epsilon
    delta = steps[:, None] * unit
    x_adv = np.clip(pixels + delta.reshape(images.shape), 0, 1)
    x_adv = np.where(near[:, None, None, None], x_adv, pixels).astype(np.float32)
    found = analysis.quantize(f, images, x_adv, labels, p=p, epsilon=epsilon)
    whole = np.round(255 * found.x_adv.astype(np.float64))
    chex.assert_trees_all_equal((whole / 255).astype(np.float32), found.x_adv)
    difference = (whole - images).reshape(len(images), -1)
    assert np.all(np.linalg.norm(difference, p, axis=1) <= 255 * epsilon * (1 + 1e-6))
    chex.assert_trees_all_close(
        found.distance, np.linalg.norm(difference, p, axis=1) / 255, atol=1e-12
    )
    wrong = (whole / 255).reshape(len(images), -1) @ weights < 0
    np.testing.assert_array_equal(found.kept, wrong)
    # Images without an adversarial point come back as they were.
    np.testing.assert_array_equal(whole[~found.kept], images[~found.kept])
    # The box may have cut a perturbation off.
    near &= x_adv.reshape(len(images), -1) @ weights < 0
    assert near.any()
    assert found.kept[near].mean() > 0.9
    plain = np.round(255 * x_adv.astype(np.float64)).reshape(len(images), -1)
    lost = plain / 255 @ weights >= 0
    over = np.linalg.norm(plain - images.reshape(len(images), -1), p, axis=1)
    broken = near & (lost | (over > 255 * epsilon))
    assert found.kept[broken].sum() >= 0.8 * broken.sum()


def test_an_image_that_no_rounding_keeps_adversarial_is_said():
    """One step of 1/255 is over the budget; brute force over both steps agrees."""
    weights = np.zeros(SIZE, np.float32)
    weights[0] = 1.0
    images = np.full((2, *SHAPE), 100, np.uint8)

    def f(x):
        z = x.reshape(len(x), -1) @ weights - 99.5 / 255
        return jax.numpy.stack([z, -z], axis=1)

    x_adv = (images / 255).astype(np.float32)
    x_adv[:, 0, 0, 0] -= np.float32(0.6 / 255)
    labels = np.zeros(2, np.int32)
    for epsilon, kept in ((0.7 / 255, False), (1 / 255, True), (None, True)):
        found = analysis.quantize(f, images, x_adv, labels, p=2, epsilon=epsilon)
        np.testing.assert_array_equal(found.kept, [kept, kept])
        assert found.distance[0] == pytest.approx(kept / 255)
    # A perturbation of a seventh of a step is lengthened until it is one step.
    x_adv[:, 0, 0, 0] = np.float32(99.86 / 255)
    found = analysis.quantize(f, images, x_adv, labels, p=2, epsilon=None)
    np.testing.assert_array_equal(255 * found.x_adv[:, 0, 0, 0], [99, 99])
    assert found.kept.all()


def test_bad_arguments_are_refused():
    f, images, _ = make()
    labels = np.zeros(len(images), np.int32)
    x_adv = (images / 255).astype(np.float32)
    given = {"p": 2, "epsilon": 0.1}
    with pytest.raises(ValueError, match=r"x_adv has shape .*uint8"):
        analysis.quantize(f, images, images, labels, **given)
    with pytest.raises(ValueError, match=r"x_adv has values from"):
        analysis.quantize(f, images, x_adv + 1, labels, **given)
    with pytest.raises(ValueError, match="levels is 0"):
        analysis.quantize(f, images, x_adv, labels, levels=0, **given)
    with pytest.raises(ValueError, match="epsilon is -1"):
        analysis.quantize(f, images, x_adv, labels, p=2, epsilon=-1)
