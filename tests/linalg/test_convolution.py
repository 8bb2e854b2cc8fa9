"""Maps, norms, spectra and bounds of convolutions, against dense matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import linalg
from tests.support.matrices import dense_convolution

# Each case: image, kernel, strides, padding, dilation, groups. Images have 4 channels.
GRID = {
    "same": ((5, 6), (3, 3), (1, 1), "SAME", (1, 1), 1),
    "same, strides": ((7, 6), (3, 3), (2, 2), "SAME", (1, 1), 2),
    "same, a small image": ((3, 2), (5, 4), (2, 1), "SAME", (1, 1), 1),
    "same, dilation": ((6, 5), (3, 2), (1, 2), "SAME", (2, 1), 2),
    "valid": ((6, 5), (3, 2), (1, 1), "VALID", (1, 1), 2),
    "valid, strides": ((7, 6), (2, 3), (3, 2), "VALID", (2, 1), 1),
    "circular": ((5, 6), (3, 4), (1, 1), "CIRCULAR", (1, 1), 2),
    "circular, strides": ((6, 4), (3, 3), (2, 2), "CIRCULAR", (1, 1), 1),
    "circular, dilation": ((6, 4), (3, 2), (3, 1), "CIRCULAR", (2, 3), 2),
    "circular, odd": ((5, 7), (3, 3), (2, 2), "CIRCULAR", (1, 1), 1),
    "circular, small": ((3, 2), (5, 3), (1, 2), "CIRCULAR", (1, 1), 1),
    "pairs": ((5, 5), (3, 3), (2, 1), [(2, 1), (0, 5)], (1, 1), 2),
    "pairs, crop": ((6, 5), (3, 3), (1, 1), [(-1, 1), (1, 0)], (1, 1), 1),
    "one axis": ((7,), (4,), (2,), [(3, 0)], (1,), 2),
    "three axes": ((3, 4, 2), (2, 3, 2), (1, 2, 1), "SAME", (1, 1, 1), 1),
}
# The norm is a search with the map and an upper bound, which every case compares. It
# takes a second to compile, so that one case of each kind is left to it.
SEARCHED = (
    "same",
    "valid, strides",
    "circular, dilation",
    "circular, odd",
    "pairs",
    "three axes",
)


def case(name, outputs=6):
    """A kernel, its dense matrix, the shape of the image and the options."""
    sizes, taps, strides, padding, dilation, groups = GRID[name]
    rng = np.random.default_rng(len(name))
    kernel = rng.normal(size=(*taps, 4 // groups, outputs))
    matrix = dense_convolution(kernel, sizes, strides, padding, dilation, groups)
    options = {
        "strides": strides,
        "padding": padding,
        "kernel_dilation": dilation,
        "groups": groups,
    }
    return kernel, matrix, (*sizes, 4), options


@pytest.mark.parametrize("name", GRID)
def test_map_spectrum_norm_and_bounds_are_those_of_the_dense_matrix(name):
    kernel, matrix, shape, options = case(name)
    circular = name.startswith("circular") and name != "circular, odd"
    periodic = {n: value for n, value in options.items() if n != "padding"}

    @jax.jit
    def everything(kernel, inputs, output):
        linear_map = linalg.convolution_map(kernel, shape, **options)
        values = found = None
        if circular:
            values = linalg.circular_singular_values(kernel, shape[:-1], **periodic)
        if name in SEARCHED:
            found = linalg.convolution_norm_bounds(
                kernel, shape, **options, num_steps=60
            )
        return (
            jax.vmap(linear_map.matvec)(inputs),
            linear_map.rmatvec(output),
            linalg.convolution_frobenius_norm(kernel, shape, **options),
            linalg.convolution_upper_bound(kernel, shape, **options),
            linalg.convolution_upper_bound(
                kernel, shape, **options, method="gram_iteration"
            ),
            found,
            values,
        )

    with jax.enable_x64(True):
        linear_map = linalg.convolution_map(jnp.asarray(kernel), shape, **options)
        assert (linear_map.out_size, linear_map.in_size) == matrix.shape
        output = np.random.default_rng(0).normal(size=(1, *linear_map.out_shape))
        columns, pulled, frobenius, svd, gram, found, values = everything(
            jnp.asarray(kernel), np.eye(matrix.shape[1]).reshape(-1, 1, *shape), output
        )
    np.testing.assert_allclose(columns.reshape(-1, len(matrix)).T, matrix, atol=1e-13)
    np.testing.assert_allclose(pulled.ravel(), matrix.T @ output.ravel(), atol=1e-12)
    np.testing.assert_allclose(frobenius, np.linalg.norm(matrix), rtol=1e-12)
    exact, svd, gram = np.linalg.svd(matrix, compute_uv=False), float(svd), float(gram)
    assert exact[0] <= svd <= 2 * exact[0]
    assert exact[0] <= gram <= 1.1 * svd
    assert svd <= gram * (1 + 1e-12)
    if name in SEARCHED:
        np.testing.assert_allclose(found.value, exact[0], rtol=1e-10)
        assert found.lower <= exact[0] <= found.upper
    if circular:
        np.testing.assert_allclose(svd, exact[0], rtol=1e-11)
        np.testing.assert_allclose(values, exact, atol=1e-11)


@pytest.mark.parametrize("name", ["same, strides", "one axis"])
def test_norm_is_that_of_the_dense_matrix_and_lies_between_the_bounds(name):
    kernel, matrix, shape, options = case(name)

    @jax.jit
    def both(kernel):
        def norm(kernel):
            found = linalg.convolution_norm(kernel, shape, **options, num_steps=25)
            return found.value, found

        gradient, found = jax.grad(norm, has_aux=True)(kernel)
        upper = linalg.convolution_upper_bound(kernel, shape, **options)
        linear_map = linalg.convolution_map(kernel, shape, **options)
        return found, gradient, upper, linear_map.matvec(found.right[None])[0]

    with jax.enable_x64(True):
        found, gradient, upper, image = jax.tree.map(np.asarray, both(kernel))
    left, values, right = np.linalg.svd(matrix)
    np.testing.assert_allclose(found.value, values[0], rtol=1e-10)
    assert found.residual <= 1e-4 * values[0]
    assert values[0] <= float(upper)
    np.testing.assert_allclose(abs(found.right.ravel() @ right[0]), 1, rtol=1e-7)
    np.testing.assert_allclose(found.left, image / found.value, atol=1e-12)
    direction = np.random.default_rng(1).normal(size=kernel.shape)
    change = left[:, 0] @ dense_convolution(direction, *case_geometry(name)) @ right[0]
    np.testing.assert_allclose(np.sum(gradient * direction), change, rtol=1e-6)


def case_geometry(name):
    sizes, _, strides, padding, dilation, groups = GRID[name]
    return sizes, strides, padding, dilation, groups


@jax.jit
def bounds_on_28_pixels(kernel):
    found = linalg.convolution_norm_bounds(kernel, (28, 28, 2), num_steps=25)
    return found, linalg.kernel_matrix_norm(kernel)


def test_norm_of_a_positive_5x5_kernel_is_almost_five_times_the_kernel_matrix_norm():
    kernel = np.zeros((5, 5, 2, 2), np.float32)
    kernel[:, :, 0, 1] = 3.0
    found, matrix_norm = bounds_on_28_pixels(kernel)
    # The operator is a product of a band matrix along each axis.
    band = np.abs(np.subtract.outer(np.arange(28), np.arange(28))) <= 2
    exact = 3 * np.linalg.norm(band, 2) ** 2
    assert matrix_norm == pytest.approx(15, rel=1e-6)
    assert exact / matrix_norm == pytest.approx(4.88, abs=0.01)
    assert found.lower <= exact <= found.upper
    np.testing.assert_allclose(found.value, exact, rtol=1e-5)
    np.testing.assert_allclose(found.upper, exact, rtol=0.03)


def test_norm_of_a_one_by_one_convolution_is_that_of_its_kernel_matrix():
    kernel = np.zeros((5, 5, 2, 2), np.float32)
    kernel[2, 2] = np.random.default_rng(0).normal(size=(2, 2))
    found, matrix_norm = bounds_on_28_pixels(kernel)
    exact = np.linalg.norm(kernel[2, 2].astype(np.float64), 2)
    np.testing.assert_allclose(matrix_norm, exact, rtol=1e-6)
    assert found.lower <= exact <= found.upper
    np.testing.assert_allclose(found.lower, exact, rtol=1e-4)
    np.testing.assert_allclose(found.upper, exact, rtol=1e-3)


def test_zero_huge_and_unusable_kernels():
    kernel = np.random.default_rng(0).normal(size=(5, 5, 2, 2)).astype(np.float32)
    plain, _ = bounds_on_28_pixels(kernel)
    for factor in (1e-30, 1e30):
        scaled, _ = bounds_on_28_pixels(kernel * np.float32(factor))
        np.testing.assert_allclose(np.divide(scaled[:3], factor), plain[:3], rtol=1e-4)
    zero, matrix_norm = bounds_on_28_pixels(np.zeros_like(kernel))
    assert (zero.lower, zero.upper, zero.value, matrix_norm) == (0, 0, 0, 0)
    kernel[0, 0, 0, 0] = np.nan
    bad, matrix_norm = bounds_on_28_pixels(kernel)
    assert np.all(np.isnan([bad.lower, bad.upper, bad.value, matrix_norm]))


@pytest.mark.parametrize("method", ["svd", "gram_iteration"])
def test_single_precision_upper_bounds_stay_above_the_norm(method):
    rng = np.random.default_rng(0)
    kernels = rng.normal(size=(200, 3, 3, 4, 5)) * 10.0 ** rng.uniform(
        -30, 30, (200, 1, 1, 1, 1)
    )
    kernels = kernels.astype(np.float32)
    upper = jax.jit(
        jax.vmap(
            lambda kernel: linalg.convolution_upper_bound(
                kernel, (6, 6, 4), padding="CIRCULAR", method=method
            )
        )
    )(kernels)
    blocks = np.fft.fft2(kernels.astype(np.float64), (6, 6), axes=(1, 2))
    exact = np.linalg.svd(blocks, compute_uv=False).max((1, 2, 3))
    assert np.all(upper >= exact)
    assert np.all(upper <= exact * (1.0002 if method == "svd" else 1.02))


def test_frequencies_in_chunks_are_those_in_one_piece(monkeypatch):
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 6)).astype(np.float32)
    whole = jax.jit(lambda k: linalg.circular_singular_values(k, (5, 6)))(kernel)
    monkeypatch.setattr("opnorm.linalg.convolution_spectrum._BLOCK_BUDGET", 24 * 7)
    chunks = jax.jit(lambda k: linalg.circular_singular_values(k, (5, 6)))(kernel)
    np.testing.assert_allclose(chunks, whole, atol=1e-5)


def test_kernel_matrix_norm_is_numpys():
    kernel = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    expected = np.linalg.svd(kernel.reshape(24, 5), compute_uv=False)
    values = linalg.kernel_matrix_singular_values(jnp.asarray(kernel))
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    assert linalg.kernel_matrix_norm(jnp.asarray(kernel)) == values[0]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"kernel": jnp.ones((3, 3))}, "kernel"),
        ({"kernel": jnp.ones((3, 3, 2, 4), int)}, "kernel"),
        ({"kernel": jnp.ones((3, 0, 2, 4))}, "kernel"),
        ({"input_shape": (5, 5)}, "input_shape"),
        ({"input_shape": (5, 5, 3)}, "input_shape"),
        ({"input_shape": (2, 5, 2), "padding": "VALID"}, "input_shape"),
        ({"groups": 2}, "groups"),
        ({"strides": 0}, "strides"),
        ({"strides": (1, 1, 1)}, "strides"),
        ({"kernel_dilation": 1.5}, "kernel_dilation"),
        ({"padding": "REFLECT"}, "padding"),
        ({"padding": [(1, 1)]}, "padding"),
        ({"padding": [(1, 1), (1, 0.5)]}, "padding"),
        ({"method": "power"}, "method"),
        ({"num_iterations": 0}, "num_iterations"),
        ({"num_steps": 0}, "num_steps"),
    ],
)
def test_bad_arguments_are_named(changed, named):
    options = {"kernel": jnp.ones((3, 3, 2, 4)), "input_shape": (5, 5, 2)} | changed
    with pytest.raises(ValueError, match=named):
        linalg.convolution_norm_bounds(**options)


def test_a_start_of_another_shape_and_sizes_that_strides_do_not_divide():
    kernel = jnp.ones((3, 3, 2, 4))
    with pytest.raises(ValueError, match="init has shape"):
        linalg.convolution_norm(kernel, (5, 5, 2), init=jnp.ones((5, 5)))
    with pytest.raises(ValueError, match="sizes is"):
        linalg.circular_singular_values(kernel, 5, strides=2)
