"""Golub-Kahan triplets against dense singular value decompositions."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg

from opnorm import linalg


@functools.cache
def compiled(k=1, **options):
    """Golub-Kahan of dense matrices as one program for each set of options."""

    def triplets(matrix, key):
        linear_map = linalg.from_matrix(matrix)
        return linalg.golub_kahan(linear_map, k, key=key, **options)

    return jax.jit(triplets)


def with_spectrum(values, d, n, seed=0):
    """A batch of two d x n matrices with the given singular values."""
    rng = np.random.default_rng(seed)
    k = len(values)
    found = []
    for _ in range(2):
        left, _ = np.linalg.qr(rng.normal(size=(d, k)))
        right, _ = np.linalg.qr(rng.normal(size=(n, k)))
        found.append(left * np.asarray(values) @ right.T)
    return np.array(found)


SPECTRA = {
    "random": np.linspace(3, 0.1, 8),
    "clustered": [2, 1.9999, 1.9998, 1, 0.9999, 0.5, 0.5, 0.1],
    "degenerate": [2, 2, 2, 1, 1, 1, 1, 1],
    "rank two": [3, 1, 0, 0, 0, 0, 0, 0],
    "huge condition": 10.0 ** -np.arange(0, 16, 2),
    "zero": np.zeros(8),
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize(("d", "n"), [(8, 30), (30, 8), (8, 8)])
def test_all_steps_give_the_whole_spectrum(name, d, n):
    with jax.enable_x64(True):
        values = np.sort(SPECTRA[name])[::-1]
        a = with_spectrum(values, d, n)
        found = compiled(8, num_steps=8)(jnp.asarray(a), jax.random.key(0))
        np.testing.assert_allclose(found.values, [values, values], atol=1e-10)
        for vectors in (found.left, found.right):
            gram = np.einsum("bkn,bln->bkl", vectors, vectors)
            np.testing.assert_allclose(gram, [np.eye(8)] * 2, atol=1e-8)
        images = np.einsum("bdn,bkn->bkd", a, found.right)
        expected = np.asarray(found.values)[..., None] * found.left
        np.testing.assert_allclose(images, expected, atol=1e-10)


@hypothesis.settings(max_examples=15, deadline=None)
@hypothesis.given(
    seed=st.integers(0, 1000),
    steps=st.sampled_from([2, 12]),
    scale=st.integers(-8, 8),
)
def test_a_singular_value_lies_within_each_error_bar(seed, steps, scale):
    with jax.enable_x64(True):
        a = 10.0**scale * np.random.default_rng(seed).normal(size=(2, 20, 30))
        found = compiled(2, num_steps=steps)(jnp.asarray(a), jax.random.key(1))
        exact = np.linalg.svd(a, compute_uv=False)
        distance = np.abs(exact[:, None] - np.asarray(found.values)[..., None]).min(-1)
        assert np.all(distance <= found.residual + 1e-12 * exact[:, :1])
        assert np.all(found.values <= exact[:, :2] * (1 + 1e-12))
        pulled = np.einsum("bdn,bkd->bkn", a, found.left)
        pulled -= np.asarray(found.values)[..., None] * found.right
        error = np.linalg.norm(pulled, axis=-1)
        np.testing.assert_allclose(error, found.residual, atol=1e-9 * exact[0, 0])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_error_bars_hold_for_matrices_of_few_digits(dtype):
    matrix = jnp.asarray(with_spectrum(np.linspace(3, 1, 8), 8, 30), dtype)
    exact = np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False)
    found = compiled(3, num_steps=8)(matrix, jax.random.key(0))
    error = np.abs(found.values - exact[:, :3])
    assert np.any(error > 1e-4)
    assert np.all(error <= found.residual)


def test_a_wrong_adjoint_widens_the_error_bars():
    matrix = with_spectrum(np.linspace(3, 1, 8), 8, 30)
    right = linalg.from_matrix(jnp.asarray(matrix))
    wrong = right._replace(rmatvec=lambda u: 2 * right.rmatvec(u) + 1)
    found = linalg.golub_kahan(wrong, 2, num_steps=8, key=jax.random.key(0))
    exact = np.linalg.svd(matrix, compute_uv=False)
    nearest = np.abs(found.values[:, :, None] - exact[:, None]).min(axis=-1)
    assert np.all(nearest > 1)
    assert np.all(nearest <= found.residual)


def test_leading_values_are_scipys_in_single_precision():
    a = np.random.default_rng(0).normal(size=(60, 200)).astype(np.float32)
    found = compiled(3, num_steps=40)(jnp.asarray(a), jax.random.key(0))
    expected = scipy.sparse.linalg.svds(
        a.astype(np.float64), 3, return_singular_vectors=False
    )
    np.testing.assert_allclose(found.values[0], np.sort(expected)[::-1], rtol=1e-5)


def test_repeated_values_are_found_on_a_tolerance():
    spectra = [[10, 10, 5, 1], [10, 10, 10, 10], [4, 3, 2, 1], [3, 2, 2, 2]]
    rest = np.linspace(0.1, 0.01, 8)
    a = np.concatenate([with_spectrum([*top, *rest], 12, 30)[:1] for top in spectra])
    run = compiled(3, num_steps=12, tolerance=1e-3)
    found = run(a.astype(np.float32), jax.random.key(0))
    expected = [[10, 10, 5], [10, 10, 10], [4, 3, 2], [3, 2, 2]]
    np.testing.assert_allclose(found.values, expected, rtol=1e-3)
    for vectors in (found.left, found.right):
        gram = np.einsum("bkn,bln->bkl", vectors, vectors)
        np.testing.assert_allclose(gram, [np.eye(3)] * 4, atol=1e-5)
    pulled = np.einsum("bdn,bkd->bkn", a, found.left)
    pulled -= np.asarray(found.values)[..., None] * found.right
    assert np.all(np.linalg.norm(pulled, axis=-1) <= found.residual)


def test_it_needs_fewer_steps_than_the_power_method():
    a = np.random.default_rng(0).normal(size=(1, 50, 80)).astype(np.float32)
    exact = np.linalg.norm(a[0], 2)

    @jax.jit
    def both(a, key):
        linear_map = linalg.from_matrix(a)
        lanczos = linalg.golub_kahan(linear_map, num_steps=12, key=key)
        power = linalg.operator_norm(linear_map, num_steps=24, key=key)
        return lanczos.values[0, 0], power.value[0]

    lanczos, power = both(a, jax.random.key(0))
    assert exact - lanczos < 0.5 * (exact - power)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k is 0"),
        ({"k": 9, "num_steps": 8}, "k is 9"),
        ({"num_steps": 9}, "num_steps is 9.*1 to 8"),
        ({"key": None}, "init and key are None"),
        ({"init": jnp.ones((3, 8))}, "init has shape"),
    ],
)
def test_bad_options_are_refused(options, message):
    a = linalg.from_matrix(jnp.ones((2, 8, 10)))
    with pytest.raises(ValueError, match=message):
        linalg.golub_kahan(a, **{"key": jax.random.key(0), **options})


def test_a_map_of_nan_has_values_of_nan_and_leaves_the_others_alone():
    a = jax.random.normal(jax.random.key(0), (3, 8, 10))
    clean = compiled(2)(a, jax.random.key(1))
    found = compiled(2)(a.at[1, 2, 3].set(jnp.nan), jax.random.key(1))
    assert np.all(np.isnan(found.values[1]))
    assert np.all(np.isfinite(found.right))
    assert np.all(np.isfinite(found.left))
    np.testing.assert_allclose(found.values[::2], clean.values[::2], rtol=1e-5)
