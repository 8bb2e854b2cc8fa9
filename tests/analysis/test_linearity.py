"""Deviation from linearity, shared activations, random directions."""

import jax
import numpy as np
import pytest

from opnorm import analysis

Partial = jax.tree_util.Partial
RNG = np.random.default_rng(4)
IMAGES = RNG.uniform(size=(7, 3, 2))
Z = RNG.normal(size=(7, 3, 2))
WEIGHTS = (RNG.normal(size=(6, 5)), RNG.normal(size=(5, 8)), RNG.normal(size=(8, 3)))


def affine(w, x):
    return x.reshape(len(x), -1) @ w + 1.0


def squares(w, x):
    return w * x.reshape(len(x), -1) ** 2


def preactivations(weights, x):
    first = (x.reshape(len(x), -1) - 0.5) @ weights[0]
    return first, jax.nn.relu(first) @ weights[1]


def mlp(weights, x):
    return jax.nn.relu(preactivations(weights, x)[1]) @ weights[2]


def numpy_states(x):
    first = (x.reshape(len(x), -1) - 0.5) @ WEIGHTS[0]
    return first > 0, np.maximum(first, 0) @ WEIGHTS[1] > 0


def numpy_mlp(x, states):
    """The affine network that the MLP is while its units keep the given states."""
    first, second = states
    hidden = ((x.reshape(len(x), -1) - 0.5) @ WEIGHTS[0] * first) @ WEIGHTS[1] * second
    return hidden @ WEIGHTS[2]


def test_an_affine_network_does_not_deviate() -> None:
    with jax.enable_x64(True):
        found = analysis.deviation_from_linearity(
            Partial(affine, WEIGHTS[0]), IMAGES, Z, batch_size=4
        )
    z = Z.reshape(7, 6)
    np.testing.assert_allclose(found.length, np.linalg.norm(z, axis=1))
    change = np.linalg.norm(z @ WEIGHTS[0], axis=1)
    np.testing.assert_allclose(found.change, change)
    assert np.all(found.deviation < 1e-13)
    assert np.all(found.relative < 1e-13)


@pytest.mark.parametrize("scale", [0.0, 0.1, 2.0])
def test_a_quadratic_network_deviates_by_the_square_of_the_perturbation(scale) -> None:
    with jax.enable_x64(True):
        found = analysis.deviation_from_linearity(
            Partial(squares, 3.0), IMAGES, scale * Z
        )
    expected = 3 * np.linalg.norm((scale * Z.reshape(7, 6)) ** 2, axis=1)
    np.testing.assert_allclose(found.deviation, expected, rtol=1e-10)
    moved = (IMAGES + scale * Z) ** 2 - IMAGES**2
    change = 3 * np.linalg.norm(moved.reshape(7, 6), axis=1)
    np.testing.assert_allclose(found.change, change)
    ratio = np.divide(expected, change, out=np.zeros(7), where=change > 0)
    np.testing.assert_allclose(found.relative, ratio, rtol=1e-10)


def test_a_relu_network_deviates_only_outside_its_cell() -> None:
    states = numpy_states(IMAGES)
    for scale in (1e-4, 0.3):
        z = scale * Z
        with jax.enable_x64(True):
            found = analysis.deviation_from_linearity(
                Partial(mlp, WEIGHTS), IMAGES, z, batch_size=4
            )
        moved = IMAGES + z
        exact = numpy_mlp(moved, numpy_states(moved)) - numpy_mlp(moved, states)
        expected = np.linalg.norm(exact, axis=1)
        np.testing.assert_allclose(found.deviation, expected, atol=1e-13)
        same = [
            np.array_equal(a, b)
            for a, b in zip(_patterns(IMAGES), _patterns(moved), strict=True)
        ]
        assert np.all(found.deviation[same] < 1e-13)
        # Neither case is empty.
        assert all(same) if scale == 1e-4 else np.any(found.deviation > 0.1)


def _patterns(x):
    return np.concatenate(numpy_states(x), axis=1)


def test_bytes_are_pixels_over_255_here_too() -> None:
    images = (IMAGES * 255).astype(np.uint8)
    z = Z.astype(np.float32)
    weight = WEIGHTS[0].astype(np.float32)
    found = analysis.deviation_from_linearity(Partial(squares, 1.0), images, z)
    expected = np.linalg.norm(z.reshape(7, 6) ** 2, axis=1)
    np.testing.assert_allclose(found.deviation, expected, rtol=1e-4)
    moved = images / 255 + z
    change = np.linalg.norm((moved**2 - (images / 255) ** 2).reshape(7, 6), axis=1)
    np.testing.assert_allclose(found.change, change, rtol=1e-4)
    assert analysis.deviation_from_linearity(
        Partial(affine, weight), images, z
    ).relative == pytest.approx(np.zeros(7), abs=1e-5)


@pytest.mark.parametrize("scale", [0.0, 0.1, 5.0])
def test_activation_agreement_counts_units_alike_in_every_layer(scale) -> None:
    with jax.enable_x64(True):
        found = analysis.activation_agreement(
            Partial(preactivations, WEIGHTS), IMAGES, scale * Z, batch_size=4
        )
    expected = np.mean(_patterns(IMAGES) == _patterns(IMAGES + scale * Z), axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    if scale == 0:
        np.testing.assert_array_equal(found, 1)


def test_random_directions_have_the_lengths_that_are_given() -> None:
    like = np.zeros((300, 3, 2), np.float32)
    like[:, 0, 0] = np.linspace(0, 2, 300)
    key = jax.random.key(0)
    found = analysis.random_directions(like, key)
    flat = found.reshape(300, 6)
    np.testing.assert_allclose(np.linalg.norm(flat, axis=1), like[:, 0, 0], rtol=1e-5)
    # The draws are isotropic, and rows differ.
    unit = flat[1:] / like[1:, :1, 0]
    np.testing.assert_allclose(unit.T @ unit / 299, np.eye(6) / 6, atol=0.05)
    np.testing.assert_allclose(unit.mean(axis=0), 0, atol=0.1)
    # The direction of an example does not depend on the number of examples.
    np.testing.assert_array_equal(
        analysis.random_directions(like[:10], key), found[:10]
    )


def test_bad_arguments_of_linearity_are_refused_by_name() -> None:
    f = Partial(preactivations, WEIGHTS)
    with pytest.raises(ValueError, match=r"perturbations has shape \(6, 3, 2\)"):
        analysis.deviation_from_linearity(Partial(affine, WEIGHTS[0]), IMAGES, Z[1:])
    with pytest.raises(ValueError, match=r"perturbations has.*int64"):
        analysis.activation_agreement(f, IMAGES, Z.astype(np.int64))
    with pytest.raises(ValueError, match="batch_size"):
        analysis.activation_agreement(f, IMAGES, Z, batch_size=0)
    with pytest.raises(ValueError, match="f is a tuple; it must be a function"):
        analysis.activation_agreement(WEIGHTS, IMAGES, Z)
    with pytest.raises(ValueError, match="f returns no unit"):
        analysis.activation_agreement(
            lambda x: (), IMAGES.astype(np.float32), Z.astype(np.float32)
        )
