"""Whitening of each image against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import models

# 30 values in an image; the last two images are below the floor of 30^-1/2.
IMAGES = np.random.default_rng(0).uniform(0, 1, (4, 5, 3, 2))
IMAGES[2] = 0.5 + 0.1 * (IMAGES[2] - 0.5)
IMAGES[3] = 0.25


def whitened(x):
    centred = x - x.mean(axis=(1, 2, 3), keepdims=True)
    std = np.sqrt((centred**2).mean(axis=(1, 2, 3), keepdims=True))
    return centred / np.maximum(std, 30**-0.5)


@pytest.fixture(scope="module")
def found():
    """Whitened images, and their derivatives in each of three directions."""

    def both(x, directions):
        return jax.linearize(
            lambda z: models.normalize(z, "image", "image", z.dtype), x
        )[0], [
            jax.jvp(
                lambda z: models.normalize(z, "image", "image", z.dtype), (x,), (d,)
            )[1]
            for d in directions
        ]

    random = np.random.default_rng(1).normal(size=IMAGES.shape)
    directions = (np.ones_like(IMAGES), IMAGES - IMAGES.mean((1, 2, 3), keepdims=True))
    with jax.enable_x64(True):
        return jax.tree.map(
            np.asarray, jax.jit(both)(jnp.asarray(IMAGES), (*directions, random))
        ), random


def test_each_image_gets_mean_0_and_deviation_1(found):
    (values, _), _ = found
    np.testing.assert_allclose(values, whitened(IMAGES), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(values[:2].std((1, 2, 3)), 1, rtol=1e-12)
    assert values[2].std() < 0.5
    np.testing.assert_array_equal(values[3], 0)


def test_the_derivative_includes_mean_and_deviation(found):
    (_, (brightness, contrast, other)), random = found
    np.testing.assert_allclose(brightness, 0, atol=1e-12)
    np.testing.assert_allclose(contrast[:2], 0, atol=1e-12)
    # Below the floor the divisor is constant.
    np.testing.assert_allclose(contrast[2], whitened(IMAGES)[2], rtol=1e-12)
    step = 1e-6
    difference = whitened(IMAGES + step * random) - whitened(IMAGES - step * random)
    np.testing.assert_allclose(other, difference / (2 * step), rtol=1e-6, atol=1e-7)


def test_half_precision_is_rounded_once():
    x = jnp.asarray(IMAGES, jnp.float32)
    exact = models.normalize(x, "image", "image")
    half = models.normalize(x, "image", "image", jnp.bfloat16)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(
        half.astype(np.float32), exact.astype(jnp.bfloat16).astype(np.float32)
    )


def test_whitening_needs_both_statistics():
    for mean, std in (("image", 1.0), (0.5, "image"), ("mine", "image")):
        with pytest.raises(ValueError, match=r"mean, std are .*both 'image'"):
            models.normalize(jnp.zeros((1, 2, 2, 1)), mean, std)


def test_the_scale_of_the_input_is_one_over_the_deviation():
    assert models.input_scale(0.5, IMAGES) == (2.0,)
    assert models.input_scale((0.5, 0.25), IMAGES) == (2.0, 4.0)
    pixels = np.round(255 * IMAGES).astype(np.uint8)
    expected = 1 / np.maximum((pixels / 255).std(axis=(1, 2, 3)), 30**-0.5).mean()
    assert models.input_scale("image", pixels) == pytest.approx((expected,))
    assert models.input_scale("image", pixels / 255) == pytest.approx((expected,))
