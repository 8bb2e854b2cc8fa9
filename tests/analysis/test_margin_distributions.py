"""Distributions of margins against SciPy, and ramp risks against fractions."""

import numpy as np
import pytest
from scipy import stats

from opnorm import analysis

MARGINS = np.random.default_rng(0).normal(0.5, 2, 400).astype(np.float32)


def test_moments_and_quantiles_are_those_of_scipy() -> None:
    found = analysis.margin_distribution(MARGINS, quantiles=[0.1, 0.5, 1.0])
    exact = MARGINS.astype(np.float64)
    np.testing.assert_allclose(found.mean, stats.tmean(exact))
    np.testing.assert_allclose(found.standard_deviation, stats.tstd(exact, ddof=0))
    np.testing.assert_allclose(found.mean_modulus, stats.tmean(np.abs(exact)))
    np.testing.assert_allclose(
        found.quantiles[:2],
        stats.mstats.mquantiles(exact, [0.1, 0.5], alphap=1, betap=1),
    )
    assert found.quantiles[2] == exact.max()
    assert found.error == np.mean(exact <= 0)
    assert found.num_nan == 0


def test_margins_that_are_nan_are_errors_only() -> None:
    found = analysis.margin_distribution([np.nan, 2.0, 0.0, 4.0])
    assert found[:3] == (2.0, np.std([0, 2, 4]), 2.0)
    assert (found.error, found.num_nan) == (0.5, 1)
    assert analysis.ramp_risk([np.nan, 2.0, 0.0, 4.0], 4.0).mean == 0.625


def test_ramp_risks_are_means_with_errors_over_examples() -> None:
    gammas = np.array([0.25, 1.0, 8.0], np.float32)
    found = analysis.ramp_risk(MARGINS, gammas)
    for gamma, mean, error in zip(gammas, *found[:2], strict=True):
        each = [min(1.0, max(0.0, 1 - float(m) / float(gamma))) for m in MARGINS]
        np.testing.assert_allclose(mean, np.mean(each), rtol=1e-5)
        np.testing.assert_allclose(error, stats.sem(each), rtol=1e-5)
        assert analysis.margin_loss(MARGINS) <= mean
        assert mean <= analysis.margin_loss(MARGINS, float(gamma))
    one = analysis.ramp_risk(MARGINS, 1.0)
    assert one.mean == found.mean[1]


@pytest.mark.parametrize(
    ("margins", "options", "message"),
    [
        ([], {}, r"margins has shape \(0,\)"),
        ([[1.0]], {}, r"margins has shape \(1, 1\)"),
        ([1.0, np.inf], {}, "margins has infinite values"),
        ([np.nan], {}, "margins has infinite values or only NaN"),
        ([1.0], {"quantiles": [0.5, 1.5]}, "quantiles is"),
    ],
)
def test_bad_margins_are_named(margins, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        analysis.margin_distribution(margins, **options)


@pytest.mark.parametrize(
    ("margins", "gammas", "message"),
    [
        ([], 1.0, "margins has shape"),
        ([1.0], [[1.0]], "gammas has shape"),
        ([1.0], [1.0, 0.0], "gamma is"),
    ],
)
def test_bad_gammas_are_named(margins, gammas, message) -> None:
    with pytest.raises(ValueError, match=message):
        analysis.ramp_risk(margins, gammas)
