"""Spreads of singular values against dense matrices, and sums of their changes."""

import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import operators
from tests.support.matrices import dense_convolution

RNG = np.random.default_rng(0)


def convolution(name):
    return operators.Layer(
        jnp.asarray(RNG.normal(size=(3, 2, 2, 3)), jnp.float32),
        name,
        "convolution",
        (4, 5, 2),
        strides=(2, 1),
        padding="SAME",
        kernel_dilation=(1, 1),
    )


def network(prefix=""):
    kernel = jnp.asarray(RNG.normal(size=(5, 4)), jnp.float32)
    head = operators.Layer(kernel, f"{prefix}head", "dense", (5,))
    return [convolution(f"{prefix}a"), convolution(f"{prefix}b"), head]


def spread(matrix):
    return np.std(np.linalg.svd(matrix, compute_uv=False))


def test_spreads_are_those_of_dense_matrices_in_both_forms() -> None:
    layers = network()
    found = operators.layer_spreads(layers)
    assert found.names == ("a", "b", "head")
    assert found.kinds == ("convolution", "convolution", "dense")
    kernels = [np.asarray(layer.kernel, np.float64) for layer in layers]
    flat = [spread(kernel.reshape(-1, kernel.shape[-1])) for kernel in kernels]
    whole = [
        spread(dense_convolution(k, (4, 5), (2, 1), "CIRCULAR", (1, 1), 1))
        for k in kernels[:2]
    ]
    np.testing.assert_allclose(found.kernel, flat, rtol=1e-5)
    np.testing.assert_allclose(found.operator, [*whole, flat[2]], rtol=1e-5)
    assert found.kernel_sum == pytest.approx(sum(flat), rel=1e-5)
    assert found.operator_sum == pytest.approx(sum([*whole, flat[2]]), rel=1e-5)


def test_fall_minus_rise_is_the_difference_of_the_sums() -> None:
    first, second = (operators.layer_spreads(network()) for _ in range(2))
    changes = operators.spread_changes(first, second)
    for change, before, after in (
        (changes.operator, first.operator, second.operator),
        (changes.kernel, first.kernel, second.kernel),
    ):
        assert change == operators.layer_change(before, after)
        assert change.fall - change.rise == pytest.approx(before.sum() - after.sum())
    assert changes.operator != changes.kernel


def test_spreads_of_other_layers_are_refused() -> None:
    first = operators.layer_spreads(network())
    with pytest.raises(ValueError, match="second have the layers"):
        operators.spread_changes(first, first._replace(names=("a", "b", "c")))
    with pytest.raises(ValueError, match="layers is empty"):
        operators.layer_spreads([])


def test_falls_and_rises_are_summed_apart() -> None:
    first, second = np.random.default_rng(0).normal(size=(2, 55))
    second[7] = first[7]
    found = operators.layer_change(first, second)
    pairs = list(zip(first, second, strict=True))
    falls = [a - b for a, b in pairs if a > b]
    rises = [b - a for a, b in pairs if b > a]
    np.testing.assert_allclose(found[:2], [sum(falls), sum(rises)], rtol=1e-12)
    assert found[2:] == (len(falls), len(rises))
    assert found.num_fallen + found.num_risen == 54
    assert operators.layer_change(second, first) == (
        found.rise,
        found.fall,
        found.num_risen,
        found.num_fallen,
    )


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([], [], "L at least 1"),
        ([1.0], [1.0, 2.0], "the shapes"),
        ([1.0], [np.nan], "second is"),
        ([np.inf], [1.0], "first is"),
    ],
)
def test_bad_values_are_refused(first, second, message) -> None:
    with pytest.raises(ValueError, match=message):
        operators.layer_change(first, second)
