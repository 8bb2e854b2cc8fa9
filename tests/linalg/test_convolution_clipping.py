"""Clipped kernels against clipped dense matrices, and the norms of the results."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import linalg

# Each case: grid, taps, dilation, groups. Kernels map 4 channels to 6.
CASES = {
    "plain": ((5, 4), (3, 2), (1, 1), 1),
    "dilation and groups": ((6, 5), (2, 3), (3, 1), 2),
    "larger than the grid": ((3,), (5,), (1,), 2),
    "three axes, one tap": ((2, 4, 3), (2, 2, 1), (1, 1, 1), 1),
}


def dense(kernel, sizes, dilation, groups):
    """The operator ``(*sizes, C_out, *sizes, C_in)`` by its definition."""
    *taps, inputs, outputs = kernel.shape
    matrix = np.zeros((*sizes, outputs, *sizes, inputs * groups))
    part = outputs // groups
    for window in np.ndindex(*sizes):
        for tap in np.ndindex(*taps):
            place = np.add(window, np.multiply(tap, dilation)) % sizes
            for g in range(groups):
                out = slice(g * part, (g + 1) * part)
                into = slice(g * inputs, (g + 1) * inputs)
                matrix[(*window, out, *place, into)] += kernel[tap][:, out].T
    return matrix


def clipped_once(kernel, bound, sizes, dilation, groups):
    """The kernel whose operator is nearest to the clipped operator."""
    *taps, inputs, outputs = kernel.shape
    matrix = dense(kernel, sizes, dilation, groups)
    flat = matrix.reshape(np.prod(sizes) * outputs, -1)
    left, values, right = np.linalg.svd(flat, full_matrices=False)
    less = (left * np.minimum(values, bound)) @ right - flat
    less = less.reshape(matrix.shape)[(0,) * len(sizes)]  # It commutes with shifts.
    result, part = kernel.copy(), outputs // groups
    places = {t: tuple(np.multiply(t, dilation) % sizes) for t in np.ndindex(*taps)}
    for tap, place in places.items():
        share = list(places.values()).count(place)
        for g in range(groups):
            out = slice(g * part, (g + 1) * part)
            into = slice(g * inputs, (g + 1) * inputs)
            result[tap][:, out] += less[(out, *place, into)].T / share
    return result


def norm(kernel, sizes, dilation, groups):
    matrix = dense(kernel, sizes, dilation, groups)
    return np.linalg.norm(matrix.reshape(np.prod(sizes) * kernel.shape[-1], -1), 2)


@pytest.mark.parametrize("name", CASES)
def test_clipped_kernel_is_that_of_the_clipped_dense_matrix(name):
    sizes, taps, dilation, groups = CASES[name]
    kernel = np.random.default_rng(0).normal(size=(*taps, 4 // groups, 6))
    where = (sizes, dilation, groups)
    bound = 0.4 * norm(kernel, *where)
    clip = functools.partial(
        linalg.clip_circular_singular_values,
        kernel_dilation=dilation,
        groups=groups,
        num_iterations=2,
    )

    @jax.jit
    def both(kernel, bound):
        return [clip(kernel, sizes, bound, rescale=scale) for scale in (False, True)]

    with jax.enable_x64(True):
        published, rescaled = map(np.asarray, both(jnp.asarray(kernel), bound))
    once = clipped_once(kernel, bound, *where)
    expected = clipped_once(once, bound, *where)
    np.testing.assert_allclose(published, expected, atol=1e-12)
    # If the taps cover the grid, no tap is removed, and one iteration is enough.
    left = norm(published, *where)
    if name == "larger than the grid":
        np.testing.assert_allclose(expected, once, atol=1e-12)
        np.testing.assert_allclose(left, bound, rtol=1e-12)
    else:
        assert 1.01 * bound < left < norm(once, *where)
    np.testing.assert_allclose(rescaled, expected * bound / left, atol=1e-11)
    assert norm(rescaled, *where) <= bound


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, None))
def clip(kernel, bound):
    return linalg.clip_circular_singular_values(kernel, 7, bound, num_iterations=12)


def norms_by_fourier(kernels, size=7):
    blocks = np.fft.fft2(np.asarray(kernels, np.float64), (size, size), axes=(1, 2))
    return np.linalg.svd(blocks, compute_uv=False).max((1, 2, 3))


@functools.cache
def kernels():
    return np.random.default_rng(0).normal(size=(20, 3, 3, 4, 5)).astype(np.float32)


def test_clipped_kernels_have_the_norm_and_stay_what_they_are():
    found = clip(kernels(), 1.5)
    assert np.all(norms_by_fourier(kernels()) > 1.6)
    after = norms_by_fourier(found)
    assert np.all(after <= 1.5)
    assert np.all(after > 1.499)
    np.testing.assert_array_equal(clip(found, 1.5), found)


def test_kernels_within_the_bound_come_back_to_the_last_bit():
    before = norms_by_fourier(kernels())
    bound = np.median(before)
    found = np.asarray(clip(kernels(), bound))
    same = (found == kernels()).all((1, 2, 3, 4))
    np.testing.assert_array_equal(same, before < bound)
    np.testing.assert_array_equal(clip(kernels(), np.inf), kernels())
    zero = np.zeros_like(kernels())
    np.testing.assert_array_equal(clip(zero, 1e-3), zero)


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_tiny_and_huge_kernels_are_clipped_alike(factor):
    plain, scaled = clip(kernels(), 1.5), clip(kernels() * factor, 1.5 * factor)
    np.testing.assert_allclose(np.divide(scaled, factor), plain, atol=1e-4)


def test_every_iteration_brings_the_norm_nearer():
    kernel = np.random.default_rng(1).normal(size=(1, 3, 3, 4, 5)).astype(np.float32)
    kernel *= 7.18 / norms_by_fourier(kernel)[0]

    @functools.partial(jax.jit, static_argnums=1)
    def published(kernel, num_iterations):
        return linalg.clip_circular_singular_values(
            kernel, 7, 1.0, num_iterations=num_iterations, rescale=False
        )

    found = [kernel]
    for _ in range(4):
        found.append(published(found[-1][0], 1)[None])
    norms = np.array([norms_by_fourier(kernel)[0] for kernel in found])
    assert np.all(np.diff(norms) < 0)
    assert norms[-1] > 1
    assert 1.1 < norms[1] < 1.6
    assert norms[-1] < 1.15
    np.testing.assert_allclose(published(kernel[0], 4), found[-1][0], atol=1e-5)


def test_a_padded_grid_bounds_strides_and_zeros_around_the_image():
    kernel = np.asarray(clip(kernels()[:1], 1.5))[0]
    matrix = np.zeros((6, 6, 5, 6, 6, 4))
    for i, j, k, n in np.ndindex(6, 6, 6, 6):
        if abs(k - i) < 2 and abs(n - j) < 2:
            matrix[i, j, :, k, n] = kernel[k - i + 1, n - j + 1].T
    padded = np.linalg.norm(matrix.reshape(180, -1), 2)
    strided = np.linalg.norm(matrix[::2, ::2].reshape(45, -1), 2)
    assert 0.75 < strided < padded < 1.5


def test_frequencies_in_chunks_are_those_in_one_piece(monkeypatch):
    whole = clip(kernels(), 1.5)[0]
    monkeypatch.setattr("opnorm.linalg.convolution_spectrum._BLOCK_BUDGET", 20 * 4)
    chunks = jax.jit(
        lambda kernel: linalg.clip_circular_singular_values(
            kernel, 7, 1.5, num_iterations=12
        )
    )(kernels()[0])
    np.testing.assert_allclose(chunks, whole, atol=1e-5)


def test_a_one_by_one_kernel_is_clipped_as_its_matrix_and_keeps_its_dtype():
    matrix = np.random.default_rng(0).normal(size=(4, 6))

    @jax.jit
    def both(matrix):
        found = linalg.clip_circular_singular_values(
            matrix[None, None], (5, 7), 1.2, rescale=False
        )
        return found[0, 0], linalg.clip_singular_values(matrix, 1.2)

    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    expected = (left * np.minimum(values, 1.2)) @ right
    for dtype, atol in ((jnp.float32, 1e-5), (jnp.bfloat16, 0.03)):
        for found in both(jnp.asarray(matrix, dtype)):
            assert found.dtype == dtype
            np.testing.assert_allclose(found.astype(np.float32), expected, atol=atol)


def test_matrices_are_clipped_to_the_bound_or_left_alone():
    matrices = np.random.default_rng(0).normal(size=(9, 7, 5)).astype(np.float32)
    clip = jax.jit(jax.vmap(linalg.clip_singular_values))
    bounds = np.full(9, 2.0, np.float32)
    bounds[:3] = 10, np.inf, 1e-6
    found = np.asarray(clip(matrices, bounds))
    np.testing.assert_array_equal(found[:2], matrices[:2])
    left, values, right = np.linalg.svd(matrices.astype(np.float64), False)
    expected = (left * np.minimum(values, bounds[:, None])[:, None]) @ right
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # The error is relative to the bound, not to the part that was clipped.
    np.testing.assert_allclose(found[2], expected[2], atol=1e-11)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"kernel": jnp.ones((2, 4))}, "kernel"),
        ({"kernel": jnp.ones((3, 3, 2, 4), int)}, "kernel"),
        ({"sizes": (5, 5, 5)}, "input_shape"),
        ({"sizes": 0}, "input_shape"),
        ({"groups": 3}, "groups"),
        ({"bound": 0.0}, "bound"),
        ({"bound": np.nan}, "bound"),
        ({"num_iterations": 0}, "num_iterations"),
        ({"kernel_dilation": 0}, "kernel_dilation"),
    ],
)
def test_bad_arguments_are_named(changed, named):
    options = {"kernel": jnp.ones((3, 3, 2, 4)), "sizes": 5, "bound": 1.0} | changed
    with pytest.raises(ValueError, match=named):
        linalg.clip_circular_singular_values(**options)


def test_matrices_that_are_none_are_refused():
    for matrix in (jnp.ones((2, 3, 4)), jnp.ones((0, 3)), jnp.ones((2, 3), int)):
        with pytest.raises(ValueError, match="matrix"):
            linalg.clip_singular_values(matrix, 1.0)
    with pytest.raises(ValueError, match="bound"):
        linalg.clip_singular_values(jnp.ones((2, 3)), -1.0)
