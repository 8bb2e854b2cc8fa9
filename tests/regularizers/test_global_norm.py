"""The global spectral norm penalty against the singular values of NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import regularizers


def params(dtype=jnp.float64):
    keys = jax.random.split(jax.random.key(0), 2)
    return {
        "conv": {"kernel": jax.random.normal(keys[0], (3, 3, 2, 5), dtype)},
        "dense": {
            "kernel": jax.random.normal(keys[1], (7, 4), dtype),
            "bias": jnp.ones((4,), dtype),
        },
    }


def exact(tree):
    return {
        name: np.linalg.norm(np.asarray(layer["kernel"]).reshape(-1, k), 2)
        for (name, layer), k in zip(tree.items(), (5, 4), strict=True)
    }


def test_persistent_vectors_converge_to_the_norms():
    with jax.enable_x64(True):
        tree = params()
        vectors = regularizers.init_vectors(tree, jax.random.key(1))
        before = 0.0
        refine = jax.jit(regularizers.global_spectral_norm)
        for _ in range(300):
            found = refine(tree, vectors)
            assert found.penalty >= before - 1e-12
            before, vectors = found.penalty, found.vectors
        expected = exact(tree)
        np.testing.assert_allclose(
            found.norms["conv/kernel"], expected["conv"], rtol=1e-9
        )
        np.testing.assert_allclose(
            found.norms["dense/kernel"], expected["dense"], rtol=1e-9
        )
        half_squares = 0.5 * sum(sigma**2 for sigma in expected.values())
        np.testing.assert_allclose(found.penalty, half_squares, rtol=1e-9)


def test_several_steps_are_single_steps_in_a_row():
    tree = params(jnp.float32)
    vectors = regularizers.init_vectors(tree, jax.random.key(1))
    three = regularizers.global_spectral_norm(tree, vectors, num_steps=3)
    for _ in range(3):
        single = regularizers.global_spectral_norm(tree, vectors)
        vectors = single.vectors
    np.testing.assert_allclose(three.penalty, single.penalty, rtol=1e-6)


def test_gradient_is_sigma_u_v():
    with jax.enable_x64(True):
        tree = params()
        vectors = regularizers.init_vectors(tree, jax.random.key(1))
        refine = jax.jit(regularizers.global_spectral_norm)
        for _ in range(500):
            vectors = refine(tree, vectors).vectors
        gradient = jax.grad(
            lambda t: regularizers.global_spectral_norm(t, vectors).penalty
        )(tree)
        kernel = np.asarray(tree["dense"]["kernel"])
        left, values, right = np.linalg.svd(kernel)
        expected = values[0] * np.outer(left[:, 0], right[0])
        np.testing.assert_allclose(gradient["dense"]["kernel"], expected, atol=1e-8)
        np.testing.assert_array_equal(gradient["dense"]["bias"], 0)


def test_a_zero_kernel_gives_zero_and_finite_gradients():
    tree = {"dense": {"kernel": jnp.zeros((3, 2))}}
    vectors = regularizers.init_vectors(tree, jax.random.key(1))
    found, gradient = jax.value_and_grad(
        lambda t: regularizers.global_spectral_norm(t, vectors).penalty
    )(tree)
    assert found == 0
    assert np.all(np.isfinite(gradient["dense"]["kernel"]))


def test_bad_arguments_are_refused():
    tree = params(jnp.float32)
    vectors = regularizers.init_vectors(tree, jax.random.key(1))
    with pytest.raises(ValueError, match="num_steps is 0"):
        regularizers.global_spectral_norm(tree, vectors, num_steps=0)
    with pytest.raises(ValueError, match="layers"):
        regularizers.global_spectral_norm({"conv": tree["conv"]}, vectors)
    with pytest.raises(ValueError, match="kernel"):
        regularizers.init_vectors({"bias": jnp.ones(3)}, jax.random.key(0))
