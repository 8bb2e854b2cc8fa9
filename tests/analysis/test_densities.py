"""Densities of several spectra on one grid, against sums of Gaussians."""

import numpy as np
import pytest

from opnorm import analysis, linalg


def spectrum(nodes):
    nodes = np.sort(np.asarray(nodes, np.float32))[None, None].repeat(2, axis=1)
    return linalg.SpectralDensity(nodes, np.full_like(nodes, 1 / nodes.shape[2]))


NODES = ([-1.0, 0.002, 3.0, 500.0], [-0.1, 0.0, 4.0, 40.0])


def test_curves_are_sums_of_gaussians_on_one_grid() -> None:
    curves = analysis.density_curves([spectrum(nodes) for nodes in NODES])
    first, second = curves
    assert first.scale == second.scale == 0.002 * 500
    np.testing.assert_array_equal(first.asinh, second.asinh)
    np.testing.assert_allclose(
        first.eigenvalues[[0, -1]],
        np.sinh(np.arcsinh([-1, 500]) + np.array([-0.48, 0.48])),
        rtol=1e-6,
    )
    for nodes, curve in zip(NODES, curves, strict=True):
        centres = np.arcsinh(np.array(nodes) / curve.scale)
        away = (curve.asinh[:, None] - centres) / curve.width
        bells = np.exp(-0.5 * away**2) / (curve.width * np.sqrt(2 * np.pi))
        np.testing.assert_allclose(curve.mean, bells.mean(axis=1), atol=1e-5)
        assert np.trapezoid(curve.mean, curve.asinh) == pytest.approx(1, abs=1e-4)


def test_a_spectrum_of_zeros_has_a_curve() -> None:
    (curve,) = analysis.density_curves([spectrum([0.0, 0, 0, 0])], num_points=101)
    assert curve.scale == 1.0
    assert np.isfinite(curve.mean).all()
    assert curve.mean.argmax() == 50


@pytest.mark.parametrize(
    ("densities", "options", "message"),
    [
        ([], {}, "densities has nodes of the shapes"),
        ([linalg.SpectralDensity(*np.zeros((2, 2, 1, 3)))], {}, "each must be"),
        ([spectrum([1.0])], {"width": 0.0}, "width is 0.0"),
        ([spectrum([1.0])], {"scale": -1.0}, "scale is -1.0"),
        ([spectrum([1.0])], {"num_points": 1}, "num_points is 1"),
    ],
)
def test_bad_arguments_are_refused(densities, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        analysis.density_curves(densities, **options)


def test_a_reflected_curve_has_all_its_mass_at_zero_and_above() -> None:
    # Most eigenvalues are 0, which blurring spreads to both sides.
    nodes = [0.0, 0.0, 0.0, 0.002, 3.0, 5.0]
    (curve,) = analysis.density_curves([spectrum(nodes)], num_points=4001)
    below = np.trapezoid(np.where(curve.asinh < 0, curve.mean, 0), curve.asinh)
    assert below > 0.2
    found = curve.reflected()
    assert found.asinh[0] == 0
    assert (np.diff(found.asinh) > 0).all()
    assert np.trapezoid(found.mean, found.asinh) == pytest.approx(1, abs=1e-3)
    centres = np.arcsinh(np.array(nodes) / curve.scale)
    bells = [
        np.exp(-0.5 * ((found.asinh[:, None] - sign * centres) / curve.width) ** 2)
        for sign in (1, -1)
    ]
    expected = sum(bells).mean(axis=1) / (curve.width * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(found.mean, expected, atol=2e-3)
    # Far from 0 nothing changes.
    far = curve.asinh > 5 * curve.width + np.arcsinh(0.002 / curve.scale)
    np.testing.assert_allclose(found.mean[-far.sum() :], curve.mean[far])
    np.testing.assert_allclose(
        found.standard_error[-far.sum() :], curve.standard_error[far]
    )
