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
    assert measure(layers, v_min=0.0).log_u_min == -np.inf


def test_covering_term_is_its_definition() -> None:
    for log_number, m, eta in ((0.0, 7, 0.5), (9.0, 50_000, 0.01)):
        found = operators.log_covering_term(log_number, num_examples=m, eta=eta)
        inner = 2 * math.log(2) * math.exp(log_number) + 2 * math.log(1 / eta)
        assert found == pytest.approx(math.log(math.sqrt(inner / m)))


@pytest.mark.parametrize(
    ("shapes", "v_min", "message"),
    [
        ([], 1.0, "layers is"),
        ([(3, 2)], 1.0, "at least two layers"),
        ([(3, 2), (2, 1)], 1.0, "two outputs"),
        ([(3, 2), (2, 2)], -1.0, "v_min is -1.0"),
    ],
)
def test_bad_layers_and_distances_are_named(shapes, v_min, message) -> None:
    with pytest.raises(ValueError, match=message):
        operators.log_margin_terms(dense(*shapes), v_min=v_min)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"log_covering_number": -1.0}, "log_covering_number is -1.0"),
        ({"num_examples": 0}, "num_examples is 0"),
        ({"eta": 1.0}, "eta is 1.0"),
    ],
)
def test_bad_options_are_named(changes, message) -> None:
    given = {"log_covering_number": 1.0, "num_examples": 5, "eta": 0.1, **changes}
    with pytest.raises(ValueError, match=message):
        operators.log_covering_term(**given)
