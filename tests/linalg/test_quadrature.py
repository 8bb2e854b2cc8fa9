"""Spectral densities and traces against dense eigendecompositions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import linalg
from tests.support.matrices import with_spectrum

SIZE = 24


@pytest.mark.parametrize("reorthogonalize", [True, False])
def test_quadrature_gives_the_moments_and_the_density(reorthogonalize):
    with jax.enable_x64(True):
        values = np.concatenate([np.linspace(-1, 1, 18), [4.0] * 6])
        a = with_spectrum(values)

        def run(a, key):
            return linalg.spectral_density(
                linalg.from_matrix(a),
                num_steps=12,
                num_probes=400,
                key=key,
                reorthogonalize=reorthogonalize,
            )

        density = jax.jit(run)(a, jax.random.key(0))
        np.testing.assert_allclose(density.weights.sum(-1), 1, rtol=1e-10)
        for power in (1, 2, 5):
            mean, error = density.moment(power)
            exact = np.mean(values**power)
            assert np.all(np.abs(mean - exact) < 4 * error), power
            assert np.all(error < 0.1 * np.mean(np.abs(values) ** power))
        with pytest.raises(ValueError, match="power is -1; it must be an int of 0"):
            density.moment(-1)
        with pytest.raises(ValueError, match=r"power is 0.5"):
            density.moment(0.5)
        grid = jnp.linspace(-4, 7, 400)
        found = density.at(grid, 0.3)
        bells = np.exp(-0.5 * ((grid[:, None] - values) / 0.3) ** 2)
        exact = np.mean(bells, axis=1) / (0.3 * np.sqrt(2 * np.pi))
        assert np.abs(found.mean - exact).max() < 0.05 * exact.max()
        area = np.sum(found.mean, axis=1) * (grid[1] - grid[0])
        np.testing.assert_allclose(area, 1, atol=1e-3)


def test_error_bars_of_a_density_contain_the_error_of_the_quadrature():
    values = np.stack([np.linspace(0, 1, SIZE), np.r_[[5.0] * 4, np.zeros(SIZE - 4)]])

    @jax.jit
    def run(values, widths, grid):
        maps = linalg.from_matrix(jax.vmap(jnp.diag)(values))
        key = jax.random.key(0)
        density = linalg.spectral_density(maps, num_steps=5, num_probes=3, key=key)
        return [density.at(grid, width) for width in widths]

    grid, widths = np.linspace(-1, 6, 57), np.array([0.01, 0.1, 0.5])
    found = run(values, widths, grid)
    for width, (mean, error) in zip(widths, found, strict=True):
        away = (grid[:, None] - values[:, None]) / width
        exact = np.exp(-0.5 * away**2).mean(-1) / (width * math.sqrt(2 * math.pi))
        # All probes see the same spectrum, so the error bar is the bound alone.
        assert np.all(np.abs(mean - exact) <= np.asarray(error) + 1e-4 * exact.max())
        assert np.any(np.abs(mean[0] - exact[0]) > 0.3 * exact[0].max()) == (
            width == 0.01
        )
    # The bound decreases with the width, and is at most about the whole density.
    relative = [np.max(error[0]) / np.max(mean[0]) for mean, error in found]
    assert relative[2] < relative[1] < relative[0] < 3


def test_trace_and_frobenius_norm_are_unbiased_with_their_errors():
    with jax.enable_x64(True):
        a = np.random.default_rng(0).normal(size=(2, 6, 6))
        matrices = (a, a[:, :2], a[:, :, :2])
        diagonal = linalg.from_matrix(jnp.diag(jnp.arange(5.0))[None])
        key = jax.random.key(0)

        @jax.jit
        def estimates(matrices, key):
            maps = [linalg.from_matrix(matrix) for matrix in matrices]
            options = {"num_probes": 1000, "key": key}
            return (
                linalg.trace(maps[0], **options),
                linalg.trace(diagonal, key=key).mean,
                [linalg.squared_frobenius_norm(m, **options) for m in maps],
            )

        (mean, error), exactly, squared = estimates(matrices, key)
        assert np.all(np.abs(mean - np.trace(a, axis1=1, axis2=2)) < 4 * error)
        for matrix, (mean, error) in zip(matrices, squared, strict=True):
            exact = np.sum(matrix**2, axis=(1, 2))
            assert np.all(np.abs(mean - exact) <= 4 * error + 1e-9)
        np.testing.assert_allclose(exactly, 10)
        with pytest.raises(ValueError, match="num_probes is 0"):
            linalg.trace(diagonal, num_probes=0, key=key)
        with pytest.raises(ValueError, match="square"):
            linalg.trace(linalg.from_matrix(jnp.asarray(a[:, :2])), key=key)
