"""Alignment and accuracy over data sets, against closed forms and plain loops."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import analysis, attacks

W = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
IMAGES = np.random.default_rng(1).integers(0, 256, size=(11, 2, 2, 3), dtype=np.uint8)
LABELS = np.random.default_rng(2).integers(0, 3, size=11).astype(np.int32)
TRACES = []


def apply(variables, x):
    TRACES.append(x.shape)
    return x.reshape(len(x), -1) @ variables


def attack(epsilon):
    return attacks.pga(p=2.0, epsilon=epsilon, num_steps=3)


def test_alignment_is_the_absolute_cosine():
    delta = jnp.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0], [0.0, 0.0]])
    v = jnp.array([[-3.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    found = analysis.alignment(delta, v)
    np.testing.assert_allclose(found, [1, 0, math.sqrt(0.5), 0], atol=1e-6)


def test_pearson_alignment_is_numpys_correlation():
    a, b = np.random.default_rng(0).normal(size=(2, 3, 8))
    expected = [abs(np.corrcoef(x, y)[0, 1]) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(analysis.pearson_alignment(a, b), expected, rtol=1e-5)


@pytest.mark.parametrize("size", (1, 3, 3072))
def test_expected_alignment_of_a_random_direction(size):
    drawn = jax.random.normal(jax.random.key(0), (2000, size))
    axis = jnp.zeros_like(drawn).at[:, 0].set(1.0)
    found = analysis.alignment(drawn, axis).mean()
    assert analysis.expected_random_alignment(size) == pytest.approx(found, rel=0.05)
    if size > 1000:
        assert analysis.expected_random_alignment(size) == pytest.approx(
            math.sqrt(2 / (math.pi * size)), rel=1e-3
        )


@pytest.mark.parametrize("batch_size", (4, 11, 100))
def test_accuracy_counts_every_example_once(batch_size):
    found = analysis.evaluate_accuracy(apply, W, IMAGES, LABELS, batch_size=batch_size)
    correct = (IMAGES.reshape(11, -1) / 255.0 @ W).argmax(1) == LABELS
    np.testing.assert_array_equal(found.correct, correct)
    assert found.mean == pytest.approx(correct.mean())
    assert found.standard_error == pytest.approx(correct.std(ddof=1) / math.sqrt(11))


def test_robust_accuracy_starts_at_the_clean_one_and_ends_at_zero():
    epsilons = (0.0, 0.1, 30.0)
    found = analysis.robust_accuracy(
        apply,
        W,
        IMAGES,
        LABELS,
        attack=attack,
        epsilons=epsilons,
        batch_size=4,
        key=jax.random.key(0),
    )
    clean = analysis.evaluate_accuracy(apply, W, IMAGES, LABELS, batch_size=4)
    np.testing.assert_array_equal(found[0].correct, clean.correct)
    means = [point.mean for point in found]
    assert means == sorted(means, reverse=True)


def test_networks_epsilons_and_batches_share_one_compilation():
    options = {"attack": attack, "batch_size": 5, "key": jax.random.key(0)}
    analysis.robust_accuracy(apply, W, IMAGES, LABELS, epsilons=[0.1], **options)
    before = len(TRACES)
    analysis.robust_accuracy(
        apply, 2 * W, IMAGES, LABELS, epsilons=[0.2, 0.3, 0.4], **options
    )
    assert len(TRACES) == before


def test_perturbations_have_their_length():
    found = analysis.perturbations(
        apply,
        W,
        np.full((5, 2, 2, 3), 127, np.uint8),
        LABELS[:5],
        attack=attack,
        epsilon=0.1,
        batch_size=2,
        key=jax.random.key(0),
    )
    length = np.linalg.norm(found.reshape(5, -1), axis=1)
    np.testing.assert_allclose(length, 0.1, rtol=1e-3)


def test_spectrum_of_a_linear_network_is_its_matrixs():
    found = analysis.jacobian_spectrum(apply, W, IMAGES, batch_size=4)
    _, values, right = np.linalg.svd(W.T, full_matrices=False)
    np.testing.assert_allclose(found.values, np.tile(values, (11, 1)), rtol=1e-5)
    overlap = np.abs(found.right.reshape(11, -1) @ right[0])
    np.testing.assert_allclose(overlap, 1, rtol=1e-5)


def test_bad_data_are_refused():
    with pytest.raises(ValueError, match="images and labels"):
        analysis.evaluate_accuracy(apply, W, IMAGES, LABELS[:3])
    with pytest.raises(ValueError, match="images and labels"):
        analysis.evaluate_accuracy(apply, W, IMAGES[:0], LABELS[:0])
    with pytest.raises(ValueError, match="batch_size is 0"):
        analysis.evaluate_accuracy(apply, W, IMAGES, LABELS, batch_size=0)
