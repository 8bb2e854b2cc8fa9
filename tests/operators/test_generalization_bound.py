"""The bound and its terms against float64, and against exact fractions."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import operators


def terms(u_min):
    """Terms with a given u_min, whose parts are not used."""
    with np.errstate(divide="ignore"):
        log = jnp.asarray(np.log(np.float32(u_min)))
    return operators.MarginTerms(log, log, log[None], log, log)


COVERING = {"log_covering_number": 3.0, "num_examples": 500, "eta": 0.05}


def test_both_forms_of_the_bound_are_their_definitions() -> None:
    gammas = np.array([0.01, 0.3, 0.300001, 0.5, 40.0, 1e30])
    found = operators.log_generalization_bound(terms(0.3), gamma=gammas, **COVERING)
    first = np.maximum(0, 1 - 0.3 / gammas)
    covering = math.sqrt((2 * math.log(2) * math.exp(3) + 2 * math.log(20)) / 500)
    far = np.array([True, True, False, True, True, True])
    for factor, bound, term in (
        (1, found.log_bound, found.log_first_term),
        (2, found.log_bound_of_proof, found.log_first_term_of_proof),
    ):
        np.testing.assert_allclose(np.exp(term)[far], factor * first[far], rtol=2e-6)
        np.testing.assert_allclose(np.exp(bound), factor * first + covering, rtol=2e-5)
    np.testing.assert_array_equal(found.log_first_term[:2], -np.inf)
    np.testing.assert_allclose(found.log_covering_term, math.log(covering), rtol=1e-6)


@pytest.mark.parametrize(("u_min", "first"), [(0.0, 0.0), (1e-38, 0.0), (5.0, -np.inf)])
def test_tiny_and_large_margins_have_the_limits_of_the_first_term(u_min, first) -> None:
    found = operators.log_generalization_bound(terms(u_min), gamma=2.0, **COVERING)
    assert found.log_first_term == first
    assert found.log_first_term_of_proof == pytest.approx(first + math.log(2))
    expected = np.logaddexp(first, found.log_covering_term)
    np.testing.assert_allclose(found.log_bound, expected, rtol=1e-6)


def test_covering_number_is_a_power_and_never_overflows() -> None:
    found = operators.log_covering_number(constant=3.0, dimension=5, epsilon=0.75)
    assert found == pytest.approx(math.log(4.0**5))
    images = operators.log_covering_number(constant=55.4, dimension=3072, epsilon=1e-3)
    assert images == pytest.approx(3072 * math.log(55_400))
    term = operators.log_covering_term(images, num_examples=50_000, eta=0.01)
    inner = math.log(2 * math.log(2)) + images - math.log(50_000)
    assert term == pytest.approx(inner / 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"constant": 0.0}, "constant is 0.0"),
        ({"dimension": -1}, "dimension is -1"),
        ({"epsilon": math.nan}, "epsilon is nan"),
        ({"epsilon": 3.0}, "epsilon is 3.0; it must be at most the constant, 2.0"),
    ],
)
def test_bad_options_of_the_covering_number_are_named(changes, message) -> None:
    given = {"constant": 2.0, "dimension": 2, "epsilon": 1.0, **changes}
    with pytest.raises(ValueError, match=message):
        operators.log_covering_number(**given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gamma": 0.0}, "gamma is 0.0; it must be positive"),
        ({"eta": 0.0}, "eta is 0.0"),
        ({"log_covering_number": math.inf}, "log_covering_number is inf"),
    ],
)
def test_bad_options_of_the_bound_are_named(changes, message) -> None:
    given = {"gamma": 1.0, **COVERING, **changes}
    with pytest.raises(ValueError, match=message):
        operators.log_generalization_bound(terms(0.3), **given)


def test_covering_term_is_its_definition() -> None:
    for log_number, m, eta in ((0.0, 7, 0.5), (9.0, 50_000, 0.01)):
        found = operators.log_covering_term(log_number, num_examples=m, eta=eta)
        inner = 2 * math.log(2) * math.exp(log_number) + 2 * math.log(1 / eta)
        assert found == pytest.approx(math.log(math.sqrt(inner / m)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"log_covering_number": -1.0}, "log_covering_number is -1.0"),
        ({"num_examples": 0}, "num_examples is 0"),
        ({"eta": 1.0}, "eta is 1.0"),
    ],
)
def test_bad_options_of_the_covering_term_are_named(changes, message) -> None:
    given = {"log_covering_number": 1.0, "num_examples": 5, "eta": 0.1, **changes}
    with pytest.raises(ValueError, match=message):
        operators.log_covering_term(**given)
