"""Terms of the bound against their definitions in NumPy."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import operators

RNG = np.random.default_rng(0)


def dense(*shapes):
    return [
        operators.Layer(
            jnp.asarray(RNG.normal(size=s), jnp.float32), "", "dense", s[:1]
        )
        for s in shapes
    ]


measure = jax.jit(operators.log_margin_terms)


def test_terms_are_their_definitions() -> None:
    layers = dense((4, 6), (6, 5), (5, 3))
    found = measure(layers, v_min=0.3)
    first, second, last = (np.asarray(one.kernel, np.float64) for one in layers)
    least = [np.linalg.svd(m, compute_uv=False).min() for m in (first, second)]
    pairs = itertools.combinations(last.T, 2)
    separation = min(np.linalg.norm(a - b) for a, b in pairs)
    np.testing.assert_allclose(found.log_sigma_min, np.log(least), rtol=1e-4)
    np.testing.assert_allclose(found.log_separation, np.log(separation), rtol=1e-5)
    expected = math.log(separation * math.prod(least) * 0.3)
    np.testing.assert_allclose(found.log_u_min, expected, rtol=1e-4)
    np.testing.assert_allclose(found.log_sigma_product, np.log(least).sum(), rtol=1e-4)
    assert measure(layers, v_min=0.0).log_u_min == -np.inf
    scaled = operators.log_margin_terms(layers, v_min=0.3, input_scale=(5.0, -2.0))
    np.testing.assert_allclose(scaled.log_v_min, math.log(0.6), rtol=1e-5)
    expected += math.log(2)
    np.testing.assert_allclose(scaled.log_u_min, expected, rtol=1e-4)


def test_a_layer_that_lacks_full_rank_gives_zero() -> None:
    first, *others = dense((4, 6), (6, 5), (5, 3))
    flat = first.replace(kernel=first.kernel.at[:, 0].set(0).at[3].set(0))
    found = measure([flat, *others], v_min=0.3)
    # Rounding leaves a value that is small beside the norm of the layer.
    assert found.log_sigma_min[0] < -14
    none = flat.replace(kernel=jnp.zeros_like(flat.kernel))
    found = measure([none, *others], v_min=0.3)
    assert found.log_u_min == found.log_sigma_product == -np.inf


def test_the_product_is_no_bound_of_the_gain_but_for_tall_layers() -> None:
    """The counterexample of the docstring, and the case in which Eq. 14 holds."""
    first, second = np.array([[1.0], [0.0]]), np.array([[np.cos(1.5), np.sin(1.5)]])
    least = [np.linalg.svd(m, compute_uv=False).min() for m in (first, second)]
    np.testing.assert_allclose(least, 1)
    assert np.linalg.norm(second @ first) < 0.071
    layers = dense((4, 5), (5, 6), (6, 3))
    tall = [np.asarray(one.kernel, np.float64) for one in layers[:2]]
    gain = np.linalg.svd(tall[0] @ tall[1], compute_uv=False).min()
    assert np.log(gain) >= measure(layers, v_min=1.0).log_sigma_product


@pytest.mark.parametrize(
    ("shapes", "v_min", "message"),
    [
        ([], 1.0, "layers is"),
        ([(3, 2)], 1.0, "at least two layers"),
        ([(3, 2), (2, 1)], 1.0, "two outputs"),
        ([(3, 2), (2, 2)], -1.0, "v_min is -1.0"),
        ([(3, 2), (2, 2)], np.inf, "v_min is inf"),
    ],
)
def test_bad_layers_and_distances_are_named(shapes, v_min, message) -> None:
    with pytest.raises(ValueError, match=message):
        operators.log_margin_terms(dense(*shapes), v_min=v_min)
